"""Which bound a refused call met, what it is told, and that a newcomer is let in beside whoever fills the daemon."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runner.config import Limits
from runner.errors import RunnerError
from runner.gate.calls import Calls, Running
from runner.gate.parts import Parts
from runner.gate.tasks import Tasks
from runner.model import Principal

DEFAULTS = Limits()


def _parts(now: list[float], **limits: int) -> Parts:
    nothing: Any = None
    return Parts(
        serving=nothing, authenticator=nothing, tasks=nothing, journal=nothing, requests=nothing, state=nothing,
        calls=Calls(keep_calls=10, keep_bytes=1000, keep_s=10, clock=lambda: now[0]),
        clock=SimpleNamespace(new_call=iter(range(10_000)).__next__, monotonic=lambda: now[0]),  # type: ignore[arg-type] # as much of one as is used
        limits=Limits(**limits),
    )  # fmt: skip


def _reserve(parts: Parts, task: str, proof: str = "proof") -> Running:
    asked = SimpleNamespace(proof=proof, window=1, detach=False, sync=False, idempotency_key="")
    proven: Any = SimpleNamespace(call=asked, principal=SimpleNamespace(task=task, asserted=()), tool="tool", chain=())
    reply: Any = SimpleNamespace(steers=lambda running: None, hasten=lambda: None)
    return parts.reserve(proven, reply)


def _busy(parts: Parts, task: str, proof: str = "proof") -> Any:
    with pytest.raises(RunnerError) as refused:
        _reserve(parts, task, proof)
    assert refused.value.refused.code == "busy"
    return refused.value.refused


def test_a_full_task_is_told_how_many_are_ahead_and_when_one_will_have_ended() -> None:
    async def work() -> None:
        now = [0.0]
        parts = _parts(now, calls_per_task=4)
        first, *_ = [_reserve(parts, "t") for _ in range(4)]
        refusal = _busy(parts, "t")
        assert refusal.reason == "4 calls of this task run or wait ahead of this one"
        assert refusal.allowed == "4 at a time"
        assert _reserve(parts, "u")
        now[0] = 2.0  # calls take two seconds: one of four ends every half
        parts.calls.over(first, keep=False)
        _reserve(parts, "t")
        assert _busy(parts, "t").retry_after_ms == 500

    asyncio.run(work())


def test_when_all_tasks_together_are_too_many_each_has_its_share() -> None:
    async def work() -> None:
        parts = _parts([0.0], calls=10)
        for _ in range(10):
            _reserve(parts, "greedy")
        assert "10 calls of all tasks" in _busy(parts, "greedy").reason
        for _ in range(5):  # ten between two
            _reserve(parts, "second")
        refusal = _busy(parts, "second")
        assert refusal.allowed == "5 at a time"
        assert "5 of them of this task" in refusal.reason
        for _ in range(3):
            _reserve(parts, "third")
        assert _busy(parts, "third")

    asyncio.run(work())


def test_what_a_task_holds_in_arguments_is_bounded_and_one_call_always_fits() -> None:
    async def work() -> None:
        parts = _parts([0.0], call_bytes_per_task=100)
        first = _reserve(parts, "t", "x" * 200)
        refusal = _busy(parts, "t")
        assert "200 bytes of arguments" in refusal.reason
        assert "stdin or files" in refusal.next_step
        assert _reserve(parts, "u", "x" * 60)
        parts.calls.over(first, keep=False)
        assert _reserve(parts, "t", "x" * 60)
        assert _busy(parts, "t", "x" * 60)
        assert _reserve(parts, "t", "x" * 40)

    asyncio.run(work())


def test_a_task_forgets_its_calls_one_by_one() -> None:
    async def work() -> None:
        parts = _parts([0.0])
        made = [_reserve(parts, task) for task in ("t", "t", "u")]
        assert parts.calls.tasks == 2
        assert [len(parts.calls.of_task(task)) for task in ("t", "u", "v")] == [2, 1, 0]
        for running in made:
            parts.calls.over(running, keep=False)
            parts.calls.over(running, keep=False)  # a second time does nothing
        assert parts.calls.tasks == 0
        assert not parts.calls.running

    asyncio.run(work())


def test_an_owner_has_as_many_tasks_as_it_may_and_another_still_begins() -> None:
    nothing: Any = None
    state: Any = SimpleNamespace(task=lambda task: None, token_expires=lambda jti: 0)
    tasks = Tasks(nothing, state, nothing, nothing, maximum=5, per_owner=2, clock=lambda: 0.0)

    def join(owner: str, task: str) -> None:
        tasks.join(Principal(agent="a", owner=owner, task=task, session="s"), token=task, profile="p")

    join("one", "t")
    join("one", "u")
    join("one", "u")  # again into its own
    with pytest.raises(RunnerError) as refused:
        join("one", "v")
    assert refused.value.refused.code == "busy"
    assert "owner one has 2 tasks" in refused.value.refused.reason
    assert refused.value.refused.allowed == "2 at a time"
    join("two", "v")


def test_beyond_its_first_calls_a_task_has_a_narrower_window_for_each() -> None:
    """What a client that never reads can have waiting in gate stays below 4 MiB (case S05)."""

    async def work() -> None:
        parts = _parts([0.0])
        most = DEFAULTS.calls_per_connection
        windows = []
        for running in [_reserve(parts, "t") for _ in range(most)]:
            running.hasten()  # the guest's credit is all that it may hold then
            windows.append(running.first_credit())
        assert windows[0] == DEFAULTS.output_window
        assert sum(windows) < 4 << 20
        assert _reserve(parts, "u")._window == DEFAULTS.output_window  # another task is not concerned

    asyncio.run(work())
