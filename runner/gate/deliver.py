"""One call's output, from what the sandbox sends to whoever follows the call, until something in it ends the call.

What is not to be delivered is said with the outcome: the agent learns which rule it was, and what to do about it.
"""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec.structs import replace

from runner.gate.calls import Running
from runner.gate.session import Session
from runner.model import Chunk, Outcome

_Name = Literal["stdout", "stderr"]


class Piece(Protocol):
    """Raw output of a tool: `runner.sandbox.connection.Piece`."""

    @property
    def stream(self) -> _Name:
        """Of which stream."""

    @property
    def data(self) -> bytes:
        """What it wrote."""


class Pump(Protocol):
    """Filters and keeps: `runner.stream.pump.Pump`."""

    async def take(self, stream: _Name, data: bytes) -> list[Chunk]:
        """What may go on of a raw piece and what waited before it."""

    async def pause(self) -> list[Chunk]:
        """Nothing came for a while: what need not wait longer."""

    async def finish(self) -> list[Chunk]:
        """Nothing more comes: everything that waited."""

    def delivered(self, stream: _Name, count: int) -> None:
        """So much was sent."""


class Passed(Protocol):
    """What the output passes: `runner.stream.filters.CallFilter`."""

    @property
    def capped(self) -> bool:
        """Whether there was more than may be delivered."""

    blocked: str  # the rule that found what ends the call, "" while none did
    held: str  # the rule that found what is kept back

    @property
    def uninspected(self) -> str:
        """Why an inspector has not seen it, where that keeps it back."""

    def text(self, text: str) -> str:
        """A text as it may be told."""


class Delivery:
    """One call's. `pump` filters and keeps, `passed` says what the filter made of it."""

    def __init__(self, pump: Pump, passed: Passed, running: Running, session: Session) -> None:
        self._pump = pump
        self._passed = passed
        self._running = running
        self._session = session

    async def take(self, piece: Piece | None, *, last: bool) -> None:
        """A raw piece; None when nothing came for a while. With `last`, the call is over: its result follows."""
        if piece is None:
            await self._deliver(await self._pump.pause(), last=last)
        else:
            self._running.received(len(piece.data))
            await self._deliver(await self._pump.take(piece.stream, piece.data), last=last)

    async def finish(self, *, last: bool) -> None:
        """Nothing more comes."""
        await self._deliver(await self._pump.finish(), last=last)

    def judged(self, outcome: Outcome, problem: str) -> Outcome:
        """The outcome as it may be told; `problem` says what is wrong with a structured result."""
        passed = self._passed
        if passed.blocked:
            return replace(outcome, kind="filtered", exit_code=None, signal=None, reason=_blocked(passed))
        if passed.held:
            why = f"because {passed.uninspected}" if passed.uninspected else f"for what rule {passed.held} found"
            problem = (
                f"the output is kept back {why}: ask whoever does forensics here for it, who can open it with "
                f"`runner trace raw {self._running.call}`"
            )
        return replace(outcome, reason=passed.text(problem or outcome.reason))

    async def _deliver(self, chunks: list[Chunk], *, last: bool) -> None:
        for number, chunk in enumerate(chunks, 1):
            if self._passed.held:
                break
            sent = await self._running.deliver(chunk, last=last or number < len(chunks))
            if sent:
                self._pump.delivered(chunk.stream, sent)
                self._session.task.context.delivered(self._running.call)
        if self._passed.blocked:
            self._running.cancel("filtered", _blocked(self._passed))
        elif self._passed.capped:
            self._running.cancel("output_capped", f"more than {self._running.output} bytes of output")


def _blocked(passed: Passed) -> str:
    if passed.uninspected:
        return f"the output is withheld, because it must be inspected: {passed.uninspected}; try again later"
    return (
        f"rule {passed.blocked} found what this task may not be given, and the output is withheld: have the tool leave "
        "it out, or ask for a profile whose [labels] let it pass"
    )
