"""What gate itself has of content that was pruned: results and digests of arguments in state, output in memory."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from runner.gate.calls import Calls
from runner.wire.recorder import RecorderCaller


class Copies(Protocol):
    """State, as far as it holds what a call was asked with and returned."""

    def copied(self) -> set[str]:
        """The digests of that content."""

    def let_go(self, gone: Container[str]) -> list[str]:
        """Forget what is `gone`; the calls that had any of it."""


async def let_go(recorder: RecorderCaller, copies: Copies, calls: Calls) -> None:
    """Let go of all copies of what was pruned so far: after each prune, and at start, since a crash may have come
    between the two."""
    copied = copies.copied()
    gone = await recorder.pruned(copied) if copied else set()
    if gone:
        for call in copies.let_go(gone):
            calls.forget(call)
