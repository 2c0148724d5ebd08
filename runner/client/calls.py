"""One request under way: its output as it comes, the credit it owes, its stdin, its end.

Everything here runs in the loop of its connection; nothing waits for a lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from runner.client.errors import CallError, raised, refused
from runner.model import Chunk, Outcome
from runner.wire import agent

STDIN_PIECE = 64 << 10  # bytes of stdin in one frame

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
    stdout_bytes: int = 0  # what the tool wrote in all, also where less was kept
    stderr_bytes: int = 0

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
    def text(self) -> str:
        """stdout as text, bytes that are not UTF-8 replaced."""
        return self.stdout.decode("utf-8", "replace")

    def summary(self) -> str:
        """One line for a person: how it ended, and the first of what it said about that."""
        if self.ended is None:
            return f"still running as {self.call}"
        how = ending(self.ended)
        said = self.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {said[-1][:300]}" if said else how


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
            "interrupted": "interrupted; it may have had effects",
            "unavailable": "never started; it can be repeated",
        }[outcome.kind]
    return f"{words} ({outcome.reason})" if outcome.reason else words


class Sender(Protocol):
    """What an exchange needs of its connection."""

    def send(self, message: agent.FromClient) -> None:
        """Queue one message; nothing when the connection is gone."""

    async def writable(self) -> None:
        """Wait while too much is queued."""


class Exchange:
    """A number of ours until its last answer. The connection feeds it; a call or stream consumes it."""

    def __init__(
        self, sender: Sender, number: int, window: int, *, detached: bool = False, keyed: bool = False
    ) -> None:
        self.number = number
        self.call = ""
        self.replayed = False
        self.keyed = keyed  # has an idempotency key: repeating it is safe
        self.answer: agent.Result | agent.Tools | agent.TaskEnded | None = None
        self.error: CallError | None = None
        self._sender = sender
        self._window = window
        self._room = window  # what the daemon may still send
        self._handed = 0  # the size of the chunk that the consumer looks at
        self._owed = 0  # consumed, and not granted again yet
        self._chunks: deque[agent.Output] = deque()
        self._collect: tuple[list[bytes], list[bytes]] | None = None
        self._deaf = False
        self._stdin_credit = 0
        self._detached = detached
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the last answer, or the loss of it, is here."""
        return self.answer is not None or self.error is not None

    # --- fed by the connection ---

    def feed(self, message: Any) -> bool:
        """Take one message. Returns whether it was the last. Raises `ProtocolError` (flow)."""
        if isinstance(message, agent.Output):
            self._take(message)
        elif isinstance(message, agent.StdinCredit):
            self._stdin_credit += message.bytes
        elif isinstance(message, agent.Accepted):
            self.call, self.replayed = message.call, message.replayed
        elif isinstance(message, agent.Refused):
            self.error = raised(message.refusal, message.call or self.call)
        else:
            self.answer = message
        self._changed.set()
        return self.ended

    def fail(self, error: CallError) -> None:
        """The connection is gone."""
        if not self.ended:
            self.error = error
            self._changed.set()

    def _take(self, output: agent.Output) -> None:
        size = len(output.data)
        self._room -= size
        if self._room < 0:
            raise refused("flow", f"the daemon sent {-self._room} bytes of output more than it was given credit for")
        if self._deaf:
            self._consumed(size)
        elif self._collect is not None:
            self._collect[output.stream == "stderr"].append(output.data)
            self._consumed(size)
        else:
            self._chunks.append(output)

    def _consumed(self, size: int) -> None:
        self._owed += size
        if self._owed and 2 * self._owed >= self._window and not self.ended:
            self._room += self._owed
            self._sender.send(agent.Credit(number=self.number, bytes=self._owed))
            self._owed = 0

    # --- for the consumer ---

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    async def accepted(self) -> str:
        """The daemon's id for the call, when it is accepted. Raises the refusal."""
        await self._until(lambda: bool(self.call) or self.ended)
        if self.error is not None and not self.call:
            raise self.error
        return self.call

    async def finished(self) -> Any:
        """The last answer. Raises the refusal, or `Interrupted` and `Unavailable` when the answer was lost."""
        await self._until(lambda: self.ended)
        if self.error is not None:
            raise self.error
        return self.answer

    def collect(self) -> tuple[list[bytes], list[bytes]]:
        """From now on gather output as it comes instead of queueing it: (stdout, stderr)."""
        self._collect = ([], [])
        return self._collect

    def ignore(self) -> None:
        """Nobody reads output any more: let it pass, so that the call is not held up by us."""
        self._deaf = True
        waiting = sum(len(chunk.data) for chunk in self._chunks)
        self._chunks.clear()
        self._consumed(waiting)

    async def next_chunk(self) -> Chunk | None:
        """The next piece of output; None at the call's end, however that is. Asking again grants more credit."""
        taken, self._handed = self._handed, 0
        self._consumed(taken)
        await self._until(lambda: bool(self._chunks) or self.ended)
        if not self._chunks:
            return None
        piece = self._chunks.popleft()
        self._handed = len(piece.data)
        return Chunk(stream="stderr" if piece.stream == "stderr" else "stdout", offset=piece.offset, data=piece.data)

    async def write_stdin(self, data: bytes) -> bool:
        """Send as credit allows. Returns whether all of it was sent: not, when the call ended first."""
        view = memoryview(data)
        while view:
            await self._until(lambda: self._stdin_credit > 0 or self.ended)
            if self.ended:
                return False
            size = min(len(view), self._stdin_credit, STDIN_PIECE)
            self._stdin_credit -= size
            self._sender.send(agent.Stdin(number=self.number, data=bytes(view[:size])))
            await self._sender.writable()
            view = view[size:]
        return True

    async def close_stdin(self) -> None:
        """End of input."""
        await self._until(lambda: bool(self.call) or self.ended)
        if not self.ended:
            self._sender.send(agent.Stdin(number=self.number, eof=True))

    def cancel(self) -> None:
        """Ask the daemon to end the call; the last answer still comes."""
        if not self.ended:
            self._sender.send(agent.Cancel(number=self.number))

    def abandon(self) -> None:
        """The consumer is gone: cancel the call unless it was detached, and let its output pass."""
        if not self._detached:
            self.cancel()
        self.ignore()

    def to_result(self, answer: agent.Result, stdout: bytes, stderr: bytes) -> CallResult:
        """The result for the caller."""
        return CallResult(
            call=answer.call,
            ended=answer.outcome,
            stdout=stdout,
            stderr=stderr,
            value=answer.value,
            receipt=answer.receipt,
            position=answer.position,
            durable=answer.durable,
            replayed=self.replayed,
            stdout_bytes=answer.stdout_bytes,
            stderr_bytes=answer.stderr_bytes,
        )
