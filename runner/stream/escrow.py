"""One call's output as the tool wrote it, before any filter: sealed here, so that no disk and no other process sees it.

At most a segment of it waits in memory; what is longer leaves encrypted, while it comes. Where it is kept only when
something was found, what left is dropped at the end instead: nothing is lost by waiting, since that is decided once the
whole is known, and a call whose output is no longer than a segment is never encrypted for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, Protocol

from runner.errors import refuse
from runner.ledger.entry import Content, Raw
from runner.ledger.escrow import PIECES, SEGMENT, Head, Recipients, Stream
from runner.model import CallPlan, Manifest, RawMode, TaskProfile
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite

_WITH = WITH_ENTRY // 2  # bytes, encrypted, that wait for the entry and travel with it
_FIRST = 1 << 32  # of its content streams: outputs count up from 1, kept responses down from -1


Place = Literal["stdout", "stderr", "value"]


class Recorder(Protocol):
    """Where content goes."""

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Queue a piece of content; waits while the recorder is behind."""


class Escrow:
    """Keeps the raw output of one call. `number` is a content stream's, unique while open; `salt` is for its digest."""

    def __init__(
        self,
        recorder: Recorder,
        recipients: Recipients,
        *,
        call: str,
        mode: RawMode,
        limit: int,
        number: int,
        salt: Callable[[], bytes],
    ) -> None:
        """Of stdout and stderr, `limit` bytes together are kept, and the piece that goes beyond."""
        self._recorder = recorder
        self._recipients = recipients
        self._call = call
        self._mode = mode
        self._left = limit
        self._number = number
        self._salt = salt
        self._clear = bytearray()  # the segment that is being filled
        self._pieces: list[tuple[Stream, int]] = []  # the runs in it
        self._starts: dict[Stream, int] = {}  # bytes of each stream in the segments before it
        self._segments = 0
        self._digest = hashlib.sha256()
        self._salted = b""
        self._size = 0  # of what is encrypted
        self._sealed = bytearray()  # what of that is here: to be sent, or to wait for the entry
        self._opened = False  # at the recorder: nothing of that waits any more
        self._lost = 0

    @property
    def full(self) -> bool:
        """Whether more was taken than the limit: whatever comes now is `lose`d, and passes no filter."""
        return self._left < 0

    def take(self, place: Place, data: bytes) -> None:
        """More of one stream, or the whole value of a python tool, which counts for no limit. The piece that goes
        beyond the limit is kept whole: a filter has it already."""
        if place != "value":
            self._left -= len(data)
        stream: Stream = "result" if place == "value" else place
        start = 0
        while start < len(data):
            run = min(len(data) - start, SEGMENT - len(self._clear))
            self._clear += data[start : start + run]
            if self._pieces and self._pieces[-1][0] == stream:
                self._pieces[-1] = (stream, self._pieces[-1][1] + run)
            else:
                self._pieces.append((stream, run))
            start += run
            if len(self._clear) >= SEGMENT or len(self._pieces) >= PIECES:
                self._seal()

    def lose(self, count: int) -> None:
        """So many bytes came when it was full already."""
        self._lost += count

    async def flush(self) -> None:
        """Send on what is sealed, when it is more than travels with the entry. To be called after each piece."""
        if not self._sealed or (not self._opened and len(self._sealed) <= _WITH):
            return
        if not self._opened:
            self._opened = True
            await self._recorder.send(StoreOpen(stream=self._number, salt=self._salted))
        data = bytes(self._sealed)
        self._sealed.clear()
        await self._recorder.send(StoreWrite(stream=self._number, data=data))

    async def close(self, *, found: bool, held: bool) -> tuple[Raw | None, tuple[bytes, ...]]:
        """The end: what the outcome says of it, and the content that is to be kept with that entry. `found` is whether
        a filter found anything, `held` whether output was held back."""
        kept = self._why(found=found, held=held)
        if kept is None or not (self._clear or self._segments):
            await self.drop()
            return None, ()
        if self._clear:
            self._seal()
        await self.flush()
        named = Content(digest=self._digest.hexdigest(), size=self._size)
        raw = Raw(
            content=named, segments=self._segments, kept=kept, recipients=self._recipients.fingerprints,
            lost=self._lost, **self._starts,
        )  # fmt: skip
        if self._opened:
            self._opened = False
            await self._recorder.send(StoreClose(stream=self._number, digest=named.digest))
            return raw, ()
        return raw, (self._salted + bytes(self._sealed),)

    async def drop(self) -> None:
        """Forget all of it."""
        self._clear.clear()
        self._sealed.clear()
        if self._opened:
            self._opened = False
            await self._recorder.send(StoreClose(stream=self._number, drop=True))

    def _why(self, *, found: bool, held: bool) -> Literal["always", "filtered", "held"] | None:
        if self._mode == "always":
            return "always"
        if held and self._mode != "never":
            return "held"
        return "filtered" if found and self._mode == "filtered" else None

    def _seal(self) -> None:
        """Encrypt the segment."""
        head = Head(call=self._call, number=self._segments, starts=self._starts, pieces=tuple(self._pieces))
        sealed = self._recipients.seal(head, self._clear)
        for stream, count in self._pieces:
            self._starts[stream] = self._starts.get(stream, 0) + count
        self._pieces.clear()
        self._clear.clear()
        if not self._segments:
            self._salted = self._salt()
            self._digest.update(self._salted)
        self._segments += 1
        self._digest.update(sealed)
        self._size += len(sealed)
        self._sealed += sealed


class Escrows:
    """Makes one for each call that needs it. `salt` is for digests: 16 random bytes."""

    def __init__(self, recorder: Recorder, salt: Callable[[], bytes]) -> None:
        self._recorder = recorder
        self._salt = salt
        self._last = _FIRST

    def of(
        self, plan: CallPlan, profile: TaskProfile, manifest: Manifest, recipients: Recipients | None
    ) -> Escrow | None:
        """Where the profile has raw output kept of such a tool, or some label's output held: None otherwise, and where
        held output can be kept for nobody. Raises `RunnerError` (unavailable) where raw output cannot."""
        mode = profile.raw.get(manifest.consequence, "never")
        if mode == "never" and "hold" in profile.labels.values():
            mode = "held" if recipients is not None else "never"
        if mode == "never":
            return None
        if recipients is None:
            raise refuse("unavailable", "the profile has raw output kept, and nobody is there to keep it for")
        self._last += 1
        return Escrow(
            self._recorder, recipients, call=plan.call, mode=mode, limit=plan.output, number=self._last, salt=self._salt
        )
