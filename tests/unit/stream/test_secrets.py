"""What a task was given is known until it ends, and no further than what is searched for can grow."""

from __future__ import annotations

import pytest

from runner.errors import RunnerError
from runner.stream.exact import find
from runner.stream.secrets import KEPT_DEAD, MAX_VALUES, Secrets
from runner.stream.tasks import Filters


def value(number: int) -> bytes:
    return f"value-number-{number:05}".encode()


def test_a_value_is_known_from_its_delivery_to_the_end_of_the_task() -> None:
    secrets = Secrets()
    assert not find(secrets.needles, value(1))
    secrets.hold("c1", "key", (value(1), value(2)), lasting=True)
    held = secrets.needles
    secrets.hold("c2", "key", (value(1),), lasting=True)
    assert secrets.needles is held, "the same is compiled once"
    secrets.over("c1")
    secrets.over("c2")
    assert [each.rule for each in find(secrets.needles, value(1) + b" " + value(2))] == ["secret:key", "secret:key"]
    secrets.wipe()
    assert not find(secrets.needles, value(1))
    assert not secrets.values()


def test_of_values_that_are_dead_the_newest_are_known_and_every_one_of_a_call_that_lives() -> None:
    secrets = Secrets()
    secrets.hold("lives", "dynamic", (value(0),), lasting=False)
    for number in range(1, KEPT_DEAD + 3):
        secrets.hold(f"c{number}", "dynamic", (value(number),), lasting=False)
        secrets.over(f"c{number}")
    known = {value for _, value in secrets.values()}
    assert known == {value(0), *(value(number) for number in range(3, KEPT_DEAD + 3))}
    assert find(secrets.needles, value(0))
    assert not find(secrets.needles, value(1))
    assert find(secrets.needles, value(3))


def test_a_value_that_comes_back_is_not_the_next_to_be_forgotten() -> None:
    secrets = Secrets()
    secrets.hold("c", "dynamic", (value(0),), lasting=False)
    secrets.over("c")
    secrets.hold("again", "dynamic", (value(0),), lasting=False)
    for number in range(1, KEPT_DEAD + 2):
        secrets.hold(f"c{number}", "dynamic", (value(number),), lasting=False)
        secrets.over(f"c{number}")
    assert ("dynamic", value(0)) in secrets.values()


@pytest.mark.parametrize("bad", [b"sh0rt", b"a" * 40, b"  \n  abc \n    "])
def test_what_could_not_be_told_from_text_is_refused_and_not_shown(bad: bytes) -> None:
    """K06."""
    secrets = Secrets()
    before = secrets.needles
    with pytest.raises(RunnerError) as refused:
        secrets.hold("c", "key", (value(1), bad), lasting=True)
    assert refused.value.refused.code == "unavailable"
    assert bad.decode().strip() not in refused.value.refused.line()
    assert secrets.needles is before
    assert not secrets.values()


def test_too_many_are_refused_and_those_before_stay_known() -> None:
    secrets = Secrets()
    secrets.hold("c", "many", tuple(map(value, range(MAX_VALUES))), lasting=True)
    with pytest.raises(RunnerError, match="different secrets"):
        secrets.hold("c", "one-more", (value(MAX_VALUES),), lasting=True)
    secrets.hold("c", "many", (value(0),), lasting=True)
    assert len(secrets.values()) == MAX_VALUES
    assert find(secrets.needles, value(MAX_VALUES - 1))
    assert not find(secrets.needles, value(MAX_VALUES))


def test_a_canary_is_one_for_the_whole_task() -> None:
    secrets = Secrets()
    fresh = iter(["rnr-first-canary-value", "rnr-second-canary-value"])
    assert secrets.canary(lambda: next(fresh)) == secrets.canary(lambda: next(fresh)) == "rnr-first-canary-value"
    (found,) = find(secrets.needles, b"CANARY=rnr-first-canary-value\n")
    assert found.rule == "secret:canary"


def test_tasks_do_not_know_each_others_and_nothing_is_left_of_one_that_ended() -> None:
    keys = iter(bytes([number]) * 32 for number in range(9))
    filters = Filters(lambda: next(keys))
    filters.secrets("one").hold("c", "key", (value(1),), lasting=True)
    assert find(filters.secrets("one").needles, value(1))
    assert not find(filters.secrets("two").needles, value(1))
    held = filters.secrets("one")

    async def end() -> None:
        await filters.task_ended("one", "a test")
        await filters.task_ended("one", "again")

    with pytest.raises(StopIteration):
        end().send(None)
    assert not held.values()
    assert not find(filters.secrets("one").needles, value(1))
