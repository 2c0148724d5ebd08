"""Starting, stopping and reloading a daemon where something is in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from house import Daemon, alive

from runner.errors import EXIT_UNAVAILABLE
from runner.ledger import entry as entries

pytestmark = pytest.mark.docker


def _start(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", "serve", "--config", str(daemon.place / "runner.toml")],
        capture_output=True, text=True, timeout=90, check=False, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_lies_where_the_socket_belongs_is_never_followed_or_removed(
    kind: str, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(start=False)
    (daemon.place / "run").mkdir(mode=0o711)
    inside = daemon.place / "run" / "agent.sock"
    target = daemon.place / "target"
    target.write_text("kept")
    if kind == "file":
        inside.write_text("kept")
    elif kind == "link":
        inside.symlink_to(target)
    else:
        inside.mkdir()
    done = _start(daemon)
    assert done.returncode == EXIT_UNAVAILABLE
    assert "no socket lies in the way" in done.stderr
    assert os.path.lexists(inside)
    assert target.read_text() == "kept"


def test_a_stale_socket_is_replaced(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    for process in [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children()]:
        process.kill()
    daemon.stop()
    assert (daemon.place / "run" / "agent.sock").is_socket()
    daemon.start()
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["true"]}).ok


@pytest.mark.parametrize("name", ["run", "state"])
def test_a_linked_folder_is_refused(name: str, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(start=False)
    (daemon.place / "elsewhere").mkdir()
    (daemon.place / name).symlink_to(daemon.place / "elsewhere")
    done = _start(daemon)
    assert done.returncode == EXIT_UNAVAILABLE
    assert "not a folder" in done.stderr
    assert not list((daemon.place / "elsewhere").iterdir())


@pytest.mark.parametrize("after", [0.3, 0.6, 1.0])
def test_a_stop_during_the_start_ends_it_and_leaves_nothing(after: float, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(start=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "serve", "--config", str(daemon.place / "runner.toml")],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
    )  # fmt: skip
    time.sleep(after)  # wherever in its start that is
    family = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), said
    assert not any(alive(child.pid) for child in family)
    assert b"Traceback" not in said


def test_a_broken_catalogue_is_refused_with_file_and_line_and_the_old_one_stays(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    import shutil

    root = Path(__file__).parents[2]
    for name in ("profiles", "tools", "policies"):
        shutil.copytree(root / name, tmp_path / name)
    daemon = make_daemon(catalogue=tmp_path)
    policy = next((tmp_path / "policies").glob("*.cedar"))
    good = policy.read_text()
    policy.write_text("permit (\n  nonsense\n" + good)
    os.kill(daemon.pid, signal.SIGHUP)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: "the old one stays" in daemon.said(), 20)
    assert f"{policy.name}:" in daemon.said()
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["true"]}).ok
        policy.write_text(good + "\n// changed\n")
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait(lambda: daemon.entries(entries.Reload), 20)
        assert runner.call("shell_run", {"argv": ["true"]}).ok
    assert daemon.stop() == 0


def test_a_stop_does_not_wait_for_an_engine_that_comes_back(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.child("engine").kill()
    daemon.wait(lambda: "it is started again" in daemon.said(), 10)
    assert daemon.stop() == 0
    assert daemon.entries(entries.Stop)
    assert daemon.verifies()
