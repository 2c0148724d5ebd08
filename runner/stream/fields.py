"""The records of a labelled text and their fields, each with how much it tells. Pure.

JSON (also a value a line), tables (comma, semicolon, tab, bar) and `name: value` lines are read as records; anything
else has none, but e-mail addresses and long numbers are found in every text. A field's weight says how much of a copy
it alone is: a phone number is a person's, a name is one with something more, a word is nothing by itself.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from runner.stream.letters import TAIL, numbers, plain, words

STRONG: Final = 3  # alone it carries the label: an address, a number of eight digits
MEDIUM: Final = 2  # with another one it does: a full name, a customer's number
WEAK: Final = 1  # a single word, a short number
LONGEST = 6  # words of a field; longer ones are text
_LONG = 64  # characters likewise
_DEPTH = 64
_EMAIL = re.compile(rb"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9._%+'-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_DAY, _MONTH, _YEAR = rb"(?:0[1-9]|[12][0-9]|3[01])", rb"(?:0[1-9]|1[0-2])", rb"(?:19|20)[0-9]{2}"
_DATE = re.compile(rb"%b%b%b|%b%b%b" % (_YEAR, _MONTH, _DAY, _DAY, _MONTH, _YEAR))
_PAIR = re.compile(r"[\s>*#|-]*([A-Za-z_][\w .()/-]{0,40}?)[\"'*]*\s*[:=]\s*(\S.*)")
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_.-][a-z0-9]+)*\Z")
_CELL = 40  # characters
_HEADING = 3  # words of a column's name
_BRACKETS = " \t\r-=_{}[](),;"
_DELIMITERS = "\t;|,"
_ROWS = 0.6  # of a table's lines have the same number of cells


class Field(NamedTuple):
    """`words` are the words of a field in one piece each; of a number, its last digits alone."""

    words: tuple[bytes, ...]
    weight: int


def values(text: bytes) -> Iterator[Field]:
    """E-mail addresses and long numbers anywhere in a plain text (`letters.plain`): each alone is somebody's."""
    for address in _EMAIL.findall(text):
        yield Field(tuple(words(address)[:LONGEST]), STRONG)
    for number in numbers(text):
        if (weight := _number(number)) > WEAK:
            yield Field((number,), weight)


def _number(tail: bytes) -> int:
    """By the last digits alone, so that both sides judge alike. Dates and round numbers are nobody's."""
    if len(set(tail)) < 4 or _DATE.fullmatch(tail):
        return WEAK
    return STRONG if len(tail) == TAIL else MEDIUM


def records(text: str) -> Iterator[list[str]]:
    """The records of a text, each with its values in order, and what is no record as a record of one passage."""
    yield from _records(text, 0)


def fields(record: list[str]) -> Iterator[Field]:
    """The fields of a record that tell anything."""
    for each in record:
        if (field := _field(each)) is not None:
            yield field
    yield from _full_names(record)


def is_name(text: str) -> bool:
    """Whether this is what columns, states and kinds are called, and people are not."""
    return _NAME.match(text) is not None and not any(char.isdigit() for char in text)


def _records(text: str, depth: int) -> Iterator[list[str]]:
    stripped = text.strip()
    if stripped[:1] in ("{", "["):
        try:
            value = msgspec.json.decode(stripped)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            yield from _json(value, depth)
            return
    lines = text.splitlines()
    rest: list[str] = []
    for line in lines:
        if line.lstrip()[:1] in ("{", "["):
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError):
                pass
            else:
                yield from _json(value, depth)
                continue
        rest.append(line)
    filled = [line for line in rest if line.strip()]
    delimiter = _delimiter(filled)
    yield from _table(filled, delimiter) if delimiter else _lines(rest)


