"""What gate does while the ledger's disk is full: no new call begins, whoever asks is told why, the ledger says so."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal

from runner.gate.entries import Journal
from runner.gate.parts import Parts
from runner.ledger.entry import Degraded
from runner.wire import recorder as wire

FULL = "the ledger's disk is full: what is left is kept for revocations and the ends of running calls"


class Room:
    """Follows what the recorder says of its reserve, before gate has its parts and after."""

    def __init__(self) -> None:
        self._full = ""
        self._parts: Parts | None = None

    async def attach(self, parts: Parts, journal: Journal) -> None:
        """Once there is something to close, and a ledger that has begun."""
        self._parts, self._journal = parts, journal
        if self._full:
            self._close(parts)
            await self._say()

    def told(self, message: wire.Room, beside: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """The recorder's word. From here on, calls are refused or taken; the entry that says so follows."""
        self._full = "" if message.reserved else FULL
        if self._parts is not None:
            self._close(self._parts)
            beside(self._say())

    def _close(self, parts: Parts) -> None:
        parts.full = self._full
        parts.journal.cautious = bool(self._full)

    async def _say(self) -> None:
        journal, full = self._journal, self._full
        state: Literal["lost", "restored"] = "lost" if full else "restored"
        await journal.write(Degraded(time=journal.stamp(), part="disk", state=state, reason=full))
