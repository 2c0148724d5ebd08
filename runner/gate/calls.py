"""Calls that run: how they are cancelled, how their output reaches whoever follows, what outlives a connection.

Direct calls are paced by their client's credit: a slow reader pauses its own tool. Detached calls run at their
own pace into a bounded buffer, and any number of followers of the same task read it at theirs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from runner.errors import Refusal
from runner.gate.pace import Pace
from runner.model import Chunk, Marked, Outcome, OutcomeKind, Receipt

_SEGMENT = 64 << 10  # kept output is joined up to this: a tool that writes single bytes must not cost an object each


class Reply(Protocol):
    """Where one request's answers go. Writes after the peer is gone are swallowed; `gone` says so."""

    @property
    def gone(self) -> bool:
        """Whether nobody reads the answers any more."""

    def steers(self, running: Running) -> None:
        """This request began that call: its credit, stdin and cancel steer it, and its loss cancels it."""

    def follows(self, running: Running) -> None:
        """This request follows a call that another one began: its cancel ends the call, its loss does not."""

    async def accepted(self, call: str, *, replayed: bool) -> None:
        """The call is decided and recorded."""

    async def output(self, chunk: Chunk, *, last: bool = False) -> int:
        """One filtered chunk; waits for the client's credit and socket. Returns how many bytes were sent: fewer when
        the client is gone, or when it is not waited for any more. With `last`, the result follows at once."""

    def hasten(self) -> None:
        """Wait for the client no more: what it has no room for now is dropped."""

    async def result(self, call: str, finished: Finished) -> None:
        """The acknowledgement of a sealed call."""

    def stdin_credit(self, count: int) -> None:
        """The tool can take this many more bytes."""


class Finished:
    """What is known of a sealed call."""

    def __init__(
        self,
        outcome: Outcome,
        receipt: Receipt,
        value: Any,
        stdout: int,
        stderr: int,
        filtered: dict[str, int] | None = None,
        labels: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        marked: tuple[Marked, ...] = (),
    ) -> None:
        self.outcome = outcome
        self.receipt = receipt
        self.value = value
        self.stdout = stdout
        self.stderr = stderr
        self.filtered = filtered or {}  # rule → how often it found something
        self.labels = labels
        self.sources = sources  # who has a part in it that nobody vouches for
        self.marked = marked  # parts of it that speak to a model


