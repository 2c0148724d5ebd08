"""Issued secrets in a call's output: none gets through, however it is encoded, cut, interleaved or paused."""

from __future__ import annotations

import base64
import gzip
import itertools
import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.stream.engines import hyperscan
from runner.stream.exact import ExactStage, Needles, find, mark
from runner.stream.forms import HEAD, forms
from runner.stream.found import Found
from runner.stream.stage import LONG_MS, SHORT_MS, Name

SECRET = b"k9Tz_Wq4-LmXv7Rb2NdYc8Hs"
OTHER = b"postgres://app:s3cr3t/pw@db:5432/x?y=z"
LINES = b"-----BEGIN KEY-----\nMIIBVgIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
NAMES = {"api": (SECRET,), "db": (OTHER,), "key": (LINES,)}
NEEDLES = Needles.of(NAMES)
MARK = b"[REDACTED:api]"
ROOT = Path(__file__).resolve().parents[3]
Piece = tuple[Name, bytes]


def passed(pieces: Iterable[Piece], needles: Needles = NEEDLES, quiet_ms: int = 0) -> dict[Name, bytes]:
    """What comes out of a stage, with a pause of so many milliseconds after each piece."""
    stage, out = ExactStage(needles), {"stdout": b"", "stderr": b""}
    for stream, data in pieces:
        for name, clean in stage.take(stream, data):
            assert clean
            out[name] += clean
        if quiet_ms:
            for name, clean in stage.pause(quiet_ms):
                out[name] += clean
    for name, clean in stage.close():
        out[name] += clean
    assert stage.waits_ms == 0
    return out  # type: ignore[return-value]


def in_pieces(data: bytes, size: int, stream: Name = "stdout") -> list[Piece]:
    return [(stream, data[at : at + size]) for at in range(0, len(data), size)]


def clean(data: bytes, size: int = 1 << 20, needles: Needles = NEEDLES) -> bytes:
    return passed(in_pieces(data, size), needles)["stdout"]


def between(characters: bytes, separator: bytes) -> bytes:
    return separator.join(bytes((byte,)) for byte in characters)


@pytest.mark.parametrize(("name", "value"), [("api", SECRET), ("db", OTHER), ("key", LINES)])
def test_every_form_goes_however_it_is_cut(name: str, value: bytes) -> None:
    for needle, form in forms(value).items():
        text = b"before <" + needle + b"> after"
        outputs = {clean(text, size) for size in (1, 3, 7, len(text))}
        assert outputs == {b"before <[REDACTED:" + name.encode() + b"]> after"}, form


@pytest.mark.parametrize("cut", range(len(SECRET) + 1))
def test_a_secret_cut_anywhere_goes_whole(cut: int) -> None:
    for pause in (0, SHORT_MS, LONG_MS):
        out = passed([("stdout", b"a " + SECRET[:cut]), ("stdout", SECRET[cut:] + b" z")], quiet_ms=pause)["stdout"]
        known = out.removeprefix(b"a ").removesuffix(b" z").removesuffix(MARK)
        assert out.endswith(MARK + b" z")
        assert len(known) < HEAD
        assert pause or not known


@pytest.mark.parametrize(
    "needle", [SECRET, base64.b64encode(SECRET), SECRET.hex().encode(), SECRET.decode().encode("utf-16-le")]
)
@pytest.mark.parametrize("quiet_ms", [SHORT_MS, 300])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_pauses_between_all_bytes_let_five_bytes_out_at_most(needle: bytes, quiet_ms: int, size: int) -> None:
    out = passed(in_pieces(b"= " + needle + b" =", size), quiet_ms=quiet_ms)["stdout"]
    assert out.count(MARK) == 1
    before, after = out.split(MARK)
    assert needle.startswith(before.removeprefix(b"= "))
    assert len(before.removeprefix(b"= ")) < HEAD
    assert after == b" =" or len(after) < len(b" =") + 3  # padding of base64, the last byte of UTF-16


