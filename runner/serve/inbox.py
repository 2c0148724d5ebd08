"""What arrives from another process of the house, read into one buffer that is used again and again.

A fresh buffer for every read (256 KiB: mapped, touched, unmapped) cost more than everything else done for a message.
Both ends are ours, so frames are bounded but not scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from runner.errors import refuse
from runner.wire.frame import HEADER

MAX_INTERNAL_FRAME = 64 << 20  # a whole catalogue travels as one message
_BUFFER = 256 << 10  # what a socket holds by default is not much less


class Inbox:
    """Bytes in, messages out: read into `room`, then `take` what the read put there."""

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = memoryview(bytearray(_BUFFER))
        self._held = 0  # bytes of an unfinished frame at the buffer's start

    @property
    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._buffer[self._held :]

    def take(self, count: int) -> Iterator[Any]:
        """Each message that is whole with `count` more bytes; decoding copies, so none refers to the buffer.

        To be used up before the next read. Raises `RunnerError` (protocol) for an impossible length or message."""
        buffer, start, end = self._buffer, 0, self._held + count
        while end - start >= HEADER:
            length = int.from_bytes(buffer[start : start + HEADER], "big")
            if not 0 < length <= MAX_INTERNAL_FRAME:
                raise refuse("protocol", f"frame length {length} is not within 1..{MAX_INTERNAL_FRAME}")
            following = start + HEADER + length
            if following > end:
                self._keep(buffer[start:end], HEADER + length)
                return
            try:
                message = self._decode(buffer[start + HEADER : following])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise refuse("protocol", "not a message of this protocol", detail=str(error)) from None
            start = following
            yield message
        self._keep(buffer[start:end], _BUFFER)

    def _keep(self, rest: memoryview, needed: int) -> None:
        """Move an unfinished frame to the start of a buffer that will hold `needed` bytes: a large one while a large
        frame is under way, the usual one otherwise."""
        size = max(needed, _BUFFER)
        if len(self._buffer) != size:
            self._buffer = memoryview(bytearray(size))
        self._buffer[: len(rest)] = rest
        self._held = len(rest)
