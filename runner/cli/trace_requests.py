"""`runner trace requests`, and what `runner trace show` says of a call's network: requests, alerts, credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import msgspec
import typer

from runner.cli.tables import print_table
from runner.cli.trace_options import STATE, Json, Key, LedgerDir, State, open_ledger, print_plain
from runner.evidence.requests import UNKNOWN, AlertView, RequestView, Wanted, requests
from runner.evidence.view import visible
from runner.ledger import entry as entries

EPILOG = (
    "Example: runner trace requests --task nightly --denied\n\n"
    "Example: runner trace requests --host api.example.com --secret api-key --json"
)
_OPAQUE = "opaque: its destination and bytes are known, and nothing that passed was read"
PATH = "path "  # how what is kept of a request's path is labelled


def show_requests(
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
    call: Annotated[str, typer.Option(help="Only of this call; daemon:broker for the daemon's own.")] = "",
    task: Annotated[str, typer.Option(help="Only of this task.")] = "",
    host: Annotated[str, typer.Option(help="Only to this host, exactly.")] = "",
    secret: Annotated[str, typer.Option(help="Only those that this credential went with.")] = "",
    denied: Annotated[bool, typer.Option("--denied", help="Only those that were denied.")] = False,
    since: Annotated[str, typer.Option(help="Only from this RFC 3339 UTC time on.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List what tools asked of the network, newest first: each request with its decision, and how it ended."""
    wanted = Wanted(call=call, task=task, host=host.lower(), secret=secret, since=since, denied=denied)
    found = list(islice(requests(open_ledger(state, key, ledger), wanted), limit))
    if as_json:
        print_plain([plain(view) for view in found])
        return
    columns = ("time", "call", "#", "request", "decision", "end", "bytes up/down", "credentials", "position")
    print_table(columns, [_row(view) for view in found])


def plain(view: RequestView) -> dict[str, Any]:
    """A request for programs."""
    shown: dict[str, Any] = {
        "position": view.position,
        "state": view.state,
        "request": msgspec.to_builtins(view.request),
    }
    if view.end is not None:
        shown |= {"end_position": view.end_position, "end": msgspec.to_builtins(view.end)}
    return shown


def _row(view: RequestView) -> tuple[str, ...]:
    asked, end = view.request, view.end
    decision = "allow" if view.state != "denied" else f"{asked.decision.effect}: {asked.part or 'policy'}"
    opaque = " (opaque)" if asked.visibility == "opaque" else ""
    moved = f"{end.up}/{end.down}" if end else ""
    went = " ".join(end.secrets) if end else ""
    when = asked.time[:19].replace("T", " ")
    what = where(view) + opaque
    return when, asked.call, str(asked.request), what, decision, _end(view), moved, went, str(view.position)


def where(view: RequestView, path: str = "") -> str:
    """Method and URL, as far as they were read; `path` where only its digest is in the entry."""
    asked = view.request
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    shown = asked.path or path or ("/(digest)" if asked.path_content else "")
    url = f"{asked.protocol}://{host}:{asked.port}{shown}{'?…' if asked.query else ''}"
    upgrade = f" to {asked.upgrade}" if asked.upgrade else ""
    return f"{asked.method} {url}{upgrade}".strip()


def _end(view: RequestView) -> str:
    end = view.end
    if end is None:
        return {"denied": "", "unknown": "unknown", "open": "open"}.get(view.state, "")
    return f"{end.status or 'done'}{f', {end.code}' if end.code else ''}"


# --- in `runner trace show` ------------------------------------------------------------------------------


def print_alerts(alerts: Sequence[AlertView]) -> None:
    """First of all, and red where there are colours."""
    for view in alerts:
        alert = view.alert
        text = f"{alert.severity.upper()} {alert.time}: {alert.what} appeared where it must not: {alert.where}"
        typer.secho(f"{visible(text)} (entry {view.position})", fg=typer.colors.RED, bold=True)


def path_of(view: RequestView) -> str:
    """The label of what is kept of its path."""
    return f"{PATH}{view.request.request} at {view.position}"


def print_requests(found: Sequence[RequestView], kept: Mapping[str, str]) -> None:
    """Each request with what decided it, what came of it, and what could be read. `kept` holds paths by label."""
    for view in found:
        asked, path = view.request, kept.get(path_of(view), "")
        print(f"  #{asked.request} {asked.time[11:23]} {visible(where(view, path))}")
        for line in _about(view):
            print(f"     {visible(line)}")


def _about(view: RequestView) -> list[str]:
    asked, decision = view.request, view.request.decision
    rules = ", ".join((*asked.allowed_by, *decision.rules))
    if view.state == "denied":
        by = f"{asked.part or 'policy'}{f' ({rules})' if rules else ''}"
        lines = [f"{decision.effect} by {by}: {decision.reason}"]
        lines += [f"lacks: {line}" for line in asked.missing.splitlines() if line]
    else:
        lines = [f"allow by {rules}" if rules else "allow"]
    if asked.visibility == "opaque":
        lines.append(_OPAQUE)
    elif asked.visibility == "head":
        lines.append("only its head was read")
    lines += _carried(asked)
    return lines + _outcome(view)


def _carried(entry: entries.Egress | entries.EgressEnd) -> list[str]:
    """What was found in it."""
    lines = [f"carries: {', '.join(entry.carries)}"] if entry.carries else []
    lines += [f"copies results of: {', '.join(entry.copies)}"] if entry.copies else []
    lines += [f"credentials out of their place: {', '.join(entry.misplaced)}"] if entry.misplaced else []
    return lines + (["a part of it could not be looked at"] if entry.unseen else [])


def _outcome(view: RequestView) -> list[str]:
    end = view.end
    if end is None:
        return {"unknown": [UNKNOWN], "open": ["it has no end yet"]}.get(view.state, [])
    status = f"status {end.status}, " if end.status else ""
    dialled = f"{end.address}, " if end.address else "nothing was dialled, "
    lines = [f"{dialled}{status}{end.up} bytes up, {end.down} down, {end.duration_us / 1000:.1f} ms"]
    lines += [f"ended: {end.code}: {end.reason}"] if end.code else []
    lines += [f"decided by {', '.join(end.rules)}"] if end.rules else []
    lines += _carried(end)
    lines += [f"credentials that went with it: {', '.join(end.secrets)}"] if end.secrets else []
    lines += [f"response kept: {end.response.digest[:16]}…, {end.response.size} bytes"] if end.response else []
    return lines + ([f"response not kept: {end.unkept}"] if end.unkept else [])


def print_secrets(used: Sequence[entries.SecretUse]) -> None:
    """Which credentials were brokered for the call: never a value."""
    for each in used:
        how = f"{each.delivery}, went with {each.used} requests" if each.delivery == "inject" else each.delivery
        facts = [f"lease {each.lease}"] + ([f"accessor {each.accessor}"] if each.accessor else [])
        facts += [f"fingerprint {each.fingerprint}"] if each.fingerprint else []
        print(f"  {visible(f'{each.name}: {how}; ' + ', '.join(facts))}")
