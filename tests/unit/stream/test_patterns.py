"""Rules over texts and streams: the same findings however a stream was cut, by whatever engine, in bounded memory."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runner.catalog import shared
from runner.catalog.filters import compile_filter_rules
from runner.errors import RunnerError
from runner.model import FilterRule
from runner.stream.actions import DEFAULTS, Actions
from runner.stream.engines import Hyperscan, Words, hyperscan
from runner.stream.patterns import Patterns, PatternStage
from runner.stream.shape import shape
from runner.stream.specimen import written
from runner.stream.stage import LONG_MS, SHORT_MS, Name

KEY = b"k" * 32
FOLDER = shared("policies") / "filters"


@cache
def rules() -> tuple[FilterRule, ...]:
    return compile_filter_rules({f"filters/{path.name}": path.read_bytes() for path in sorted(FOLDER.glob("*.toml"))})


@cache
def patterns() -> Patterns:
    return Patterns(rules())


@cache
def slow() -> Patterns:
    return Patterns(rules(), engine=Words)


def through(pieces: Sequence[tuple[Name, bytes]], of: Patterns | None = None) -> dict[Name, bytes]:
    """What comes out of a stage, by stream."""
    stage = PatternStage(of or patterns(), Actions(DEFAULTS, KEY))
    out: dict[Name, bytes] = {"stdout": b"", "stderr": b""}
    for stream, data in pieces:
        for name, clean in stage.take(stream, data):
            assert clean
            out[name] += clean
    for name, clean in stage.close():
        out[name] += clean
    assert stage.waits_ms == 0
    return out


def whole(data: bytes, of: Patterns | None = None) -> bytes:
    """What the text must become: every finding replaced, by itself."""
    found = (of or patterns()).find(data)
    actions, out, at = Actions(DEFAULTS, KEY), b"", 0
    for each in found:
        out += data[at : each.start] + actions.replace(each, data)
        at = each.end
    return out + data[at:]


EXAMPLES = [written(text, "cut") for rule in rules() for text in (*rule.examples, *rule.counter_examples)]
BETWEEN = [
    b" ",
    b"\n",
    b"",
    b", ",
    b'"',
    b"\x1b[31m",
    b"\t",
    b"=",
    b"key: ",
    b"token=token=",
    b"\xe2\x80\x8b",
    b"x" * 700,
    b"-----BEGIN ",
]
TEXTS = some.lists(some.tuples(some.sampled_from(EXAMPLES), some.sampled_from(BETWEEN)), max_size=5).map(
    lambda parts: b"".join(a + b for a, b in parts)
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, some.data())
def test_a_stream_becomes_the_same_text_however_it_is_cut(text: bytes, drawn: some.DataObject) -> None:
    size = drawn.draw(some.sampled_from([1, 2, 3, 7, 40, 500, 5000]))
    cuts = drawn.draw(some.lists(some.integers(0, len(text)), max_size=6)) if size > 3 else range(0, len(text), size)
    edges = sorted({0, *cuts, len(text)})
    pieces = [("stdout", text[low:high]) for low, high in itertools.pairwise(edges)]
    expected = whole(text)
    assert through(pieces)["stdout"] == expected
    assert through([("stdout", text)])["stdout"] == expected


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, some.integers(1, 50), some.integers(1, 50))
def test_interleaved_streams_do_not_touch_each_other(one: bytes, other: bytes, step: int, stride: int) -> None:
    pieces: list[tuple[Name, bytes]] = []
    for at in range(max(len(one) * stride, len(other) * step) // min(step, stride) + 1):
        pieces += [("stdout", one[at * step : (at + 1) * step]), ("stderr", other[at * stride : (at + 1) * stride])]
    assert through([each for each in pieces if each[1]]) == {"stdout": whole(one), "stderr": whole(other)}


@pytest.mark.skipif(hyperscan is None, reason="no wheel of hyperscan for this machine")
@settings(max_examples=300, deadline=None)
@given(some.one_of(TEXTS, some.binary(max_size=300), some.text(max_size=300).map(str.encode)))
def test_both_engines_find_the_same(text: bytes) -> None:
    assert Patterns.find(patterns(), text) == Patterns.find(slow(), text)
    assert type(patterns()._engine) is Hyperscan


@pytest.mark.skipif(hyperscan is None, reason="no wheel of hyperscan for this machine")
@settings(max_examples=50, deadline=None)
@given(some.lists(some.sampled_from(EXAMPLES), min_size=1, max_size=3), some.integers(20, 80), some.data())
def test_both_engines_find_the_same_in_much_of_the_same(parts: list[bytes], count: int, drawn: some.DataObject) -> None:
    """Hits that stand close together are one window, and what was asked about a value is not asked again."""
    text = b"".join(drawn.draw(some.lists(some.sampled_from([*parts, b" "]), min_size=count, max_size=count)))
    assert Patterns.find(patterns(), text) == Patterns.find(slow(), text)


@pytest.mark.parametrize(
    "text",
    [
        b"+4915112345678authttoken=token=+4915112345678+4915112345678",
        b"+33 6 12 34 56 78token=+33 6 12 34 56 78+33 6 12 34 56 78Private-Lin token=token=+33 6 12 34 56 78",
        b"token=token=+49 1511 2345678+49 1511 2345678token=+49 1511 2345678",
    ],
)
def test_a_number_after_the_name_of_a_token_is_found(text: bytes) -> None:
    """Which vectorscan 5.4.12 does not report."""
    found = patterns().find(text)
    assert "phone-international" in {each.rule for each in found}
    assert found == slow().find(text)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_each_example_is_found_at_every_cut(rule: FilterRule) -> None:
    """Cut once at each byte; and in pieces of one byte."""
    text = b"before " + written(rule.examples[0], "every") + b" after\n"
    expected = whole(text)
    assert expected != text
    step = max(1, len(text) // 40)
    for at in range(0, len(text), step):
        assert through([("stdout", text[:at]), ("stdout", text[at:])])["stdout"] == expected
    assert through([("stdout", text[at : at + 1]) for at in range(len(text))])["stdout"] == expected


def test_colour_codes_and_invisible_characters_hide_nothing() -> None:
    token = written("ghp_<an:36>", "colour")
    for hidden in (b"\x1b[1;31m", b"\xe2\x80\x8b", b"\xc2\xad", b"\xef\xbb\xbf", b"\xe2\x81\xa0", b"\x1b[K"):
        text = b"x " + token[:9] + hidden + token[9:20] + hidden + token[20:] + b" y\n"
        assert whole(text) == b"x [REDACTED:github-token] y\n"
        assert through([("stdout", text[at : at + 1]) for at in range(len(text))])["stdout"] == whole(text)
    assert (
        whole(token[:9] + b"\x1b]0;t\x07" + token[9:]) != b"[REDACTED:github-token]"
    )  # positive control: not all is unseen


def test_a_pause_lets_go_what_waits_and_the_rest_is_still_replaced() -> None:
    token = written("ghp_<an:36>", "pause")
    stage = PatternStage(patterns(), Actions(DEFAULTS, KEY))
    assert stage.take("stdout", b"one wor") == [("stdout", b"one ")]
    assert stage.waits_ms == SHORT_MS
    assert stage.pause(SHORT_MS - 1) == []
    assert stage.pause(SHORT_MS) == [("stdout", b"wor")]
    assert stage.waits_ms == 0
    assert stage.take("stdout", b"d " + token[:20]) == [("stdout", b"d ")]
    assert stage.waits_ms == LONG_MS
    assert stage.pause(SHORT_MS) == []
    assert stage.pause(LONG_MS) == [("stdout", token[:20])]
    assert stage.take("stdout", token[20:]) == []
    assert stage.close() == [("stdout", b"[REDACTED:github-token]")]
    assert stage.counts == {"github-token": 1}


def test_a_whole_match_at_the_end_of_a_quiet_stream_is_replaced() -> None:
    stage = PatternStage(patterns(), Actions(DEFAULTS, KEY))
    assert stage.take("stderr", b"mail jane@example.org") == [("stderr", b"mail ")]
    assert stage.pause(SHORT_MS) == [("stderr", b"j***@e***.org")]
    assert stage.take("stderr", b"\n") == [("stderr", b"\n")]
    assert stage.labels == {"pii.email"}


@pytest.mark.parametrize(
    "drip",
    [
        b"ey" * 50_000,
        b"A" * 100_000,
        b"-----BEGIN PRIVATE KEY-----\n" + b"QUJD\n" * 20_000,
        b"password = " * 9000,
        b"\x1b[" * 50_000,
        b"a@" * 50_000,
        b"1 " * 50_000,
        b"Cookie: " + b"a=b; " * 20_000,
    ],
)
def test_what_waits_is_bounded(drip: bytes) -> None:
    stage = PatternStage(patterns(), Actions(DEFAULTS, KEY))
    most = max(rule.reach for rule in (shape(each.pattern) for each in rules()))
    waiting = 0
    for at in range(0, len(drip), 1000):
        stage.take("stdout", drip[at : at + 1000])
        waiting = max(waiting, len(stage._streams["stdout"].raw))
    assert waiting <= most + most // 8 + 2000
    stage.close()


def test_long_key_blocks_are_replaced_as_one() -> None:
    block = written("-----BEGIN RSA PRIVATE KEY-----\n" + "<b64:64>\n" * 240 + "-----END RSA PRIVATE KEY-----", "long")
    assert len(block) > 15_000
    text = b"key:\n" + block + b"\nend\n"
    assert whole(text) == b"key:\n[REDACTED:private-key]\nend\n"
    for size in (1, 3, 7, 64, 1000):
        assert through([("stdout", text[at : at + size]) for at in range(0, len(text), size)])["stdout"] == whole(text)


def _cost(rule: FilterRule, text: bytes) -> float:
    """Seconds of this process for a rule's pattern over `text`, and for that of its beginnings; the least of three."""
    regex, shaped = re.compile(rule.pattern.encode()), shape(rule.pattern)
    beginning = re.compile(shaped.beginning.encode())
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in regex.finditer(text):
            pass
        beginning.search(text, max(0, len(text) - shaped.reach))
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_no_pattern_grows_faster_than_its_text(rule: FilterRule) -> None:
    """Eight times the hostile text costs about eight times as much, not sixty-four; the bound is far between."""
    source = random.Random(rule.id)
    stub = written(rule.examples[0], "hostile")
    for seed in (stub[: max(4, len(stub) * 2 // 3)], b"a" * 40, b"1 ", stub[:8] + b"=", b"A.", source.randbytes(30)):
        short, long = (_cost(rule, seed * (size // len(seed))) for size in (8_000, 64_000))
        assert long < 0.002 or long / max(short, 1e-6) < 32, seed


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"a+", "has no end"),
        (r"a{2,}", "has no end"),
        (r"(a)\1", "back reference"),
        (r"^a", "an anchor"),
        (r"a$", "an anchor"),
        (r"a(?=bc)", "ahead more than one"),
        (r"[a-z\n]{3,9}", "end of a line"),
        (r"a{0,3}", "matches nothing"),
        (r"é", "beyond ASCII"),
        (r"(a", "not a pattern"),
        (r"a{30000}", "beyond"),
        (r"(?:a{1,9}){1,9}b", "for ever"),
        (r"(?:ab?c){1,9}+d", "possessively"),
        (r"(?:a{1,9}|b){1,9}c", "for ever"),
        (r"(?:x?a{1,9} ?){1,9}c", "for ever"),
    ],
)
def test_a_pattern_that_no_stream_could_keep_is_refused_with_its_place(pattern: str, why: str) -> None:
    rule = FilterRule(id="x", label="x", description="x", pattern=pattern, place="policies/filters/x.toml:7")
    with pytest.raises(RunnerError) as caught:
        Patterns([rule])
    assert why in caught.value.refused.reason
    assert caught.value.refused.field == "policies/filters/x.toml:7"
    assert Patterns([FilterRule(id="x", label="x", description="x", pattern="a{1,3}b")]).find(b"aab")
