"""The order of a call's entries, as the table says, for calls that were never seen, are open, or are over."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import get_args

import pytest

from runner.errors import RunnerError
from runner.ledger import sequence
from runner.ledger.sequence import ADVANCE, REFUSED, Event, Sequence, Stage, State


def test_the_table_says_something_about_every_pair_and_only_once() -> None:
    pairs = set(itertools.product(get_args(Stage), get_args(Event)))
    assert set(ADVANCE) | set(REFUSED) == pairs
    assert not set(ADVANCE) & set(REFUSED)


def _feed(order: Sequence, *entries: object) -> None:
    for position, entry in enumerate(entries):
        order.check(entry)  # type: ignore[arg-type]  # sample entries are untyped here
        order.apply(position, entry)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("stage", get_args(Stage))
@pytest.mark.parametrize("event", get_args(Event))
def test_every_row(sample: ModuleType, stage: Stage, event: Event) -> None:
    order = Sequence()
    if stage != "new":
        _feed(order, sample.call(1))
    if stage == "closed":
        _feed(order, sample.outcome(1))
    entry = {
        "planned": sample.call(1),
        "decided": sample.call(1, planned=False),
        "unpermitted": sample.call(1, effect="deny"),
        "outcome": sample.outcome(1),
    }[event]
    if (stage, event) in ADVANCE:
        _feed(order, entry)
        assert ("c00000001" in order.state.open) == (ADVANCE[stage, event] == "open")
    else:
        with pytest.raises(RunnerError) as caught:
            order.check(entry)
        assert caught.value.refused.reason == REFUSED[stage, event]


@pytest.mark.parametrize("effect", ["deny", "step_up", "defer", "", "ALLOW", "allowed"])
def test_only_a_permit_carries_a_plan(sample: ModuleType, effect: str) -> None:
    with pytest.raises(RunnerError, match="allows"):
        Sequence().check(sample.call(1, effect=effect))
    Sequence().check(sample.call(1, effect="modify"))


def test_a_denied_call_gets_no_outcome(sample: ModuleType) -> None:
    order = Sequence()
    _feed(order, sample.call(1, effect="deny", planned=False))
    with pytest.raises(RunnerError, match="no plan"):
        order.check(sample.outcome(1))


def test_an_outcome_is_of_its_calls_task(sample: ModuleType) -> None:
    order = Sequence()
    _feed(order, sample.call(1, task="mine"))
    with pytest.raises(RunnerError, match="another task"):
        order.check(sample.outcome(1, task="theirs"))


def test_no_id_comes_twice_however_long_ago(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "REMEMBERED", 8)
    order = Sequence()
    numbers = [5, 3, 4, 9, 7, 8, 6, 12, 11, 10, *range(13, 40)]
    for number in numbers:
        _feed(order, sample.call(number, planned=False))
    for number in numbers:
        with pytest.raises(RunnerError, match="call id"):
            order.check(sample.call(number, planned=False))
    _feed(order, sample.call(40, planned=False))
    assert len(order._remembered) == len(order._order) == 8


def test_an_id_late_by_less_than_the_memory_is_taken(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "REMEMBERED", 8)
    order = Sequence()
    for number in (10, 11, 12, 13, 14, 15, 16):
        _feed(order, sample.call(number, planned=False))
    order.check(sample.call(2, planned=False))


def test_after_a_restart_every_older_id_is_known(sample: ModuleType) -> None:
    order = Sequence(State(newest="c00000009", open={"c00000004": (3, "t")}))
    with pytest.raises(RunnerError):
        order.check(sample.call(9, planned=False))
    order.check(sample.call(10, planned=False))
    _feed(order, sample.outcome(4))
    with pytest.raises(RunnerError):
        order.check(sample.outcome(4))


def test_ids_have_a_length(sample: ModuleType) -> None:
    import msgspec

    for name in ("", "x" * 129):
        with pytest.raises(RunnerError, match="characters"):
            Sequence().check(msgspec.structs.replace(sample.call(1), call=name))
