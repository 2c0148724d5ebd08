"""A text without some of its parts, and the way back: where in the source a byte that was left stands.

The ways back are made when they are first asked for, and mostly are not: nearly every question is about a text's end.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from runner.stream.engines import present

Runs = tuple[list[int], list[int]]  # where each run that was left begins in the source, and where in the text
_FEW = 16  # distinct characters that are taken out one after the other, each at memory speed
_SPREAD, _ROOM = 8, 256  # bytes of a source in which one of a text's last stands, and as many more: tried first
WIDEST = 4  # bytes of a character


class Unseen:
    """Characters of two bytes or more that nobody sees."""

    def __init__(self, characters: Iterable[int], pattern: bytes) -> None:
        """`characters` by their numbers; `pattern` matches one of them, or what else a source is to be without."""
        self.pattern = re.compile(b"(" + pattern + b"(?:" + pattern + b")*)")  # those side by side are one part
        self._present = present([chr(each).encode() for each in characters], re.compile(pattern).search)

    def there(self, source: bytes) -> list[bytes]:
        """Those that a text holds."""
        return [] if source.isascii() else self._present(source)

    def without(self, source: bytes, there: Sequence[bytes]) -> bytes:
        """`source`, which holds these."""
        if len(there) <= _FEW:
            text = source
            for each in there:
                text = text.replace(each, b"")
            if len(source) - len(text) == sum(len(each) * source.count(each) for each in there):
                return text  # else bytes that are no text have made new ones of what stood around others
        return self.pattern.sub(b"", source)


def parted(pattern: re.Pattern[bytes]) -> Callable[[bytes], Runs]:
    """What finds the runs between the matches of a pattern, which is one group."""

    def runs(source: bytes) -> Runs:
        sizes = list(map(len, pattern.split(source)))  # of what is left, of a match, and so on
        return list(accumulate(sizes, initial=0))[:-1:2], list(accumulate(sizes[::2], initial=0))[:-1]

    return runs


def between(cuts: Iterable[tuple[int, int]]) -> Runs:
    """The runs between parts, by where they begin and end."""
    begins, shown = [0], [0]
    for start, end in cuts:
        shown.append(shown[-1] + start - begins[-1])
        begins.append(end)
    return begins, shown


class Back:
    """The way back from a text to its source."""

    def __init__(self, source: bytes, text: bytes, runs: Callable[[bytes], Runs], skew: int = -1) -> None:
        """`skew`: so many bytes on, runs of any part of the source are those of the whole: what is taken out has no
        beginning of another in it, and is no longer. -1: the whole has to be looked at."""
        self._source, self._text, self._runs, self._skew = source, text, runs, skew
        self._begins: list[int] = []
        self._shown: list[int] = []

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source; for its end, where the last run ends."""
        if len(self._source) == len(self._text):
            return at
        if not self._begins:
            size = (len(self._text) - at) * _SPREAD + _ROOM + self._skew
            if self._skew >= 0 and size < len(self._source) and (near := self._near(at, size)) is not None:
                return near
            self._begins, self._shown = self._runs(self._source)
        run = bisect_right(self._shown, at) - 1
        return self._begins[run] + at - self._shown[run]

    def shown(self, place: int) -> int:
        """The first byte of the text that stands at `place` of the source or after it."""
        if place <= 0 or len(self._source) == len(self._text):
            return place
        if not self._begins:
            self._begins, self._shown = self._runs(self._source)
        run = bisect_right(self._begins, place) - 1
        following = self._shown[run + 1] if run + 1 < len(self._shown) else len(self._text)
        return min(self._shown[run] + place - self._begins[run], following)

    def _near(self, at: int, size: int) -> int | None:
        """`origin` by the source's last bytes alone, `size` of them; None where they hold too little of the text."""
        start = len(self._source) - size
        begins, shown = self._runs(self._source[start:])
        at -= len(self._text) - (shown[-1] + size - begins[-1])
        run = bisect_right(shown, at) - 1
        found = begins[run] + at - shown[run] if run >= 0 else -1
        return start + found if found >= self._skew else None
