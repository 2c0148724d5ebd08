"""Raw output under escrow: what a tool wrote, before any filter, encrypted to keys that only forensics holds.

Kept content is segments, each behind its length (big-endian uint32). A segment is an age file (age-encryption.org/v1,
X25519), so `age -d` opens it too; inside are a line of JSON, which is its `Head`, and the bytes it tells of. The head
is authenticated with them: it binds a segment to its call, its number and its place in each stream, so that none can
be moved, left out or taken from another call without that being found. Who wrote a segment it does not prove (anyone
can encrypt to a public key): that, the digest of all of them in the call's signed outcome does.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from pyrage import DecryptError, IdentityError, RecipientError, decrypt, encrypt, x25519

from runner.errors import RunnerError, refuse

Stream = Literal["stdout", "stderr", "result"]  # a result is a python tool's, as it came

SEGMENT = 64 << 10  # bytes of output in a segment: gate holds so much of a call in clear, and encrypts it in 0.15 ms
PIECES = 1024  # runs of one stream in a segment: a tool that changes stream with every byte costs no more than this
MAX_SEGMENT = SEGMENT + (96 << 10)  # bytes of a whole age file: its own overhead for every recipient, and the head
MAX_RECIPIENTS = 8  # 35 µs for each, with every segment

_LENGTH = struct.Struct(">I")
_IDENTITY = re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]{58}\Z")
_FINGERPRINT = 16  # hex digits

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of an opened segment. `starts` says how many bytes of each stream came before it; `pieces` are the
    runs that follow, in the order in which they were read: a stream, and how many of its bytes."""

    v: Literal[1] = 1
    call: str
    number: Count
    starts: dict[Stream, Count]
    pieces: tuple[tuple[Stream, Count], ...]


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Head)


def fingerprint(recipient: str) -> str:
    """How an entry names the holder of a key: the beginning of the SHA-256 of its `age1…` text."""
    return hashlib.sha256(recipient.encode()).hexdigest()[:_FINGERPRINT]


class Recipients:
    """The public keys that raw output is encrypted to; any of their holders can open it."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises `RunnerError` (config) for one that is no X25519 recipient of age, is named twice, or is one too
        many."""
        if not 0 < len(texts) <= MAX_RECIPIENTS or len({*texts}) != len(texts):
            raise refuse("config", f"1 to {MAX_RECIPIENTS} different recipients", field="escrow.recipients")
        self._keys = []
        for text in texts:
            try:
                self._keys.append(x25519.Recipient.from_str(text))
            except RecipientError as error:
                raise refuse(
                    "config",
                    f"{text[:80] if text.startswith('age1') else 'one'} is no X25519 recipient of age: {error}",
                    field="escrow.recipients",
                    next_step="paste what `runner escrow init` prints",
                ) from None
        self.fingerprints = tuple(map(fingerprint, texts))

    def seal(self, head: Head, data: bytes | bytearray) -> bytes:
        """A segment, behind its length."""
        sealed: bytes = encrypt(b"".join((_encoder.encode(head), b"\n", data)), self._keys)
        return _LENGTH.pack(len(sealed)) + sealed


class Identities:
    """The private keys that open it. They stay with whoever reads: no process of the daemon ever has one."""

    def __init__(self, text: str) -> None:
        """From an identity file as `age-keygen` writes it: a key a line, `#` comments. Raises `RunnerError` (key)."""
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        try:
            if not keys or not all(map(_IDENTITY.match, keys)):
                raise IdentityError("no line, or another, is AGE-SECRET-KEY-1…")
            self._keys = [x25519.Identity.from_str(key) for key in keys]
        except IdentityError as error:
            raise refuse("key", f"not an identity file of age: {error}", next_step="see `runner escrow init`") from None
        self.fingerprints = tuple(fingerprint(str(key.to_public())) for key in self._keys)

    def open(self, content: Iterable[bytes], call: str) -> Iterator[tuple[Stream, bytes]]:
        """The raw output of `call` from its kept content (without salt, in any pieces), in the order in which it was
        read.

        Raises `RunnerError`: (key) when these are not the keys; (ledger) when a segment was damaged, moved, left out,
        or is another call's. What was given until then is what the tool wrote."""
        before: dict[Stream, int] = {"stdout": 0, "stderr": 0, "result": 0}
        for number, sealed in enumerate(split(content)):
            try:
                opened = decrypt(sealed, self._keys)
            except DecryptError as error:
                if "No matching keys" in str(error):
                    raise refuse(
                        "key",
                        "this identity opens none of it",
                        field=f"segment {number}",
                        next_step="give the identity of a recipient that `runner trace show` names",
                        allowed=f"you gave {', '.join(self.fingerprints)}",
                    ) from None
                raise _wrong(number, "it is damaged") from None
            line, _, data = opened.partition(b"\n")
            try:
                head = _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise _wrong(number, "it does not say what it holds") from None
            if head.call != call:
                raise _wrong(number, f"it is of call {head.call[:128]}")
            known = {name: count for name, count in before.items() if count}
            if (head.number, head.starts) != (number, known) or sum(n for _, n in head.pieces) != len(data):
                raise _wrong(number, f"it is segment {head.number}, of another place")
            start = 0
            for name, count in head.pieces:
                before[name] += count
                yield name, data[start : start + count]
                start += count


def new_identity() -> tuple[str, str]:
    """A fresh key: its private text, and the recipient that belongs to it."""
    made = x25519.Identity.generate()
    return str(made), str(made.to_public())


def split(content: Iterable[bytes]) -> Iterator[bytes]:
    """The age files in kept content. Raises `RunnerError` (ledger) where it is cut."""
    held, number = bytearray(), 0
    for piece in content:
        held += piece
        while len(held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held)
            if not 0 < length <= MAX_SEGMENT:
                raise _wrong(number, "it is no segment")
            if len(held) < _LENGTH.size + length:
                break
            yield bytes(held[_LENGTH.size : _LENGTH.size + length])
            del held[: _LENGTH.size + length]
            number += 1
    if held:
        raise _wrong(number, "it is cut")


def _wrong(number: int, reason: str) -> RunnerError:
    return refuse("ledger", f"what is kept is not what the tool wrote: {reason}", field=f"segment {number}")
