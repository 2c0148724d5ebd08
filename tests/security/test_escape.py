"""Every attempt of probes/escape.py from every place where a tool's code runs, beside the same attempts in a container
without the walls. What gets through and may is in WAIVED, with its reason; profiles/README.md prints the same list."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker as sdk
import pytest
from house import Daemon, _end, first_line

from runner.cli.init import lay_out
from runner.sandbox.lease import CANARY
from runner.sandbox.plan import _AUTHORITIES, _PROXY
from runner.wire import admin

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
PROBE = (ROOT / "tests/security/probes/escape.py").read_text()

# What may succeed; the reasons stand in profiles/README.md, row by row. None of it is at level "must".
WAIVED = {
    "neighbour.datagram",
    "neighbour.file",
    "neighbour.process",
    "neighbour.socket-table",
    "network.trust-rights",
    "proc.cmdline",
    "proc.fd-numbers",
    "proc.status",
    "process.pidfd-launcher",
    "process.queue-launcher",
    "process.signal-launcher",
    "read.boot-id",
    "read.host-paths",
    "read.load",
    "way.exec-memory",
    "way.tcp-listen",
}
# Of these, what a narrower profile closes: no socket with `seccomp_deny`, no way to one's launcher with "call".
CLOSED = {
    "shell_run": {"neighbour.datagram", "way.tcp-listen"},
    "python_run": {"neighbour.datagram", "way.tcp-listen"},
    "call_argv": {"process.pidfd-launcher", "process.queue-launcher", "process.signal-launcher"},
    "call_python": {"process.pidfd-launcher", "process.queue-launcher", "process.signal-launcher"},
}

# A fresh jail, in the package's own profile of tools with a network: it connects, and offers nothing.
_LAUNCHER = CLOSED["call_argv"]
CLOSED |= dict.fromkeys(("net_argv", "net_code", "net_python"), _LAUNCHER | {"way.tcp-listen"})
CLOSED["wide_argv"] = _LAUNCHER

# Where code of a tool runs. `open_…` and `call_…` have no seccomp_deny: the container's own filter alone. `net_…` have
# a network, a placeholder and a secret file in the profile `network`, `wide_…` the same in `call`.
WITHOUT = ("shell_run", "python_run", "open_argv", "open_python", "call_argv", "call_python")
NETWORKED = ("net_argv", "net_code", "net_python", "wide_argv")
MODES = (*WITHOUT, *NETWORKED)
GIVEN = {"given.port", "given.secret", "given.trust", "given.placeholder"}  # what they have; nobody else may
TOOL = """id = "{id}"
description = "For the tests of the walls."
consequence = "medium"
profile = "{profile}"
kind = "{kind}"
{argv}
[parameters]
type = "object"
additionalProperties = false
{schema}
"""
ARGV = '[parameters.properties.argv]\ntype = "array"\nitems = { type = "string" }\n'
CONTEXT = '[parameters.properties.context]\ntype = "object"\n'
RULE = """
[[egress]]
name = "service"
host = "api.example.test"
ports = [443]
tls = "inspect"
"""
SECRETS = """
[[secrets]]
name = "key-{delivery}"
variable = "{variable}"
delivery = "{delivery}"
{more}
"""
VARIABLES = (*_PROXY, *_AUTHORITIES, "NODE_USE_ENV_PROXY", CANARY, "SENT_KEY", "FILE_KEY")
TOOL_PROFILE = """name = "{name}"
kind = "tool"
description = "For the tests of the walls."
isolation = "{isolation}"
workspace = "write"
tmp = true
"""
# What a privileged container has, but CAP_SYS_RESOURCE: not every machine that runs these tests can give it.
CAPABILITIES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MKNOD
NET_ADMIN NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE
SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_TIME SYS_TTY_CONFIG"""


