"""`runner keys`: the issuer's keys, and how every key file is read and written: 0600, of its own user.

Several public keys may be in force: `rotate` adds one and gives the private file a new key, `retire` takes one away,
and with it every token it signed. The daemon learns of either when it is reloaded.
"""

from __future__ import annotations

import os
import stat
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.cli.tables import print_table
from runner.errors import refuse
from runner.token import keys
from runner.token.narrow import shown

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd's: LoadCredential=issuer.key:/etc/toolrunner/issuer.key
MAX_SECRET = 64 << 10  # bytes of a key file; the real ones have 150

app = typer.Typer(help="The issuer's key: whoever holds it can grant any authority here.", no_args_is_help=True)


def read_secret(path: Path, maximum: int = MAX_SECRET, *, next_step: str = "") -> bytes:
    """A private file's bytes: 0600, and its user's own or root's. A systemd credential may be readable for a group,
    which is how systemd shows the one user that its access list names. Raises `RunnerError` (key) on any other, with
    `next_step` where there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refuse("key", f"cannot open it: {error.strerror}", field=str(path), next_step=next_step) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("key", "not a regular file", field=str(path))
        if status.st_mode & (0o037 if _is_credential(path) else 0o077):
            raise refuse(
                "key",
                f"mode {stat.S_IMODE(status.st_mode):04o}: others may read it",
                field=str(path),
                next_step=f"run `chmod 600 {path}`",
            )
        if status.st_uid not in (0, os.geteuid()):
            raise refuse(
                "key",
                f"it belongs to uid {status.st_uid}, who may read and replace it",
                field=str(path),
                next_step=f"run `chown {os.geteuid()} {path}`, or do this as that user",
            )
        return os.read(descriptor, maximum)
    finally:
        os.close(descriptor)


def _is_credential(path: Path) -> bool:
    folder = os.environ.get(CREDENTIALS_VARIABLE, "")
    return bool(folder) and path.parent.absolute() == Path(folder)


def usual_key(name: str = "issuer.key") -> Path:
    """Where the issuer's private key is when nobody says: a systemd credential, else a file of the current folder."""
    credential = Path(os.environ.get(CREDENTIALS_VARIABLE) or "/nonexistent") / name
    return credential if credential.exists() else Path(name)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that does not exist yet, and see it on disk. Raises `RunnerError` (key)."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise refuse(
            "key",
            "it exists, and is never overwritten",
            field=str(path),
            next_step="choose another name, or move it away",
        ) from None
    except OSError as error:
        step = (
            f"make its folder: mkdir -p {path.parent}" if isinstance(error, FileNotFoundError) else "name another place"
        )
        raise refuse("key", f"cannot create it: {error.strerror}", field=str(path), next_step=step) from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Put a file in another's place, whole or not at all. Raises `RunnerError` (key), also while somebody else does."""
    beside = path.with_name(f"{path.name}.new")
    write_new(beside, data, mode)
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_anchors(path: Path) -> tuple[tuple[keys.PublicKey, ...], str]:
    """The public keys in a file and their issuer's URI. Raises `RunnerError` (key)."""
    return keys.read_anchors(read_public_file(path), str(path))


def load_issuer(path: Path) -> tuple[keys.SigningKey, str]:
    """The issuer's key and URI. Raises `RunnerError` (key)."""
    key, issuer = keys.read_private(read_secret(path), str(path))
    if not issuer:
        raise refuse("key", "it names no issuer: not written by `runner keys init`", field=str(path))
    return key, issuer


def load_public(path: Path) -> tuple[keys.PublicKey, str]:
    """A public key and its issuer URI, "" when the file names none. Raises `RunnerError` (key)."""
    return keys.read_public(read_public_file(path), str(path))


def read_public_file(path: Path) -> bytes:
    """A public key file's bytes. Raises `RunnerError` (key)."""
    try:
        return path.read_bytes()[: MAX_SECRET + 1]
    except OSError as error:
        raise refuse("key", f"cannot read it: {error.strerror}", field=str(path)) from None


