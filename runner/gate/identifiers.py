"""Call ids: unique, and growing with time even when the clock steps back, so that a repeated one can be refused."""

from __future__ import annotations

import os
import time


class CallIds:
    """`<milliseconds, 12 hex>-<counter, 4 hex>-<random, 8 hex>`; each greater, as text, than every one before it."""

    def __init__(self, newest: str) -> None:
        head = newest.split("-")[0]
        self._ms = int(head, 16) + 1 if head and all(c in "0123456789abcdef" for c in head) else 0
        self._count = 0

    def new(self) -> str:
        """The next id."""
        now = time.time_ns() // 1_000_000
        if now > self._ms:
            self._ms, self._count = now, 0
        else:
            self._count += 1
            if self._count > 0xFFFF:
                self._ms, self._count = self._ms + 1, 0
        return f"{self._ms:012x}-{self._count:04x}-{os.urandom(4).hex()}"
