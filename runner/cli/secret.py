"""`runner secret`: what the broker keeps for tools. A value is typed unseen, or read; argv never holds one."""

from __future__ import annotations

import fcntl
import getpass
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runner.broker import master
from runner.cli import keys
from runner.cli.credentials import ADMIN_SOCKET, ask
from runner.cli.serve import DEFAULT_CONFIG
from runner.cli.tables import print_json, print_table
from runner.config import Config, load_config
from runner.errors import refuse
from runner.serve import privilege
from runner.wire import admin
from runner.wire.broker import MAX_FIELDS, MAX_SECRET

app = typer.Typer(help="Secrets that the broker keeps for tools: set, rotate, remove.", no_args_is_help=True)

_MAX_INPUT = MAX_FIELDS * (MAX_SECRET * 6 + 64)  # JSON, every character escaped

Name = Annotated[str, typer.Argument(help="The secret's name, as a manifest names it.")]
Field = Annotated[
    list[str] | None,
    typer.Option("--field", help="A secret of named fields: username, password, … Repeatable; asked for one by one."),
]
Stdin = Annotated[
    bool,
    typer.Option(
        "--stdin", help="Read it from standard input, less one newline at its end; with --field a JSON object of texts."
    ),
]
File = Annotated[Path | None, typer.Option(help="Read it from a file (0600), as --stdin does.")]
Why = Annotated[str, typer.Option(help="Recorded with the act.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Socket = Annotated[Path, typer.Option("--socket", help="The daemon's admin.sock.", envvar="RUNNER_ADMIN_SOCKET")]
Configuration = Annotated[
    Path, typer.Option("--config", help="The daemon's configuration.", envvar="RUNNER_CONFIG", metavar="FILE")
]


@app.command("set", epilog='Example: runner secret set github-token --why "for git_clone"')
def set_(
    name: Name,
    field: Field = None,
    stdin: Stdin = False,
    file: File = None,
    why: Why = "",
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Keep a secret under a new name: asked for twice, unseen, unless --stdin or --file gives it."""
    _keep(name, field or [], stdin, file, why, socket, json, rotate=False)


@app.command(epilog="Example: runner secret rotate github-token --stdin")
def rotate(
    name: Name,
    field: Field = None,
    stdin: Stdin = False,
    file: File = None,
    why: Why = "",
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Put a new value in place of a secret that is kept. Calls that run keep the one they were given until they end."""
    _keep(name, field or [], stdin, file, why, socket, json, rotate=True)


@app.command("list", epilog="Example: runner secret list --json")
def list_(socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """Which secrets are kept: names, fields, versions and times. Nobody can have a value shown."""
    answer = ask(socket, admin.ListSecrets())
    if not isinstance(answer, admin.SecretsView):
        raise refuse("protocol", "the daemon answered something else")
    if json:
        print_json([{"fields": [], **msgspec.to_builtins(each)} for each in answer.secrets])
        return
    print_table(
        ("name", "version", "fields", "created", "rotated"),
        [
            (each.name, str(each.version), " ".join(each.fields), each.created[:19] + "Z", each.rotated[:19] + "Z")
            for each in answer.secrets
        ],
    )


@app.command(epilog='Example: runner secret rm github-token --why "the service is gone"')
def rm(name: Name, why: Why = "", socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """Forget a secret. Calls that run keep what they were given until they end."""
    _told(ask(socket, admin.RemoveSecret(name=name, why=why)), f"{name} is forgotten", json)


@app.command(epilog="Example: runner secret init --config runner.toml")
def init(
    config: Configuration = DEFAULT_CONFIG,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the key here instead (0600, yours), for a systemd credential to be made of it."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make the master key of the broker's store: 0600, the broker's user's own. Needs root. A daemon that runs takes
    it up. Keep a copy elsewhere: without it the store opens for nobody."""
    from runner.broker import store  # imported here: no other command needs its ciphers

    settings = load_config(config)[0]
    folder = Path(settings.state) / "broker"
    if os.path.lexists(folder / store.FILE):
        raise refuse(
            "key", "a store is there already, under another key", field=str(folder / store.FILE),
            next_step="restore that key, or move the store away",
        )  # fmt: skip
    if key is None:
        privilege.require_root()
        key, owner = _folder(settings, folder) / master.FILE, privilege.user_id(settings.users.broker)
    else:
        owner = (os.geteuid(), os.getegid())
    keys.write_new(key, master.fresh())
    os.chown(key, *owner)
    if json:
        print_json({"key": str(key)})
    else:
        print(f"wrote {key}: keep a copy elsewhere")


@app.command(epilog="Example: runner secret rekey --config runner.toml")
def rekey(config: Configuration = DEFAULT_CONFIG, json: Json = False) -> None:
    """Replace the master key in the state folder. Needs root, and a daemon that is stopped. Secrets stay as they are:
    rotate those that somebody with the old key could have read."""
    from runner.broker import store

    settings = load_config(config)[0]
    privilege.require_root()
    state = Path(settings.state)
    folder, owner = state / "broker", privilege.user_id(settings.users.broker)
    held = _stopped(state)
    try:
        _as_owner(owner)
        current, fresh = folder / master.FILE, folder / f"{master.FILE}.new"
        old = master.from_folder(folder)
        opened = store.Store.open(folder, old)
        if os.path.lexists(fresh):  # cut off before: go on with that key
            made = master.parse(master.read_file(fresh), str(fresh))
        else:
            data = master.fresh()
            made = master.parse(data, str(fresh))
            keys.write_new(fresh, data)
        opened.rewrap(old, made)  # either key opens it: whatever is cut off below, the key that is there fits
        fresh.rename(current)
        opened.rewrap(made)
    finally:
        os.close(held)
    if json:
        print_json({"key": str(current), "secrets": len(opened.views())})
    else:
        print(f"{current} is new, and opens {len(opened.views())} secrets: keep a copy elsewhere")


def _keep(
    name: str, fields: list[str], stdin: bool, file: Path | None, why: str, socket: Path, json: bool, *, rotate: bool
) -> None:
    if len(set(fields)) != len(fields):
        raise typer.BadParameter("a field is named twice", param_hint="--field")
    if stdin and file:
        raise typer.BadParameter("give one of --stdin and --file")
    if stdin or file:
        given = keys.read_secret(file, _MAX_INPUT + 1) if file else _from_stdin()
        value, named = _parsed(given, fields)
    elif fields:
        value, named = b"", {field: _typed(f"{name} {field}: ") for field in fields}
    else:
        value, named = _typed(f"{name}: "), {}
    message = admin.SetSecret(name=name, value=value, fields=named, rotate=rotate, why=why)
    _told(ask(socket, message), f"{name} is {'replaced' if rotate else 'kept'}", json)


def _told(answer: admin.ToOperator, what: str, json: bool) -> None:
    if not isinstance(answer, admin.Done):
        raise refuse("protocol", "the daemon answered something else")
    if json:
        print_json({"position": answer.position})
    else:
        print(f"{what}; recorded as entry {answer.position}")


def _typed(prompt: str) -> bytes:
    """A value typed twice at the terminal, which does not show it. Raises `RunnerError` where it would."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            first = getpass.getpass(prompt)
            second = getpass.getpass(f"{prompt.removesuffix(': ')}, again: ")
        except (getpass.GetPassWarning, EOFError):
            raise refuse(
                "arguments", "there is no terminal to type it at unseen", field="value",
                next_step="give it with --stdin or --file",
            ) from None  # fmt: skip
    if first != second:
        raise refuse("arguments", "the two are not the same", field="value", next_step="type it again")
    return first.encode("utf-8", "surrogateescape")


def _from_stdin() -> bytes:
    if sys.stdin.isatty():
        raise refuse(
            "arguments", "standard input is a terminal, which would show it", field="--stdin",
            next_step="leave --stdin out to type it unseen, or give a pipe",
        )  # fmt: skip
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise refuse("arguments", f"longer than {MAX_SECRET} bytes", field="--stdin")
    return data


def _parsed(data: bytes, fields: list[str]) -> tuple[bytes, dict[str, bytes]]:
    if not fields:
        return data.removesuffix(b"\n"), {}
    try:
        found = msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = {}
    if set(found) != set(fields):
        raise refuse(
            "arguments", f"not a JSON object of the texts {', '.join(fields)} and nothing else", field="--field"
        )
    return b"", {field: found[field].encode() for field in fields}


def _folder(settings: Config, folder: Path) -> Path:
    """The broker's folder, as the daemon makes it at its start."""
    owner = privilege.user_id(settings.users.broker)
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    if not os.path.lexists(folder):
        folder.mkdir(mode=0o700)
        os.chown(folder, *owner, follow_symlinks=False)
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != owner[0] or status.st_mode & 0o077:
        raise refuse("host", "not a folder (0700) of the broker's user", field=str(folder), next_step="see whose it is")
    return folder


def _stopped(state: Path) -> int:
    """The lock that a running daemon holds."""
    try:
        held = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise refuse(
            "host", "the daemon runs, or its folder is not there", field=str(state), next_step="stop it"
        ) from None
    return held


def _as_owner(owner: tuple[int, int]) -> None:
    """What is written belongs to the broker's user, and nothing of its folder is followed with root's rights."""
    os.setgroups([])
    os.setresgid(owner[1], owner[1], owner[1])
    os.setresuid(owner[0], owner[0], owner[0])
    os.umask(0o077)
