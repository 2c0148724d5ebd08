"""T08, T14 on a whole daemon: one task's token opens nothing of another's, and no token's text is left anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from house import Daemon, readable

from runner.client import CallError, Credentials, attenuate, connect, descriptor
from runner.token import credentials
from runner.token.issue import own_claims
from runner.wire import admin

pytestmark = pytest.mark.docker

SAYS = {"argv": ["sh", "-c", "echo mine; echo mine > /workspace/mine"]}


def test_a_token_opens_nothing_of_another_task(daemon: Daemon) -> None:
    """Calls, their output, their end, the container, the task itself: each by each."""
    tasks = [f"t-matrix-{number}" for number in range(3)]
    handed = {task: daemon.credentials(task=task) for task in tasks}
    calls = {}
    for task in tasks:
        with daemon.connect(handed[task]) as runner:
            calls[task] = runner.call("shell_run", SAYS, detach=True).call
            assert runner.result(calls[task]).stdout == b"mine\n"
            runner.call("shell_run", {"argv": ["touch", f"/workspace/{task}"]}, check=True)
    for mine in tasks:
        with daemon.connect(handed[mine]) as runner:
            seen = runner.call("shell_run", {"argv": ["ls", "/workspace"]}).text.split()
            assert seen == ["mine", mine]  # its own container, and nothing of the others'
            for other in tasks:
                if other == mine:
                    with runner.attach(calls[other]) as following:
                        assert b"".join(chunk.data for chunk in following) == b"mine\n"
                    continue
                with pytest.raises(CallError) as refused:
                    runner.result(calls[other])
                assert refused.value.code == "unknown_call"
                with pytest.raises(CallError) as refused, runner.attach(calls[other]):
                    pass
                assert refused.value.code == "unknown_call"
    for mine, other in ((a, b) for a in tasks for b in tasks if a != b):
        mixed = Credentials(
            chain=credentials.parse(handed[other]).chain, key=credentials.parse(handed[mine]).key,
            socket=credentials.parse(handed[mine]).socket,
        )  # fmt: skip
        with pytest.raises(CallError) as refused:
            connect(credentials=mixed)
        assert refused.value.code == "unauthenticated"


def test_no_text_of_a_token_or_key_is_left_anywhere(make_daemon: Callable[..., Daemon]) -> None:
    """After calls, denials, refusals and a revocation: in the daemon's files, in any process's words, in what was
    printed. The ids and digests are, which is how tokens are named."""
    daemon = make_daemon()
    root = credentials.parse(daemon.credentials(task="t-secret", depth=2))
    sub = attenuate({"shell_run": {}}, agent="sub", depth=1, credentials=root)
    leaf = attenuate({"shell_run": {}}, agent="leaf", credentials=sub)
    printed = []
    with connect(credentials=leaf) as runner:
        assert runner.call("shell_run", SAYS).ok
        for tool, arguments in (("fs_read", {"path": "x"}), ("shell_run", {"argv": "no list"}), ("no_tool", {})):
            with pytest.raises(CallError) as refused:
                runner.call(tool, arguments)
            printed += [str(refused.value), repr(refused.value)]
        # A sub-agent's process, with a token that the shell derived: its words are seen while it runs.
        number = descriptor(sub)
        # It execs nothing after its first line: amid an exec /proc shows no environment.
        command = ["token", "attenuate", "--tool", "shell_run", "--", "sh", "-c", "echo; read line"]
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", *command],
            env={"RUNNER_CREDENTIALS_FD": str(number), "PATH": "/usr/bin:/bin"}, pass_fds=[number],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(number)
        assert process.stdout
        process.stdout.readline()
        assert b"RUNNER_CREDENTIALS_FD" in readable(process.pid, "environ")
        words = b"".join(readable(pid, name) for pid in psutil.pids() for name in ("cmdline", "environ"))
        said, complained = process.communicate(b"")
        printed += [said.decode(), complained.decode()]
        daemon.ask(admin.Revoke(kind="token", value=own_claims(sub.leaf).jti, why="a test"))
    for handed in (leaf, Credentials(chain=root.chain, key=leaf.key, socket=root.socket)):
        with pytest.raises(CallError) as refused:
            connect(credentials=handed)
        printed += [str(refused.value), repr(refused.value), repr(handed)]
    for name in ("gate", "engine", "recorder"):
        limits = readable(daemon.child(name).pid, "limits").decode()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[-3:-1] == ["0", "0"]
    # A handler that the host names in core_pattern is given cores beyond that limit, but none of what is not dumpable:
    # the kernel shows such a process's files as root's.
    for name in ("gate", "recorder"):
        pid = daemon.child(name).pid
        assert psutil.Process(pid).uids().real != 0
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    daemon.stop()

    files = [
        path for path in daemon.place.rglob("*") if path.is_file() and path.name not in ("issuer.key", "issuer.pub")
    ]
    everything = b"".join(path.read_bytes() for path in files) + words + "".join(printed).encode()
    assert b"mine\n" in everything  # the control: contents are kept as they are, so that nothing hides in them
    for handed in (root, sub, leaf):
        jti = own_claims(handed.leaf).jti
        assert jti.encode() in everything  # and what may be there is found
        _, payload, signature = handed.leaf.split(".")
        for secret in (payload, signature, handed.key, handed.signing_key().seed().hex()):
            assert secret.encode() not in everything
        assert handed.signing_key().seed() not in everything
    assert daemon.issuer.seed() not in everything
