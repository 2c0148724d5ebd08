"""Output is paid for: never more than the rate allows, never lost, and without a clock's help nothing moves."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from runner.gate.calls import Running
from runner.gate.pace import Pace

WINDOW = 1000


class Guest:
    def __init__(self) -> None:
        self.granted = 0

    def credit(self, count: int) -> None:
        self.granted += count

    def cancel(self, kind: Any) -> None:
        pass


class Reply:
    gone = False

    def hasten(self) -> None:
        pass


@given(
    some.integers(1, 100_000),
    some.lists(some.tuples(some.floats(0, 3), some.integers(0, 5000)), max_size=60),
)
def test_no_more_is_spent_than_the_rate_allows(rate: int, asks: list[tuple[float, int]]) -> None:
    pace, now, spent = Pace(rate, WINDOW, 0.0), 0.0, 0
    for later, count in asks:
        now += later
        taken = min(count, pace.room(now))
        pace.spend(taken)
        spent += taken
        assert spent <= max(WINDOW, rate // 4) + now * rate + 1
        short = pace.wait(count)
        assert (short == 0) == (pace.room(now) >= count or short < 1e-9)


def test_a_pause_ends_when_there_is_room_for_what_was_asked() -> None:
    pace = Pace(1000, WINDOW, 0.0)
    pace.spend(1000)
    assert pace.room(0.0) == 0
    assert pace.wait(250) == 0.25
    assert pace.room(0.25) == 250
    assert pace.room(100.0) == 1000  # time alone makes it no fuller than full


def _running(clock: Any, rate: int, *, detach: bool = False) -> tuple[Running, Guest]:
    made = Running("c", "t", "tool", reply=Reply(), window=WINDOW, client=WINDOW, detach=detach, sync=False)  # type: ignore[arg-type] # as much of a reply as is asked
    made.planned(1 << 20, rate, clock)
    guest = Guest()
    guest.granted = made.first_credit()
    made.attach(guest)
    return made, guest


def test_a_call_that_is_too_fast_stands_still_until_its_clock_moves() -> None:
    async def work() -> None:
        now = [0.0]
        call, guest = _running(lambda: now[0], rate=2000)
        used = 0
        for _ in range(20):  # it uses what it is given at once, and its client gives everything back
            call.received(guest.granted - used)
            used = guest.granted
            call.credit(WINDOW)
        assert guest.granted == WINDOW  # the bucket held one window; the clock stands still
        for _ in range(50):
            now[0] += 0.25  # 500 bytes' worth, at most
            call.received(guest.granted - used)
            used = guest.granted
            call.credit(WINDOW)
            assert guest.granted <= WINDOW + now[0] * 2000
        assert guest.granted >= WINDOW + now[0] * 2000 - 2 * WINDOW  # paused, never starved

    asyncio.run(work())


def test_a_paused_call_goes_on_by_itself() -> None:
    async def work() -> None:
        call, guest = _running(asyncio.get_running_loop().time, rate=100_000)
        used = 0
        while guest.granted < 100_000:
            call.received(guest.granted - used)
            used = guest.granted
            call.credit(WINDOW)
            await asyncio.sleep(0.001)
        assert call._paused is not None or guest.granted >= 100_000

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_call_that_has_to_end_is_not_paced() -> None:
    async def work() -> None:
        call, guest = _running(lambda: 0.0, rate=1)
        call.received(WINDOW)
        call.credit(WINDOW)
        assert guest.granted == WINDOW
        call.cancel("killed", "why")
        assert guest.granted == 2 * WINDOW

    asyncio.run(work())
