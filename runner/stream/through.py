"""What a reader sees of a text: without colour codes and invisible characters, so that neither hides a match."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from runner.stream.engines import holding

# Control sequences (ECMA-48, 5.4) of a bounded length; soft hyphen, zero-width and direction characters in UTF-8.
_ESCAPE = rb"\[[0-?]{0,32}[ -/]{0,4}[@-~]"
_ZERO = rb"(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])"
_HIDDEN = rb"[\x1b\xc2\xe2\xef](?:(?<=\x1b)" + _ESCAPE + rb"|(?<=\xc2)\xad|(?<=\xef)\xbb\xbf|(?<=\xe2)" + _ZERO + rb")"
_UNSEEN = re.compile(_HIDDEN + rb"(?:" + _HIDDEN + rb")*+")  # what stands side by side is one match
_WIDE = rb"\xc2\xad|\xef\xbb\xbf|\xe2" + _ZERO
_wide = holding(_WIDE, re.compile(_WIDE).search)
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]{0,32}[ -/]{0,4})?|\xc2|\xe2[\x80\x81]?|\xef\xbb?)\Z")
_LONGEST = 40  # bytes of a sequence that is not finished


class Seen(NamedTuple):
    """`text` is what is seen: runs that begin at `begins` of the original and at `shown` of the text; both are empty
    when nothing was left out."""

    text: bytes
    begins: list[int]
    shown: list[int]
    end: int  # of the original: what follows is the beginning of something that may not be seen

    def place(self, at: int) -> int:
        """Where in the original the byte `at` stands; for the end of the text the end."""
        if not self.begins:
            return at
        if at >= len(self.text):
            return self.end
        run = bisect_right(self.shown, at) - 1
        return self.begins[run] + at - self.shown[run]

    def after(self, at: int) -> int:
        """Where in the original the byte before `at` has just ended."""
        return self.place(at - 1) + 1 if self.begins and at else at

    def at(self, place: int) -> int:
        """The first byte of the text that stands at `place` or after it."""
        if not self.begins:
            return place
        run = bisect_right(self.begins, place) - 1
        following = self.shown[run + 1] if run + 1 < len(self.shown) else len(self.text)
        return min(self.shown[run] + place - self.begins[run], following)


def seen(data: bytes, *, whole: bool) -> Seen:
    """`data` as seen. Where it is not the `whole` text, a sequence that its end cuts is left for later."""
    end = len(data)
    if not whole:
        unfinished = _UNFINISHED.search(data, max(0, end - _LONGEST))
        end = unfinished.start() if unfinished else end
    if b"\x1b" not in data and (data.isascii() or not _wide(data)):
        return Seen(data[:end], [], [], end)
    data = data[:end]
    cuts = [match.span() for match in _UNSEEN.finditer(data)]
    if not cuts:
        return Seen(data, [], [], end)
    begins = [0, *(stop for _, stop in cuts)]
    shown = accumulate((start - begin for (start, _), begin in zip(cuts, begins, strict=False)), initial=0)
    return Seen(_UNSEEN.sub(b"", data), begins, list(shown), end)
