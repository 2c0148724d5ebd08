"""The order of a call's entries, as the table says, for calls that were never seen, are open, or are over."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import get_args

import msgspec
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


def test_a_request_is_of_an_open_call_and_ends_once(sample: ModuleType) -> None:
    order = Sequence()
    _feed(order, sample.call(1), sample.egress(1, 1), sample.egress(1, 2), sample.egress_end(1, 2))
    _feed(order, sample.alert(1), sample.egress(1, 3, effect="deny"), sample.egress_end(1, 1), sample.egress(1, 4))
    _feed(order, sample.egress(1, 4, effect="deny"), sample.egress_end(1, 4))  # its address was found to be closed
    _feed(order, sample.egress(1, 5), sample.outcome(1))  # nobody knows what became of it


@pytest.mark.parametrize("before", ["nothing", "denied", "over"])
@pytest.mark.parametrize("kind", ["egress", "egress_end", "alert"])
def test_nothing_is_of_a_call_that_is_not_open(sample: ModuleType, kind: str, before: str) -> None:
    order = Sequence()
    if before == "denied":
        _feed(order, sample.call(1, effect="deny", planned=False))
    elif before == "over":
        _feed(order, sample.call(1), sample.egress(1), sample.outcome(1))
    with pytest.raises(RunnerError, match="not open"):
        order.check(getattr(sample, kind)(1))


@pytest.mark.parametrize("kind", ["egress", "egress_end", "alert"])
def test_what_a_call_did_is_of_its_task(sample: ModuleType, kind: str) -> None:
    order = Sequence()
    _feed(order, sample.call(1, task="mine"), sample.egress(1, task="mine"))
    with pytest.raises(RunnerError, match="another task"):
        order.check(getattr(sample, kind)(1, task="theirs"))


def test_an_end_follows_what_was_allowed_and_no_more_than_once(sample: ModuleType) -> None:
    order = Sequence()
    _feed(order, sample.call(1), sample.call(2), sample.egress(1, 1), sample.egress(1, 2, effect="deny"))
    for wrong in (sample.egress_end(1, 2), sample.egress_end(1, 3), sample.egress_end(2, 1)):
        with pytest.raises(RunnerError, match="not allowed"):
            order.check(wrong)
    with pytest.raises(RunnerError, match="in use"):
        order.check(sample.egress(1, 1))
    _feed(order, sample.egress_end(1, 1))
    with pytest.raises(RunnerError, match="its end already"):
        order.check(sample.egress_end(1, 1))


def test_an_order_that_begins_amid_a_call_does_not_know_what_it_had_asked_for(sample: ModuleType) -> None:
    order = Sequence()
    _feed(order, sample.call(1), sample.egress(1))
    later = Sequence(order.state)
    _feed(later, sample.egress_end(1), sample.call(2))
    with pytest.raises(RunnerError, match="not allowed"):
        later.check(sample.egress_end(2))


def test_what_the_daemon_did_itself_is_of_no_call(sample: ModuleType) -> None:
    order = Sequence()
    own = {"call": "daemon:broker", "task": ""}
    _feed(
        order, sample.egress(0, **own), sample.egress(0, **own), sample.egress_end(0, 7, **own), sample.alert(0, **own)
    )
    for wrong in ({"call": "daemon:", "task": ""}, {"call": "daemon:Broker", "task": ""}, {**own, "task": "t"}):
        for entry in (sample.egress(0, **wrong), sample.egress_end(0, **wrong), sample.alert(0, **wrong)):
            with pytest.raises(RunnerError, match="the daemon itself"):
                order.check(entry)
    named = msgspec.structs.replace(sample.call(1), call="daemon:broker")
    with pytest.raises(RunnerError, match="does not begin"):
        order.check(named)
