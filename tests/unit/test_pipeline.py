"""The order of the path: recorded before it acts, sealed before it tells; and what each failing step becomes."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from runner import pipeline
from runner.errors import RunnerError, refuse
from runner.gate.calls import Calls, Finished, Running
from runner.ledger.escrow import Recipients, new_identity
from runner.model import Decision, FilterRule, Outcome, Receipt
from runner.pipeline import Pipeline
from runner.sandbox.connection import Piece, Value
from runner.sandbox.lease import Lease
from runner.stream.escrow import Escrows
from runner.stream.patterns import Patterns
from runner.stream.tasks import Filters
from runner.telemetry import Telemetry

STOP = FilterRule(id="stop", label="stop", description="a", pattern=r"stop_[a-z]{4,20}")


class Reply:
    """Notes what the agent is told."""

    gone = False

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.told: Any = None

    def steers(self, running: Running) -> None:
        self.running = running

    follows = steers

    def hasten(self) -> None:
        pass

    async def accepted(self, call: str, *, replayed: bool) -> None:
        self.log.append("accepted")

    async def output(self, chunk: Any, *, last: bool = False) -> int:
        self.log.append("output")
        return len(chunk.data)

    async def result(self, call: str, finished: Finished) -> None:
        self.log.append("result")
        self.told = finished


class Execution:
    def __init__(self, log: list[str], events: list[Any], asked: list[int]) -> None:
        self.log, self.events, self.asked = log, events, asked
        self.guest = SimpleNamespace(walls=("w",), fault=None, over=True)

    async def __aenter__(self) -> Execution:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("left")

    async def next(self, wait_ms: int = 0, most: int = 0) -> Any:
        self.asked.append(wait_ms)
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    def ended(self, outcome: Outcome, cancelled: Any, value: Any) -> Any:
        return pipeline.Ended(outcome=outcome, value=value, walls=("w",))

    async def looked_at(self, ended: Any) -> Any:
        return ended


class Noted(Lease):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def __aexit__(self, *_: object) -> None:
        self.log.append("released")


class Recorder:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def send(self, message: Any) -> None:
        self.log.append(type(message).__name__)


class House:
    """The steps around the order, each noting that it was taken. `fails` names one that raises."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        events: list[Any],
        fails: str = "",
        error: Any = None,
        labels: dict[str, str] | None = None,
        recipients: Recipients | None = None,
    ) -> None:
        self.asked: list[int] = []  # how long each event was waited for
        self.log: list[str] = []
        self.fails, self.error = fails, error or refuse("unavailable", f"{fails} failed")
        self.calls = Calls(keep_calls=1, keep_bytes=1, keep_s=1, clock=lambda: 0.0)
        self.sealed: Any = None
        call = SimpleNamespace(idempotency_key="", traceparent="")
        self.authenticated: Any = SimpleNamespace(
            call=call, tool="tool", principal=SimpleNamespace(agent="a", task="t")
        )
        self.reply = Reply(self.log)
        parts: Any = SimpleNamespace(
            authenticate=lambda *_: self.step("authenticate", self.authenticated),
            calls=self.calls, state=None, reserve=self._reserve, serving=SimpleNamespace(
                policies=SimpleNamespace(asks_labels=lambda tool: False), tool_profiles={"p": None},
                patterns=Patterns((STOP,)), recipients=recipients, inspector=None, outside=(), required=False,
                tools={"tool": SimpleNamespace(profile="p", stdout="text", consequence="low")},
                task_profiles={"p": SimpleNamespace(labels=labels or {}, raw={})}),
            origin=lambda *_: SimpleNamespace(untrusted=False),
            view=lambda *_: None, labels=lambda *_: frozenset(), admit=lambda running, planned: planned,
            journal=SimpleNamespace(recorder=Recorder(self.log)),
            streams=lambda: {"numbers": (1, 2), "salt": bytes, "clock": time.monotonic},
            requests=SimpleNamespace(of=lambda *_: None),
        )  # fmt: skip
        decision = Decision(effect="allow", reason="a rule")
        monkeypatch.setattr(pipeline, "beyond", lambda *_: None)
        monkeypatch.setattr(pipeline, "authorize", lambda *_: self.step("authorize", decision))
        monkeypatch.setattr(
            pipeline, "approve", lambda *_: self.step("approve", SimpleNamespace(authenticated=self.authenticated))
        )
        monkeypatch.setattr(
            pipeline,
            "plan",
            lambda *_, **__: self.step("plan", SimpleNamespace(call="c", output=100, result=100, tool="tool")),
        )
        monkeypatch.setattr(pipeline.record, "call", self._record_call)
        monkeypatch.setattr(pipeline.record, "outcome", self._record_outcome)
        leases = SimpleNamespace(port=lambda *_: 0, over=lambda call: None, of=lambda *_: Noted(self.log))
        executor: Any = SimpleNamespace(sandbox_of=lambda task, profile: "s", start=self._start, leases=leases)
        self.events = events
        telemetry = Telemetry("none", None, instance="i", version="v")  # type: ignore[arg-type] # no file is opened
        filters = Filters(lambda: bytes(32), escrows=Escrows(Recorder(self.log), lambda: bytes(16)))
        self.pipeline = Pipeline(parts, executor, filters, telemetry)

    def step(self, name: str, value: Any) -> Any:
        self.log.append(name)
        if self.fails == name:
            raise self.error
        return value

    def _reserve(self, authenticated: Any, reply: Any) -> Running:
        running = Running("c", "t", "tool", reply=reply, window=100, client=100, detach=False, sync=False)
        self.calls.add(running)
        self.running = running
        reply.steers(running)
        return running

    async def _record_call(self, *_: Any) -> None:
        self.step("record call", None)

    async def _record_outcome(self, journal: Any, outcome: Outcome, *rest: Any) -> Finished:
        self.step("record outcome", None)
        self.sealed = outcome
        _, _, self.kept, _, _, _, passed = rest
        self.filtered = passed.found()
        return Finished(outcome, Receipt(call="c", digest="d", position=1), None, 0, 0)

    async def _start(self, *_: Any) -> Any:
        return self.step("start", Execution(self.log, self.events, self.asked))

    def run(self) -> Any:
        """What the call was refused with, None when it got its result."""
        context = SimpleNamespace(delivered=lambda call: self.log.append("delivered"))
        session: Any = SimpleNamespace(
            task=SimpleNamespace(id="t", profile="p", context=context), verified=SimpleNamespace(tools={})
        )

        async def go() -> Any:
            try:
                await self.pipeline.handle(self.authenticated.call, session, self.reply)
            except RunnerError as error:
                return error.refused
            finally:
                if "reserve" not in self.fails and hasattr(self, "running"):
                    assert self.running.finished.done()  # whatever happened, nobody waits for ever
            return None

        refused = asyncio.run(go())
        assert not self.calls.running  # and nothing is reserved any more
        return refused


