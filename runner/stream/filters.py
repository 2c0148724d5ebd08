"""What a chunk passes before anyone sees it. Pure: bytes in, bytes out, bounded memory.

Redaction comes before the cap and arrives with secrets (there are none to redact before the broker exists), so
the cap is the only filter here.
"""

from __future__ import annotations


class Cap:
    """Cuts the output of one call, both streams together, at a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.hit = False

    def take(self, data: bytes) -> bytes:
        """What of `data` still fits. `hit` is set once anything did not."""
        kept = data[: self._left]
        self._left -= len(kept)
        if len(kept) < len(data):
            self.hit = True
        return kept
