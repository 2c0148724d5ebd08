"""What a daemon owns on disk and among sockets: folders of a mode and owner, locks, its instance id."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from runner.errors import refuse

_INSTANCE = re.compile(r"[a-z][a-z0-9]{3,31}")


def folder(path: Path, mode: int, owner: tuple[int, int]) -> None:
    """A folder of this mode and owner; never through a link, never one that somebody else has made."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True, mode=mode)
    try:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise refuse("host", "not a folder", field=str(path), next_step="remove it, or choose another place") from None
    try:
        if os.fstat(held).st_uid not in (0, owner[0]):
            raise refuse(
                "host", "the folder belongs to another user", field=str(path), next_step="choose another place"
            )
        os.fchown(held, *owner)
        os.fchmod(held, mode)
    finally:
        os.close(held)


def locked(path: Path, what: str, flags: int) -> int:
    """The descriptor that holds the lock on `path`. Raises `RunnerError` (host) when another daemon holds it."""
    held = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise refuse(
            "host", f"another daemon uses this {what} directory", field=str(path.parent if what == "state" else path),
            next_step="stop it first",
        ) from None  # fmt: skip
    return held


def identity(path: Path) -> str:
    """The instance id that this state directory has for ever; made at the first start, whole or not at all."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            found = file.read(64).strip()
    except FileNotFoundError:
        found = f"r{secrets.token_hex(4)}"
        fresh = path.with_name("instance.new")
        fresh.unlink(missing_ok=True)
        with fresh.open("w", encoding="ascii") as file:
            file.write(f"{found}\n")
            file.flush()
            os.fsync(file.fileno())  # a power loss must not leave the name of an empty file
        fresh.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise refuse("host", f"the instance id cannot be read: {error}", field=str(path)) from None
    if not _INSTANCE.fullmatch(found):
        raise refuse("host", "not an instance id", field=str(path), next_step="restore it, or use a new state folder")
    return found


def bound(path: Path, mode: int, group: int) -> socket.socket:
    """A listening socket in a root-owned folder. What lies there already is only ever a stale socket of ours."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise refuse("host", "something that is no socket lies in the way", field=str(path), next_step="remove it")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(mask)
    os.chown(path, 0, group)
    path.chmod(mode)
    sock.listen(4096)  # as many as Linux allows by default: whoever comes when it is full is turned away unheard
    return sock
