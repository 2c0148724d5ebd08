"""THE PATH of one call: authenticate, authorize, approve, plan, record, lease, execute, filter, record, reply.

Only the order is here. A refusal is recorded before it is told; call, decision and plan before a sandbox hears of it.
"""

from __future__ import annotations

from functools import partial

from runner.errors import Refusal, RunnerError, refusal
from runner.gate import idempotency, record
from runner.gate.approve import approve, beyond
from runner.gate.authorize import authorize
from runner.gate.calls import Finished, Reply, Running
from runner.gate.deliver import Delivery
from runner.gate.labels import widened
from runner.gate.parts import Parts
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.model import Authenticated, CallPlan, Grant, Manifest, Outcome, TaskProfile, ToolCall
from runner.sandbox.connection import Value
from runner.sandbox.execute import Ended, Execution, Executor, broken, never
from runner.sandbox.lease import Lease
from runner.sandbox.plan import plan
from runner.stream.pump import Pump
from runner.stream.tasks import Filters, Looked
from runner.telemetry import Span, Telemetry

ABANDONED = refusal("internal", "the call was abandoned")


class Pipeline:
    """The order of the steps. `parts` is what gate holds, `executor` what runs calls in sandboxes, `filters` what
    everything passes that is told or recorded of them."""

    def __init__(self, parts: Parts, executor: Executor, filters: Filters, telemetry: Telemetry) -> None:
        self._parts = parts
        self._executor = executor
        self.filters = filters
        self._telemetry = telemetry

    async def handle(self, call: ToolCall, session: Session, reply: Reply) -> None:
        """Take one call to its end: `reply` gets its result, or the `RunnerError` raised here refuses it."""
        with self._telemetry.span(call.traceparent) as span:
            # 1. authenticate: the chain, the proof, its freshness. The verified proof's arguments are the arguments.
            authenticated = self._parts.authenticate(call, session)
            span.authenticated(authenticated)
            earlier = idempotency.earlier(authenticated, self._parts.calls, self._parts.state)
            if earlier is not None:
                await idempotency.replay(earlier, reply, session.task.context.delivered)
                return
            running = self._parts.reserve(authenticated, reply)
            span.named(running.call)
            finished: Finished | Refusal = ABANDONED
            try:
                finished = await self._decided(authenticated, running, session, reply, span)
            except RunnerError as error:
                finished = error.refused
                span.refused(error.refused.code)
                raise
            finally:
                self._executor.leases.over(running.call)
                self._parts.calls.over(running, keep=isinstance(finished, Finished))
                running.finish(finished)
            span.sealed(finished.outcome.kind, finished.receipt.position)
            # 8. reply: the result follows the sealed receipt.
            if finished.value is not None:
                session.task.context.delivered(running.call)
            await reply.result(running.call, finished)
        await self.filters.remembered(session.task.id, running.call)

    async def _decided(
        self, authenticated: Authenticated, running: Running, session: Session, reply: Reply, span: Span
    ) -> Finished:
        journal = self._parts.journal
        serving = self._parts.serving  # one catalogue for the whole call, whatever is swapped meanwhile
        profile = serving.task_profiles.get(session.task.profile)
        asked = self.filters.texts(session.task.id, serving.patterns, profile)
        # 2. authorize and 3. approve: total functions; only ALLOW becomes a grant.
        carries = self.filters.carried(authenticated, serving.patterns, asked=serving.policies.asks_labels)
        decision = beyond(authenticated, session.verified.tools) or authorize(
            authenticated, self._parts.view(authenticated, session), serving, serving.policies, widened(carries.labels)
        )
        span.decided(decision)
        answer = approve(authenticated, decision := asked.decision(decision), running.call)
        # 4. plan, and record: call, decision and plan are in the ledger before anything else exists.
        planned = self._planned(answer, running, session, serving)
        await record.call(journal, authenticated, decision, planned, running, session, serving, asked, carries)
        span.recorded()
        if isinstance(answer, Refusal) or planned is None:
            raise RunnerError(answer if isinstance(answer, Refusal) else ABANDONED)
        # --- a crash from here on is recoverable: at its next start the recorder seals the call as interrupted.
        # 5. lease, 6. execute and filter. Whatever happens now is an outcome, and every outcome is sealed.
        manifest, profile = serving.tools[planned.tool], serving.task_profiles[session.task.profile]
        labels = self._parts.labels(authenticated, session, serving, self.filters.reading(session.task.id))
        seen = Looked(self._parts.origin(planned, session, serving, labels), serving, decision.obligations)
        passed = self.filters.call(planned, session.task.id, serving.patterns, profile, manifest, labels, seen)
        pump = Pump(journal.recorder, passed, **self._parts.streams())
        looks = partial(self.filters.outgoing, session.task.id, serving.patterns)
        watch = self._parts.requests.of(authenticated, running, session, serving, looks)
        secrets = self.filters.secrets(session.task.id)
        lease = self._executor.leases.of(planned, running, manifest, profile, watch, secrets)
        delivery = Delivery(pump, passed, running, session)
        ended = await self._execute(planned, running, session, manifest, profile, lease, reply, pump, delivery)
        span.ended()
        # 7. record: sealed before it is told.
        streams, (value, raw, problem) = await pump.close(), passed.result(ended.value, planned.result)
        value, raw = await passed.consult_value(value, raw)
        outcome = delivery.judged(ended.outcome, problem)
        finished = await record.outcome(journal, outcome, running, streams, raw, value, ended, lease, passed)
        if ended.refused is not None:
            raise RunnerError(passed.refusal(ended.refused))
        return finished

    def _planned(
        self, answer: Grant | Refusal, running: Running, session: Session, serving: Serving
    ) -> CallPlan | None:
        if isinstance(answer, Refusal):
            return None
        manifest, profile = serving.tools[answer.authenticated.tool], serving.task_profiles[session.task.profile]
        sandbox, tool = self._executor.sandbox_of(session.task.id, profile), serving.tool_profiles[manifest.profile]
        port = self._executor.leases.port(running.call, sandbox, manifest)
        planned = plan(answer, sandbox=sandbox, manifest=manifest, task=profile, tool=tool, port=port)
        return self._parts.admit(running, planned)

    async def _execute(
        self, planned: CallPlan, running: Running, session: Session, manifest: Manifest, profile: TaskProfile,
        lease: Lease, reply: Reply, pump: Pump, delivery: Delivery,
    ) -> Ended:  # fmt: skip
        """Total: every failure here is the end of a call, and says whether its process ever existed."""
        execution: Execution | None = None
        value: bytes | None = None
        try:
            await reply.accepted(running.call, replayed=False)
            async with lease:
                execution = await self._executor.start(planned, session.task.id, profile, manifest, running, lease)
                async with execution:
                    while not isinstance(event := await execution.next(pump.wait_ms, pump.most), Outcome):
                        if isinstance(event, Value):
                            value = event.data
                        else:
                            # What is left of a call that is over leaves with its result: one write, one wake-up.
                            await delivery.take(event, last=execution.guest.over and not running.sync)
                    await delivery.finish(last=not running.sync)
            return await execution.looked_at(execution.ended(event, running.cancelled, value))
        except RunnerError as error:
            return never(error.refused, running.cancelled) if execution is None else broken(error, execution)
        except Exception as error:
            return broken(error, execution)
