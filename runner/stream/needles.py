"""The secrets of one set of leases, compiled: where in a text one of them stands in any form, and where one may begin.

Every needle is known by its first six bytes, its head. Automata look for heads only, at most 64 in each: with more they
lose their vector search (PERFORMANCE.md). Once a megabyte was searched, an engine that takes longer to make takes over.
A needle is compared where its head was found: first as it is, then without separators on both sides, which sees through
grouping, wrapping and concatenation behind the head. What is found depends on the bytes it consists of and on nothing
around them, so a text gives the same however it is cut.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import ClassVar, NamedTuple

import ahocorasick_rs

from runner.stream.engines import literals
from runner.stream.forms import HEAD, SHORTEST, core, forms, spaced
from runner.stream.found import Found
from runner.stream.packed import FIRST, MAGIC, worth
from runner.stream.projections import ERASED, Joined, Shown, nth, projections

LABEL = "secret"
_AUTOMATON = 64  # heads in one automaton
_LONG = 1 << 20  # bytes searched, after which it is worth 4 ms to search faster …
_MOST = 1024  # … for so many heads: more take longer
_KNOWN = 256  # beginnings of compressed data that are remembered while a text is searched
_BETWEEN = bytes(range(33)) + b"-_,.:;|/\\\"'`+()"  # what may stand between the characters of a secret
_SURE = 16  # characters from which on a secret is recognised with anything of that anywhere in it

_PACKED = ahocorasick_rs.BytesAhoCorasick(list(MAGIC), ahocorasick_rs.MATCHKIND_LEFTMOST_LONGEST)
_ENCODINGS = list(MAGIC.values())
_MAGIC_BEGINS = frozenset(magic[:length] for magic in MAGIC for length in range(1, len(magic)))


class Begun(NamedTuple):
    """What may be the beginning of a secret, at the end of a text. `end` leaves out what a backspace could erase."""

    start: int
    end: int
    rule: str  # "" = fewer than `HEAD` bytes, which may be the beginning of several
    erased: bool  # only if backspaces erase what follows it


class Scan(NamedTuple):
    """What a text holds, as offsets in it. `packed`: where compressed data begins, and its encoding. `recent`: where
    that begins whose last bytes a backspace could still erase and write again."""

    found: set[Found]
    begun: set[Begun]
    packed: dict[int, str]
    recent: set[int]


class _Needle:
    """One form of one secret."""

    __slots__ = ("_bare", "reach", "rule", "text")

    def __init__(self, text: bytes, rule: str) -> None:
        self.text, self.rule = text, rule
        self.reach = 16 * len(text) + 256  # bytes of a text that it may spread over, with all that is invisible
        self._bare: bytes | None = None

    @property
    def bare(self) -> bytes:
        """It without what may stand between characters; b"" where too little would be left. Seldom needed."""
        if self._bare is None:
            self._bare = _bare(self.text)
        return self._bare


class Needles:
    """Immutable; equal sets are compiled once while one of them is in use, and no longer."""

    _shared: ClassVar[weakref.WeakValueDictionary[bytes, Needles]] = weakref.WeakValueDictionary()

    def __init__(self, secrets: Mapping[str, tuple[bytes, ...]]) -> None:
        self._heads: dict[bytes, list[_Needle]] = {}
        for name, values in secrets.items():
            for value in values:
                try:
                    self._add(f"secret:{name}", value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        self._reach = max((needle.reach for needles in self._heads.values() for needle in needles), default=0)
        self._order = heads = sorted(self._heads)
        self._searched = 0  # bytes
        self._literals: Callable[[bytes], dict[int, list[int]]] | None = None  # once it is worth it
        self._automata = [
            ahocorasick_rs.BytesAhoCorasick(heads[at : at + _AUTOMATON], ahocorasick_rs.MATCHKIND_LEFTMOST_LONGEST)
            for at in range(0, len(heads), _AUTOMATON)
        ]
        self._begins = _MAGIC_BEGINS.union(head[:length] for head in heads for length in range(1, HEAD))

    @classmethod
    def of(cls, secrets: Mapping[str, tuple[bytes, ...]]) -> Needles:
        """Secret's name → its values: several after a renewal, or by field. Raises `ValueError`, which shows no value,
        for one that cannot be told from ordinary text."""
        digest = hashlib.sha256()
        for name in sorted(secrets):
            for part in (name.encode(), *sorted(secrets[name])):
                digest.update(len(part).to_bytes(4, "big") + part)
            digest.update(b"\xff\xff\xff\xff")
        found = cls._shared.get(digest.digest())
        if found is None:
            found = cls(secrets)
            cls._shared[digest.digest()] = found
        return found

    def __bool__(self) -> bool:
        return bool(self._heads)

    def _add(self, rule: str, value: bytes) -> None:
        for text in forms(value):
            self._heads.setdefault(text[:HEAD], []).append(_Needle(text, rule))
        if bare := _bare(core(value)):
            for head in spaced(bare):
                self._heads.setdefault(head, []).append(_Needle(bare, rule))

    def scan(self, source: bytes) -> Scan:
        """Everything in a text, overlapping or not, and what its end may be the beginning of."""
        scan = Scan(set(), set(), {}, set())
        for shown in projections(source):
            text = shown.text
            places, packed = self._places(text)
            for at in places:
                for needle in self._heads[text[at : at + HEAD]]:
                    self._compare(shown, at, needle, len(source), scan)
            known: dict[tuple[bytes, str], bool] = {}  # what looks compressed and is not is mostly the same
            for start, encoding in packed:
                if (found := known.get(what := (text[start : start + FIRST], encoding))) is None:
                    found = known[what] = worth(*what)
                    if len(known) > _KNOWN:
                        known.clear()
                if found:
                    scan.packed.setdefault(shown.origin(start), encoding)
            self._short(shown, len(source), scan)
        return scan

    def _places(self, text: bytes) -> tuple[set[int], list[tuple[int, str]]]:
        """Where heads stand, and where something that is compressed may begin."""
        self._searched += len(text)
        if self._literals is None and self._searched > _LONG and len(self._order) <= _MOST:
            self._literals = literals([*self._order, *MAGIC])
        if self._literals is not None:
            heads, packed, count = set[int](), list[tuple[int, str]](), len(self._order)
            for number, starts in self._literals(text).items():
                if number < count:
                    heads.update(starts)
                else:
                    packed += zip(starts, repeat(_ENCODINGS[number - count]))
            return heads, packed
        places: set[int] = set()
        for automaton in self._automata:
            for _, start, end in automaton.find_matches_as_indexes(text):
                places.add(start)  # those that overlap with it are left out: looked up here
                places.update(at for at in range(start + 1, end) if text[at : at + HEAD] in self._heads)
        return places, [(start, _ENCODINGS[index]) for index, start, _ in _PACKED.find_matches_as_indexes(text)]

    def _compare(self, shown: Joined | Shown, at: int, needle: _Needle, size: int, scan: Scan) -> None:
        text, length = shown.text, len(needle.text)
        end = begun = 0
        if text.startswith(needle.text, at):
            end = at + length
        elif at + length > len(text) - ERASED and (left := self._left(text[at:], needle.text)):
            begun = at + left
        elif _interrupted(text, at, needle.text) and needle.bare:
            end, begun = _loose(text, at, needle)
        if not end and not begun:
            return
        start, last = shown.origin(at), shown.origin((end or begun) - 1) + 1
        if end and last - start <= needle.reach:
            scan.found.add(Found(start, last, needle.rule, LABEL))
            if len(text) - end <= ERASED:
                scan.recent.add(start)
        elif begun and size - start <= needle.reach:
            scan.begun.add(Begun(start, last, needle.rule, erased=begun < len(text)))

    @staticmethod
    def _left(tail: bytes, text: bytes) -> int:
        """How much of the end of a text is the beginning of a needle, if backspaces erase what follows."""
        for erased in range(ERASED + 1):
            length = len(tail) - erased
            if HEAD <= length < len(text) and text.startswith(tail[:length]):
                return length
        return 0

    def _short(self, shown: Joined | Shown, size: int, scan: Scan) -> None:
        """The first place near the end at which fewer than `HEAD` bytes of anything begin, and perhaps more follows
        that backspaces erase. What begins something, its own beginning does too: one question a place."""
        text = shown.text
        size_shown = len(text)
        for at in range(max(0, size_shown - HEAD + 1 - ERASED), size_shown):
            if text[at : max(at + 1, size_shown - ERASED)] in self._begins:
                start = shown.origin(at)
                if size - start <= self._reach:
                    scan.begun.add(Begun(start, size, "", erased=False))
                    return


def _bare(text: bytes) -> bytes:
    """A needle without what may stand between characters; b"" where too little would be left."""
    bare = text.translate(None, _BETWEEN)
    return bare if len(bare) >= SHORTEST and len(set(bare)) > 1 else b""


def _interrupted(text: bytes, at: int, needle: bytes) -> bool:
    """Whether it may go on after the head but for what stands in between: a cheap question before a dear one."""
    after = text[at + HEAD : at + HEAD + 1]
    return (
        after == needle[HEAD : HEAD + 1]
        or after in _BETWEEN
        or needle[HEAD] in _BETWEEN
        or not text.startswith(needle[:HEAD], at)  # a head with separators in it
    )


def _loose(text: bytes, at: int, needle: _Needle) -> tuple[int, int]:
    """Compare without what may stand between characters: the end of a match, or of a beginning at the text's end."""
    bare, limit = needle.bare, 4 * len(needle.text) + 32
    first = text[at : at + 24].translate(None, _BETWEEN)[: len(bare)]
    if at + 24 <= len(text) - ERASED and not bare.startswith(first):
        return 0, 0
    window = text[at : at + limit]
    kept = window.translate(None, _BETWEEN)
    if kept.startswith(bare):
        end = nth(window, len(bare), _BETWEEN)
        return (at + end, 0) if len(bare) >= _SURE or _regular(window[:end]) else (0, 0)
    if at + limit > len(text) - ERASED:
        if bare.startswith(kept):
            return 0, len(text)
        if len(window) >= HEAD + ERASED and bare.startswith(window[:-ERASED].translate(None, _BETWEEN)):
            return 0, len(text) - ERASED
    return 0, 0


def _regular(text: bytes) -> bool:
    """Whether a short secret is interrupted as a program does it, and not as words stand in a sentence: everywhere the
    same, after the same number of characters."""
    pieces: list[int] = []
    between: set[bytes] = set()
    last = 0
    for at in range(len(text)):
        if text[at] in _BETWEEN:
            continue
        if at > last or not pieces:
            between.add(text[last:at])
            pieces.append(0)
        pieces[-1] += 1
        last = at + 1
    between.discard(b"")
    return len(between) <= 1 and len(set(pieces[:-1])) <= 1 and pieces[-1] <= pieces[0] and len(pieces) > 2
