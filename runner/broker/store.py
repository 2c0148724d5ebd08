"""The sealed store: one file, read whole at start, replaced whole at each change.

    toolrunner-secrets-1\\n   msgpack [wraps, generation, records]   HMAC-SHA256 of everything before it

A data key, random and never shown, is wrapped under the master key (`wraps`; two while the master key is replaced); all
other keys come from it by HKDF-SHA256. Each record is sealed by ChaCha20-Poly1305 under a key and nonce derived from a
salt of its own, used once, with its name, version, times and field names as associated data: a record moved to another
name or version does not open. The seal over the file finds every other change: what is added, cut, swapped, flipped. A
master key that is not this file's fails at the wraps, and is said to be that. An older copy of the whole file, put back
while the broker runs, is found by the next change; put back while it is stopped, it is not: `generation` and the
versions in the ledger's `secret` entries tell it to whoever compares.

| write | a crash or failure leaves |
| --- | --- |
| secrets.new: create, write, fsync | the old store; secrets.new is removed by the next write |
| rename to secrets, fsync folder | the old store or the new one, each whole |

After a failure of the second row nobody knows which: the store refuses everything until the broker starts again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runner.broker import master
from runner.broker.secret import Secret
from runner.errors import refuse
from runner.wire.broker import MAX_FIELDS, MAX_SECRET, SecretView, check_name, check_secret

FILE = "secrets"
MAX_SECRETS = 1024
_MAGIC = b"toolrunner-secrets-1\n"
_SEAL = 32
_SALT = 16
_NONCE = 12
_TAG = 16
_MAX_BOX = MAX_FIELDS * (MAX_SECRET + 4) + 4 + _TAG
_MAX_FILE = 64 << 20


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    version: int
    created: str
    rotated: str
    fields: tuple[str, ...]
    salt: bytes
    box: bytes

    @property
    def bound(self) -> bytes:
        """What its seal is also over."""
        return msgspec.msgpack.encode((self.name, self.version, self.created, self.rotated, self.fields))

    @property
    def view(self) -> SecretView:
        """What anybody may see."""
        return SecretView(
            name=self.name, version=self.version, created=self.created, rotated=self.rotated, fields=self.fields
        )


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    wraps: tuple[bytes, ...]
    generation: int
    records: tuple[_Record, ...]


_decode = msgspec.msgpack.Decoder(_Body).decode
_encode = msgspec.msgpack.Encoder().encode


def derive(key: bytes, purpose: str, length: int = 32, salt: bytes = b"") -> bytes:
    """A key for one purpose (RFC 5869)."""
    return HKDF(SHA256(), length, salt or None, f"toolrunner broker 1 {purpose}".encode()).derive(key)


class Store:
    """The open store. Not thread-safe: one loop calls it."""

    def __init__(self, path: Path, data_key: bytes, body: _Body, seal: bytes) -> None:
        self._path = path
        self._data_key = data_key
        self._body = body
        self._seal = seal  # of what is on disk
        self._lost = False  # a write ended so that nobody knows what is on disk
        self._records = {record.name: record for record in body.records}

    @classmethod
    def open(cls, folder: Path, master_key: bytes) -> Store:
        """The store in `folder`, made when there is none. Raises `RunnerError` (key): another master key, or a file
        that somebody has changed or damaged."""
        path = folder / FILE
        if os.path.lexists(path):
            return cls._open(path, master_key)
        data_key = secrets.token_bytes(master.KEY_BYTES)
        store = cls(path, data_key, _Body((), 0, ()), b"")
        store._write((_wrap(master_key, data_key),), ())
        return store

    @classmethod
    def _open(cls, path: Path, master_key: bytes) -> Store:
        data = master.read_file(path, maximum=_MAX_FILE)
        body = _parse(data, path)
        data_key = next((found for wrap in body.wraps if (found := _unwrap(master_key, wrap))), None)
        if data_key is None:
            raise refuse(
                "key",
                "this master key does not open it (or its first bytes are damaged)",
                field=str(path),
                next_step="restore the key that goes with it",
            )
        if not hmac.compare_digest(_mac(data_key, data[:-_SEAL]), data[-_SEAL:]):
            raise _damaged(path, "its seal does not fit")
        return cls(path, data_key, body, data[-_SEAL:])

    def key(self, purpose: str) -> bytes:
        """A key that stays as long as the store does, for another part of the broker."""
        return derive(self._data_key, purpose)

    @property
    def generation(self) -> int:
        """How often the store was written."""
        return self._body.generation

    def views(self) -> tuple[SecretView, ...]:
        """What is stored, by name, without values."""
        return tuple(record.view for record in self._body.records)

    def version(self, name: str) -> int:
        """The version of a secret, 0 when there is none of this name."""
        record = self._records.get(name)
        return record.version if record else 0

    def get(self, name: str) -> Secret | None:
        """The secret of this name, the caller's to wipe; None when there is none. Raises `RunnerError` (key)."""
        self._usable()
        record = self._records.get(name)
        if record is None:
            return None
        key, nonce = _once(self._data_key, record.salt)
        plain = bytearray(len(record.box) - _TAG)
        try:
            ChaCha20Poly1305(key).decrypt_into(nonce, record.box, record.bound, plain)
            return Secret.unpack(plain, record.fields, str(record.version))
        except (InvalidTag, ValueError):
            raise _damaged(self._path, f"the record of {name} does not open") from None
        finally:
            plain[:] = bytes(len(plain))

    def put(self, name: str, value: bytes, fields: dict[str, bytes], *, expect: int, now: str) -> int:
        """Keep a secret in place of version `expect` (0: a new name). On disk when this returns its version.

        Raises `RunnerError`: `arguments` when another version is there or it cannot be kept, `unavailable` when the
        disk did not take it."""
        check_secret(name, value, fields)
        before = self._expected(name, expect)
        if before is None and len(self._records) >= MAX_SECRETS:
            raise refuse("arguments", f"the store holds {MAX_SECRETS} secrets already", next_step="remove one")
        salt = secrets.token_bytes(_SALT)
        key, nonce = _once(self._data_key, salt)
        made = _Record(name, expect + 1, before.created if before else now, now, tuple(fields), salt, b"")
        plain = Secret.pack(value, fields)
        try:
            sealed = ChaCha20Poly1305(key).encrypt(nonce, plain, made.bound)
        finally:
            plain[:] = bytes(len(plain))
        made = msgspec.structs.replace(made, box=sealed)
        self._write(self._body.wraps, ({**self._records, name: made}).values())
        return made.version

    def remove(self, name: str, *, expect: int) -> None:
        """Forget a secret. On disk when this returns; raises as `put`."""
        check_name(name)
        self._expected(name, expect)
        self._write(self._body.wraps, [record for record in self._body.records if record.name != name])

    def rewrap(self, *master_keys: bytes) -> None:
        """Let these master keys, and no others, open the store from now on."""
        self._write(tuple(_wrap(key, self._data_key) for key in master_keys), self._body.records)

    def _expected(self, name: str, expect: int) -> _Record | None:
        self._usable()
        record = self._records.get(name)
        if (record.version if record else 0) != expect:
            raise refuse(
                "arguments",
                f"version {record.version} is stored, not {expect}" if record else "no secret of this name is stored",
                field=name,
                next_step="see `runner secret list`",
            )
        return record

    def _usable(self) -> None:
        if self._lost:
            raise refuse(
                "unavailable",
                "the store could not be written and is not read any more",
                field=str(self._path),
                next_step="see the disk, then start the daemon again",
            )

    def _write(self, wraps: tuple[bytes, ...], records: Any) -> None:
        self._usable()
        body = _Body(wraps, self._body.generation + 1, tuple(sorted(records, key=lambda record: record.name)))
        data = _MAGIC + _encode(body)
        seal = _mac(self._data_key, data)
        with self._disk():
            if self._seal:
                on_disk = master.read_file(self._path, maximum=_MAX_FILE)[-_SEAL:]
                if not hmac.compare_digest(on_disk, self._seal):
                    raise _damaged(self._path, "it is not what the broker wrote last: somebody has replaced it")
            elif os.path.lexists(self._path):
                raise _damaged(self._path, "somebody has put it there")
            self._replace(data + seal)
        self._body, self._seal = body, seal
        self._records = {record.name: record for record in body.records}

    def _replace(self, data: bytes) -> None:
        fresh = self._path.with_name(f"{FILE}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self._lost = True  # until the folder is on disk too
        fresh.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._lost = False

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refuse(
                "unavailable",
                f"the store could not be written: {error.strerror or error}",
                field=str(self._path),
                next_step="see the disk; what was stored before is still there",
            ) from None


def _parse(data: bytes, path: Path) -> _Body:
    """The body of a file, its form checked and nothing else."""
    if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _SEAL:
        raise _damaged(path, "it is no store of this version")
    try:
        body = _decode(data[len(_MAGIC) : -_SEAL])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _damaged(path, "it cannot be read") from None
    names = [record.name for record in body.records]
    formed = all(
        len(record.salt) == _SALT and _TAG <= len(record.box) <= _MAX_BOX and len(record.fields) <= MAX_FIELDS
        for record in body.records
    )
    if (
        not formed
        or not 1 <= len(body.wraps) <= 2
        or len(names) > MAX_SECRETS
        or names != sorted(set(names))
        or _encode(body) != data[len(_MAGIC) : -_SEAL]  # one encoding only
    ):
        raise _damaged(path, "its parts are not in order")
    return body


def _damaged(path: Path, what: str) -> Exception:
    return refuse("key", f"{what}; nothing of it is used", field=str(path), next_step="restore it from a copy")


def _mac(data_key: bytes, data: bytes) -> bytes:
    return hmac.digest(derive(data_key, "seal"), data, hashlib.sha256)


def _once(data_key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The key and nonce of one sealing: 128 random bits choose them, so no pair is used twice."""
    both = derive(data_key, "record", master.KEY_BYTES + _NONCE, salt)
    return both[: master.KEY_BYTES], both[master.KEY_BYTES :]


def _wrap(master_key: bytes, data_key: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + ChaCha20Poly1305(derive(master_key, "wrap")).encrypt(nonce, data_key, _MAGIC)


def _unwrap(master_key: bytes, wrap: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(derive(master_key, "wrap")).decrypt(wrap[:_NONCE], wrap[_NONCE:], _MAGIC)
    except (InvalidTag, ValueError):
        return None
