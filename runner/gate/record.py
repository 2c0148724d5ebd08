"""The two entries of a call: before its process exists, and after everything of it is gone."""

from __future__ import annotations

from typing import Any, Protocol

from runner.gate import entries
from runner.gate.approve import settle
from runner.gate.calls import Finished, Running
from runner.gate.entries import Journal, canonical, content
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.ledger.entry import Network, SecretUse, Stream, Workspace
from runner.model import Authenticated, CallPlan, Decision, Outcome


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


async def call(
    journal: Journal,
    authenticated: Authenticated,
    decision: Decision,
    planned: CallPlan | None,
    running: Running,
    session: Session,
    serving: Serving,
) -> None:
    """Write the call with its decision, and its plan when it was allowed; the task's beginning first."""
    before = session.task.context.view("", len(authenticated.chain) - 1)  # before anything waits: what policy saw
    if planned is not None:
        await session.tasks.begin(session.task)
    await session.provenance.ready()
    since = session.task.context.decided(authenticated.tool, allowed=planned is not None)
    manifest = serving.tools.get(authenticated.tool)
    arguments, named = content(canonical(authenticated.arguments), journal.salt())
    contents: tuple[bytes, ...] = (arguments,)
    kept = None
    if planned is not None and manifest is not None:
        whole, called = content(canonical(planned), journal.salt())  # it holds the arguments
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
) -> Finished:
    """Seal the call. `streams` are stdout and stderr, and what of them is kept with this entry; `raw` is a python
    tool's result as it came, `value` what it means."""
    stdout, stderr, contents = streams
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
    )
    receipt = await journal.seal(entry, sync=running.sync, value=raw, contents=contents)
    return Finished(
        ended, receipt, value, stdout.size if stdout is not None else 0, stderr.size if stderr is not None else 0
    )
