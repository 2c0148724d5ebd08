"""Responses that a rule says to keep: from egress in pieces into the content store, salted, within bounds.

Little waits here for the `egress_end` that names it and travels with it; more goes to the recorder while it comes.
What exceeds a bound, or was cut, is not kept at all: half a response would pass for one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Protocol

from runner.config import Limits
from runner.ledger.entry import Content
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite

_HELD = WITH_ENTRY // 2  # bytes of a response that wait for the entry
_STREAMS = 512  # open at the recorder at once; it takes 4096, and calls need theirs for output


class Recorder(Protocol):
    """Where content goes."""

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Queue a piece of content; waits while the recorder is behind."""


class _Kept:
    """One response on its way."""

    def __init__(self, salt: bytes) -> None:
        self.salt = salt
        self.digest = hashlib.sha256(salt)
        self.held = bytearray(salt)
        self.size = 0
        self.stream = 0  # its number at the recorder, 0 while it waits here
        self.problem = ""
        self.lock = asyncio.Lock()  # pieces are stored in the order they came, and closed after the last


class Shelf:
    """The streams of all cassettes at the recorder. Their numbers count down: those of outputs count up."""

    def __init__(self, recorder: Recorder, salt: Callable[[], bytes], limits: Limits) -> None:
        """`salt` gives 16 random bytes."""
        self.recorder = recorder
        self.salt = salt
        self.limits = limits
        self.open = 0
        self._last = 0

    def number(self) -> int:
        """A fresh stream's."""
        self._last -= 1
        return self._last


class Cassette:
    """The responses of one call."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: dict[int, _Kept] = {}
        self._size = 0

    async def take(self, request: int, data: bytes) -> bool:
        """The next piece of this request's response. Returns whether more of it is wanted."""
        if request not in self._kept:
            self._kept[request] = _Kept(self._shelf.salt())
        kept = self._kept[request]
        async with kept.lock:
            if not kept.problem:
                kept.problem = self._exceeds(kept, len(data))
                await (self._forget(kept) if kept.problem else self._store(kept, data))
            return not kept.problem

    async def close(self, request: int, *, whole: bool) -> tuple[Content | None, tuple[bytes, ...], str]:
        """The end of this response: how its entry names it, what is kept with that entry, or why nothing is."""
        kept = self._kept.pop(request, None)
        if kept is None:
            return None, (), ""
        async with kept.lock:
            if not whole and not kept.problem:
                kept.problem = "it was cut"
                await self._forget(kept)
            if kept.problem:
                return None, (), kept.problem
            named = Content(digest=kept.digest.hexdigest(), size=kept.size)
            if not kept.stream:
                return named, (bytes(kept.held),), ""
            self._shelf.open -= 1
            await self._shelf.recorder.send(StoreClose(stream=kept.stream, digest=named.digest))
            return named, (), ""

    async def drop(self) -> None:
        """Forget what has no end: egress is gone."""
        for request in tuple(self._kept):
            await self.close(request, whole=False)

    def _exceeds(self, kept: _Kept, more: int) -> str:
        """Which bound the next piece would break, "" for none."""
        limits = self._shelf.limits
        if kept.size + more > limits.kept_response:
            return f"it is longer than {limits.kept_response} bytes"
        if self._size + more > limits.kept_per_call:
            return f"the responses kept of this call are {limits.kept_per_call} bytes already"
        if kept.size + more > _HELD and not kept.stream and self._shelf.open >= _STREAMS:
            return f"{_STREAMS} responses are being kept at this time"
        return ""

    async def _store(self, kept: _Kept, data: bytes) -> None:
        kept.digest.update(data)
        kept.size += len(data)
        self._size += len(data)
        if kept.size <= _HELD:
            kept.held += data
            return
        if not kept.stream:
            self._shelf.open += 1
            kept.stream = self._shelf.number()
            await self._shelf.recorder.send(StoreOpen(stream=kept.stream, salt=kept.salt))
            data = bytes(kept.held[len(kept.salt) :]) + data
            kept.held.clear()
        await self._shelf.recorder.send(StoreWrite(stream=kept.stream, data=data))

    async def _forget(self, kept: _Kept) -> None:
        self._size -= kept.size
        kept.held.clear()
        if kept.stream:
            self._shelf.open -= 1
            await self._shelf.recorder.send(StoreClose(stream=kept.stream, drop=True))
