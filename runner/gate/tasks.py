"""Tasks: begun by their first accepted call, ended by their holder, an operator, revocation, expiry or idleness.

A task belongs to the root token that names it. Reconnecting with the same root token resumes it, workspace
included: one in memory for as long as its sandbox lives, one on disk for as long as the task does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from runner.errors import RunnerError, refusal, refuse
from runner.gate.calls import Calls
from runner.gate.context import Context
from runner.gate.entries import Journal, who
from runner.ledger import entry as entries
from runner.model import Principal
from runner.token.capability import ConstraintMap
from runner.token.keys import PublicKey

_log = logging.getLogger(__name__)


class TaskRecord(Protocol):
    """A task as state remembers it."""

    @property
    def token(self) -> str:
        """The root token's id."""

    @property
    def ended(self) -> str:
        """When it ended, "" while it lives."""

    @property
    def reason(self) -> str:
        """Why it ended."""


class Remembered(Protocol):
    """State, as far as tasks need it."""

    def task(self, task: str) -> TaskRecord | None:
        """One task, or None."""

    def token_expires(self, jti: str) -> int:
        """When an announced root token expires, in epoch seconds."""


class Sandboxes(Protocol):
    """What holds the sandboxes of tasks."""

    def sandbox_of(self, task: str) -> str:
        """The id of the task's sandbox, "" when it has none."""

    def has_disk(self, task: str) -> bool:
        """Whether the task's workspace lies on a disk that outlives its sandboxes."""

    async def release(self, task: str, reason: str) -> None:
        """Remove the task's sandbox and disk; done when no process of it is left."""


class Task:
    """One live task: its identity, its profile's name, what it has done, when it must end."""

    def __init__(
        self, principal: Principal, *, token: str, profile: str, expires: int, begun: bool, now: float
    ) -> None:
        self.id = principal.task
        self.principal = principal
        self.token = token
        self.profile = profile
        self.expires = expires
        self.begun = begun
        self.context = Context(resumed=begun)
        self.used = now  # monotonic time of the last sign of life
        self.connections = 0
        self.anchor: tuple[str, PublicKey] | None = None  # whose key signed its root token; unknown until it is joined
        self.granted: Mapping[str, ConstraintMap] | None = None  # what that token grants; the same
        self.uid = 0  # of whoever joined it last
        self.ending = ""


