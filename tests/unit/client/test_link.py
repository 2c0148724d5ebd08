"""The sync client's own concerns: who reads, blocked sends, idle connections, forks, forgotten clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from sim.bare import Bare, nagging, result, wait

from runner.client import Interrupted, TaskEnded, Unauthenticated, Unavailable, connect
from runner.client import link as links
from runner.config import Limits
from runner.errors import refusal, refuse
from runner.wire import agent


def script(code: str, credentials: bytes) -> Any:
    """Run a program that finds its credentials on stdin; what it printed last, as JSON."""
    head = "import json, os, sys\nfrom runner.client import *\nhanded = sys.stdin.buffer.read()\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + code],
        input=credentials,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


# --- threads ---


def test_a_call_and_its_output_stay_in_the_callers_thread(daemon: Any) -> None:
    seen: set[int] = set()
    with connect(credentials=daemon.credentials) as runner:

        def show(chunk: Any) -> None:
            seen.add(threading.get_ident())
            assert runner.call("echo", {"text": "inside"}).text == "inside"  # nothing is held while it is shown

        assert runner.call("echo", {"text": "ab", "repeat": 3}, on_output=show).text == "ababab"
    assert seen == {threading.get_ident()}


def test_an_awaitable_is_not_dropped_silently(daemon: Any) -> None:
    async def later() -> None:
        raise AssertionError("nobody awaits this")

    made: list[Any] = []

    def show(chunk: Any) -> Any:
        made.append(later())
        return made[-1]

    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(TypeError, match="async client"):
            runner.call("echo", {"text": "x"}, on_output=show)
        assert runner.call("echo", {"text": "alive"}).ok
    made[0].close()


def test_the_reader_that_has_its_answer_leaves_the_role_to_another(daemon: Any) -> None:
    """The one that reads ends first, over and over: the others must never be left without a reader."""
    gates: dict[str, asyncio.Event] = {}

    async def gated(call: Any) -> None:
        call.accept()
        gates[call.arguments["name"]] = event = asyncio.Event()
        await event.wait()
        await call.output(call.arguments["name"].encode())
        call.finish()

    daemon.tools["gated"] = gated
    texts: dict[str, str] = {}
    with connect(credentials=daemon.credentials) as runner:

        def work(name: str) -> None:
            texts[name] = runner.call("gated", {"name": name}).text

        names = [f"n{index}" for index in range(6)]
        threads = []
        for name in names:  # in this order, so that the first reads
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            wait(lambda name=name: name in gates)
        for name, thread in zip(names, threads, strict=True):
            daemon.do(gates[name].set)
            thread.join(20)
            assert not thread.is_alive()
    assert texts == {name: name for name in names}


def test_one_thread_may_iterate_while_another_writes(daemon: Any) -> None:
    async def mirror(call: Any) -> None:
        call.accept()
        call.credit_stdin(64)
        while not (message := await call.input.get()).eof:
            await call.output(message.data)
            call.credit_stdin(len(message.data))
        call.finish()

    daemon.tools["mirror"] = mirror
    data = os.urandom(20_000)
    with connect(credentials=daemon.credentials) as runner, runner.stream("mirror", stdin=True) as stream:

        def write() -> None:
            for start in range(0, len(data), 1000):
                stream.write_stdin(data[start : start + 1000])
            stream.close_stdin()

        writer = threading.Thread(target=write)
        writer.start()
        assert b"".join(chunk.data for chunk in stream) == data
        writer.join(20)
        assert stream.result().ok


# --- sends that block ---


def test_both_sides_full_is_no_deadlock(sim: Any) -> None:
    """The daemon reads nothing until all it has to say is taken; the client has as much to say."""
    size, flood = 4 << 20, 16 << 20

    def play(bare: Bare) -> None:
        call = bare.until(agent.Call)
        bare.send(agent.Accepted(number=call.number, call="c"), agent.StdinCredit(number=call.number, bytes=size))
        piece = b"x" * (1 << 16)
        for offset in range(0, flood, len(piece)):  # not a byte is read here
            bare.send(agent.Output(number=call.number, stream="stdout", offset=offset, data=piece))
        got = 0
        while not (message := bare.until(agent.Stdin)).eof:
            got += len(message.data)
        bare.send(result(call.number, stdout_bytes=got))

    with (
        Bare(call_window=flood) as bare,
        bare.open(sim.credentials("/nowhere"), play) as runner,
    ):
        done = runner.call("anything", stdin=b"y" * size)
        assert len(done.stdout) == flood
        assert done.stdout_bytes == size


def test_a_thread_that_cannot_send_is_helped_by_the_one_that_reads(sim: Any) -> None:
    """The reader waits for its own answer only; the frames of the other must leave all the same."""
    size = 2 << 20
    go = threading.Event()

    def play(bare: Bare) -> None:
        first = bare.until(agent.Call)
        bare.send(agent.Accepted(number=first.number, call="c1"))
        second = bare.until(agent.Call)
        bare.send(agent.Accepted(number=second.number, call="c2"), agent.StdinCredit(number=second.number, bytes=size))
        assert go.wait(20)  # the daemon is stalled: it reads nothing
        while not bare.until(agent.Stdin).eof:
            pass
        bare.send(result(second.number))
        bare.send(result(first.number))

    with Bare() as bare, bare.open(sim.credentials("/nowhere"), play) as runner:
        reader = threading.Thread(target=runner.call, args=("first",))
        reader.start()
        wait(lambda: runner._link.core.exchanges.get(1) and runner._link.core.exchanges[1].call)
        writer = threading.Thread(target=runner.call, args=("second",), kwargs={"stdin": b"y" * size})
        writer.start()
        wait(lambda: runner._link._end._watched & select.POLLOUT)  # the reader watches for room on the writer's behalf
        go.set()
        for thread in (reader, writer):
            thread.join(20)
            assert not thread.is_alive()


def test_what_was_written_has_left_without_another_call(sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads any more when `write_stdin` has returned: what it left behind would wait for the idle thread."""
    monkeypatch.setattr(links, "IDLE_S", 3600.0)
    size, go, all_here = 2 << 20, threading.Event(), threading.Event()

    def play(bare: Bare) -> None:
        call = bare.until(agent.Call)
        bare.send(agent.Accepted(number=call.number, call="c1"), agent.StdinCredit(number=call.number, bytes=size))
        assert go.wait(20)  # until the kernel takes no more
        got = 0
        while got < size:
            got += len(bare.until(agent.Stdin).data)
        all_here.set()
        bare.until(agent.Bye)

    with (
        Bare() as bare,
        bare.open(sim.credentials("/nowhere"), play) as runner,
        runner.stream("first", stdin=True) as stream,
    ):
        writer = threading.Thread(target=stream.write_stdin, args=(b"y" * size,))
        writer.start()
        wait(lambda: runner._link._end._watched & select.POLLOUT)
        go.set()
        writer.join(20)
        assert not writer.is_alive()
        assert all_here.wait(20)


