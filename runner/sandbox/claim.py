"""A task's sandbox: made by engine when its first call needs it, given back when the task ends or the guest is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.model import Measured, SandboxPlan
from runner.sandbox.connection import Sandbox

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """The seam to whatever makes containers."""

    async def create(self, plan: SandboxPlan) -> tuple[Measured, int]:
        """A measured sandbox and the descriptor of its control connection."""

    async def destroy(self, sandbox: str, reason: str) -> None:
        """Kill and remove; done when this returns."""


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
    ) -> None:
        self.engine: Engine | None = engine
        self._new_sandbox = new_sandbox
        self._names: dict[str, str] = {}  # task -> the sandbox it has or will have
        self._journal = journal
        self._describe = describe
        self._start_s = start_s
        self._opening: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Sandboxes open or opening."""
        return len(self._opening)

    def sandbox_of(self, task: str) -> str:
        """The id of the task's sandbox, "" when it has none."""
        opening = self._opening.get(task)
        return opening.get_name() if opening is not None else ""

    def name_for(self, task: str) -> str:
        """The id of the task's sandbox, or the one its next sandbox will have."""
        if task not in self._names:
            self._names[task] = self._new_sandbox()
        return self._names[task]

    async def claim(self, plan: SandboxPlan, concurrent: int) -> Sandbox:
        """The sandbox of `plan.task`; made from `plan` if there is none, to serve `concurrent` calls at a time.

        Raises `RunnerError` (unavailable, host)."""
        opening = self._opening.get(plan.task)
        if opening is not None and opening.done() and (opening.exception() or opening.result().lost):
            opening = None  # it was lost while it opened; a plan may still carry its name, engine decides
        if opening is None:
            opening = asyncio.create_task(self._open(plan, concurrent), name=plan.sandbox)
            self._opening[plan.task] = opening
        try:
            return await asyncio.shield(opening)
        except RunnerError:
            if self._opening.get(plan.task) is opening:
                del self._opening[plan.task]
                self._names.pop(plan.task, None)
            raise

    async def release(self, task: str, reason: str) -> None:
        """Remove the task's sandbox; done when no process of it is left. Idempotent."""
        opening = self._opening.pop(task, None)
        self._names.pop(task, None)
        if opening is None:
            return
        try:
            sandbox = await opening
        except RunnerError:
            return
        await self._end(sandbox, task, reason)

    async def drop(self, sandbox: Sandbox, task: str, reason: str) -> None:
        """Destroy a sandbox that does not obey; the task may go on in a new one."""
        if self.sandbox_of(task) == sandbox.id:
            self._opening.pop(task, None)
            self._names.pop(task, None)
            await self._end(sandbox, task, reason)

    def engine_lost(self) -> None:
        """Engine is gone: close every control connection, so that PID 1 of each sandbox exits by itself."""
        self.engine = None
        for opening in list(self._opening.values()):
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().close("the engine ended")

    async def _open(self, plan: SandboxPlan, concurrent: int) -> Sandbox:
        if self.engine is None:
            raise refuse("unavailable", "the engine is being restarted", retry_after_ms=2000)
        try:
            async with asyncio.timeout(self._start_s):
                measured, descriptor = await self.engine.create(plan)
        except TimeoutError:
            raise refuse("unavailable", f"no sandbox within {self._start_s:.0f} s") from None
        sandbox = await Sandbox.open(
            plan.sandbox,
            descriptor,
            lambda reason: self._lost(plan.task, plan.sandbox, reason),
            concurrent=concurrent,
            start_s=self._start_s,
        )
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
        return sandbox

    def _lost(self, task: str, sandbox: str, reason: str) -> None:
        opening = self._opening.get(task)
        if opening is None or opening.get_name() != sandbox or not opening.done():
            return
        del self._opening[task]
        self._names.pop(task, None)
        if opening.exception() is None:
            ending = asyncio.create_task(self._end(opening.result(), task, reason))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, sandbox: Sandbox, task: str, reason: str) -> None:
        if self.engine is not None:
            try:
                await self.engine.destroy(sandbox.id, reason)
            except RunnerError as error:
                _log.error("sandbox %s was not removed: %s", sandbox.id, error.refused.line())
        sandbox.close(reason)
        try:
            await self._journal.write(
                entries.SandboxEnd(time=self._journal.stamp(), sandbox=sandbox.id, task=task, reason=reason[:500])
            )
        except RunnerError:
            return  # the journal has stopped the daemon already
