"""A task's life under races: beginnings and ends that meet, and an end that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError, refusal
from runner.gate.calls import Calls, Running
from runner.gate.context import Context
from runner.gate.tasks import Task, Tasks
from runner.ledger import entry as entries
from runner.model import Principal

WHO = Principal(agent="a", owner="o", task="t", session="s")


class Journal:
    """A ledger that takes its time: entries are there when `gate` is open."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def stamp(self) -> str:
        return "now"

    async def write(self, entry: Any, *, sync: bool = False) -> None:
        await self.gate.wait()
        self.written.append(entry)

    def kinds(self) -> list[str]:
        return [type(entry).__name__ for entry in self.written]


class State:
    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def task(self, task: str) -> Any:
        return self.known.get(task)

    def token_expires(self, jti: str) -> int:
        return 1000


class Sandboxes:
    def __init__(self) -> None:
        self.released: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.names: dict[str, str] = {}
        self.disks: set[str] = set()

    def has_disk(self, task: str) -> bool:
        return task in self.disks

    def sandbox_of(self, task: str) -> str:
        return self.names.get(task, "")

    async def release(self, task: str, reason: str) -> None:
        await self.gate.wait()
        self.released.append(task)


class House:
    def __init__(self, maximum: int = 2) -> None:
        self.journal, self.state, self.sandboxes, self.time = Journal(), State(), Sandboxes(), 0.0
        self.calls = Calls(keep_calls=9, keep_bytes=9, keep_s=9, clock=lambda: self.time)
        parts: Any = (self.journal, self.state, self.calls, self.sandboxes)
        self.tasks = Tasks(*parts, maximum=maximum, clock=lambda: self.time)

    def join(self, task: str = "t", token: str = "root") -> Task:
        who = Principal(agent="a", owner="o", task=task, session="s")
        return self.tasks.join(who, token=token, profile="p")

    def running(self, call: str = "c") -> Running:
        reply: Any = SimpleNamespace(hasten=lambda: None)
        made = Running(call, "t", "tool", reply=reply, window=1, client=1, detach=False, sync=False)
        self.calls.add(made)
        return made


def on_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(work(), 10)

    asyncio.run(run())


def test_two_first_calls_write_one_beginning() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        await asyncio.gather(*(house.tasks.begin(task) for _ in range(5)))
        assert house.journal.kinds() == ["TaskBegin"]

    on_loop(work)


def test_an_end_that_meets_a_beginning_comes_after_it() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        house.journal.gate.clear()
        beginning = asyncio.ensure_future(house.tasks.begin(task))
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(house.tasks.end("t", "why", by=3))
        await asyncio.sleep(0)
        house.journal.gate.set()
        await asyncio.gather(beginning, ending)
        assert house.journal.kinds() == ["TaskBegin", "TaskEnd"]

    on_loop(work)


def test_no_beginning_comes_after_an_end() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        await house.tasks.end("t", "why")
        with pytest.raises(RunnerError) as refused:
            await house.tasks.begin(task)
        assert refused.value.refused.code == "task_ended"
        assert house.journal.written == []

    on_loop(work)


