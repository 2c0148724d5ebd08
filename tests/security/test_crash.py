"""kill -9 of each part in the middle of a call: no container, no half record, and the truth about the call."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from house import Daemon, alive

from runner.client.errors import CallError, Interrupted, Unavailable
from runner.errors import EXIT_UNAVAILABLE
from runner.ledger import entry as entries

pytestmark = pytest.mark.docker
SLOW = {"argv": ["sh", "-c", "echo go; sleep 300"]}


def _dies_in_a_call(daemon: Daemon, handed: bytes, kill: Callable[[], None]) -> str:
    """Start a slow call, kill a part, and see the client told at once. Returns the call's id."""
    with daemon.connect(handed) as runner, runner.stream("shell_run", SLOW, idempotency_key="once") as running:
        next(iter(running))
        call: str = running.call
        kill()
        with pytest.raises((Interrupted, Unavailable)):
            running.result()
    return call


@pytest.mark.parametrize("part", ["gate", "recorder", "parent"])
def test_a_killed_process_ends_the_daemon_and_the_next_start_tells_the_truth(
    part: str, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    handed = daemon.credentials()
    family = psutil.Process(daemon.pid).children()
    victim = psutil.Process(daemon.pid) if part == "parent" else daemon.child(part)
    call = _dies_in_a_call(daemon, handed, victim.kill)
    daemon.wait(lambda: not any(alive(process.pid) for process in family), 30)
    daemon.wait(lambda: not daemon.containers(), 30)
    assert daemon.ended() == (-signal.SIGKILL if part == "parent" else EXIT_UNAVAILABLE)
    daemon.start()
    assert daemon.outcome(call).outcome == "interrupted"
    assert daemon.entries(entries.Start)[-1].previous == "dead"
    assert daemon.verifies()
    with daemon.connect(handed) as runner:
        assert runner.workspace_lost
        with pytest.raises(CallError) as refused:
            runner.call("shell_run", SLOW, idempotency_key="once")
        assert refused.value.code == "interrupted"
        assert runner.call("shell_run", {"argv": ["echo", "on"]}).stdout == b"on\n"


def test_a_killed_engine_is_started_again_and_its_calls_end_interrupted(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    handed = daemon.credentials()
    engine = daemon.child("engine")
    with daemon.connect(handed) as runner:
        with runner.stream("shell_run", SLOW) as running:
            next(iter(running))
            engine.kill()
            assert running.result().outcome.kind == "interrupted"
        assert daemon.outcome(running.call).outcome == "interrupted"
        daemon.wait(lambda: "engine is back" in daemon.said(), 30)
        assert runner.call("shell_run", {"argv": ["echo", "back"]}).stdout == b"back\n"
        assert len(daemon.containers()) == 1
    states = [entry.state for entry in daemon.entries(entries.Degraded)]
    assert states == ["lost", "restored"]


def test_a_killed_guest_ends_its_calls_and_the_task_goes_on_in_a_new_sandbox(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon()
    with daemon.connect() as runner:
        with runner.stream("shell_run", SLOW) as running:
            next(iter(running))
            (pid,) = daemon.sandbox_pids()
            psutil.Process(pid).kill()
            assert running.result().outcome.kind == "interrupted"
        daemon.wait(lambda: pid not in daemon.sandbox_pids(), 10)
        assert runner.call("shell_run", {"argv": ["echo", "new"]}).stdout == b"new\n"
        daemon.wait(lambda: len(daemon.containers()) == 1, 5)  # the old one is gone, the new one stays


def test_a_stop_drains_seals_and_says_so(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[limits]\ndrain_s = 1.0\n")
    with daemon.connect() as runner, runner.stream("shell_run", SLOW) as running:
        next(iter(running))
        assert daemon.stop() == 0
        call = running.call
    assert daemon.outcome(call).outcome == "killed"
    assert not daemon.containers()
    (stop,) = daemon.entries(entries.Stop)
    assert not stop.clean
    assert daemon.verifies()
    daemon.start()
    assert daemon.entries(entries.Start)[-1].previous == "clean"


def test_a_second_daemon_on_the_same_state_is_refused(make_daemon: Callable[..., Daemon]) -> None:
    import subprocess
    import sys

    daemon = make_daemon()
    command: list[Any] = [sys.executable, "-m", "runner", "serve", "--config", daemon.place / "runner.toml"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == EXIT_UNAVAILABLE
    assert "another daemon uses this state directory" in second.stderr
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["true"]}).ok