ENDED = Outcome(kind="exited", exit_code=0)


def test_the_order_is_recorded_before_it_acts_and_sealed_before_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [Piece("stdout", b"x"), ENDED])
    assert house.run() is None
    assert house.log == [
        "authenticate", "authorize", "approve", "plan", "record call", "accepted", "start",
        "output", "delivered", "left", "released", "record outcome", "result",
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["authenticate", "authorize", "approve", "plan", "record call"])
def test_a_failure_before_the_record_leaves_nothing_behind(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [ENDED], fails=step)
    refused = house.run()
    assert refused.reason == f"{step} failed"
    assert not {"accepted", "start", "record outcome", "result"} & set(house.log)


def test_a_process_that_never_existed_is_sealed_unavailable_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [ENDED], fails="start")
    assert house.run().code == "unavailable"
    assert house.sealed.kind == "unavailable"
    assert house.log[-2:] == ["released", "record outcome"]


@pytest.mark.parametrize("error", [refuse("internal", "a defect"), ValueError("a defect")])
def test_a_failure_after_the_start_is_never_called_unavailable(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(monkeypatch, [error])
    assert house.run() is None
    assert house.sealed.kind == "interrupted"
    assert house.log[-3:] == ["released", "record outcome", "result"]


def test_a_result_that_cannot_be_sealed_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [ENDED], fails="record outcome")
    assert house.run().reason == "record outcome failed"
    assert "result" not in house.log


def test_output_that_is_not_to_be_given_ends_the_call_and_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(
        monkeypatch, [Piece("stdout", b"a\n"), Piece("stdout", b"stop_abcd \n"), ENDED], labels={"stop": "block"}
    )
    assert house.run() is None
    assert house.running.cancelled is not None
    assert house.running.cancelled[0] == "filtered"
    assert (house.sealed.kind, house.sealed.exit_code) == ("filtered", None)
    assert "rule stop" in house.sealed.reason
    assert house.log.count("output") == 1
    assert house.filtered == {"stop": 1}


def test_output_that_is_kept_back_is_not_delivered_and_the_call_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece("stdout", b"stop_abcd \n"), Piece("stdout", b"more\n"), Value(b'{"a": 1}'), ENDED]
    house = House(monkeypatch, pieces, labels={"stop": "hold"}, recipients=Recipients((new_identity()[1],)))
    assert house.run() is None
    assert house.running.cancelled is None
    assert (house.sealed.kind, house.sealed.exit_code) == ("exited", 0)
    assert "trace raw c" in house.sealed.reason
    assert "output" not in house.log
    assert house.kept == b'{"a": 1}'


def test_output_that_could_be_kept_back_for_nobody_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [Piece("stdout", b"stop_abcd \n"), ENDED], labels={"stop": "hold"})
    assert house.run() is None
    assert house.running.cancelled is not None
    assert house.sealed.kind == "filtered"
    assert "output" not in house.log


def test_what_waits_is_delivered_after_a_quiet_and_before_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [Piece("stdout", b"50%\r"), None, Piece("stdout", b"user"), ENDED])
    assert house.run() is None
    assert house.log.count("output") == 3
    assert house.asked[0] == 0
    assert house.asked[1] > 0


def test_output_beyond_the_cap_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, [Piece("stdout", b"x" * 101), ENDED])
    assert house.run() is None
    assert house.running.cancelled is not None
    assert house.running.cancelled[0] == "output_capped"
