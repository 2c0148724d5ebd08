"""`runner admin`: the operators themselves: who the daemon takes you for, a key to be known by, and what was done."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.cli import keys
from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_json, print_table
from runner.config import Config
from runner.errors import RunnerError, refuse
from runner.evidence.acts import KINDS, Act, Differences, Wanted, acts
from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.view import visible
from runner.token.keys import SigningKey, generate, private_file
from runner.wire import admin

app = typer.Typer(
    help="Operators: who they are, what they may do, what they did. With a key: `runner --operator-key FILE admin …`",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
State = Annotated[
    Path, typer.Option("--state", envvar="RUNNER_STATE", metavar="DIR", help="The daemon's state folder.")
]

_RELOAD_S = 300.0  # gate and engine compile everything anew, and engine may be starting


@app.command(epilog="Example: runner admin whoami --json")
def whoami(socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """Whom the daemon takes you for, how it knows, and what you may do."""
    answer = ask(socket, admin.Whoami())
    if not isinstance(answer, admin.WhoamiView):
        raise refuse("protocol", "the daemon answered something else")
    known = f"key {answer.key}" if answer.key else f"uid {answer.uid}"
    if json:
        print_json(
            {
                "name": answer.name,
                "uid": answer.uid,
                "key": answer.key,
                "known_by": "key" if answer.key else "uid",
                "roles": answer.roles,
                "may": answer.may,
            }
        )
        return
    rows = [("operator", answer.name), ("known by", known)]
    rows += [("roles", ", ".join(answer.roles)), ("may", ", ".join(answer.may))]
    print_table(("fact", "value"), rows)


@app.command(epilog="Example: runner admin key ~/.config/toolrunner/ann.key --name ann --role containment")
def key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes (0600); never over another file.")],
    name: Annotated[str, typer.Option(help="The operator's name.")] = "NAME",
    role: Annotated[list[str] | None, typer.Option(help="A role. Repeatable.")] = None,
    json: Json = False,
) -> None:
    """Make a key to be known by, and print the section of runner.toml that names you by it."""
    made = SigningKey(generate())
    keys.write_new(file, private_file(made))
    facts = {"private_key": str(file), "key": made.public.jwk()["x"], "thumbprint": made.public.thumbprint}
    if json:
        print_json(facts)
        return
    roles = ", ".join(f'"{each}"' for each in role or ["ROLE"])
    print(f"wrote {file}; for the daemon's configuration:\n")
    print(f'[[operators]]\nname = "{name}"\nkey = "{facts["key"]}"\nroles = [{roles}]')


@app.command(epilog='Example: runner admin reload --why "the tests may run"')
def reload(
    why: Annotated[str, typer.Option(help="Recorded with the act.")] = "",
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Read configuration, profiles, tools and policies anew, as SIGHUP does, but in your name. What takes two persons
    waits for `runner admin confirm`."""
    answer = ask(socket, admin.Reload(why=why), _RELOAD_S)
    if isinstance(answer, admin.Done):
        said = f"in force, position {answer.position}{_stopped(answer)}"
        _say({"state": "in force", "position": answer.position, "stopped": answer.affected}, said, json)
    elif isinstance(answer, admin.Waits):
        print_waits(answer, "not in force", json=json)
    else:
        raise refuse("protocol", "the daemon answered something else")


