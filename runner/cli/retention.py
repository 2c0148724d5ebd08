"""`runner trace prune|hold|release|holds`: how long content is kept, and what must be kept. Entries stay for ever."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from runner import config
from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_json, print_table
from runner.errors import refuse
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.view import visible
from runner.ledger import entry as entries
from runner.wire import admin

_PATIENCE_S = 3600.0  # a ledger of many millions of entries is read through three times
_AGE = re.compile(r"^(\d{1,5})([hdw])\Z")
_HOURS = {"h": 1, "d": 24, "w": 168}
_NEEDLES = (b'"kind":"hold"', b'"kind":"release"')

Why = Annotated[str, typer.Option(help="Recorded with the act.")]
Task = Annotated[list[str] | None, typer.Option("--task", help="Only calls of this task; may be repeated.")]
Agent = Annotated[list[str] | None, typer.Option("--agent", help="Only calls of this agent; may be repeated.")]
Tool = Annotated[list[str] | None, typer.Option("--tool", help="Only calls of this tool; may be repeated.")]
State = Annotated[
    Path, typer.Option("--state", envvar="RUNNER_STATE", metavar="DIR", help="The daemon's state folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def mount(app: typer.Typer) -> None:
    """Put the commands under `runner trace`."""
    app.command(epilog='Example: runner trace prune --older-than 90d --yes --why "retention plan 2026-3"')(prune)
    app.command(epilog='Example: runner trace hold case-17 --task nightly --why "counsel, 2026-02-01"')(hold)
    app.command(epilog='Example: runner trace release case-17 --why "settled"')(release)
    app.command(epilog="Example: runner trace holds --json")(holds)


def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Only calls older than 12h, 90d or 8w.")] = "",
    before: Annotated[str, typer.Option(metavar="TIME", help="Only calls before this RFC 3339 time.")] = "",
    larger: Annotated[str, typer.Option(metavar="SIZE", help="Only pieces of content larger than 64KiB, 1MiB, …")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Only raw output, kept under escrow.")] = False,
    task: Task = None,
    agent: Agent = None,
    tool: Tool = None,
    why: Why = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what would go.")] = False,
    socket: Socket = ADMIN_SOCKET,
    as_json: Json = False,
) -> None:
    """Remove what ended calls kept: arguments, plans, output, results, workspace manifests, raw output. Each option
    narrows.

    Their entries stay, with every digest, and a tombstone says what went, why and by whom: the ledger verifies as
    before. What a hold is on, what another call needs, and what calls that run have kept so far, stays. Archives of
    images that no kept call names any more go too, each with a tombstone of its own; the lists of their packages stay.
    Removal is for good."""
    found = ask(
        socket,
        admin.Prune(
            why=why,
            before=_before(older_than, before),
            larger=_size(larger),
            raw=raw,
            tasks=tuple(task or ()),
            agents=tuple(agent or ()),
            tools=tuple(tool or ()),
            dry=not yes,
        ),
        _PATIENCE_S,
    )
    if not isinstance(found, admin.Pruned):
        raise refuse("protocol", "the daemon answered something else")
    if as_json:
        print_json({"pruned": yes, "pieces": found.pieces, "bytes": found.size, "held": found.held,
                    "more": found.more, "position": _entry(found.position),
                    "images": [{"image": each.image, "archive": each.archive, "bytes": each.size,
                                "position": _entry(each.position)} for each in found.images]})  # fmt: skip
        return
    held = f"; {found.held} more are on hold" if found.held else ""
    if not found.pieces:
        print(f"no content to prune{held}")
    elif not yes:
        print(f"would prune {_pieces(found)}{held}")
    else:
        print(f"pruned {_pieces(found)}{held}; the tombstone is entry {found.position}")
    for each in found.images:
        what = (
            f"the archive of image {each.image[:19]}" if each.image else f"an archive of no image, {each.archive[:12]}"
        )
        done = f"removed {what}, {each.size} bytes; the tombstone is entry {each.position}"
        print(done if yes else f"would remove {what}, {each.size} bytes: no call that is kept names it")
    if not yes and (found.pieces or found.images):
        print("add --yes and --why to do it")
    if found.more:
        print("there is more: run it again")


def _entry(position: int) -> int | None:
    return position if position >= 0 else None


def _pieces(found: admin.Pruned) -> str:
    return f"{found.pieces} pieces of content, {found.size} bytes"


def hold(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    before: Annotated[str, typer.Option(metavar="TIME", help="Only calls before this RFC 3339 time.")] = "",
    task: Task = None,
    agent: Agent = None,
    tool: Tool = None,
    why: Why = "",
    socket: Socket = ADMIN_SOCKET,
    as_json: Json = False,
) -> None:
    """Keep the content of calls, whatever is pruned: legal hold. Without an option, of every call. Calls to come are
    meant too. Holds of one name add up."""
    message = admin.Hold(
        name=name, why=why, before=_before("", before),
        tasks=tuple(task or ()), agents=tuple(agent or ()), tools=tuple(tool or ()),
    )  # fmt: skip
    _told(ask(socket, message, _PATIENCE_S), f"{name} holds", as_json)


def release(
    name: Annotated[str, typer.Argument(help="The hold's name.")],
    why: Why = "",
    state: State = Path("/var/lib/toolrunner"),
    socket: Socket = ADMIN_SOCKET,
    as_json: Json = False,
) -> None:
    """End a hold. Nothing is pruned by that."""
    if name not in {entry.name for _, entry in _active(state)}:
        raise refuse(
            "arguments", "there is no hold of this name", field=name[:64], next_step="see `runner trace holds`"
        )
    _told(ask(socket, admin.Release(name=name, why=why), _PATIENCE_S), f"{name} holds no more", as_json)


def holds(state: State = Path("/var/lib/toolrunner"), as_json: Json = False) -> None:
    """List the holds that hold, oldest first."""
    found = _active(state)
    if as_json:
        print_json([{"position": position, **_plain(entry)} for position, entry in found])
        return
    columns = ("position", "since", "name", "tasks", "agents", "tools", "before", "by", "why")
    rows = []
    for position, entry in found:
        labels = [" ".join(names) for names in (entry.of.tasks, entry.of.agents, entry.of.tools)]
        since = entry.time[:19] + "Z"
        rows.append((str(position), since, entry.name, *labels, entry.of.before, str(entry.by), visible(entry.why)))
    print_table(columns, rows)


def _plain(entry: entries.Hold) -> dict[str, object]:
    labels = {"tasks": entry.of.tasks, "agents": entry.of.agents, "tools": entry.of.tools, "before": entry.of.before}
    return {"name": entry.name, "since": entry.time, "why": entry.why, "by": entry.by, **labels}


def _active(state: Path) -> list[tuple[int, entries.Hold]]:
    """Holds without a release, with their positions. What is not signed yet is not in it."""
    folder = state / "ledger"
    ledger = Ledger(folder, load_verifier("", folder))
    found: list[tuple[int, entries.Hold]] = []
    for position, data in ledger.entries():
        if any(needle in data for needle in _NEEDLES):
            entry = entries.decode(data)
            if isinstance(entry, entries.Hold):
                found.append((position, entry))
            elif isinstance(entry, entries.Release):
                found = [(at, each) for at, each in found if each.name != entry.name]
    return found


def _told(done: admin.ToOperator, what: str, as_json: bool) -> None:
    if not isinstance(done, admin.Done):
        raise refuse("protocol", "the daemon answered something else")
    if as_json:
        print_json({"position": done.position})
    else:
        print(f"{what}; recorded as entry {done.position}")


def _before(older_than: str, before: str) -> str:
    """The time of `--older-than` or `--before`, as entries write it."""
    if older_than and before:
        raise typer.BadParameter("give one of --older-than and --before")
    if older_than:
        age = _AGE.match(older_than)
        if age is None:
            raise typer.BadParameter(f"{older_than!r} is not an age: write 12h, 90d or 8w", param_hint="--older-than")
        moment = datetime.now(UTC) - timedelta(hours=int(age[1]) * _HOURS[age[2]])
    elif before:
        try:
            moment = datetime.fromisoformat(before)
        except ValueError:
            raise typer.BadParameter(f"{before!r} is no RFC 3339 time", param_hint="--before") from None
        if moment.tzinfo is None:
            raise typer.BadParameter(f"{before!r} has no time zone: add Z", param_hint="--before")
    else:
        return ""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _size(text: str) -> int:
    try:
        return config.size(text) if text else 0
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--larger") from None
