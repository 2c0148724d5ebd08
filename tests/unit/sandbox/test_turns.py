"""Turns: a few at once, owner after owner, and none lost to a cancel."""

from __future__ import annotations

import asyncio

from runner.sandbox.turns import Turns


def test_owners_take_turns_however_many_one_of_them_asks_for() -> None:
    async def work() -> None:
        turns, order, inside = Turns(2), list[str](), [0]
        gate = asyncio.Event()

        async def make(name: str) -> None:
            async with turns.of(name[0]):
                inside[0] += 1
                assert inside[0] <= 2
                order.append(name)
                await gate.wait()
                await asyncio.sleep(0)
                inside[0] -= 1

        names = [f"a{number}" for number in range(8)] + ["b0", "b1", "c0"]
        tasks = []
        for name in names:
            tasks.append(asyncio.ensure_future(make(name)))
            await asyncio.sleep(0)
        assert order == ["a0", "a1"]
        assert turns.waiting == 9
        gate.set()
        await asyncio.gather(*tasks)
        assert order == ["a0", "a1", "a2", "b0", "c0", "a3", "b1", "a4", "a5", "a6", "a7"]
        assert turns.waiting == 0

    asyncio.run(work())


def test_who_leaves_the_line_takes_no_turn_and_loses_none() -> None:
    async def work() -> None:
        turns = Turns(1)
        entered = asyncio.Event()

        async def hold() -> None:
            async with turns.of("a"):
                entered.set()
                await asyncio.sleep(3600)

        first = asyncio.ensure_future(hold())
        await entered.wait()
        entered.clear()
        waiting = [asyncio.ensure_future(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        first.cancel()
        waiting[0].cancel()  # in the moment in which it gets the turn
        await asyncio.wait_for(entered.wait(), 10)
        assert turns.waiting == 0
        assert not waiting[2].done()
        waiting[2].cancel()
        await asyncio.wait([first, *waiting])
        async with asyncio.timeout(10), turns.of("b"):
            pass

    asyncio.run(work())
