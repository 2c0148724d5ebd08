"""One call's output: raw pieces in, filtered chunks out, each kept under a salted digest before it is delivered."""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

from runner.ledger.entry import Content, Stream
from runner.model import Chunk
from runner.stream.filters import Cap
from runner.wire.recorder import StoreClose, StoreOpen, StoreWrite

SALT_BYTES = 16  # so that pruned content cannot be guessed from its digest
Name = Literal["stdout", "stderr"]


class Recorder(Protocol):
    """Where content goes."""

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Queue a piece of content; waits while the recorder is behind."""


def salted(data: bytes, salt: bytes) -> tuple[bytes, Content]:
    """What is stored for `data`, and how an entry names it."""
    kept = salt + data
    return kept, Content(digest=hashlib.sha256(kept).hexdigest(), size=len(data))


class _Kept:
    """One stream on its way into the content store; opened by its first byte."""

    def __init__(self, number: int, salt: bytes) -> None:
        self.number = number
        self._salt = salt
        self._digest = hashlib.sha256(salt)
        self.size = 0
        self.delivered = 0

    async def write(self, data: bytes, recorder: Recorder) -> None:
        if not self.size:
            await recorder.send(StoreOpen(stream=self.number, salt=self._salt))
        self._digest.update(data)
        self.size += len(data)
        await recorder.send(StoreWrite(stream=self.number, data=data))

    async def close(self, recorder: Recorder) -> Stream | None:
        if not self.size:
            return None
        digest = self._digest.hexdigest()
        await recorder.send(StoreClose(stream=self.number, digest=digest))
        return Stream(digest=digest, size=self.size, delivered=self.delivered)


class Pump:
    """Filters and keeps the output of one call. `numbers` are two content stream numbers, unique while open."""

    def __init__(self, recorder: Recorder, *, limit: int, numbers: tuple[int, int], salts: tuple[bytes, bytes]) -> None:
        self._recorder = recorder
        self._cap = Cap(limit)
        self._streams = {"stdout": _Kept(numbers[0], salts[0]), "stderr": _Kept(numbers[1], salts[1])}

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
        await kept.write(clean, self._recorder)
        return Chunk(stream=stream, offset=offset, data=clean)

    def delivered(self, stream: Name, count: int) -> None:
        """The agent was given this many more bytes of a stream."""
        self._streams[stream].delivered += count

    def size(self, stream: Name) -> int:
        """Bytes kept of a stream so far."""
        return self._streams[stream].size

    async def close(self) -> tuple[Stream | None, Stream | None]:
        """End both streams; what their entry says of them."""
        stdout = await self._streams["stdout"].close(self._recorder)
        stderr = await self._streams["stderr"].close(self._recorder)
        return stdout, stderr
