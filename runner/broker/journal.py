"""Dynamic leases that a provider made and that are not revoked there yet, on disk before each is handed out.

A crash leaves them in the journal, and the next start revokes them. Each line of the file is a length and a box sealed
under a key of the store, with its place in the file as associated data; a handle may be a bearer token, so none is
there in the clear. What cannot be read at the very end is a write that a crash cut off: its lease was never handed out,
and it is dropped (`dropped` says how much). A box before the last that does not open is damage, which is refused: what
it held could not be revoked, and somebody must look.
"""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from runner.errors import refuse

FILE = "leases"
_MAX_FILE = 64 << 20
_MAX_BOX = 64 << 10
_NONCE = 12
_LENGTH = 4
_DEAD = 1024  # lines of what is revoked, after which the file is written anew


class Outstanding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One dynamic lease. `handle` is what its provider revokes it by; `expires` is in seconds since the epoch."""

    id: str
    provider: str
    name: str
    handle: str
    expires: float

    def __repr__(self) -> str:
        return f"Outstanding(id={self.id!r}, provider={self.provider!r}, …)"


class _Gone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="gone"):
    id: str


class _Made(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="made"):
    lease: Outstanding


_decode = msgspec.msgpack.Decoder(_Gone | _Made).decode
_encode = msgspec.msgpack.Encoder().encode


class Journal:
    """The open journal. Provider threads add to it; the loop takes away."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """Read what is outstanding and begin a new file with it. Raises `RunnerError`."""
        self._path = folder / FILE
        self._cipher = ChaCha20Poly1305(key)
        self._turn = threading.Lock()
        self._file = -1
        self._lines = 0
        self._lost = False
        self.dropped = 0  # bytes at the file's end
        self.outstanding: dict[str, Outstanding] = {}
        try:
            self._read()
            self._begin()
        except OSError as error:
            raise _lost(self._path, error) from None

    def made(self, lease: Outstanding) -> None:
        """On disk when this returns: only then may the lease be handed out. Raises `RunnerError` (unavailable)."""
        with self._turn:
            if self._lost:
                raise _lost(self._path, None)
            try:
                self._add(_Made(lease))
                os.fdatasync(self._file)
            except OSError as error:
                self._lost = True  # what the file holds now is unknown
                raise _lost(self._path, error) from None
            self.outstanding[lease.id] = lease

    def gone(self, lease: str) -> None:
        """The provider has revoked it, or it has expired there. Not synced: at worst it is revoked once more."""
        with self._turn:
            if self.outstanding.pop(lease, None) is None or self._lost:
                return
            try:
                if self._lines > _DEAD + 2 * len(self.outstanding):
                    self._begin()
                else:
                    self._add(_Gone(lease))
            except OSError:
                self._lost = True

    def close(self) -> None:
        """No more."""
        with self._turn:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._lost = -1, True

    def _read(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise _damaged(self._path, 0)
        place = line = 0
        while place < len(data):
            start = place + _LENGTH
            length = int.from_bytes(data[place:start], "big")
            box = data[start : start + length]
            try:
                found = _decode(self._cipher.decrypt(box[:_NONCE], box[_NONCE:], line.to_bytes(8, "big")))
            except (InvalidTag, ValueError, msgspec.DecodeError):
                # Nothing but zeros behind it: the file had grown, its data had not come.
                if length > _MAX_BOX or data[start + length :].strip(b"\0"):
                    raise _damaged(self._path, place) from None
                self.dropped = len(data) - place
                return
            if isinstance(found, _Made):
                self.outstanding[found.lease.id] = found.lease
            else:
                self.outstanding.pop(found.id, None)
            place, line = start + length, line + 1

    def _begin(self) -> None:
        """A file with what is outstanding and nothing else, in the old one's place."""
        fresh = self._path.with_name(f"{FILE}.new")
        fresh.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        before, self._file, self._lines = self._file, os.open(fresh, flags, 0o600), 0
        if before >= 0:
            os.close(before)
        for lease in self.outstanding.values():
            self._add(_Made(lease))
        os.fsync(self._file)
        fresh.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _add(self, line: _Gone | _Made) -> None:
        nonce = secrets.token_bytes(_NONCE)
        box = nonce + self._cipher.encrypt(nonce, _encode(line), self._lines.to_bytes(8, "big"))
        data = len(box).to_bytes(_LENGTH, "big") + box
        if os.write(self._file, data) != len(data):
            raise OSError(28, "the disk took a part of it only")
        self._lines += 1


def _damaged(path: Path, place: int) -> Exception:
    return refuse(
        "key",
        f"the journal of outstanding leases is damaged at byte {place}",
        field=str(path),
        next_step="move it away; what providers leased before expires there by itself",
    )


def _lost(path: Path, error: OSError | None) -> Exception:
    return refuse(
        "unavailable",
        "the journal of outstanding leases cannot be written" + (f": {error.strerror}" if error else ""),
        field=str(path),
        next_step="see the disk, then start the daemon again",
    )
