"""A task's sandbox: made by engine when its first call needs it, given back when the task ends or the guest is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.model import Manifest, Measured, SandboxPlan, Spent, TaskProfile, ToolProfile
from runner.sandbox.connection import Sandbox
from runner.sandbox.pool import Opened, Pool
from runner.sandbox.turns import Turns
from runner.wire.engine import Snapped

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """The seam to whatever makes containers."""

    async def create(self, plan: SandboxPlan) -> tuple[Measured, int]:
        """A measured sandbox and the descriptor of its control connection."""

    async def destroy(self, sandbox: str, reason: str) -> Spent | None:
        """Kill and remove; done when this returns: what the sandbox used, where it is known."""

    async def keep_disks(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Keep the disks of these tasks and no others; returns the tasks that have one."""

    async def remove_disk(self, task: str) -> None:
        """Delete a task's disk."""

    async def snapshot(self, sandbox: str, *, full: bool) -> Snapped:
        """What lies in its workspace."""

    async def listen(self, sandbox: str, port: int) -> int:
        """A listener on loopback inside it, as a descriptor that the caller now owns."""


class Journal(Protocol):
    """Where entries go."""

    def stamp(self) -> str:
        """Now, as entries write it."""

    async def write(self, entry: entries.AnyEntry) -> object:
        """Append one entry."""


