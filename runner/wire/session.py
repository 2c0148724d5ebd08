"""The daemon's side of one connection with an agent: valid or not, and what to do.

Pure: no sockets, no clocks. `states.py` holds the tables; here is what a table cannot say: credit, the limit on
requests under way, and the bounds on what a client claims about a call.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runner.config import Limits
from runner.errors import Refusal, RunnerError, refusal, refuse
from runner.model import Peer, ToolCall
from runner.wire import agent, claims
from runner.wire.agent import Call, Cancel, Credit, FromClient, FromDaemon, Hello, Output, Stdin, StdinCredit
from runner.wire.numbers import MAX_NUMBER, Numbers
from runner.wire.states import (
    CONTROLS,
    NUMBER_RECEIVES,
    NUMBER_SENDS,
    RECEIVES,
    REQUESTS,
    SENDS,
    EndOfStream,
    Phase,
    State,
)

_NUMBERED = frozenset((*REQUESTS, *CONTROLS))

# --- what the caller of `receive` has to do ------------------------------------------------------------


class Event(msgspec.Struct, frozen=True):
    """Base of what `receive` answers."""


class Authenticate(Event, frozen=True):
    """Verify this hello, then send `Welcome` or `Closing`."""

    hello: Hello


class Serve(Event, frozen=True):
    """A new request: answer it under its number."""

    request: Call | agent.Attach | agent.ListTools | agent.GetResult | agent.EndTask


class Forward(Event, frozen=True):
    """Stdin, credit or cancel for a request that is under way."""

    message: Stdin | Credit | Cancel


class Send(Event, frozen=True):
    """Send this; `sent` has been applied already."""

    message: FromDaemon


class Nothing(Event, frozen=True):
    """Valid, and nothing follows: a message that crossed the answer it belongs to, or a pong."""


class Leave(Event, frozen=True):
    """The client leaves. `at_once`: it is gone, cancel its calls that are not detached; else close when `done`."""

    at_once: bool
    reason: str = ""


class _Number(msgspec.Struct):
    phase: Phase
    stdin_open: bool = False
    stdin_credit: int = 0  # stdin bytes the client may still send
    room: int = 0  # output bytes the daemon may still send


class Session:
    """One connection. `receive` every message that arrives, `sent` every message that goes out, in order."""

    def __init__(self, limits: Limits, versions: tuple[int, ...]) -> None:
        self.state = State.CHALLENGED
        self._limits = limits
        self._versions = versions
        self._live: dict[int, _Number] = {}
        self._used = Numbers()

    @property
    def in_flight(self) -> int:
        """Numbers that wait for their last answer."""
        return len(self._live)

    @property
    def done(self) -> bool:
        """Whether a bye was said and every request is answered: say bye and close."""
        return self.state in (State.DRAINING, State.LEAVING) and not self._live

    def phase(self, number: int) -> Phase:
        """Where a number stands."""
        live = self._live.get(number)
        if live is not None:
            return live.phase
        return Phase.FINISHED if number in self._used else Phase.FRESH

    def room(self, number: int) -> int:
        """Output bytes that may be sent for this number now; 0 for one that is not under way."""
        live = self._live.get(number)
        return live.room if live is not None else 0

    # --- from the client ---

    def receive(self, message: FromClient) -> Event:
        """Judge one message. Raises `RunnerError` (protocol, version, unauthenticated, flow): send `close(...)`'s
        answer and hang up."""
        kind = type(message)
        after = RECEIVES[self.state].get(kind)
        if after is None:
            raise refuse("protocol", f"`{_tag(kind)}` is not valid while the connection is {self.state.value}")
        if isinstance(message, Hello):
            self._check_hello(message)
        event = self._receive_number(message) if kind in _NUMBERED else self._plain(message)
        self.state = after
        return event

    def receive_eof(self) -> Leave:
        """The client closed its side: it is gone. Frames after a half close are not read."""
        self.state = RECEIVES[self.state][EndOfStream]
        return Leave(at_once=True, reason="the client closed the connection")

    def _plain(self, message: FromClient) -> Event:
        if isinstance(message, Hello):
            return Authenticate(message)
        if isinstance(message, agent.Ping):
            return Send(agent.Pong(token=message.token))
        if isinstance(message, agent.Bye):
            return Leave(at_once=self.state in (State.CHALLENGED, State.PROVING), reason=message.reason[:200])
        return Nothing()

    def _receive_number(self, message: Any) -> Event:
        number: int = message.number
        if not 0 < number <= MAX_NUMBER:
            raise refuse("protocol", f"a number must be within 1..{MAX_NUMBER}", field="number")
        phase = self.phase(number)
        after = NUMBER_RECEIVES[phase].get(type(message))
        if after is None:
            raise refuse(
                "protocol", f"`{_tag(type(message))}` is not valid for number {number}, which is {phase.value}"
            )
        if phase is Phase.FINISHED:
            return Nothing()
        if phase is Phase.FRESH:
            return self._begin(message, after)
        self._control(message, self._live[number])
        return Forward(message)

    def _begin(self, message: Any, after: Phase) -> Event:
        number: int = message.number
        self._used.add(number)
        if self.state is State.DRAINING:
            return Send(agent.Refused(number=number, refusal=refusal("unavailable", "the daemon is shutting down")))
        if len(self._live) >= self._limits.calls_per_connection:
            return Send(agent.Refused(number=number, refusal=self._busy()))
        window = getattr(message, "window", 0)
        if window < 0:
            raise refuse("protocol", "a window cannot be negative", field="window")
        self._live[number] = _Number(
            phase=after, stdin_open=getattr(message, "stdin", False), room=min(window, self._limits.output_window)
        )
        return Serve(message)

    def _busy(self) -> Refusal:
        most = self._limits.calls_per_connection
        return refusal(
            "busy", f"{most} requests are under way on this connection", allowed=f"{most} at a time", retry_after_ms=100
        )

    def _control(self, message: Stdin | Credit | Cancel, live: _Number) -> None:
        if isinstance(message, Stdin):
            if not live.stdin_open:
                raise refuse("protocol", f"number {message.number} takes no stdin, or no more", field="stdin")
            if len(message.data) > live.stdin_credit:
                raise refuse("flow", f"{len(message.data)} bytes of stdin with a credit of {live.stdin_credit}")
            live.stdin_credit -= len(message.data)
            live.stdin_open = not message.eof
        elif isinstance(message, Credit):
            if message.bytes <= 0:
                raise refuse("protocol", "a credit must be positive", field="bytes")
            live.room = min(live.room + message.bytes, self._limits.output_window)

    def _check_hello(self, hello: Hello) -> None:
        limits = self._limits
        if hello.version not in self._versions:
            known = ", ".join(map(str, self._versions))
            raise refuse("version", f"version {hello.version} is not spoken here", allowed=known)
        if not 1 <= len(hello.chain) <= limits.delegation_depth + 1:
            raise refuse("unauthenticated", f"a chain has 1 to {limits.delegation_depth + 1} tokens", field="chain")
        sizes = [len(token) for token in hello.chain]
        if max(sizes) > limits.token_bytes or sum(sizes) > limits.chain_bytes:
            raise refuse("unauthenticated", "the token chain is too long", field="chain")
        if len(hello.proof) > limits.token_bytes:
            raise refuse("unauthenticated", "the proof is too long", field="proof")
        facts = hello.session
        claims.check_text("session.original_request", facts.original_request, claims.MAX_REQUEST, "protocol")
        for name in ("model", "model_version", "client"):
            claims.check_text(f"session.{name}", getattr(facts, name), claims.MAX_FACT, "protocol")

    # --- from the daemon ---

    def sent(self, message: FromDaemon) -> None:
        """Apply a message that goes out. Raises `RunnerError` (internal) on one that the tables do not allow."""
        kind = type(message)
        after = SENDS[self.state].get(kind)
        if after is None:
            raise refuse("internal", f"the daemon would send `{_tag(kind)}` while {self.state.value}")
        number = getattr(message, "number", 0)
        if number:
            self._sent_number(message, number)
        self.state = after

    def _sent_number(self, message: Any, number: int) -> None:
        live = self._live.get(number)
        phase = live.phase if live is not None else self.phase(number)
        after = NUMBER_SENDS[phase].get(type(message))
        if after is None or live is None:
            raise refuse(
                "internal", f"the daemon would send `{_tag(type(message))}` for a number that is {phase.value}"
            )
        if after is Phase.FINISHED:
            del self._live[number]
            return
        live.phase = after
        if isinstance(message, Output):
            if len(message.data) > live.room:
                raise refuse("internal", f"the daemon would send {len(message.data)} bytes with a room of {live.room}")
            live.room -= len(message.data)
        elif isinstance(message, StdinCredit):
            live.stdin_credit += message.bytes

    def close(self, error: RunnerError) -> agent.Closing:
        """The last message of a connection that ends because of `error`."""
        self.state = State.CLOSED
        return agent.Closing(refusal=error.refused)

    # --- bytes become a call ---

    def to_tool_call(self, message: Call, peer: Peer) -> ToolCall:
        """A well-formed, hostile call. The only constructor of `ToolCall`.

        Raises `RunnerError` (arguments) naming the field; send it as `Refused` under the call's number."""
        limits = self._limits
        claims.check_text("proof", message.proof, limits.argument_bytes * 4 // 3 + limits.token_bytes, "arguments")
        claims.check_text("intent", message.intent, limits.intent_bytes, "arguments")
        if len(message.because) > claims.MAX_BECAUSE:
            raise refuse(
                "arguments",
                f"{len(message.because)} calls named",
                field="because",
                allowed=f"{claims.MAX_BECAUSE} at most",
            )
        for index, call in enumerate(message.because):
            claims.check_form(f"because[{index}]", call, claims.CALL_ID, "the id of an earlier call")
        claims.check_form("retry_of", message.retry_of, claims.CALL_ID, "the id of an earlier call")
        claims.check_form(
            "idempotency_key", message.idempotency_key, claims.IDEMPOTENCY_KEY, "1 to 128 of A-Z a-z 0-9 . _ : -"
        )
        claims.check_form(
            "traceparent",
            message.traceparent,
            claims.TRACEPARENT,
            "a W3C traceparent of version 00 with ids that are not zero",
        )
        if not 0 <= message.deadline_ms <= claims.MAX_DEADLINE_MS:
            raise refuse(
                "arguments",
                f"{message.deadline_ms} ms is no deadline",
                field="deadline_ms",
                allowed=f"0..{claims.MAX_DEADLINE_MS}",
            )
        return ToolCall(
            number=message.number,
            proof=message.proof,
            peer=peer,
            stdin=message.stdin,
            window=min(message.window, limits.output_window),
            deadline_ms=message.deadline_ms,
            traceparent=message.traceparent,
            intent=message.intent,
            because=message.because,
            retry_of=message.retry_of,
            idempotency_key=message.idempotency_key,
            detach=message.detach,
            sync=message.sync,
        )


def _tag(kind: type) -> str:
    return str(kind.__struct_config__.tag) if issubclass(kind, agent.Message) else "end of stream"
