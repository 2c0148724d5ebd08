"""Commands against a running daemon, as an operator and an agent use them, with their documented exit statuses."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.cli.init import lay_out
from runner.client import CallError, TaskEnded
from runner.errors import EXIT_INVALID, EXIT_REFUSED, EXIT_TOOL, EXIT_UNAVAILABLE, EXIT_UNVERIFIED, EXIT_USAGE

pytestmark = pytest.mark.docker

AGENT = "runner-demo"
PROGRAM = (sys.executable, "-m", "runner")


def as_agent(daemon: Daemon, *command: str, allow: tuple[str, ...] = ("shell_run",), task: str = "") -> list[str]:
    """The command line that starts `command` as another user with a token of its own."""
    granted = [part for tool in allow for part in ("--allow", tool)]
    where = ["--config", str(daemon.place / "runner.toml"), "--task", task or f"t-{secrets.token_hex(4)}"]
    return ["exec", "--agent", "reader", "--user", AGENT, *where, *granted, "--", *PROGRAM, *command]


def script(text: str) -> str:
    return "argv=" + json.dumps(["sh", "-c", text])


def test_an_agent_under_another_user_sees_output_while_its_tool_runs(daemon: Daemon) -> None:
    """The tool's second line needs what is written only after its first was read: no buffer between can hold it."""
    words = as_agent(daemon, "call", "shell_run", "--stdin", "--arg", script("echo first; read x; echo $x; exit 7"))
    running = subprocess.Popen(
        [*PROGRAM, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    with running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "first\n"
        uids = {
            line.split()[1] for line in Path(f"/proc/{running.pid}/status").read_text().splitlines() if "Uid:" in line
        }
        assert uids == {str(pwd.getpwnam(AGENT).pw_uid)}  # exec became the agent: there is no other process between
        running.stdin.write("second\n")
        running.stdin.close()
        assert running.stdout.read() == "second\n"
        assert "exit" in running.stderr.read()
    assert running.returncode == EXIT_TOOL


def test_call_statuses(daemon: Daemon, runner: Any) -> None:
    ok = runner(*as_agent(daemon, "call", "shell_run", "--arg", script("echo hi"), "--json"))
    told = json.loads(ok.stdout)
    assert (told["ok"], told["stdout"], told["outcome"]["exit_code"]) == (True, "hi\n", 0)
    refused = runner(*as_agent(daemon, "call", "fs_read", "--arg", "path=a", "--json"), status=EXIT_REFUSED)
    assert json.loads(refused.stdout)["refused"]["code"] == "not_granted"
    plain = runner(*as_agent(daemon, "call", "fs_read", "--arg", "path=a"), status=EXIT_REFUSED)
    assert plain.stderr.startswith("runner: not_granted: ")
    assert len(plain.stderr.splitlines()) == 1
    late = runner(*as_agent(daemon, "call", "shell_run", "--deadline", "300ms", "--arg", script("sleep 9")), status=1)
    assert "deadline" in late.stderr
    runner(*as_agent(daemon, "call", "shell_run", "--deadline", "soon"), status=EXIT_USAGE)
    runner("tools", status=EXIT_INVALID)  # no credentials


def test_tools_of_a_token(daemon: Daemon, runner: Any) -> None:
    words = as_agent(daemon, "tools", "--json", allow=("fs_read", "fs_list"))
    assert {tool["name"] for tool in json.loads(runner(*words).stdout)["tools"]} == {"fs_read", "fs_list"}
    words = as_agent(daemon, "tools", "--form", "openai", allow=("fs_read",))
    (tool,) = json.loads(runner(*words).stdout)
    assert tool["function"]["name"] == "fs_read"


def test_a_detached_call_is_awaited_by_its_id(daemon: Daemon, runner: Any) -> None:
    start = shlex.join([*PROGRAM, "call", "shell_run", "--detach", "--arg", script("sleep 0.2; echo late")])
    shell = f"id=$({start}) && {shlex.join([*PROGRAM, 'result'])} $id"
    words = as_agent(daemon)
    assert runner(*words[: words.index("--") + 1], "sh", "-c", shell).stdout == "late\n"


def test_tasks(daemon: Daemon, runner: Any) -> None:
    socket = ("--socket", daemon.place / "run" / "admin.sock")
    task = f"t-{secrets.token_hex(4)}"
    with daemon.connect(task=task) as agent, agent.stream("shell_run", {"argv": ["sleep", "60"]}) as running:
        (listed,) = [t for t in json.loads(runner("task", "list", *socket, "--json").stdout) if t["task"] == task]
        assert (listed["state"], listed["agent"], listed["owner"]) == ("live", "tester", "owner")
        assert task in runner("task", "list", *socket).stdout
        shown = json.loads(runner("task", "show", task, *socket, "--json").stdout)
        assert len(shown["running"]) == 1
        assert "shell_run" in shown["running"][0]
        assert "shell_run" in runner("task", "show", task, *socket).stdout
        done = runner("task", "end", task, "--why", "a test", *socket, "--json")
        assert json.loads(done.stdout) == {"task": task, "calls_stopped": 1}
        assert running.result().outcome.kind == "killed"
        with pytest.raises(TaskEnded):
            agent.call("shell_run", {"argv": ["true"]})
    assert task not in runner("task", "list", *socket).stdout
    ended = json.loads(runner("task", "show", task, *socket, "--json").stdout)
    assert ended["state"] == "ended"
    runner("task", "show", "t-nobody-began", *socket, status=EXIT_REFUSED)
    runner("task", "list", "--socket", "/nonexistent", status=EXIT_UNAVAILABLE)


def test_tokens(daemon: Daemon, runner: Any, tmp_path: Path) -> None:
    socket = ("--socket", daemon.place / "run" / "admin.sock")
    token, task = tmp_path / "token", f"t-{secrets.token_hex(4)}"
    wish = ("--agent", "reader", "--owner", "ann", "--task", task, "--tool", "fs_read")
    where = ("--key", daemon.place / "issuer.key", "--holder-key", tmp_path / "key", "--out", token)
    minted = json.loads(runner("token", "mint", *wish, *where, *socket, "--json").stdout)
    assert token.stat().st_mode & 0o777 == 0o600
    public = ("--public-key", daemon.place / "issuer.pub")
    told = json.loads(runner("token", "inspect", token, *public, "--json").stdout)
    assert told["verified"] is True
    assert "fs_read" in runner("token", "inspect", token).stdout
    assert token.read_text().strip() not in runner("token", "inspect", token).stdout
    (tmp_path / "bad").write_text(token.read_text()[:-9] + "AAAAAAAA\n")
    runner("token", "inspect", tmp_path / "bad", *public, status=EXIT_INVALID)
    with daemon.connect(task=task) as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        gone = runner("token", "revoke", "--task", task, "--why", "a test", *socket, "--json")
        assert json.loads(gone.stdout)["revoked"] == f"task {task}"
        with pytest.raises(CallError) as refused:
            agent.call("shell_run", {"argv": ["true"]})
        assert refused.value.code in ("revoked", "task_ended")
    runner("token", "revoke", "--token", minted["jti"], "--why", "a test", *socket)
    runner("token", "revoke", "--why", "nothing named", *socket, status=EXIT_USAGE)


def test_status_and_doctor(daemon: Daemon, runner: Any) -> None:
    socket = daemon.place / "run" / "admin.sock"
    told = json.loads(runner("status", "--socket", socket, "--json").stdout)
    assert told["instance"] == daemon.instance
    assert told["instance"] in runner("status", "--socket", socket).stdout
    findings = json.loads(runner("doctor", "--config", daemon.place / "runner.toml", "--json").stdout)
    assert {f["status"] for f in findings} <= {"ok", "warn"}
    assert {"agent.sock", "admin.sock", "docker", "landlock"} <= {f["name"] for f in findings}


def test_traces(make_daemon: Callable[..., Daemon], runner: Any, tmp_path: Path) -> None:
    daemon = make_daemon()
    state = ("--state", daemon.state)
    runner(*as_agent(daemon, "call", "shell_run", "--arg", script("echo traced"), task="traced"))
    runner(*as_agent(daemon, "call", "fs_read", "--arg", "path=a"), status=EXIT_REFUSED)
    denied, allowed = json.loads(runner("trace", "list", *state, "--json").stdout)
    assert (denied["call"]["decision"]["effect"], allowed["call"]["decision"]["effect"]) == ("deny", "allow")
    call = allowed["call"]["call"]
    assert call in runner("trace", "list", *state, "--task", "traced").stdout
    assert call not in runner("trace", "list", *state, "--effect", "deny").stdout
    assert "traced" in runner("trace", "show", call, "--content", *state).stdout
    assert json.loads(runner("trace", "show", call, *state, "--json").stdout)["call"]["call"] == call
    runner("trace", "show", "no-such-call", *state, status=EXIT_REFUSED)
    entries = [json.loads(line) for line in runner("trace", "tail", *state, "--json").stdout.splitlines()]
    assert {"start", "token", "task_begin", "call", "outcome"} <= {each["entry"]["kind"] for each in entries}
    assert len(runner("trace", "tail", "-n", "2", *state).stdout.splitlines()) == 2
    assert daemon.stop() == 0
    assert json.loads(runner("trace", "verify", *state, "--json").stdout)["entries"] > 5
    runner("trace", "export", tmp_path / "evidence", *state)
    (tmp_path / "key").write_bytes((daemon.state / "ledger" / "key.pub").read_bytes())
    runner("trace", "verify", "--ledger", tmp_path / "evidence", "--key", tmp_path / "key")
    tail = daemon.state / "ledger" / "tail"
    data = bytearray(tail.read_bytes())
    data[len(data) // 2] ^= 1
    tail.write_bytes(data)
    assert "NOT VERIFIED" in runner("trace", "verify", *state, status=EXIT_UNVERIFIED).stdout


SHAPES = '''
import math

def area(radius: float, digits: int = 2) -> dict[str, float]:
    """Area of a circle of this radius."""
    return {"area": round(math.pi * radius**2, digits)}
'''


def test_a_function_becomes_a_tool_of_the_running_daemon(
    make_daemon: Callable[..., Daemon], runner: Any, tmp_path: Path
) -> None:
    catalogue = tmp_path / "catalogue"
    lay_out(catalogue)
    daemon = make_daemon(catalogue=catalogue)
    (tmp_path / "shapes.py").write_text(SHAPES)
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    runner("tool", "new", "circle", "--from", "shapes:area", "--dir", catalogue / "tools", env=path)
    profile = catalogue / "profiles" / "default.toml"
    profile.write_text(profile.read_text().replace('tools = ["shell_run"', 'tools = ["circle", "shell_run"'))
    folders = ("--tools", catalogue / "tools", "--profiles", catalogue / "profiles")
    checked = runner("tool", "check", "circle", *folders, "--json")
    assert json.loads(checked.stdout)["tools"][0]["id"] == "circle"
    runner("policy", "check", *folders, "--policies", catalogue / "policies")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: "is in force" in daemon.said())
    words = as_agent(daemon, "call", "circle", "--arg", "radius=2", allow=("circle",))
    assert json.loads(runner(*words).stdout) == {"area": 12.57}
    wrong = as_agent(daemon, "call", "circle", "--arg", "radius=wide", allow=("circle",))
    assert "radius" in runner(*wrong, status=EXIT_REFUSED).stderr
