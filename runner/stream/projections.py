"""A text as a terminal shows it, and the way back: where in the text a shown byte stands.

Lines joined: without line ends, so that wrapping hides nothing. Shown: moreover without terminal sequences, zero-width
and bidirectional characters, and without what backspaces erase. Where several of these come together, also with what
was erased, and with what sequences carry. A lone carriage return counts as nothing: what stands before and after it is
joined, and each part is searched as it stands. Text painted out of order by moving the cursor is not seen through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

from runner.stream.unseen import WIDEST, Back, Runs, Unseen, between, parted

ERASED = 3  # bytes in a row that backspaces may erase; also the longest beginning of an invisible character
_PAYLOAD = 1024  # bytes of a title, link or clipboard that a sequence may carry; a longer one is text
_LONGEST = _PAYLOAD + 80  # bytes of a sequence
_WINDOW = 64  # bytes at the end of a text, which nearly every question is about
_C1 = b"\xc2\x9b"  # the same as \x1b[
_NEWLINE, _LINE_ENDS = re.compile(rb"\n"), re.compile(rb"[\r\n]+")
# What follows an \x1b: CSI, then OSC, DCS, SOS, PM and APC with their payload, others, and what begins nothing.
_CSI = rb"\[[0-?]{0,64}[ -/]{0,8}[@-~]"
_OTHERS = rb"[\]PX^_][^\x07\x1b]{0,%d}(?:\x07|\x1b\\)|[ -/]{0,4}[0-OQ-WYZ\\`-~]?" % _PAYLOAD
_WIDER = (
    rb"(?<=\xc2)\xad|(?<=\xe1)\xa0\x8e|(?<=\xef)(?:\xb8[\x80-\x8f]|\xbb\xbf)|(?<=\xf3)\xa0[\x80-\x87][\x80-\xbf]"
    rb"|(?<=\xe2)(?:\x80[\x8b-\x8f\xaa-\xae]|\x81[\xa0-\xaf])"
)
# The first byte by a class alone, so that `re` runs over text without trying each alternative at each byte.
_HIDDEN = (
    rb"[\x1b\xc2\xe1\xe2\xef\xf3](?:(?<=\x1b)(?:" + _CSI + rb"|" + _OTHERS + rb")|(?<=\xc2)\x9b" + _CSI[2:] + rb"|"
    + _WIDER + rb")"
)  # fmt: skip
# Of these one after the other are found at once: much of it is a few matches.
_WIDE = Unseen(
    (0xAD, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFE00, 0xFE10),
     0xFEFF, *range(0xE0000, 0xE0200)),
    rb"[\xc2\xe1\xe2\xef\xf3](?:" + _WIDER + rb")",
)  # fmt: skip
_SEQUENCE = re.compile(_HIDDEN)
_INVISIBLE = re.compile(b"(" + _HIDDEN + b"(?:" + _HIDDEN + b")*)")
_ESCAPES = re.compile(rb"(\x1b(?:%b(?:\x1b%b)*|%b))" % (_CSI, _CSI, _OTHERS))  # where nothing else is hidden
# What may become a sequence with more bytes: nothing of it is shown yet.
_UNFINISHED = re.compile(
    rb"(?:(?:\x1b\[|\xc2\x9b)[0-?]{0,64}[ -/]{0,8}|\x1b[\]PX^_][^\x07\x1b]{0,%d}\x1b?|\x1b[ -/]{0,4})\Z" % _PAYLOAD
)


class Joined:
    """A text without its line ends; `text` is what is left."""

    def __init__(self, source: bytes) -> None:
        text = source.replace(b"\n", b"") if b"\n" in source else source
        self.text = text.replace(b"\r", b"") if b"\r" in text else text
        self._source = source
        self._back = Back(source, self.text, _line_ends)

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source."""
        window = self._source[-_WINDOW:]
        kept, from_end = len(window) - window.count(b"\n") - window.count(b"\r"), len(self.text) - at
        if from_end > kept:
            return self._back.origin(at)
        return len(self._source) - len(window) + nth(window, kept - from_end + 1, b"\r\n") - 1


