"""Texts without what nobody sees, and the way back: the quick ways say what the plain ones do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runner.stream import engines, projections, through
from runner.stream.unseen import Back, Unseen, between, parted

SETS = {"through": through._WIDE, "projections": projections._WIDE}
HIDDEN = ["\u00ad", "\u200b", "\u202e", "\u2063", "\ufeff", "\ufe0f", "\U000e0041", "\u180e"]
# Whole characters, parts of them, and what could become one when another is taken out.
PARTS = [*(char.encode() for char in HIDDEN), b"\xe2", b"\x80", b"\xe2\x80", b"\x8b", b"\xc2", b"\xad", b"\xf3\xa0"]
SEEN = [b"a", b"word ", "é".encode(), "漢字".encode()]
TEXTS = some.lists(some.sampled_from([*PARTS, *SEEN]), max_size=60).map(b"".join)


@pytest.mark.parametrize("name", SETS)
def test_the_characters_are_what_the_pattern_matches(name: str) -> None:
    every = [chr(code).encode() for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    matched = [char for char in every if SETS[name].pattern.fullmatch(char)]
    assert sorted(matched) == sorted(each for each in every if len(SETS[name].there(each * 400)) == 1)
    assert len(matched) > 25


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, times=some.sampled_from([1, 40]))
def test_every_way_leaves_the_same(name: str, text: bytes, times: int) -> None:
    unseen, text = SETS[name], text * times
    left = unseen.without(text, unseen.there(text))
    assert left == unseen.pattern.sub(b"", text)
    cuts = [found.span() for found in unseen.pattern.finditer(text)]
    assert parted(unseen.pattern)(text) == between(cuts)
    places = [at for low, high in zip([0, *(e for _, e in cuts)], [*(s for s, _ in cuts), len(text)], strict=True)
              for at in range(low, high)]  # fmt: skip
    assert bytes(text[at] for at in places) == left
    for at in {0, len(left) // 2, len(left) - 70, len(left) - 3, len(left) - 1}:
        if 0 <= at < len(left):
            for skew in (-1, 4):  # each its own: an answer may make the next one's
                back = Back(text, left, parted(unseen.pattern), skew)
                assert back.origin(at) == places[at]
                assert back.shown(places[at]) == at


def test_a_byte_that_begins_nothing_stays() -> None:
    """Python 3.11.2 swallows it after a character where a pattern repeats a group possessively (gh-106052)."""
    text = b"word\xe2\x80\xc2\xad\xe2\xc2b"
    for unseen in SETS.values():
        assert unseen.without(text, unseen.there(text)) == unseen.pattern.sub(b"", text) == b"word\xe2\x80\xe2\xc2b"


def test_without_hyperscan_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "hyperscan", None)
    plain = Unseen((0xAD, 0x200B), b"(?:\xc2\xad|\xe2\x80\x8b)")
    for text in (b"ab", "a\u00adb".encode(), "\u200b".encode() * 700, b"\xc2" * 700):
        there = plain.there(text)
        assert sorted(there) == sorted(each for each in (b"\xc2\xad", b"\xe2\x80\x8b") if each in text)
        assert plain.without(text, there) == re.sub(b"\xc2\xad|\xe2\x80\x8b", b"", text)