def catalogue(folder: Path) -> None:
    """The package's own, and for each isolation a tool profile without narrowing, with an argv and a python tool."""
    lay_out(folder)
    names = []
    for prefix, isolation in (("open", "launcher"), ("call", "call")):
        (folder / f"profiles/{prefix}.toml").write_text(TOOL_PROFILE.format(name=prefix, isolation=isolation))
        for kind in ("argv", "python"):
            name = f"{prefix}_{kind}"
            place = folder / "tools" / name
            place.mkdir()
            argv = 'argv = ["{argv}"]\n' if kind == "argv" else ""
            text = TOOL.format(
                id=name, profile=prefix, kind=kind, argv=argv, schema=ARGV if kind == "argv" else CONTEXT
            )
            (place / "tool.toml").write_text(text)
            if kind == "python":
                (place / "main.py").write_text(PROBE)
            names.append(name)
    network(folder)
    names += NETWORKED
    profile = folder / "profiles/default.toml"
    listed = ", ".join(f'"{name}"' for name in names)
    text = profile.read_text().replace('tools = ["shell_run"', f'tools = [{listed}, "shell_run"')
    text = text.replace("[ceilings]", 'delivery = ["inject", "file"]\n\n[ceilings]').replace(
        'shm = "0B"', 'shm = "4MiB"'
    )
    # The reports are of attempts, and their numbers are not to be taken for credentials.
    profile.write_text(f'{text}{RULE}\n[labels]\ncredential = "mark"\npii = "mark"\n')


def network(folder: Path) -> None:
    """The tools of `NETWORKED`."""
    more = RULE + SECRETS.format(
        delivery="inject", variable="SENT_KEY", more='destinations = ["service"]\nplaces = ["header:authorization"]'
    )
    more += SECRETS.format(delivery="file", variable="FILE_KEY", more="")
    for name in NETWORKED:
        place, profile = folder / "tools" / name, "call" if name.startswith("wide") else "network"
        if name == "net_code":
            shutil.copytree(folder / "tools/python_run", place)
            own = (place / "tool.toml").read_text().replace('"python_run"', '"net_code"')
            (place / "tool.toml").write_text(own.replace('"compute"', '"network"') + more)
            continue
        place.mkdir()
        python = name.endswith("python")
        text = TOOL.format(
            id=name, profile=profile, kind="python" if python else "argv", schema=CONTEXT if python else ARGV,
            argv="" if python else 'argv = ["{argv}"]\n',
        )  # fmt: skip
        (place / "tool.toml").write_text(text + more)
        if python:
            (place / "main.py").write_text(PROBE)
    permits = ", ".join(f'Action::"{name}"' for name in NETWORKED)
    (folder / "policies/network.cedar").write_text(
        f'@id("tests")\n@reason("the tests of the walls run")\npermit (principal, action in [{permits}], resource);\n'
    )


@pytest.fixture(scope="module")
def walled(tool_image: str) -> Iterator[Daemon]:
    """A daemon whose catalogue holds the tools above."""
    place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
    place.chmod(0o711)
    catalogue(place / "catalogue")
    daemon = Daemon(place, tool_image, catalogue=place / "catalogue")
    daemon.start()
    store_secrets(daemon)
    yield daemon
    _end(daemon)


def store_secrets(daemon: Daemon) -> None:
    init = [sys.executable, "-m", "runner", "secret", "init", "--config", "runner.toml"]
    subprocess.run(init, cwd=daemon.place, check=True, capture_output=True)
    for delivery in ("inject", "file"):
        daemon.ask(admin.SetSecret(name=f"key-{delivery}", value=secrets.token_hex(16).encode()))


TOOLS: dict[str, Any] = {name: {} for name in (*MODES, "egress")}


def arguments(mode: str, given: dict[str, Any]) -> dict[str, Any]:
    """The probe with this context, as that tool takes it."""
    if mode.endswith("python"):
        return {"context": given}
    if mode in ("python_run", "net_code"):
        return {"code": PROBE, "args": [json.dumps(given)]}
    return {"argv": ["python3", "-I", "-S", "-c", PROBE, json.dumps(given)]}


