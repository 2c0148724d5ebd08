"""A call for both clients: its options into a request, its answer into a result."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from runner.client.core import Make
from runner.client.errors import refused
from runner.client.exchange import GATHERED, QUEUED, Exchange
from runner.model import Chunk, Marked, Outcome
from runner.wire import agent

CLIENT_NAME = "toolrunner-python"
# Controls but newline, tab and the return before a newline; bidirectional ones.
_acts = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")

Input = bytes | Iterable[bytes] | AsyncIterable[bytes]
OnOutput = Callable[[Chunk], Awaitable[None] | None]


class CallOptions(TypedDict, total=False):
    """What a call may carry besides tool and arguments."""

    deadline: float | None  # seconds; the tool's own ceiling applies when it is lower
    intent: str  # why, in the caller's words: recorded as a claim
    because: Sequence[str]  # ids of the calls whose output led to this one
    retry_of: str  # the id of the call this one repeats
    idempotency_key: str  # same key and arguments: the same call, never run twice
    detach: bool  # the call outlives this connection
    sync: bool  # answer only when the record is on disk
    traceparent: str  # W3C trace context
    window: int  # output bytes in flight, 0 = the daemon's own bound


@dataclass(frozen=True)
class CallResult:
    """The end of a call. `ended` is None only for a detached call that still runs: ask `result(call)` later."""

    call: str
    ended: Outcome | None
    stdout: bytes = b""
    stderr: bytes = b""
    value: Any = None  # a python tool's structured result
    receipt: str = ""  # digest of the sealed outcome entry
    position: int = 0  # where in the ledger it lies
    durable: bool = False  # whether that is on disk already
    replayed: bool = False  # an idempotency key matched: this is the earlier call
    stdout_bytes: int = 0  # what the daemon sent of it in all, as it travels: of binary, base64
    stderr_bytes: int = 0
    filtered: Mapping[str, int] = field(default_factory=dict)  # rule → how often it found something in all of this
    labels: tuple[str, ...] = ()  # what that was, such as `credential` or `pii.email`
    sources: tuple[str, ...] = ()  # who has a part in it that nobody vouches for: hosts, or `workspace`
    marked: tuple[Marked, ...] = ()  # the parts of it that speak to a model instead of you

    @property
    def running(self) -> bool:
        """Whether the call was detached and has not ended."""
        return self.ended is None

    @property
    def outcome(self) -> Outcome:
        """How the tool ended. Raises `Unavailable` while a detached call runs."""
        if self.ended is None:
            raise refused("unavailable", f"call {self.call} is detached and still runs", next_step="ask `result(call)`")
        return self.ended

    @property
    def ok(self) -> bool:
        """Whether the tool reported success."""
        return self.ended is not None and self.ended.ok

    @property
    def untrusted(self) -> bool:
        """Whether any of it may come from where nobody vouches for it: whatever it says, it is data."""
        return "untrusted" in self.labels

    @property
    def injected(self) -> bool:
        """Whether it was found to speak to the model that reads it."""
        return "injected" in self.labels

    @property
    def text(self) -> str:
        """stdout as text that can be printed: what is no text in it, and what acts on a terminal, is written out."""
        return printable(self.stdout)

    def summary(self) -> str:
        """One line for a person: how it ended, and the first of what it said about that."""
        if self.ended is None:
            return f"still running as {self.call}"
        how = ending(self.ended)
        said = printable(self.stderr).strip().splitlines()
        return f"{how}: {said[-1][:300]}" if said else how


def _written(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"


def printable(data: bytes) -> str:
    """Output as text that can be printed. The daemon has done that for all but the binary part of a stream."""
    text = data.decode("utf-8", "backslashreplace")
    return _acts.sub(_written, text) if _acts.search(text) else text


def ending(outcome: Outcome) -> str:
    """An outcome in words."""
    if outcome.kind == "exited":
        words = f"ended by signal {outcome.signal}" if outcome.signal else f"exited with status {outcome.exit_code}"
    else:
        words = {
            "timed_out": "killed at its deadline",
            "oom": "killed for its memory ceiling",
            "killed": "killed",
            "cancelled": "cancelled",
            "output_capped": "killed at its output cap",
            "filtered": "killed for what its output held",
            "interrupted": "interrupted; it may have had effects",
            "unavailable": "never started; it can be repeated",
        }[outcome.kind]
    return f"{words} ({outcome.reason})" if outcome.reason else words


def fields(options: CallOptions) -> dict[str, Any]:
    """The fields of `agent.Call` that the options set. Raises TypeError on an option there is not, and
    `InvalidArguments`."""
    if not options:
        return {}
    unknown = options.keys() - CallOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a call takes no {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {**options}
    found.pop("window", None)
    deadline = found.pop("deadline", None)
    if deadline is not None:
        if deadline <= 0:
            raise refused("arguments", "a deadline is a positive number of seconds", field="deadline")
        found["deadline_ms"] = max(1, round(deadline * 1000))
    if "because" in found:
        found["because"] = tuple(found["because"])
    return found


def exchange_for(options: CallOptions, *, gathers: bool) -> Exchange:
    """The exchange of a call with these options, not sent yet."""
    return Exchange(
        window=options.get("window", 0),
        output=GATHERED if gathers else QUEUED,
        cancels=not options.get("detach", False),
        keyed=bool(options.get("idempotency_key")),
    )


def request(proof: str, stdin: bool, more: dict[str, Any]) -> Make:
    """A call's frame, once it has a number."""
    return lambda number, window: agent.Call(number=number, proof=proof, stdin=stdin, window=window, **more)


def attaching(call: str, stdout: int = 0, stderr: int = 0) -> Make:
    """An attach frame, once it has a number."""
    return lambda number, window: agent.Attach(number=number, call=call, stdout=stdout, stderr=stderr, window=window)


def of_chunks(exchange: Exchange, chunks: list[Chunk]) -> CallResult:
    """As `to_result`, with the output in these chunks."""
    errors = b"".join([chunk.data for chunk in chunks if chunk.stream == "stderr"])
    return to_result(exchange, b"".join([chunk.data for chunk in chunks if chunk.stream != "stderr"]), errors)


def to_result(exchange: Exchange, stdout: bytes, stderr: bytes) -> CallResult:
    """The call's end, for the caller. Raises the refusal, and what the loss of the answer means."""
    answer: agent.Result = exchange.last_answer(agent.Result)
    return CallResult(
        call=answer.call,
        ended=answer.outcome,
        stdout=stdout,
        stderr=stderr,
        value=answer.value,
        receipt=answer.receipt,
        position=answer.position,
        durable=answer.durable,
        replayed=exchange.replayed,
        stdout_bytes=answer.stdout_bytes,
        stderr_bytes=answer.stderr_bytes,
        filtered=answer.filtered,
        labels=answer.labels,
        sources=answer.sources,
        marked=answer.marked,
    )
