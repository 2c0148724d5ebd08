"""Run one planned call in its task's sandbox: a slot, the tool's code, the start, and a deadline of gate's own.

The guest enforces the wall clock; if it does not report in time after that, it is not obeying any more, and the
whole sandbox goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, TypeVar

import msgspec

from runner.errors import Refusal, refusal, refuse
from runner.ledger.entry import Workspace
from runner.model import CallPlan, Manifest, Outcome, OutcomeKind, SandboxPlan, TaskProfile
from runner.sandbox.claim import Claims
from runner.sandbox.connection import Event, GuestCall, Sandbox
from runner.sandbox.lease import Lease, Leases
from runner.sandbox.narrow import compile_deny
from runner.sandbox.snapshot import Pending, Snapshots
from runner.wire.guest import MAX_DATA

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LAST_WORDS_S = 1.0  # for a client to take what is left of the output of a call whose sandbox is gone
_PASSED = ("unavailable", "busy", "host")  # refusals of engine and sandbox that an agent can act upon


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A call's end: its outcome, a python tool's raw result, the walls its launcher proved, the refusal the agent
    gets instead of a result when its process never existed, and what the call left in the workspace."""

    outcome: Outcome
    value: bytes | None = None
    walls: tuple[str, ...] = ()
    refused: Refusal | None = None
    workspace: Workspace | None = None


def never(refused: Refusal, cancelled: tuple[OutcomeKind, str] | None) -> Ended:
    """The end of a call whose process certainly never existed."""
    if cancelled is not None:
        return Ended(outcome=Outcome(kind=cancelled[0], reason=f"{cancelled[1]}, before its process existed"))
    if refused.code not in _PASSED:
        refused = refusal("unavailable", refused.reason)
    return Ended(outcome=Outcome(kind="unavailable", reason=refused.reason[:500]), refused=refused)


def broken(error: Exception, execution: Execution | None) -> Ended:
    """The end of a call that gate lost hold of by a defect: its process may have existed."""
    _log.error("a call was lost hold of", exc_info=error)
    walls = execution.guest.walls if execution is not None else ()
    return Ended(outcome=Outcome(kind="interrupted", reason="the daemon has a defect; its log has more"), walls=walls)


class Running(Protocol):
    """The call as gate steers it."""

    cancelled: tuple[OutcomeKind, str] | None

    def starts(self, work: asyncio.Task[Any]) -> None:
        """`work` makes its sandbox ready: a cancel of the call ends it."""

    def hasten(self) -> None:
        """Let the call end whether or not its client reads."""

    def first_credit(self) -> int:
        """Output credit the guest starts with."""

    def stdin_credit(self, count: int) -> None:
        """The guest has room for this much more stdin."""

    def attach(self, guest: Execution) -> None:
        """From now on the call can be steered."""


class Execution:
    """One call while it runs. `async with` it: leaving stops gate's own deadline and frees the slot."""

    def __init__(
        self,
        guest: GuestCall,
        sandbox: Sandbox,
        plan: CallPlan,
        manifest: Manifest,
        claims: Claims,
        task: str,
        running: Running,
        grace_s: float,
        snapshot: Pending | None = None,
    ) -> None:
        self._snapshot = snapshot
        self.guest = guest
        self._sandbox = sandbox
        self._plan = plan
        self._manifest = manifest
        self._claims = claims
        self._task = task
        self._running = running
        self._grace_s = grace_s
        self._overdue = False
        self._timer: asyncio.TimerHandle | None = None
        guest.on_lost = self._lost

    async def __aenter__(self) -> Execution:
        if self._timer is None:  # a cancel that came first has set its own
            self._wait(self._plan.wall_ms / 1000 + self._grace_s, self._hasten)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.guest.over:  # nobody follows the call any more, so nothing of it may run on
            self._claims.drop(self._sandbox, self._task, "a call was lost hold of")
        self._sandbox.slots.release()

    async def next(self, wait_ms: int = 0, most: int = MAX_DATA) -> Event | None:
        """The next piece (of at most so many bytes) or value, or the outcome that ends it; None when nothing comes in
        `wait_ms` (0: for ever)."""
        return await self.guest.next(wait_ms, most)

    def credit(self, count: int) -> None:
        """Let the guest send more output."""
        self.guest.credit(count)

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Feed the tool."""
        self.guest.stdin(data, eof=eof)

    def cancel(self, kind: OutcomeKind) -> None:
        """Kill the call, and the sandbox if the guest does not."""
        self.guest.cancel(kind)
        self._wait(self._grace_s, self._destroy)

    def ended(self, outcome: Outcome, cancelled: tuple[OutcomeKind, str] | None, value: bytes | None) -> Ended:
        """The end of the call by its outcome."""
        fault = self.guest.fault
        if fault is None:
            return Ended(outcome=self._judge(outcome, cancelled), value=value, walls=self.guest.walls)
        if fault.code != "arguments":
            return never(refusal("unavailable", fault.reason), cancelled)
        field = "argv" if self._manifest.kind == "argv" else ""
        refused = refusal("arguments", fault.reason, field=field, next_step="name a program that the sandbox has")
        return Ended(outcome=outcome, refused=refused)

    async def looked_at(self, ended: Ended) -> Ended:
        """The same end with the workspace's content, where the profile wants that and a process may have changed it."""
        if self._snapshot is None:
            return ended
        if ended.refused is not None:
            self._snapshot.drop()
            return ended
        return msgspec.structs.replace(ended, workspace=await self._snapshot.take())

    def _judge(self, outcome: Outcome, cancelled: tuple[OutcomeKind, str] | None) -> Outcome:
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

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _lost(self) -> None:
        """Nothing more can happen to the call: a client that does not read must not keep its end from being sealed."""
        self._wait(_LAST_WORDS_S, self._running.hasten)

    def _hasten(self) -> None:
        """The process is gone by the guest's word or ours; what may be missing is a client that takes its output."""
        self._running.hasten()
        self._wait(self._grace_s, self._destroy)

    def _destroy(self) -> None:
        if self.guest.over:
            return  # its end has arrived: gate itself is late
        self._overdue = True
        self._claims.drop(self._sandbox, self._task, "the guest did not end a call at its deadline")


