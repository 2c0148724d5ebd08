"""What of a text is compared: its letters and digits, whatever their case, width or accents. Pure.

Both sides of a comparison come through here, so that wrapping, quoting, markup and punctuation are no difference.
"""

from __future__ import annotations

import re
import unicodedata

_UPPER, _LOWER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz"
_LOWERED = bytes.maketrans(_UPPER, _LOWER)
_SPACED = bytes(_LOWERED[code] if code > 127 or chr(code).isalnum() else 32 for code in range(256))
_MARKS = re.compile("[\u0300-\u036f\u00ad\u200b-\u200f\u2060-\u2064\ufe0e\ufe0f\ufeff]")
_OTHER = re.compile(r"[^\w\x00-\x7f]+")
_BEYOND = bytes(range(128, 256))
_RUNS = re.compile(rb"[\x80-\xff]+")
_NUMBER = re.compile(rb"[0-9][0-9\s().\-/>]{5,60}[0-9]")
_GROUPS = re.compile(rb"[0-9]+")
# Nobody's numbers: dates with their time, addresses of the network.
_NOBODYS = re.compile(
    rb"(?:19|20)[0-9]{2}[-./][01]?[0-9][-./][0-3]?[0-9](?:\s+[0-9]{2}(?![0-9]))?"
    rb"|[0-9]{1,2}[-./][0-9]{1,2}[-./](?:19|20)[0-9]{2}|[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
)
TAIL = 8  # digits by which a number is known: a phone's country code or leading zero makes no other number of it


def plain(data: bytes) -> bytes:
    """A text whose letters beyond ASCII are folded one by one: without case, width and accents."""
    if data.isascii():
        return data
    if len(data.translate(None, _BEYOND)) * 8 < len(data) * 7:
        return _fold(data)
    return _RUNS.sub(lambda found: _fold(found[0]), data)


def _fold(data: bytes) -> bytes:
    text = unicodedata.normalize("NFKD", data.decode("utf-8", "replace")).casefold()
    return _OTHER.sub(" ", _MARKS.sub("", text)).encode()


def words(text: bytes) -> list[bytes]:
    """Runs of letters and digits of a plain text; joined with nothing between, they are what shingles are made of."""
    return text.translate(_SPACED, b"\0").split()


def numbers(text: bytes) -> list[bytes]:
    """The last digits of every number of at least seven in a plain text, however it is grouped. What stands before a
    number and could belong to it makes no difference to its last digits."""
    found: list[bytes] = []
    for run in _NUMBER.findall(text):
        for part in _NOBODYS.split(run):
            whole = b""
            for group in _GROUPS.findall(part):
                whole += group
                if len(whole) >= TAIL - 1:
                    found.append(whole[-TAIL:])
    return found
