"""Which of many patterns occur in a text: all of them in one pass (hyperscan), or one after the other where its wheel
is missing. Patterns here are the project's own; where one matches is `re`'s to say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runner.stream.engines import hyperscan


class Which:
    """Patterns compiled once. They are bytes, with `.` for newlines too, and neither look around nor refer back."""

    def __init__(self, patterns: Sequence[bytes], *, fast: bool = hyperscan is not None) -> None:
        self._slow = [re.compile(pattern, re.DOTALL) for pattern in patterns]
        self._database = None
        if fast and patterns:
            flags = hyperscan.HS_FLAG_DOTALL | hyperscan.HS_FLAG_SINGLEMATCH
            self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
            self._database.compile(list(patterns), ids=list(range(len(patterns))), flags=flags)

    def of(self, data: bytes) -> set[int]:
        """The places of the patterns that match somewhere in `data`."""
        if self._database is None:
            return {index for index, pattern in enumerate(self._slow) if pattern.search(data)}
        found: set[int] = set()
        if data:
            self._database.scan(data, match_event_handler=_note, context=found)
        return found


def _note(index: int, start: int, end: int, flags: int, context: Any) -> None:
    """A named function: the library has crashed with a lambda here."""
    context.add(index)