class Executor:
    """Starts calls in sandboxes."""

    def __init__(self, claims: Claims, snapshots: Snapshots, leases: Leases, *, grace_s: float) -> None:
        self._claims = claims
        self._snapshots = snapshots
        self.leases = leases
        self._grace_s = grace_s
        self._bpf: dict[str, bytes] = {}

    def sandbox_of(self, task: str, profile: TaskProfile) -> str:
        """The id of the task's sandbox, or the one its next sandbox will have."""
        return self._claims.name_for(task, profile)

    async def start(
        self, plan: CallPlan, task: str, profile: TaskProfile, manifest: Manifest, running: Running, lease: Lease
    ) -> Execution:
        """Bring the call's process into existence. Raises `RunnerError` while it certainly does not exist."""
        wanted = SandboxPlan(sandbox=plan.sandbox, task=task, profile=profile.name, profile_digest=profile.digest)
        sandbox = await self._ready(wanted, profile, manifest, running)
        try:
            delivered = await self._unless_cancelled(lease.deliver(sandbox), running) if lease.needed else None
            if running.cancelled is not None:
                raise refuse("unavailable", running.cancelled[1])
            bpf = self._narrowing(plan.jail.seccomp)
            guest = sandbox.start(plan, bpf, running.first_credit(), running.stdin_credit, delivered)
        except BaseException:
            sandbox.slots.release()
            raise
        snapshot = self._snapshots.begin(plan, profile, sandbox)
        execution = Execution(guest, sandbox, plan, manifest, self._claims, task, running, self._grace_s, snapshot)
        running.attach(execution)
        return execution

    async def _ready(self, wanted: SandboxPlan, profile: TaskProfile, manifest: Manifest, running: Running) -> Sandbox:
        """The task's sandbox with the tool's code in it and a slot taken; a cancel ends the wait for it."""
        sandbox = self._claims.opened(wanted)
        if sandbox is not None and not sandbox.slots.locked() and sandbox.holds(manifest):
            await sandbox.slots.acquire()  # at once: it is not locked
            return sandbox
        return await self._unless_cancelled(self._made_ready(wanted, profile, manifest), running)

    async def _unless_cancelled(self, what: Coroutine[Any, Any, T], running: Running) -> T:
        """Await it; a cancel of the call ends it. Raises `RunnerError` (unavailable) then."""
        work = asyncio.ensure_future(what)
        running.starts(work)
        try:
            return await work
        except asyncio.CancelledError:
            if running.cancelled is None:
                raise
            raise refuse("unavailable", running.cancelled[1]) from None

    async def _made_ready(self, wanted: SandboxPlan, profile: TaskProfile, manifest: Manifest) -> Sandbox:
        sandbox = await self._claims.claim(
            wanted, profile.ceilings.concurrent_calls, disk=profile.workspace_kind == "disk"
        )
        await sandbox.slots.acquire()
        try:
            await sandbox.provide(manifest)
        except BaseException:
            sandbox.slots.release()
            raise
        return sandbox

    def _narrowing(self, calls: str) -> bytes:
        if not calls:
            return b""
        if calls not in self._bpf:
            self._bpf[calls] = compile_deny(tuple(calls.split(",")))
        return self._bpf[calls]
