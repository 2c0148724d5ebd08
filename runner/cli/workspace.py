"""`runner task diff`: what a task changed in its workspace, between two states that the evidence or engine knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_table
from runner.errors import refuse
from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.view import find
from runner.ledger import tree
from runner.wire import admin

EPILOG = "Example: runner task diff t-42 --since 0197f0c2a1b37cc2"
_SHORT = 12  # digits of a digest on a terminal


def diff(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    since: Annotated[
        str, typer.Option(metavar="CALL", help="Since the end of this call, which needs a snapshot; else since empty.")
    ] = "",
    until: Annotated[
        str, typer.Option(metavar="CALL", help="Until the end of this call; else as it is now, read from the host.")
    ] = "",
    state: Annotated[
        Path, typer.Option(envvar="RUNNER_STATE", metavar="DIR", help="The daemon's state folder, for calls.")
    ] = Path("/var/lib/toolrunner"),
    socket: Socket = ADMIN_SOCKET,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a task changed in its workspace: added, removed, changed, with mode, size and digest before and after.

    Only digests are known, not texts: for a diff of texts an agent calls workspace_diff. It does not see owners, times,
    extended attributes, which hard links belong together, or what came and went between the two states. A state
    named by a call needs a profile with `snapshot`; its root is checked against the ledger."""
    before = _at_call(state, task, since) if since else {}
    after = _at_call(state, task, until) if until else _now(socket, task)
    changes = tree.compare(before, after)
    if as_json:
        shown = {
            "task": task,
            "since": since,
            "until": until,
            "files": len(after),
            "bytes": tree.total(list(after.values())),
            "changes": [{"change": change.kind} | msgspec.to_builtins(change) for change in changes],
        }
        print(json.dumps(shown, indent=2, sort_keys=True))  # all ASCII: names are hostile
        return
    print_table(("", "path", "before", "after"), [_row(change) for change in changes])
    counts = [f"{sum(change.kind == kind for change in changes)} {kind}" for kind in ("added", "removed", "changed")]
    print(f"\n{', '.join(counts)}; {len(after)} files and folders of {tree.total(list(after.values()))} bytes")


def _row(change: tree.Change) -> tuple[str, ...]:
    return (change.kind, change.path, _told(change.before), _told(change.after))


def _told(thing: tree.Thing | None) -> str:
    if thing is None:
        return "-"
    if thing.type == "file":
        return f"{thing.mode} {thing.size} B {thing.sha256[:_SHORT]}"
    return f"{thing.mode} {thing.type}" + (f" to {thing.target}" if thing.type == "link" else "")


def _now(socket: Path, task: str) -> dict[str, tree.Thing]:
    answer = ask(socket, admin.ReadWorkspace(task=task))
    if not isinstance(answer, admin.WorkspaceView):
        raise refuse("protocol", "the daemon answered something else")
    return tree.read(tree.manifest(answer.lines, b""))


def _at_call(state: Path, task: str, call: str) -> dict[str, tree.Thing]:
    """The workspace as the snapshot in the call's outcome has it. Raises `RunnerError` when there is none, or when
    what is kept is not what the ledger names."""
    folder = state / "ledger"
    view = find(Ledger(folder, load_verifier("", folder)), call)
    if view is None or view.call.who.task != task:
        raise refuse("unknown_call", f"no such call of task `{task[:64]}` in the ledger", field=call)
    found: Any = view.outcome.workspace if view.outcome is not None else None
    if found is None or found.manifest is None:
        reason = found.problem if found is not None else "the call has none"
        raise refuse(
            "unknown_call",
            f"no snapshot of the workspace at the end of this call: {reason}",
            field=call,
            next_step="name a call that may write the workspace, under a profile with snapshot = changed or full",
        )
    reader = ContentReader(state / "content")
    try:
        kept = reader.get(found.manifest.digest)
    finally:
        reader.close()
    if kept is None or tree.root(kept) != found.root:
        raise refuse("ledger", "the manifest is missing, or is not the one that the ledger names", field=call)
    return tree.read(kept)
