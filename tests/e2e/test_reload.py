"""SIGHUP: a whole catalogue comes into force at once, a broken one not at all, and no call ever sees half of each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import EVERY_TOOL, Daemon

from runner.cli.init import lay_out
from runner.client.errors import CallError
from runner.ledger import entry as entries
from runner.wire import admin

pytestmark = pytest.mark.docker

NEW_TOOL = '"shell_run", '  # in profiles/default.toml's list
NO_SHELL = "permit (principal, action in ["
IN_FORCE = " is in force"
REFUSED = "the new catalogue is refused and the old one stays: "


@pytest.fixture
def served(make_daemon: Callable[..., Daemon], tmp_path: Path) -> tuple[Daemon, Path]:
    """A daemon on a catalogue of its own."""
    lay_out(tmp_path / "catalogue")
    return make_daemon(catalogue=tmp_path / "catalogue"), tmp_path / "catalogue"


def reload(daemon: Daemon, says: str = IN_FORCE) -> str:
    """SIGHUP; the log's line that answers it."""
    before = len(daemon.said())
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: IN_FORCE in daemon.said()[before:] or REFUSED in daemon.said()[before:])
    lines = daemon.said()[before:].splitlines()
    assert [line for line in lines if says in line], lines
    return next(line for line in lines if says in line)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_adding_a_tool_is_adding_a_folder(served: tuple[Daemon, Path], runner: Any) -> None:
    daemon, catalogue = served
    granted = {name: {} for name in (*EVERY_TOOL, "word_count")}
    with daemon.connect(tools=granted) as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        assert "word_count" not in [tool.name for tool in agent.tools()]
        before = agent.tools_digest
        runner("tool", "new", "word_count", "--dir", catalogue / "tools")
        edit(catalogue / "profiles/default.toml", NEW_TOOL, f'{NEW_TOOL}"word_count", ')
        runner("tool", "check", "word_count", "--tools", catalogue / "tools", "--profiles", catalogue / "profiles")
        assert "word_count" not in [tool.name for tool in agent.tools()]  # nothing changes before it is asked for
        reload(daemon)
        daemon.wait(lambda: agent.tools_digest != before, 10)
        assert "word_count" in [tool.name for tool in agent.tools()]
        done = agent.call("word_count", {"text": "one two three"})  # in the task that was there before
        assert (done.ok, done.value) == (True, {"words": 3})
    with daemon.connect(tools=granted) as other:
        assert other.call("word_count", {"text": "four"}).value == {"words": 1}
    (start,), (swap,) = daemon.entries(entries.Start), daemon.entries(entries.Reload)
    assert swap.before == start.catalogue
    assert swap.after == daemon.ask(admin.Status()).catalogue != swap.before
    assert daemon.verifies()


BREAK: dict[str, tuple[str, str, str, str]] = {
    # what is broken: file, old, new, what the log's line must name
    "policy": ("policies/base.cedar", '@id("read-workspace")\n', "", "policies/base.cedar:"),
    "policy syntax": ("policies/base.cedar", "permit (", "permitt (", "policies/base.cedar:"),
    "manifest": ("tools/fs_read/tool.toml", 'consequence = "low"', "consequence = 1", "tools/fs_read/tool.toml:"),
    "profile": ("profiles/default.toml", "pids = 128", "pids = 1", "profiles/default.toml:"),
    "seccomp": ("profiles/seccomp/default.json", "{", "[", "profiles/seccomp/default.json"),
}


