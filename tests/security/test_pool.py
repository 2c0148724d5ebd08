"""Sandboxes kept ready: a task's first call finds one open, and nothing of it is left whatever ends first."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
from house import Daemon

from runner.ledger import entry as entries

pytestmark = pytest.mark.docker
ECHO = {"argv": ["echo", "x"]}


def _ids(daemon: Daemon) -> set[str]:
    return {container["Id"] for container in daemon.containers()}


def _one_waits(daemon: Daemon, but: set[str]) -> set[str]:
    """The containers there are, once one runs that is not in `but`."""
    daemon.wait(lambda: [c for c in daemon.containers() if c["Id"] not in but and c["State"] == "running"])
    return _ids(daemon)


def test_a_first_call_runs_in_the_sandbox_that_waited_and_no_other_task_gets_it(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(config="pool = 1")
    waiting = _one_waits(daemon, set())
    with daemon.connect() as one:
        assert one.call("shell_run", {"argv": ["sh", "-c", "echo mine > f; cat f"]}).stdout == b"mine\n"
        assert waiting <= _ids(daemon)
        _one_waits(daemon, waiting)
        with daemon.connect() as two:
            assert two.call("shell_run", {"argv": ["ls", "-A"]}).stdout == b""
    daemon.wait(lambda: len(daemon.entries(entries.SandboxBegin)) == 2)
    assert len({entry.task for entry in daemon.entries(entries.SandboxBegin)}) == 2
    assert daemon.stop() == 0
    daemon.wait(lambda: not daemon.containers(), 20)


def test_a_first_call_finds_its_launcher_built_and_one_behind_other_walls_does_not(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(config="pool = 1")

    def launchers() -> set[int]:
        """Children of the seed, the only child of PID 1."""
        inside = [psutil.Process(pid).children() for pid in waiting]
        return {launcher.pid for seeds in inside for seed in seeds for launcher in seed.children()}

    daemon.wait(lambda: [pid for pid in daemon.sandbox_pids() if pid])
    waiting = daemon.sandbox_pids()
    daemon.wait(launchers)
    built = launchers()
    with daemon.connect() as one:
        assert one.call("shell_run", ECHO).stdout == b"x\n"
        assert len(built) == 1
        assert launchers() == built
        one.call("fs_list", {"path": "."})
        assert len(launchers() - built) == 1


def test_a_pool_that_is_just_filling_leaves_nothing(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="pool = 3")
    daemon.wait(daemon.containers)
    assert daemon.stop() == 0
    daemon.wait(lambda: not daemon.containers(), 20)
    assert list((daemon.place / "run/sandboxes").iterdir()) == []


def test_an_engine_that_dies_takes_the_pool_and_its_successor_fills_it(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="pool = 1")
    old = _one_waits(daemon, set())
    daemon.child("engine").kill()
    _one_waits(daemon, old)
    daemon.wait(lambda: not old & _ids(daemon))
    with daemon.connect() as runner:
        assert runner.call("shell_run", ECHO).stdout == b"x\n"


def test_a_waiting_sandbox_gives_its_place_to_a_task(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="pool = 1\nmaximum = 2")
    waiting = _one_waits(daemon, set())
    with daemon.connect() as one, daemon.connect() as two:
        assert one.call("shell_run", ECHO).ok
        _one_waits(daemon, waiting)
        assert two.call("shell_run", ECHO).ok
        assert len(_ids(daemon)) == 2
