"""Refusals of whoever proved no identity: counted, and written as one entry per uid, code and second.

A flood of refusals costs one entry a second, not one each; the first detail is kept, for whoever looks later.
"""

from __future__ import annotations

from runner.gate.entries import Journal
from runner.ledger import entry as entries

_MOST = 256  # kinds per second; the rest are added to the last one


class Strangers:
    """Counts until `flush`, which is called once a second."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._seen: dict[tuple[int, str], tuple[int, str]] = {}

    def count(self, uid: int, code: str, detail: str) -> None:
        """One more refusal of this uid."""
        key = (uid, code)
        known = self._seen.get(key)
        if known is None and len(self._seen) >= _MOST:
            key = next(reversed(self._seen))
            known = self._seen[key]
        self._seen[key] = (known[0] + 1, known[1]) if known else (1, _plain(detail[:300]))

    async def flush(self) -> None:
        """Write what was counted."""
        seen, self._seen = self._seen, {}
        for (uid, code), (count, detail) in seen.items():
            await self._journal.write(
                entries.Refusals(time=self._journal.stamp(), uid=uid, code=code, detail=detail, count=count)
            )


def _plain(text: str) -> str:
    """What can stand in an entry whatever a stranger sent: printable, no half of a surrogate pair."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
