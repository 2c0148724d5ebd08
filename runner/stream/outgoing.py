"""What a text that goes out carries: issued secrets, labels that patterns find, labels of text that it copies. Pure.

One object looks at one text, in pieces: the end of what was seen is looked at again together with what follows. A
compressed body is unpacked as it comes, within bounds; once the task has read labelled text, so are all other wrappers.
What could not be looked at is told (`whole`), never guessed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from runner.stream.found import Found
from runner.stream.layers import Layers, layers
from runner.stream.shingles import Match

_AGAIN: Final = 4 << 10  # of the end of a piece are looked at with the next one
_UNPACKED: Final = 1 << 20  # bytes that one piece may unpack to
_MOST: Final = 32  # sources that are told
_ISSUED: Final = "secret:"
_PLAIN = frozenset({"", "identity"})
_PACKED = frozenset({"gzip", "x-gzip", "deflate"})


class Finder(Protocol):
    """Finds in a whole text: needles of secrets, patterns."""

    def find(self, data: bytes) -> Sequence[Found]:
        """What is there."""


class Memory(Protocol):
    """What the task has read of labelled text: `runner.stream.shingles.Shingles`."""

    def __bool__(self) -> bool:
        """Whether there is any."""

    def match(self, opened: Layers) -> Match:
        """What a text, unwrapped, has in common with it."""


class Carries(NamedTuple):
    """What was found so far."""

    labels: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()  # names of issued secrets
    sources: tuple[str, ...] = ()  # calls whose labelled results it copies
    whole: bool = True


class Outgoing:
    """One text on its way out. `find` finds secrets and what patterns know; `memory` is the task's."""

    def __init__(self, find: Callable[[bytes], Iterable[Found]], memory: Memory, coding: str = "") -> None:
        self._find = find
        self._memory = memory
        coding = coding.strip().lower()
        self._unpacks = zlib.decompressobj(47) if coding in _PACKED else None
        self._before = b""
        self._labels: set[str] = set()
        self._secrets: set[str] = set()
        self._sources: dict[str, None] = {}
        self._whole = coding in _PLAIN or coding in _PACKED

    @property
    def carries(self) -> Carries:
        """What was found so far."""
        sources = tuple(self._sources)[:_MOST]
        return Carries(frozenset(self._labels), frozenset(self._secrets), sources, self._whole)

    def head(self, data: bytes) -> Carries:
        """What stands before it, never compressed."""
        self._look(data)
        return self.carries

    def look(self, data: bytes) -> Carries:
        """The next piece. What it says holds for all pieces up to this one."""
        if self._unpacks is not None:
            data = self._unpacked(self._unpacks, data)
        if not data:
            return self.carries
        text = self._before + data
        self._before = text[-_AGAIN:]
        self._look(text)
        return self.carries

    def value(self, value: Any) -> Carries:
        """A whole value of JSON: all texts in it together, as a record may be spread over several."""
        self._look(b"\n".join(_texts(value)))
        return self.carries

    def _unpacked(self, reader: Any, data: bytes) -> bytes:
        try:
            text: bytes = reader.decompress(data, _UNPACKED)
        except zlib.error:
            self._whole = False
            return data
        self._whole = self._whole and not reader.unconsumed_tail and not reader.unused_data
        return text

    def _look(self, text: bytes) -> None:
        # Where nothing labelled was read, what wraps a text need not come off: needles know the forms of a secret.
        opened = layers(text) if self._memory else Layers([text], True)
        self._whole = self._whole and opened.whole
        if self._memory:
            found = self._memory.match(opened)
            self._labels |= found.labels
            self._sources.update(dict.fromkeys(overlap.source for overlap in found.overlaps))
        for each in opened.texts:
            for place in self._find(each):
                self._labels.add(place.label)
                if place.rule.startswith(_ISSUED):
                    self._secrets.add(place.rule.removeprefix(_ISSUED))


def _texts(value: Any) -> Iterable[bytes]:
    """Every text in a value, keys included, and its numbers."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            yield each.encode("utf-8", "surrogatepass")
        elif isinstance(each, dict):
            todo += [*each.values(), *each]
        elif isinstance(each, list | tuple):
            todo += reversed(each)
        elif isinstance(each, int | float) and not isinstance(each, bool):
            yield msgspec.json.encode(each)
