"""T13: an issuer's key is rotated and retired under a daemon that serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon, programs
from typer.testing import CliRunner

from runner.cli import keys
from runner.client import CallError
from runner.evidence.acts import Act, Wanted, acts
from runner.evidence.read import Ledger, load_verifier
from runner.ledger import entry as entries
from runner.wire import admin

pytestmark = pytest.mark.docker

QUICK = {"argv": ["true"]}
LONG = {"argv": ["sleep", "300"]}


def command(*words: str) -> None:
    done = CliRunner().invoke(keys.app, list(words))
    assert done.exit_code == 0, done.output


def reload(daemon: Daemon) -> None:
    before = len(daemon.said())
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: " is in force" in daemon.said()[before:])


def works(daemon: Daemon, handed: bytes) -> bool:
    try:
        with daemon.connect(handed) as runner:
            return runner.call("shell_run", QUICK).ok
    except CallError as error:
        if (error.code, error.reason) != ("unauthenticated", "the token chain was not accepted"):
            raise
        return False


def test_old_tokens_are_valid_until_their_key_is_retired_and_refused_at_once_then(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon()
    folder: Path = daemon.place
    where = ("--dir", str(folder))
    first = daemon.issuer.public.thumbprint
    old = daemon.credentials(task="t-old")
    command("rotate", *where)
    daemon.issuer, _ = keys.load_issuer(folder / "issuer.key")
    second = daemon.issuer.public.thumbprint
    new = daemon.credentials(task="t-new")
    assert (works(daemon, old), works(daemon, new)) == (True, False)  # the daemon was not told yet
    reload(daemon)
    assert (works(daemon, old), works(daemon, new)) == (True, True)

    command("retire", first, *where)
    assert works(daemon, old)
    with daemon.connect(old) as stays, daemon.connect(new) as goes_on:
        assert stays.call("shell_run", QUICK).ok
        reload(daemon)
        with pytest.raises(CallError) as gone:
            stays.call("shell_run", QUICK)
        assert gone.value.code == "revoked"
        assert goes_on.call("shell_run", QUICK).ok
    assert [works(daemon, old) for _ in range(20)] == [False] * 20
    assert works(daemon, new)

    (ended,) = [entry for entry in daemon.entries(entries.TaskEnd) if entry.task == "t-old"]
    assert (ended.reason, ended.by, ended.operator) == ("the issuer's key was retired", -1, None)  # by a signal
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert (works(daemon, old), works(daemon, new)) == (False, True)
    told: list[Any] = [entry.anchors for entry in daemon.entries() if isinstance(entry, entries.Start | entries.Reload)]
    assert told == [(first,), tuple(sorted((first, second))), (second,), (second,)]
    assert daemon.verifies()


def test_what_runs_on_a_retired_key_is_dead_when_the_operator_is_answered(make_daemon: Callable[..., Daemon]) -> None:
    """Detached calls too, which no connection holds; those on the key that stays go on."""
    daemon = make_daemon()
    where = ("--dir", str(daemon.place))
    first = daemon.issuer.public.thumbprint
    old = daemon.credentials(task="t-old")
    command("rotate", *where)
    daemon.issuer, _ = keys.load_issuer(daemon.place / "issuer.key")
    daemon.ask(admin.Reload())
    new = daemon.credentials(task="t-new")
    calls = {}
    for task, handed in (("t-old", old), ("t-new", new)):
        with daemon.connect(handed) as runner:
            calls[task] = runner.call("shell_run", LONG, detach=True).call
    daemon.wait(lambda: len([each for pid in daemon.sandbox_pids() for each in programs(pid)]) == 2)
    command("retire", first, *where)
    done = daemon.ask(admin.Reload(why="it was stolen"))
    assert done.affected == 1
    assert len([each for pid in daemon.sandbox_pids() for each in programs(pid)]) == 1
    assert daemon.outcome(calls["t-old"]).outcome == "killed"
    (ended,) = daemon.entries(entries.TaskEnd)
    assert (ended.task, ended.operator) == ("t-old", entries.Operator(name="root", uid=0))
    with daemon.connect(new) as runner:
        assert runner.call("shell_run", QUICK).ok
    assert not works(daemon, old)
    last = [act for act in told(daemon) if act.kind == "reload"][-1]
    assert f"retires issuer's key {first}" in last.what
    assert last.why == "it was stolen"
    assert daemon.verifies()


def told(daemon: Daemon) -> list[Act]:
    folder = daemon.state / "ledger"
    return list(acts(Ledger(folder, load_verifier("", folder)), Wanted()))
