"""Every form in which a secret is looked for: what a tool, a shell or a library makes of it without being asked twice.

Tier 1 is what issue E names: the value itself, base64 in all alignments, hex, percent, JSON, shell and HTML escapes,
UTF-16, reversed. Tier 2 is what else one command makes of it. Carriage returns and newlines are left out of every form:
texts are searched without them, which finds wrapped lines and both kinds of line ends.
"""

from __future__ import annotations

import base64
import codecs
import html
import json
import re
import shlex
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

HEAD = 6  # bytes of a form that make its beginning recognisable; fewer stand everywhere
SHORTEST = 8  # bytes of a form without line ends: shorter ones stand in innocent output too
LINE_ENDS = b"\r\n"
SEPARATORS = (b" ", b"-", b",", b":")  # that people put between characters
_SHELL_SPECIAL = re.compile(rb"([^A-Za-z0-9_@%+=:,./\-\x80-\xff])")
_ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_NAMED = {b"'": (b"&#x27;", b"&#39;", b"&apos;"), b'"': (b"&quot;", b"&#34;", b"&#x22;")}


def core(value: bytes) -> bytes:
    """What of a value is looked for: without white space around it (a file's last newline). Raises `ValueError` for a
    value that cannot be told from ordinary text."""
    kept = value.strip()
    bare = kept.translate(None, LINE_ENDS)
    if len(bare) < SHORTEST:
        raise ValueError(f"shorter than {SHORTEST} bytes without white space")
    if len(set(bare)) == 1:
        raise ValueError("one character, repeated")
    return kept


def forms(value: bytes) -> dict[bytes, str]:
    """Needle → name of its form, the raw value first. Raises `ValueError` as `core` does."""
    found: dict[bytes, str] = {}
    for name, needle in _all(core(value)):
        if b"\n" in needle or b"\r" in needle:
            needle = needle.translate(None, LINE_ENDS)
        if len(needle) >= SHORTEST and needle.count(needle[:1]) < len(needle):
            found.setdefault(needle, name)
    return found


def spaced(value: bytes) -> Iterator[bytes]:
    """How a value begins, `HEAD` bytes, that is written with something between its characters."""
    characters = [bytes((byte,)) for byte in core(value).translate(None, LINE_ENDS)[:HEAD]]
    for separator in SEPARATORS:
        yield separator.join(characters)[:HEAD]