def test_an_end_kills_calls_waits_for_their_seal_and_tells() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        await house.tasks.begin(task)
        call = house.running()
        told: list[tuple[str, str]] = []

        async def tell(task_id: str, reason: str) -> None:
            told.append((task_id, reason))

        house.tasks.on_end.append(tell)
        ending = asyncio.ensure_future(house.tasks.end("t", "why"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert call.cancelled is not None
        assert not ending.done()
        assert await house.tasks.end("t", "again") == 0
        with pytest.raises(RunnerError):
            house.join()
        call.finish(refusal("internal", "x"))
        assert await ending == 1
        assert told == [("t", "why")]
        assert house.sandboxes.released == ["t"]
        assert not house.tasks.live

    on_loop(work)


def test_the_sweep_does_not_wait_for_ends_that_take_long() -> None:
    async def work() -> None:
        house = House()
        house.sandboxes.gate.clear()
        for name in ("t", "u"):
            await house.tasks.begin(house.join(name))
        await asyncio.wait_for(house.tasks.sweep(2000, lambda _: 60), 1)
        assert all(task.ending == "the token expired" for task in house.tasks.live.values())
        house.sandboxes.gate.set()
        while house.tasks.live:
            await asyncio.sleep(0)
        assert house.journal.kinds() == ["TaskBegin", "TaskBegin", "TaskEnd", "TaskEnd"]

    on_loop(work)


def test_idle_tasks_end_and_busy_ones_do_not() -> None:
    async def work() -> None:
        house = House()
        await house.tasks.begin(house.join())
        call = house.running()
        house.time = 61
        await house.tasks.sweep(0, lambda _: 60)
        assert house.tasks.live
        house.calls.over(call, keep=False)
        await house.tasks.sweep(0, lambda _: 60)
        while house.tasks.live:
            await asyncio.sleep(0)

    on_loop(work)


def test_a_task_belongs_to_one_root_token_and_is_forgotten_when_it_never_began() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        with pytest.raises(RunnerError) as refused:
            house.join(token="other")
        assert refused.value.refused.code == "unauthenticated"
        house.tasks.leave(task)
        assert not house.tasks.live
        house.state.known["t"] = SimpleNamespace(token="root", ended="", reason="")
        with pytest.raises(RunnerError):
            house.join(token="other")
        assert house.join().begun
        house.state.known["u"] = SimpleNamespace(token="root", ended="then", reason="over")
        with pytest.raises(RunnerError) as refused:
            house.join("u")
        assert refused.value.refused.code == "task_ended"
        house.join("v")
        with pytest.raises(RunnerError) as refused:
            house.join("w")
        assert refused.value.refused.code == "busy"

    on_loop(work)


def test_a_workspace_is_lost_while_a_task_that_began_has_no_sandbox() -> None:
    async def work() -> None:
        house = House()
        task = house.join()
        assert not house.tasks.workspace_lost(task)
        await house.tasks.begin(task)
        house.sandboxes.names["t"] = "s1"
        assert not house.tasks.workspace_lost(task)
        del house.sandboxes.names["t"]
        assert house.tasks.workspace_lost(task)
        house.sandboxes.disks.add("t")
        assert not house.tasks.workspace_lost(task)

    on_loop(work)


def test_a_remembered_task_expires_and_idles_like_one_that_joined() -> None:
    async def work() -> None:
        house = House()
        who = Principal(agent="a", owner="o", task="old", session="s")
        house.tasks.remember(who, token="root", profile="p")
        assert house.join("old").begun
        with pytest.raises(RunnerError):
            house.join("old", token="other")
        house.tasks.leave(house.tasks.live["old"])
        house.time = 50.0
        await house.tasks.sweep(0, lambda _: 60)
        assert "old" in house.tasks.live
        house.time = 111.0
        await house.tasks.sweep(0, lambda _: 60)
        await _ended(house, "old")
        assert [entry.task for entry in house.journal.written if isinstance(entry, entries.TaskEnd)] == ["old"]
        assert house.sandboxes.released == ["old"]

    on_loop(work)


async def _ended(house: House, task: str) -> None:
    while task in house.tasks.live:
        await asyncio.sleep(0)


def test_a_task_of_an_earlier_run_is_ended_in_the_ledger_too() -> None:
    async def work() -> None:
        house = House()
        house.state.known["old"] = SimpleNamespace(token="root", ended="", reason="")
        assert await house.tasks.end("old", "why", by=0) == 0
        assert [entry.task for entry in house.journal.written if isinstance(entry, entries.TaskEnd)] == ["old"]
        assert await house.tasks.end("never was", "why") == 0

    on_loop(work)


def test_context_counts_decisions_and_what_reached_the_agent() -> None:
    context = Context()
    context.decided("a", allowed=True)
    context.delivered("c1")
    context.delivered("c1")
    assert context.decided("b", allowed=False) == ("c1",)
    assert context.decided("b", allowed=True) == ()
    view = context.view("asked", 1)
    assert (view.calls, view.denied, view.tools, view.untrusted, view.depth) == (2, 1, ("a", "b"), 1, 1)
    for number in range(1000):
        context.delivered(f"d{number}")
    assert len(context.decided("a", allowed=True)) == 32
