"""`runner escrow init` and `runner trace raw`: the key that opens raw output, and its use.

The private key is read here, by whoever holds it, and nowhere else: the daemon hands over what is encrypted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from runner.cli import keys
from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_json
from runner.cli.trace_options import STATE, Key, LedgerDir, State, content_folder, open_ledger
from runner.errors import refuse
from runner.evidence.content import SALT, ContentReader
from runner.evidence.view import find, visible
from runner.ledger.escrow import Identities, fingerprint, new_identity
from runner.wire import admin

app = typer.Typer(help="Escrow: who can open raw output, which is kept encrypted.", no_args_is_help=True)

RAW = 'Example: runner trace raw 0197f0c2a1b3-0000-7cc25d01 --identity escrow.key --out raw.bin --why "incident 12"'
_PATIENCE_S = 600.0  # a ledger of many millions of entries is looked through for the call
_IN_MEMORY = 8 << 20  # of what is encrypted; more goes through a temporary file
_READ = 1 << 20

Which = Literal["all", "stdout", "stderr", "result"]


@app.command(epilog="Example: runner escrow init --out /mnt/usb/escrow.key")
def init(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the private key goes (0600); never over another file.")
    ] = Path("escrow.key"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key of age that opens raw output, and print the section of runner.toml that names it. Whoever has the file
    can open all of it; without the file nobody can. Keep it, and a copy, away from this host."""
    private, recipient = new_identity()
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys.write_new(out, f"# created: {when}\n# public key: {recipient}\n{private}\n".encode())
    if as_json:
        print_json({"identity": str(out), "recipient": recipient, "fingerprint": fingerprint(recipient)})
        return
    print(f"wrote {out}; keep it away from this host. For the daemon's configuration:\n")
    print(f'[escrow]\nrecipients = ["{recipient}"]')
    print(f"\nentries name it {fingerprint(recipient)}")


def raw(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    identity: Annotated[Path, typer.Option(metavar="FILE", help="The private key, as `runner escrow init` wrote it.")],
    why: Annotated[str, typer.Option(help="Recorded with the opening.")] = "",
    stream: Annotated[
        Which, typer.Option(help="One stream alone; else all, in the order in which they were read.")
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to this new file (0600), not to standard output.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let a terminal have it as it is, control characters and all.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the pieces in their order, each base64.")
    ] = False,
    socket: Socket = ADMIN_SOCKET,
    unrecorded: Annotated[
        bool, typer.Option("--unrecorded", help="Ask no daemon: read the files. Nothing records that opening.")
    ] = False,
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
) -> None:
    """Open what a call wrote, byte by byte, before any filter. The daemon records who opens it and why, on disk, and
    then hands it over, encrypted; it is decrypted here. A terminal is shown control characters as escapes."""
    if ledger is not None and not unrecorded:
        raise typer.BadParameter(
            "the daemon records an opening; files are read with --unrecorded", param_hint="--ledger"
        )
    text = keys.read_secret(identity, next_step="`runner escrow init` made one")
    identities = Identities(text.decode("utf-8", "replace"))
    with _place(out) as file, tempfile.SpooledTemporaryFile(_IN_MEMORY) as sealed:
        if unrecorded:
            recipients = _from_files(call, state, ledger, key, sealed)
        else:
            recipients = _from_daemon(call, why, socket, sealed)
        if not {*recipients} & {*identities.fingerprints}:
            raise refuse(
                "key",
                f"this identity ({', '.join(identities.fingerprints)}) is not one that it was encrypted to",
                field=str(identity),
                allowed=f"the identities of {', '.join(recipients)}",
                next_step="ask whoever holds one of them",
            )
        sealed.seek(SALT)
        opened = identities.open(iter(lambda: sealed.read(_READ), b""), call)
        chosen = ((name, data) for name, data in opened if stream in ("all", name))
        if as_json:
            pieces = [{"stream": name, "data": base64.b64encode(data).decode()} for name, data in chosen]
            file.write(json.dumps({"call": call, "pieces": pieces}, indent=2, sort_keys=True).encode() + b"\n")
            return
        _write((data for _, data in chosen), file, escape=not (out or force))


def _write(data: Iterator[bytes], file: IO[bytes], *, escape: bool) -> None:
    if not (escape and file.isatty()):
        for piece in data:
            file.write(piece)
        file.flush()
        return
    for piece in data:
        file.write(visible(piece.decode("utf-8", "backslashreplace"), lines=True).encode("utf-8", "backslashreplace"))
    file.flush()
    print("\nnote: control characters are shown as escapes; --out and --force give them as they are", file=sys.stderr)


def _from_daemon(call: str, why: str, socket: Path, sealed: IO[bytes]) -> tuple[str, ...]:
    """Have the opening recorded, then fetch what was opened. Returns the recipients' fingerprints."""
    opened = ask(socket, admin.OpenRaw(call=call, why=why), _PATIENCE_S)
    if not isinstance(opened, admin.RawOpened):
        raise refuse("protocol", "the daemon answered something else")
    known = hashlib.sha256()
    offset = 0
    while offset < opened.size:
        piece = ask(socket, admin.ReadRaw(digest=opened.digest, offset=offset))
        if not isinstance(piece, admin.RawPiece) or not piece.data:
            break
        known.update(piece.data)
        sealed.write(piece.data)
        offset += len(piece.data)
    if known.hexdigest() != opened.digest:
        raise refuse("ledger", "what was handed over is not what the call's outcome names", field=call)
    amounts = ", ".join(f"{name} {n}" for name in ("stdout", "stderr", "result") if (n := getattr(opened, name)))
    lost = f"; {opened.lost} more were never kept" if opened.lost else ""
    print(f"opened, recorded as entry {opened.position}: bytes of {amounts}{lost}", file=sys.stderr)
    return opened.recipients


def _from_files(call: str, state: Path, ledger: Path | None, key: str, sealed: IO[bytes]) -> tuple[str, ...]:
    """The same from the daemon's own files, or copies of them."""
    view = find(open_ledger(state, key, ledger), call)
    if view is None or view.outcome is None:
        raise refuse("unknown_call", "no call of this id has ended", field=call, next_step="see `runner trace list`")
    kept, folder = view.outcome.raw, content_folder(state, ledger)
    if kept is None:
        raise refuse("unknown_call", "no raw output is kept of this call", field=call)
    if folder is None:
        raise refuse("ledger", "an export holds no content", next_step="give --state, of a daemon or of a copy of it")
    reader = ContentReader(folder)
    try:
        data = reader.get(kept.content.digest, view.outcome_position)
    finally:
        reader.close()
    if data is None:
        raise refuse("unknown_call", "its raw output is not here: pruned, or lost", field=call)
    print("note: this opening is recorded nowhere", file=sys.stderr)
    sealed.write(data)
    return kept.recipients


@contextmanager
def _place(path: Path | None) -> Iterator[IO[bytes]]:
    """Standard output; or a new file (0600), which is whole in the end, or not there. Raises `RunnerError`
    (arguments)."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = "it exists, and is never overwritten" if isinstance(error, FileExistsError) else error.strerror
        raise refuse("arguments", f"cannot create it: {reason}", field=str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
