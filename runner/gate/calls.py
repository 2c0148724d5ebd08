"""Calls that run: how they are cancelled, how their output reaches whoever follows, what outlives a connection.

Direct calls are paced by their client's credit: a slow reader pauses its own tool. Detached calls run at their
own pace into a bounded buffer, and any number of followers of the same task read it at theirs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from runner.errors import Refusal
from runner.model import Chunk, Outcome, OutcomeKind, Receipt


class Reply(Protocol):
    """Where one request's answers go. Writes after the peer is gone are swallowed; `gone` says so."""

    @property
    def gone(self) -> bool:
        """Whether nobody reads the answers any more."""

    def follows(self, running: Running) -> None:
        """This request's credit, stdin and cancel steer that call."""

    async def accepted(self, call: str, *, replayed: bool) -> None:
        """The call is decided and recorded."""

    async def output(self, chunk: Chunk) -> None:
        """One filtered chunk; waits while the peer's socket is full."""

    async def result(self, call: str, finished: Finished) -> None:
        """The acknowledgement of a sealed call."""

    def stdin_credit(self, count: int) -> None:
        """The tool can take this many more bytes."""


class Finished:
    """What is known of a sealed call."""

    def __init__(self, outcome: Outcome, receipt: Receipt, value: Any, stdout: int, stderr: int) -> None:
        self.outcome = outcome
        self.receipt = receipt
        self.value = value
        self.stdout = stdout
        self.stderr = stderr


class GuestCall(Protocol):
    """The call in the sandbox, as far as this module steers it."""

    def credit(self, count: int) -> None:
        """Let the guest send more."""

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Feed the tool."""

    def cancel(self, kind: OutcomeKind) -> None:
        """Kill it."""


class Running:
    """One call from its acceptance to its seal."""

    def __init__(
        self, call: str, task: str, tool: str, *, reply: Reply, window: int, client: int, detach: bool, sync: bool
    ) -> None:
        self.call = call
        self.task = task
        self.tool = tool
        self.detach = detach
        self.sync = sync
        self.output = 0  # the cap on its output, once planned
        self.recorded = False  # its call entry is in the ledger
        self.key = ""
        self.arguments = ""  # plain digest, for the idempotency key
        self.reply = reply
        self.cancelled: tuple[OutcomeKind, str] | None = None
        self._window = window
        self._client = client  # output bytes the client has room for
        self._in_guest = 0  # credit the guest holds
        self._guest: GuestCall | None = None
        self.chunks: list[Chunk] = []  # detached calls only
        self.finished: asyncio.Future[Finished | Refusal] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    # --- steering -----------------------------------------------------------------------------------------

    def first_credit(self) -> int:
        """The credit the guest starts with."""
        self._in_guest = self._window if self.detach else min(self._client, self._window)
        return self._in_guest

    def attach(self, guest: GuestCall) -> None:
        """The call exists in the sandbox. A cancel that came before is carried out now."""
        self._guest = guest
        if self.cancelled:
            guest.cancel(self.cancelled[0])

    def cancel(self, kind: OutcomeKind, reason: str) -> None:
        """Have it killed; the first cancel names the outcome. Does nothing once it is over."""
        if self.cancelled is None:
            self.cancelled = (kind, reason)
            if self._guest is not None:
                self._guest.cancel(kind)

    def credit(self, count: int) -> None:
        """The client has room for more."""
        self._client = min(self._client + count, self._window)
        self._refill()

    def stdin_credit(self, count: int) -> None:
        """The guest has room for more stdin."""
        self.reply.stdin_credit(count)

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Bytes from the client, within the credit it was given (the session of the wire holds it to that)."""
        if self._guest is not None:
            self._guest.stdin(data, eof=eof)

    # --- output -------------------------------------------------------------------------------------------

    def received(self, count: int) -> None:
        """The guest used this much of its credit."""
        self._in_guest -= count

    async def deliver(self, chunk: Chunk) -> bool:
        """Hand a chunk on. Returns whether it reached a client's socket just now."""
        if self.detach:
            self.chunks.append(chunk)
            self._news.set()
            self._refill()
            return False
        self._client -= len(chunk.data)
        await self.reply.output(chunk)
        self._refill()
        return not self.reply.gone

    def finish(self, finished: Finished | Refusal) -> None:
        """The call is sealed, or was refused: wake every follower."""
        if not self.finished.done():
            self.finished.set_result(finished)
        self._news.set()

    async def next_news(self) -> None:
        """Wait for another chunk or the end."""
        self._news.clear()
        await self._news.wait()

    def _refill(self) -> None:
        room = self._window - self._in_guest
        if not self.detach:
            room = min(room, self._client - self._in_guest)
        # Small grants cost a frame each: wait until a quarter of the window is free.
        if self._guest is not None and (room >= self._window // 4 or (room > 0 and self._in_guest == 0)):
            self._in_guest += room
            self._guest.credit(room)


class Calls:
    """Every running call, and detached ones for a bounded time and size after their end."""

    def __init__(self, *, keep_calls: int, keep_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_calls = keep_calls
        self._keep_bytes = keep_bytes
        self._keep_s = keep_s
        self._clock = clock
        self.running: dict[str, Running] = {}
        self._kept: OrderedDict[str, tuple[float, Running]] = OrderedDict()

    def add(self, running: Running) -> None:
        """A call was accepted."""
        self.running[running.call] = running

    def room(self, output: int) -> bool:
        """Whether another detached call with this output cap still fits the bound on kept output."""
        held = sum(running.output for running in self.running.values() if running.detach)
        return held + output <= self._keep_bytes

    def over(self, running: Running, *, keep: bool) -> None:
        """A call is sealed or refused. A sealed detached one stays for followers."""
        self.running.pop(running.call, None)
        if keep and running.detach:
            self._kept[running.call] = (self._clock(), running)
            self._prune()

    def of_task(self, task: str) -> list[Running]:
        """The running calls of a task."""
        return [running for running in self.running.values() if running.task == task]

    def find(self, task: str, call: str) -> Running | None:
        """A running or kept call of this task."""
        running = self.running.get(call)
        if running is None and call in self._kept:
            running = self._kept[call][1]
        return running if running is not None and running.task == task else None

    def by_key(self, task: str, tool: str, key: str) -> Running | None:
        """The running call that holds an idempotency key."""
        for running in self.running.values():
            if running.key == key and running.task == task and running.tool == tool:
                return running
        return None

    def forget_task(self, task: str) -> None:
        """A task ended: nothing of it is kept in memory."""
        for call in [call for call, (_, running) in self._kept.items() if running.task == task]:
            del self._kept[call]

    def _prune(self) -> None:
        oldest_allowed = self._clock() - self._keep_s
        size = sum(len(chunk.data) for _, running in self._kept.values() for chunk in running.chunks)
        while self._kept:
            ended, running = next(iter(self._kept.values()))
            if ended >= oldest_allowed and len(self._kept) <= self._keep_calls and size <= self._keep_bytes:
                return
            size -= sum(len(chunk.data) for chunk in running.chunks)
            self._kept.popitem(last=False)
