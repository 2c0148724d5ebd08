"""`runner trace`: list, show, verify, follow and export the evidence. Reads files; asks no daemon. The proofs are in
`trace_proof.py`, the key's replacement in `trace_key.py`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.cli import trace_key, trace_proof, trace_requests, trace_tree, trace_usage
from runner.cli.tables import print_table
from runner.cli.trace_options import STATE, Json, Key, LedgerDir, State, content_folder, open_ledger, print_plain
from runner.errors import EXIT_UNVERIFIED, refuse
from runner.evidence.content import SALT, ContentReader
from runner.evidence.export import export as export_ledger
from runner.evidence.openings import OpeningView, openings
from runner.evidence.read import Ledger, follow, load_given
from runner.evidence.report import SIGNED, Report
from runner.evidence.requests import RequestView, of_call
from runner.evidence.verify import verify as verify_ledger
from runner.evidence.view import CallView, Filter, calls, find, line, proven, sandbox, visible
from runner.ledger import entry as entries

app = typer.Typer(
    help="Read the evidence: every call, decision and outcome, in a ledger that anyone can verify.",
    no_args_is_help=True,
)
app.command("tree", epilog=trace_tree.EPILOG)(trace_tree.show_tree)
app.command("usage", epilog=trace_usage.EPILOG)(trace_usage.show_usage)
app.command("requests", epilog=trace_requests.EPILOG)(trace_requests.show_requests)
app.command()(trace_proof.anchor)
app.command()(trace_proof.prove)
app.command()(trace_proof.consistency)
app.command()(trace_proof.check)
app.command()(trace_key.rotate_key)

_WIDE = 1000  # characters of a line that no terminal will wrap
_SHOWN = 4096  # characters of each piece of content on a terminal


@app.command("list")
def list_calls(
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
    task: Annotated[str, typer.Option(help="Only this task.")] = "",
    agent: Annotated[str, typer.Option(help="Only this agent, or a sub-agent so named by its parent.")] = "",
    tool: Annotated[str, typer.Option(help="Only this tool.")] = "",
    effect: Annotated[str, typer.Option(help="Only this decision: allow, deny, modify, step_up, defer.")] = "",
    outcome: Annotated[str, typer.Option(help="Only this outcome: exited, timed_out, oom, …, running.")] = "",
    since: Annotated[str, typer.Option(help="Only from this RFC 3339 UTC time on.")] = "",
    host: Annotated[str, typer.Option(help="Only calls that asked for this host, exactly.")] = "",
    alerts: Annotated[bool, typer.Option("--alerts", help="Only calls with a critical alert.")] = False,
    secret: Annotated[str, typer.Option(help="Only ended calls that this credential was brokered for.")] = "",
    fingerprint: Annotated[str, typer.Option(help="The same, by the keyed fingerprint of its value.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List calls with their decision and outcome, newest first.

    Example: runner trace list --task nightly --effect deny --limit 10"""
    wanted = Filter(
        task=task, agent=agent, tool=tool, effect=effect, outcome=outcome, since=since, host=host.lower(),
        alerts=alerts, secret=secret, fingerprint=fingerprint,
    )  # fmt: skip
    found = islice(calls(open_ledger(state, key, ledger), wanted), limit)
    if as_json:
        print_plain([_view(view) for view in found])
        return
    columns = ("time", "call", "agent/task", "tool", "decision", "outcome", "ms", "position")
    print_table(columns, [_row(view) for view in found])


def _row(view: CallView) -> tuple[str, ...]:
    call, used = view.call, view.outcome.used if view.outcome else None
    who = f"{'>'.join((call.who.agent, *call.who.asserted))}/{call.who.task}"
    milliseconds = f"{used.wall_us / 1000:.1f}" if used else ""
    # Short for a person, and UTC as everywhere; --json has the whole of it.
    today = datetime.now(UTC).date().isoformat()
    when = call.time[11:19] if call.time.startswith(today) else call.time[:16].replace("T", " ")
    return (when, call.call, who, call.tool, call.decision.effect, view.state, milliseconds, str(view.position))


def _view(view: CallView) -> dict[str, Any]:
    shown: dict[str, Any] = {"position": view.position, "call": msgspec.to_builtins(view.call)}
    if view.outcome:
        shown |= {
            "outcome_position": view.outcome_position,
            "outcome": msgspec.to_builtins(view.outcome),
            "receipt": view.receipt,
        }
    return shown


