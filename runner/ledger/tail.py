"""The tail: the journal of entries that fill no bundle yet, with the checkpoints that sign them.

A record is type (1 byte), length (4, big-endian), CRC-32 over type, length and bytes (4), then the bytes. The
first record is the head, a signed note that says at which position the tail begins and what was going on there;
then entries, and after each group of them one signed checkpoint, so that one fdatasync makes both durable.

What damage means follows from one fact: group k+1 is written only after group k's fdatasync has returned.
Unreadable bytes in the last group may be a write that power or a crash cut off; unreadable bytes before it were
acknowledged once, and are damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from runner.errors import refuse
from runner.ledger.entry import MAX_ENTRY
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.note import MAX_CHECKPOINT, MAX_SIZE_DIGITS, Signer, Verifier, open_note
from runner.ledger.sequence import State

HEAD, ENTRY, SIGNED = 1, 2, 3
_HEADER = struct.Struct(">BII")
_MAX = {HEAD: 16 << 20, ENTRY: MAX_ENTRY, SIGNED: MAX_CHECKPOINT}


class Record(NamedTuple):
    """One record; `offset` is where it begins in the file."""

    kind: int
    offset: int
    data: bytes


class Head(NamedTuple):
    """Where a tail begins: position, root of the tree there, and the state of all entries before it. `size` is the
    ledger's when the head was written: a tail whose signed entries end before that has lost acknowledged ones."""

    base: int
    size: int
    root: bytes
    state: State


class Tail(NamedTuple):
    """A tail as read: readable bytes end at `end`, the file at `size`."""

    head: Head
    records: list[Record]  # entries and checkpoints in order
    end: int
    size: int

    @property
    def torn(self) -> bool:
        """Whether unreadable bytes follow."""
        return self.end < self.size

    @property
    def entries(self) -> list[bytes]:
        """The entries, from position `head.base` on."""
        return [record.data for record in self.records if record.kind == ENTRY]


def record(kind: int, data: bytes) -> bytes:
    """One record's bytes."""
    crc = zlib.crc32(data, zlib.crc32(struct.pack(">BI", kind, len(data))))
    return _HEADER.pack(kind, len(data), crc) + data


def sign_head(head: Head, signer: Signer) -> bytes:
    """The head as a signed note. Its first line can never be taken for a checkpoint's origin."""
    state = msgspec.json.encode(head.state).decode()
    return signer.sign(f"{signer.verifier.name}/tail\n{head.base} {head.size}\n{head.root.hex()}\n{state}\n")


def read_head(note: bytes, verifier: Verifier) -> Head:
    """A verified head. Raises `RunnerError` (ledger)."""
    lines = open_note(note, verifier).split("\n")
    if len(lines) != 5 or lines[0] != f"{verifier.name}/tail":
        raise refuse("ledger", "the tail's head is of another log")
    base, _, size = lines[1].partition(" ")
    if not all(text.isascii() and text.isdecimal() and len(text) <= MAX_SIZE_DIGITS for text in (base, size)):
        raise refuse("ledger", "the tail's head has no valid position")
    if int(base) % TILE_WIDTH or int(base) > int(size):
        raise refuse("ledger", "the tail's head has no valid position")
    try:
        state = msgspec.json.decode(lines[3], type=State)
        return Head(int(base), int(size), bytes.fromhex(lines[2]), state)
    except (msgspec.DecodeError, ValueError):
        raise refuse("ledger", "the tail's head has no valid state") from None


def build(head: bytes, entries: Iterable[bytes], checkpoint: bytes) -> bytes:
    """A whole tail: head, entries, and the checkpoint that signs them."""
    return record(HEAD, head) + b"".join([record(ENTRY, data) for data in entries]) + record(SIGNED, checkpoint)


def read_tail(data: bytes, verifier: Verifier) -> Tail:
    """Everything readable in a tail's bytes. Raises `RunnerError` (ledger) when its head is not readable (it is
    written in one piece, so no crash explains that), or when acknowledged bytes are damaged."""
    first = _record_at(data, 0)
    if first is None or first.kind != HEAD:
        raise refuse("ledger", "the tail's first record is damaged", field="tail")
    head = read_head(first.data, verifier)
    place = _end(first)
    records: list[Record] = []
    while (found := _record_at(data, place)) is not None and found.kind != HEAD:
        records.append(found)
        place = _end(found)
    if place < len(data):
        _refuse_damage(data, place)
    return Tail(head, records, place, len(data))


def _end(found: Record) -> int:
    return found.offset + _HEADER.size + len(found.data)


def _record_at(data: bytes, place: int) -> Record | None:
    """The intact record at `place`, if there is one."""
    start = place + _HEADER.size
    if start > len(data):
        return None
    kind, length, crc = _HEADER.unpack_from(data, place)
    if length > _MAX.get(kind, -1) or start + length > len(data):
        return None
    body = data[start : start + length]
    if zlib.crc32(body, zlib.crc32(data[place : place + 5])) != crc:
        return None
    return Record(kind, place, body)


def _refuse_damage(data: bytes, place: int) -> None:
    """Refuse when a whole group follows the unreadable bytes at `place`: then they had been acknowledged.

    Entries are JSON text, which holds no byte 0x03: what looks like a checkpoint's record is one."""
    at = data.find(SIGNED, place)
    while at >= 0:
        signed = _record_at(data, at)
        if signed is not None:
            if _record_at(data, _end(signed)) is not None:
                raise refuse("ledger", f"acknowledged entries are damaged at byte {place}", field="tail")
            at = _end(signed) - 1
        at = data.find(SIGNED, at + 1)
