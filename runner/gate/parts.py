"""What gate holds while it serves: the parts that the pipeline asks, and the small values only gate makes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypedDict

import msgspec

from runner.config import Limits
from runner.errors import refuse
from runner.gate.authenticate import Authenticator
from runner.gate.authorize import SessionView
from runner.gate.calls import Calls, Reply, Running
from runner.gate.context import Reading
from runner.gate.entries import Journal, call_digest
from runner.gate.idempotency import Remembered
from runner.gate.labels import mixes, of_result, of_task
from runner.gate.origin import Origin
from runner.gate.requests import Requests
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.gate.tasks import Tasks
from runner.model import Authenticated, CallPlan, ToolCall


class Clock(msgspec.Struct, frozen=True):
    """Time, ids and randomness, as arguments: what makes replay possible."""

    now: Callable[[], float]  # epoch seconds
    monotonic: Callable[[], float]
    new_call: Callable[[], str]  # a time-ordered call id


class Streams(TypedDict):
    """What a pump needs to name a call's two output streams in the content store."""

    numbers: tuple[int, int]
    salt: Callable[[], bytes]
    clock: Callable[[], float]


_WIDE, _NARROW = 4, 8  # calls of a task whose output has the whole window; each one more has an eighth


class Parts:
    """The parts of gate. `serving` is replaced as one when the catalogue is swapped."""

    def __init__(
        self,
        *,
        serving: Serving,
        authenticator: Authenticator,
        tasks: Tasks,
        calls: Calls,
        journal: Journal,
        requests: Requests,
        state: Remembered,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self.serving = serving
        self.authenticator = authenticator
        self.tasks = tasks
        self.calls = calls
        self.journal = journal
        self.requests = requests
        self.state = state
        self.clock = clock
        self.limits = limits
        self._streams = 0
        self.draining = ""
        self.full = ""  # why the ledger has room only for what ends or forbids something, "" while it has more

    def authenticate(self, call: ToolCall, session: Session) -> Authenticated:
        """The proven call. Raises `RunnerError` (unauthenticated, revoked, task_ended, busy, unavailable)."""
        if self.draining:
            raise refuse("unavailable", self.draining, retry_after_ms=5000)
        if self.full:
            step = "retry later; an operator must free the daemon's disk"
            raise refuse("unavailable", self.full, next_step=step, retry_after_ms=5000)
        if session.task.ending:
            raise refuse("task_ended", f"the task ended: {session.task.ending}")
        session.task.used = self.clock.monotonic()
        return self.authenticator.authenticate(call, session.verified, session.nonce, self.clock.now())

    def reserve(self, authenticated: Authenticated, reply: Reply) -> Running:
        """The running call, findable by its id and idempotency key from now on. Raises `RunnerError` (busy)."""
        task = authenticated.principal.task
        asked = authenticated.call
        self._admit(task, len(asked.proof))
        running = Running(
            self.clock.new_call(),
            task,
            authenticated.tool,
            reply=reply,
            window=max(1, self.limits.output_window // (1 if len(self.calls.of_task(task)) < _WIDE else _NARROW)),
            client=asked.window,
            detach=asked.detach,
            sync=asked.sync,
            chain=authenticated.chain,
            asserted=authenticated.principal.asserted,
            size=len(asked.proof),
        )
        if asked.idempotency_key:
            running.key = asked.idempotency_key
            running.arguments = call_digest(authenticated.tool, authenticated.arguments)
        self.calls.add(running)
        reply.steers(running)
        return running

    def _admit(self, task: str, size: int) -> None:
        """Raises `RunnerError` (busy) naming the bound that one more call of the task would break."""
        limits, mine = self.limits, self.calls.of_task(task)
        share = max(1, limits.calls // max(1, self.calls.tasks))
        reason, most = "", 0
        if len(mine) >= limits.calls_per_task:
            reason, most = f"{len(mine)} calls of this task run or wait ahead of this one", limits.calls_per_task
        elif len(self.calls.running) >= limits.calls and len(mine) >= share:
            reason = f"{len(self.calls.running)} calls of all tasks run or wait, {len(mine)} of them of this task"
            most = share
        if reason:
            after = self.calls.next_end_ms(task)
            raise refuse("busy", reason, allowed=f"{most} at a time", retry_after_ms=after)
        held = sum(running.size for running in mine)
        if mine and held + size > limits.call_bytes_per_task:
            raise refuse(
                "busy",
                f"{len(mine)} calls of this task run or wait, with {held} bytes of arguments and proofs",
                next_step="wait for some of them, or pass large inputs through stdin or files",
                allowed=f"{limits.call_bytes_per_task} bytes at a time",
                retry_after_ms=self.calls.next_end_ms(task),
            )

    def view(self, authenticated: Authenticated, session: Session) -> SessionView:
        """What policy sees of the session."""
        context, profile = session.task.context, self.serving.task_profiles.get(session.task.profile)
        if context.resumed and profile is not None:
            context.presumed = of_task(profile, self.serving.tools)
        return context.view(session.facts.original_request, len(authenticated.chain) - 1)

    def labels(
        self, authenticated: Authenticated, session: Session, serving: Serving, reading: Reading
    ) -> frozenset[str]:
        """What the call's result carries, whatever is in it. `reading` is what its task has read, from now on."""
        context, manifest = session.task.context, serving.tools[authenticated.tool]
        profile, tool = serving.task_profiles[session.task.profile], serving.tool_profiles[manifest.profile]
        context.reading = reading
        labels = of_result(manifest, tool, profile, authenticated.arguments, mixed=context.mixed)
        context.mixed = context.mixed or mixes(manifest, tool)
        return labels

    def origin(self, planned: CallPlan, session: Session, serving: Serving, labels: Collection[str] = ()) -> Origin:
        """Where the call's output may come from. `labels` are those that it carries whatever is in it."""
        manifest, profile = serving.tools[planned.tool], serving.task_profiles[session.task.profile]
        workspace, network = serving.tool_profiles[manifest.profile].workspace, bool(manifest.egress)
        return Origin(session.task.context, workspace, network=network, outside=bool(profile.egress), labels=labels)

    def admit(self, running: Running, planned: CallPlan) -> CallPlan:
        """Take the plan's bounds into account. Raises `RunnerError` (busy) when kept output would exceed its bound."""
        if running.detach and not self.calls.room(running.task, planned.output):
            kept = self.limits.detached_bytes
            raise refuse(
                "busy",
                f"detached calls that run may write {kept} bytes together, and a task no more than it leaves to others",
                retry_after_ms=self.calls.next_end_ms(running.task),
            )
        running.planned(planned.output, planned.output_rate, self.clock.monotonic)
        return planned

    def streams(self) -> Streams:
        """Two fresh content streams for a call's output: their numbers, and where salts and time come from."""
        self._streams += 2
        numbers = (self._streams - 1, self._streams)
        return Streams(numbers=numbers, salt=self.journal.salt, clock=self.clock.monotonic)