@app.command()
def show(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
    content: Annotated[bool, typer.Option("--content", help="Show output and plan too, not only arguments.")] = False,
    as_json: Json = False,
) -> None:
    """Show one call: who asked for what, what was decided and planned, how it ended, and where that is recorded.

    Example: runner trace show 0197f0c2a1b37cc2 --content"""
    opened = open_ledger(state, key, ledger)
    view = find(opened, call)
    if view is None:
        raise refuse("unknown_call", "no such call in this ledger", field=call, next_step="see `runner trace list`")
    store = content_folder(state, ledger)
    end = view.outcome_position if view.outcome else view.position
    steps = proven(opened, end)
    asked, alerts = of_call(opened, view)
    kept = dict(_content(opened, store, _named(view, asked, everything=content))) if store else {}
    tokens = trace_tree.delegation(opened, [view], store, keep=1)
    made = sandbox(opened, view.call.plan.sandbox) if view.call.plan else None
    opened_by = openings(opened, view)
    if as_json:
        proof = {"included": steps is not None, "signed_size": opened.signed}
        shown: dict[str, Any] = {"content": kept, "delegation": tokens, "sandbox": made and made[1]}
        shown |= {"requests": [trace_requests.plain(each) for each in asked], "alerts": alerts}
        shown |= {"raw_openings": opened_by}
        print_plain(_view(view) | proof | shown)
        return
    trace_requests.print_alerts(alerts)
    where = (
        f"in the tree of {opened.signed} signed entries, by a proof of {steps} hashes, checked"
        if steps is not None
        else "not under a signed checkpoint"
    )
    sections = {"call": _without_chain(view.call)}
    if view.outcome:
        sections["outcome"] = {**msgspec.to_builtins(view.outcome), "secrets": [u.name for u in view.outcome.secrets]}
    if made:
        sections[f"sandbox (measured, entry {made[0]})"] = msgspec.to_builtins(made[1].isolation)
    for name, fields in sections.items():
        print(name)
        rows = list(_flat(fields))
        wide = max(len(path) for path, _ in rows)
        for path, value in rows:
            print(f"  {path:<{wide}}  {visible(str(value))}")
    if view.outcome and view.outcome.secrets:
        print("secrets")
        trace_requests.print_secrets(view.outcome.secrets)
    _print_openings(opened_by)
    if asked:
        print("requests")
        trace_requests.print_requests(asked, kept)
    print("delegation")
    for root in tokens:
        trace_tree.draw(root, counted=False)
    print("record")
    print(f"  position  {view.position}" + (f", outcome {view.outcome_position}" if view.outcome else ""))
    print(f"  receipt   {view.receipt or 'none: the call has no outcome'}")
    print(f"  included  {where}")
    for name, text in kept.items():
        if name.startswith(trace_requests.PATH):
            continue  # it stands with its request
        print(name)
        print("  " + visible(text[:_SHOWN], lines=True).replace("\n", "\n  ") + ("…" if len(text) > _SHOWN else ""))


def _print_openings(found: Sequence[OpeningView]) -> None:
    if found:
        print("raw output, handed over still encrypted")
    for each in found:
        said = f"{each.time[:19]}Z, entry {each.position}, to {each.operator} ({each.known}): {each.why}"
        print(f"  {visible(said)}")


def _without_chain(call: entries.Call) -> dict[str, Any]:
    """The call's fields, but for what its tree of tokens shows better."""
    fields: dict[str, Any] = msgspec.to_builtins(call)
    return {name: value for name, value in fields.items() if name not in ("chain", "delegation")}


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", value


_Named = list[tuple[str, int, entries.Content | entries.Stream | None]]  # a label, who names it, and what


def _named(view: CallView, asked: Sequence[RequestView], *, everything: bool) -> _Named:
    """What of the call's content to show; the paths of requests always, where only digests are in their entries."""
    begun, ended = view.position, view.outcome_position
    named: _Named = [("arguments", begun, view.call.arguments)]
    named += [(trace_requests.path_of(each), each.position, each.request.path_content) for each in asked]
    if everything:
        named.append(("plan", begun, view.call.plan.plan if view.call.plan else None))
        if view.outcome:
            named += [(name, ended, getattr(view.outcome, name)) for name in ("stdout", "stderr", "result")]
        named += [
            (f"response {each.request.request}", each.end_position, each.end.response) for each in asked if each.end
        ]
    return named


