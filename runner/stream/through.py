"""What a reader sees of a text: without colour codes and invisible characters, so that neither hides a match."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import NamedTuple

# Control sequences (ECMA-48, 5.4) of a bounded length; soft hyphen, zero-width and direction characters in UTF-8.
_ESCAPE = rb"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]"
_ZERO = rb"\xe2(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])"
_UNSEEN = re.compile(_ESCAPE + rb"|\xc2\xad|\xef\xbb\xbf|" + _ZERO)
_SOME_ZERO = re.compile(_ZERO)  # begins with one byte that never varies: that is found at memory speed
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]{0,32}[ -/]{0,4})?|\xc2|\xe2[\x80\x81]?|\xef\xbb?)\Z")
_LONGEST = 40  # bytes of a sequence that is not finished


class Seen(NamedTuple):
    """`text` is what is seen; `places` says where each of its bytes stands, None when nothing was left out."""

    text: bytes
    places: list[int] | None
    end: int  # of the original: what follows is the beginning of something that may not be seen

    def place(self, at: int) -> int:
        """Where in the original the byte `at` stands; for the end of the text the end."""
        if self.places is None:
            return at
        return self.places[at] if at < len(self.places) else self.end

    def after(self, at: int) -> int:
        """Where in the original the byte before `at` has just ended."""
        if self.places is None or at == 0:
            return at
        return self.places[at - 1] + 1

    def at(self, place: int) -> int:
        """The first byte of the text that stands at `place` or after it."""
        return place if self.places is None else bisect_left(self.places, place)


def seen(data: bytes, *, whole: bool) -> Seen:
    """`data` as seen. Where it is not the `whole` text, a sequence that its end cuts is left for later."""
    end = len(data)
    if not whole:
        unfinished = _UNFINISHED.search(data, max(0, end - _LONGEST))
        end = unfinished.start() if unfinished else end
    if b"\x1b" not in data and (data.isascii() or not _hidden(data)):
        return Seen(data[:end], None, end)
    text = bytearray()
    places: list[int] = []
    at = 0
    for match in _UNSEEN.finditer(data, 0, end):
        text += data[at : match.start()]
        places += range(at, match.start())
        at = match.end()
    if not at:
        return Seen(data[:end], None, end)
    text += data[at:end]
    places += range(at, end)
    return Seen(bytes(text), places, end)


def _hidden(data: bytes) -> bool:
    return b"\xc2\xad" in data or b"\xef\xbb\xbf" in data or _SOME_ZERO.search(data) is not None