def test_what_is_held_says_how_long() -> None:
    stage = ExactStage(NEEDLES)
    assert stage.take("stdout", b"x k9T") == [("stdout", b"x ")]
    assert stage.waits_ms == SHORT_MS
    assert stage.pause(SHORT_MS - 1) == []
    assert stage.pause(SHORT_MS) == [("stdout", b"k9T")]
    assert stage.waits_ms == 0
    assert stage.take("stdout", b"z_W") == []
    assert stage.waits_ms == LONG_MS
    assert stage.pause(SHORT_MS) == []
    assert stage.pause(LONG_MS) == [("stdout", MARK)]
    assert stage.take("stdout", b"q4 and on") == [("stdout", b" and on")] or stage.close()
    assert stage.counts == {"secret:api": 1}
    assert stage.labels == {"secret"}


def test_a_secret_whose_beginning_went_on_the_other_stream_is_marked_and_counted() -> None:
    stage = ExactStage(NEEDLES)
    assert stage.take("stderr", SECRET[:5]) == []
    assert stage.pause(SHORT_MS) == [("stderr", SECRET[:5])]
    assert stage.take("stdout", SECRET[5:]) == [("stderr", MARK)]  # its place is where it began
    assert stage.close() == []
    assert stage.counts == {"secret:api": 1}


def test_a_beginning_that_goes_on_otherwise_is_let_go() -> None:
    assert clean(SECRET[:-1] + b"?" + b" more", 1) == SECRET[:-1] + b"? more"
    assert clean(SECRET[:5]) == SECRET[:5]
    assert clean(b"so: " + SECRET[:-4]) == b"so: " + MARK  # cut off: a call that was killed while it wrote


