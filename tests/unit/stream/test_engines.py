"""Helpers of the first pass: they find what a naive search finds."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.stream import engines
from runner.stream.engines import holding, literals

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
