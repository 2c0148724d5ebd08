"""What a terminal or an eye would be misled by is written out, binary is encoded, and cutting changes nothing."""

from __future__ import annotations

import base64
import itertools
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.stream.hygiene import BASE64, BIDI, BINARY, CONTROL, INVISIBLE, HygieneStage, shown
from runner.stream.stage import LONG_MS, SHORT_MS, Name


def through(
    pieces: list[tuple[Name, bytes]], *, pauses: bool = False
) -> tuple[dict[str, tuple[bytes, bytes]], Counter[str]]:
    """(text, what the binary part decodes to) of each stream."""
    stage = HygieneStage()
    found: dict[str, list[bytes]] = {"stdout": [b"", b""], "stderr": [b"", b""]}
    cleans = []
    for stream, data in pieces:
        cleans += stage.take(stream, data)
        if pauses:
            cleans += stage.pause(LONG_MS)
    cleans += stage.close()
    for clean in cleans:
        assert clean.data
        assert clean.encoding or not found[clean.stream][1], "text after binary"
        found[clean.stream][clean.encoding == BASE64] += clean.data
    return {
        stream: (text, base64.b64decode(binary, validate=True)) for stream, (text, binary) in found.items()
    }, stage.counts


def cleaned(data: bytes) -> bytes:
    return through([("stdout", data)])[0]["stdout"][0]


ODD = some.sampled_from(
    [*"\r\n\t\0\x1b\x7f\x85\u200b\u200c\u200d\ufe0f\u202e\u2066\ufeff\u00ad\U000e0041aé❤👩", "\r\n", "می", "\U0001f3fd"]
)
TEXT = some.lists(ODD | some.text(max_size=3), max_size=12).map("".join)
RAW = some.lists(TEXT.map(str.encode) | some.binary(max_size=4), max_size=6).map(b"".join)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[low:high] for low, high in itertools.pairwise(ends)]


@given(RAW, RAW, some.lists(some.integers(0, 99), max_size=9), some.randoms(use_true_random=False))
def test_cutting_and_interleaving_change_nothing(out: bytes, err: bytes, places: list[int], random: object) -> None:
    whole = through([("stdout", out), ("stderr", err)])
    pieces: list[tuple[Name, bytes]] = [("stdout", each) for each in cut(out, places)]
    at = 0
    for each in cut(err, places[::-1]):
        at = random.randint(at, len(pieces))  # type: ignore[attr-defined]
        pieces.insert(at, ("stderr", each))
        at += 1
    assert through(pieces) == whole
    single: list[tuple[Name, bytes]] = [("stdout", bytes((byte,))) for byte in out]
    assert through(single)[0]["stdout"] == whole[0]["stdout"]


@given(RAW, some.lists(some.integers(0, 99), max_size=9), some.booleans())
def test_no_text_ever_has_what_acts_on_a_terminal(data: bytes, places: list[int], pauses: bool) -> None:
    found, _ = through([("stdout", each) for each in cut(data, places)], pauses=pauses)
    text = found["stdout"][0].decode()
    rest = text.replace("\r\n", "\n")
    for char in rest:
        assert char in "\n\t\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf") or char in "\u0600\u0601"


@given(some.binary(min_size=1, max_size=300), some.lists(some.integers(0, 400), max_size=9))
def test_binary_comes_back_byte_by_byte(noise: bytes, places: list[int]) -> None:
    """K08. From the first NUL on everything is the tool's own bytes."""
    data = b"plain text \xc3\xa9\n\0" + noise
    found, counts = through([("stdout", each) for each in cut(data, places)])
    assert found["stdout"] == (b"plain text \xc3\xa9\n", b"\0" + noise)
    assert counts == {BINARY: 1}


@pytest.mark.parametrize(
    ("data", "text", "binary"),
    [
        (b"abc\xffdef\xc3\xa9", b"abc", b"\xffdef\xc3\xa9"),
        (b"abc\xc3", b"abc", b"\xc3"),  # cut off in a character
        (b"\xed\xa0\x80", b"", b"\xed\xa0\x80"),  # a surrogate is no UTF-8
        (b"\xc0\xaf", b"", b"\xc0\xaf"),  # nor is an overlong slash
        ("hé".encode("utf-16"), b"", "hé".encode("utf-16")),
        (bytes(range(256)), rb"", bytes(range(256))),
        (b"\x01\t\n\x1f ~\x7f" + bytes(range(128, 256)), rb"\x01" + b"\t\n" + rb"\x1f ~\x7f", bytes(range(128, 256))),
    ],
)  # fmt: skip
def test_invalid_text_makes_binary_of_the_rest(data: bytes, text: bytes, binary: bytes) -> None:
    found, counts = through([("stdout", data)])
    assert found["stdout"] == (text, binary)
    assert counts[BINARY] == 1


