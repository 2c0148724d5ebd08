"""T12: authority that is taken back is gone, from running calls too, down the tree, and after a restart."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from house import Daemon, programs

from runner.client import CallError, Credentials, Runner, attenuate, connect
from runner.ledger import entry as entries
from runner.token import credentials
from runner.token.issue import own_claims
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


def test_no_call_begins_after_the_operator_was_answered(daemon: Daemon) -> None:
    """Four connections below a middle token call as fast as they can, one beside it too, while it is revoked."""
    root = credentials.parse(daemon.credentials(depth=2))
    middle, beside = (attenuate(["shell_run"], depth=1, credentials=root) for _ in range(2))
    below = [attenuate(["shell_run"], credentials=middle) for _ in range(4)]
    began: list[float] = []
    codes: list[str] = []
    flowing, over = threading.Event(), threading.Event()

    def flood(handed: Credentials) -> None:
        with connect(credentials=handed) as runner:
            try:
                while not over.is_set():
                    now = time.monotonic()
                    if runner.call("shell_run", QUICK).ok:
                        began.append(now)
                        flowing.set()
            except CallError as error:
                codes.append(error.code)

    threads = [threading.Thread(target=flood, args=(handed,)) for handed in below]
    with connect(credentials=root) as boss, connect(credentials=beside) as other:
        assert boss.call("shell_run", QUICK).ok
        for thread in threads:
            thread.start()
        assert flowing.wait(60)
        jti = own_claims(middle.leaf).jti
        position = daemon.ask(admin.Revoke(kind="token", value=jti, why="a test")).position
        answered = time.monotonic()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert codes == ["revoked"] * 4
        assert max(began) < answered
        assert boss.call("shell_run", QUICK).ok
        assert other.call("shell_run", QUICK).ok
    late = [
        entry for entry in daemon.entries()[position + 1 :] if isinstance(entry, entries.Call) and jti in entry.chain
    ]
    assert len(late) <= 4  # each was asked for before the operator asked
    assert {daemon.outcome(entry.call).outcome for entry in late if entry.plan} <= {"killed", "exited"}
