"""THE PATH of one call: authenticate, authorize, approve, plan, record, lease, execute, filter, record, reply.

Only the order is here. A refusal is recorded before it is told; call, decision and plan before a sandbox hears of it.
"""

from __future__ import annotations

from msgspec.structs import replace

from runner.errors import Refusal, RunnerError, refusal
from runner.gate import idempotency, record
from runner.gate.approve import approve, beyond
from runner.gate.authorize import authorize
from runner.gate.calls import Finished, Reply, Running
from runner.gate.parts import Parts
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.model import Authenticated, CallPlan, Grant, Manifest, Outcome, TaskProfile, ToolCall
from runner.sandbox.connection import Piece
from runner.sandbox.execute import Ended, Execution, Executor, broken, never
from runner.sandbox.lease import Lease
from runner.sandbox.plan import plan
from runner.stream.pump import Pump
from runner.stream.result import structured
from runner.telemetry import Span, Telemetry

ABANDONED = refusal("internal", "the call was abandoned")


class Pipeline:
    """The order of the steps. `parts` is what gate holds, `executor` what runs calls in sandboxes."""

    def __init__(self, parts: Parts, executor: Executor, telemetry: Telemetry) -> None:
        self._parts = parts
        self._executor = executor
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

    async def _decided(
        self, authenticated: Authenticated, running: Running, session: Session, reply: Reply, span: Span
    ) -> Finished:
        serving = self._parts.serving  # one catalogue for the whole call, whatever is swapped meanwhile
        # 2. authorize and 3. approve: total functions; only ALLOW becomes a grant.
        decision = beyond(authenticated, session.verified.tools) or authorize(
            authenticated, self._parts.view(authenticated, session), serving, serving.policies
        )
        span.decided(decision)
        answer = approve(authenticated, decision, running.call)
        # 4. plan, and record: call, decision and plan are in the ledger before anything else exists.
        planned = self._planned(answer, running, session, serving)
        await record.call(self._parts.journal, authenticated, decision, planned, running, session, serving)
        span.recorded()
        if isinstance(answer, Refusal) or planned is None:
            raise RunnerError(answer if isinstance(answer, Refusal) else ABANDONED)
        # --- a crash from here on is recoverable: at its next start the recorder seals the call as interrupted.
        # 5. lease, 6. execute and filter. Whatever happens now is an outcome, and every outcome is sealed.
        pump = Pump(self._parts.journal.recorder, limit=planned.output, **self._parts.streams())
        manifest, profile = serving.tools[planned.tool], serving.task_profiles[session.task.profile]
        watch = self._parts.requests.of(authenticated, running, session, serving)
        lease = self._executor.leases.of(planned, running, manifest, profile, watch)
        ended = await self._execute(planned, running, session, manifest, profile, lease, reply, pump)
        span.ended()
        # 7. record: sealed before it is told.
        value, problem = structured(ended.value, planned.result)
        finished = await record.outcome(
            self._parts.journal,
            ended.outcome if not problem else replace(ended.outcome, reason=problem),
            running,
            await pump.close(),
            None if problem else ended.value,
            value,
            ended,
            lease,
        )
        if ended.refused is not None:
            raise RunnerError(ended.refused)
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
        lease: Lease, reply: Reply, pump: Pump,
    ) -> Ended:  # fmt: skip
        """Total: every failure here is the end of a call, and says whether its process ever existed."""
        execution: Execution | None = None
        value: bytes | None = None
        try:
            await reply.accepted(running.call, replayed=False)
            async with lease:
                execution = await self._executor.start(planned, session.task.id, profile, manifest, running, lease)
                async with execution:
                    while not isinstance(event := await execution.next(), Outcome):
                        if isinstance(event, Piece):
                            # What is left of a call that is over leaves with its result: one write, one wake-up.
                            last = execution.guest.over and not running.sync
                            await self._deliver(event, running, session, pump, last=last)
                        else:
                            value = event.data
            return await execution.looked_at(execution.ended(event, running.cancelled, value))
        except RunnerError as error:
            return never(error.refused, running.cancelled) if execution is None else broken(error, execution)
        except Exception as error:
            return broken(error, execution)

    async def _deliver(self, piece: Piece, running: Running, session: Session, pump: Pump, *, last: bool) -> None:
        running.received(len(piece.data))
        chunk = await pump.take(piece.stream, piece.data)
        if chunk is not None and (sent := await running.deliver(chunk, last=last)):
            pump.delivered(chunk.stream, sent)
            session.task.context.delivered(running.call)
        if pump.capped:
            running.cancel("output_capped", f"more than {running.output} bytes of output")
