"""What a task has read of labelled text, as keyed fingerprints, and whether a text that goes out copies any. Pure.

Two kinds are kept. *Shingles*: sixteen letters and digits in a row, at places that the key chooses (about every
eleventh), whatever stands between them: a copied passage of some hundred letters holds enough of them close together.
*Fields*: of records (`runner/stream/fields.py`) every value that tells anything, because a copied customer may be no
more than a name and a number; fields count together only when they belong to one record and stand close together.
Neither holds any text: a fingerprint is a part of a SipHash-1-3, whose key is this process's own (CPython's, drawn at
its start), over the task's key and the letters.

Memory is fixed (`BYTES`): a new fingerprint takes the place of an old one, and `forgotten` counts what fell out or was
never kept, so that a policy can refuse where not everything is remembered. It sees through what `layers.py` unwraps
and `letters.py` folds: encodings, case, wrapping, quoting, markup, order of fields. It does not see paraphrase,
translation, encryption, pictures, numbers that were calculated with, single words, a name with no more than a town or
a date, names that stand in prose (only addresses and long numbers are found there), or a record that leaves in pieces
far apart or in several requests.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from runner.stream.fields import LONGEST, MEDIUM, STRONG, WEAK, Field, fields, is_name, records, values
from runner.stream.layers import Layers, layers
from runner.stream.letters import numbers, plain, words

READ: Final = 256 << 10  # bytes of one result that are kept; the rest counts as forgotten
BYTES: Final = 4 * (1 << 17) + 8 * (1 << 16) + (1 << 16)  # of the tables of one task

_GRAM = 16  # letters and digits of a shingle
_HITS = 4  # different shingles of one result …
_NEAR = 24  # … among so many neighbours (some 260 letters) are a copied passage
_NEAR_WORDS = 64  # fields of one record stand within so many words
_SCORE = {WEAK: 1, MEDIUM: 3, STRONG: 6}
_ENOUGH = 6
_SHARE = 85  # thousandths of the letters of ordinary text begin a shingle
_ALIKE = 8  # records of all results that a value is kept with
_SAME = 4  # records of one result that share a field before it tells nothing
_SOURCES = 4095
_ROWS = (1 << 16) - 1
_TURN = 64  # records

_GRAMS = (1 << 17) - 1  # masks of the tables
_FIELDS = (1 << 16) - 1
_FIRST = (1 << 16) - 1
_FULL = 4  # shingles are forgotten once a quarter of their places is taken: 78 % of the oldest still have theirs then
_NOWHERE = re.compile(rb"(?!)")
_WORD = (1 << 20) - 1  # bits of a fingerprint of a shingle
_FIELD = (1 << 34) - 1
_RECORD = (1 << 28) - 1
_PLACES = 32  # where a field may stand: one that finds none free takes the first
# Shares of the letters of English text, roughly; other text is less even, which costs nothing but evenness.
_COMMON = dict(zip("etaoinshrdlcumwfgypbvkjxqz", (127, 91, 82, 75, 70, 67, 63, 61, 60, 43, 40, 28, 28, 24, 24, 22, 20,
                                                  20, 19, 15, 10, 8, 2, 2, 1, 1), strict=True))  # fmt: skip


class Overlap(NamedTuple):
    """What a text has in common with one labelled result."""

    source: str  # the call it was the result of
    labels: frozenset[str]
    fields: int
    passages: int  # shingles

    def __str__(self) -> str:
        counts = (self.fields, "field"), (self.passages, "passage")
        parts = " and ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count)
        return f"{parts} of the result of {self.source} ({', '.join(sorted(self.labels))})"


class Match(NamedTuple):
    """`labels` are carried by the text."""

    labels: frozenset[str]
    overlaps: tuple[Overlap, ...]


NOTHING: Final = Match(frozenset(), ())


class _Source(NamedTuple):
    call: str
    labels: frozenset[str]


class _Hit(NamedTuple):
    place: int
    record: int  # source and row; of a shingle, its source
    score: int
    print: int


class Shingles:
    """Of one task. `key` is 16 random bytes or more, the task's own."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._anchor = _NOWHERE
        self._sources: list[_Source] = []
        self._grams = array("I")  # source << 20 | fingerprint; made when first needed
        self._fields = array("Q")  # fingerprint << 30 | source << 18 | row << 2 | weight
        self._firsts = bytearray()  # by a field's first word: bit n is set when one of n words begins so
        self._kept_grams = 0
        self.forgotten = 0  # bytes of results that were not read, and fingerprints that fell out

    def __bool__(self) -> bool:
        return bool(self._sources)

    # --- keeping --------------------------------------------------------------------------------------------

    def keep(self, call: str, labels: Iterable[str], data: bytes) -> None:
        """A labelled result, or a piece of one, as the agent got it."""
        for _ in self.keeping(call, labels, data):
            pass

    def keeping(self, call: str, labels: Iterable[str], data: bytes) -> Iterator[None]:
        """The same, a millisecond or so at a time, for whoever must not be held up. All is kept when it ends."""
        if not self._sources:
            self._anchor = re.compile(rb"[%b](?=(.{%d}))" % (_letters(self._key), _GRAM), re.DOTALL)
            self._grams = array("I", bytes(4 * (_GRAMS + 1)))
            self._fields = array("Q", bytes(8 * (_FIELDS + 1)))
            self._firsts = bytearray(_FIRST + 1)
        self.forgotten += max(0, len(data) - READ)
        source = self._source(call, frozenset(labels))
        opened = layers(data[:READ])
        self.forgotten += not opened.whole
        for each in opened.texts:
            yield
            for field in values(plain(each)):
                self._keep_field(source, 0, field)
            yield
            text = []
            for row, record in enumerate(records(each.decode("utf-8", "replace")), 1):
                text += [value for value in record if not is_name(value)]
                for field in fields(record):
                    self._keep_field(source, min(row, _ROWS), field)
                if not row % _TURN:
                    yield
            self._keep_grams(source, b"".join(words(plain("\n".join(text).encode("utf-8", "replace")))))

    def _source(self, call: str, labels: frozenset[str]) -> int:
        """Its number, from 1. The same call goes on; when there are no more numbers, the last is of all later calls."""
        if self._sources and (self._sources[-1].call == call or len(self._sources) == _SOURCES):
            last = self._sources.pop()
            call, labels = (call if last.call == call else "later calls"), labels | last.labels
        self._sources.append(_Source(call, labels))
        return len(self._sources)

    def _keep_grams(self, source: int, text: bytes) -> None:
        table, key = self._grams, self._key
        tag = source << 20
        for each in {hash(key + gram) for gram in self._anchor.findall(text)}:
            place, entry = each & _GRAMS, tag | (each >> 17 & _WORD)
            if not table[place]:
                self._kept_grams += 1
            elif (table[place] ^ entry) & _WORD and self._kept_grams * _FULL > _GRAMS:
                self.forgotten += 1
            table[place] = entry

    def _keep_field(self, source: int, row: int, field: Field) -> None:
        parts, weight = field
        printed = hash(self._key + b"".join(parts) + b"%d" % len(parts))
        self._firsts[hash(self._key + parts[0]) & _FIRST] |= 1 << len(parts)
        want, table = printed >> 16 & _FIELD, self._fields
        alike: list[tuple[int, int]] = []  # source and place of the same value elsewhere
        for turn in range(_PLACES):
            at = (printed + turn) & _FIELDS
            entry = table[at]
            if not entry:
                if len(alike) >= _ALIKE:
                    at = min(alike)[1]
                break
            if entry >> 30 == want:
                its = entry >> 18 & _SOURCES
                if weight == STRONG or (its == source and (entry >> 2 & _ROWS) == row):
                    break
                alike.append((its, at))
                own = [place for each, place in alike if each == source]
                if len(own) == _SAME:
                    at, weight = own[0], 0  # in so many records of one result it tells nothing of any
                    break
        else:
            at = printed & _FIELDS
            self.forgotten += 1
        table[at] = want << 30 | source << 18 | row << 2 | weight

    # --- looking --------------------------------------------------------------------------------------------

    def match(self, opened: Layers) -> Match:
        """The labels that a text, unwrapped, carries because it copies labelled text, and of which results."""
        if not self._sources:
            return NOTHING
        found: dict[int, tuple[set[int], set[int]]] = {}  # source → fingerprints of fields, of shingles
        for text in map(plain, opened.texts):
            found_words = words(text)
            for hit in _together(self._field_hits(text, found_words), _NEAR_WORDS, _ENOUGH):
                found.setdefault(hit.record >> 16, (set(), set()))[0].add(hit.print)
            for hit in _together(self._gram_hits(b"".join(found_words)), _NEAR, _HITS):
                found.setdefault(hit.record, (set(), set()))[1].add(hit.print)
        if not found:
            return NOTHING
        overlaps = tuple(
            Overlap(*self._sources[source - 1], len(fields), len(grams)) for source, (fields, grams) in found.items()
        )
        return Match(frozenset().union(*(each.labels for each in overlaps)), overlaps)

    def _gram_hits(self, text: bytes) -> Iterator[_Hit]:
        table = self._grams
        prints = list(map(hash, map(self._key.__add__, self._anchor.findall(text))))
        for place in [at for at, each in enumerate(prints) if not (table[each & _GRAMS] ^ each >> 17) & _WORD]:
            each = prints[place]
            if entry := table[each & _GRAMS]:
                yield _Hit(place, entry >> 20, 1, each)

    def _field_hits(self, text: bytes, found: list[bytes]) -> Iterator[_Hit]:
        key, firsts = self._key, self._firsts
        begins = {word: lengths for word in set(found) if (lengths := firsts[hash(key + word) & _FIRST])}
        end = 0  # of the last field that was found: what lies within it is not counted again
        for place in [at for at, word in enumerate(found) if word in begins] if begins else ():
            lengths = begins[found[place]]
            for count in range(LONGEST, 0, -1):
                if lengths >> count & 1 and end < place + count <= len(found):
                    hits = self._field(place, found[place : place + count])
                    if hits:
                        end = place + count
                        yield from hits
                        break
        # Numbers are strong: where they stand does not matter.
        for number in set(numbers(text)):
            yield from self._field(0, [number])

    def _field(self, at: int, parts: list[bytes]) -> list[_Hit]:
        printed = hash(self._key + b"".join(parts) + b"%d" % len(parts))
        want, table = printed >> 16 & _FIELD, self._fields
        hits: list[_Hit] = []
        common = set()
        for turn in range(_PLACES):
            entry = table[(printed + turn) & _FIELDS]
            if not entry:
                break
            if entry >> 30 == want:
                if entry & 3:
                    hits.append(_Hit(at, entry >> 2 & _RECORD, _SCORE[entry & 3], printed))
                else:
                    common.add(entry >> 18 & _SOURCES)
        return [hit for hit in hits if hit.record >> 16 not in common] if common else hits


