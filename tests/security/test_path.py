"""The promises of the path, on a real daemon: each beside the allowed twin."""

from __future__ import annotations

import concurrent.futures
import os
import time
from pathlib import Path

import pytest
from house import Daemon, alive, readable

from runner.client.errors import CallError
from runner.ledger import entry as entries

pytestmark = pytest.mark.docker


def test_a_call_runs_in_a_container_and_is_sealed(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        done = runner.call("shell_run", {"argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]}, sync=True)
        runner.until_durable(done.position)  # its result said so already
    assert (done.stdout, done.stderr, done.outcome.exit_code) == (b"out\n", b"err\n", 3)
    assert done.durable
    sealed = daemon.outcome(done.call)
    assert entries.digest(entries.encode(sealed)) == done.receipt
    assert sealed.stdout.size == sealed.stdout.delivered == 4
    assert sealed.walls
    call = daemon.call(done.call)
    assert call.decision.effect == "allow"
    assert call.decision.rules == ("run-programs",)
    assert call.plan is not None
    assert call.peer.pid == os.getpid()


def test_the_call_and_its_plan_are_recorded_before_its_process_exists(daemon: Daemon) -> None:
    with daemon.connect() as runner, runner.stream("shell_run", {"argv": ["sh", "-c", "echo go; sleep 5"]}) as running:
        next(iter(running))
        assert daemon.call(running.call).plan is not None
        assert not any(e.call == running.call for e in daemon.entries(entries.Outcome))
        running.cancel()
        assert running.result().outcome.kind == "cancelled"


def test_nothing_is_granted_beyond_the_token(daemon: Daemon) -> None:
    inside = {
        "fs_write": {
            "path": {"constraint_type": "path_containment", "root": "/workspace/in"},
            "*": {"constraint_type": "wildcard"},
        }
    }
    with daemon.connect(tools=inside) as runner:
        assert runner.call("fs_write", {"path": "in/a", "content": "x", "create_parents": True}).ok
        for path in ("out/a", "in/../out", "/workspace/inn", "in/../../etc/passwd", "//workspace/out"):
            with pytest.raises(CallError) as refused:
                runner.call("fs_write", {"path": path, "content": "x"})
            assert refused.value.code == "constraint"
            assert refused.value.allowed
        with pytest.raises(CallError) as refused:
            runner.call("shell_run", {"argv": ["true"]})
        assert refused.value.code == "not_granted"
        assert refused.value.refused.allowed == "fs_write"


def test_a_policy_denial_names_its_rule_and_is_recorded(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        assert runner.call("fs_write", {"path": "a", "content": "x"}).ok
        with pytest.raises(CallError) as refused:
            runner.call("fs_write", {"path": "protected/a", "content": "x"})
    assert refused.value.code == "denied"
    assert refused.value.rule == "protected-folder"
    call = daemon.call(refused.value.call)
    assert (call.decision.effect, call.plan) == ("deny", None)


def test_a_rule_that_wants_a_human_denies_while_there_is_none(daemon: Daemon) -> None:
    with daemon.connect() as runner, pytest.raises(CallError) as refused:
        runner.call("fs_write", {"path": "/workspace/.ci/run", "content": "x", "create_parents": True})
    assert refused.value.code == "approval_unavailable"
    assert refused.value.rule == "ci-needs-a-human"


def test_arguments_outside_the_schema_are_refused_by_field(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        for arguments in ({"argv": "ls"}, {"argv": []}, {"argv": ["ls"], "cwd": "/"}, {}):
            with pytest.raises(CallError) as refused:
                runner.call("shell_run", arguments)
            assert refused.value.code == "arguments"


def test_an_unannounced_token_is_worth_nothing(daemon: Daemon) -> None:
    with pytest.raises(CallError) as refused:
        daemon.connect(daemon.credentials(say=False))
    assert refused.value.code == "unauthenticated"
    daemon.connect().close()


def test_a_stranger_is_refused_by_uid_before_a_byte_is_read(daemon: Daemon) -> None:
    """nobody is in no [peers] list; the socket's mode stops it, and the daemon would too."""
    socket = daemon.place / "run" / "agent.sock"
    assert socket.stat().st_mode & 0o777 == 0o660
    assert (daemon.place / "run" / "admin.sock").stat().st_mode & 0o777 == 0o600
    code = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.recv(4096))"
    import subprocess

    def connect(**as_whom: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/usr/bin/python3", "-c", code, str(socket)], capture_output=True, text=True, check=False, **as_whom
        )  # type: ignore[call-overload,no-any-return] # who it runs as is the point

    assert "challenge" in connect().stdout
    assert "PermissionError" in connect(user="nobody", group="nogroup", extra_groups=[]).stderr
    # Past the mode, by the group of the socket: SO_PEERCRED still says no.
    answer = connect(user="nobody", group="runner-agents", extra_groups=[])
    assert "unauthenticated" in answer.stdout
    assert "challenge" not in answer.stdout


def test_processes_hold_no_more_than_they_need(daemon: Daemon) -> None:
    uids = {}
    for name in ("gate", "engine", "recorder"):
        status = dict(
            line.split(":\t", 1)
            for line in readable(daemon.child(name).pid, "status").decode().splitlines()
            if ":\t" in line
        )
        assert status["NoNewPrivs"].strip() == "1"
        uids[name] = int(status["Uid"].split()[0])
        if name != "engine":
            assert int(status["CapEff"], 16) == 0
            namespace = Path(f"/proc/{daemon.child(name).pid}/ns/net").readlink()
            assert namespace != Path("/proc/self/ns/net").readlink()
            interfaces = readable(daemon.child(name).pid, "net/dev").decode()
            assert "lo:" in interfaces
            assert "eth0" not in interfaces
    assert uids["engine"] == 0
    assert len({uids["gate"], uids["recorder"], 0}) == 3


def test_the_ledger_is_readable_by_its_own_user_only(daemon: Daemon) -> None:
    ledger = daemon.state / "ledger"
    assert ledger.stat().st_mode & 0o777 == 0o700
    assert (ledger / "key").stat().st_mode & 0o777 == 0o600
    assert ledger.stat().st_uid == daemon.child("recorder").uids().real
    assert (daemon.state / "gate" / "state.db").stat().st_mode & 0o777 == 0o600


def test_one_task_has_one_container_and_another_has_another(daemon: Daemon) -> None:
    with daemon.connect() as first, daemon.connect() as second:
        first.call("fs_write", {"path": "mine", "content": "secret of the first"})
        names = {r.call("shell_run", {"argv": ["sh", "-c", "id -u"]}).stdout for r in (first, first, second)}
        assert len(names) == 2
        assert second.call("fs_read", {"path": "mine"}).outcome.exit_code == 1
        assert first.call("fs_read", {"path": "mine"}).value["content"] == "secret of the first"


def test_a_task_is_resumed_with_its_workspace_by_the_same_root_token(daemon: Daemon) -> None:
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        runner.call("fs_write", {"path": "kept", "content": "x"})
    with daemon.connect(handed) as runner:
        assert not runner.workspace_lost
        assert runner.call("fs_read", {"path": "kept"}).value["content"] == "x"
        runner.end_task()
    with pytest.raises(CallError) as refused:
        daemon.connect(handed)
    assert refused.value.code == "task_ended"


def test_a_client_that_leaves_takes_its_call_along(daemon: Daemon) -> None:
    handed = daemon.credentials()
    with (
        daemon.connect(handed) as runner,
        runner.stream("shell_run", {"argv": ["sh", "-c", "echo $$; sleep 300"]}) as running,
    ):
        next(iter(running))
        call = running.call
    assert daemon.outcome(call).outcome == "cancelled"
    with daemon.connect(handed) as runner:
        assert (
            b"sleep"
            not in runner.call("shell_run", {"argv": ["sh", "-c", "cat /proc/[0-9]*/cmdline"]})
            .stdout.replace(b"\0", b" ")
            .split(b"cat")[0]
        )


def test_a_slow_reader_pauses_its_own_tool_and_nobody_else(daemon: Daemon) -> None:
    with (
        daemon.connect() as runner,
        daemon.connect() as other,
        runner.stream("shell_run", {"argv": ["sh", "-c", "yes | head -c 4000000; echo done >&2"]}, window=4096) as slow,
    ):
        next(iter(slow))
        for _ in range(5):
            assert other.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"
        time.sleep(0.3)
        assert not any(e.call == slow.call for e in daemon.entries(entries.Outcome))
        rest = b"".join(chunk.data for chunk in slow)
        assert rest.endswith(b"done\n")
        assert slow.result().ok


def test_output_is_cut_at_the_cap_and_the_call_is_killed(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        done = runner.call("shell_run", {"argv": ["yes"]})
        assert done.outcome.kind == "output_capped"
        assert len(done.stdout) == 8 << 20
        assert runner.call("shell_run", {"argv": ["true"]}).ok


def test_a_deadline_ends_the_whole_tree(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        done = runner.call(
            "shell_run", {"argv": ["sh", "-c", "trap '' TERM; (setsid sleep 300 &); sleep 300"]}, deadline=0.5
        )
        assert done.outcome.kind == "timed_out"
        left = runner.call("shell_run", {"argv": ["sh", "-c", "cat /proc/[0-9]*/comm"]}).stdout
        assert b"sleep" not in left


def test_a_tool_that_takes_all_memory_ends_as_oom_and_the_task_goes_on(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        done = runner.call("python_run", {"code": "x = []\nwhile True: x.append(bytearray(1 << 24))"})
        assert done.outcome.kind == "oom"
        assert runner.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"


def test_the_same_idempotency_key_is_the_same_call(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        count = {"argv": ["sh", "-c", "echo x >> counted; wc -l < counted"]}
        first = runner.call("shell_run", count, idempotency_key="k1")
        again = runner.call("shell_run", count, idempotency_key="k1")
        assert (again.call, again.replayed, again.receipt) == (first.call, True, first.receipt)
        with pytest.raises(CallError) as refused:
            runner.call("shell_run", {"argv": ["true"]}, idempotency_key="k1")
        assert refused.value.code == "conflict"
        assert runner.call("shell_run", {"argv": ["cat", "counted"]}).stdout == b"x\n"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            racers = [pool.submit(runner.call, "shell_run", count, idempotency_key="k2") for _ in range(8)]
        assert len({racer.result().call for racer in racers}) == 1
        assert runner.call("shell_run", {"argv": ["cat", "counted"]}).stdout == b"x\nx\n"


def test_a_detached_call_outlives_its_connection_and_can_be_followed(daemon: Daemon) -> None:
    handed = daemon.credentials()
    script = {"argv": ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done"]}
    with daemon.connect(handed) as runner:
        call = runner.call("shell_run", script, detach=True).call
    with daemon.connect(handed) as runner:
        with runner.attach(call) as following:
            assert b"".join(chunk.data for chunk in following) == b"1\n2\n3\n"
            assert following.result().ok
        with runner.attach(call, stdout=2) as following:
            assert b"".join(chunk.data for chunk in following) == b"2\n3\n"
        assert runner.result(call).stdout == b"1\n2\n3\n"
    with daemon.connect() as stranger, pytest.raises(CallError) as refused:
        stranger.result(call)
    assert refused.value.code == "unknown_call"


def test_revoking_a_task_kills_its_calls_and_its_token(daemon: Daemon) -> None:
    from runner.wire import admin

    handed = daemon.credentials(task="t-revoked")
    with (
        daemon.connect(handed) as runner,
        runner.stream("shell_run", {"argv": ["sh", "-c", "echo go; sleep 300"]}) as running,
    ):
        next(iter(running))
        began = time.monotonic()
        daemon.ask(admin.Revoke(kind="task", value="t-revoked", why="a test"))
        assert daemon.outcome(running.call).outcome == "killed"
        assert time.monotonic() - began < 5  # the promise itself: revocation reaches running calls
    with pytest.raises(CallError) as refused:
        daemon.connect(handed)
    assert refused.value.code in ("revoked", "task_ended")


def test_files_travel_through_the_sandbox_only(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "a.bin").write_bytes(bytes(range(256)) * 64)
    with daemon.connect() as runner:
        runner.put("in", tmp_path / "tree")
        assert runner.get("in/deep/a.bin") == bytes(range(256)) * 64
        runner.call("shell_run", {"argv": ["sh", "-c", "ln -s /etc/passwd in/link; mkfifo in/fifo"]})
        runner.get_tree("in", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "a.bin").stat().st_size == 1 << 14
    assert sorted(p.name for p in (tmp_path / "back").rglob("*")) == ["a.bin", "deep"]


def test_a_sandbox_ends_with_its_task_and_leaves_nothing(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        runner.call("shell_run", {"argv": ["sleep", "0"]})
        before = set(daemon.sandbox_pids())
        runner.end_task()
    daemon.wait(lambda: len(set(daemon.sandbox_pids())) < len(before), 10)
    gone = before - set(daemon.sandbox_pids())
    assert gone
    assert not any(alive(pid) for pid in gone)


def test_a_call_may_lower_its_own_limits_and_no_other_process_s(daemon: Daemon) -> None:
    code = """
import os, resource
print(resource.prlimit(0, resource.RLIMIT_NOFILE)[0] > 0)
try:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
except PermissionError:
    print("refused")
"""
    with daemon.connect() as runner:
        assert runner.call("python_run", {"code": code}).stdout == b"True\nrefused\n"
