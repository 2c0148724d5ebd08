"""Run one planned call in its task's sandbox: a slot, the tool's code, the start, and a deadline of gate's own.

The guest enforces the wall clock; if it does not report in time after that, it is not obeying any more, and the
whole sandbox goes.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

import msgspec

from runner.errors import refuse
from runner.model import CallPlan, Manifest, Outcome, OutcomeKind, SandboxPlan, TaskProfile
from runner.sandbox.claim import Claims
from runner.sandbox.connection import Event, GuestCall, Sandbox
from runner.sandbox.narrow import compile_deny


class Running(Protocol):
    """The call as gate steers it."""

    cancelled: tuple[OutcomeKind, str] | None

    def first_credit(self) -> int:
        """Output credit the guest starts with."""

    def stdin_credit(self, count: int) -> None:
        """The guest has room for this much more stdin."""

    def attach(self, guest: Execution) -> None:
        """From now on the call can be steered."""


class Execution:
    """One call while it runs. `async with` it: leaving stops gate's own deadline and frees the slot."""

    def __init__(
        self, guest: GuestCall, sandbox: Sandbox, plan: CallPlan, claims: Claims, task: str, grace_s: float
    ) -> None:
        self.guest = guest
        self._sandbox = sandbox
        self._plan = plan
        self._claims = claims
        self._task = task
        self._grace_s = grace_s
        self._overdue = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Execution:
        self._watch = asyncio.create_task(self._destroy_when_overdue())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        self._watch.cancel()
        self._sandbox.slots.release()

    async def next(self) -> Event:
        """The next piece or value, or the outcome that ends it."""
        return await self.guest.next()

    def credit(self, count: int) -> None:
        """Let the guest send more output."""
        self.guest.credit(count)

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Feed the tool."""
        self.guest.stdin(data, eof=eof)

    def cancel(self, kind: OutcomeKind) -> None:
        """Kill the call, and the sandbox if the guest does not."""
        self.guest.cancel(kind)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = asyncio.create_task(self._destroy_after(self._grace_s))

    def judge(self, outcome: Outcome, cancelled: tuple[OutcomeKind, str] | None) -> Outcome:
        """The outcome as gate knows it: a sandbox that gate destroyed did not end by itself."""
        if cancelled is not None and outcome.kind in (cancelled[0], "interrupted"):
            return msgspec.structs.replace(outcome, kind=cancelled[0], reason=cancelled[1])
        if outcome.kind == "interrupted" and self._overdue:
            return msgspec.structs.replace(
                outcome, kind="timed_out", reason="the sandbox did not end the call at its deadline and was destroyed"
            )
        if outcome.kind == "timed_out" and not outcome.reason:
            return msgspec.structs.replace(outcome, reason=f"ran for longer than {self._plan.wall_ms} ms")
        return outcome

    async def _destroy_when_overdue(self) -> None:
        await self._destroy_after(self._plan.wall_ms / 1000 + self._grace_s)

    async def _destroy_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._overdue = True
        await self._claims.drop(self._sandbox, self._task, "the guest did not end a call at its deadline")


class Executor:
    """Starts calls in sandboxes."""

    def __init__(self, claims: Claims, *, grace_s: float) -> None:
        self._claims = claims
        self._grace_s = grace_s
        self._bpf: dict[str, bytes] = {}

    def sandbox_of(self, task: str) -> str:
        """The id of the task's sandbox, or the one its next sandbox will have."""
        return self._claims.name_for(task)

    async def start(
        self, plan: CallPlan, task: str, profile: TaskProfile, manifest: Manifest, running: Running
    ) -> Execution:
        """Bring the call's process into existence. Raises `RunnerError` while it certainly does not exist."""
        wanted = SandboxPlan(sandbox=plan.sandbox, task=task, profile=profile.name, profile_digest=profile.digest)
        sandbox = await self._claims.claim(wanted, profile.ceilings.concurrent_calls)
        await sandbox.slots.acquire()
        try:
            await sandbox.provide(manifest)
            if running.cancelled is not None:
                raise refuse("unavailable", running.cancelled[1])
            guest = sandbox.start(
                plan, self._narrowing(plan.jail.seccomp), running.first_credit(), running.stdin_credit
            )
        except BaseException:
            sandbox.slots.release()
            raise
        execution = Execution(guest, sandbox, plan, self._claims, task, self._grace_s)
        running.attach(execution)
        return execution

    def _narrowing(self, calls: str) -> bytes:
        if not calls:
            return b""
        if calls not in self._bpf:
            self._bpf[calls] = compile_deny(tuple(calls.split(",")))
        return self._bpf[calls]
