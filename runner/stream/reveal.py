"""What a text says beneath its disguise: escapes undone, markup removed, encodings opened. Pure, linear, bounded.

Everything here makes texts of texts (`Text`), so that what is found in one has a place in the original.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from itertools import islice

from runner.stream.normal import Cut, Folded, Text
from runner.stream.which import Which

_DEPTH = 2  # an encoding within an encoding is opened, no more
_RUNS = 32  # encoded runs opened in one text
_ESCAPE = re.compile(  # every branch begins with a sign of its own, which the library searches for at once
    rb"%[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2}){0,255}|&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
    rb"|\\u[0-9A-Fa-f]{4}(?:\\u[0-9A-Fa-f]{4}){0,255}|\\u\{[0-9A-Fa-f]{1,6}\}|\\U[0-9A-Fa-f]{8}"
    rb"|\\x[0-9A-Fa-f]{2}(?:\\x[0-9A-Fa-f]{2}){0,255}"
)
# Tags that stand within words: what is around them is one word. Any other tag is a space.
_INLINE = (
    rb"abbr|acronym|a|bdi|bdo|big|b|cite|code|data|del|dfn|em|font|ins|i|kbd|mark|nobr|q|samp|small|span|strike|strong"
    rb"|sub|sup|s|tt|u|var|wbr"
)
_WITHIN = re.compile(rb"</?(?:%b)(?:[\s/][^<>]{0,4096})?>|<!--[^<>-]{0,64}-->" % _INLINE)
_BETWEEN = re.compile(rb"<[a-z/][a-z0-9:-]{0,30}(?:[\s/][^<>]{0,4096})?>|<!--|--!?>")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{20,}+(?>(?:\r?\n[ \t]{0,8}[A-Za-z0-9+/_-]{8,}+)*)")
_HEX = re.compile(rb"(?>(?:(?:0x)?[0-9A-Fa-f]{2}[ :,;-]{0,2}){14,})")
_NOT_HEX = re.compile(rb"0x|[^0-9A-Fa-f]")
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_ROT13 = bytes.maketrans(
    *(letters.encode() for letters in ("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm"))
)
_LEET = bytes.maketrans(b"0134578@$!|", b"oieastbasii")
_LEET_WORD = rb"[a-z][013457@$!|]{1,3}[a-z]"
_LEET_WORDS = re.compile(rb"(?:%b[a-z013457@$!|]{0,20}[^a-z0-9].{0,40}?){2}" % _LEET_WORD, re.DOTALL)  # one is a name
_SPACED = re.compile(rb"(?<![a-z0-9])[a-z0-9](?>(?:[ -/:-@[-`{-~]{1,8}[a-z0-9](?![a-z0-9])){7,})")
_SETS_APART = b" ._*-+~,"  # any other sign between two letters was there before
_LETTERS = re.compile(rb"[a-z0-9]")


def readings(data: bytes) -> Iterator[Text]:
    """Every way in which a text may be read, folded, the plain one first. At most about ten times its size in all."""
    texts = [Text(data)]
    for depth in range(_DEPTH + 1):
        opened: list[Text] = []
        for text in texts:
            signs = _signs().of(text.data)
            plain = _unescaped(text, signs) if signs & _ESCAPES else text
            folded = Folded(plain)
            for each in (folded, *_without_markup(folded, signs)):
                yield each
                yield from _disguised(each)
            if depth < _DEPTH:
                if plain is not text:
                    signs = _signs().of(plain.data)
                opened += _opened(plain, signs)
        texts = opened[:_RUNS]


@cache
def _signs() -> Which:
    """What must occur for each of the slower steps to be worth taking: looser than the steps, and so compiled fast."""
    escape = rb"%[0-9A-Fa-f]{2}|&[A-Za-z0-9#]{2,32};|\\[uUx]"
    return Which((escape, rb"\\[nrtfvb]", rb"<[A-Za-z/!]", rb"[A-Za-z0-9+/_-]{20}", rb"[0-9A-Fa-fx :,;-]{28}"))


_ESCAPES, _BACKSLASH, _MARKUP, _LONG, _HEXES = {0, 1}, 1, 2, 3, 4


# --- escapes -------------------------------------------------------------------------------------------------


def _unescaped(text: Text, signs: set[int]) -> Text:
    """Percent, HTML entities, \\u, \\x and \\n undone; twice, so that an escape of an escape is too."""
    if _BACKSLASH in signs:  # two bytes for two: nothing moves
        data = text.data
        for letter in b"nrtfvb":
            data = data.replace(b"\\" + bytes((letter,)), b"  ")
        text = text.made(data, "")
    for _ in range(2):
        data = _ESCAPE.sub(_meaning, text.data)
        if data == text.data:
            return text
        text = text.made(data, "escapes", partial(_cuts, text.data, _ESCAPE, _meaning))
    return text


def _cuts(data: bytes, pattern: re.Pattern[bytes], instead: Callable[[re.Match[bytes]], bytes]) -> Iterator[Cut]:
    """Where `pattern.sub` put what."""
    moved = 0
    for match in pattern.finditer(data):
        start, end = match.span()
        size = len(instead(match))
        yield Cut(start + moved, start + moved + size, start, end)
        moved += size - (end - start)


def _meaning(match: re.Match[bytes]) -> bytes:
    return _meant(match.group())


@lru_cache(256)  # a page has the same few again and again
def _meant(escape: bytes) -> bytes:
    """What an escape stands for, in UTF-8. What stands for no character is a space."""
    first = escape[:2]
    if escape[:1] == b"%":
        return _utf8(binascii.unhexlify(escape.replace(b"%", b"")))
    if escape[:1] == b"&":
        return html.unescape(escape.decode()).encode("utf-8", "replace")
    if first == b"\\x":
        return _utf8(binascii.unhexlify(escape.replace(b"\\x", b"")))
    if escape[:3] == b"\\u{":
        return _character(int(escape[3:-1], 16))
    if first == b"\\u":
        units = binascii.unhexlify(escape.replace(b"\\u", b""))
        return units.decode("utf-16-be", "replace").encode("utf-8", "replace")
    return _character(int(escape[2:], 16))


def _character(point: int) -> bytes:
    return chr(point).encode("utf-8", "replace") if point < 0x110000 else b" "


def _utf8(data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode()


# --- markup --------------------------------------------------------------------------------------------------


def _without_markup(text: Text, signs: set[int]) -> tuple[Text, ...]:
    """A folded text without tags, what comments hold included; none where there are no tags."""
    if _MARKUP not in signs and (not signs & _ESCAPES or b"<" not in text.data):
        return ()
    within = _WITHIN.sub(b"", text.data)  # with constants in C: a page has hundreds of tags
    inner = text.made(within, "markup", partial(_cuts, text.data, _WITHIN, _nothing))
    between = _BETWEEN.sub(b" ", within)
    bare = inner.made(between, "", partial(_cuts, within, _BETWEEN, _space))
    return () if between == text.data else (bare,)


def _nothing(_: re.Match[bytes]) -> bytes:
    return b""


def _space(_: re.Match[bytes]) -> bytes:
    return b" "


# --- encodings -----------------------------------------------------------------------------------------------


def _opened(text: Text, signs: set[int]) -> list[Text]:
    """The encoded runs of a text, decoded, where that makes text of them."""
    found: list[Text] = []
    for sign, pattern, decode, how in ((_LONG, _BASE64, _base64, "base64"), (_HEXES, _HEX, _hex, "hex")):
        if sign not in signs:
            continue
        for match in pattern.finditer(text.data):
            for start, meant in decode(match.group(), match.start() == 0):
                if len(found) < _RUNS and (said := _said(meant)):
                    cut = Cut(0, len(said), match.start() + start, match.end())
                    found.append(text.made(said, how, partial(iter, (cut,))))
    return found


def _base64(run: bytes, cut_off: bool) -> Iterator[tuple[int, bytes]]:
    """A run decoded; a run that begins where the window does may have begun before it, at any of four alignments."""
    signs = re.sub(rb"\s", b"", run).replace(b"-", b"+").replace(b"_", b"/")
    for start in range(4 if cut_off else 1):
        whole = signs[start:]
        yield start, base64.b64decode(whole[: len(whole) // 4 * 4] + _padded(whole))


def _padded(signs: bytes) -> bytes:
    rest = signs[len(signs) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def _hex(run: bytes, cut_off: bool) -> Iterator[tuple[int, bytes]]:
    digits = _NOT_HEX.sub(b"", run)
    for start in range(2 if cut_off else 1):
        whole = digits[start:]
        yield start, binascii.unhexlify(whole[: len(whole) // 2 * 2])


def _said(data: bytes) -> bytes:
    """Decoded bytes as text; empty when they are none."""
    if data.count(0) * 3 > len(data):
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace").encode("utf-8", "replace")
    if len(data.translate(None, _PRINTABLE)) * 8 <= len(data):
        return _utf8(data)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data).encode()  # a character cut off at the end is none
    except UnicodeDecodeError:
        return b""


# --- letters in disguise ---------------------------------------------------------------------------------------


def _disguised(text: Text) -> Iterator[Text]:
    """Rot13, backwards, digits for letters, letters set apart: of the same letters, so each keeps its place."""
    yield _Shifted(text, text.data.translate(_ROT13), "rot13")
    yield _Backwards(text, text.data[::-1] if text.data.isascii() else _mirrored(text.data), "backwards")
    signs = _letters().of(text.data)
    if 0 in signs and _LEET_WORDS.search(text.data):
        yield _Shifted(text, text.data.translate(_LEET), "leet")
    if 1 in signs:
        for match in islice(_SPACED.finditer(text.data), _RUNS):
            yield _apart(text, match)


def _mirrored(data: bytes) -> bytes:
    return data.decode("utf-8", "replace")[::-1].encode()


@cache
def _letters() -> Which:
    return Which((_LEET_WORD, rb"(?:^|[^a-z0-9])(?:[a-z0-9][ -/:-@[-`{-~]{1,8}){7}"))


class _Shifted(Text):
    """The same text in other letters."""

    def __init__(self, origin: Text, data: bytes, how: str) -> None:
        super().__init__(data, origin, (*origin.via, how))

    def within(self, start: int, end: int) -> tuple[int, int]:
        return start, end


class _Backwards(_Shifted):
    """The same text from its end."""

    def within(self, start: int, end: int) -> tuple[int, int]:
        return len(self.data) - end, len(self.data) - start


class _Joined(_Shifted):
    """Letters set apart, joined; `places` says where each stood."""

    def __init__(self, origin: Text, data: bytes, places: list[int]) -> None:
        super().__init__(origin, data, "apart")
        self._places = places

    def within(self, start: int, end: int) -> tuple[int, int]:
        return self._places[start], self._places[end - 1] + 1


def _apart(text: Text, match: re.Match[bytes]) -> _Joined:
    """The letters of a run joined. A wider gap than the run's usual one is between words."""
    letters = [at.start() for at in _LETTERS.finditer(text.data, *match.span())]
    data, places = bytearray(), []
    for at, after in zip(letters, [*letters[1:], letters[-1] + 1], strict=True):
        data += text.data[at : at + 1]
        places.append(at)
        for sign in text.data[at + 1 : after].translate(None, _SETS_APART) or (b" " if after - at > 2 else b""):
            data.append(sign)
            places.append(at)
    return _Joined(text, bytes(data), places)