def test_an_interrupt_reaches_a_send_that_is_stuck(sim: Any) -> None:
    size, go = 2 << 20, threading.Event()

    def play(bare: Bare) -> None:
        call = bare.until(agent.Call)
        bare.send(agent.Accepted(number=call.number, call="c1"), agent.StdinCredit(number=call.number, bytes=size))
        assert go.wait(20)
        assert bare.until(agent.Cancel).number == call.number
        bare.send(result(call.number))
        again = bare.until(agent.Call)
        bare.send(agent.Accepted(number=again.number, call="c2"), result(again.number))

    with Bare() as bare, bare.open(sim.credentials("/nowhere"), play) as runner:

        def once() -> None:
            if runner._link._end._watched & select.POLLOUT and not go.is_set():
                go.set()
                raise KeyboardInterrupt

        with nagging(once, go.is_set), pytest.raises(KeyboardInterrupt):
            runner.call("first", stdin=b"y" * size)
        assert runner.call("second").call == "call-2"  # the frame that was cut goes on where it was


def test_a_program_that_dies_of_sigpipe_lives_on(sim: Any) -> None:
    """Some programs ask the system to kill them for a write that nobody reads. Ours is answered instead."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with Bare() as bare:
            runner = bare.open(sim.credentials("/nowhere"))
            bare.ours.close()
            with pytest.raises(Unavailable, match="closed"):
                runner.call("anything")
            runner.close()
    finally:
        signal.signal(signal.SIGPIPE, before)


# --- while nobody waits ---


def test_an_idle_client_lives_where_a_mute_one_is_left(sim: Any, tmp_path: Any) -> None:
    with sim.SimDaemon(tmp_path, Limits(heartbeat_s=0.2)) as daemon, connect(credentials=daemon.credentials) as runner:
        for token in range(3):
            daemon.do(lambda token=token: daemon.connections[0].send(agent.Ping(token=token)))
            daemon.until(lambda token=token: [m.token for m in daemon.log if isinstance(m, agent.Pong)][-1:] == [token])
        assert runner.call("echo", {"text": "alive"}).ok


def test_what_the_daemon_says_meanwhile_is_known_when_asked(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        daemon.do(lambda: daemon.connections[0].send(agent.ToolsChanged(digest="d2")))
        assert runner.tools_digest == "d2"
        assert runner.lost is None
        daemon.do(lambda: daemon.connections[0].raw(agent.Closing(refusal=refusal("revoked", "taken back"))))
        assert runner.lost is not None
        assert runner.lost.code == "revoked"


@pytest.mark.parametrize("code", ["revoked", "task_ended"])
def test_the_next_call_says_why_the_daemon_left(daemon: Any, code: str) -> None:
    """It wrote its reason and closed; our send fails, and the reason is still there to be read."""
    with connect(credentials=daemon.credentials) as runner:
        connection = daemon.connections[0]

        def leave() -> None:
            connection.raw(connection.session.close(refuse(code, "because I say so")))
            connection.transport.close()

        daemon.do(leave)
        daemon.until(lambda: connection.closed)
        with pytest.raises(Unauthenticated if code == "revoked" else TaskEnded, match="because I say so"):
            runner.call("echo")


def test_the_idle_thread_notices_the_end_and_closes(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "IDLE_S", 0.02)
    with connect(credentials=daemon.credentials) as runner:
        link = runner._link
        daemon.do(daemon.connections[0].transport.close)
        wait(lambda: link.core.lost is not None)
        wait(lambda: link._end.closed)
        assert link._idler is not None
        link._idler.join(20)
        assert not link._idler.is_alive()


def test_a_client_that_is_lost_frees_every_thread(daemon: Any) -> None:
    began = threading.Semaphore(0)
    errors: list[Exception] = []

    async def stay(call: Any) -> None:
        call.accept()
        began.release()
        await call.cancelled.wait()

    daemon.tools["stay"] = stay
    with connect(credentials=daemon.credentials) as runner:

        def work() -> None:
            try:
                runner.call("stay")
            except Interrupted as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert began.acquire(timeout=20)
        daemon.do(daemon.connections[0].transport.abort)
        for thread in threads:
            thread.join(20)
    assert len(errors) == 5


# --- other processes, and the end of this one ---


def test_a_forked_child_is_refused_and_harms_nothing(daemon: Any) -> None:
    code = """
