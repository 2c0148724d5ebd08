"""The first pass over a text: which rules could match, and about where. Two ways that lead to the same findings."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from runner.stream.shape import Shape

hyperscan: Any = None
with contextlib.suppress(ImportError):  # without a wheel for this machine it is slower, and nothing else changes
    hyperscan = importlib.import_module("hyperscan")

_SHORT = 512  # bytes, below which the engine's own beginning costs more than it saves
_DENSE = 32  # bytes between hits of one rule
_RARE = b"@+$"  # bytes that an engine can leap by as it does by a word
# What came after 5.4.2 is vectorscan, which loses matches: on x86 up to 5.4.11 (its issue 317), in 5.4.12 everywhere
# (358 and 382). A match that is lost here is let through.
_LOSSY = range(3, 13)
Window = tuple[int, int]  # matches may begin at or after the first and before the second


def _version(found: Any) -> str:
    """Of the library, not of what binds it."""
    database = found.Database(mode=found.HS_MODE_BLOCK)
    database.compile(expressions=[b"a"], ids=[0], flags=[0])
    (number,) = re.findall(r"[0-9]+\.[0-9]+\.[0-9]+", database.info().decode())
    return str(number)


def sound(version: str) -> bool:
    """Whether this version of the library is known to find everything."""
    major, minor, patch = map(int, version.split("."))
    return (major, minor) != (5, 4) or patch not in _LOSSY


VERSION = _version(hyperscan) if hyperscan is not None else ""  # "" where there is none
if VERSION and not sound(VERSION):
    hyperscan = None


class Engine(Protocol):
    """Made once of all rules; holds nothing of a text."""

    def windows(self, text: bytes) -> dict[int, list[Window]]:
        """Where matches of each rule, by its number, may begin: ascending, apart from each other. Whatever matches
        begins in one."""


class Hyperscan:
    """All wider patterns in two passes; a hit tells where one ends, and the rule's reach how far back it began.

    Patterns without a word, which are numbers, are apart: together they would keep the engine from leaping over what
    holds no digit, or no word."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = shapes
        worded = {number for number, each in enumerate(shapes) if each.words and all(map(_sharp, each.words))}
        self._databases = [
            _database(shapes, sorted(numbers)) for numbers in (worded, set(range(len(shapes))) - worded) if numbers
        ]

    def windows(self, text: bytes) -> dict[int, list[Window]]:
        """See `Engine`."""
        ends: dict[int, list[int]] = {}
        for database in self._databases if text else ():
            database.scan(text, match_event_handler=_end, context=ends)
        return {number: self._windows(self._shapes[number], text, each) for number, each in ends.items()}

    def _windows(self, shape: Shape, text: bytes, ends: list[int]) -> list[Window]:
        windows: list[Window] = []
        dense = ends[-1] - ends[0] < _DENSE * len(ends)  # then they are one, for all that can be won
        for end in (ends[0], ends[-1]) if dense else ends:
            self._add(windows, shape, text, end)
        return [(windows[0][0], windows[-1][1])] if dense else windows

    @staticmethod
    def _add(windows: list[Window], shape: Shape, text: bytes, end: int) -> None:
        if windows and end <= windows[-1][1]:
            return
        low = max(0, end - shape.reach - 1)
        if windows and low <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
            return
        if not shape.lines:  # it began after the last byte that it cannot hold
            low = max(low, text.rfind(b"\n", low, end - 1) + 1)
            if not shape.blank:
                low = max(low, text.rfind(b" ", low, end - 1) + 1)
        windows.append((low, end))


def _sharp(word: bytes) -> bool:
    return len(word) > 1 or word in _RARE


def _database(shapes: Sequence[Shape], numbers: Sequence[int]) -> Any:
    made = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    made.compile(
        expressions=[shapes[number].wider.encode() for number in numbers],
        ids=list(numbers),
        flags=[hyperscan.HS_FLAG_DOTALL] * len(numbers),
    )
    return made


# Functions with a name, because this version of the library crashes on a handler that nothing else refers to.
def _end(number: int, start: int, end: int, flags: int, ends: dict[int, list[int]]) -> None:
    if number in ends:
        ends[number].append(end)
    else:
        ends[number] = [end]


def _hit(number: int, start: int, end: int, flags: int, hits: list[int]) -> None:
    hits.append(number)
    hits.append(end)


def holding(pattern: bytes, slowly: Callable[[bytes], object]) -> Callable[[bytes], bool]:
    """What tells whether a text holds what `pattern` matches, at 16 GB/s (measured, one class); by `slowly` where
    there is no hyperscan, and where the text is short."""
    if hyperscan is None:
        return lambda text: bool(slowly(text))
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    flags = hyperscan.HS_FLAG_DOTALL | hyperscan.HS_FLAG_SINGLEMATCH
    database.compile(expressions=[pattern], ids=[0], flags=[flags])

    def quickly(text: bytes) -> bool:
        if len(text) < _SHORT:
            return bool(slowly(text))
        hits: list[int] = []
        try:
            database.scan(text, match_event_handler=_hit, context=hits)
        except hyperscan.ScratchInUseError:  # by the thread that compiles the next generation
            return bool(slowly(text))
        return bool(hits)

    return quickly


def present(words: Sequence[bytes], slowly: Callable[[bytes], object]) -> Callable[[bytes], list[bytes]]:
    """What tells which of these words a text holds, in 0.1 ms for 64 KiB of nothing else (measured). `slowly` tells
    whether it holds any, where there is no hyperscan and where the text is short."""
    if hyperscan is None:
        return lambda text: [word for word in words if word in text] if slowly(text) else []
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    flags = [hyperscan.HS_FLAG_SINGLEMATCH] * len(words)
    database.compile(expressions=list(map(_literal, words)), ids=list(range(len(words))), flags=flags)

    def quickly(text: bytes) -> list[bytes]:
        hits: list[int] = []
        try:
            if len(text) >= _SHORT or slowly(text):
                database.scan(text, match_event_handler=_hit, context=hits)
        except hyperscan.ScratchInUseError:  # by the thread that compiles the next generation
            return [word for word in words if word in text]
        return [words[number] for number in hits[::2]]

    return quickly


def literals(words: Sequence[bytes]) -> Callable[[bytes], dict[int, list[int]]] | None:
    """What finds all places of these words: by a word's number where it begins. In one pass of 5 GB/s, and 4 ms to make
    for 200 words (measured); None where there is no hyperscan."""
    if hyperscan is None:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=list(map(_literal, words)), ids=list(range(len(words))), flags=[0] * len(words))
    lengths = [len(word) for word in words]

    def places(text: bytes) -> dict[int, list[int]]:
        ends: dict[int, list[int]] = {}
        if text:
            database.scan(text, match_event_handler=_end, context=ends)
        return {number: [end - lengths[number] for end in each] for number, each in ends.items()}

    return places


def _literal(word: bytes) -> bytes:
    return b"".join(b"\\x%02x" % code for code in word)


class Words:
    """Rules whose own words do not occur are passed over; the others are tried on the whole text."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._words = [each.words for each in shapes]

    def windows(self, text: bytes) -> dict[int, list[Window]]:
        """See `Engine`."""
        lower = text.lower()
        whole = [(0, len(text))]
        there: dict[bytes, bool] = {}
        found = {}
        for number, words in enumerate(self._words):
            for word in words:
                if word not in there:
                    there[word] = word in lower
            if not words or any(there[word] for word in words):
                found[number] = whole
        return found


def best(shapes: Sequence[Shape]) -> Engine:
    """The fastest that this machine has."""
    return Words(shapes) if hyperscan is None else Hyperscan(shapes)