def _all(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "raw", value
    yield from _base64("base64", value)
    yield from _hex(value)
    yield from _escaped(value)
    yield from _utf16(value)
    yield "reversed", value[::-1]
    yield from _second(value)


def _base64(name: str, value: bytes) -> Iterator[tuple[str, bytes]]:
    """The part that does not depend on what stands before and after, for each of three places in a group."""
    for needle in _aligned(value, base64.b64encode, 3, 6):
        yield name, needle
        yield f"{name}-url", needle.translate(_URL_SAFE)


def _aligned(value: bytes, encode: Callable[[bytes], bytes], group: int, bits: int) -> Iterator[bytes]:
    """A positional encoding of `bits` a character: whole characters of the value, at each place in a group of bytes."""
    for before in range(group):
        encoded = encode(bytes(before) + value)
        yield encoded[-(-before * 8 // bits) : (before + len(value)) * 8 // bits]


def _hex(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "hex", value.hex().encode()
    yield "hex", value.hex().upper().encode()


def _escaped(value: bytes) -> Iterator[tuple[str, bytes]]:
    low, high = value.hex(), value.hex().upper()
    for digits in (low, high):
        pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
        yield "percent", "".join(f"%{pair}" for pair in pairs).encode()
        yield "json", "".join(rf"\u00{pair}" for pair in pairs).encode()
        yield "html", "".join(f"&#x{pair};" for pair in pairs).encode()
        yield "escape", "".join(rf"\x{pair}" for pair in pairs).encode()
    for needle in (quote(value, safe=""), quote(value), quote_plus(value), quote(value, safe="!'()*~/")):
        yield "percent", needle.encode()
        yield "percent", re.sub("%..", lambda found: found[0].lower(), needle).encode()
    yield "html", "".join(f"&#{byte};" for byte in value).encode()
    yield from _quoted(value)
    yield "shell", value.replace(b"'", b"'\\''")
    yield "shell", value.replace(b"'", b"'\"'\"'")
    yield "shell", _SHELL_SPECIAL.sub(rb"\\\1", value)
    yield "shell", re.sub(rb'([$`"\\!])', rb"\\\1", value)


def _quoted(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Escapes of characters, not bytes; where the value is no text, as Latin-1 or not at all."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        yield "escape", repr(value)[2:-1].encode()
        return
    for ascii_only in (True, False):
        needle = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield "json", needle.encode()
        yield "json", needle.replace("/", r"\/").encode()
        for character in "<>&'+=":
            needle = needle.replace(character, f"\\u{ord(character):04x}")  # as HTML-safe encoders write it
        yield "json", needle.encode()
        yield "json", re.sub(r"(?<=\\u)....", lambda found: found[0].upper(), needle).encode()
    escaped = repr(text)[1:-1]
    yield "escape", escaped.encode()
    yield "escape", repr(value)[2:-1].encode()
    yield "shell", text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n").replace("\t", r"\t").encode()
    yield "shell", shlex.quote(text)[1:-1].encode() if "'" in text else value
    markup = html.escape(text, quote=False).encode()
    yield "html", markup
    for single in _NAMED[b"'"]:
        for double in _NAMED[b'"']:
            yield "html", markup.replace(b"'", single).replace(b'"', double)
    if not text.isascii():
        yield "html", text.encode("ascii", "xmlcharrefreplace")
        yield "html", "".join(f"&#{ord(character)};" for character in text).encode()
        yield "html", "".join(f"&#x{ord(character):x};" for character in text).encode()
        yield "json", "".join(rf"\u{unit:04x}" for unit in _units(text)).encode()


def _units(text: str) -> list[int]:
    """Code units of UTF-16, as JSON writes them."""
    data = text.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


def _utf16(value: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    for order in ("utf-16-le", "utf-16-be"):
        wide = text.encode(order)
        yield order, wide
        if order == "utf-16-le":  # as PowerShell encodes its commands
            yield from (("base64 of utf-16", needle) for needle in _aligned(wide, base64.b64encode, 3, 6))


def _second(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Tier 2."""
    digits = value.hex()
    yield "reversed base64", base64.b64encode(value).rstrip(b"=")[::-1]
    for once in _aligned(value, base64.b64encode, 3, 6):
        yield "hex of base64", once.hex().encode()
        for needle in _aligned(once, base64.b64encode, 3, 6):
            yield "base64 twice", needle
    for needle in _aligned(digits.encode(), base64.b64encode, 3, 6):
        yield "base64 of hex", needle
    for needle in _aligned(value, base64.b32encode, 5, 5):
        yield "base32", needle
    for encode in (base64.b85encode, base64.a85encode):  # blocks of four bytes that mix: only whole ones can be known
        yield "base85", encode(value[: len(value) // 4 * 4])
    yield "rot13", value.translate(_ROT13)
    yield from (("case", needle) for needle in (value.upper(), value.lower()))
    yield "percent twice", quote(quote(value, safe=""), safe="").encode()
    yield from _listed(value)


def _listed(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Byte by byte, as dumps and literals show it; a minimal quoted-printable form beside them."""
    low, high = value.hex(), value.hex().upper()
    for digits in (low, high):
        pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
        yield "percent twice", "".join(f"%25{pair}" for pair in pairs).encode()
        yield from (("hex bytes", between.join(pairs).encode()) for between in (" ", ":"))
        if digits is low:
            words = [f"0x{pair}" for pair in pairs]
            yield from (("hex bytes", between.join(words).encode()) for between in (", ", ","))
        else:
            yield "quoted-printable", "".join(f"={pair}" for pair in pairs).encode()
    yield from (("byte list", between.join(map(str, value)).encode()) for between in (", ", ",", " "))
    yield "octal", "".join(f"\\{byte:03o}" for byte in value).encode()
    yield "quoted-printable", codecs.encode(value, "quopri").replace(b"=\n", b"")