with connect(credentials=handed) as runner:
    runner.call("echo", {"text": "before"})
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for use in (lambda: runner.call("echo"), runner.tools, lambda: runner.until_durable(1)):
            try:
                use()
            except Unavailable as error:
                said.append([error.reason, error.retryable])
        said.append(str(runner.lost))
        runner.close()
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    told = json.loads(os.read(read, 65536))
    print(json.dumps([status, told, runner.call("echo", {"text": "after"}).text]))
"""
    status, told, text = script(code, daemon.credentials)
    assert status == 0
    assert len(told) == 4
    assert all("forked" in reason and not retryable for reason, retryable in told[:3])
    assert "forked" in told[3]
    assert text == "after"
    daemon.until(lambda: [type(message) for message in daemon.log].count(agent.Bye) == 1)  # the parent's only


def test_a_child_forked_while_another_thread_works_is_refused_too(daemon: Any) -> None:
    """Whatever lock that thread held at the moment stays locked in the child for ever."""
    code = """
import threading
runner = connect(credentials=handed)
over = threading.Event()
def work():
    while not over.is_set():
        runner.call("echo", {"text": "x"})
thread = threading.Thread(target=work)
thread.start()
statuses = []
for _ in range(30):
    child = os.fork()
    if not child:
        try:
            runner.call("echo")
        except Unavailable:
            runner.close()
            os._exit(7)
        os._exit(1)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
