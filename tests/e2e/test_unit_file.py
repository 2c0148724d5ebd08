"""packaging/toolrunner.service: systemd takes it, and it says what the daemon needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from house import Daemon

from runner.broker import master
from runner.errors import EXIT_INVALID
from runner.ledger import entry as entries
from runner.wire import admin

UNIT = Path(__file__).parents[2] / "packaging" / "toolrunner.service"
NEEDED = {
    "Type": "notify",  # parent says READY=1 once gate and engine serve, RELOADING=1 and STOPPING=1
    "NotifyAccess": "main",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "KillMode": "mixed",  # SIGTERM to the parent alone: it ends its children in order
    "Restart": "on-failure",
    "RestartPreventExitStatus": str(EXIT_INVALID),
    "RuntimeDirectory": "toolrunner",
    "StateDirectory": "toolrunner",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "UMask": "0077",
    "LimitMEMLOCK": "infinity",  # broker keeps secrets out of the swap area
}
# setuid and namespaces for the walls, Docker's socket and the sandboxes' control sockets, /proc of containers
CAPABILITIES = {"CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_KILL", "CAP_SYS_PTRACE"}
CAPABILITIES |= {"CAP_NET_ADMIN"}  # broker's loopback


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", ";", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def test_it_says_what_the_daemon_needs() -> None:
    found = directives(UNIT.read_text())
    for key, value in NEEDED.items():
        assert found.get(key) == [value], key
    (start,) = found["ExecStart"]
    assert start.endswith("/bin/runner serve --config /etc/toolrunner/runner.toml")
    assert set(found["CapabilityBoundingSet"][0].split()) >= CAPABILITIES
    # Longer than the drain and what follows it, or systemd kills what is being sealed.
    assert int(found["TimeoutStopSec"][0]) >= 20 + 5 + 10 + 20 + 30
    assert "docker.service" in found["After"][0].split()
    assert "PrivateNetwork" not in found  # gate and recorder make their own empty namespaces


def test_systemd_takes_it(tmp_path: Path) -> None:
    unit = tmp_path / "toolrunner.service"
    text = UNIT.read_text()
    (start,) = directives(text)["ExecStart"]
    unit.write_text(text.replace(start.split()[0], sys.executable, 1))
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # the same file is then held to its form alone
        sections = [line for line in text.splitlines() if line.startswith("[")]
        assert sections == ["[Unit]", "[Service]", "[Install]"]
        assert all("=" in line for line in text.splitlines() if line and line[0] not in "#[")
        return
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "toolrunner.service" in line]
    assert said == []
    unit.write_text(unit.read_text().replace("Type=notify", "Type=notfy"))  # that it would have said so
    broken = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert "toolrunner.service" in broken.stderr


@pytest.mark.docker
def test_a_daemon_serves_with_those_capabilities_alone(tmp_path: Path, make_daemon: Callable[..., Daemon]) -> None:
    """All of its processes have no more than the unit leaves them, and the master key comes from a credential."""
    (names,) = directives(UNIT.read_text())["CapabilityBoundingSet"]
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names.split())])
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / master.CREDENTIAL).write_bytes(master.fresh())
    bounded = tmp_path / "bounded"
    bounded.write_text(
        f"#!/bin/sh\nexport CREDENTIALS_DIRECTORY={credentials}\n"
        f'exec setpriv --bounding-set={bounding} --no-new-privs {sys.executable} "$@"\n'
    )
    bounded.chmod(0o755)
    daemon = make_daemon(python=str(bounded))
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["echo", "it serves"]}).text == "it serves\n"
    daemon.ask(admin.SetSecret(name="a-key", value=b"a value to be kept"))
    assert [each.name for each in daemon.entries(entries.Secret)] == ["a-key"]
    assert not (daemon.state / "broker" / master.FILE).exists()
    for name in ("gate", "recorder", "egress", "broker", "engine"):
        told = [key for key in daemon.child(name).environ() if key == "CREDENTIALS_DIRECTORY"]
        assert bool(told) == (name == "broker"), name