class GuestCall(Protocol):
    """The call in the sandbox, as far as this module steers it."""

    def credit(self, count: int) -> None:
        """Let the guest send more."""

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Feed the tool."""

    def cancel(self, kind: OutcomeKind) -> None:
        """Kill it."""


class Kept:
    """Output of a detached call, joined into segments; any number of followers read it at their own pace."""

    def __init__(self) -> None:
        self.size = 0
        self._segments: list[tuple[Literal["stdout", "stderr"], str, int, bytearray]] = []  # encoding, offset, bytes

    def add(self, chunk: Chunk) -> None:
        """One more chunk; offsets of a stream are without gaps."""
        self.size += len(chunk.data)
        if self._segments:
            stream, encoding, _, data = self._segments[-1]
            if (stream, encoding) == (chunk.stream, chunk.encoding) and len(data) < _SEGMENT:
                data += chunk.data
                return
        self._segments.append((chunk.stream, chunk.encoding, chunk.offset, bytearray(chunk.data)))

    def read(self, place: tuple[int, int]) -> tuple[Chunk | None, tuple[int, int]]:
        """What follows `place` (begin with (0, 0)), None when there is nothing yet, and the place after it."""
        number, within = place
        while number < len(self._segments):
            stream, encoding, offset, data = self._segments[number]
            if within < len(data):
                chunk = Chunk(stream=stream, offset=offset + within, data=bytes(data[within:]), encoding=encoding)
                return chunk, (number, len(data))
            if number + 1 == len(self._segments):
                break
            number, within = number + 1, 0
        return None, (number, within)


class Running:
    """One call from its acceptance to its seal."""

    def __init__(
        self,
        call: str,
        task: str,
        tool: str,
        *,
        reply: Reply,
        window: int,
        client: int,
        detach: bool,
        sync: bool,
        chain: tuple[str, ...] = (),
        asserted: tuple[str, ...] = (),
        size: int = 0,
    ) -> None:
        self.call = call
        self.task = task
        self.tool = tool
        self.detach = detach
        self.sync = sync
        self.chain = chain  # token ids: revoking any of them ends the call
        self.asserted = asserted  # the names that parents gave along it: so does revoking one of these
        self.size = size  # bytes of what it was asked with
        self.began = 0.0  # when it was accepted
        self.output = 0  # the cap on its output, once planned
        self.recorded = False  # its call entry is in the ledger
        self.key = ""
        self.arguments = ""  # plain digest, for the idempotency key
        self.reply = reply
        self.cancelled: tuple[OutcomeKind, str] | None = None
        self._window = window
        # Small grants cost a frame each, odd ones a small piece each: quarters, unless there is less.
        self._quarter = max(1, (window if detach or client <= 0 else min(window, client)) // 4)
        self._client = client  # output bytes the client has room for
        self._in_guest = 0  # credit the guest holds
        self._guest: GuestCall | None = None
        self._eof = False  # the client closed stdin before the call existed
        self._hastened = False  # nobody's credit paces the output any more
        self._starting: asyncio.Task[Any] | None = None
        self.kept = Kept()  # detached calls only
        self._pace: Pace | None = None  # how fast it may write, once planned
        self._clock: Callable[[], float] = float  # of its pace
        self._paused: asyncio.TimerHandle | None = None  # it was faster: credit goes on then
        self.finished: asyncio.Future[Finished | Refusal] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    # --- steering -----------------------------------------------------------------------------------------

    def planned(self, output: int, rate: int, clock: Callable[[], float]) -> None:
        """How many bytes it may write, and how many a second of `clock`."""
        self.output = output
        self._pace, self._clock = Pace(rate, self._window, clock()), clock

    def first_credit(self) -> int:
        """The credit the guest starts with."""
        self._in_guest = self._window if self.detach or self._hastened else min(self._client, self._window)
        if self._pace is not None:
            self._pace.spend(self._in_guest)  # a full bucket holds a window
        return self._in_guest

    def starts(self, work: asyncio.Task[Any]) -> None:
        """Its sandbox is being made ready by `work`: a cancel ends the wait."""
        self._starting = work
        if self.cancelled is not None:
            work.cancel()

    def attach(self, guest: GuestCall) -> None:
        """The call exists in the sandbox. What came before is carried out now."""
        self._guest = guest
        self._starting = None
        if self._eof:
            guest.stdin(b"", eof=True)
        if self.cancelled:
            guest.cancel(self.cancelled[0])
        self._refill()

    def cancel(self, kind: OutcomeKind, reason: str) -> None:
        """Have it killed; the first cancel names the outcome. Does nothing once it is over."""
        if self.cancelled is None and not self.finished.done():
            self.cancelled = (kind, reason)
            if self._starting is not None:
                self._starting.cancel()
            if self._guest is not None:
                self._guest.cancel(kind)
            self.hasten()

    def hasten(self) -> None:
        """Let it end whether or not its client reads: the guest reports the end after the last byte of output."""
        self._hastened = True
        if not self.detach:
            self.reply.hasten()
        self._refill()

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
        elif eof:
            self._eof = True  # data needs credit, which only the guest gives; the end needs none

    # --- output -------------------------------------------------------------------------------------------

    def received(self, count: int) -> None:
        """The guest used this much of its credit."""
        self._in_guest -= count
        if self._hastened:  # what is beyond the cap is never delivered, and the guest must get rid of it to report
            self._refill()

    async def deliver(self, chunk: Chunk, *, last: bool = False) -> int:
        """Hand a chunk on. Returns how much of it reached a client's socket just now; with `last`, when the call is
        over, it may leave together with the result."""
        if self.detach:
            self.kept.add(chunk)
            self._news.set()
            self._refill()
            return 0
        self._client -= len(chunk.data)
        sent = await self.reply.output(chunk, last=last)
        self._refill()
        return sent

    def finish(self, finished: Finished | Refusal) -> None:
        """The call is sealed, or was refused: wake every follower."""
        if self._paused is not None:
            self._paused.cancel()
        if not self.finished.done():
            self.finished.set_result(finished)
        self._news.set()

    def wake(self) -> None:
        """Have every follower look again: one of them is gone."""
        self._news.set()

    async def next_news(self) -> None:
        """Wait for another chunk, the end, or a `wake`."""
        self._news.clear()
        await self._news.wait()

    def _refill(self) -> None:
        room = self._window - self._in_guest
        if not (self.detach or self._hastened):
            room = min(room, self._client - self._in_guest)
        if self._guest is not None and (room >= self._quarter or (room > 0 and self._in_guest == 0)):
            room -= room % self._quarter if room >= self._quarter else 0
            room = self._affordable(room)
            if room:
                self._in_guest += room
                self._guest.credit(room)

    def _affordable(self, room: int) -> int:
        """What of `room` its pace allows now. When that is too little to be worth a frame, it is tried again in time:
        until then the tool stands still."""
        if self._pace is None or self._hastened:
            return room
        least = min(room, self._quarter)
        most = self._pace.room(self._clock())
        if most < least:
            if self._paused is None:
                self._paused = asyncio.get_running_loop().call_later(self._pace.wait(least), self._resume)
            return 0
        self._pace.spend(min(room, most))
        return min(room, most)

    def _resume(self) -> None:
        self._paused = None
        self._refill()


class Calls:
    """Every running call, and detached ones for a bounded time and size after their end."""

    def __init__(self, *, keep_calls: int, keep_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_calls = keep_calls
        self._keep_bytes = keep_bytes
        self._keep_s = keep_s
        self._clock = clock
        self.running: dict[str, Running] = {}
        self._by_task: dict[str, dict[str, Running]] = {}  # the same, by task
        self._took: dict[str, float] = {}  # task -> mean seconds that its calls take, waiting included
        self.begun = 0  # since this process started
        self._kept: OrderedDict[str, tuple[float, Running]] = OrderedDict()  # by their end, oldest first
        self._count: Counter[str] = Counter()  # kept calls by task
        self._size: Counter[str] = Counter()  # and the bytes of their output

    def add(self, running: Running) -> None:
        """A call was accepted."""
        running.began = self._clock()
        self.running[running.call] = running
        self._by_task.setdefault(running.task, {})[running.call] = running
        self.begun += 1

    @property
    def tasks(self) -> int:
        """How many tasks have calls that run or wait."""
        return len(self._by_task)

    def next_end_ms(self, task: str) -> int:
        """About when one of the task's calls will end: the mean time of one by their number (Little's law)."""
        under_way = len(self._by_task.get(task, ()))
        return int(min(max(1000 * self._took.get(task, 0.5) / max(under_way, 1), 20), 5000))

    def room(self, task: str, output: int) -> bool:
        """Whether another detached call with this output cap fits the bound on kept output. A task may fill no more
        of it than it leaves to the others."""
        held: Counter[str] = Counter()
        for running in self.running.values():
            if running.detach:
                held[running.task] += running.output
        left = self._keep_bytes - held.total() - output
        return left >= 0 and held[task] + output <= max(left, output)

    def over(self, running: Running, *, keep: bool) -> None:
        """A call is sealed or refused. A sealed detached one stays for followers."""
        if self.running.pop(running.call, None) is not None:
            self._ended(running)
        if keep and running.detach:
            self._kept[running.call] = (self._clock(), running)
            self._count[running.task] += 1
            self._size[running.task] += running.kept.size
            self.prune()

    def _ended(self, running: Running) -> None:
        of_task = self._by_task[running.task]
        del of_task[running.call]
        if not of_task:
            del self._by_task[running.task]
        took = self._clock() - running.began
        self._took[running.task] = 0.8 * self._took.get(running.task, took) + 0.2 * took

    def of_task(self, task: str) -> list[Running]:
        """The calls of a task that run or wait."""
        return list(self._by_task.get(task, {}).values())

    def find(self, task: str, call: str) -> Running | None:
        """A running or kept call of this task."""
        running = self.running.get(call)
        if running is None and call in self._kept:
            running = self._kept[call][1]
        return running if running is not None and running.task == task else None

    def by_key(self, task: str, tool: str, key: str) -> Running | None:
        """The running call that holds an idempotency key."""
        for running in self._by_task.get(task, {}).values():
            if running.key == key and running.tool == tool:
                return running
        return None

    def forget_task(self, task: str) -> None:
        """A task ended: nothing of it is kept in memory."""
        self._took.pop(task, None)
        for call in list(self._of(task)):
            self._drop(call)

    def prune(self) -> None:
        """Forget what was kept for long enough, and what is too much. One task cannot push out another's few."""
        oldest_allowed = self._clock() - self._keep_s
        while self._kept and next(iter(self._kept.values()))[0] < oldest_allowed:
            self._drop(next(iter(self._kept)))
        for task in [task for task, count in self._count.items() if count > self._keep_calls]:
            self._drop(next(self._of(task)))
        while self._size.total() > self._keep_bytes:
            ((greediest, _),) = self._size.most_common(1)
            self._drop(next(self._of(greediest)))

    def forget(self, call: str) -> None:
        """Keep nothing in memory of a call that has ended."""
        if call in self._kept:
            self._drop(call)

    def _of(self, task: str) -> Iterator[str]:
        return (call for call, (_, running) in self._kept.items() if running.task == task)

    def _drop(self, call: str) -> None:
        _, running = self._kept.pop(call)
        self._count[running.task] -= 1
        self._size[running.task] -= running.kept.size
        if not self._count[running.task]:
            del self._count[running.task], self._size[running.task]
