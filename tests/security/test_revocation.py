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
from runner.errors import RunnerError
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


CLOSABLE = {
    "agent": {"kind": "agent", "value": "a-mine"},
    "owner": {"kind": "owner", "value": "o-mine"},
    "everything": {"kind": "everything"},
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


def announces(daemon: Daemon, **wish: Any) -> Any:
    """A root token that was announced, or the refusal."""
    try:
        return daemon.credentials(**wish)
    except RunnerError as error:
        return error.refused


@pytest.mark.parametrize("kind", sorted(CLOSABLE))
def test_what_was_closed_takes_nothing_new_until_its_release(kind: str, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    mine = {"agent": "a-mine", "owner": "o-mine"}
    old = daemon.credentials(**mine)
    daemon.ask(admin.Revoke(**CLOSABLE[kind], why="a test", until_released=True))  # type: ignore[arg-type]  # parametrized
    (revoked,) = daemon.entries(entries.Revoke)
    assert (revoked.target, revoked.until_released) == (kind, True)
    named = " ".join(filter(None, CLOSABLE[kind].values()))
    assert daemon.ask(admin.Status()).closed == (named,)

    def closed() -> None:
        told = announces(daemon, **mine)
        assert (told.code, told.field) == ("revoked", kind)
        assert f"runner token release --{named} --why" in told.next_step
        other = announces(daemon, agent="a-other", owner="o-other")
        if kind == "everything":
            assert other.code == "revoked"
        else:  # the twin: who is not meant goes on
            with daemon.connect(other) as agent:
                assert agent.call("shell_run", QUICK).ok
        assert refused(lambda: daemon.connect(old)) == "revoked"

    closed()
    daemon.stop(signal.SIGKILL)
    daemon.start()
    closed()
    with pytest.raises(RunnerError) as nothing:  # another name is not what is closed
        daemon.ask(admin.Reopen(kind="agent", value="a-nobody", why="a test"))
    assert nothing.value.refused.allowed == named
    position = daemon.ask(admin.Reopen(**CLOSABLE[kind], why="it was mended")).position  # type: ignore[arg-type]  # parametrized
    entry = daemon.entries()[position]
    assert isinstance(entry, entries.Reopen)
    assert (entry.target, entry.why, entry.operator) == (kind, "it was mended", entries.Operator(name="root", uid=0))

    def opened() -> None:
        with daemon.connect(**mine) as agent:
            assert agent.call("shell_run", QUICK).ok
        assert refused(lambda: daemon.connect(old)) == "revoked"
        assert daemon.ask(admin.Status()).closed == ()

    opened()
    daemon.stop(signal.SIGKILL)
    daemon.start()
    opened()
    daemon.stop(signal.SIGKILL)  # and where state is lost, from the ledger alone
    for left in (daemon.state / "gate").glob("state.db*"):
        left.unlink()
    daemon.start()
    opened()
    assert daemon.verifies()


def test_a_closed_name_is_closed_to_sub_agents_too(make_daemon: Callable[..., Daemon]) -> None:
    """Derived tokens are made offline, by parents whose own root token stands: they are refused where they are used."""
    daemon = make_daemon()

    def child(root: Credentials, name: str) -> Credentials:
        return attenuate(["shell_run"], agent=name, credentials=root)

    before = credentials.parse(daemon.credentials(depth=1))
    with connect(credentials=child(before, "low")) as low:
        running = begin(low)
        daemon.ask(admin.Revoke(kind="agent", value="low", why="a test", until_released=True))
        assert daemon.outcome(running[1].call).outcome == "killed"
    during = credentials.parse(daemon.credentials(depth=1))  # its own name is open
    for root in (before, during):
        with pytest.raises(CallError) as told:
            connect(credentials=child(root, "low"))
        assert (told.value.code, told.value.reason) == (
            "revoked",
            "the agent was revoked, until an operator releases it",
        )
        with connect(credentials=child(root, "high")) as high:  # the twin
            assert high.call("shell_run", QUICK).ok
    daemon.ask(admin.Reopen(kind="agent", value="low", why="a test"))
    for root in (before, during):  # authority from before the release is not raised from the dead by it
        assert refused(lambda root=root: connect(credentials=child(root, "low"))) == "revoked"  # type: ignore[misc]  # bound at once
    after = credentials.parse(daemon.credentials(depth=1))
    with connect(credentials=child(after, "low")) as low:
        assert low.call("shell_run", QUICK).ok
    assert daemon.verifies()


def test_what_is_for_ever_is_not_released(daemon: Daemon) -> None:
    for kind in ("token", "task"):
        with pytest.raises(RunnerError) as told:
            daemon.ask(admin.Revoke(kind=kind, value="t-for-ever", why="a test", until_released=True))  # type: ignore[arg-type]  # parametrized
        assert "for ever" in told.value.refused.reason
    daemon.ask(admin.Revoke(kind="agent", value="a-as-of-now", why="a test"))
    with pytest.raises(RunnerError) as told:  # revoked as of now, it is open: there is nothing to release
        daemon.ask(admin.Reopen(kind="agent", value="a-as-of-now", why="a test"))
    assert "is not closed" in told.value.refused.reason
    with daemon.connect(agent="a-as-of-now") as agent:
        assert agent.call("shell_run", QUICK).ok


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
