"""One connection without its socket: bytes in, bytes out, requests by number, credit, heartbeats, loss.

Both clients drive it: `connection.py` from an event loop, `link.py` from the threads that wait for answers. A driver
adds what it read to `inbox`, calls `receive`, sends what is in `outbox`, and looks again at what it waits for.

A signal's handler may raise (Ctrl-C) wherever the interpreter looks for signals: after a call, where a function begins,
at a jump back. The sync client runs this in the main thread, so every change of state here is one run of plain
assignments without a call in it, after all that can raise ("commit"). What is interrupted before its commit is done
again by the next `receive`; nothing is done twice. tests/unit/client/test_interrupts.py raises at each such place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from runner.client.credentials import Identity
from runner.client.errors import CallError, raised, refused
from runner.client.exchange import DROPPED, QUEUED, Exchange, decoded
from runner.config import PROTOCOL_VERSION
from runner.errors import Refusal, RunnerError
from runner.model import Chunk
from runner.wire import agent
from runner.wire.frame import HEADER, Decoder, encode

MAX_INCOMING = 16 << 20  # one frame of the daemon's: a list of tools, or the largest structured result
HANDSHAKE_S = 15.0  # the daemon gives up on us after ten
PIECE = 64 << 10  # bytes read at once: larger blocks cost a page fault each
STDIN_PIECE = 64 << 10  # bytes of stdin in one frame
END = b""  # in `inbox`: the daemon closed its side

Make = Callable[[int, int], agent.FromClient]  # a request from its number and window
Ready = Callable[[], bool]  # what a driver waits for: cheap, without effects, true once the connection is lost

# The daemon is trusted not to send duplicate keys; what tools wrote lies inside as bytes.
_DECODER: Decoder[agent.FromDaemon] = Decoder(agent.FromDaemon, elements=0, depth=0, scan_first=False)


class Core:
    """See the module. One thread at a time; only `receive` looks at `inbox`."""

    def __init__(self, identity: Identity, facts: agent.SessionFacts) -> None:
        self.inbox: list[bytes] = []
        self.outbox: list[bytes] = []
        self.welcome: agent.Welcome | None = None
        self.tools_digest = ""
        self.durable = -1  # every entry up to here is on disk
        self.lost: CallError | None = None  # why the connection is gone
        self.exchanges: dict[int, Exchange] = {}
        self._identity = identity
        self._facts = facts
        self._buffer = b""
        self._at = 0  # up to here the buffer was applied
        self._last = 0  # the last number used
        self._leaving = False  # the daemon said bye

    # --- from the daemon ---

    def receive(self) -> None:
        """Apply what is in `inbox`. Nonsense from the daemon, its goodbye and its silence end in `lost`."""
        try:
            while (self.inbox or self._at < len(self._buffer)) and self.lost is None:
                frame = self._frame()
                if frame is None:
                    return
                message, end = frame
                number = getattr(message, "number", 0)
                if not number:
                    self._news(message, end)
                elif (exchange := self.exchanges.get(number)) is not None:
                    self._answer(exchange, message, end)
                else:
                    raise refused("protocol", f"the daemon answered number {number}, which is not under way")
        except RunnerError as error:
            self.lose(error if isinstance(error, CallError) else raised(error.refused))

    def _frame(self) -> tuple[Any, int] | None:
        """The next message and its end in the buffer; None until it is complete. Raises at the stream's end."""
        while True:
            buffer, at = self._buffer, self._at
            start = end = at + HEADER
            if start <= len(buffer):
                length = int.from_bytes(buffer[at:start], "big")
                if not 0 < length <= MAX_INCOMING:
                    raise refused("protocol", f"frame length {length} is not within 1..{MAX_INCOMING}")
                end = start + length
                if end <= len(buffer):
                    return _DECODER.decode(buffer[start:end]), end
            inbox = self.inbox
            if len(buffer) + sum(map(len, inbox)) < end:
                if inbox and not inbox[-1]:
                    raise refused("unavailable", "the connection to the daemon is closed", next_step="connect again")
                return None
            data = b"".join((buffer[at:], *inbox))
            left = [] if inbox[-1] else [END]
            self._buffer, self._at, inbox[:] = data, 0, left  # commit; the list stays, a driver may be adding to it

    def _answer(self, exchange: Exchange, message: Any, end: int) -> None:
        if isinstance(message, agent.Output):
            self._output(exchange, message, end)
        elif isinstance(message, agent.Accepted):
            exchange.call, exchange.replayed, self._at = message.call, message.replayed, end  # commit
        elif isinstance(message, agent.StdinCredit):
            exchange.stdin_credit, self._at = exchange.stdin_credit + message.bytes, end  # commit
        elif isinstance(message, agent.Refused):
            error = raised(message.refusal, message.call or exchange.call)
            del self.exchanges[exchange.number]  # commit
            exchange.error, self._at = error, end
        else:
            if isinstance(message, agent.Result) and message.durable:  # no `Durable` follows it
                self.durable = max(self.durable, message.position)
            del self.exchanges[exchange.number]  # commit
            exchange.answer, self._at = message, end

    def _output(self, exchange: Exchange, output: agent.Output, end: int) -> None:
        size = len(output.data)
        room, owed, grant = exchange.room - size, exchange.owed, b""
        if room < 0:
            raise refused("flow", f"the daemon sent {-room} bytes of output more than it was given credit for")
        if exchange.output != QUEUED:
            owed += size
            grant = _grant(exchange, owed)
        if grant:  # commit
            self.outbox += (grant,)
            room, owed = room + owed, 0
        if exchange.output != DROPPED:
            exchange.chunks += (output,)
        exchange.room, exchange.owed, self._at = room, owed, end

    def _news(self, message: Any, end: int) -> None:
        """A message about the connection itself."""
        if isinstance(message, agent.Ping):
            pong = encode(agent.Pong(token=message.token))
            self.outbox += (pong,)  # commit
            self._at = end
        elif isinstance(message, agent.Durable):
            durable = max(self.durable, message.position)
            self.durable, self._at = durable, end  # commit
        elif isinstance(message, agent.ToolsChanged):
            self.tools_digest, self._at = message.digest, end  # commit
        elif isinstance(message, agent.Challenge):
            hello = self._hello(message)
            self.outbox += (hello,)  # commit
            self._at = end
        elif isinstance(message, agent.Welcome):
            self.welcome, self.tools_digest, self._at = message, message.tools_digest, end  # commit
        elif isinstance(message, agent.Closing):
            raise raised(message.refusal)
        elif isinstance(message, agent.TaskEnded):
            raise refused("task_ended", message.reason or "the task is over")
        else:
            self._leaving, self._at = self._leaving or isinstance(message, agent.Bye), end

    def _hello(self, challenge: agent.Challenge) -> bytes:
        if self._identity.challenged:
            raise refused("protocol", "the daemon sent a second challenge")
        if PROTOCOL_VERSION not in challenge.versions:
            theirs = ", ".join(map(str, challenge.versions))
            raise refused("version", f"this client speaks version {PROTOCOL_VERSION}, the daemon {theirs}")
        proof = self._identity.prove_hello(challenge)
        hello = agent.Hello(version=PROTOCOL_VERSION, chain=self._identity.chain, proof=proof, session=self._facts)
        return encode(hello)

    def lose(self, why: CallError) -> None:
        """The connection is gone: every request under way ends with what that means for it."""
        if self.lost is None:
            for exchange in list(self.exchanges.values()):
                exchange.error = _lost_call(exchange, why)
            self.exchanges, self.lost = {}, why  # commit; last: who sees it finds every request ended

    # --- to the daemon ---

    def check(self) -> None:
        """Raises what keeps a request from being sent."""
        if self.lost is not None:
            raise raised(self.lost.refused, self.lost.call)  # a new one: threads must not share a traceback
        if self._leaving:
            raise refused("unavailable", "the daemon is shutting down", next_step="connect again when it is back")

    def begin(self, exchange: Exchange, make: Make) -> None:
        """Queue a request. Raises `Unavailable` and the reason of the loss when nothing was queued, and
        `InvalidArguments` when it does not fit a frame."""
        self.check()
        assert self.welcome is not None
        number = self._last + 1
        window = min(exchange.window or self.welcome.call_window, self.welcome.call_window)
        frame = encode(make(number, window))
        size = len(frame) - HEADER
        if size > self.welcome.max_frame:
            raise refused(
                "arguments",
                f"the call needs a frame of {size} bytes",
                allowed=f"{self.welcome.max_frame} bytes",
                next_step="send large inputs by stdin or `put`",
            )
        self._last = exchange.number = number  # commit
        exchange.window = exchange.room = window
        self.exchanges[number] = exchange
        self.outbox += (frame,)

    def settle(self, exchange: Exchange) -> None:
        """The chunk that was taken last is consumed: grant its credit again."""
        owed = exchange.owed + exchange.handed
        grant = _grant(exchange, owed)
        exchange.owed, exchange.handed = owed, 0  # commit
        if grant:
            self.outbox += (grant,)
            exchange.room, exchange.owed = exchange.room + owed, 0

    def take(self, exchange: Exchange) -> Chunk | None:
        """The oldest piece of output; None when there is none."""
        if not exchange.chunks:
            return None
        piece = exchange.chunks[0]
        size, data, left = len(piece.data), piece.data, exchange.left
        stream: Literal["stdout", "stderr"] = "stderr" if piece.stream == "stderr" else "stdout"
        if piece.encoding:
            data, rest = decoded(left.get(stream, b"") + data)
            left = {**left, stream: rest}
        end = piece.offset + size - len(left.get(stream, b""))
        chunk = Chunk(stream=stream, offset=piece.offset, data=data, encoding=piece.encoding, end=end)
        del exchange.chunks[0]  # commit
        exchange.handed, exchange.left = size, left
        return chunk

    def ignore(self, exchange: Exchange) -> None:
        """Nobody reads output any more: let it pass, so that the call is not held up by us."""
        waiting = sum([len(piece.data) for piece in exchange.chunks]) if exchange.output == QUEUED else 0
        nothing: deque[agent.Output] = deque()
        exchange.output, exchange.chunks, exchange.handed = DROPPED, nothing, exchange.handed + waiting  # commit
        self.settle(exchange)

    def stdin(self, exchange: Exchange, data: memoryview) -> int:
        """Queue as much of `data` as one frame and the credit take. Returns how much."""
        piece = bytes(data[: min(len(data), exchange.stdin_credit, STDIN_PIECE)])
        size = len(piece)
        frame = encode(agent.Stdin(number=exchange.number, data=piece))
        self.outbox += (frame,)  # commit
        exchange.stdin_credit -= size
        return size

    def close_stdin(self, exchange: Exchange) -> None:
        """End of input. Only for a call that was accepted."""
        if not exchange.ended():
            self.outbox += (encode(agent.Stdin(number=exchange.number, eof=True)),)

    def cancel(self, exchange: Exchange) -> None:
        """Ask the daemon to end the call; the last answer still comes."""
        if exchange.number and not exchange.ended():
            self.outbox += (encode(agent.Cancel(number=exchange.number)),)

    def abandon(self, exchange: Exchange) -> None:
        """The consumer is gone: cancel the call unless it lives without one, and let its output pass."""
        if exchange.cancels:
            self.cancel(exchange)
        self.ignore(exchange)

    def bye(self) -> None:
        """Say bye, if anybody listens, and be lost."""
        if self.lost is None:
            self.outbox += (encode(agent.Bye()),)
            self.lose(refused("unavailable", "this client closed the connection", next_step="connect again"))

    def prove_call(self, tool: str, arguments: dict[str, Any]) -> str:
        """A fresh proof for one call. Raises `InvalidArguments` when an argument has no JSON form."""
        return self._identity.prove_call(tool, arguments)


def _grant(exchange: Exchange, owed: int) -> bytes:
    """The frame that grants what is owed, once that is half a window; nothing before."""
    if not owed or 2 * owed < exchange.window or exchange.ended():
        return b""
    return encode(agent.Credit(number=exchange.number, bytes=owed))


def _lost_call(exchange: Exchange, why: CallError) -> CallError:
    """What the loss of the connection means for one request.

    The daemon sends `Accepted` before a call's process exists, so a call that was not accepted has not begun
    as far as this side can see. Only an idempotency key makes certain that a repeat runs nothing twice."""
    if why.code in ("revoked", "task_ended", "unauthenticated"):
        return raised(why.refused, exchange.call)
    if exchange.call:
        return raised(
            Refusal(
                code="interrupted",
                reason=f"{why.reason}; call {exchange.call} had begun and may have had effects",
                next_step="connect again; `result(call)` answers for a detached call",
            ),
            exchange.call,
        )
    again = "connect again and repeat the call"
    return raised(
        Refusal(
            code="unavailable",
            reason=f"{why.reason}, and no answer had come",
            next_step=again if exchange.keyed else f"{again}; with an idempotency_key it never runs twice",
            retryable=exchange.keyed,
        )
    )
