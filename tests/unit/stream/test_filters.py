"""The filter of one call: its stages in their order, what they say together, and what they tell others."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runner.model import FilterRule, Marked
from runner.stream.exact import mark
from runner.stream.filters import CallFilter, Place
from runner.stream.found import Found
from runner.stream.hygiene import Clean
from runner.stream.inspect import Inspected
from runner.stream.patterns import Patterns
from runner.stream.stage import LONG_MS, Name
from runner.stream.tasks import Filters, Looked

KEY = b"sk-live-3f9d1c7ab2e84d5590aa"
OTHER = b"another-secret-altogether-77"
RULES = (
    FilterRule(id="mail", label="pii.email", description="a", pattern=r"[a-z]{1,30}@[a-z]{1,30}\.test"),
    FilterRule(id="word", label="credential.word", description="a", pattern=r"tok_[a-z]{4,20}"),
    FilterRule(id="stop", label="stop", description="a", pattern=r"stop_[a-z]{4,20}"),
    FilterRule(id="keep", label="keep", description="a", pattern=r"keep_[a-z]{4,20}"),
)
PATTERNS = Patterns(RULES)
PROFILE: Any = SimpleNamespace(labels={"stop": "block", "keep": "hold"})


PARTS = some.sampled_from([KEY, KEY[:9], b"jo@host.test", b"tok_abcd", b"\x1b", b"\r\n", b" a ", "é".encode(), b"\0"])


class Heard:
    """Hears what is delivered; and as what takes raw output, is full when it is told to be."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.lost = 0
        self.said: list[tuple[str, bytes, frozenset[str]]] = []
        self.raw: list[tuple[str, bytes]] = []

    def heard(self, place: Place, data: bytes, labels: Collection[str]) -> None:
        self.said.append((place, data, frozenset(labels)))

    def take(self, place: Place, data: bytes) -> None:
        self.raw.append((place, data))

    def lose(self, count: int) -> None:
        self.lost += count

    def of(self, *_: Any) -> Any:
        """For every call."""
        return self


class Shouting:
    """An inspector that finds one word, in what nobody vouches for."""

    name = "shouting"
    untrusted, outside, required, recipients = True, (), False, None

    @property
    def inspector(self) -> Any:
        return self

    def inspect(self, data: bytes, labels: frozenset[str]) -> Inspected:
        at = data.find(b"SHOUT")
        if at < 0:
            return Inspected(frozenset(), 0)
        return Inspected(frozenset({"injected"}), 99, (Found(at, at + 5, "shout", "injected"),), ((at, at + 5),))

    def sources(self, reached: Sequence[str]) -> tuple[str, ...]:
        return ("a.test",)


def made(
    limit: int = 1 << 20, *, stdout: str = "text", looked: Looked | None = None, **seams: Any
) -> tuple[Filters, CallFilter]:
    filters = Filters(lambda: bytes(32), **seams)
    filters.secrets("t").hold("c", "key", (KEY,), lasting=True)
    plan: Any = SimpleNamespace(call="c", output=limit)
    manifest: Any = SimpleNamespace(stdout=stdout)
    return filters, filters.call(plan, "t", PATTERNS, PROFILE, manifest, looked=looked)


def joined(cleans: list[Clean], stream: Name = "stdout") -> bytes:
    return b"".join(clean.data for clean in cleans if clean.stream == stream)


def settled(filter_: CallFilter, stream: Name, data: bytes) -> list[Clean]:
    """What goes on of it once nothing more came for a while."""
    return filter_.take(stream, data) + filter_.pause(LONG_MS)


def through(filter_: CallFilter, *pieces: bytes) -> bytes:
    cleans = [clean for piece in pieces for clean in filter_.take("stdout", piece)]
    return joined(cleans + filter_.close())


def test_every_stage_has_its_turn_and_says_what_it_found() -> None:
    _, filter_ = made()
    text = b"a \x1b[0m " + KEY + b" jo@host.test tok_abcd \xe2\x80\xae\n"
    assert through(filter_, text) == rb"a \x1b[0m [REDACTED:key] j***@h***.test [REDACTED:word] \u{202e}" + b"\n"
    assert filter_.found() == {"hygiene:bidi": 1, "hygiene:control": 1, "mail": 1, "secret:key": 1, "word": 1}
    assert filter_.all_labels == {"secret", "pii.email", "credential.word"}
    assert list(filter_.found()) == sorted(filter_.found())