def _lines(lines: list[str]) -> Iterator[list[str]]:
    """`name: value` lines up to one without a letter are a record; other lines are a passage."""
    pairs: list[str] = []
    passage: list[str] = []
    for line in (*lines, ""):
        pair = _PAIR.match(line) if len(line) <= 2 * _LONG else None
        if pair is not None and len(pair[2]) <= _LONG:
            pairs.append(pair[2].strip().strip("\"',;"))
        elif line.strip(_BRACKETS):
            passage.append(line)
        elif pairs:
            yield pairs
            pairs = []
    if passage:
        yield ["\n".join(passage)]


def _json(value: Any, depth: int) -> Iterator[list[str]]:
    """Every object and every array is a record of the scalars directly in it."""
    if depth > _DEPTH:
        return
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    record = []
    for each in inner:
        if isinstance(each, dict | list):
            yield from _json(each, depth + 1)
        elif isinstance(each, str) and (len(each) > _LONG or "\n" in each):
            yield from _records(each, depth + 1)
        elif isinstance(each, str) or (isinstance(each, int | float) and not isinstance(each, bool)):
            record.append(str(each))
    if record:
        yield record


def _delimiter(lines: list[str]) -> str:
    """What separates the cells of a table; "" when this is none."""
    sample = lines[:50]
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in sample]
        usual = max(counts, key=counts.count, default=0)
        if not usual or counts.count(usual) < _ROWS * len(counts):
            continue
        if len(counts) > 1 or _is_row(sample[0].split(delimiter)):
            return delimiter
    return ""


def _is_row(cells: list[str]) -> bool:
    """Whether one line alone is a row: short cells, one of which has a number in it."""
    return any(char.isdigit() for cell in cells for char in cell) and max(map(len, cells)) <= _CELL


def _table(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    begin = int(len(lines) > 1 and _is_header(lines[0].split(delimiter)))
    try:
        for row in csv.reader(lines[begin:], delimiter=delimiter):
            yield [cell.strip() for cell in row]
    except csv.Error:
        for line in lines[begin:]:
            yield [cell.strip(" \t\"'") for cell in line.split(delimiter)]


def _is_header(cells: list[str]) -> bool:
    """Whether these name columns: few words each, and nothing of a value."""
    return not any(char.isdigit() or char == "@" for cell in cells for char in cell) and all(
        len(cell.split()) <= _HEADING for cell in cells
    )


def _field(text: str) -> Field | None:
    if not 2 < len(text) <= _LONG:
        return None
    found = tuple(words(plain(text.encode("utf-8", "replace"))))
    letters = b"".join(found)
    if not 1 <= len(found) <= LONGEST or len(letters) < 3:
        return None
    digits = sum(48 <= code < 58 for code in letters)
    if "@" in text or (digits and _DATE.match(letters)) or (digits == len(letters) > 6):
        return None if "@" in text or digits > 6 else Field(found, WEAK)  # addresses and long numbers: see `values`
    if is_name(text):
        return None
    if digits:
        told = len(letters) >= 5 and digits >= 3 if len(found) == 1 else len(letters) >= 6
        return Field(found, MEDIUM if told and digits < len(letters) else WEAK)
    if not letters.isascii() and len(found) == 1:
        return Field(found, MEDIUM if len(text) >= 3 and not text.isascii() and _dense(text) else WEAK)
    return Field(found, MEDIUM if len(found) > 1 and len(letters) >= 7 and not text.islower() else WEAK)


def _dense(text: str) -> bool:
    """Whether this is written without spaces between words: Han, Hangul, Kana."""
    return all(ord(char) >= 0x2E80 for char in text)


def _full_names(record: list[str]) -> Iterator[Field]:
    """Two cells side by side that can be a first and a last name, as somebody would write them."""
    for one, two in pairwise(record):
        if one.isalpha() and two.isalpha() and one.istitle() and two.istitle() and len(one) + len(two) >= 6:
            pair = tuple(words(plain(f"{one} {two}".encode())))
            yield Field(pair, MEDIUM)
            yield Field(pair[::-1], MEDIUM)