@app.command(epilog="Example: runner keys init --dir /etc/toolrunner --issuer https://tokens.example.com")
def init(
    dir_: Annotated[Path, typer.Option("--dir", help="Where issuer.key and issuer.pub go.")] = Path(),
    issuer: Annotated[str, typer.Option(help="The issuer's URI; a fresh urn:uuid by default.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the issuer's key pair: issuer.key (0600, for whoever mints) and issuer.pub (for the configuration)."""
    uri = issuer or f"urn:uuid:{uuid.uuid4()}"
    if not keys.URI.fullmatch(uri):
        raise typer.BadParameter(f"{uri!r} is not a URI", param_hint="--issuer")
    private, public = dir_ / "issuer.key", dir_ / "issuer.pub"
    key = keys.SigningKey(keys.generate())
    write_new(private, keys.private_file(key, uri))
    try:
        write_new(public, keys.public_file(key.public, uri), 0o644)
    except BaseException:
        private.unlink()
        raise
    _show(key.public, uri, {"private_key": str(private), "public_key": str(public)}, json)
    if not json:
        print(f'\nFor the daemon\'s configuration:\n\n[[issuers]]\nuri = "{uri}"\npublic_key = "{public.resolve()}"')


Dir = Annotated[Path, typer.Option("--dir", help="Where issuer.key and issuer.pub are.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_RELOAD = "reload the daemon: `runner admin reload`, or `systemctl reload toolrunner`; until then nothing has changed"


@app.command(
    epilog="Example: runner keys rotate --dir /etc/toolrunner\n\n"
    "Then reload the daemon, and mint as before: issuer.key is the new key. Tokens of the old one stay valid until "
    "`runner keys retire`."
)
def rotate(dir_: Dir = Path(), json: Json = False) -> None:
    """Give the issuer a new key. The old one's public half stays in force; its private half is gone."""
    private, public = dir_ / "issuer.key", dir_ / "issuer.pub"
    old, issuer = load_issuer(private)
    held, named = load_anchors(public)
    if old.public not in held or named != issuer:
        raise refuse("key", f"{private} is not one of its keys", field=str(public), next_step="name the --dir of both")
    if len(held) >= keys.MAX_ANCHORS:
        most = f"{keys.MAX_ANCHORS} keys at a time"
        raise refuse("key", "it is full", field=str(public), allowed=most, next_step="`runner keys retire` some first")
    fresh = keys.SigningKey(keys.generate())
    # The public half first: a key that mints and that the daemon will not know is worse than one that never mints.
    replace(public, keys.anchors_file((*held, fresh.public), issuer), 0o644)
    replace(private, keys.private_file(fresh, issuer), 0o600)
    facts = {"issuer": issuer, "thumbprint": fresh.public.thumbprint, "before": old.public.thumbprint}
    print_facts({**facts, "in_force": len(held) + 1, "next": _RELOAD}, json=json)


@app.command("list", epilog="Example: runner keys list --dir /etc/toolrunner")
def list_(dir_: Dir = Path(), json: Json = False) -> None:
    """List the issuer's keys in force, oldest first, and which one signs new tokens."""
    held, issuer = load_anchors(dir_ / "issuer.pub")
    signing = _signing(dir_)
    rows = [{"thumbprint": key.thumbprint, "signs": key == signing, "issuer": issuer} for key in held]
    if json:
        print(msgspec.json.encode(rows).decode())
        return
    print_table(
        ("thumbprint", "signs new tokens", "issuer"),
        [(str(row["thumbprint"]), "yes" if row["signs"] else "", issuer) for row in rows],
    )


@app.command(
    context_settings={"ignore_unknown_options": True},  # a thumbprint may begin with a hyphen
    epilog="Example: runner keys retire NzbLsXh8 --dir /etc/toolrunner\n\n"
    "Then reload the daemon: it refuses every token of the key from then on, closes their connections, and ends their "
    "tasks with what runs in them, detached or not. So retire a stolen key at once: when `runner admin reload` is "
    "answered, nothing is left that stood on it. In a routine change wait until the key's tokens have expired (an hour "
    "after the last was minted, where --ttl says nothing else): then nothing is cut off.",
)
def retire(
    thumbprint: Annotated[str, typer.Argument(help="The key, or the first characters of it; see `runner keys list`.")],
    dir_: Dir = Path(),
    json: Json = False,
) -> None:
    """Take a key out of force, and with it every token it signed and every task that began with one."""
    public = dir_ / "issuer.pub"
    held, issuer = load_anchors(public)
    found = [key for key in held if thumbprint and key.thumbprint.startswith(thumbprint)]
    if len(found) != 1:
        reason = f"{len(found) or 'none'} of its keys begin with {shown(thumbprint)}"
        raise refuse("key", reason, field=str(public), next_step="see `runner keys list`")
    if found[0] == _signing(dir_) or len(held) == 1:
        reason = "it signs new tokens" if len(held) > 1 else "it is the only one"
        raise refuse("key", reason, field=str(public), next_step="`runner keys rotate` first, then retire it")
    kept = tuple(key for key in held if key != found[0])
    replace(public, keys.anchors_file(kept, issuer), 0o644)
    print_facts({"retired": found[0].thumbprint, "in_force": len(kept), "next": _RELOAD}, json=json)


@app.command(epilog="Example: runner keys show /etc/toolrunner/issuer.pub")
def show(
    file: Annotated[Path, typer.Argument(help="A public key file.")] = Path("issuer.pub"),
    json: Json = False,
) -> None:
    """Show public keys: their issuer and the thumbprint that tells each from others."""
    held, issuer = load_anchors(file)
    for key in held:
        _show(key, issuer, {"public_key": str(file)}, json)


def _signing(folder: Path) -> keys.PublicKey | None:
    """The public half of the key that mints, None where its private half is not: it may be a systemd credential."""
    private = folder / "issuer.key"
    return load_issuer(private)[0].public if private.exists() else None


def when(value: object) -> str:
    """Epoch seconds as a person reads them; anything else as it is, made visible."""
    if type(value) is not int or not 0 <= value < 2**37:
        return shown(value)
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def print_facts(facts: dict[str, Any], *, json: bool, to_stderr: bool = False) -> None:
    """One fact a line, or all of them as one JSON object."""
    stream = sys.stderr if to_stderr else sys.stdout
    if json:
        print(msgspec.json.encode(facts).decode(), file=stream)
        return
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<12} {text}", file=stream)


def _show(key: keys.PublicKey, issuer: str, files: dict[str, str], json: bool) -> None:
    facts = {"issuer": issuer, "thumbprint": key.thumbprint, **files}
    print_facts(facts, json=json)
