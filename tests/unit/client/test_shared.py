"""One connection for many threads: what befalls one of them, and what befalls the connection."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sim.bare import Bare, result, wait

from runner.client import CallError, Interrupted, Runner, Unavailable, connect, connect_async
from runner.client.core import MAX_INCOMING
from runner.wire import agent
from runner.wire.frame import encode

CREDENTIALS = "/nowhere"


class Callers:
    """Threads with one call each; what became of them."""

    def __init__(self, runner: Runner, count: int) -> None:
        self.errors: list[CallError] = []
        self._threads = [threading.Thread(target=self._work, args=(runner,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self, runner: Runner) -> None:
        try:
            runner.call("anything")
        except CallError as error:
            self.errors.append(error)

    def kinds(self) -> list[str]:
        """The errors, once every thread has ended."""
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        return sorted(type(error).__name__ for error in self.errors)


def test_a_slow_reader_in_one_thread_holds_up_no_other(daemon: Any) -> None:
    """It is owed a window and no more; who waits beside it reads on."""
    total, written = 64 * 8192, 0

    async def flood(call: Any) -> None:
        nonlocal written
        call.accept()
        for _ in range(64):
            await call.output(b"x" * 8192)
            written += 8192
        call.finish()

    daemon.tools["flood"] = flood
    with connect(credentials=daemon.credentials) as runner, runner.stream("flood") as slow:
        got = len(next(slow).data)

        def others() -> None:
            for index in range(50):
                assert runner.call("echo", {"text": f"quick {index}"}).text == f"quick {index}"

        threads = [threading.Thread(target=others) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert written <= daemon.limits.output_window + 8192
        assert got + len(slow.result().stdout) == total
    assert written == total


def test_closing_frees_all_who_wait_the_one_that_reads_and_the_ones_that_sleep(sim: Any) -> None:
    all_here = threading.Event()

    def play(bare: Bare) -> None:
        for _ in range(4):
            bare.until(agent.Call)
        all_here.set()
        bare.until(agent.Bye)

    with Bare() as bare, bare.open(sim.credentials(CREDENTIALS), play) as runner:
        callers = Callers(runner, 4)
        assert all_here.wait(20)
        runner.close()
        assert callers.kinds() == ["Unavailable"] * 4
        assert all("this client closed" in error.reason for error in callers.errors)
        assert runner._link._end.closed


# What ends a connection, and the code that says so.
ENDS: list[Any] = [
    pytest.param(lambda bare: bare.send(result(99)), "protocol", id="a stray answer"),
    pytest.param(lambda bare: bare.ours.sendall((MAX_INCOMING + 1).to_bytes(4, "big")), "protocol", id="too long"),
    pytest.param(lambda bare: bare.ours.sendall(b"\0\0\0\1\xc0"), "protocol", id="no message"),
    pytest.param(lambda bare: bare.ours.shutdown(socket.SHUT_WR), "unavailable", id="half closed"),
    pytest.param(
        lambda bare: (bare.ours.sendall(encode(result(1))[:-1]), bare.ours.shutdown(socket.SHUT_WR)),
        "unavailable",
        id="half a frame",
    ),
    pytest.param(lambda bare: bare.ours.close(), "unavailable", id="closed"),
]


@pytest.mark.parametrize(("end", "code"), ENDS)
def test_what_ends_the_connection_ends_every_wait_and_says_what_may_have_happened(
    sim: Any, end: Callable[[Bare], object], code: str
) -> None:
    def play(bare: Bare) -> None:
        for _ in range(3):
            bare.until(agent.Call)
        bare.send(agent.Accepted(number=2, call="c2"))
        end(bare)

    with Bare() as bare, bare.open(sim.credentials(CREDENTIALS), play) as runner:
        callers = Callers(runner, 3)
        assert callers.kinds() == ["Interrupted", "Unavailable", "Unavailable"]
        assert [error.call for error in callers.errors if isinstance(error, Interrupted)] == ["c2"]
        assert runner.lost is not None
        assert runner.lost.code == code
        with pytest.raises(CallError) as again:
            runner.call("anything")
        assert again.value.code == code


@pytest.mark.parametrize(("end", "code"), ENDS)
def test_the_same_in_an_event_loop(sim: Any, end: Callable[[Bare], object], code: str) -> None:
    def play(bare: Bare) -> None:
        for _ in range(3):
            bare.until(agent.Call)
        bare.send(agent.Accepted(number=2, call="c2"))
        end(bare)

    async def act(bare: Bare) -> None:
        async with connect_async(bare.theirs, sim.credentials(CREDENTIALS)) as runner, asyncio.timeout(20):
            errors = await asyncio.gather(*[runner.call("anything") for _ in range(3)], return_exceptions=True)
            assert [type(error).__name__ for error in errors] == ["Unavailable", "Interrupted", "Unavailable"]
            assert runner.lost is not None
            assert runner.lost.code == code
            with pytest.raises(CallError) as again:
                await runner.call("anything")
            assert again.value.code == code

    with Bare() as bare:
        bare.begin(play)
        asyncio.run(act(bare))


def test_a_daemon_that_reads_no_more_is_noticed_by_the_send(sim: Any) -> None:
    """It took one call and shut that side; its own side stays open, so only our send can tell."""
    shut = threading.Event()

    def play(bare: Bare) -> None:
        bare.until(agent.Call)
        bare.ours.shutdown(socket.SHUT_RD)
        shut.set()

    with Bare() as bare, bare.open(sim.credentials(CREDENTIALS), play) as runner:
        callers = Callers(runner, 1)
        assert shut.wait(20)
        with pytest.raises(Unavailable):
            runner.call("anything")
        assert callers.kinds() == ["Unavailable"]
        wait(lambda: runner._link._end.closed)
