"""T12, T09: authority that is taken back is gone, from running calls too, down the tree, and after a restart."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from house import Daemon, programs

from runner.client import CallError, Runner
from runner.ledger import entry as entries
from runner.wire import admin

WAITS = {"argv": ["sh", "-c", "echo go; exec sleep 300"]}
QUICK = {"argv": ["true"]}


def kinds(task: str) -> dict[str, admin.Revoke]:
    return {
        "task": admin.Revoke(kind="task", value=task, why="a test"),
        "agent": admin.Revoke(kind="agent", value=f"a-{task}", why="a test"),
        "owner": admin.Revoke(kind="owner", value=f"o-{task}", why="a test"),
        "everything": admin.Revoke(kind="everything", why="a test"),
    }


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(CallError) as caught:
        act()
    return caught.value.code


def begin(runner: Runner) -> Any:
    """A call whose process exists: its first output has come."""
    stream = runner.stream("shell_run", WAITS)
    running = stream.__enter__()
    next(iter(running))
    return stream, running


@pytest.mark.parametrize("kind", ["token", "task", "agent", "owner", "everything"])
def test_what_runs_is_dead_when_the_operator_is_answered(kind: str, make_daemon: Callable[..., Daemon]) -> None:
    """Of two tasks, the revoked one's call has no process left; the other's goes on. `everything` takes both."""
    daemon = make_daemon()
    handed = {
        name: daemon.credentials(task=name, agent=f"a-{name}", owner=f"o-{name}") for name in ("t-mine", "t-other")
    }
    with daemon.connect(handed["t-mine"]) as mine, daemon.connect(handed["t-other"]) as other:
        calls = {"t-mine": begin(mine), "t-other": begin(other)}
        jti = {token.who.task: token.jti for token in daemon.entries(entries.Token)}
        message = (kinds("t-mine") | {"token": admin.Revoke(kind="token", value=jti["t-mine"])})[kind]
        done = daemon.ask(message)
        taken = {"t-mine", "t-other"} if kind == "everything" else {"t-mine"}
        assert (done.affected, done.tokens) == (len(taken), len(taken))
        left = [program for pid in daemon.sandbox_pids() for program in programs(pid)]
        assert len(left) == 2 - len(taken)
        for task in taken:
            assert daemon.outcome(calls[task][1].call).outcome == "killed"
        (entry,) = daemon.entries(entries.Revoke)
        assert (entry.target, entry.value, entry.by) == (message.kind, message.value, 0)
        if kind != "everything":
            assert other.call("shell_run", QUICK).ok
        for name in taken:
            assert refused(lambda name=name: daemon.connect(handed[name])) in ("revoked", "task_ended")  # type: ignore[misc]  # bound at once
        if kind in ("agent", "owner", "everything"):  # as of then: what is granted afterwards stands
            with daemon.connect(agent="a-t-mine", owner="o-t-mine") as later:
                assert later.call("shell_run", QUICK).ok
    daemon.stop(signal.SIGKILL)
    daemon.start()
    for name in taken:
        assert refused(lambda name=name: daemon.connect(handed[name])) in ("revoked", "task_ended")  # type: ignore[misc]  # bound at once
    if kind != "everything":
        with daemon.connect(handed["t-other"]) as other:
            assert other.call("shell_run", QUICK).ok
    assert daemon.verifies()