class Tasks:
    """Every live task, by id."""

    def __init__(
        self,
        journal: Journal,
        state: Remembered,
        calls: Calls,
        sandboxes: Sandboxes,
        *,
        maximum: int,
        clock: Callable[[], float],
        per_owner: int = 1 << 30,
    ) -> None:
        self._per_owner = per_owner
        self._journal = journal
        self._state = state
        self._calls = calls
        self._sandboxes = sandboxes
        self._maximum = maximum
        self._clock = clock
        self._beginning = asyncio.Lock()
        self._sweeping: set[asyncio.Task[None]] = set()
        self.live: dict[str, Task] = {}
        self.on_end: list[Callable[[str, str], Awaitable[None]]] = []  # told (task, reason): connections close

    def join(self, principal: Principal, *, token: str, profile: str) -> Task:
        """The task of a connection that opens. Raises `RunnerError` (task_ended, unauthenticated, busy)."""
        task = self.live.get(principal.task)
        if task is None:
            known = self._state.task(principal.task)
            if known is not None and known.ended:
                raise refuse("task_ended", f"the task ended: {known.reason}")
            if known is not None and known.token != token:
                raise refuse(
                    "unauthenticated",
                    "the token chain was not accepted",
                    detail="the task belongs to another root token",
                )
            if len(self.live) >= self._maximum:
                raise refuse("busy", f"{self._maximum} tasks live already", retry_after_ms=5000)
            if sum(live.principal.owner == principal.owner for live in self.live.values()) >= self._per_owner:
                most = f"{self._per_owner} at a time"
                reason = f"owner {principal.owner} has {self._per_owner} tasks that live, its most"
                raise refuse("busy", reason, next_step="end tasks", allowed=most, retry_after_ms=5000)
            task = Task(
                principal,
                token=token,
                profile=profile,
                expires=self._state.token_expires(token),
                begun=known is not None,
                now=self._clock(),
            )
            self.live[task.id] = task
        elif task.token != token:
            raise refuse(
                "unauthenticated", "the token chain was not accepted", detail="the task belongs to another root token"
            )
        if task.ending:
            raise refuse("task_ended", f"the task is ending: {task.ending}")
        task.connections += 1
        task.used = self._clock()
        return task

    def remember(self, principal: Principal, *, token: str, profile: str) -> None:
        """A task that an earlier run of the daemon began and nobody has ended: it expires and idles like any other."""
        self.live[principal.task] = Task(
            principal,
            token=token,
            profile=profile,
            expires=self._state.token_expires(token),
            begun=True,
            now=self._clock(),
        )

    def leave(self, task: Task) -> None:
        """A connection closed. A task that never began is forgotten with its last one."""
        task.connections -= 1
        task.used = self._clock()
        if not task.begun and not task.connections and self.live.get(task.id) is task:
            del self.live[task.id]

    def workspace_lost(self, task: Task) -> bool:
        """Whether what the task had in its workspace is gone, with the sandbox it was in. A disk outlives that."""
        return task.begun and not self._sandboxes.sandbox_of(task.id) and not self._sandboxes.has_disk(task.id)

    async def begin(self, task: Task) -> None:
        """The first accepted call: write the task's beginning, once. Raises `RunnerError` (task_ended)."""
        if task.begun:
            return
        async with self._beginning:
            if task.ending:
                raise task_ended(task.ending)
            if not task.begun:
                await self._journal.write(
                    entries.TaskBegin(
                        time=self._journal.stamp(), who=who(task.principal), token=task.token, profile=task.profile
                    )
                )
                task.begun = True

    async def end(self, task_id: str, reason: str, *, by: int = -1, operator: entries.Operator | None = None) -> int:
        """End a task: its calls are killed and sealed, its sandbox removed, its end written. Returns calls stopped.

        Idempotent; unknown or ended tasks answer 0."""
        task = self.live.get(task_id)
        if task is None:
            known = self._state.task(task_id)
            if known is not None and not known.ended:
                await self._journal.write(
                    entries.TaskEnd(time=self._journal.stamp(), task=task_id, reason=reason, by=by, operator=operator),
                    sync=True,
                )
            return 0
        if task.ending:
            return 0
        task.ending = reason
        running = self._calls.of_task(task_id)
        for call in running:
            call.cancel("killed", f"the task ended: {reason}")
        async with self._beginning:  # a beginning that is being written is written first, and none comes after this
            begun = task.begun
        if begun:
            # Recorded before the sandbox goes: after a crash here, state says ended and engine removes the orphan.
            await self._journal.write(
                entries.TaskEnd(time=self._journal.stamp(), task=task_id, reason=reason, by=by, operator=operator),
                sync=True,
            )
        await self._sandboxes.release(task_id, reason)
        if running:
            await asyncio.wait([call.finished for call in running])
        self._calls.forget_task(task_id)
        self.live.pop(task_id, None)
        for tell in self.on_end:
            await tell(task_id, reason)
        return len(running)

    async def sweep(self, now: float, idle_s: Callable[[str], int]) -> None:
        """Begin to end what expired (`now` is epoch seconds) or has been idle for longer than its profile allows.

        Does not wait for the ends: one that takes long must not hold up whoever keeps the time."""
        for task in list(self.live.values()):
            reason = ""
            if task.expires <= now:
                reason = "the token expired"
            elif task.begun and not self._calls.of_task(task.id) and self._clock() - task.used > idle_s(task.profile):
                reason = "idle for longer than the profile allows"
            if reason and not task.ending:
                ending = asyncio.create_task(self._swept(task.id, reason))
                self._sweeping.add(ending)
                ending.add_done_callback(self._sweeping.discard)
        await asyncio.sleep(0)  # each of them has begun: nobody joins the task any more

    async def _swept(self, task: str, reason: str) -> None:
        try:
            await self.end(task, reason)
        except RunnerError as error:
            _log.error("could not end task %s: %s", task, error.refused.line())


def task_ended(reason: str) -> RunnerError:
    """The refusal for work that comes too late."""
    return RunnerError(refusal("task_ended", f"the task ended: {reason}"))
