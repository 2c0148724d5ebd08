"""The last filter of a stream: what a terminal, a log or a reader's eye would be misled by is written out as text.

Controls but newline, tab and the return before a newline become `\\x1b`; bidirectional and invisible characters become
`\\u{202e}`. Joiners stay between two visible characters above ASCII, variation selectors after one: emoji, Persian and
Indic scripts need them there. From its first NUL or invalid UTF-8 on, a stream is binary: base64, in whole groups of
three bytes, so that pieces join. Everything here takes linear time, in C for all but a few characters.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections import Counter
from typing import NamedTuple

from runner.stream.engines import holding
from runner.stream.stage import LONG_MS, Name

CONTROL, BIDI, INVISIBLE, BINARY = "hygiene:control", "hygiene:bidi", "hygiene:invisible", "hygiene:binary"
BASE64 = "base64"

_C0 = bytes([*(code for code in range(0x20) if code not in b"\t\n"), 0x7F])
_controls = holding(rb"[\x00-\x08\x0b-\x1f\x7f]", lambda text: len(text.translate(None, _C0)) < len(text))
_FEW = 16  # distinct characters that are replaced one after the other, each in C
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS, _SELECTORS = "\u200c\u200d", "\ufe0e\ufe0f"
# Above ASCII, always written out: C1, line and paragraph separators, format characters (Cf) that are not signs before a
# word, and what is a letter, a mark or nothing yet by category and is not seen (Default_Ignorable_Code_Point).
_HIDDEN = frozenset(map(chr, (
    *range(0x80, 0xA0), 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x200B, 0x200E,
    0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE0E), 0xFEFF, 0xFFA0,
    *range(0xFFF0, 0xFFFC), *range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
)))  # fmt: skip


def _ranges(chars: frozenset[str]) -> str:
    """The inside of a character class."""
    found: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if found and code == found[-1][1] + 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in found)


def written(char: str) -> str:
    """A character that must not act, as it is shown."""
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"


_WRITTEN = {ord(char): written(char) for char in _HIDDEN}
_CLASS = _ranges(_HIDDEN)
_hidden_in = re.compile(f"[{_CLASS}]")
_A = f"[^\\x00-\\x7f{_JOINERS}{_SELECTORS}{_CLASS}]"  # visible, above ASCII
_JOINER = f"(?<!{_A})(?<!{_A}[{_SELECTORS}])[{{0}}]|[{{0}}](?!{_A})"
_stray = [(char, re.compile(_JOINER.format(char))) for char in _JOINERS]
_stray += [(char, re.compile(f"(?<!{_A}){char}")) for char in _SELECTORS]
_OPEN = frozenset("\r" + _JOINERS)  # the next character decides about them
_before = re.compile(f"{_A}[{_SELECTORS}]?\\Z")  # what the next joiner or selector is judged by
_utf8 = codecs.getincrementaldecoder("utf-8")


class Clean(NamedTuple):
    """What may be shown of a stream; `encoding` is "" for text, or "base64"."""

    stream: Name
    data: bytes
    encoding: str = ""


def plain(data: bytes) -> bool:
    """Whether it is ASCII that nothing has to be done about, as most output is."""
    return data.isascii() and not _controls(data)


def shown(text: str, counts: Counter[str]) -> str:
    """A whole text as it may be shown. Counts what was written out."""
    if text.isascii() and text.isprintable():
        return text
    return _clean(text.encode("utf-8", "backslashreplace").decode(), counts)  # a lone surrogate is no character


def _clean(text: str, counts: Counter[str]) -> str:
    data = _uncontrolled(text.encode(), counts)
    return data.decode() if data.isascii() else _unhidden(data.decode(), counts)


def _uncontrolled(data: bytes, counts: Counter[str]) -> bytes:
    """Controls of one byte written out."""
    present = {code for code in _C0 if code in data}
    if 0 in present:
        counts[CONTROL] += data.count(0)
        data = data.replace(b"\0", b"\\x00")
    returns = 13 in present and b"\r\n" in data
    if returns:
        data = data.replace(b"\r\n", b"\0")  # out of the way: no other is left
    for code in present - {0}:
        if count := data.count(code):  # returns may all be before a newline
            counts[CONTROL] += count
        data = data.replace(bytes((code,)), b"\\x%02x" % code)
    return data.replace(b"\0", b"\r\n") if returns else data


def _unhidden(text: str, counts: Counter[str]) -> str:
    """Characters above ASCII written out, that are not seen or turn the text around."""
    distinct = _HIDDEN.intersection(text) if _hidden_in.search(text) else ()
    few = len(distinct) <= _FEW
    for char, count in ({char: text.count(char) for char in distinct} if few else Counter(text)).items():
        if char in distinct:
            counts[CONTROL if char < "\xa0" else BIDI if char in _BIDI else INVISIBLE] += count
    if few:
        for char in distinct:
            text = text.replace(char, written(char))
    else:
        text = text.translate(_WRITTEN)
    for char, stray in _stray:
        if char in text:
            text, count = stray.subn(written(char).replace("\\", "\\\\"), text)
            if count:
                counts[INVISIBLE] += count
    return text


class HygieneStage:
    """Hygiene of one call's output. Not quite a `Stage`: its pieces say how they are encoded."""

    def __init__(self, *, data: bool = False) -> None:
        """With `data`, stdout is no text from its beginning."""
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self._streams: dict[Name, _Stream] = {
            "stdout": _Stream("stdout", self.counts, binary=data),
            "stderr": _Stream("stderr", self.counts),
        }

    def take(self, stream: Name, data: bytes) -> list[Clean]:
        """More of one stream."""
        return self._streams[stream].take(data)

    def pause(self, quiet_ms: int) -> list[Clean]:
        """Nothing came for so long: a return, a joiner is what it is. Part of a character still waits for the rest."""
        return [clean for each in self._streams.values() for clean in each.settle()] if quiet_ms >= LONG_MS else []

    def close(self) -> list[Clean]:
        """The call is over."""
        return [clean for each in self._streams.values() for clean in each.close()]

    @property
    def waits_ms(self) -> int:
        """How long a quiet lets something go; 0 when nothing waits for one."""
        return LONG_MS if any(each.undecided for each in self._streams.values()) else 0


