"""What wraps a text is taken off, in any order, within bounds; and nothing hostile costs more than its size."""

from __future__ import annotations

import base64
import gzip
import html
import json
import quopri
import zlib
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.stream.layers import DEPTH, layers
from runner.stream.letters import numbers, plain, words

WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64, lines": base64.encodebytes,
    "base64, url-safe": lambda text: base64.urlsafe_b64encode(text).rstrip(b"="),
    "base64, glued": lambda text: b"prefix=" + base64.b64encode(b"x: " + text) + b"&next=1",
    "hex": lambda text: text.hex().encode(),
    "hex, spaced": lambda text: text.hex(" ").encode(),
    "hex, as C writes it": lambda text: b"{" + b", ".join(b"0x%02x" % byte for byte in text) + b"}",
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "percent": lambda text: quote(text, safe="").encode(),
    "JSON": lambda text: json.dumps(text.decode()).encode(),
    "escapes": lambda text: b"".join(b"\\x%02x" % byte for byte in text),
    "octal": lambda text: b"".join(b"\\%03o" % byte for byte in text),
    "braced": lambda text: "".join(f"\\u{{{ord(char):x}}}" for char in text.decode()).encode(),
    "entities": lambda text: "".join(f"&#x{ord(char):x};" for char in text.decode()).encode(),
    "named entities": lambda text: html.escape(text.decode() + " <&> ").encode(),
    "quoted-printable": quopri.encodestring,
    "UTF-16": lambda text: text.decode().encode("utf-16-le"),
    "UTF-16, big": lambda text: text.decode().encode("utf-16-be"),
}
TEXT = "Zoë Ångström, customer 4711, wohnt im Mühlweg 12 in Köln 😀".encode()


def letters(text: bytes) -> bytes:
    """What is compared."""
    return b"".join(words(plain(text)))


LETTERS = letters(TEXT)
# What may stand in any other; quoted-printable breaks lines within escapes, and bytes are not text to escape.
ANY = sorted(set(WRAPPERS) - {"UTF-16", "UTF-16, big", "gzip", "zlib", "quoted-printable"})


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_comes_off(name: str) -> None:
    opened = layers(WRAPPERS[name](TEXT))
    assert opened.whole
    assert any(LETTERS in letters(text) for text in opened.texts)


@given(st.lists(st.sampled_from(ANY), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_wrappers_come_off_in_any_order(names: list[str]) -> None:
    text = TEXT
    for name in names:
        text = WRAPPERS[name](text)
    assert any(LETTERS in letters(each) for each in layers(text).texts)


def test_too_deep_is_said() -> None:
    text = TEXT
    for _ in range(DEPTH):
        text = base64.b64encode(text)
    assert layers(text).whole
    assert TEXT in layers(text).texts
    assert not layers(base64.b64encode(text)).whole


def test_a_bomb_is_unpacked_no_further_than_there_is_room() -> None:
    opened = layers(gzip.compress(bytes(200 << 20)))
    assert not opened.whole
    assert sum(map(len, opened.texts)) < 4 << 20


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_it(data: bytes) -> None:
    opened = layers(data)
    assert opened.texts[0] == data
    assert sum(map(len, opened.texts)) <= 5 * len(data) + (256 << 10)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("+49 30 1234567", {b"01234567"}),
        ("(030) 123-4567", {b"01234567"}),
        ("tel. 0301234567, DE12 3456 7890 1234 5678 90", {b"01234567", b"34567890"}),
        ("born 1974-03-23 or 23.03.1974, at 2026-11-21 22:20", set()),
        ("192.168.100.200", set()),
        ("12345", set()),
    ],
)
def test_numbers_are_known_by_their_last_digits(text: str, found: set[bytes]) -> None:
    assert found <= set(numbers(text.encode()))
    if not found:
        assert numbers(text.encode()) == []


@pytest.mark.parametrize(
    "text", ["ADA LOVELACE", "Ada-Lovelace", "Ａｄａ Ｌｏｖｅｌａｃｅ", "A\u200bda Lo\u00advelace", "Áda Lövelace"]
)
def test_letters_are_folded(text: str) -> None:
    assert words(plain(text.encode())) == [b"ada", b"lovelace"]
