"""A text as a terminal shows it, and the way back: where in the text a shown byte stands.

Lines joined: without line ends, so that wrapping hides nothing. Shown: moreover without terminal sequences, zero-width
and bidirectional characters, and without what backspaces erase. Where several of these come together, also with what
was erased, and with what sequences carry. A lone carriage return counts as nothing: what stands before and after it is
joined, and each part is searched as it stands. Text painted out of order by moving the cursor is not seen through.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate

import ahocorasick_rs

ERASED = 3  # bytes in a row that backspaces may erase; also the longest beginning of an invisible character
_PAYLOAD = 1024  # bytes of a title, link or clipboard that a sequence may carry; a longer one is text
_WINDOW = 64  # bytes at the end of a text, which nearly every question is about
_NEWLINE, _LINE_ENDS = re.compile(rb"\n"), re.compile(rb"[\r\n]+")
# The first byte by a class alone, so that `re` runs over text without trying each alternative at each byte.
_INVISIBLE = re.compile(
    rb"[\x1b\xc2\xe1\xe2\xef\xf3](?:"
    rb"(?<=\x1b)\[[0-?]{0,64}[ -/]{0,8}[@-~]|(?<=\xc2)\x9b[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI
    rb"|(?<=\x1b)[\]PX^_][^\x07\x1b]{0,%d}(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC with their payload
    rb"|(?<=\x1b)[ -/]{0,4}[0-OQ-WYZ\\`-~]?"  # other escapes, and one that begins nothing
    rb"|(?<=\xc2)\xad|(?<=\xe1)\xa0\x8e|(?<=\xe2)(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])"
    rb"|(?<=\xef)(?:\xb8[\x80-\x8f]|\xbb\xbf)|(?<=\xf3)\xa0[\x80-\x87][\x80-\xbf])" % _PAYLOAD
)
_WIDE_ONLY = re.compile(
    rb"[\xc2\xe1\xe2\xef\xf3](?:(?<=\xc2)\xad|(?<=\xe1)\xa0\x8e|(?<=\xef)(?:\xb8[\x80-\x8f]|\xbb\xbf)"
    rb"|(?<=\xe2)(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])|(?<=\xf3)\xa0[\x80-\x87][\x80-\xbf])"
)
# What may become a sequence with more bytes: nothing of it is shown yet.
_UNFINISHED = re.compile(
    rb"(?:(?:\x1b\[|\xc2\x9b)[0-?]{0,64}[ -/]{0,8}|\x1b[\]PX^_][^\x07\x1b]{0,%d}\x1b?|\x1b[ -/]{0,4})\Z" % _PAYLOAD
)
_BACKSPACES = re.compile(rb"\x08+")
# Beginnings of everything invisible above ASCII: one pass says whether any is there.
_WIDE = ahocorasick_rs.BytesAhoCorasick(
    [
        b"\xc2\x9b",
        b"\xc2\xad",
        b"\xe1\xa0\x8e",
        b"\xef\xbb\xbf",
        *(b"\xe2\x80" + bytes((last,)) for last in (*range(0x8B, 0x90), *range(0xAA, 0xAF))),
        *(b"\xe2\x81" + bytes((last,)) for last in range(0xA0, 0xB0)),
        *(b"\xef\xb8" + bytes((last,)) for last in range(0x80, 0x90)),
        *(b"\xf3\xa0" + bytes((last,)) for last in range(0x80, 0x88)),
    ],
    ahocorasick_rs.MATCHKIND_LEFTMOST_LONGEST,
)


class Joined:
    """A text without its line ends; `text` is what is left."""

    def __init__(self, source: bytes) -> None:
        text = source.replace(b"\n", b"") if b"\n" in source else source
        self.text = text.replace(b"\r", b"") if b"\r" in text else text
        self._source = source
        self._back = _Back(source, self.text, lambda: _line_ends(source))

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source."""
        window = self._source[-_WINDOW:]
        kept, from_end = len(window) - window.count(b"\n") - window.count(b"\r"), len(self.text) - at
        if from_end > kept:
            return self._back.origin(at)
        return len(self._source) - len(window) + nth(window, kept - from_end + 1, b"\r\n") - 1


