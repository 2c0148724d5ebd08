"""Broken input to `runner serve`: one clear error with place and remedy, the documented status, nothing left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from house import Daemon

from runner.cli.init import lay_out
from runner.errors import EXIT_INVALID, EXIT_UNAVAILABLE

pytestmark = pytest.mark.docker


def change(path: str, old: str, new: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        text = (place / path).read_text()
        assert old in text
        (place / path).write_text(text.replace(old, new, 1))

    return act


def add(path: str, text: str) -> Callable[[Path], None]:
    return lambda place: (place / path).write_text((place / path).read_text() + text) and None


def link(name: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        (place / "elsewhere").mkdir()
        (place / name).symlink_to(place / "elsewhere")

    return act


def occupied(place: Path) -> None:
    (place / "run").mkdir(mode=0o711)
    (place / "run" / "agent.sock").write_text("not a socket")


def closed_key(place: Path) -> None:
    (place / "issuer.pub").unlink()


CASES: dict[str, tuple[Callable[[Path], None], int, tuple[str, ...]]] = {
    # what is broken: how, the exit status, what the one line must say
    "config: not TOML": (change("runner.toml", "state = ", "state = = "), EXIT_INVALID, ("runner.toml:1", "not TOML")),
    "config: unknown key": (add("runner.toml", "\nmaxmum = 3\n"), EXIT_INVALID, ("runner.toml:1", "maxmum")),
    "config: wrong type": (
        add("runner.toml", '\n[limits]\nmax_frame = "big"\n'),
        EXIT_INVALID,
        ("limits.max_frame", "`int`"),
    ),
    "config: absent": (lambda place: (place / "runner.toml").unlink(), EXIT_INVALID, ("runner.toml", "runner init")),
    "config: telemetry": (
        add("runner.toml", '\n[telemetry]\nexport = "post"\n'),
        EXIT_INVALID,
        ("telemetry.export", "post"),
    ),
    "config: a limit of nothing": (
        add("runner.toml", "\n[limits]\ncalls_per_task = 0\n"),
        EXIT_INVALID,
        ("runner.toml:", "limits.calls_per_task", ">= 1"),
    ),
    "config: less than nothing": (
        change("runner.toml", "[sandboxes]\n", "[sandboxes]\nmaximum = -1\n"),
        EXIT_INVALID,
        ("runner.toml:", "sandboxes.maximum", ">= 1"),
    ),
    "peers: unknown user": (
        change("runner.toml", '"runner-demo"', '"nosuchuser"'),
        EXIT_INVALID,
        ("peers.agents", "no user `nosuchuser`"),
    ),
    "users: unknown user": (
        add("runner.toml", '\n[users]\ngate = "nosuchuser"\n'),
        EXIT_UNAVAILABLE,
        ("no user `nosuchuser`", "useradd"),
    ),
    "profile": (
        change("profiles/default.toml", "pids = 128", "pids = -1"),
        EXIT_INVALID,
        ("profiles/default.toml:", "ceilings.pids", "runner profile check"),
    ),
    "profile: lists no such tool": (
        change("profiles/default.toml", '"shell_run", ', '"shell_ran", '),
        EXIT_INVALID,
        ("profiles/default.toml:", "shell_ran", "known tools"),
    ),
    "manifest": (
        change("tools/fs_read/tool.toml", 'consequence = "low"', 'consequence = "tiny"'),
        EXIT_INVALID,
        ("tools/fs_read/tool.toml:", "tiny", "runner tool check"),
    ),
    "manifest: absent": (
        lambda place: (place / "tools/fs_read/tool.toml").unlink(),
        EXIT_INVALID,
        ("tools/fs_read", "tool.toml"),
    ),
    "policy: syntax": (
        add("policies/base.cedar", '\n@id("x")\npermit (principal, action == , resource);\n'),
        EXIT_INVALID,
        ("policies/base.cedar:",),
    ),
    "policy: unknown action": (
        add("policies/base.cedar", '\n@id("x")\npermit (principal, action == Action::"nope", resource);\n'),
        EXIT_INVALID,
        ("policies/base.cedar:", "nope"),
    ),
    "issuer key: garbage": (
        lambda place: (place / "issuer.pub").write_text("{") and None,
        EXIT_INVALID,
        ("issuer.pub", "runner keys init"),
    ),
    "issuer key: absent": (closed_key, EXIT_INVALID, ("issuer.pub", "No such file", "runner keys init")),
    "issuer key: another's": (
        change("runner.toml", "https://issuer.test", "https://other.test"),
        EXIT_INVALID,
        ("issuer.pub", "https://other.test"),
    ),
    "state folder: a link": (link("state"), EXIT_UNAVAILABLE, ("/state", "not a folder", "another place")),
    "run folder: a link": (link("run"), EXIT_UNAVAILABLE, ("/run", "not a folder", "another place")),
    "run folder: a file in the way": (occupied, EXIT_UNAVAILABLE, ("agent.sock", "no socket", "remove it")),
    "image": (
        change("runner.toml", 'image = "sha256:', 'image = "no-such-image:1" # "sha256:'),
        EXIT_UNAVAILABLE,
        ("no-such-image", "not on this host", "runner image build"),
    ),
    "engine: nobody at that port": (
        change("runner.toml", "[sandboxes]\n", '[sandboxes]\ndocker_host = "tcp://127.0.0.1:1"\n'),
        EXIT_UNAVAILABLE,
        ("tcp://127.0.0.1:1", "no Docker engine answers", "start the Docker engine"),
    ),
}


def broken(make_daemon: Callable[..., Daemon], spoil: Callable[[Path], None]) -> Daemon:
    """A daemon that was not started, with a catalogue and configuration of its own, spoilt."""
    daemon = make_daemon(start=False)
    lay_out(daemon.place / "new")
    for name in ("profiles", "tools", "policies"):
        (daemon.place / "new" / name).rename(daemon.place / name)
    text = (daemon.place / "runner.toml").read_text()
    folders = "".join(f'{name} = "{name}"\n' for name in ("profiles", "tools", "policies"))
    (daemon.place / "runner.toml").write_text(text.replace("[peers]\n", folders + "[peers]\n", 1))
    spoil(daemon.place)
    return daemon


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(case: str, make_daemon: Callable[..., Daemon], runner: Any) -> None:
    spoil, status, says = CASES[case]
    daemon = broken(make_daemon, spoil)
    done: subprocess.CompletedProcess[str] = runner(
        "serve", "--config", daemon.place / "runner.toml", status=status, timeout=60
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, done.stderr
    for words in (*says, " · next: "):
        assert words in lines[0]
    left_nothing(daemon)


def left_nothing(daemon: Daemon) -> None:
    run = daemon.place / "run"
    assert not run.exists() or not [path for path in run.rglob("*") if path.is_socket()]
    mine = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(daemon.place) in str(p.info["cmdline"])]
    assert mine == []
    if (daemon.place / "state" / "instance").is_file():
        assert daemon.containers() == []


def test_the_same_folder_unspoilt_serves(make_daemon: Callable[..., Daemon]) -> None:
    """The control: what the cases above break is whole before."""
    daemon = broken(make_daemon, lambda place: None)
    daemon.start()
    with daemon.connect() as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
    assert daemon.stop() == 0
    assert daemon.verifies()
    left_nothing(daemon)


def test_a_second_daemon_on_the_same_state_is_refused_and_the_first_unharmed(
    make_daemon: Callable[..., Daemon], runner: Any
) -> None:
    daemon = make_daemon()
    done = runner("serve", "--config", daemon.place / "runner.toml", status=EXIT_UNAVAILABLE)
    assert "another daemon uses this state directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with daemon.connect() as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok


def test_without_root_it_says_so(runner: Any) -> None:
    done = runner("serve", "--config", "/nonexistent", status=EXIT_UNAVAILABLE, user="nobody", extra_groups=[])
    assert "must be started by root" in done.stderr
    assert len(done.stderr.splitlines()) == 1