def test_a_broken_catalogue_is_refused_and_the_old_one_stays(served: tuple[Daemon, Path]) -> None:
    daemon, catalogue = served
    first = daemon.ask(admin.Status())
    broken = {name: (catalogue / path, old, new, place) for name, (path, old, new, place) in BREAK.items()}
    broken["config"] = (daemon.place / "runner.toml", "[peers]", "[peeers]", "runner.toml:")
    section = "[sandboxes]"
    broken["config value"] = (daemon.place / "runner.toml", section, f"{section}\nmaximum = true", "runner.toml:")
    broken["what cannot change"] = (daemon.place / "runner.toml", 'run = "run"', 'run = "other"', "runner.toml")
    with daemon.connect() as agent:
        digest = agent.tools_digest
        for name, (path, old, new, place) in broken.items():
            kept = path.read_text()
            edit(path, old, new)
            line = reload(daemon, REFUSED)
            assert place in line, name
            assert " · next: " in line, name
            assert agent.call("shell_run", {"argv": ["true"]}).ok, name
            path.write_text(kept)
        assert agent.tools_digest == digest
        now = daemon.ask(admin.Status())
        assert (now.catalogue, now.policy) == (first.catalogue, first.policy)
        assert daemon.entries(entries.Reload) == []
        edit(catalogue / "policies/base.cedar", "input: write elsewhere", "input: write somewhere else")
        reload(daemon)  # the daemon still takes a good one
        daemon.wait(lambda: daemon.ask(admin.Status()).policy != first.policy, 10)
    assert len(daemon.entries(entries.Reload)) == 1


def test_a_removed_permit_holds_from_the_next_call_on(served: tuple[Daemon, Path]) -> None:
    daemon, catalogue = served
    with daemon.connect() as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        edit(catalogue / "policies/base.cedar", 'permit (principal, action in [Action::"shell_run", ', NO_SHELL)
        reload(daemon)
        with pytest.raises(CallError) as refused:
            agent.call("shell_run", {"argv": ["true"]})
        assert refused.value.code == "denied"
        assert agent.call("python_run", {"code": "pass"}).ok


def test_peers_are_read_anew(served: tuple[Daemon, Path]) -> None:
    """`runner exec` tells an operator to add a user to [peers] and reload: that has to be enough."""
    daemon, _ = served
    daemon.connect().close()
    edit(daemon.place / "runner.toml", 'agents = [0, "runner-demo"]', 'agents = ["runner-demo"]')
    reload(daemon)
    with pytest.raises(CallError) as refused:
        daemon.connect()
    assert refused.value.code == "unauthenticated"
    edit(daemon.place / "runner.toml", 'agents = ["runner-demo"]', 'agents = [0, "runner-demo"]')
    reload(daemon)
    daemon.connect().close()


def test_a_swap_under_load_mixes_nothing(served: tuple[Daemon, Path]) -> None:
    """Policy and manifest change together, again and again, while calls run: each call is judged by one pair."""
    daemon, catalogue = served
    policy, manifest = catalogue / "policies/base.cedar", catalogue / "tools/shell_run/tool.toml"
    whole = {"a": (policy.read_text(), manifest.read_text())}
    whole["b"] = (
        whole["a"][0].replace('@id("run-programs")', '@id("run-programs-b")'),
        whole["a"][1].replace("Run one program", "Run just one program", 1),
    )
    assert whole["b"][0] != whole["a"][0]
    assert whole["b"][1] != whole["a"][1]
    stop, failures, done = threading.Event(), [], []

    def some_more() -> None:
        """Wait until calls were judged by what is in force now, however slow the machine is."""
        enough = len(done) + 6
        daemon.wait(lambda: len(done) >= enough or failures)

    def load() -> None:
        with daemon.connect() as agent:
            while not stop.is_set():
                try:
                    done.append(agent.call("shell_run", {"argv": ["true"]}).call)
                except CallError as error:
                    failures.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        some_more()
        for name in ("b", "a", "b", "a", "b", "a"):
            policy.write_text(whole[name][0])
            manifest.write_text(whole[name][1])
            reload(daemon)
            some_more()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    swaps = daemon.entries(entries.Reload)
    assert len(swaps) == 6
    assert [swap.before for swap in swaps[1:]] == [swap.after for swap in swaps[:-1]]
    seen = {(call.decision.policy, call.decision.rules, call.tool_digest) for call in daemon.entries(entries.Call)}
    assert {rules for _, rules, _ in seen} == {("run-programs",), ("run-programs-b",)}
    assert len(seen) == 2  # two policies, two manifests, and never one of each
    assert {digest for digest, _, _ in seen} == {swap.policy for swap in swaps}
    assert daemon.verifies()
