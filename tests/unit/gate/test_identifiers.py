"""Call ids grow, whatever the clock does."""

from __future__ import annotations

import time

import pytest

from runner.gate.identifiers import CallIds
from runner.wire.claims import CALL_ID


def test_ids_grow_and_have_the_form_that_clients_may_name() -> None:
    ids = CallIds("")
    made = [ids.new() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000
    assert all(CALL_ID.fullmatch(each) for each in made)


def test_a_clock_that_steps_back_makes_no_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = CallIds("")
    first = ids.new()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000)
    assert all(later > first for later in (ids.new() for _ in range(70_000)))


def test_ids_go_on_above_the_newest_of_the_ledger() -> None:
    newest = f"{(time.time_ns() // 1_000_000) + 10**7:012x}-ffff-ffffffff"
    assert CallIds(newest).new() > newest
    assert CallIds("not-hex").new()
