"""Frames: a 4-byte big-endian length, then one msgpack map.

`scan` walks the bytes before any decoder sees them: counts, depth, lengths, duplicate and non-string keys
(msgspec keeps the last duplicate; another decoder may keep the first). It is iterative, so depth costs no stack.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import msgspec

from runner.errors import refuse

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
HEADER = _LENGTH.size

_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """One message as a frame: length and body."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Bytes in, frame bodies out. Refuses a length above `maximum` before any of the body is kept."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held here."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Generator[bytes, None, None]:
        """Add `data`; yield each complete body. Raises `RunnerError` (protocol) on an impossible length.

        Close it half-way to leave the rest for the next `feed`."""
        buffer = self._buffer
        if not buffer and len(data) > HEADER and _LENGTH.unpack_from(data)[0] == len(data) - HEADER <= self._maximum:
            yield bytes(data[HEADER:])  # one whole frame: what nearly always arrives
            return
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if not 0 < length <= self._maximum:
                    raise refuse("protocol", f"frame length {length} is not within 1..{self._maximum}")
                end = start + HEADER + length
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + HEADER : end])  # a slice would be another copy
                start = end
                yield body
        finally:
            del buffer[:start]


class Decoder(Generic[T]):
    """Scan, then decode into a tagged union. Raises `RunnerError` (protocol) on anything else."""

    def __init__(self, union: Any, *, elements: int, depth: int, scan_first: bool = True) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._elements = elements
        self._depth = depth
        self._scan = scan_first

    def decode(self, body: bytes) -> T:
        """One body into one message."""
        if self._scan:
            scan(body, self._elements, self._depth)
        try:
            message: T = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refuse("protocol", "not a message of this protocol", detail=str(error)) from None
        return message


# What a tag byte says: (kind, bytes of the length or count that follow it, that number when it is in the tag itself).
_SCALAR, _STRING, _BINARY, _ARRAY, _MAP, _UNUSED = range(6)
_Head = tuple[int, int, int]


def _head(tag: int) -> _Head:
    """The table's row of a tag (msgpack specification, "Formats"). Extension types are not used here."""
    if tag <= 0x7F or tag >= 0xE0:
        return _SCALAR, 0, 0
    if tag <= 0x8F:
        return _MAP, 0, tag & 0x0F
    if tag <= 0x9F:
        return _ARRAY, 0, tag & 0x0F
    if tag <= 0xBF:
        return _STRING, 0, tag & 0x1F
    scalars = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    scalars |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    if tag in scalars:
        return _SCALAR, 0, scalars[tag]
    sized = {0xC4: (_BINARY, 1), 0xC5: (_BINARY, 2), 0xC6: (_BINARY, 4)}
    sized |= {0xD9: (_STRING, 1), 0xDA: (_STRING, 2), 0xDB: (_STRING, 4)}
    sized |= {0xDC: (_ARRAY, 2), 0xDD: (_ARRAY, 4), 0xDE: (_MAP, 2), 0xDF: (_MAP, 4)}
    return (*sized[tag], 0) if tag in sized else (_UNUSED, 0, 0)


_HEADS: tuple[_Head, ...] = tuple(_head(tag) for tag in range(256))
_CUT: _Head = (_UNUSED, 0, 0)
_CONTAINERS = (_ARRAY, _MAP)
# A container that is not complete: values still to come, and for a map the keys seen and whether a key is next.
_Open = tuple[int, set[bytes] | None, bool]
_FRAME: _Open = (1, None, False)


def scan(body: bytes, elements: int, depth: int) -> None:
    """Refuse a body with more than `elements` values, nested deeper than `depth`, with a repeated or non-string
    key, an extension type, a cut value or bytes after the first value. Raises `RunnerError` (protocol)."""
    size, position, left = len(body), 0, elements
    outer: list[_Open] = []
    values, keys, key_next = _FRAME  # of the innermost container that is not complete
    while values:
        left -= 1
        kind, width, number = _HEADS[body[position]] if position < size else _CUT
        position += 1 + width
        if width:
            number = int.from_bytes(body[position - width : position], "big")
        is_container = kind in _CONTAINERS
        if kind == _UNUSED or position > size or (not is_container and number > size - position):
            raise refuse("protocol", "a value is cut, or of a type that is not used here")
        if left < 0 or (is_container and number > left):
            raise refuse("protocol", f"more than {elements} values in a frame")
        values -= 1
        if keys is not None:
            if key_next:
                _add_key(keys, kind, body[position : position + number])
            key_next = not key_next
        if not is_container:
            position += number
        elif number:
            if len(outer) >= depth:
                raise refuse("protocol", f"nested deeper than {depth}")
            outer.append((values, keys, key_next))
            values, keys, key_next = (2 * number, set(), True) if kind == _MAP else (number, None, False)
        while not values and outer:
            values, keys, key_next = outer.pop()
    if position != size:
        raise refuse("protocol", "bytes after the message")


def _add_key(keys: set[bytes], kind: int, text: bytes) -> None:
    """A key must be a string that was not seen in this map."""
    if kind != _STRING:
        raise refuse("protocol", "a map key is not a string")
    if text in keys:
        raise refuse("protocol", "a map key is repeated")
    keys.add(text)