class Claims:
    """Task id to sandbox. One sandbox per task, opened once however many calls ask at the same time."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        describe: Callable[[Measured], entries.Isolation],
        new_sandbox: Callable[[], str],
        start_s: float,
        spares: int = 0,
        owner_of: Callable[[str], str] = str,
        creating: int = 4,
        per_owner: int = 48,
    ) -> None:
        """`spares` sandboxes are kept ready per task profile, once `stock` names the profiles. `owner_of` names a
        task's owner: sandboxes are made `creating` at a time, one owner after the other, and an owner has at most
        `per_owner`."""
        self.engine: Engine | None = engine
        self._new_sandbox = new_sandbox
        self._names: dict[str, str] = {}  # task -> the sandbox it has or will have
        self._journal = journal
        self._describe = describe
        self._start_s = start_s
        self._owner_of = owner_of
        self._per_owner = per_owner
        self._turns = Turns(creating)
        self._owners: dict[str, str] = {}  # task -> owner, of every sandbox that is open or opening
        self._opening: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: dict[str, tuple[str, asyncio.Task[None]]] = {}  # sandbox -> its task, and what takes it apart
        self._disks: set[str] = set()  # tasks that have a disk, or may have one
        self._pool = Pool(self._make, lambda spare, why: self._begin_end(spare, "", why), new_sandbox, spares)

    def stock(
        self,
        profiles: Mapping[str, TaskProfile],
        tools: Mapping[str, Manifest],
        tool_profiles: Mapping[str, ToolProfile],
    ) -> None:
        """Keep sandboxes ready for these profiles from now on."""
        self._pool.stock(profiles, tools, tool_profiles)

    @property
    def count(self) -> int:
        """Sandboxes open or opening."""
        return len(self._opening)

    def sandbox_of(self, task: str) -> str:
        """The id of the task's sandbox, "" when it has none."""
        opening = self._opening.get(task)
        return opening.get_name() if opening is not None else ""

    @property
    def spares(self) -> int:
        """Sandboxes that wait for a task."""
        return self._pool.ready

    def has_disk(self, task: str) -> bool:
        """Whether the task's workspace lies on a disk that outlives its sandboxes."""
        return task in self._disks

    async def keep_disks(self, tasks: Iterable[str]) -> None:
        """Have a fresh engine keep what these tasks, those that live, have on disk, and learn which of them do."""
        engine, before = self.engine, frozenset(self._disks)
        if engine is None:
            return
        try:
            kept = await engine.keep_disks(tuple(tasks))
        except RunnerError as error:
            _log.error("the disks of tasks were not found again: %s", error.refused.line())
            return
        self._disks -= before.difference(kept)
        self._disks.update(kept)

    def name_for(self, task: str, profile: TaskProfile) -> str:
        """The id of the task's sandbox, or the one its next sandbox will have: that of a spare, if there is one."""
        if task not in self._names:
            self._names[task] = self._pool.reserve(profile) or self._new_sandbox()
        return self._names[task]

    def opened(self, plan: SandboxPlan) -> Sandbox | None:
        """The sandbox that was planned with, when it is open."""
        opening = self._opening.get(plan.task)
        if opening is None or not opening.done() or opening.get_name() != plan.sandbox:
            return None
        return None if opening.exception() is not None or opening.result().lost else opening.result()

    async def claim(self, plan: SandboxPlan, concurrent: int, *, disk: bool = False) -> Sandbox:
        """The sandbox of `plan.task`; made from `plan` if there is none, to serve `concurrent` calls at a time, with
        the task's `disk` where its profile has one.

        Raises `RunnerError` (unavailable, host, busy). A recorded plan names its sandbox: it runs in no other one."""
        if self._names.get(plan.task) != plan.sandbox:
            raise refuse("unavailable", "the sandbox was replaced after this call was planned", retry_after_ms=100)
        opening = self._opening.get(plan.task)
        if opening is None:
            self._owners[plan.task] = self._admitted(self._owner_of(plan.task))
            opening = asyncio.create_task(self._open(plan, concurrent, disk), name=plan.sandbox)
            opening.add_done_callback(lambda done: self._opened(plan.task, done))
            self._opening[plan.task] = opening
        return await asyncio.shield(opening)

    def _admitted(self, owner: str) -> str:
        """The owner, if it may have one sandbox more."""
        if sum(found == owner for found in self._owners.values()) >= self._per_owner:
            raise refuse(
                "busy",
                f"owner {owner} has {self._per_owner} sandboxes, its most; {self._turns.waiting} wait to be made",
                next_step="end tasks, or raise sandboxes.per_owner",
                allowed=f"{self._per_owner} at a time",
                retry_after_ms=5000,
            )
        return owner

    async def release(self, task: str, reason: str) -> None:
        """Remove the task's sandbox and its disk; done when no process of it is left. Idempotent."""
        opening = self._opening.pop(task, None)
        self._pool.give_back(self._names.pop(task, ""))
        self._owners.pop(task, None)
        if opening is not None:
            with contextlib.suppress(RunnerError):  # it never opened
                self._begin_end(await opening, task, reason)
        for ending in [ending for its, ending in self._ending.values() if its == task]:
            await asyncio.shield(ending)
        if task in self._disks:
            self._disks.discard(task)
            await self._remove_disk(task)

    def drop(self, sandbox: Sandbox, task: str, reason: str) -> None:
        """Destroy a sandbox that does not obey; the task may go on in a new one."""
        self._forget(sandbox.id, task)
        self._begin_end(sandbox, task, reason)

    async def close(self, reason: str, seconds: float) -> None:
        """The daemon ends: close every sandbox, and wait this long for engine to say that they are gone."""
        self._pool.close(reason)
        for opening in list(self._opening.values()):
            if opening.done() and opening.exception() is None:
                opening.result().close(reason)
        if self._ending:
            await asyncio.wait([ending for _, ending in self._ending.values()], timeout=seconds)

    def engine_lost(self) -> None:
        """Engine is gone: close every control connection, so that PID 1 of each sandbox exits by itself."""
        self.engine = None
        self._pool.close("the engine ended")
        for opening in list(self._opening.values()):
            if opening.done() and opening.exception() is None:
                opening.result().close("the engine ended")

    def _opened(self, task: str, opening: asyncio.Task[Sandbox]) -> None:
        if opening.exception() is not None:
            self._forget(opening.get_name(), task)

    def _forget(self, sandbox: str, task: str) -> None:
        """The task's next call is planned with another sandbox."""
        if self.sandbox_of(task) == sandbox:
            del self._opening[task]
            self._owners.pop(task, None)
        if self._names.get(task) == sandbox:
            del self._names[task]

    async def _open(self, plan: SandboxPlan, concurrent: int, disk: bool) -> Sandbox:
        engine = self.engine
        spare = self._pool.take(plan.sandbox)
        if spare is not None and spare.profile != plan.profile_digest:
            self._begin_end(spare.sandbox, "", "the catalogue was swapped")
            raise refuse("unavailable", "the catalogue was swapped after this call was planned", retry_after_ms=100)
        if disk:
            self._disks.add(plan.task)  # from now on there may be one, also when no answer comes
        sandbox, measured, _ = spare or await self._make_or_make_room(plan, concurrent)
        if disk:
            self._disks.add(plan.task)  # an engine that came back meanwhile may not have known of it
        await self._journal.write(
            entries.SandboxBegin(
                time=self._journal.stamp(),
                sandbox=plan.sandbox,
                task=plan.task,
                profile=plan.profile,
                profile_digest=plan.profile_digest,
                isolation=self._describe(measured),
            )
        )
        if self.engine is not engine:
            sandbox.close("the engine ended")
        if sandbox.lost:
            self._begin_end(sandbox, plan.task, sandbox.lost)
            raise refuse("unavailable", f"the sandbox is gone: {sandbox.lost}")
        return sandbox

    async def _make_or_make_room(self, plan: SandboxPlan, concurrent: int) -> Opened:
        try:
            return await self._make(plan, concurrent)
        except RunnerError as error:
            if error.refused.code != "busy" or not await self._pool.yield_one():
                raise
        await asyncio.gather(*(ending for _, ending in self._ending.values()), return_exceptions=True)
        return await self._make(plan, concurrent)

    async def _make(self, plan: SandboxPlan, concurrent: int) -> Opened:
        """A new sandbox, open. Raises `RunnerError` (unavailable, busy, host); then nothing of it is left."""
        engine = self.engine
        if engine is None:
            raise refuse("unavailable", "the engine is being restarted", retry_after_ms=2000)
        try:
            async with asyncio.timeout(self._start_s), self._turns.of(self._owners.get(plan.task, "")):
                measured, descriptor = await engine.create(plan)
        except TimeoutError:
            waiting = f"; {self._turns.waiting} wait to be made" if self._turns.waiting else ""
            raise refuse("unavailable", f"no sandbox within {self._start_s:.0f} s{waiting}") from None
        try:
            sandbox = await Sandbox.open(
                plan.sandbox,
                descriptor,
                lambda reason: self._lost(plan.sandbox, reason),
                concurrent=concurrent,
                start_s=self._start_s,
            )
        except RunnerError:
            await self._destroy(plan.sandbox, "it did not open")
            raise
        return Opened(sandbox, measured, plan.profile_digest)

    def _lost(self, sandbox: str, reason: str) -> None:
        self._pool.lost(sandbox)
        task = next((task for task, named in self._names.items() if named == sandbox), "")
        opening = self._opening.get(task)
        if opening is None:
            self._names.pop(task, None)  # a spare that a plan names: the next plan names another
            return
        if opening.get_name() != sandbox or not opening.done():
            return  # whoever forgot it, or opens it, ends it
        self._forget(sandbox, task)
        self._begin_end(opening.result(), task, reason)

    def _begin_end(self, sandbox: Sandbox, task: str, reason: str) -> None:
        """In the background, to its end, whatever becomes of whoever asked for it. Idempotent."""
        if sandbox.ending:
            return
        sandbox.ending = True
        ending = asyncio.create_task(self._end(sandbox, task, reason))
        self._ending[sandbox.id] = (task, ending)
        ending.add_done_callback(lambda _: self._ending.pop(sandbox.id, None))

    async def _end(self, sandbox: Sandbox, task: str, reason: str) -> None:
        spent = await self._destroy(sandbox.id, reason)
        sandbox.close(reason)
        self._pool.refill()
        if not task:
            return  # a spare: no entry says that it began
        try:
            await self._journal.write(
                entries.SandboxEnd(
                    time=self._journal.stamp(), sandbox=sandbox.id, task=task, reason=reason[:500], used=_used(spent)
                )
            )
        except RunnerError:
            return  # the journal has stopped the daemon already

    async def _remove_disk(self, task: str) -> None:
        if self.engine is None:
            return  # its successor removes what no live task has
        try:
            await self.engine.remove_disk(task)
        except RunnerError as error:
            _log.error("the disk of task %s was not removed: %s", task, error.refused.line())

    async def _destroy(self, sandbox: str, reason: str) -> Spent | None:
        if self.engine is None:
            return None  # its successor removes what it left
        try:
            return await self.engine.destroy(sandbox, reason)
        except RunnerError as error:
            _log.error("sandbox %s was not removed: %s", sandbox, error.refused.line())
            return None


def _used(spent: Spent | None) -> entries.SandboxUsed | None:
    if spent is None:
        return None
    return entries.SandboxUsed(cpu_us=spent.cpu_us, memory_peak=spent.memory_peak, oom_kills=spent.oom_kills)
