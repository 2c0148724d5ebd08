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
from runner.stream.escrow import Escrow
from runner.stream.hygiene import Clean
from runner.stream.stage import Name
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite

_HELD = WITH_ENTRY // 2  # bytes of a stream that wait for the entry
_TURN_S = 0.005  # for which a piece may hold up everybody else
_LEAST, _USUAL, _MOST = 4 << 10, 64 << 10, 128 << 10  # bytes of a piece: more at once costs less, up to here
_OURS = 1 << 20  # bytes of a stream that are digested here, too; the recorder tells the name of a longer one


class Recorder(Protocol):
    """Where content goes."""

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Queue a piece of content; waits while the recorder is behind."""

    async def end(self, stream: int) -> str:
        """The end of a content in pieces: its name."""


class Filter(Protocol):
    """What output passes: `runner.stream.filters.CallFilter`."""

    raw: Escrow | None  # what takes it before

    @property
    def waits_ms(self) -> int:
        """How long a quiet lets something go; 0 when nothing waits."""

    def take(self, stream: Name, data: bytes) -> list[Clean]:
        """A raw piece: what may go on now."""

    def pause(self, quiet_ms: int) -> list[Clean]:
        """Nothing came for so long: what need not wait longer."""

    def close(self) -> list[Clean]:
        """The call is over: everything that waited."""

    async def consult(self) -> list[Clean]:
        """And what waited for somebody to look at it; after `close`."""


class _Kept:
    """One stream on its way into the content store; begun by its first byte."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._salt = b""  # so that pruned content cannot be guessed from its digest
        self._digest = hashlib.sha256()  # of a stream up to `_OURS`
        self._held = bytearray()  # what waits for the entry
        self._opened = False  # at the recorder: nothing waits any more
        self._encoding = ""  # of what comes after `_text` bytes
        self._text = 0
        self.size = 0
        self.delivered = 0

    async def write(self, data: bytes, encoding: str, salt: Callable[[], bytes], recorder: Recorder) -> None:
        if encoding and not self._encoding:
            self._encoding, self._text = encoding, self.size
        if not self.size:
            self._salt = salt()
            self._digest.update(self._salt)
        self.size += len(data)
        if self.size <= _OURS:
            self._digest.update(data)
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
        if self.size > _OURS:
            digest = await recorder.end(self._number)
        else:
            digest = self._digest.hexdigest()
            if self._opened:
                await recorder.send(StoreClose(stream=self._number, digest=digest))
        held = () if self._opened else (self._salt + bytes(self._held),)
        told = Stream(digest=digest, size=self.size, delivered=self.delivered, encoding=self._encoding, text=self._text)
        return told, held


class Pump:
    """Filters and keeps the output of one call. `numbers` are two content stream numbers, unique while open; `salt` is
    asked for each stream's own; `clock` counts seconds.

    `most` is how much it should be given at once: what it filters in a few milliseconds, as it did what came last."""

    def __init__(
        self,
        recorder: Recorder,
        filter_: Filter,
        *,
        numbers: tuple[int, int],
        salt: Callable[[], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._filter = filter_
        self._salt = salt
        self._clock = clock
        self.most = _USUAL
        self._streams = {"stdout": _Kept(numbers[0]), "stderr": _Kept(numbers[1])}
        self._quiet_ms = 0  # for how long nothing came
        self._over = False  # the filter gives no more, or failed

    @property
    def wait_ms(self) -> int:
        """How long nothing more may come before `pause` is to be asked; 0 when nothing waits for that."""
        return max(0, self._filter.waits_ms - self._quiet_ms)

    async def take(self, stream: Name, data: bytes) -> list[Chunk]:
        """Filter a raw piece and keep what may go on of it, perhaps nothing."""
        self._quiet_ms = 0
        began = self._clock()
        cleans = self._filtered(lambda: self._filter.take(stream, data))
        fitting = _TURN_S * len(data) / max(self._clock() - began, 1e-6)
        self.most = max(_LEAST, min(int(fitting), 2 * self.most, _MOST))
        found = await self._kept(cleans)
        if self._filter.raw is not None:
            await self._filter.raw.flush()
        return found

    async def pause(self) -> list[Chunk]:
        """Nothing came for `wait_ms`: what need not wait longer."""
        self._quiet_ms += self.wait_ms
        return await self._kept(self._filtered(lambda: self._filter.pause(self._quiet_ms)))

    async def finish(self) -> list[Chunk]:
        """Nothing more comes: everything that waited. Once."""
        if self._over:
            return []
        cleans = self._filtered(self._filter.close)
        self._over = True
        return await self._kept(cleans + await self._filter.consult())

    def delivered(self, stream: Name, count: int) -> None:
        """The agent was given this many more bytes of a stream."""
        self._streams[stream].delivered += count

    def size(self, stream: Name) -> int:
        """Bytes kept of a stream so far."""
        return self._streams[stream].size

    async def close(self) -> tuple[Stream | None, Stream | None, tuple[bytes, ...]]:
        """End both streams: what their entry says of them, and the content that is to be kept with it."""
        await self.finish()  # of a call that was lost hold of: kept, and not delivered
        stdout, held = await self._streams["stdout"].close(self._recorder)
        stderr, more = await self._streams["stderr"].close(self._recorder)
        return stdout, stderr, held + more

    def _filtered(self, step: Callable[[], list[Clean]]) -> list[Clean]:
        """A filter that failed is asked nothing more: what it holds stays where it is."""
        self._over, over = True, self._over
        found = [] if over else step()
        self._over = over
        return found

    async def _kept(self, cleans: list[Clean]) -> list[Chunk]:
        chunks = []
        for stream, data, encoding in cleans:
            kept = self._streams[stream]
            chunks.append(Chunk(stream=stream, offset=kept.size, data=data, encoding=encoding))
            await kept.write(data, encoding, self._salt, self._recorder)
        return chunks
