"""The master key: a line of text in a systemd credential, or in a 0600 file of the broker's user."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path

from runner.errors import refuse

FILE = "master.key"  # in the broker's folder
CREDENTIAL = "broker-master-key"  # LoadCredentialEncrypted=broker-master-key
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd's
KEY_BYTES = 32
_PREFIX = b"runner-master-1:"
_MAX = 256


def fresh() -> bytes:
    """A new key as its file holds it."""
    return _PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n"


def parse(data: bytes, where: str) -> bytes:
    """The key in `data`. Raises `RunnerError` (key)."""
    text = data.removesuffix(b"\n")
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), altchars=b"-_", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES or _PREFIX + base64.urlsafe_b64encode(key) != text:
        raise refuse(
            "key", "not a master key", field=where, next_step="restore it; `runner secret init` makes new ones"
        )
    return key


def read_file(path: Path, *, maximum: int = _MAX) -> bytes:
    """A private file's bytes: regular, no link, nobody else's, closed to others. Raises `RunnerError` (key)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise refuse("key", "there is no such file", field=str(path), next_step="run `runner secret init`") from None
    except OSError as error:
        raise refuse("key", f"cannot open it: {error.strerror}", field=str(path), next_step="see its owner") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
            raise refuse(
                "key",
                f"mode {stat.S_IMODE(status.st_mode):04o} of uid {status.st_uid}: others could read or replace it",
                field=str(path),
                next_step="make it 0600 and the broker's user's",
            )
        data = os.read(descriptor, maximum + 1)
    finally:
        os.close(descriptor)
    if len(data) > maximum:
        raise refuse("key", f"longer than {maximum} bytes", field=str(path), next_step="see what it is")
    return data


def from_credential(folder: str) -> bytes | None:
    """The key that systemd gave the daemon, None where it gave none. To be read while still root.

    Raises `RunnerError` (key) when there is one that cannot be used: the file in the state folder is no stand-in."""
    path = Path(folder) / CREDENTIAL
    if not folder or not os.path.lexists(path):
        return None
    try:
        data = path.read_bytes()[: _MAX + 1]
    except OSError as error:
        raise refuse("key", f"cannot read it: {error.strerror}", field=str(path), next_step="see the unit") from None
    return parse(data, str(path))


def from_folder(folder: Path) -> bytes:
    """The key in the broker's own folder. Raises `RunnerError` (key)."""
    path = folder / FILE
    return parse(read_file(path), str(path))
