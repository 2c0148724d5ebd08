"""Private folders: a checkout under one serves, because imports are done before privileges are dropped; an environment
under one is refused with that reason, because a child would die without a word."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.errors import EXIT_UNAVAILABLE
from runner.wire import admin

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = ("runner", "profiles", "tools", "policies", "Containerfile", "pyproject.toml")


@pytest.fixture
def private(open_folder: Path) -> Path:
    """A home that only root can enter."""
    folder = open_folder / "home"
    folder.mkdir(mode=0o700)
    return folder


def test_a_daemon_serves_from_a_private_checkout(
    open_folder: Path, private: Path, make_daemon: Callable[..., Daemon], make_environment: Any
) -> None:
    checkout = private / "checkout"
    checkout.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, checkout / name)
    python = make_environment(open_folder / "env", checkout)
    daemon = make_daemon(start=False, python=str(python))
    daemon.start()
    with daemon.connect() as agent:
        done = agent.call("shell_run", {"argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]}, sync=True)
        assert (done.stdout, done.stderr, done.outcome.exit_code) == (b"out\n", b"err\n", 3)
        assert agent.call("fs_write", {"path": "a", "content": "x"}).ok
        late = agent.call("python_run", {"code": "while True: pass"}, deadline=0.5)
        assert late.outcome.kind == "timed_out"
    assert str(python) in daemon.child("gate").cmdline()
    assert daemon.ask(admin.Status()).tasks == 1
    assert daemon.stop() == 0
    assert daemon.verifies()
    assert not re.search("ERROR|CRITICAL|Traceback|ModuleNotFound", daemon.said()), daemon.said()


def test_a_private_environment_is_refused_with_the_reason(
    private: Path, make_daemon: Callable[..., Daemon], make_environment: Any, runner: Any
) -> None:
    daemon = make_daemon(start=False)
    python = make_environment(private / "env", ROOT)
    config = daemon.place / "runner.toml"
    done = runner("serve", "--config", config, python=str(python), status=EXIT_UNAVAILABLE, timeout=20)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"user `runner-gate` cannot read the interpreter: {private} is closed to it" in done.stderr
    assert " · next: install the environment outside of a private home" in done.stderr
    assert not (daemon.place / "state").exists()
    private.chmod(0o711)  # the same environment, passable
    shown = runner("doctor", "--config", config, "--json", python=str(python)).stdout
    assert '"interpreter for runner-gate"' in shown