def _content(ledger: Ledger, folder: Path, named: _Named) -> Iterator[tuple[str, str]]:
    if not any(content for _, _, content in named):
        return
    reader = ContentReader(folder)
    try:
        for name, position, content in named:
            if content is not None:
                data = reader.get(content.digest, position)
                if data is None:
                    gone = _gone(ledger, reader.pruned(content.digest))
                    yield name, f"{gone}: {content.digest}"
                else:
                    salt = SALT if len(data) == content.size + SALT else 0
                    yield name, data[salt:].decode("utf-8", "backslashreplace")
    finally:
        reader.close()


@app.command()
def verify(
    state: State = STATE,
    ledger: Annotated[Path | None, typer.Option(metavar="DIR", help="A ledger folder or an export of one.")] = None,
    key: Key = "",
    no_content: Annotated[bool, typer.Option("--no-content", help="Leave the content store out.")] = False,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint kept elsewhere that the ledger must contain."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify the whole ledger offline: entries, tiles, checkpoints, order of calls, content. Exit status 6 when it
    does not verify.

    Example: runner trace verify --ledger ./evidence --key daemon.vkey --no-content"""
    folder = ledger or state / "ledger"
    verifier = load_given(key, folder)
    content = None if no_content else content_folder(state, ledger)
    anchors = [trace_proof.checkpoint_file(path) for path in anchor or []]
    with _progress(hidden=as_json) as progress:
        report = verify_ledger(folder, verifier.text, content, progress, anchors)
    if as_json:
        print_plain(report)
    else:
        _print_report(report, own_key=not key, anchors=len(anchors))
    if not report.ok:
        raise typer.Exit(EXIT_UNVERIFIED)


def _gone(ledger: Ledger, listed: str) -> str:
    """Why content is not there, when the list `listed` says that it was pruned: a list counts with its tombstone."""
    if not listed:
        return "not in the content store"
    named = ledger.first_with([b'"kind":"prune"', listed.encode()], 0)
    if named is None or named[0] >= ledger.signed:
        return "not in the content store, and pruned by a list that no signed entry names"
    return f"pruned, as entry {named[0]} says"


@contextmanager
def _progress(*, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console  # here, so that a command in a pipe starts sooner
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_report(report: Report, *, own_key: bool, anchors: int) -> None:
    for check in report.checks:
        mark = "-" if check.skipped else "✓" if check.ok else "✗"
        print(f"{mark} {check.number} {check.title}" + (" (left out)" if check.skipped else ""))
        for finding in check.findings:
            print(f"    {visible(finding.place)}: {visible(finding.problem)}")
        if check.count > len(check.findings):
            print(f"    … and {check.count - len(check.findings)} more")
    for note in report.notes:
        print(f"note: {visible(note)}")
    if anchors and report.checks[SIGNED - 1].ok:
        print(f"note: it holds all that {anchors} checkpoint{'s' * (anchors > 1)} kept elsewhere signed")
    if own_key:
        print("note: the key came from the ledger's own folder; keep a copy elsewhere and give it with --key")
    verdict = "verified" if report.ok else "NOT VERIFIED"
    print(
        f"{verdict}: {report.origin}, {report.entries} entries, {report.signed} signed, "
        f"{report.open_calls} open calls, in {report.seconds:.1f} s"
    )


@app.command()
def tail(
    state: State = STATE,
    key: Key = "",
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on as entries are signed.")] = False,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last entries.")] = 20,
    as_json: Json = False,
) -> None:
    """Print the last entries, one a line, and with -f those that follow.

    Example: runner trace tail -f"""
    ledger = open_ledger(state, key)
    start = max(ledger.signed - count, 0)
    source = follow(ledger, start) if follow_on else ledger.entries(start)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    try:
        for position, data in source:
            if as_json:
                print(json.dumps({"position": position, "entry": json.loads(data)}), flush=True)
            else:
                print(line(position, data, width), flush=True)
    except KeyboardInterrupt:
        raise typer.Exit from None


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    state: State = STATE,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Write the signed ledger as a C2SP tlog-tiles folder: tiles, entries, checkpoint and key. Content stays here.

    Example: runner trace export ./evidence"""
    count = export_ledger(open_ledger(state, key), target)
    if as_json:
        print_plain({"entries": count, "folder": str(target)})
        return
    print(f"{count} entries in {target}; verify with: runner trace verify --ledger {target}")
