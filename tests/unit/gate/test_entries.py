"""The one way into the ledger: what may not stop the daemon, and what must."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError, refuse
from runner.gate.entries import Journal, call_digest, content
from runner.ledger import entry as entries
from runner.wire.recorder import WITH_ENTRY


class Recorder:
    refusal: RunnerError | None = None
    stored: bytes = b""
    contents: tuple[bytes, ...] = ()

    async def append(self, data: bytes, *, sync: bool = False, contents: tuple[bytes, ...] = ()) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.contents = contents
        return SimpleNamespace(position=3, digest="d")

    async def store(self, data: bytes) -> None:
        self.stored = data


class House:
    def __init__(self) -> None:
        self.recorder, self.applied, self.fatal = Recorder(), list[int](), list[RunnerError]()
        self.state_fails: RunnerError | None = None
        parts: Any = (self.recorder, self)
        self.journal = Journal(*parts, lambda: "now", lambda: b"s" * 16, self.fatal.append)

    def apply(self, position: int, entry: Any, **_: Any) -> None:
        if self.state_fails is not None:
            raise self.state_fails
        self.applied.append(position)


def refusals(detail: str) -> entries.Refusals:
    return entries.Refusals(time="now", uid=1, code="c", detail=detail, count=1)


def test_an_entry_is_followed_by_state() -> None:
    house = House()
    asyncio.run(house.journal.write(refusals("x")))
    assert house.applied == [3]
    assert not house.fatal


@pytest.mark.parametrize("words", ["x" * 70_000, "\ud800"])
def test_somebodys_words_that_fit_no_entry_are_refused_and_stop_nothing(words: str) -> None:
    house = House()
    with pytest.raises(RunnerError) as refused:
        asyncio.run(house.journal.write(refusals(words)))
    assert refused.value.refused.code == "arguments"
    assert not house.fatal


def test_a_ledger_or_a_state_that_does_not_take_it_is_fatal() -> None:
    for break_it in ("refusal", "state"):
        house = House()
        if break_it == "refusal":
            house.recorder.refusal = refuse("ledger", "full")
        else:
            house.state_fails = refuse("host", "full")
        with pytest.raises(RunnerError):
            asyncio.run(house.journal.write(refusals("x")))
        assert len(house.fatal) == 1


def test_content_is_salted_and_measured_without_the_salt() -> None:
    kept, named = content(b"data", b"salt")
    assert (kept, named.size) == (b"saltdata", 4)
    assert named.digest == hashlib.sha256(kept).hexdigest()


def test_content_travels_with_its_entry_unless_it_is_large() -> None:
    house = House()
    small, large = b"s" * WITH_ENTRY, b"l" * (WITH_ENTRY + 1)
    asyncio.run(house.journal.write(refusals("x"), contents=(small, large)))
    assert (house.recorder.contents, house.recorder.stored) == ((small,), large)


def test_content_of_an_entry_that_cannot_be_one_is_not_kept() -> None:
    house = House()
    with pytest.raises(RunnerError):
        asyncio.run(house.journal.write(refusals("x" * 70_000), contents=(b"l" * (WITH_ENTRY + 1),)))
    assert not house.recorder.stored


def test_a_key_is_bound_to_tool_and_arguments_in_any_order() -> None:
    assert call_digest("t", {"a": 1, "b": 2}) == call_digest("t", {"b": 2, "a": 1})
    assert len({call_digest("t", {"a": 1}), call_digest("u", {"a": 1}), call_digest("t", {"a": 2})}) == 3
