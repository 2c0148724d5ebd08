"""The tail: the journal of entries that fill no bundle yet, with the checkpoints that sign them.

A record is type (1 byte), length (4, big-endian), CRC-32 over type, length and bytes (4), then the bytes. The
first record is the head, a signed note that says at which position the tail begins and what was going on there;
then entries, each behind the small content that came with it, and after each group of them one signed checkpoint, so
that one fdatasync makes all of it durable.

What damage means follows from one fact: group k+1 is written only after group k's fdatasync has returned.
Unreadable bytes in the last group may be a write that power or a crash cut off; unreadable bytes before it were
acknowledged once, and are damage. Content is hostile: it may look like any record, but it cannot hold a checkpoint
that was signed after it was written.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from runner.errors import RunnerError, refuse
from runner.ledger.entry import MAX_ENTRY
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.note import MAX_SIZE_DIGITS, Signer, Verifier, open_note, read_checkpoint
from runner.ledger.sequence import State
from runner.ledger.tile import PACKED

HEAD, ENTRY, SIGNED, CONTENT = 1, 2, 3, 4
_HEADER = struct.Struct(">BII")
_START, _CRC = struct.Struct(">BI"), struct.Struct(">I")  # the header's parts: what the CRC covers, and the CRC
_SIGNED_START = bytes((SIGNED, 0, 0))  # type and the upper half of the length of every checkpoint's record
_MAX = {HEAD: 16 << 20, ENTRY: MAX_ENTRY, SIGNED: 4096, CONTENT: PACKED}  # checkpoints here are the recorder's own


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
    records: list[Record]  # content, entries and checkpoints in order
    end: int
    size: int

    @property
    def torn(self) -> bool:
        """Whether unreadable bytes follow."""
        return self.end < self.size

    @property
    def acknowledged(self) -> Tail:
        """The same, ending with its last checkpoint."""
        last = max((number for number, each in enumerate(self.records, 1) if each.kind == SIGNED), default=0)
        if last == len(self.records):
            return self
        end = self.records[last].offset
        return Tail(self.head, self.records[:last], end, self.size)

    @property
    def entries(self) -> list[bytes]:
        """The entries, from position `head.base` on."""
        return [record.data for record in self.records if record.kind == ENTRY]

    @property
    def signed(self) -> int:
        """How many entries there are before the last checkpoint."""
        count = signed = 0
        for record in self.records:
            count += record.kind == ENTRY
            signed = count if record.kind == SIGNED else signed
        return signed


def record(kind: int, data: bytes) -> bytes:
    """One record's bytes."""
    start = _START.pack(kind, len(data))
    return start + _CRC.pack(zlib.crc32(data, zlib.crc32(start))) + data


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


def group(entries: Iterable[tuple[bytes, Sequence[bytes]]], checkpoint: bytes) -> bytes:
    """Entries, each with its content, which goes ahead of it, and the checkpoint that signs them."""
    records: list[bytes] = []
    for data, contents in entries:
        records += [record(CONTENT, content) for content in contents]
        records.append(record(ENTRY, data))
    records.append(record(SIGNED, checkpoint))
    return b"".join(records)


def build(head: bytes, entries: Iterable[tuple[bytes, Sequence[bytes]]], checkpoint: bytes) -> bytes:
    """A whole tail: its head, and one group."""
    return record(HEAD, head) + group(entries, checkpoint)


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
    bad = place
    while records and records[-1].kind == CONTENT:
        place = records.pop().offset  # its entry is missing: it was cut off between the two
    tail = Tail(head, records, place, len(data))
    if bad < len(data):
        _refuse_damage(data, bad, head.base + tail.signed, verifier)
    return tail


def contents(data: bytes) -> Iterator[bytes]:
    """The content in a tail's bytes, as far as they are readable. Nothing is verified: it is hashed by who wants it."""
    place = 0
    while (found := _record_at(data, place)) is not None:
        if found.kind == CONTENT:
            yield found.data
        place = _end(found)


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


def _refuse_damage(data: bytes, place: int, known: int, verifier: Verifier) -> None:
    """Refuse when a whole group follows the unreadable bytes at `place`: then they had been acknowledged.

    A group ends in a checkpoint over more than the `known` entries before `place`. Content of the unacknowledged
    group may hold older ones, but none of those: it was there before they were signed."""
    at = data.find(_SIGNED_START, place)
    while at >= 0:
        signed = _record_at(data, at)
        if signed is not None and _size_of(signed.data, verifier) > known:
            if _record_at(data, _end(signed)) is not None:
                raise refuse("ledger", f"acknowledged entries are damaged at byte {place}", field="tail")
            at = _end(signed) - 1
        at = data.find(_SIGNED_START, at + 1)


def _size_of(note: bytes, verifier: Verifier) -> int:
    """What a checkpoint signs; -1 when it is none of ours."""
    try:
        return read_checkpoint(note, verifier).size
    except RunnerError:
        return -1
