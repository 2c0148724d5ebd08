"""One call's output: raw pieces in, filtered chunks out, each kept under a salted digest.

Little output waits here for the entry that names it and travels with it; more is sent to the recorder while it comes.
Either way it is in the store before the entry is: a call whose daemon dies before that has neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from runner.ledger.entry import Stream
from runner.model import Chunk
from runner.stream.filters import Cap
from runner.stream.stage import Name
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite

_HELD = WITH_ENTRY // 2  # bytes of a stream that wait for the entry


class Recorder(Protocol):
    """Where content goes."""

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Queue a piece of content; waits while the recorder is behind."""


class _Kept:
    """One stream on its way into the content store; begun by its first byte."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._salt = b""  # so that pruned content cannot be guessed from its digest
        self._digest = hashlib.sha256()
        self._held = bytearray()  # what waits for the entry
        self._opened = False  # at the recorder: nothing waits any more
        self.size = 0
        self.delivered = 0

    async def write(self, data: bytes, salt: Callable[[], bytes], recorder: Recorder) -> None:
        if not self.size:
            self._salt = salt()
            self._digest.update(self._salt)
        self._digest.update(data)
        self.size += len(data)
        if self.size <= _HELD:
            self._held += data
            return
        if not self._opened:
            self._opened = True
            await recorder.send(StoreOpen(stream=self._number, salt=self._salt))
            data = bytes(self._held) + data
            self._held.clear()
        await recorder.send(StoreWrite(stream=self._number, data=data))

    async def close(self, recorder: Recorder) -> tuple[Stream | None, tuple[bytes, ...]]:
        if not self.size:
            return None, ()
        digest = self._digest.hexdigest()
        if self._opened:
            await recorder.send(StoreClose(stream=self._number, digest=digest))
        held = () if self._opened else (self._salt + bytes(self._held),)
        return Stream(digest=digest, size=self.size, delivered=self.delivered), held


class Pump:
    """Filters and keeps the output of one call. `numbers` are two content stream numbers, unique while open; `salt` is
    asked for each stream's own."""

    def __init__(self, recorder: Recorder, *, limit: int, numbers: tuple[int, int], salt: Callable[[], bytes]) -> None:
        self._recorder = recorder
        self._cap = Cap(limit)
        self._salt = salt
        self._streams = {"stdout": _Kept(numbers[0]), "stderr": _Kept(numbers[1])}

    @property
    def capped(self) -> bool:
        """Whether output was cut; the call is to be killed."""
        return self._cap.hit

    async def take(self, stream: Name, data: bytes) -> Chunk | None:
        """Filter a raw piece and keep what is left of it. None when nothing is."""
        clean = self._cap.take(data)
        if not clean:
            return None
        kept = self._streams[stream]
        offset = kept.size
        await kept.write(clean, self._salt, self._recorder)
        return Chunk(stream=stream, offset=offset, data=clean)

    def delivered(self, stream: Name, count: int) -> None:
        """The agent was given this many more bytes of a stream."""
        self._streams[stream].delivered += count

    def size(self, stream: Name) -> int:
        """Bytes kept of a stream so far."""
        return self._streams[stream].size

    async def close(self) -> tuple[Stream | None, Stream | None, tuple[bytes, ...]]:
        """End both streams: what their entry says of them, and the content that is to be kept with it."""
        stdout, held = await self._streams["stdout"].close(self._recorder)
        stderr, more = await self._streams["stderr"].close(self._recorder)
        return stdout, stderr, held + more
