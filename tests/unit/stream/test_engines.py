"""Helpers of the first pass: they find what a naive search finds."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.stream import engines
from runner.stream.engines import VERSION, holding, literals, sound

WORDS = (b"abcabc", b"bca", b"\x1f\x8b\x08", b"7801")


@given(st.lists(st.sampled_from([*WORDS, b"abc", b"\n", b"\x00", b"x" * 600]), max_size=12))
def test_places_of_words_are_all_that_there_are(parts: list[bytes]) -> None:
    text, places = b"".join(parts), literals(WORDS)
    if places is None:
        pytest.skip("hyperscan has no wheel for this machine")
    expected = {
        (number, at) for number, word in enumerate(WORDS) for at in range(len(text)) if text.startswith(word, at)
    }
    assert {(number, at) for number, starts in places(text).items() for at in starts} == expected


@pytest.mark.parametrize("wheel", [True, False])
@pytest.mark.parametrize("size", [0, 10, 5000])
def test_whether_a_text_holds_something(wheel: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not wheel:
        monkeypatch.setattr(engines, "hyperscan", None)
    holds = holding(rb"[\x00\x1b]", lambda text: b"\x00" in text or b"\x1b" in text)
    assert not holds(b"x" * size)
    assert holds(b"x" * size + b"\x00")
    assert holds(b"\x1b" + b"x" * size)


def test_two_threads_may_ask_at_once() -> None:
    """Gate filters while a thread compiles the next generation: hyperscan serves one of them at a time."""
    holds, text = holding(rb"\x00", lambda text: b"\x00" in text), b"x" * (1 << 20) + b"\x00"
    found: list[bool] = []

    def ask() -> None:
        found.extend([holds(text) for _ in range(100)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 400


@pytest.mark.parametrize(
    ("version", "all_found"), [("5.4.0", True), ("5.4.2", True), ("5.4.11", False), ("5.4.12", False), ("5.4.13", True)]
)
def test_an_engine_that_loses_matches_is_not_used(version: str, all_found: bool) -> None:
    assert sound(version) is all_found
    assert engines.hyperscan is None or sound(VERSION)


@pytest.mark.skipif(engines.hyperscan is None, reason="hyperscan has no wheel for this machine")
@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ([rb"curl.*\|\s*python"], b"curl http://xxxx:8000/ 2>&1 | python"),
        (
            [rb"(?:^|[^0-9a-z])\+[1-9][0-9]{0,2}(?:[ -]?[0-9]){5}", rb"token=[!-~]{8}"],
            b"token=token=+49 1511 2345678to",
        ),
    ],
)
def test_what_other_versions_lose_is_found(patterns: list[bytes], text: bytes) -> None:
    database = engines.hyperscan.Database(mode=engines.hyperscan.HS_MODE_BLOCK)
    flags = [engines.hyperscan.HS_FLAG_DOTALL] * len(patterns)
    database.compile(expressions=patterns, ids=list(range(len(patterns))), flags=flags)
    hits: list[int] = []
    database.scan(text, match_event_handler=engines._hit, context=hits)
    assert set(hits[::2]) == set(range(len(patterns)))
