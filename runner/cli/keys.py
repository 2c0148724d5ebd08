"""`runner keys`: the issuer's key pair, and how every key file is read and written: 0600, never over another file."""

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

from runner.errors import refuse
from runner.token import keys
from runner.token.narrow import shown

MAX_SECRET = 64 << 10  # bytes of a key file; the real ones have 150

app = typer.Typer(help="The issuer's key: whoever holds it can grant any authority here.", no_args_is_help=True)


def read_secret(path: Path, maximum: int = MAX_SECRET) -> bytes:
    """A private file's bytes. Raises `RunnerError` (key) when it is missing, a link, or open to group or others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refuse("key", f"cannot open it: {error.strerror}", field=str(path)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("key", "not a regular file", field=str(path))
        if status.st_mode & 0o077:
            raise refuse(
                "key",
                f"mode {stat.S_IMODE(status.st_mode):04o}: others may read it",
                field=str(path),
                next_step=f"run `chmod 600 {path}`",
            )
        return os.read(descriptor, maximum)
    finally:
        os.close(descriptor)


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
        raise refuse(
            "key", f"cannot create it: {error.strerror}", field=str(path), next_step="see the reason"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def load_issuer(path: Path) -> tuple[keys.SigningKey, str]:
    """The issuer's key and URI. Raises `RunnerError` (key)."""
    key, issuer = keys.read_private(read_secret(path), str(path))
    if not issuer:
        raise refuse("key", "it names no issuer: not written by `runner keys init`", field=str(path))
    return key, issuer


def load_public(path: Path) -> tuple[keys.PublicKey, str]:
    """A public key and its issuer URI, "" when the file names none. Raises `RunnerError` (key)."""
    try:
        data = path.read_bytes()[: MAX_SECRET + 1]
    except OSError as error:
        raise refuse("key", f"cannot read it: {error.strerror}", field=str(path)) from None
    return keys.read_public(data, str(path))


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


@app.command(epilog="Example: runner keys show /etc/toolrunner/issuer.pub")
def show(
    file: Annotated[Path, typer.Argument(help="A public key file.")] = Path("issuer.pub"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a public key: its issuer and the thumbprint that tells it from others."""
    key, issuer = load_public(file)
    _show(key, issuer, {"public_key": str(file)}, json)


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