@app.command(epilog="Example: runner admin pending --json")
def pending(socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """What waits for a second operator."""
    answer = ask(socket, admin.ListPending())
    if not isinstance(answer, admin.PendingActs):
        raise refuse("protocol", "the daemon answered something else")
    if json:
        print_json([_facts(act) for act in answer.acts])
        return
    for act in answer.acts:
        print(_waiting(act))
    if not answer.acts:
        print("nothing waits for a second operator", file=sys.stderr)


@app.command(epilog="Example: runner admin confirm 4f2a91c0")
def confirm(
    id_: Annotated[str, typer.Argument(metavar="ID", help="What waits, as `runner admin pending` names it.")],
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Be the second operator: what another one asked for is carried out, if it is still the same. What it changes,
    line by line: `runner admin log --kind pending --diff`."""
    answer = ask(socket, admin.Confirm(id=id_), _RELOAD_S)
    if not isinstance(answer, admin.Done):
        raise refuse("protocol", "the daemon answered something else")
    said = f"confirmed and carried out, position {answer.position}{_stopped(answer)}"
    _say({"state": "in force", "position": answer.position, "stopped": answer.affected}, said, json)


@app.command(epilog='Example: runner admin withdraw 4f2a91c0 --why "it was the wrong file"')
def withdraw(
    id_: Annotated[str, typer.Argument(metavar="ID", help="What waits, as `runner admin pending` names it.")],
    why: Annotated[str, typer.Option(help="Recorded with the act.")] = "",
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Take back what waits for a second operator, so that nobody can confirm it: your own, or any that your role could
    have asked for. It changes nothing that is in force."""
    answer = ask(socket, admin.Withdraw(id=id_, why=why), _RELOAD_S)
    if not isinstance(answer, admin.Done):
        raise refuse("protocol", "the daemon answered something else")
    said = f"{visible(id_)} is withdrawn, position {answer.position}; nothing that is in force has changed"
    _say({"state": "withdrawn", "id": id_, "position": answer.position}, said, json)


def print_waits(answer: admin.Waits, state: str, *, json: bool) -> None:
    """What was recorded and not carried out, and who can confirm it."""
    facts = {"state": "waits", "position": answer.position, **_facts(answer.act)}
    _say(facts, f"{state}: it takes a second operator\n{_waiting(answer.act)}", json)


def _stopped(answer: admin.Done) -> str:
    return f"; calls stopped, whose issuer's key was retired: {answer.affected}" if answer.affected else ""


def _facts(act: admin.PendingView) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(act).items() if name != "type"}


def _waiting(act: admin.PendingView) -> str:
    until = datetime.fromtimestamp(act.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"{act.id} {act.act}, asked for by {act.operator} at {act.asked[:19]}Z, until {until}"]
    lines += [f"  {'releases' if act.act == 'release' else 'changes'} {change}" for change in act.changes]
    lines += [f"  why: {act.why}"] if act.why else []
    lines += [f"  {', '.join(act.can) or 'nobody'} can: runner admin confirm {act.id}"]
    lines += [f"  {act.operator} can take it back: runner admin withdraw {act.id}"]
    return "\n".join(map(visible, lines))


def _say(facts: dict[str, Any], said: str, json: bool) -> None:
    if json:
        print_json(facts)
    else:
        print(said)


@app.command(epilog="Example: runner admin log --operator ann --kind reload --since 2026-01-01 --diff")
def log(
    state: State = Path(Config().state),
    verifier: Annotated[
        str, typer.Option("--key", metavar="FILE|TEXT", help="The verifier key; default: the ledger folder's own.")
    ] = "",
    operator: Annotated[str, typer.Option(help="Only acts of this operator; `host` is who starts and signals.")] = "",
    kind: Annotated[str, typer.Option(help=f"Only acts of this kind: {', '.join(KINDS)}.")] = "",
    since: Annotated[str, typer.Option(help="Only from this RFC 3339 UTC time on.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 50,
    diff: Annotated[bool, typer.Option("--diff", help="Show what a reload changed, line by line.")] = False,
    json: Json = False,
) -> None:
    """Every act of an operator, oldest first: who, how known, when, what, before and after, why. Reads files; asks no
    daemon."""
    if kind and kind not in KINDS:
        raise typer.BadParameter(f"one of {', '.join(KINDS)}", param_hint="--kind")
    wanted = Wanted(operator=operator, kind=kind, since=since)
    found = deque(acts(Ledger(state / "ledger", load_verifier(verifier, state / "ledger")), wanted), maxlen=limit)
    reader = _content(state / "content") if any(all(act.catalogues) for act in found) else None
    try:
        differences = Differences(reader) if reader is not None else None
        shown = [differences.of(act) if differences is not None else act for act in found]
        if json:
            # All ASCII: entries hold hostile text, and JSON lets bidi characters through.
            print(jsonlib.dumps([msgspec.to_builtins(act) for act in shown], indent=2, sort_keys=True))
            return
        for act in shown:
            _print_act(act)
            for line in differences.text(act) if diff and differences is not None else ():
                print(f"    {visible(line)}")
    finally:
        if reader is not None:
            reader.close()


def _content(folder: Path) -> ContentReader | None:
    try:
        return ContentReader(folder)
    except RunnerError as error:
        print(f"note: files are not compared: {error.refused.reason}", file=sys.stderr)
        return None


def _print_act(act: Act) -> None:
    print(visible(f"{act.position:>8} {act.time[:19]}Z {act.kind:<14} {act.operator} ({act.known}): {act.what}"))
    if act.before or act.after:
        print(visible(f"         {act.before} -> {act.after}"))
    if act.changed:
        print(visible(f"         changed: {', '.join(act.changed)}"))
    if act.why:
        print(visible(f"         why: {act.why}"))