@pytest.mark.parametrize(
    ("data", "text", "kind"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", CONTROL),  # ANSI
        ("\x1b]8;;https://e.example\x07it\x1b]8;;\x07", r"\x1b]8;;https://e.example\x07it\x1b]8;;\x07", CONTROL),
        ("\x1b]52;c;ZXZpbA==\x07", r"\x1b]52;c;ZXZpbA==\x07", CONTROL),
        ("\x9b31m", r"\x9b31m", CONTROL),  # C1
        ("pass\b\b\b\bXXXX", r"pass\x08\x08\x08\x08XXXX", CONTROL),
        ("safe\rEVIL\n", "safe\\x0dEVIL\n", CONTROL),
        ("a\r\r\n", "a\\x0d\r\n", CONTROL),
        ("\u202egnp.exe", r"\u{202e}gnp.exe", BIDI),
        ("\u2066a\u2069", r"\u{2066}a\u{2069}", BIDI),
        ("sec\u200bret", r"sec\u{200b}ret", INVISIBLE),
        ("\ufeffbom", r"\u{feff}bom", INVISIBLE),
        ("a\u200db", r"a\u{200d}b", INVISIBLE),
        ("é\u200d", r"é\u{200d}", INVISIBLE),
        ("é\u200d\u200dé", r"é\u{200d}\u{200d}é", INVISIBLE),
        ("1\ufe0f", r"1\u{fe0f}", INVISIBLE),
        ("❤\ufe0f\ufe0f", "❤\ufe0f\\u{fe0f}", INVISIBLE),
        ("\U000e0068\U000e0069", r"\u{e0068}\u{e0069}", INVISIBLE),  # text smuggled in tags
        ("x\U000e0100", r"x\u{e0100}", INVISIBLE),  # and in variation selectors
        ("a\u2028b", r"a\u{2028}b", INVISIBLE),
        ("".join(map(chr, range(0x200B, 0x2010))) * 2 + "".join(map(chr, range(0x2060, 0x2070))),
         "".join(f"\\u{{{code:x}}}" for code in [*range(0x200B, 0x2010)] * 2 + [*range(0x2060, 0x2070)]), BIDI),
    ],
)  # fmt: skip
def test_what_acts_or_hides_is_written_out(data: str, text: str, kind: str) -> None:
    """K07."""
    found, counts = through([("stdout", data.encode())])
    assert found["stdout"] == (text.encode(), b"")
    assert counts[kind] > 0
    told: Counter[str] = Counter()
    assert shown(data, told) == text
    assert told == counts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain\ttext\n",
        "windows\r\nlines\r\n",
        "naïve café — “quotes” … €",
        "می‌خواهم",  # Persian, with a zero-width non-joiner
        "क्‍ष",  # Devanagari, with a zero-width joiner
        "👩‍🔬 ❤️‍🔥 👍🏽 ❤️ text",  # joined, with selectors, with a skin tone
        "日本語 עברית العربية",
        r"literal \x1b and \u{202e} and [REDACTED]",
    ],
)
def test_what_people_write_passes_as_it_is(text: str) -> None:
    assert cleaned(text.encode()) == text.encode()
    assert shown(text, Counter()) == text


def test_a_whole_text_has_no_binary() -> None:
    counts: Counter[str] = Counter()
    assert shown("a\0b\ud800\r\n", counts) == "a\\x00b\\ud800\r\n"
    assert counts == {CONTROL: 1}


def test_what_the_next_byte_decides_about_waits_for_it_and_no_longer() -> None:
    stage = HygieneStage()
    assert stage.waits_ms == 0
    assert [each.data for each in stage.take("stdout", b"50%\r")] == [b"50%"]
    assert stage.waits_ms == LONG_MS
    assert stage.pause(SHORT_MS) == []
    assert [each.data for each in stage.pause(LONG_MS)] == [rb"\x0d"]
    assert stage.waits_ms == 0
    assert stage.take("stdout", "é".encode()[:1]) == []
    assert stage.waits_ms == 0  # no pause makes a character of it
    assert [each.data for each in stage.take("stdout", "é".encode()[1:])] == ["é".encode()]


def test_it_holds_no_more_than_a_few_bytes() -> None:
    stage = HygieneStage()
    for _ in range(1000):
        stage.take("stdout", "❤\u200d\u200d\r".encode())
        stage.take("stderr", b"\0\0")
    assert sum(len(each.undecided) for each in stage._streams.values()) <= 2
    assert all(len(each._rest) < 3 for each in stage._streams.values())


def test_every_format_character_is_written_out_but_signs_that_are_seen() -> None:
    """Against the Unicode of this Python; a newer one may have more."""
    joiners = set("\u200c\u200d")
    formats = {
        char for char in map(chr, range(0x80, 0x110000)) if unicodedata.category(char) in ("Cf", "Cc", "Zl", "Zp")
    }
    kept = {char for char in formats - joiners if shown(f"a{char}a", Counter()) == f"a{char}a"}
    assert kept == set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
