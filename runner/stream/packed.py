"""Compressed data that stands in a text: gzip as it is, gzip and zlib in base64 and in hex. Bounded, incremental."""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Callable

from runner.stream.forms import HEAD
from runner.stream.projections import nth

MAX_IN = 64 << 10  # bytes of encoded text that are followed; a secret that comes later in it is not found
MAX_OUT = 256 << 10  # bytes of inflated text; more than four for one is how bombs are made
FIRST = 96  # bytes that are tried at first
_BARREN = 1024  # bytes that a header may fill before the first byte of content
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\r\n-]*")
_HEX = re.compile(rb"[0-9A-Fa-f\r\n]*")
_ANY = re.compile(rb"(?s:.*)")
_STANDARD = bytes.maketrans(b"-_", b"+/")

# zlib in base64: its first two bytes at its four levels, and two bits of the third.
_ZLIB = [
    (b"eA", (b"E", b"F", b"G", b"H")),
    (b"eF", (b"4", b"5", b"6", b"7")),
    (b"eJ", (b"w", b"x", b"y", b"z")),
    (b"eN", (b"o", b"p", b"q", b"r")),
]

# Beginning → how it is read: its encoding.
MAGIC: dict[bytes, str] = {
    b"H4sI": "base64",
    **{start + last: "base64" for start, lasts in _ZLIB for last in lasts},
    b"1f8b08": "hex",
    b"1F8B08": "hex",
    b"7801": "hex",
    b"785e": "hex",
    b"785E": "hex",
    b"789c": "hex",
    b"789C": "hex",
    b"78da": "hex",
    b"78DA": "hex",
    b"\x1f\x8b\x08": "binary",
}


def worth(text: bytes, encoding: str) -> bool:
    """Whether a text, of which `FIRST` bytes count, is compressed data as far as they can tell: mostly it is not."""
    characters = {"base64": 24, "hex": 36, "binary": 18}[encoding]
    try:
        head = _READ[encoding][4](text[:characters])
    except ValueError:
        head = b""
    if len(head) == 18 and not _deflated(head):
        return False
    first = Packed(0, encoding)
    first.feed(text)
    return first.live or len(first.out) >= HEAD


def _deflated(head: bytes) -> bool:
    """Whether a header and what follows it can be, RFC 1952 section 2.3 and RFC 1951 section 3.2.3: one question to
    zlib costs as much as ten of these."""
    at = 2
    if head[:2] == b"\x1f\x8b":
        if head[3] & ~0x09:  # but a name, and "this is text", nobody writes anything into it
            return False
        if head[3] & 0x08:
            return True
        at = 10
    kind = head[at] >> 1 & 3
    if kind == 0:  # stored: its length and the complement of that
        return head[at + 1] ^ head[at + 3] == 0xFF and head[at + 2] ^ head[at + 4] == 0xFF
    return kind == 1 or (kind == 2 and head[at] >> 3 <= 29 and head[at + 1] & 31 <= 29)


def _base64(text: bytes) -> bytes:
    return binascii.a2b_base64(text.translate(_STANDARD))


_READ: dict[str, tuple[re.Pattern[bytes], bytes, int, int, Callable[[bytes], bytes]]] = {
    "base64": (_BASE64, b"\r\n", 4, 3, _base64),
    "hex": (_HEX, b"\r\n", 2, 1, binascii.unhexlify),
    "binary": (_ANY, b"", 1, 1, bytes),
}


class Packed:
    """One run of compressed data from its beginning at `start`; it is fed the text in order, its beginning included."""

    def __init__(self, start: int, encoding: str) -> None:
        self.start = start
        self.fed = start  # as far as the text was given; while the run lives, as far as it goes
        self.live = True
        self.out = bytearray()
        self.searched = 0  # bytes of `out` that were searched already
        self._pattern, self._skipped, self._group, self._bytes, self._decode = _READ[encoding]
        self._left = b""  # characters of an unfinished group
        self._characters = 0  # given before, without line ends
        self._inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        self._raw = bytearray()

    def feed(self, data: bytes) -> None:
        """More text. Afterwards not `live`: it has ended at `fed`, which may be before the end of what was given."""
        at, size = 0, FIRST
        while at < len(data) and self.live:  # little first: most of what looks compressed is not
            self._feed(data[at : at + size])
            at, size = at + size, size * 16

    def _feed(self, data: bytes) -> None:
        found = self._pattern.match(data, 0, min(len(data), MAX_IN - (self.fed - self.start)))
        end = found.end() if found else 0
        fresh = data[:end].translate(None, self._skipped)
        text = self._left + fresh
        whole = len(text) // self._group * self._group
        used = self._take(self._decode(text[:whole]))
        if used is not None:
            characters = -(-used // self._bytes) * self._group - self._characters  # whole groups: they came as such
            end = nth(data[:end], max(characters, 0), self._skipped)
        self.live = used is None and end == len(data) and self.fed + end - self.start < MAX_IN
        self._left = text[whole:]
        self._characters += len(fresh)
        self.fed += end

    def _take(self, raw: bytes) -> int | None:
        """Inflate more. None while it goes on; else how many bytes of all were of use. Independent of the cutting: one
        decision a kibibyte, and what broken data gives before its error is had byte by byte."""
        while raw:
            piece, raw = raw[: _BARREN - len(self._raw) % _BARREN], raw[_BARREN - len(self._raw) % _BARREN :]
            self._raw += piece
            try:
                self.out += self._inflate.decompress(piece, MAX_OUT - len(self.out))
            except zlib.error:
                return self._broken()
            rest = len(self._inflate.unused_data) + len(self._inflate.unconsumed_tail)
            if self._inflate.eof or rest or len(self.out) >= MAX_OUT:
                return len(self._raw) - rest
            if len(self._raw) == _BARREN and not self.out:
                return len(self._raw)
        return None

    def _broken(self) -> int:
        inflate = zlib.decompressobj(wbits=47)
        self.out.clear()
        for at in range(len(self._raw)):
            try:
                self.out += inflate.decompress(self._raw[at : at + 1])
            except zlib.error:
                return at + 1
        return len(self._raw)