@given(
    st.lists(
        st.sampled_from([*sorted(forms(SECRET)), SECRET[:9], b"\n", b"eAH4sI", b"eJw", b"1f8b08", b"x" * 30]),
        max_size=9,
    )
)
def test_what_searches_long_output_finds_the_same(parts: list[bytes]) -> None:
    """After a megabyte another engine takes over."""
    quick, slow, text = Needles(NAMES), Needles(NAMES), b"".join(parts)
    quick.scan(bytes(1 << 20) + b"x")
    found, expected = quick.scan(text), slow.scan(text)
    assert (quick._literals is None, slow._literals) == (hyperscan is None, None)
    assert (found.found, found.begun, found.recent) == (expected.found, expected.begun, expected.recent)
    assert found.packed.items() >= expected.packed.items()  # also those whose beginnings overlap


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_cutting_and_no_interleaving_changes_what_comes_out(data: st.DataObject) -> None:
    needles = [
        *sorted(forms(SECRET)),
        *sorted(forms(OTHER)),
        *(SECRET, OTHER, LINES),
        *(between(SECRET, separator) for separator in (b" ", b"\x1b[0m", b"\n")),
        base64.b64encode(gzip.compress(b"so " + SECRET, mtime=0)),
        SECRET[:7] + b"_\b" + SECRET[7:],
        SECRET[:9] + b"\r\n" + SECRET[9:],
    ]
    filler = st.sampled_from(
        [b"", b"x", b"\n", b" ", b"k9", SECRET[:8], b"\x1b[3", b"\b", b"eJw", b"H4sI", b"\xe2\x80\x8b", b"word "]
    )
    parts = data.draw(st.lists(st.one_of(st.sampled_from(needles), filler), min_size=1, max_size=6))
    whole = b"".join(parts)
    other = data.draw(st.sampled_from([b"", b"other words\n", SECRET]))
    order = data.draw(st.sampled_from(["one by one", "as it comes"]))
    expected = passed([("stdout", whole), ("stderr", other)])
    if order == "one by one":
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
        pieces: list[Piece] = [("stdout", whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert passed([*pieces, ("stderr", other)]) == expected
        return
    tagged: list[Piece] = [("stdout", whole[at : at + 1]) for at in range(len(whole))]
    for at, byte in enumerate(other):
        tagged.insert(data.draw(st.integers(0, len(tagged))) if at < 3 else len(tagged), ("stderr", bytes((byte,))))
    joined: list[Piece] = []
    for name, byte_ in tagged:
        if joined and joined[-1][0] == name and data.draw(st.booleans()):
            joined[-1] = name, joined[-1][1] + byte_
        else:
            joined.append((name, byte_))
    assert passed(joined) == passed(tagged)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*sorted(forms(SECRET)), OTHER, SECRET[:8], SECRET + SECRET[5:], b"\0\xff", b"x\n"]), max_size=6
    ),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([0, SHORT_MS, LONG_MS]),
)
def test_in_data_as_many_bytes_take_its_place(parts: list[bytes], cuts: list[int], quiet_ms: int) -> None:
    """What follows stays where it is: in an archive, in a file with offsets."""
    whole = b"".join(parts)
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    stage, out = ExactStage(NEEDLES, data=True), b""
    for start, end in itertools.pairwise(places):
        out += b"".join(data for _, data in stage.take("stdout", whole[start:end]))
        out += b"".join(data for _, data in stage.pause(quiet_ms)) if quiet_ms else b""
    out += b"".join(data for _, data in stage.close())
    assert len(out) == len(whole)
    assert SECRET not in out
    assert OTHER not in out
    if not quiet_ms:
        redacted = find(NEEDLES, whole)
        assert all(out[at] == whole[at] for at in range(len(whole)) if not any(f.start <= at < f.end for f in redacted))


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60),
    st.binary(max_size=60),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([SECRET, OTHER, LINES]),
)
def test_a_secret_among_any_bytes_goes_in_any_cutting(
    before: bytes, after: bytes, cuts: Sequence[int], value: bytes
) -> None:
    text = before + value + after
    places = sorted({min(cut, len(text)) for cut in cuts})
    out = passed(("stdout", text[a:b]) for a, b in zip([0, *places], [*places, len(text)], strict=True))["stdout"]
    assert value.strip() not in out
    assert b"[REDACTED:" in out
    assert out == clean(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=len(SECRET), max_size=len(SECRET)),
    st.sampled_from([SECRET, base64.b64encode(SECRET)]),
)
def test_a_secret_over_both_streams_goes_from_both(turns: list[bool], value: bytes) -> None:
    pieces: list[Piece] = [("stdout", b"out "), ("stderr", b"err ")]
    pieces += [
        ("stderr" if turn else "stdout", value[at : at + 1]) for at, turn in enumerate((turns * 2)[: len(value)])
    ]
    out = passed([*pieces, ("stdout", b" out"), ("stderr", b" err")])
    first: Name = "stderr" if turns[0] else "stdout"
    second: Name = "stdout" if turns[0] else "stderr"
    assert out[first][:4] + out[first][-4:] in (b"out  out", b"err  err")
    assert out[first][4:-4] == MARK
    assert len(out[second]) == 8


def test_chunks_of_a_secret_over_both_streams_with_pauses() -> None:
    pieces: list[Piece] = [("stdout", SECRET[:8]), ("stderr", SECRET[8:16]), ("stdout", SECRET[16:])]
    for quiet in (0, SHORT_MS, 300):
        assert passed(pieces, quiet_ms=quiet) == {"stdout": MARK, "stderr": b""}
    apart: list[Piece] = [("stdout", SECRET[:4]), ("stderr", b"no part of it"), ("stdout", b"!\n")]
    assert passed(apart) == {"stdout": SECRET[:4] + b"!\n", "stderr": b"no part of it"}  # the allowed twin


