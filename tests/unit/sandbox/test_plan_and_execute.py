"""Plans that only narrow, and a call whose guest, client or sandbox does not behave."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError, refuse
from runner.model import Ceilings, Outcome, TaskProfile
from runner.sandbox import plan as plans
from runner.sandbox.execute import Execution, Executor, broken, never
from runner.sandbox.lease import Lease


def test_numbers_are_the_least_of_what_is_stated() -> None:
    assert plans._least(10, 0, 5, 7) == 5
    assert plans._least(10, 0) == 10
    assert plans._least(10, 99) == 10


@pytest.mark.parametrize("value", [True, {"a": 1}, "a\0b"])
def test_what_is_no_word_of_a_command_line_is_refused(value: Any) -> None:
    manifest: Any = SimpleNamespace(argv=("run", "{words}", "{one}"))
    assert plans._argv(manifest, {"words": ["a b", 1, 2.5], "one": "x"}) == ("run", "a b", "1", "2.5", "x")
    with pytest.raises(RunnerError) as refused:
        plans._argv(manifest, {"words": ["a", value]})
    assert refused.value.refused.field == "words"
    nothing: Any = SimpleNamespace(argv=("{words}",))
    for empty in ([], [""]):
        with pytest.raises(RunnerError):
            plans._argv(nothing, {"words": empty})


def test_an_end_before_the_start_says_whether_a_retry_is_safe() -> None:
    full = never(refuse("busy", "64 sandboxes live").refused, None)
    assert (full.outcome.kind, full.refused and full.refused.code) == ("unavailable", "busy")
    odd = never(refuse("internal", "exists already").refused, None)
    assert odd.refused is not None
    assert odd.refused.code == "unavailable"
    cancelled = never(refuse("unavailable", "x").refused, ("killed", "the task ended"))
    assert cancelled.refused is None
    assert cancelled.outcome == Outcome(kind="killed", reason="the task ended, before its process existed")
    assert broken(ValueError("secret"), None).outcome.kind == "interrupted"
    assert "secret" not in broken(ValueError("secret"), None).outcome.reason


class Guest:
    def __init__(self) -> None:
        self.over, self.fault, self.walls, self.cancelled = False, None, (), list[str]()

    def cancel(self, kind: Any) -> None:
        self.cancelled.append(kind)


NO_SNAPSHOTS: Any = SimpleNamespace(begin=lambda plan, profile, sandbox: None)


class Claims:
    def __init__(self, sandbox: Any = None) -> None:
        self.dropped: list[str] = []
        self.sandbox = sandbox
        self.waiting = asyncio.Event()

    def drop(self, sandbox: Any, task: str, reason: str) -> None:
        self.dropped.append(reason)

    def opened(self, plan: Any) -> None:
        return None

    async def claim(self, plan: Any, concurrent: int, *, disk: bool = False) -> Any:
        await self.waiting.wait()
        return self.sandbox


class Running:
    cancelled: Any = None

    def __init__(self) -> None:
        self.hastened = 0
        self.work: Any = None

    def hasten(self) -> None:
        self.hastened += 1

    def starts(self, work: Any) -> None:
        self.work = work


def executing(wall_ms: int = 10) -> tuple[Execution, Guest, Claims, Running, asyncio.Semaphore]:
    guest, claims, running, slots = Guest(), Claims(), Running(), asyncio.Semaphore(0)
    parts: Any = (
        guest,
        SimpleNamespace(slots=slots),
        SimpleNamespace(wall_ms=wall_ms),
        SimpleNamespace(kind="argv"),
        claims,
    )
    more: Any = running
    return Execution(*parts, "t", more, 0.02), guest, claims, running, slots


def test_a_guest_that_does_not_end_a_call_loses_its_sandbox_after_the_client_was_let_go() -> None:
    async def run() -> None:
        execution, guest, claims, running, slots = executing()
        async with execution:
            await asyncio.sleep(0.2)
            assert running.hastened == 1
            assert len(claims.dropped) == 1
            guest.over = True
            ended = execution.ended(Outcome(kind="interrupted", reason="gone"), None, None)
            assert ended.outcome.kind == "timed_out"
        assert not slots.locked()

    asyncio.run(run())


def test_a_guest_that_has_ended_the_call_keeps_its_sandbox_however_late_gate_is() -> None:
    async def run() -> None:
        execution, guest, claims, running, _ = executing()
        async with execution:
            guest.over = True
            await asyncio.sleep(0.2)
        assert running.hastened == 1
        assert claims.dropped == []

    asyncio.run(run())


def test_a_cancel_gives_the_guest_its_grace_and_no_more() -> None:
    async def run() -> None:
        execution, guest, claims, _, _ = executing(wall_ms=60_000)
        execution.cancel("killed")
        async with execution:
            await asyncio.sleep(0.2)
            assert guest.cancelled == ["killed"]
            assert len(claims.dropped) == 1
            guest.over = True
            ended = execution.ended(Outcome(kind="interrupted", reason="gone"), ("killed", "why"), None)
            assert ended.outcome == Outcome(kind="killed", reason="why")

    asyncio.run(run())


def test_a_call_that_gate_loses_hold_of_does_not_run_on() -> None:
    async def run() -> None:
        execution, _, claims, _, slots = executing(wall_ms=60_000)
        with pytest.raises(ValueError, match="defect"):
            async with execution:
                raise ValueError("a defect")
        assert claims.dropped == ["a call was lost hold of"]
        assert not slots.locked()

    asyncio.run(run())


def test_a_cancel_ends_the_wait_for_a_slot_and_leaks_none() -> None:
    async def run() -> None:
        slots = asyncio.Semaphore(1)
        await slots.acquire()
        claims: Any = Claims(SimpleNamespace(slots=slots))
        claims.waiting.set()
        running: Any = Running()
        profile = TaskProfile(name="p", description="", digest="d", image="", seccomp="", ceilings=Ceilings(), tools=())
        parts: Any = (SimpleNamespace(sandbox="s"), "t", profile, SimpleNamespace(), running, Lease())
        nothing: Any = None
        starting = asyncio.ensure_future(Executor(claims, NO_SNAPSHOTS, nothing, grace_s=1).start(*parts))
        await asyncio.sleep(0.01)
        running.cancelled = ("cancelled", "why")
        running.work.cancel()
        with pytest.raises(RunnerError) as refused:
            await starting
        assert refused.value.refused.reason == "why"
        slots.release()
        await asyncio.wait_for(slots.acquire(), 1)

    asyncio.run(run())
