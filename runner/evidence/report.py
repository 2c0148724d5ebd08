"""What a verification found: a numbered checklist, the places of everything wrong, and notes that are no faults."""

from __future__ import annotations

import msgspec

MAX_FINDINGS = 100  # per check; the rest is counted

CHECKS: tuple[tuple[int, str], ...] = (
    (1, "the key is the log's, or one that its rotations lead to or from"),
    (2, "every file has its place, none is missing, none too many"),
    (3, "the tail is readable and holds all that was acknowledged"),
    (4, "every entry is canonical and known"),
    (5, "entries hash to tiles, tiles to tiles above them"),
    (6, "checkpoints are signed by the key, for this log, over these entries"),
    (7, "each call has one decision, and one outcome after its plan"),
    (8, "content: every digest resolves"),
    (9, "content: every digest fits its bytes"),
)
KEY, FILES, TAIL, ENTRIES, TILES, SIGNED, ORDER, MISSING, WRONG = range(1, 10)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong: the file or position, and what."""

    place: str
    problem: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the checklist. `count` is the number of findings, of which the first are listed."""

    number: int
    title: str
    ok: bool
    skipped: bool = False
    count: int = 0
    findings: tuple[Finding, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole verification. `ok` when no check failed; `unsigned` entries follow the newest checkpoint."""

    ok: bool
    origin: str
    entries: int
    signed: int
    unsigned: int
    open_calls: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    seconds: float
    entries_per_second: int


class Findings:
    """Collects while verification goes on; never grows without bound."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._found: dict[int, list[Finding]] = {number: [] for number, _ in CHECKS}
        self._count: dict[int, int] = dict.fromkeys(self._found, 0)

    def add(self, check: int, place: str, problem: str) -> None:
        """Something is wrong."""
        self._count[check] += 1
        if len(self._found[check]) < MAX_FINDINGS:
            self._found[check].append(Finding(place=place, problem=problem))

    def note(self, text: str) -> None:
        """Something worth knowing that is not wrong."""
        self.notes.append(text)

    def checks(self, skipped: frozenset[int]) -> tuple[Check, ...]:
        """The checklist as it came out."""
        return tuple(
            Check(
                number=number,
                title=title,
                ok=not self._count[number],
                skipped=number in skipped,
                count=self._count[number],
                findings=tuple(self._found[number]),
            )
            for number, title in CHECKS
        )