def walls_report(daemon: Daemon, mode: str) -> dict[str, Any]:
    """Every attempt from that place, beside a call of the same task, one with a network, and one of another task."""
    with daemon.connect(tools=TOOLS) as agent, daemon.connect(tools=TOOLS) as other:
        context: dict[str, Any] = {"variables": VARIABLES if mode in NETWORKED else ()}
        peers = []
        for whose, runner, tool in (
            ("neighbour", agent, "open_argv"), ("beside", agent, "wide_argv"), ("other", other, "open_argv")
        ):  # fmt: skip
            token = secrets.token_hex(8)
            peer = runner.stream(tool, arguments(tool, {"serve": token}))
            running = peer.__enter__()
            peers.append((peer, running))
            context[whose] = json.loads(first_line(running))
            assert context[whose]["token"] == token
        assert context["beside"]["port"] == 3128
        done = agent.call(mode, arguments(mode, context))
        assert done.ok, done.stderr.decode()
        for peer, running in peers:
            running.cancel()
            assert running.result().outcome.kind == "cancelled"  # it lived through all of it
            peer.__exit__(None, None, None)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def control(tool_image: str) -> dict[str, Any]:
    """The same attempts where none of our walls is: what they find shows that they can find."""
    api = sdk.APIClient(version="auto")
    body = {
        "Image": tool_image,
        "Entrypoint": ["sh", "-c", 'python3 -I -S -c "$0" "$1"; exit', PROBE, json.dumps({"stage": True})],
        "User": "0:0",
        "HostConfig": {
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "CapAdd": CAPABILITIES.split(),
            "SecurityOpt": ["seccomp=unconfined"],
            "MaskedPaths": [],
            "ReadonlyPaths": [],
            "DeviceCgroupRules": ["a *:* rwm"],
            "Tmpfs": {"/tmp": "mode=1777,exec", "/workspace": "mode=0777,exec,dev,suid"},
            "Memory": 1 << 30,
            "PidsLimit": 256,
        },
    }
    made = api.create_container_from_config(body)["Id"]
    try:
        api.start(made)
        api.wait(made)
        said = api.logs(made, stderr=False).decode()
        wrong = api.logs(made, stdout=False).decode()
    finally:
        api.remove_container(made, force=True)
        api.close()
    assert said, wrong
    return dict(json.loads(said))


def exposed(report: dict[str, Any]) -> dict[str, str]:
    return {name: found["detail"] for name, found in report.items() if found["outcome"] == "exposed"}


@pytest.mark.parametrize("mode", MODES)
def test_no_attempt_gets_out(walled: Daemon, control: dict[str, Any], mode: str) -> None:
    report = walls_report(walled, mode)
    assert set(report) == set(control)
    assert len(report) > 380
    out = exposed(report)
    assert {name: out[name] for name in out if report[name]["level"] == "must"} == {}
    # Equal, not only within: a waiver that is no longer needed goes.
    assert set(out) == (WAIVED | GIVEN if mode in NETWORKED else WAIVED) - CLOSED.get(mode, set())


def test_each_attempt_succeeds_where_the_walls_are_not(control: dict[str, Any]) -> None:
    """Or the kernel has no such thing, or the attempt says why a container cannot show it."""
    silent = {name: found["detail"] for name, found in control.items() if found["outcome"] == "contained"}
    assert {name for name in silent if not control[name]["control"]} == set()
    families = {name.partition(".")[0] for name in control}
    assert {name.partition(".")[0] for name in exposed(control)} == families
    assert len(exposed(control)) > 250


def test_the_probe_refuses_to_run_on_a_host() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROBE, "{}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused: " in done.stderr


def test_the_page_gives_a_reason_for_each_waiver_and_no_other() -> None:
    page = (ROOT / "profiles/README.md").read_text()
    rows = re.findall(r"^\| `([a-z]+\.[a-z-]+)` \| (.+) \|$", page, re.MULTILINE)
    assert {name for name, _ in rows} == WAIVED
    assert all(len(reason) > 20 for _, reason in rows)
