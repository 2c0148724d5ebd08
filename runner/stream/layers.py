"""What a text is when what wraps it is taken off: base64, hex, percent, escapes, entities, gzip, UTF-16. Pure, bounded.

For looking, never for passing on: whoever copies a record may send it in any of these, and in one inside another. A
wrong guess costs nothing, because the text itself is always looked at too. What these cannot open is in nobody's reach
here: encryption, other compression, arithmetic on letters (rot13, reversal), pictures.
"""

from __future__ import annotations

import binascii
import codecs
import html
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

DEPTH = 4  # wrappers inside one another: base64 of gzip of JSON of percent
_ROOM = 256 << 10  # bytes that may be unwrapped, beside four times the text
_LEAST = 20  # letters of base64 or hex: fewer hold less than any record
_LOOK = 16  # of them tell whether text is inside
_ZLIB = (b"\x1f\x8b\x08", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")

# A run of the alphabet of base64 (hex is part of it), over line ends and what quotes or joins lines.
_RUN = re.compile(rb"[A-Za-z0-9+/_-]{16,}(?:[\s>\"',]{1,8}[A-Za-z0-9+/_-]{2,})*")
_JOINS = re.compile(rb"[\s>\"',]+")
_HEX = re.compile(rb"[0-9A-Fa-f]{%d,}" % _LEAST)
_SPACED_HEX = re.compile(rb"[^0-9A-Za-z](?:0x)?[0-9A-Fa-f]{2}(?:[\s:,-]{1,3}(?:0x)?[0-9A-Fa-f]{2}){11,}")
# What a text with such bytes has, once every digit is an h and every separator a space: quicker to look for.
_KINDS = bytes(
    ord("h" if chr(code) in "0123456789abcdefABCDEF" else " " if chr(code) in " \t\r\n\f\v:,-" else "x")
    for code in range(256)
)
_SPACED = (b" hh hh hh hh hh hh", b" hh  hh  hh  hh  hh  hh", b"hxhh hxhh hxhh hxhh", b"hxhh  hxhh  hxhh  hxhh")
_CONTINUED = bytes(range(0x80, 0xC0))
_ROUNDS = 8  # escapes of escapes
_AROUND = 2  # lines beside a line that changed
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_ESCAPE = re.compile(rb"\\(?:u\{?([0-9A-Fa-f]{1,6})\}?|x([0-9A-Fa-f]{2})|([0-7]{3})|([nrtbf\"'/\\]))")
_ENTITY = re.compile(rb"&(?:[A-Za-z]{2,8}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_QUOTED = re.compile(rb"=(?:\r?\n|[0-9A-F]{2})")
_SOFT = re.compile(rb"=(?:\r?\n|3D|C3)")  # what hardly anything but quoted-printable has
_TAG = re.compile(rb"<[^<>]{1,400}>")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r") + b"\x7f"


class Layers(NamedTuple):
    """`texts` begins with the text itself. `whole` is False when a bound kept something from being unwrapped."""

    texts: list[bytes]
    whole: bool


def layers(data: bytes) -> Layers:
    """A text and everything that it wraps."""
    texts, seen, whole = [data], {data}, True
    room = 4 * len(data) + _ROOM
    tried: set[bytes] = set()
    todo = [(data, 0)]
    while todo:
        text, depth = todo.pop()
        for inner, entire in _unwrapped(text, room, tried):
            whole = whole and entire
            if inner in seen:
                continue
            room -= len(inner)
            if room < 0 or depth == DEPTH:
                return Layers(texts, False)
            seen.add(inner)
            texts.append(inner)
            todo.append((inner, depth + 1))
    return Layers(texts, whole)


def _unwrapped(text: bytes, room: int, tried: set[bytes]) -> Iterator[tuple[bytes, bool]]:
    """What is directly inside, and whether that is all of it. `tried` are runs that were looked into before."""
    if text.startswith(_ZLIB):
        yield from _inflated(text, room)
        return
    if b"\0" in text[:512] and (wide := _narrow(text)):
        yield wide, True
    plain = _unescaped(text)
    if plain != text:
        yield _changed(text, plain), True
    if _SOFT.search(text):
        yield _changed(text, _QUOTED.sub(lambda found: binascii.a2b_qp(found[0]), text)), True
    for run in _RUN.findall(text):
        if len(run) >= _LEAST and run not in tried:
            tried.add(run)
            for inner in _decoded(run):
                yield inner, True
    kinds = b" " + text.translate(_KINDS)
    for run in _SPACED_HEX.findall(b" " + text) if any(each in kinds for each in _SPACED) else ():
        digits = re.sub(rb"0x|[^0-9A-Fa-f]", b"", run)
        yield bytes.fromhex(digits[: len(digits) & ~1].decode()), True


def _changed(text: bytes, plain: bytes) -> bytes:
    """The lines of `plain` that `text` does not have, with their neighbours: all others are looked at anyway."""
    had, lines = set(text.split(b"\n")), plain.split(b"\n")
    new = {at + near for at, line in enumerate(lines) if line not in had for near in range(-_AROUND, _AROUND + 1)}
    return b"\n".join([line for at, line in enumerate(lines) if at in new])


def _unescaped(text: bytes) -> bytes:
    """Without escapes, entities and tags, also where they are escaped in turn."""
    for _ in range(_ROUNDS):
        before = text
        if b"\\" in text:
            text = _ESCAPE.sub(_escape, text)
            if b"\xed" in text:  # halves of a surrogate pair, written as two escapes
                halves = text.decode("utf-8", "surrogatepass" if _valid(text) else "replace")
                text = halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
        if b"%" in text and _PERCENT.search(text):
            text = unquote_to_bytes(text)
        if b"&" in text and _ENTITY.search(text):
            text = _ENTITY.sub(lambda found: html.unescape(found[0].decode()).encode("utf-8", "replace"), text)
        if text == before:
            break
    return _TAG.sub(b" ", text) if b"<" in text else text


def _valid(text: bytes) -> bool:
    try:
        text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _escape(found: re.Match[bytes]) -> bytes:
    wide, byte, octal, sign = found.groups()
    if sign:
        return b"\n" if sign == b"n" else b" " if sign in b"rtbf" else sign
    if byte:
        return bytes.fromhex(byte.decode())
    if octal:
        return bytes((int(octal, 8) & 255,))
    code = int(wide[:4] if len(wide) > 4 and found[0][2:3] != b"{" else wide, 16)
    rest = wide[4:] if len(wide) > 4 and found[0][2:3] != b"{" else b""
    return (chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else b"") + rest


def _inflated(text: bytes, room: int) -> Iterator[tuple[bytes, bool]]:
    """gzip or zlib, as far as there is room for it."""
    reader = zlib.decompressobj(47)
    try:
        inner = reader.decompress(text, max(1, room))
    except zlib.error:
        return
    if inner:
        yield inner, reader.eof or not reader.unconsumed_tail


def _narrow(text: bytes) -> bytes:
    """UTF-16 as UTF-8; b"" for anything else."""
    head = text[:512]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 5 < len(head):
        return b""
    return text.decode("utf-16-be" if even > odd else "utf-16-le", "ignore").encode("utf-8", "ignore")


def _decoded(run: bytes) -> Iterator[bytes]:
    """What a run of base64 or hex may hold, wherever in it that begins."""
    letters = _JOINS.sub(b"", run)
    for found in _HEX.findall(letters):
        for shift in (0, 1):
            digits = found[shift:]
            inner = bytes.fromhex(digits[: len(digits) & ~1].decode())
            if _is_text(inner[:_LOOK]) or inner.startswith(_ZLIB):
                yield inner
    if letters.islower() or letters.isupper():
        return
    letters = letters.translate(_URL_SAFE)
    if _base64(letters[:8]).startswith(_ZLIB):
        yield _base64(letters)
    middle = len(letters) // 8 * 4
    for shift in range(4):
        if any(_is_text(_base64(letters[at : at + _LOOK])) for at in (shift, middle + shift)):
            yield _base64(letters[shift:])


def _base64(letters: bytes) -> bytes:
    rest = len(letters) % 4
    letters = letters[:-1] if rest == 1 else letters
    return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))


def _is_text(start: bytes) -> bool:
    """Whether these first bytes can be text: ASCII, UTF-8 or UTF-16."""
    if len(start) < 8:
        return False
    if start.count(0) * 3 >= len(start):
        return True
    if start.translate(None, _CONTROLS) != start:
        return False
    try:
        return start.isascii() or bool(codecs.getincrementaldecoder("utf-8")().decode(start.lstrip(_CONTINUED)))
    except UnicodeDecodeError:
        return False