def _together(hits: Iterable[_Hit], near: int, enough: int) -> Iterator[_Hit]:
    """The hits of records that are hit by different fingerprints worth `enough` within `near` places."""
    by_record: dict[int, list[_Hit]] = {}
    for hit in hits:
        by_record.setdefault(hit.record, []).append(hit)
    for group in by_record.values():
        group.sort()
        begin, score, held = 0, 0, dict[int, int]()
        for hit in group:
            held[hit.print] = held.get(hit.print, 0) + 1
            score += hit.score * (held[hit.print] == 1)
            while hit.place - group[begin].place > near:
                gone = group[begin]
                held[gone.print] -= 1
                score -= gone.score * (not held[gone.print])
                begin += 1
            if score >= enough:
                yield from group
                break


def _letters(key: bytes) -> bytes:
    """Where shingles begin: at letters that the key chooses, so that nobody else knows which places are kept."""

    def drawn(code: int) -> bytes:
        return hashlib.blake2b(bytes((code,)), key=key[:64]).digest()

    chosen, share = [min(b"0123456789", key=drawn)], 0
    for letter in sorted(map(ord, _COMMON), key=drawn):
        if share + _COMMON[chr(letter)] <= _SHARE:
            chosen.append(letter)
            share += _COMMON[chr(letter)]
    chosen += sorted(range(0x80, 0xC0), key=drawn)[:8]  # one of eight bytes that continue a letter beyond ASCII
    return b"".join(b"\\x%02x" % code for code in chosen)
