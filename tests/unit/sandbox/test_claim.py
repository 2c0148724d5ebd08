"""One sandbox per task, whatever meets: two first calls, an end, a loss, an engine that is gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.model import SandboxPlan
from runner.sandbox.claim import Claims
from runner.wire import guest

READY = guest.pack_json(guest.READY, 0, guest.Ready(landlock=7, scoped=True, uid=1))


class Engine:
    """Makes control connections whose other end the test holds."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.destroyed: list[str] = []
        self.peers: dict[str, socket.socket] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.first = READY
        self.refusal: RunnerError | None = None
        self.maximum = 64
        self.disks: set[str] = set()
        self.removed: list[str] = []

    async def keep_disks(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(task for task in tasks if task in self.disks)

    async def remove_disk(self, task: str) -> None:
        self.removed.append(task)

    async def create(self, plan: SandboxPlan) -> Any:
        self.created.append(plan.sandbox)
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        if len(self.peers) >= self.maximum:
            raise refuse("busy", "full")
        ours, theirs = socket.socketpair()
        theirs.send(self.first)
        self.peers[plan.sandbox] = theirs
        return None, ours.detach()

    async def destroy(self, sandbox: str, reason: str) -> None:
        self.destroyed.append(sandbox)
        await asyncio.sleep(0.01)
        if sandbox in self.peers:
            self.peers.pop(sandbox).close()


class Journal:
    def __init__(self) -> None:
        self.written: list[Any] = []

    def stamp(self) -> str:
        return "now"

    async def write(self, entry: Any) -> None:
        await asyncio.sleep(0)
        self.written.append(entry)

    def ends(self) -> list[str]:
        return [entry.sandbox for entry in self.written if isinstance(entry, entries.SandboxEnd)]


ISOLATION: Any = None
PROFILE: Any = SimpleNamespace(
    digest="d", name="p", tools=(), workspace_kind="memory", ceilings=SimpleNamespace(concurrent_calls=4)
)


class House:
    def __init__(self, start_s: float = 5, spares: int = 0) -> None:
        self.engine, self.journal = Engine(), Journal()
        names = iter(f"s{number}" for number in range(100))
        self.claims = Claims(
            self.engine,
            self.journal,
            describe=lambda _: ISOLATION,
            new_sandbox=lambda: next(names),
            start_s=start_s,
            spares=spares,
        )

    def plan(self, task: str = "t") -> SandboxPlan:
        return SandboxPlan(sandbox=self.claims.name_for(task, PROFILE), task=task, profile="p", profile_digest="d")

    async def settled(self) -> None:
        while self.claims._ending:
            await asyncio.sleep(0.005)


def on_loop(work: Callable[[House], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        house = House(**options)
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        await asyncio.wait_for(work(house), 10)
        await house.claims.close("over", 5)
        await asyncio.sleep(0.02)
        for peer in house.engine.peers.values():
            peer.close()
        assert not problems

    asyncio.run(run())


def test_two_first_calls_share_the_sandbox_that_both_their_plans_name() -> None:
    async def work(house: House) -> None:
        one, two = house.plan(), house.plan()
        assert one.sandbox == two.sandbox
        first, second = await asyncio.gather(house.claims.claim(one, 4), house.claims.claim(two, 4))
        assert first is second
        assert house.claims.opened(one) is first
        assert house.engine.created == ["s0"]
        assert house.claims.count == 1

    on_loop(work)


def test_a_lost_sandbox_is_ended_once_and_a_plan_for_it_runs_nowhere_else() -> None:
    async def work(house: House) -> None:
        old = house.plan()
        await house.claims.claim(old, 4)
        house.engine.peers["s0"].close()
        while house.claims.sandbox_of("t"):
            await asyncio.sleep(0.005)
        with pytest.raises(RunnerError) as refused:
            await house.claims.claim(old, 4)
        assert refused.value.refused.retryable
        assert (await house.claims.claim(house.plan(), 4)).id == "s1"
        await house.settled()
        assert house.journal.ends() == ["s0"]

    on_loop(work)


def test_a_dropped_sandbox_has_its_end_written_though_whoever_dropped_it_is_gone() -> None:
    async def work(house: House) -> None:
        sandbox = await house.claims.claim(house.plan(), 4)
        house.claims.drop(sandbox, "t", "it does not obey")
        house.claims.drop(sandbox, "t", "twice")
        await house.settled()
        assert (house.engine.destroyed, house.journal.ends()) == (["s0"], ["s0"])
        assert sandbox.lost

    on_loop(work)


def test_a_release_during_the_opening_ends_what_was_opened() -> None:
    async def work(house: House) -> None:
        house.engine.gate.clear()
        claiming = asyncio.ensure_future(house.claims.claim(house.plan(), 4))
        await asyncio.sleep(0)
        releasing = asyncio.ensure_future(house.claims.release("t", "over"))
        await asyncio.sleep(0)
        house.engine.gate.set()
        await asyncio.gather(claiming, releasing)
        assert house.journal.ends() == ["s0"]
        await house.claims.release("t", "again")

    on_loop(work)


def test_a_waiter_that_is_cancelled_leaves_the_opening_to_the_others() -> None:
    async def work(house: House) -> None:
        house.engine.gate.clear()
        first, second = (asyncio.ensure_future(house.claims.claim(house.plan(), 4)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        house.engine.gate.set()
        assert (await second).id == "s0"

    on_loop(work)


def test_an_opening_that_fails_with_nobody_waiting_is_forgotten() -> None:
    async def work(house: House) -> None:
        house.engine.gate.clear()
        house.engine.refusal = refuse("busy", "full")
        waiting = asyncio.ensure_future(house.claims.claim(house.plan(), 4))
        await asyncio.sleep(0)
        waiting.cancel()
        house.engine.gate.set()
        await asyncio.sleep(0.02)
        assert house.claims.count == 0
        house.engine.refusal = None
        assert (await house.claims.claim(house.plan(), 4)).id == "s1"

    on_loop(work)


def test_a_sandbox_that_does_not_open_is_destroyed() -> None:
    async def work(house: House) -> None:
        house.engine.first = guest.pack_json(guest.READY, 0, guest.Ready(landlock=0, scoped=False, uid=1))
        with pytest.raises(RunnerError):
            await house.claims.claim(house.plan(), 4)
        assert house.engine.destroyed == ["s0"]
        assert house.journal.written == []

    on_loop(work)


def test_an_engine_that_does_not_answer_is_not_waited_for() -> None:
    async def work(house: House) -> None:
        house.engine.gate.clear()
        with pytest.raises(RunnerError) as refused:
            await house.claims.claim(house.plan(), 4)
        assert refused.value.refused.code == "unavailable"

    on_loop(work, start_s=0.05)


def test_a_lost_engine_closes_every_sandbox_and_those_that_open_meanwhile() -> None:
    async def work(house: House) -> None:
        sandbox = await house.claims.claim(house.plan(), 4)
        house.engine.gate.clear()
        opening = asyncio.ensure_future(house.claims.claim(house.plan("u"), 4))
        while len(house.engine.created) < 2:
            await asyncio.sleep(0)
        house.claims.engine_lost()
        assert sandbox.lost
        house.engine.gate.set()
        with pytest.raises(RunnerError):
            await opening
        with pytest.raises(RunnerError) as refused:
            await house.claims.claim(house.plan(), 4)
        assert "restarted" in refused.value.refused.reason
        await house.settled()
        assert sorted(house.journal.ends()) == ["s0", "s1"]

    on_loop(work)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_spare_is_claimed_by_the_plan_that_named_it_and_recorded_only_then() -> None:
    async def work(house: House) -> None:
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        assert house.journal.written == []
        plan = house.plan()
        assert (plan.sandbox, house.claims.spares) == ("s0", 0)
        assert (await house.claims.claim(plan, 4)).id == "s0"
        assert [entry.sandbox for entry in house.journal.written] == ["s0"]
        await until(lambda: house.claims.spares == 1)
        assert house.engine.created == ["s0", "s1"]
        await house.claims.release("t", "over")
        assert house.journal.ends() == ["s0"]

    on_loop(work, spares=1)


def test_a_spare_that_was_named_and_never_used_is_a_spare_again() -> None:
    async def work(house: House) -> None:
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        house.plan()
        await house.claims.release("t", "over")
        assert house.claims.spares == 1
        assert house.plan("u").sandbox == "s0"

    on_loop(work, spares=1)


def test_a_spare_lost_between_plan_and_claim_runs_nothing() -> None:
    async def work(house: House) -> None:
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        plan = house.plan()
        house.engine.peers["s0"].close()
        await until(lambda: "s0" in house.engine.destroyed)
        with pytest.raises(RunnerError) as refused:
            await house.claims.claim(plan, 4)
        assert refused.value.refused.retryable
        assert (await house.claims.claim(house.plan(), 4)).id == "s1"

    on_loop(work, spares=1)


def test_a_spare_of_another_catalogue_is_not_used() -> None:
    async def work(house: House) -> None:
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        named = house.plan()
        with pytest.raises(RunnerError) as refused:
            await house.claims.claim(msgspec.structs.replace(named, profile_digest="e"), 4)
        assert refused.value.refused.retryable
        house.claims.stock({}, {}, {})
        await house.settled()
        assert (house.claims.spares, house.engine.destroyed) == (0, ["s0"])

    on_loop(work, spares=1)


def test_a_spare_gives_its_place_to_a_task() -> None:
    async def work(house: House) -> None:
        house.engine.maximum = 1
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        other: Any = SimpleNamespace(**{**vars(PROFILE), "digest": "o"})
        plan = SandboxPlan(sandbox=house.claims.name_for("t", other), task="t", profile="o", profile_digest="o")
        assert (await house.claims.claim(plan, 4)).id == "s1"
        assert house.engine.destroyed == ["s0"]
        assert house.claims.spares == 0

    on_loop(work, spares=1)


def test_a_lost_engine_takes_the_spares_and_its_successor_brings_new_ones() -> None:
    async def work(house: House) -> None:
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        house.claims.engine_lost()
        assert house.claims.spares == 0
        house.claims.engine = house.engine
        house.claims.stock({"p": PROFILE}, {}, {})
        await until(lambda: house.claims.spares == 1)
        assert house.engine.created == ["s0", "s1"]

    on_loop(work, spares=1)


def test_a_disk_outlives_its_sandbox_and_goes_with_its_task() -> None:
    async def work(house: House) -> None:
        await house.claims.claim(house.plan(), 4, disk=True)
        assert house.claims.has_disk("t")
        house.engine.peers["s0"].close()
        while house.claims.sandbox_of("t"):
            await asyncio.sleep(0.005)
        assert house.claims.has_disk("t")
        assert house.engine.removed == []
        await house.claims.claim(house.plan("u"), 4)
        await house.claims.release("u", "over")
        await house.claims.release("t", "over")
        await house.claims.release("t", "again")
        assert house.engine.removed == ["t"]  # once, and only for the task that had one
        assert not house.claims.has_disk("t")

    on_loop(work)


def test_a_disk_that_was_asked_for_is_removed_even_when_no_answer_came() -> None:
    async def work(house: House) -> None:
        house.engine.refusal = refuse("unavailable", "no")
        with pytest.raises(RunnerError):
            await house.claims.claim(house.plan(), 4, disk=True)
        await house.claims.release("t", "over")
        assert house.engine.removed == ["t"]

    on_loop(work)


def test_what_a_fresh_engine_still_has_is_what_counts() -> None:
    async def work(house: House) -> None:
        for task in ("kept", "lost"):
            await house.claims.claim(house.plan(task), 4, disk=True)
        house.engine.disks = {"kept", "found"}
        await house.claims.keep_disks(["kept", "lost", "found"])
        assert [task for task in ("kept", "lost", "found") if house.claims.has_disk(task)] == ["kept", "found"]
        house.claims.engine = None
        await house.claims.keep_disks([])
        assert house.claims.has_disk("kept")

    on_loop(work)