class Shown:
    """A text without line ends and without what `hidden` matches; with `erase`, without what backspaces erase."""

    def __init__(self, source: bytes, hidden: re.Pattern[bytes], *, erase: bool) -> None:
        if hidden is _INVISIBLE and (unfinished := _UNFINISHED.search(source, max(0, len(source) - _PAYLOAD - 4))):
            source = source[: unfinished.start()]
        self._source = source
        text = hidden.sub(b"", source)
        self._steps = [_Back(source, text, lambda: [found.span() for found in hidden.finditer(source)])]
        if erase:
            cuts = list(_erased(text))
            begins, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
            kept = b"".join([text[begin:end] for begin, end in zip(begins, ends, strict=True)])
            self._steps.append(_Back(text, kept, lambda: cuts))
            text = kept
        self._joined = Joined(text)
        self.text = self._joined.text

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source."""
        end = self._source[-_PAYLOAD - 80 :]
        if len(self.text) - at <= _WINDOW and end.isascii() and not any(byte in end for byte in b"\x1b\x08\r\n"):
            return len(self._source) - len(self.text) + at  # nothing left out is near
        at = self._joined.origin(at)
        for step in reversed(self._steps):
            at = step.origin(at)
        return at


def projections(source: bytes) -> list[Joined | Shown]:
    """Every way to look at a text that shows something different; mostly one."""
    found: list[Joined | Shown] = [Joined(source)]
    sequences, erased = b"\x1b" in source, b"\x08" in source
    wide = not source.isascii() and bool(_WIDE.find_matches_as_indexes(source))
    if sequences or erased or wide:
        found.append(Shown(source, _INVISIBLE, erase=erased))
    if erased and (sequences or wide):
        found.append(Shown(source, _INVISIBLE, erase=False))  # what was erased had been shown
    if sequences and (wide or erased):
        found.append(Shown(source, _WIDE_ONLY, erase=erased))  # what a sequence carries can be read too
    return list({shown.text: shown for shown in reversed(found)}.values()) if len(found) > 1 else found


def sequence_at(source: bytes, at: int) -> int:
    """Where the terminal sequence begins that `source[at]` is in; `at` where it is in none."""
    before = at
    while (before := source.rfind(b"\x1b", max(0, at - _PAYLOAD - 80), before)) >= 0:
        found = _INVISIBLE.match(source, before) or _UNFINISHED.match(source, before)
        if found and (found.end() > at or found.end() == len(source)):
            at = before
    return at


def nth(data: bytes, count: int, skipped: bytes) -> int:
    """The shortest length of `data` that holds `count` bytes which are not among `skipped`."""
    low, high = count, len(data)
    while low < high:
        middle = (low + high) // 2
        if len(data[:middle].translate(None, skipped)) < count:
            low = middle + 1
        else:
            high = middle
    return low


def _line_ends(source: bytes) -> list[tuple[int, int]]:
    pattern = _LINE_ENDS if b"\r" in source else _NEWLINE  # one literal is searched ten times faster than a class
    return [found.span() for found in pattern.finditer(source)]


def _erased(text: bytes) -> Iterator[tuple[int, int]]:
    """Backspaces, with as many bytes before them."""
    last = 0
    for found in _BACKSPACES.finditer(text):
        start, end = found.span()
        yield max(last, start - min(end - start, ERASED)), end
        last = end


class _Back:
    """The way back from a text without some parts, which are looked up when first asked for."""

    def __init__(self, source: bytes, text: bytes, cuts: Callable[[], list[tuple[int, int]]]) -> None:
        self._source, self._text, self._cuts = source, text, cuts
        self._begins: list[int] = []
        self._shown: list[int] = []

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source."""
        source, text = self._source, self._text
        if len(source) == len(text):
            return at
        if not self._begins:
            cuts = self._cuts()
            self._begins = [0, *(end for _, end in cuts)]
            lengths = (start - begin for (start, _), begin in zip(cuts, self._begins, strict=False))
            self._shown = [0, *accumulate(lengths)]
        run = bisect_right(self._shown, at) - 1
        return self._begins[run] + at - self._shown[run]
