"""Frames: a 4-byte big-endian length, then one msgpack map.

`scan` walks the bytes before any decoder sees them: counts, depth, lengths, duplicate and non-string keys
(msgspec keeps the last duplicate; another decoder may keep the first). It is iterative, so depth costs no stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
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

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add `data`; yield each complete body. Raises `RunnerError` (protocol) on an impossible length."""
        buffer = self._buffer
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
                body = bytes(buffer[start + HEADER : end])
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


# Fixed payload sizes of the msgpack types that have one; the rest are handled by name below.
_FIXED = {
    0xC0: 0,
    0xC2: 0,
    0xC3: 0,
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: width of the length
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def scan(body: bytes, elements: int, depth: int) -> None:
    """Refuse a body with more than `elements` values, nested deeper than `depth`, with a repeated or non-string
    key, an extension type, a cut value or bytes after the first value. Raises `RunnerError` (protocol)."""
    size = len(body)
    position = 0
    left = elements
    # One record per open container: [values still to come, keys seen (None for arrays), next is a key].
    stack: list[list[Any]] = []
    while True:
        if left <= 0:
            raise refuse("protocol", f"more than {elements} values in a frame")
        left -= 1
        if position >= size:
            raise refuse("protocol", "the frame ends inside a value")
        tag = body[position]
        position += 1
        is_key = bool(stack) and stack[-1][2]
        opened: list[Any] | None = None
        if 0xA0 <= tag <= 0xBF or tag in _SIZED:
            if tag in _SIZED:
                width = _SIZED[tag]
                if position + width > size:
                    raise refuse("protocol", "the frame ends inside a length")
                length = int.from_bytes(body[position : position + width], "big")
                position += width
            else:
                length = tag & 0x1F
            if length > size - position:
                raise refuse("protocol", "the frame ends inside a string")
            if is_key:
                if 0xC4 <= tag <= 0xC6:
                    raise refuse("protocol", "a map key is not a string")
                key = body[position : position + length]
                if key in stack[-1][1]:
                    raise refuse("protocol", "a map key is repeated")
                stack[-1][1].add(key)
            position += length
        elif is_key:
            raise refuse("protocol", "a map key is not a string")
        elif tag <= 0x7F or tag >= 0xE0:
            pass
        elif tag in _FIXED:
            position += _FIXED[tag]
            if position > size:
                raise refuse("protocol", "the frame ends inside a number")
        elif 0x80 <= tag <= 0x8F:
            opened = [2 * (tag & 0x0F), set(), True]
        elif 0x90 <= tag <= 0x9F:
            opened = [tag & 0x0F, None, False]
        elif tag in _MAPS or tag in _ARRAYS:
            is_map = tag in _MAPS
            width = _MAPS[tag] if is_map else _ARRAYS[tag]
            if position + width > size:
                raise refuse("protocol", "the frame ends inside a length")
            count = int.from_bytes(body[position : position + width], "big")
            position += width
            if count > left:
                raise refuse("protocol", f"more than {elements} values in a frame")
            opened = [2 * count, set(), True] if is_map else [count, None, False]
        else:
            raise refuse("protocol", f"msgpack type 0x{tag:02x} is not used here")

        if stack and opened is None:
            _step(stack[-1])
        if opened is not None:
            if stack:
                _step(stack[-1])
            if opened[0]:
                if len(stack) >= depth:
                    raise refuse("protocol", f"nested deeper than {depth}")
                stack.append(opened)
        while stack and stack[-1][0] == 0:
            stack.pop()
        if not stack:
            break
    if position != size:
        raise refuse("protocol", "bytes after the message")


def _step(container: list[Any]) -> None:
    container[0] -= 1
    if container[1] is not None:
        container[2] = not container[2]