@settings(max_examples=100)
@given(some.lists(PARTS, max_size=6), some.lists(some.integers(0, 200), max_size=6))
def test_cutting_changes_nothing(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    _, whole = made()
    _, cut = made()
    expected = through(whole, data) if data else b""
    assert through(cut, *[data[low:high] for low, high in itertools.pairwise(ends)]) == expected
    assert KEY not in expected
    assert cut.found() == whole.found()


def test_the_cap_comes_last() -> None:
    """What is cut off is cut off what may be told: a secret over the edge leaves no half."""
    _, filter_ = made(limit=20)
    assert through(filter_, b"0123456789", KEY, b"more\n") == b"0123456789[REDACTED:"
    assert filter_.capped
    _, enough = made(limit=10 + len(mark("key")))
    assert through(enough, b"0123456789", KEY) == b"0123456789" + mark("key")
    assert not enough.capped


def test_what_is_given_to_the_task_meanwhile_is_found_from_then_on() -> None:
    filters, filter_ = made()
    out = filter_.take("stdout", KEY[:10])
    filters.secrets("t").hold("neighbour", "other", (OTHER,), lasting=True)
    out += filter_.take("stdout", KEY[10:] + b" " + OTHER + b"\n")
    assert joined(out + filter_.close()) == b"[REDACTED:key] [REDACTED:other]\n"
    assert filter_.found() == {"secret:key": 1, "secret:other": 1}


def test_a_beginning_survives_that_a_dead_secret_is_forgotten() -> None:
    filters = Filters(lambda: bytes(32))
    plan: Any = SimpleNamespace(call="c", output=1 << 20)
    filters.secrets("t").hold("c", "key", (KEY,), lasting=True)
    manifest: Any = SimpleNamespace(stdout="text")
    filter_ = filters.call(plan, "t", PATTERNS, PROFILE, manifest)
    out = filter_.take("stdout", b"ok ")
    for number in range(100):
        filters.secrets("t").hold(f"n{number}", "dynamic", (b"dynamic-%05d" % number,), lasting=False)
        out += filter_.take("stdout", KEY[number % len(KEY)].to_bytes() if number < len(KEY) else b".")
        filters.secrets("t").over(f"n{number}")
    out += filter_.close()
    assert joined(out) == b"ok [REDACTED:key]" + b"." * (100 - len(KEY))
    assert len(filter_._stages) < 60, "stages for what is forgotten are kept"


def test_what_blocks_lets_nothing_more_out() -> None:
    _, filter_ = made()
    assert joined(settled(filter_, "stdout", b"before\n")) == b"before\n"
    assert settled(filter_, "stdout", b"stop_abcd b\n") == []
    assert filter_.blocked == "stop"
    assert settled(filter_, "stderr", b"more\n") == []
    assert filter_.close() == []
    assert filter_.result(b'{"a":1}', 100) == (None, None, "")
    assert filter_.found() == {"stop": 1}


def test_what_is_held_is_kept_and_not_told_to_anybody() -> None:
    heard = Heard()
    _, filter_ = made(listening=[lambda *_: heard], escrows=heard)
    settled(filter_, "stdout", b"before\n")
    assert joined(settled(filter_, "stdout", b"keep_abcd b\n")) == b"[REDACTED:keep] b\n"
    assert filter_.held == "keep"
    assert [data for _, data, _ in heard.said] == [b"before\n"]
    assert filter_.result(b'{"a":1}', 100) == (None, b'{"a":1}', "")


def test_what_could_be_held_for_nobody_is_blocked() -> None:
    _, filter_ = made()
    assert joined(settled(filter_, "stdout", b"keep_abcd b\n")) == b""
    assert (filter_.held, filter_.blocked) == ("keep", "keep")
    _, filter_ = made()
    assert filter_.result(b'["keep_abcd"]', 100) == (None, None, "")
    assert filter_.blocked == "keep"
    _, filter_ = made(escrows=Heard())
    assert filter_.result(b'["keep_abcd"]', 100) == (None, b'["[REDACTED:keep]"]', "")
    assert filter_.blocked == ""


def test_what_is_kept_no_more_as_it_came_passes_no_filter() -> None:
    taker = Heard(full=True)
    _, filter_ = made(escrows=taker)
    assert settled(filter_, "stdout", b"after\n") == []
    assert (filter_.capped, taker.raw, taker.lost) == (True, [], 6)
    taker.full = False
    assert joined(settled(filter_, "stdout", b"after\n")) == b"after\n"
    assert not filter_.capped


def test_a_result_is_told_and_kept_without_what_was_found() -> None:
    _, filter_ = made()
    assert filter_.result(b'{ "a": 1 }', 100) == ({"a": 1}, b'{ "a": 1 }', "")
    value, kept, problem = filter_.result(b'{"a": "%s"}' % KEY, 100)
    assert (value, kept, problem) == ({"a": "[REDACTED:key]"}, b'{"a":"[REDACTED:key]"}', "")
    hidden = "".join(f"\\u00{byte:02x}" for byte in KEY).encode()
    assert filter_.result(b'["%s"]' % hidden, 1000)[1] == b'["[REDACTED:key]"]'
    assert filter_.result(None, 100) == (None, None, "")
    assert filter_.result(b"{", 100)[:2] == (None, None)
    assert filter_.found() == {"secret:key": 2}


def test_a_result_that_blocks_is_withheld() -> None:
    _, filter_ = made()
    assert filter_.result(b'["stop_abcd"]', 100) == (None, None, "")
    assert filter_.blocked == "stop"


def test_others_hear_what_is_delivered_and_take_what_came() -> None:
    heard = Heard()
    asked: list[tuple[str, str]] = []

    def listening(task: str, call: str) -> Heard:
        asked.append((task, call))
        return heard

    _, filter_ = made(limit=30, listening=[listening], escrows=heard, looked=Looked(by := Shouting(), by))
    settled(filter_, "stdout", b"to jo@host.test\n")
    settled(filter_, "stderr", b"SHOUT " + KEY + b"\n")
    filter_.result(b'["jo@host.test"]', 100)
    assert asked == [("t", "c")]
    assert heard.raw == [
        ("stdout", b"to jo@host.test\n"),
        ("stderr", b"SHOUT " + KEY + b"\n"),
        ("value", b'["jo@host.test"]'),
    ]
    told = {
        place: b"".join(data for its, data, _ in heard.said if its == place) for place in ("stdout", "stderr", "value")
    }
    assert told == {"stdout": b"to j***@h***.test\n", "stderr": b"SHOUT [REDAC", "value": b'["j***@h***.test"]'}
    assert heard.said[-1][2] == {"pii.email", "secret"}
    filter_.close()
    assert filter_.all_labels == {"pii.email", "injected", "secret"}
    assert filter_.found()["shout"] == 1
    assert filter_.came_from(()) == (("a.test",), (Marked(stream="stderr", start=0, end=5),))
    assert "untrusted" in filter_.all_labels


def test_data_is_encoded_from_its_beginning_and_keeps_its_length() -> None:
    _, filter_ = made(stdout="bytes")
    data = b"plain jo@host.test text\n"
    cleans = filter_.take("stdout", data) + filter_.close()
    assert {clean.encoding for clean in cleans} == {"base64"}
    decoded = base64.b64decode(joined(cleans))
    assert decoded == b"plain j***@h***.te text\n"
    assert len(decoded) == len(data)
    _, text = made(stdout="bytes")
    assert [clean.encoding for clean in settled(text, "stderr", b"words\n")] == [""]


@pytest.mark.parametrize("held", [KEY[:12], b"jo@ho", b"\r", "é".encode()[:1]])
def test_what_waits_is_bounded_by_a_quiet(held: bytes) -> None:
    _, filter_ = made()
    out = filter_.take("stdout", b"line\n" + held)
    quiet = 0
    while (wait := filter_.waits_ms) and quiet < LONG_MS:
        quiet = max(quiet, wait)
        out += filter_.pause(quiet)
    assert joined(out).startswith(b"line\n")
    assert not filter_.waits_ms
    assert joined(out + filter_.close()) == joined(out) + (b"ww==" if held == "é".encode()[:1] else b"")


def test_what_one_stage_lets_go_is_looked_at_by_the_next() -> None:
    """A beginning of a secret that was none is still a pattern."""
    rule = FilterRule(id="sk", label="credential.sk", description="a", pattern=r"sk-l[a-z]{4,20}")
    filters = Filters(lambda: bytes(32))
    filters.secrets("t").hold("c", "key", (KEY,), lasting=True)
    plan: Any = SimpleNamespace(call="c", output=1 << 20)
    manifest: Any = SimpleNamespace(stdout="text")
    filter_ = filters.call(plan, "t", Patterns((rule,)), PROFILE, manifest)
    assert through(filter_, b"a sk-li", b"zard b\n") == b"a [REDACTED:sk] b\n"
