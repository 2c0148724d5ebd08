"""The sync client against whole daemons: threads, interrupts, idleness, a stalled daemon, full buffers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from house import Daemon
from sim.bare import nagging, wait

from runner.client import Runner
from runner.client import link as links
from runner.client.credentials import Identity, find_credentials
from runner.ledger import entry as entries
from runner.wire import admin, agent
from runner.wire.frame import FrameReader, encode

pytestmark = pytest.mark.docker


@pytest.fixture
def live(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A whole daemon. A test's tasks end with it."""
    yield shared_daemon
    for task in shared_daemon.ask(admin.ListTasks()).tasks:
        shared_daemon.ask(admin.EndTask(task=task.task, why="the test is over"))


def shell(runner: Runner, code: str, **options: Any) -> Any:
    return runner.call("shell_run", {"argv": ["sh", "-c", code]}, **options)


@contextlib.contextmanager
def beside(*works: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread beside the block; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(90)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_threads_share_one_client(live: Daemon) -> None:
    with live.connect() as runner:

        def calls(name: str) -> None:
            for index in range(12):
                assert shell(runner, f"echo {name}-{index}").text == f"{name}-{index}\n"

        def large() -> None:
            data = os.urandom(300_000)
            runner.put("large", data)
            assert runner.get("large") == data

        def streamed() -> None:
            with runner.stream(
                "shell_run", {"argv": ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done"]}
            ) as s:
                assert b"".join(chunk.data for chunk in s) == b"1\n2\n3\n"

        with beside(*[lambda name=f"t{index}": calls(name) for index in range(6)], large):
            streamed()
        assert runner.lost is None


def test_what_befalls_one_thread_befalls_no_other(live: Daemon) -> None:
    """Beside calls that go on: one is interrupted, one over its deadline, one cancelled from elsewhere, one left."""
    stay = {"argv": ["sh", "-c", "echo began; exec sleep 600"]}
    over, began, fired = threading.Event(), threading.Event(), threading.Event()

    with live.connect() as runner:

        def calls(name: str) -> None:
            for index in itertools.count():
                assert shell(runner, f"echo {name}-{index}").text == f"{name}-{index}\n"
                if over.is_set():
                    return

        def timed_out() -> None:
            done = runner.call("shell_run", stay, deadline=1.0, intent="timed out")
            assert done.outcome.kind == "timed_out"
            assert done.text == "began\n"

        def cancelled() -> None:
            with runner.stream("shell_run", stay, intent="cancelled") as stream:
                next(stream)
                with beside(stream.cancel):
                    assert stream.result().outcome.kind == "cancelled"

        def left() -> None:
            with runner.stream("shell_run", {"argv": ["yes"]}, intent="left") as stream:
                next(stream)

        def interrupted() -> None:
            def press() -> None:
                if began.is_set() and not fired.is_set():
                    fired.set()
                    raise KeyboardInterrupt

            with nagging(press, fired.is_set), pytest.raises(KeyboardInterrupt):
                runner.call("shell_run", stay, intent="interrupted", on_output=lambda _: began.set())

        with beside(*[lambda name=f"t{index}": calls(name) for index in range(4)]):
            try:
                with beside(timed_out, cancelled, left):
                    interrupted()
            finally:
                over.set()
        assert runner.lost is None

    def ends() -> dict[str, str]:
        said = {entry.call: entry.outcome for entry in live.entries(entries.Outcome)}
        return {
            entry.intent: said.get(entry.call, "") for entry in live.entries(entries.Call) if entry.intent in wanted
        }

    wanted = {"timed out": "timed_out", "cancelled": "cancelled", "left": "cancelled", "interrupted": "cancelled"}
    wait(lambda: ends() == wanted)


def test_an_interrupt_cancels_the_call_and_leaves_the_connection(live: Daemon) -> None:
    code = """
import json, os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have inherited that it is ignored
from runner.client import connect
told = []
with connect(credentials=sys.stdin.buffer.read()) as runner:
    def press(_):  # any moment from here on is right
        threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    for kind in ("call", "stream"):
        try:
            if kind == "call":
                runner.call("shell_run", {"argv": ["sh", "-c", "echo began; sleep 600"]}, on_output=press)
            else:
                with runner.stream("shell_run", {"argv": ["sh", "-c", "echo began; sleep 600"]}) as stream:
                    press(next(stream))
                    stream.result()
        except KeyboardInterrupt:
            told.append(kind)
        told.append(runner.call("shell_run", {"argv": ["echo", "usable"]}).text)
    told.append(runner.lost)
print(json.dumps(told))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=live.credentials(task="interrupted"),
        capture_output=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == ["call", "usable\n", "stream", "usable\n", None]

    def ends() -> list[str]:
        return [entry.outcome for entry in live.entries(entries.Outcome) if entry.task == "interrupted"]

    wait(lambda: len(ends()) == 4)
    assert sorted(ends()) == ["cancelled", "cancelled", "exited", "exited"]


def mute(daemon: Daemon, handed: bytes) -> Any:
    """The twin: a client that is welcomed and then says nothing. Returns the daemon's last word to it."""
    identity, reader = Identity(find_credentials(handed)), FrameReader(1 << 20)
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(agent.FromDaemon)
    message = None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(daemon.place / "run" / "agent.sock"))
        while data := sock.recv(1 << 16):
            for body in reader.feed(data):
                message = decoder.decode(body)
                if isinstance(message, agent.Challenge):
                    proof = identity.prove_hello(message)
                    sock.sendall(encode(agent.Hello(version=1, chain=identity.chain, proof=proof)))
    return message


def test_an_idle_client_outlives_a_mute_one(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[limits]\nheartbeat_s = 1.0\n")
    with daemon.connect() as runner:
        assert shell(runner, "echo before").ok
        for _ in range(2):
            last = mute(daemon, daemon.credentials())
            assert isinstance(last, agent.Closing)
            assert "silent" in last.refusal.reason
        assert runner.lost is None
        assert shell(runner, "echo after").text == "after\n"


def test_a_stalled_daemon_holds_its_callers_and_loses_nothing(live: Daemon) -> None:
    gate = live.child("gate")
    data = os.urandom(400_000)
    with live.connect() as runner:
        assert shell(runner, "true").ok
        gate.suspend()
        try:
            threads = [threading.Thread(target=runner.put, args=(f"f{index}", data)) for index in range(3)]
            threads += [threading.Thread(target=shell, args=(runner, f": {'x' * 100_000}")) for _ in range(6)]
            for thread in threads:
                thread.start()
            wait(lambda: runner._link._end.backlog())  # the kernel takes no more
        finally:
            gate.resume()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert all(runner.get(f"f{index}") == data for index in range(3))


def test_streams_that_nobody_reads_hold_up_no_upload(
    make_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their output fills the daemon's side until it reads no more of ours; then we fill ours."""
    monkeypatch.setattr(links, "IDLE_S", 3600.0)
    daemon = make_daemon(config="[limits]\noutput_window = 2097152\n")
    data = os.urandom(3 << 20)
    flood = {"argv": ["head", "-c", "3000000", "/dev/zero"]}
    with daemon.connect() as runner, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(runner.stream("shell_run", flood)) for _ in range(3)]
        wait(lambda: unread(runner) > 100_000)
        full = unread(runner)
        runner.put("data", data)
        assert unread(runner) < full  # it had to read to be able to write
        assert runner.get("data") == data
        for stream in streams:
            assert sum(len(chunk.data) for chunk in stream) == 3_000_000
            assert stream.result().ok


def unread(runner: Runner) -> int:
    """Bytes that wait for us in the kernel."""
    return int.from_bytes(fcntl.ioctl(runner._link._end._socket, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_daemon_that_dies_is_noticed_by_whoever_waits(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    with daemon.connect() as runner:
        errors: list[BaseException] = []
        began = threading.Semaphore(0)

        def work() -> None:
            try:
                shell(runner, "echo began; sleep 600", on_output=lambda _: began.release())
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert began.acquire(timeout=60)
        daemon.child("gate").send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert {type(error).__name__ for error in errors} == {"Interrupted"}
        assert runner.lost is not None
    daemon.ended()