class _Hidden:
    """A text without what is invisible: `there` are its wide characters; made once for several ways to look at it."""

    def __init__(self, source: bytes, there: list[bytes], sequences: re.Pattern[bytes] | None) -> None:
        """`sequences` matches those that are hidden, too, and the wide characters if there are any."""
        if sequences and (unfinished := _UNFINISHED.search(source, max(0, len(source) - _PAYLOAD - 4))):
            source = source[: unfinished.start()]
        self.source = source
        self.text = sequences.sub(b"", source) if sequences else _WIDE.without(source, there)
        self.back = Back(source, self.text, parted(sequences or _WIDE.pattern), _LONGEST if sequences else WIDEST)


class Shown:
    """A text without line ends and without what is hidden; with `erase`, without what backspaces erase."""

    def __init__(self, hidden: _Hidden, *, erase: bool) -> None:
        self._source, text = hidden.source, hidden.text
        self._steps = [hidden.back]
        if erase:
            kept, before = _without_erased(text), text
            self._steps.append(Back(before, kept, _unerased, 0))
            text = kept
        self._joined = Joined(text)
        self.text = self._joined.text

    def origin(self, at: int) -> int:
        """Where `text[at]` stands in the source."""
        end = self._source[-_LONGEST:]
        if len(self.text) - at <= _WINDOW and end.isascii() and not any(byte in end for byte in b"\x1b\x08\r\n"):
            return len(self._source) - len(self.text) + at  # nothing left out is near
        at = self._joined.origin(at)
        for step in reversed(self._steps):
            at = step.origin(at)
        return at


def projections(source: bytes) -> list[Joined | Shown]:
    """Every way to look at a text that shows something different; mostly one."""
    found: list[Joined | Shown] = [Joined(source)]
    escapes, erased = b"\x1b" in source, b"\x08" in source
    wide, sequences = list[bytes](), _ESCAPES if escapes else None
    if not source.isascii():
        wide, short = _WIDE.there(source), _C1 in source
        if wide or short:
            sequences = _INVISIBLE if escapes or short else None
    if sequences or erased or wide:
        hidden = _Hidden(source, wide, sequences)
        found.append(Shown(hidden, erase=erased))
        if erased and (sequences or wide):
            found.append(Shown(hidden, erase=False))  # what was erased had been shown
    if escapes and (wide or erased):  # what a sequence carries can be read too
        found.append(Shown(_Hidden(source, wide, None), erase=erased))
    return list({shown.text: shown for shown in reversed(found)}.values()) if len(found) > 1 else found


def sequence_at(source: bytes, at: int) -> int:
    """Where the terminal sequence begins that `source[at]` is in; `at` where it is in none."""
    before = at
    while (before := source.rfind(b"\x1b", max(0, at - _LONGEST), before)) >= 0:
        found = _SEQUENCE.match(source, before) or _UNFINISHED.match(source, before)
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


def _line_ends(source: bytes) -> Runs:
    pattern = _LINE_ENDS if b"\r" in source else _NEWLINE  # one literal is searched ten times faster than a class
    return between(found.span() for found in pattern.finditer(source))


def _without_erased(text: bytes) -> bytes:
    """A text without what `_erased` names: each part loses as many bytes as backspaces follow it."""
    parts, kept, count = text.split(b"\b"), list[bytes](), 0
    if b"\b\b" not in text:
        return b"".join([part[:-1] for part in parts[:-1]]) + parts[-1]
    last = parts[0]
    for part in parts[1:]:
        count += 1
        if part:
            kept.append(last[: -min(count, ERASED)])
            last, count = part, 0
    return b"".join(kept) + (last[: -min(count, ERASED)] if count else last)


def _unerased(text: bytes) -> Runs:
    """The runs that backspaces leave."""
    if b"\b\b" in text:
        return between(_erased(text))
    sizes = list(map(len, text.split(b"\b")))  # each part but the last loses its last byte
    begins = accumulate((size + 1 for size in sizes[:-1]), initial=0)
    return list(begins), list(accumulate((size - 1 if size else 0 for size in sizes[:-1]), initial=0))


def _erased(text: bytes) -> Iterator[tuple[int, int]]:
    """Backspaces, with as many bytes before them."""
    last, start = 0, text.find(b"\b")  # which runs at memory speed, a regex does not
    while start >= 0:
        end = start + 1
        while text.startswith(b"\b", end):
            end += 1
        yield max(last, start - min(end - start, ERASED)), end
        last, start = end, text.find(b"\b", end)
