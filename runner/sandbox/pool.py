"""Sandboxes opened ahead, so that a task's first call waits neither for Docker nor for PID 1.

A spare belongs to no task: it holds the profile's tool code, a launcher behind the walls that most calls need, and
nothing else. A call's plan names the sandbox it will run in, so a spare is reserved when the first call is planned and
taken when that call is recorded. Kept in gate, not in engine: what is ready to be claimed is a control connection, and
only gate holds those."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from runner.errors import RunnerError
from runner.model import Manifest, Measured, SandboxPlan, TaskProfile, ToolProfile
from runner.sandbox.connection import Sandbox
from runner.sandbox.narrow import compile_deny
from runner.sandbox.plan import usual

_log = logging.getLogger(__name__)
_QUIET_S = 0.5  # making a container takes both cores for 100 ms: not while the call that took the last one runs
_BACKOFF_S = 5.0  # after a sandbox could not be made: the reason will not pass in a moment


class Opened(NamedTuple):
    """An open sandbox and what engine measured of it."""

    sandbox: Sandbox
    measured: Measured
    profile: str  # the digest it was made for


Tools = Sequence[tuple[Manifest, ToolProfile]]
Make = Callable[[SandboxPlan, int], Awaitable[Opened]]
Discard = Callable[[Sandbox, str], None]


class Pool:
    """Up to `size` spares per task profile. `make` opens a sandbox for a plan, `discard` ends one."""

    def __init__(self, make: Make, discard: Discard, new_sandbox: Callable[[], str], size: int) -> None:
        self._make = make
        self._discard = discard
        self._new_sandbox = new_sandbox
        self._size = size
        self._wanted: Mapping[str, tuple[TaskProfile, Tools]] = {}  # by the profile's digest
        self._ready: dict[str, Opened] = {}  # by id, oldest first
        self._reserved: dict[str, Opened] = {}  # named by a plan, not claimed yet
        self._aside: set[str] = set()  # digests of profiles of which none could be made a moment ago
        self._said: dict[str, str] = {}  # and why, as the log was told
        self._filling: asyncio.Task[None] | None = None
        self._quiet = asyncio.Event()  # no spare is being made at this moment
        self._quiet.set()

    @property
    def ready(self) -> int:
        """How many spares wait."""
        return len(self._ready)

    def stock(
        self,
        profiles: Mapping[str, TaskProfile],
        tools: Mapping[str, Manifest],
        tool_profiles: Mapping[str, ToolProfile],
    ) -> None:
        """Keep spares for these profiles from now on, and end those made for others. A disk belongs to one task, so its
        sandbox cannot be made before the task is known."""
        self._said.clear()
        self._wanted = {
            profile.digest: (
                profile,
                [(tools[name], tool_profiles[tools[name].profile]) for name in profile.tools if name in tools],
            )
            for profile in profiles.values()
            if profile.workspace_kind == "memory"
        }
        for name, opened in list(self._ready.items()):
            if opened.profile not in self._wanted:
                del self._ready[name]
                self._discard(opened.sandbox, "the catalogue was swapped")
        self.refill(0.0)

    def reserve(self, profile: TaskProfile) -> str:
        """The id of a live spare of exactly this profile, now the caller's to `take` or `give_back`; "" for none."""
        for name, opened in self._ready.items():
            if opened.profile == profile.digest and not opened.sandbox.lost:
                self._reserved[name] = self._ready.pop(name)
                self.refill()
                return name
        return ""

    def take(self, sandbox: str) -> Opened | None:
        """The reserved spare of this id, None when there is none."""
        return self._reserved.pop(sandbox, None)

    def give_back(self, sandbox: str) -> None:
        """Nobody ran anything in it: it is a spare again."""
        found = self._reserved.pop(sandbox, None)
        if found is not None and found.profile in self._wanted:
            self._ready[sandbox] = found
        elif found is not None:
            self._discard(found.sandbox, "the catalogue was swapped")

    async def yield_one(self) -> bool:
        """End the oldest spare, or the one that is being made, so that a task can have its place. Whether there was
        one."""
        if not self._ready:
            await self._quiet.wait()
        for name in self._ready:
            self._discard(self._ready.pop(name).sandbox, "a task needs its place")
            return True
        return False

    def lost(self, sandbox: str) -> None:
        """Its connection ended."""
        found = self._ready.pop(sandbox, None) or self._reserved.pop(sandbox, None)
        if found is not None:
            self._discard(found.sandbox, found.sandbox.lost)
            self.refill(_BACKOFF_S)

    def close(self, reason: str) -> None:
        """End every spare, and make none until `stock`."""
        self._wanted = {}
        if self._filling is not None:
            self._filling.cancel()
        for opened in [*self._ready.values(), *self._reserved.values()]:
            self._discard(opened.sandbox, reason)
        self._ready.clear()
        self._reserved.clear()

    def refill(self, delay: float = _QUIET_S) -> None:
        """Make what is missing, after `delay` seconds, in the background."""
        if self._size > 0 and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill(delay))

    async def _fill(self, delay: float) -> None:
        while (missing := self._missing()) is not None:
            await asyncio.sleep(delay)
            self._quiet.clear()
            try:
                await self._add(*missing)
                delay = 0.0
            except RunnerError as error:
                if error.refused.code == "busy":
                    return  # no room: the end of a sandbox asks for the next try
                self._put_aside(missing[0], error.refused.line())
            finally:
                self._quiet.set()

    def _put_aside(self, profile: TaskProfile, why: str) -> None:
        """Try no more of this one for a while; the spares of others do not wait for it."""
        if self._said.get(profile.digest) != why:
            _log.warning("no sandbox of profile %s for the pool: %s", profile.name, why)
        self._said[profile.digest] = why
        self._aside.add(profile.digest)

        def again() -> None:
            self._aside.discard(profile.digest)
            self.refill(0.0)

        asyncio.get_running_loop().call_later(_BACKOFF_S, again)

    async def _add(self, profile: TaskProfile, tools: Tools) -> None:
        plan = SandboxPlan(sandbox=self._new_sandbox(), task="", profile=profile.name, profile_digest=profile.digest)
        opened = await self._make(plan, profile.ceilings.concurrent_calls)
        try:
            for manifest, _ in tools:
                await opened.sandbox.provide(manifest)
            if (ahead := usual(profile, tools)) is not None:
                opened.sandbox.prepare(ahead, compile_deny(tuple(filter(None, ahead.jail.seccomp.split(",")))))
        except BaseException:
            self._discard(opened.sandbox, "it did not take its tools")
            raise
        if opened.sandbox.lost or profile.digest not in self._wanted:
            self._discard(opened.sandbox, opened.sandbox.lost or "the catalogue was swapped")
        else:
            self._ready[plan.sandbox] = opened

    def _missing(self) -> tuple[TaskProfile, Tools] | None:
        kept = [opened.profile for opened in self._ready.values()]
        wanted = ((digest, each) for digest, each in self._wanted.items() if digest not in self._aside)
        return next((each for digest, each in wanted if kept.count(digest) < self._size), None)
