"""What a reader sees of a text: without colour codes and invisible characters, so that neither hides a match."""

from __future__ import annotations

import re
from typing import NamedTuple

from runner.stream.unseen import WIDEST, Back, Unseen, parted

# Control sequences (ECMA-48, 5.4) of a bounded length; soft hyphen, zero-width and direction characters in UTF-8.
_ESCAPE = rb"\[[0-?]{0,32}[ -/]{0,4}[@-~]"
_ZERO = rb"(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])"
_LATER = rb"(?<=\xc2)\xad|(?<=\xef)\xbb\xbf|(?<=\xe2)" + _ZERO
_CHARACTERS = (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
_WIDE = Unseen(_CHARACTERS, rb"[\xc2\xe2\xef](?:" + _LATER + rb")")
_ALL = Unseen(_CHARACTERS, rb"[\x1b\xc2\xe2\xef](?:(?<=\x1b)" + _ESCAPE + rb"|" + _LATER + rb")").pattern
_ESCAPES = re.compile(rb"(\x1b" + _ESCAPE + rb"(?:\x1b" + _ESCAPE + rb")*)")  # where nothing else is hidden
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]{0,32}[ -/]{0,4})?|\xc2|\xe2[\x80\x81]?|\xef\xbb?)\Z")
_LONGEST = 40  # bytes of a sequence that is not finished


class Seen(NamedTuple):
    """`text` is what is seen."""

    text: bytes
    end: int  # of the original: what follows is the beginning of something that may not be seen
    back: Back | None  # None where nothing was left out

    def place(self, at: int) -> int:
        """Where in the original the byte `at` stands; for the end of the text the end."""
        if self.back is None:
            return at
        return self.end if at >= len(self.text) else self.back.origin(at)

    def after(self, at: int) -> int:
        """Where in the original the byte before `at` has just ended."""
        return self.place(at - 1) + 1 if self.back is not None and at else at

    def at(self, place: int) -> int:
        """The first byte of the text that stands at `place` or after it."""
        return place if self.back is None else self.back.shown(place)


def seen(data: bytes, *, whole: bool) -> Seen:
    """`data` as seen. Where it is not the `whole` text, a sequence that its end cuts is left for later."""
    end = len(data)
    if not whole:
        unfinished = _UNFINISHED.search(data, max(0, end - _LONGEST))
        end = unfinished.start() if unfinished else end
    escapes, there = b"\x1b" in data, _WIDE.there(data)
    if not escapes and not there:
        return Seen(data[:end], end, None)
    data = data[:end]
    hidden = _WIDE.pattern if not escapes else _ALL if there else _ESCAPES
    text = hidden.sub(b"", data) if escapes else _WIDE.without(data, there)
    back = Back(data, text, parted(hidden), _LONGEST if escapes else WIDEST)
    return Seen(text, end, back if len(text) < end else None)
