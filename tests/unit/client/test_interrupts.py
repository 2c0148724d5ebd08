"""An interrupt at every place where the interpreter looks for signals: the call is cancelled, the connection lives.

A signal's handler runs after a call, where a function begins, and at a jump back. Tracing finds each such place that
a use of the client passes in its own modules, and raises KeyboardInterrupt there, at one place after the other.
"""

from __future__ import annotations

import asyncio
import dis
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sim.bare import wait

import runner.client
from runner.client import Runner, Unavailable, connect
from runner.client import link as links
from runner.config import Limits
from runner.wire import agent

MODULES = ("core", "endpoint", "exchange", "link", "sync")
OURS = {str(Path(runner.client.__file__).parent / f"{name}.py") for name in MODULES}
_OPERATIONS: dict[Any, dict[int, str]] = {}


def operation(frame: FrameType) -> str:
    """The name of the instruction that a frame stands at."""
    found = _OPERATIONS.get(frame.f_code)
    if found is None:
        found = _OPERATIONS[frame.f_code] = {each.offset: each.opname for each in dis.get_instructions(frame.f_code)}
    return found.get(frame.f_lasti, "")


def raising() -> None:
    raise KeyboardInterrupt


class Interrupt:
    """Runs the handler at the n-th place within the block. `fired` says whether there were that many."""

    def __init__(self, place: int, handler: Callable[[], None] = raising) -> None:
        self.left = place
        self.handler = handler
        self.fired = False
        self._last: dict[FrameType, str] = {}

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes = True
        if event == "exception":
            self._last[frame] = ""  # a call that raised looks for no signals
        elif event == "opcode":
            before, self._last[frame] = self._last.get(frame, ""), operation(frame)
            if before.startswith("CALL") or before in ("RESUME", "JUMP_BACKWARD"):
                self.left -= 1
                if self.left < 0 and not self.fired:
                    self.fired = True
                    self.handler()
        return self._trace

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self._last.clear()


async def chatty(call: Any) -> None:
    """Takes stdin a byte at a time at first, and writes four windows."""
    call.accept()
    if call.request.stdin:
        call.credit_stdin(1)
        call.credit_stdin(1)
        call.credit_stdin(100)
    for index in range(8):
        if call.cancelled.is_set():
            break
        await call.output(b"x" * 32, "stderr" if index % 3 == 0 else "stdout")
    call.finish(kind="cancelled" if call.cancelled.is_set() else "exited")


def plain(runner: Runner) -> None:
    assert len(runner.call("chatty").stdout) == 5 * 32


def shown(runner: Runner) -> None:
    seen: list[Any] = []
    runner.call("chatty", stdin=b"some", on_output=seen.append)
    assert sum(len(chunk.data) for chunk in seen) == 8 * 32


def streamed(runner: Runner) -> None:
    with runner.stream("chatty", stdin=True) as stream:
        first = next(stream)
        stream.write_stdin(b"ab")
        stream.close_stdin()
        assert len(first.data) + len(stream.result().stdout) + len(stream.result().stderr) == 8 * 32


def detached(runner: Runner) -> None:
    assert runner.call("chatty", detach=True).running


def glanced(runner: Runner) -> None:
    assert runner.lost is None
    assert runner.tools_digest == "d1"


@pytest.mark.parametrize("use", [plain, shown, streamed, detached, glanced])
def test_an_interrupt_anywhere_leaves_the_connection_usable(
    sim: Any, tmp_path: Path, use: Callable[[Runner], None]
) -> None:
    place = 0
    with sim.SimDaemon(tmp_path, Limits(output_window=64)) as daemon, connect(credentials=daemon.credentials) as runner:
        daemon.tools["chatty"] = chatty
        while True:
            try:
                with Interrupt(place) as interrupt:
                    use(runner)
            except KeyboardInterrupt:
                assert interrupt.fired
            assert runner.call("echo", {"text": f"after {place}"}).text == f"after {place}", place
            assert runner.lost is None
            if not interrupt.fired:
                break
            place += 1
        # Whatever was begun has had its last answer; nothing of it is kept.
        wait(lambda: runner.lost is None and not runner._link.core.exchanges)
        assert not daemon.errors
    assert place > (10 if use is glanced else 80)