WRAPPED = {
    "spaces": between(SECRET, b" "),
    "commas": between(SECRET, b","),
    "a line each": between(SECRET, b"\n"),
    "CRLF each": between(SECRET, b"\r\n"),
    "groups behind the head": SECRET[:8] + b" " + SECRET[8:16] + b" " + SECRET[16:],
    "concatenated": SECRET[:10] + b'" + "' + SECRET[10:],
    "colours": between(SECRET, b"\x1b[31;1m"),
    "OSC 8": SECRET[:3] + b"\x1b]8;;http://a/\x1b\\" + SECRET[3:],
    "OSC 52": SECRET[:3] + b"\x1b]52;c;aGVsbG8=\x07" + SECRET[3:],
    "backspace": SECRET[:4] + b"X\b" + SECRET[4:9] + b"YZ\b\b" + SECRET[9:],
    "bold by overstriking": b"".join(bytes((byte, 8, byte)) for byte in SECRET),
    "underlined by overstriking": b"".join(bytes((95, 8, byte)) for byte in SECRET),
    "carriage return": SECRET[:4] + b"\r" + SECRET[4:],
    "overwritten": b"nothing to see\r" + SECRET,
    "zero width": between(SECRET, "\u200b".encode()),
    "bidirectional": SECRET[:2] + "\u202e".encode() + SECRET[2:9] + "\u2069".encode() + SECRET[9:],
    "soft hyphen": SECRET[:2] + "\u00ad".encode() + SECRET[2:],
    "tag character": SECRET[:2] + "\U000e0041".encode() + SECRET[2:],
    "base64 in lines": base64.encodebytes(b"x" * 50 + SECRET + b"y" * 50),
    "base64 in short lines": b"\n".join(base64.b64encode(SECRET)[at : at + 8] for at in range(0, 32, 8)),
    "gzip in base64": base64.b64encode(gzip.compress(b"words " * 9 + SECRET)),
    "gzip in base64 in lines": base64.encodebytes(gzip.compress(random.Random(1).randbytes(99) + SECRET)),
    "gzip in base64 without padding": base64.b64encode(gzip.compress(b"a" + SECRET)).rstrip(b"="),
    "gzip": gzip.compress(b"so " + SECRET),
    "gzip in hex": gzip.compress(b"so " + SECRET).hex().encode(),
    **{f"zlib {level} in base64": base64.b64encode(zlib.compress(b"so " + SECRET, level)) for level in (1, 3, 6, 9)},
    "zlib in hex": zlib.compress(SECRET).hex().upper().encode(),
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_it_is_seen_through_what_a_terminal_or_a_reader_would_not_see(how: str) -> None:
    text = b"a: " + WRAPPED[how] + b" :z"
    outputs = {clean(text, size) for size in (1, 3, 7, len(text))}
    assert len(outputs) == 1
    out = outputs.pop()
    assert out.count(MARK) == 1
    left = out.removeprefix(b"a: ").replace(MARK, b"").removesuffix(b" :z")
    assert len(left) < 16 or how in {"base64 in lines"}
    visible = left.translate(None, b"\r\n \b")
    assert not any(SECRET[at : at + HEAD] in visible for at in range(len(SECRET) - HEAD + 1))


def test_secrets_in_each_other_and_over_each_other() -> None:
    needles = Needles.of({"short": (b"abcdefgh",), "long": (b"abcdefghijklmnop",), "tail": (b"mnopqrstuv",)})
    assert clean(b"<abcdefgh>", 1, needles) == b"<[REDACTED:short]>"
    assert clean(b"<abcdefghijklmnop>", 1, needles) == b"<[REDACTED:long]>"
    assert clean(b"<abcdefghijklmnopqrstuv>", 1, needles) == b"<[REDACTED:long]>"
    assert clean(b"<abcdefghijk>", 1, needles) == b"<[REDACTED:short]ijk>"
    assert clean(b"<abcdefghmnopqrstuv>", 1, needles) == b"<[REDACTED:short][REDACTED:tail]>"


def test_long_ones_and_such_with_lines() -> None:
    value = base64.b64encode(random.Random(2).randbytes(6144))
    needles = Needles.of({"big": (value,)})
    for text in (value, base64.encodebytes(value), value.hex().encode()):
        assert clean(b"<" + text + b">", 4096, needles).startswith(b"<[REDACTED:big]")
        assert len(clean(b"<" + text + b">", 4096, needles)) < 24
    for text in (LINES, LINES.replace(b"\n", b"\r\n"), LINES.replace(b"\n", b"\\n"), LINES.replace(b"\n", b"")):
        assert clean(b"<" + text + b">", 3).startswith(b"<[REDACTED:key]")


@pytest.mark.parametrize("value", [b"brief", b"", b"  \n  brief \n\n", b"--------", b"a b\n"])
def test_what_cannot_be_told_from_text_is_refused_and_not_shown(value: bytes) -> None:
    with pytest.raises(ValueError, match="api: ") as refused:
        Needles.of({"api": (value,)})
    assert not value.strip() or value.strip().decode() not in str(refused.value)


def test_equal_sets_are_compiled_once_and_not_kept() -> None:
    first = Needles.of({"a": (b"of-this-test",), "b": (b"another-one",)})
    assert Needles.of({"b": (b"another-one",), "a": (b"of-this-test",)}) is first
    assert Needles.of({"a": (b"another-one",), "b": (b"of-this-test",)}) is not first
    assert not Needles.of({})
    assert clean(SECRET, needles=Needles.of({})) == SECRET
    kept = len(Needles._shared)
    del first
    assert len(Needles._shared) < kept


def test_ordinary_text_is_untouched() -> None:
    needles = Needles.of(
        {"word": (b"together",), "words": (b"passwords",), "path": (b"https://example.org/x",), **NAMES}
    )
    plain = b"to get her there, pass word s; https://example.com/x https://example.org/ exampl\x1b[0mes\n" * 50
    assert clean(plain, 7, needles) == plain
    assert clean(b"all of us together", needles=needles) == b"all of us [REDACTED:word]"  # it is what it is
    for path in sorted((ROOT / "runner").rglob("*.py")):
        text = path.read_bytes()
        assert clean(text, 1000) == text, path
    noise = random.Random(3).randbytes(1 << 19)
    assert clean(noise, 10_000) == noise
    assert clean(base64.encodebytes(noise), 10_000) == base64.encodebytes(noise)
    packed = base64.encodebytes(gzip.compress(noise[: 1 << 17] + bytes(1 << 20)))
    assert clean(packed, 10_000) == packed


def test_findings_of_a_whole_text_are_what_a_stage_replaces() -> None:
    for text in (b"a " + SECRET + b" b " + OTHER, *WRAPPED.values(), b"x" + SECRET[:9]):
        found = find(NEEDLES, text)
        assert found
        out, last = b"", 0
        for place in found:
            assert isinstance(place, Found)
            assert place.label == "secret"
            out += text[last : place.start] + mark(place.rule)
            last = place.end
        assert out + text[last:] == clean(text)
    assert find(NEEDLES, b"nothing of the kind") == []


def test_what_looks_like_a_mark_stays_data() -> None:
    text = b"[REDACTED:api] [REDACTED] \n"
    assert clean(text, 3) == text


ENDLESS = {
    "prefixes": SECRET[:-1],
    "heads": SECRET[:HEAD],
    "beginnings of gzip": b"H4sI",
    "gzip that never ends": b"H4sIAAAAAAAA",
    "nothing but spaces": b" ",
    "a beginning and spaces": SECRET[:10] + b" " * 5000,
    "nothing but lines": b"\n",
    "escapes": b"\x1b[",
    "titles without end": b"\x1b]0;",
    "backspaces": b"\b",
    "zero width": "\u200b".encode(),
}


@pytest.mark.parametrize("how", ENDLESS)
def test_memory_is_bounded_whatever_comes(how: str) -> None:
    text = (ENDLESS[how] * ((1 << 19) // len(ENDLESS[how]) + 1))[: 1 << 19]
    stage, out = ExactStage(NEEDLES), 0
    for stream, data in in_pieces(text, 16384):
        out += sum(len(piece) for _, piece in stage.take(stream, data))
        assert stage.size <= 160 << 10
    out += sum(len(piece) for _, piece in stage.close())
    assert len(text) - len(SECRET) <= out <= len(text) + len(MARK)
