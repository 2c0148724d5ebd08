"""Text as a model reads it: one folded form of each character, so that rules need to know no disguise.

A folded text is bytes: ASCII in lower case, letters of other scripts in UTF-8, anything else a space or ASCII sign.
Case, width, accents, look-alikes (Unicode's own table), invisible characters and ASCII hidden in tags or variation
selectors are gone. Every text knows where its bytes came from (`Text.span`): a finding names bytes of the original.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cache
from importlib import resources
from typing import NamedTuple

import msgspec

_KEPT = 8192  # folded characters remembered: more than any language writes; hostile text costs its own time, no memory
_BLOCK = 256  # characters folded at once while a place is looked for
_STOPS = {"。": ".", "．": ".", "｡": ".", "！": "!", "？": "?", "؟": "?", "।": ".", "…": "."}
# Look-alikes in lower case that the library's table gives no ASCII letter for: the table names a small capital there.
_MORE = dict(zip("вкмнптяшκτηυʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢᴀø", "bkmhntrwktnubcdefghijklmnoprstuvwyzao", strict=True))


class Cut(NamedTuple):
    """Bytes `start` to `end` of a text that stand for bytes `from_` to `to` of the text that it was made of."""

    start: int
    end: int
    from_: int
    to: int


Cuts = Callable[[], Iterable[Cut]]  # in order, without overlap; asked for once, when something has been found


class Text:
    """Bytes and where they came from. `via` says how, in order: "escapes", "markup", "base64" and so on."""

    def __init__(
        self, data: bytes, origin: Text | None = None, via: tuple[str, ...] = (), cuts: Cuts | None = None
    ) -> None:
        self.data = data
        self.via = via
        self._origin = origin
        self._cuts = cuts
        self._made: list[Cut] = []
        self._starts: list[int] | None = None

    def made(self, data: bytes, how: str, cuts: Cuts | None = None) -> Text:
        """A text made of this one: byte for byte as long, but for `cuts`."""
        return Text(data, self, (*self.via, how) if how else self.via, cuts)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of the original that bytes `start` to `end` (not empty) stand for."""
        if self._origin is None:
            return start, end
        return self._origin.span(*self.within(start, end))

    def within(self, start: int, end: int) -> tuple[int, int]:
        """The same, one step back. Whatever touches a cut stands for the whole of what was cut."""
        return self._at(start)[0], self._at(end - 1)[1]

    def _at(self, place: int) -> tuple[int, int]:
        if self._starts is None:
            self._made = list(self._cuts()) if self._cuts is not None else []
            self._starts = [cut.start for cut in self._made]
        index = bisect_right(self._starts, place) - 1
        if index < 0:
            return place, place + 1
        cut = self._made[index]
        if place < cut.end:
            return cut.from_, cut.to
        at = cut.to + place - cut.end
        return at, at + 1


class Folded(Text):
    """The folded form of a text; for ASCII the same bytes in lower case, which costs nothing more to place."""

    def __init__(self, origin: Text) -> None:
        super().__init__(b"", origin, origin.via)
        self._text: str | None = None
        if origin.data.isascii():
            self.data = origin.data.lower()
        else:
            self._text = origin.data.decode("utf-8", "surrogateescape")
            self.data = fold(self._text)

    def within(self, start: int, end: int) -> tuple[int, int]:
        """As of any text, found by folding again what is before it: only findings are placed."""
        if self._text is None:
            return start, end
        begun = self._character(start)[0]
        last, size = self._character(end - 1)
        return begun, last + size

    def _character(self, place: int) -> tuple[int, int]:
        """Where the character begins in the origin whose folded form covers a byte, and how many bytes it has."""
        assert self._text is not None
        at = before = 0
        for index in range(0, len(self._text), _BLOCK):
            block = self._text[index : index + _BLOCK]
            size = len(fold(block))
            if at + size <= place:
                at, before = at + size, before + len(block.encode("utf-8", "surrogateescape"))
                continue
            for char in block:
                at += len(fold(char))
                size = len(char.encode("utf-8", "surrogateescape"))
                if at > place:
                    return before, size
                before += size
        return before, 0


def fold(text: str) -> bytes:
    """The folded form of a text. Character by character: the form of a text is that of its parts, joined."""
    return text.translate(_table()).encode()


@cache
def _table() -> _Folds:
    return _Folds()


class _Folds(dict[int, str]):
    """Folded forms, made as they are met."""

    def __missing__(self, point: int) -> str:
        char = chr(point)
        ideograph = 0x3400 <= point <= 0x9FFF or 0xAC00 <= point <= 0xD7A3 or 0x20000 <= point <= 0x3FFFF
        form = char if ideograph else _form(char)
        if len(self) < _KEPT:
            self[point] = form
        return form


def _form(char: str) -> str:
    point = ord(char)
    if point < 0x80:
        return char.lower()
    if char in _STOPS:
        return _STOPS[char]
    hidden = _hidden(point)
    if hidden is not None:
        return hidden
    alike = _alike()
    form = ""
    for folded in char.casefold():
        plain = unicodedata.normalize("NFKD", folded)  # first: the table takes a bold I for an l
        for part in plain if plain.isascii() else alike.get(folded, plain):
            form += _part(alike.get(part, part))
    return form


def _part(char: str) -> str:
    """A decomposed character: marks go, letters and digits stay, any other sign is a space."""
    if char < "\x80":
        return char.lower()
    category = unicodedata.category(char)
    if category[0] in "LN":
        return char.casefold()
    return "" if category[0] == "M" or category in ("Cf", "Cc") else " "


def _hidden(point: int) -> str | None:
    """What is said by characters that nobody sees, and letters that only look like pictures; None for any other."""
    if 0xE0020 <= point <= 0xE007E:  # tags: ASCII, out of sight
        return chr(point - 0xE0000).lower()
    if 0xE0100 <= point <= 0xE01EF:  # variation selectors 17 to 256: bytes, out of sight
        byte = point - 0xE0100 + 16
        return chr(byte).lower() if 0x20 <= byte < 0x7F else ""
    if 0xFE00 <= point <= 0xFE0F or 0xE0000 <= point <= 0xE0FFF or point in (0x115F, 0x1160, 0x3164, 0xFFA0):
        return ""
    for first in (0x1F1E6, 0x1F150, 0x1F170):  # regional indicators; letters in black circles and squares
        if first <= point < first + 26:
            return chr(ord("a") + point - first)
    return None


class _Alike(msgspec.Struct):
    c: str


@cache
def _alike() -> dict[str, str]:
    """Characters of other scripts → the ASCII letter that they look like, in lower case.

    The library's module would keep 17 MB of names for ever; its table is read without them (15 ms, once)."""
    table = resources.files("confusable_homoglyphs").joinpath("confusables.json").read_bytes()
    known = msgspec.json.decode(table, type=dict[str, list[_Alike]])
    found = {
        char: like.c.lower()
        for char, likes in known.items()
        for like in likes
        if len(char) == 1 and char > "\x7f" and len(like.c) == 1 and like.c.isascii() and like.c.isalpha()
    }
    return found | _MORE