@pytest.mark.parametrize("use", [plain, shown, streamed])
def test_a_handler_anywhere_may_use_the_client_or_is_told_that_it_cannot(
    sim: Any, tmp_path: Path, use: Callable[[Runner], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "IDLE_S", 3600.0)
    place, said = 0, {"answered": 0, "refused": 0, "else": 0}
    limits = Limits(output_window=64, heartbeat_s=3600.0)
    with sim.SimDaemon(tmp_path, limits) as daemon, connect(credentials=daemon.credentials) as runner:
        daemon.tools["chatty"] = chatty

        def handler() -> None:
            try:
                assert runner.call("echo", {"text": "above"}).text == "above"
                said["answered"] += 1
            except Unavailable as error:
                said["refused" if "signal's handler" in error.reason else "else"] += 1

        while True:
            with Interrupt(place, handler) as interrupt:
                use(runner)  # which checks its own output
            if not interrupt.fired:
                break
            place += 1
        wait(lambda: runner.lost is None and not runner._link.core.exchanges)
        assert not daemon.errors
    assert said["answered"] > 50
    assert said["refused"] > 50
    assert not said["else"]


class Poll:
    """A link's poll object. Says when it would sleep although all that the call has to show is here."""

    def __init__(self, runner: Runner, asleep: Callable[[], object]) -> None:
        self._link = runner._link
        self._real = self._link._end._poll
        self._asleep = asleep
        self.register = self._real.register

    def poll(self, *timeout: float) -> Any:
        if any(exchange.chunks for exchange in self._link.core.exchanges.values()) and not self._real.poll(0):
            self._asleep()
        return self._real.poll(*timeout)


def test_an_interrupted_call_is_cancelled_at_the_daemon(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool never ends by itself: whatever of it began ends because we say so."""
    monkeypatch.setattr(links, "IDLE_S", 3600.0)
    release = asyncio.Event()  # once no place is left before the wait that has no end

    async def stay(call: Any) -> None:
        call.accept()
        await call.output(b"began")
        while not (call.cancelled.is_set() or release.is_set()):
            await asyncio.sleep(0.005)
        call.finish(kind="cancelled" if call.cancelled.is_set() else "exited")

    daemon.tools["stay"] = stay
    place, finished = 0, False
    with connect(credentials=daemon.credentials) as runner:
        while not finished:
            interrupt = Interrupt(place)
            poll = Poll(runner, lambda interrupt=interrupt: interrupt.fired or release.set())
            monkeypatch.setattr(runner._link._end, "_poll", poll)
            try:
                with interrupt:
                    runner.call("stay")
            except KeyboardInterrupt:
                pass
            monkeypatch.undo()
            finished = release.is_set()
            wait(lambda: runner.lost is None and not runner._link.core.exchanges)
            assert runner.call("echo", {"text": "alive"}).ok
            place += 1
    assert len([message for message in daemon.log if isinstance(message, agent.Cancel)]) > 50
    wait(lambda: not daemon.tasks)


def test_an_interrupted_reader_leaves_others_their_answers(
    sim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread waits all the while: it must get what the interrupted one had read for it, and not only when
    the idle thread looks."""
    monkeypatch.setattr(links, "IDLE_S", 3600.0)
    over, done, errors = threading.Event(), [0], []

    def work(runner: Runner) -> None:
        try:
            while not over.is_set():
                assert runner.call("echo", {"text": "mine"}).text == "mine"
                done[0] += 1
        except BaseException as error:
            errors.append(error)

    limits = Limits(heartbeat_s=3600.0)
    with sim.SimDaemon(tmp_path, limits) as daemon, connect(credentials=daemon.credentials) as runner:
        daemon.tools["chatty"] = chatty
        thread = threading.Thread(target=work, args=(runner,))
        thread.start()
        try:
            for place in range(400):
                try:
                    with Interrupt(place):
                        plain(runner)
                except KeyboardInterrupt:
                    pass
                before = done[0]
                wait(lambda before=before: done[0] > before or errors)
        finally:
            over.set()
            thread.join(20)
        assert not thread.is_alive()
        assert not errors
        assert runner.lost is None
