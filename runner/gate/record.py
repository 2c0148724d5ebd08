"""The two entries of a call: before its process exists, and after everything of it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from runner.errors import refuse
from runner.gate import entries
from runner.gate.approve import settle
from runner.gate.calls import Finished, Running
from runner.gate.entries import Filter, Journal, canonical, content
from runner.gate.labels import widened
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.ledger.entry import Network, Raw, SecretUse, Stream, Workspace
from runner.model import Authenticated, CallPlan, Decision, Marked, Outcome


class Left(Protocol):
    """What the sandbox says of a call that is over: `runner.sandbox.execute.Ended`."""

    @property
    def walls(self) -> tuple[str, ...]:
        """Forbidden acts that its launcher was refused."""

    @property
    def workspace(self) -> Workspace | None:
        """What it left there."""


class Held(Protocol):
    """What it held of network and credentials: `runner.sandbox.lease.Lease`."""

    network: Network | None
    secrets: tuple[SecretUse, ...]


class Escrow(Protocol):
    """What took its output as it came: `runner.stream.escrow.Escrow`."""

    async def close(self, *, found: bool, held: bool) -> tuple[Raw | None, tuple[bytes, ...]]:
        """What the outcome says of it, and what is kept with that entry."""


class Passed(Protocol):
    """What its output passed: `runner.stream.filters.CallFilter`."""

    held: str  # the rule that found what is kept back

    @property
    def raw(self) -> Escrow | None:
        """Who keeps it as it came."""

    def found(self) -> dict[str, int]:
        """How often each rule found something."""

    @property
    def all_labels(self) -> frozenset[str]:
        """What it was."""

    def came_from(self, reached: Sequence[str]) -> tuple[tuple[str, ...], tuple[Marked, ...]]:
        """The call has reached these hosts: who has a part in its output that nobody vouches for, and which parts of
        it speak to a model. Asked before the labels are."""


class Carries(Protocol):
    """What its arguments carry: `runner.stream.outgoing.Carries`."""

    @property
    def labels(self) -> frozenset[str]:
        """Labels."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Calls whose labelled results they copy."""


async def call(
    journal: Journal,
    authenticated: Authenticated,
    decision: Decision,
    planned: CallPlan | None,
    running: Running,
    session: Session,
    serving: Serving,
    filter_: Filter,
    carries: Carries,
) -> None:
    """Write the call with its decision, and its plan when it was allowed; the task's beginning first. Arguments are
    kept as the filter leaves them; the tool gets them as they are.

    Raises `RunnerError` (arguments) for an idempotency key that the filter would change: it is looked for later."""
    if filter_.text(key := authenticated.call.idempotency_key) != key:
        step = "take a random one, or a number of your own"
        raise refuse("arguments", "it holds a secret or personal data", field="idempotency_key", next_step=step)
    before = session.task.context.view("", len(authenticated.chain) - 1)  # before anything waits: what policy saw
    if planned is not None:
        await session.tasks.begin(session.task)
    await session.provenance.ready()
    since = session.task.context.decided(authenticated.tool, allowed=planned is not None)
    manifest = serving.tools.get(authenticated.tool)
    asked = filter_.value(authenticated.arguments)
    arguments, named = content(canonical(asked), journal.salt())
    contents: tuple[bytes, ...] = (arguments,)
    kept = None
    if planned is not None and manifest is not None:
        holds = planned if asked is authenticated.arguments else filter_.again(msgspec.to_builtins(planned))
        whole, called = content(canonical(holds), journal.salt())  # it holds the arguments
        contents = (arguments, whole)
        kept = entries.planned(planned, manifest.profile, called)
    entry = entries.call_entry(
        authenticated,
        settle(decision),
        call=running.call,
        time=journal.stamp(),
        arguments=named,
        tool_digest=manifest.digest if manifest is not None else "",
        facts=session.facts,
        provenance=session.provenance,
        context=before,
        untrusted=since,
        plan=kept,
        carries=widened(carries.labels),
        copies=carries.sources,
        filter_=filter_,
    )
    # Who asked for sync has the entry on disk before a process of the call exists; for others it follows in 50 ms.
    sync = running.sync and planned is not None
    await journal.write(entry, sync=sync, arguments=running.arguments, contents=contents)
    running.recorded = True


async def outcome(
    journal: Journal,
    ended: Outcome,
    running: Running,
    streams: tuple[Stream | None, Stream | None, tuple[bytes, ...]],
    raw: bytes | None,
    value: Any,
    left: Left,
    held: Held,
    passed: Passed,
) -> Finished:
    """Seal the call. `streams` are stdout and stderr, and what of them is kept with this entry; `raw` is a python
    tool's result as it is kept, `value` what it means. All of it has passed the filters."""
    stdout, stderr, contents = streams
    sources, marked = passed.came_from(held.network.hosts if held.network is not None else ())
    found, labels = passed.found(), tuple(sorted(passed.all_labels))
    as_it_came = None
    if passed.raw is not None:
        as_it_came, sealed = await passed.raw.close(found=bool(found), held=bool(passed.held))
        contents += sealed
    kept = None
    if raw is not None:
        result, kept = content(raw, journal.salt())
        contents = (*contents, result)
    entry = entries.outcome_entry(
        ended,
        call=running.call,
        task=running.task,
        time=journal.stamp(),
        stdout=stdout,
        stderr=stderr,
        result=kept,
        walls=left.walls,
        workspace=left.workspace,
        network=held.network,
        secrets=held.secrets,
        filtered=found,
        labels=labels,
        raw=as_it_came,
        sources=sources,
        marked=marked,
    )
    receipt = await journal.seal(entry, sync=running.sync, value=raw, contents=contents)
    out, err = (stream.size if stream is not None else 0 for stream in (stdout, stderr))
    return Finished(ended, receipt, value, out, err, found, labels, sources, marked)