class _Stream:
    """One stream; holds at most a part of a character, one character and its context, or two bytes."""

    __slots__ = ("_binary", "_context", "_counts", "_decoder", "_name", "_rest", "undecided")

    def __init__(self, name: Name, counts: Counter[str], *, binary: bool = False) -> None:
        self._name = name
        self._counts = counts
        self._decoder = _utf8()
        self._context = ""  # the last visible character above ASCII, and its selector: what a joiner is judged by
        self.undecided = ""  # the last character, where the next one decides about it
        self._binary = binary
        self._rest = b""  # of binary: what makes no group of three yet

    def take(self, data: bytes) -> list[Clean]:
        """More of it."""
        if self._binary:
            return self._encoded(data)
        if not data:
            return []
        if not self.undecided and plain(data) and not self._decoder.getstate()[0]:
            self._context = ""
            return [Clean(self._name, data)]
        nul = data.find(b"\0")
        head, tail = (data, b"") if nul < 0 else (data[:nul], data[nul:])
        begun = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(head, final=nul >= 0)
        except UnicodeDecodeError as error:
            whole = begun + head
            text, tail = whole[: error.start].decode(), whole[error.start :] + tail
        found = self._text(text, last=bool(tail))
        return found + self._turn(tail) if tail else found

    def settle(self) -> list[Clean]:
        """What was undecided is not waited for any more."""
        return self._text("", last=True)

    def close(self) -> list[Clean]:
        """The end."""
        if self._binary:
            rest, self._rest = self._rest, b""
            return [Clean(self._name, base64.b64encode(rest), BASE64)] if rest else []
        found = self.settle()
        part = self._decoder.getstate()[0]
        self._decoder.reset()
        if part:
            found += self._turn(part) + self.close()
        return found

    def _text(self, text: str, *, last: bool) -> list[Clean]:
        text, self.undecided = self.undecided + text, ""
        if not last and text[-1:] in _OPEN:
            text, self.undecided = text[:-1], text[-1:]
        if not text:
            return []
        context = self._context
        text = context + text
        before = _before.search(text[-2:])
        self._context = before[0] if before else ""
        # The context comes out as it went in: a visible character, and perhaps its selector.
        return [Clean(self._name, _clean(text, self._counts)[len(context) :].encode())]

    def _turn(self, data: bytes) -> list[Clean]:
        """Binary from here on."""
        self._binary = True
        self._counts[BINARY] += 1
        self._decoder.reset()
        return self._encoded(data)

    def _encoded(self, data: bytes) -> list[Clean]:
        data = self._rest + data
        whole = len(data) - len(data) % 3
        self._rest = data[whole:]
        return [Clean(self._name, base64.b64encode(data[:whole]), BASE64)] if whole else []