thread.join()
print(json.dumps([statuses, runner.call("echo", {"text": "after"}).text]))
runner.close()
"""
    statuses, text = script(code, daemon.credentials)
    assert statuses == [7] * 30
    assert text == "after"


def test_a_forgotten_close_keeps_no_program_alive(daemon: Any) -> None:
    assert script("runner = connect(credentials=handed)\nprint(json.dumps(runner.call('echo').ok))", daemon.credentials)
    daemon.until(lambda: daemon.connections[-1].closed)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_that_nobody_holds_is_gone_with_its_thread(daemon: Any) -> None:
    runner = connect(credentials=daemon.credentials)
    link, idler = weakref.ref(runner._link), runner._link._idler
    assert idler is not None
    assert idler.is_alive()
    del runner
    gc.collect()
    assert link() is None
    idler.join(20)
    assert not idler.is_alive()
    daemon.until(lambda: daemon.connections[-1].closed)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_leaves_no_descriptor_and_no_thread(daemon: Any) -> None:
    connect(credentials=daemon.credentials).close()  # whatever a first use keeps
    before, threads = descriptors(), threading.active_count()
    for _ in range(20):
        with connect(credentials=daemon.credentials) as runner:
            runner.call("echo")
    daemon.until(lambda: all(connection.closed for connection in daemon.connections))
    wait(lambda: descriptors() <= before)
    assert threading.active_count() == threads


# --- signals ---


def test_a_handler_may_use_the_client_below_it(daemon: Any) -> None:
    """A handler runs above the wait that it interrupts, in the same thread, which holds the reading role."""
    texts: list[str] = []

    async def stay(call: Any) -> None:
        call.accept()
        await call.output(b"x")
        await call.cancelled.wait()
        call.finish(kind="cancelled")

    daemon.tools["stay"] = stay
    with connect(credentials=daemon.credentials) as runner, runner.stream("stay") as stream:

        def handler() -> None:
            if not texts and runner._link._reader:  # else it came before the wait
                with contextlib.suppress(Unavailable):  # in the middle of the client's own work
                    texts.append(runner.call("echo", {"text": "from the handler"}).text)
                    stream.cancel()

        next(stream)
        with nagging(handler, lambda: bool(texts)):
            assert stream.result().outcome.kind == "cancelled"
    assert texts == ["from the handler"]


def test_a_handler_may_close_the_client_below_it(daemon: Any) -> None:
    async def stay(call: Any) -> None:
        call.accept()
        await call.cancelled.wait()

    daemon.tools["stay"] = stay
    with (
        connect(credentials=daemon.credentials) as runner,
        nagging(lambda: runner._link._reader and runner.close(), lambda: runner._link._closed),
        pytest.raises((Interrupted, Unavailable), match="this client closed"),
    ):
        runner.call("stay")
