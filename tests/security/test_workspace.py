"""Disk workspaces on real parts: what they promise, what they refuse, what is left of them (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from house import Daemon

from runner.engine import containers, disk, loop
from runner.engine.disk import Disk, Disks
from runner.engine.uids import UidRange
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.ledger import tree
from runner.ledger.tile import SMALL_CONTENT
from runner.model import Ceilings, TaskProfile
from runner.wire import admin

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SMALL = """
name = "small"
kind = "task"
description = "A small disk, for tests."
image = "toolrunner/tools"
seccomp = "default"
tools = ["shell_run", "fs_read", "fs_write", "workspace_put", "workspace_get"]
workspace_kind = "disk"
[ceilings]
memory = "160MiB"
workspace = "64MiB"
workspace_inodes = 1024
"""

PROGRAM = """
import json, os, stat, subprocess
with open("/workspace/program", "w") as file: file.write("#!/bin/sh\\nid -u; cat /proc/self/status | grep NoNewPrivs")
os.chmod("/workspace/program", 0o6755)
ran = subprocess.run(["/workspace/program"], capture_output=True, text=True)
def refused(act):
    try: act()
    except OSError as error: return error.strerror
root = os.stat("/workspace")
print(json.dumps({
    "ran": ran.stdout.split()[:1], "uid": os.getuid(), "owner": root.st_uid, "mode": stat.S_IMODE(root.st_mode),
    "listed": os.listdir("/workspace"), "node": refused(lambda: os.mknod("/workspace/node", 0o600 | stat.S_IFBLK, 1)),
    "fifo": refused(lambda: os.mkfifo("/workspace/fifo")),
}))
"""

FILL = """
import json, os
def full(act):
    for number in range(100_000):
        try: act(number)
        except OSError as error: return [number, error.strerror]
    return [number, "no limit"]
file = os.open("/workspace/big", os.O_CREAT | os.O_WRONLY)
block = b"x" * (1 << 20)
size = full(lambda number: os.write(file, block) == len(block) or os.write(file, block))
os.fsync(file); os.close(file); os.unlink("/workspace/big")
inodes = full(lambda number: os.close(os.open(f"/workspace/f{number}", os.O_CREAT | os.O_WRONLY)))
print(json.dumps({"size": size, "inodes": inodes}))
"""


def profile(benches: Any, **ceilings: int) -> TaskProfile:
    """A task profile with a disk: 64 MiB unless said otherwise."""
    wanted = {"workspace": 64 * MIB, "workspace_inodes": 1024, "memory": 160 * MIB, "tmp": MIB} | ceilings
    return msgspec.structs.replace(benches.profile(**wanted), workspace_kind="disk")


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("image"))


def attached(folder: Path) -> list[str]:
    return sorted(loop.attached_below(folder.resolve()))


def assert_nothing(folder: Path) -> None:
    """No disk, no loop device, no mount of an image below this folder is left."""
    assert images(folder) == []
    assert attached(folder) == []
    assert list((folder / "state/engine/disks").iterdir()) == []


def allocated(image: Path) -> int:
    return image.stat().st_blocks * 512


# --- what a disk is ------------------------------------------------------------------------------------------


def test_a_disk_is_measured_and_equal_to_its_profile(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, profile(benches, workspace_inodes=5000)) as bench:
            measured, control = await bench.create()
            assert (measured.workspace, measured.workspace_size) == ("ext4", 64 * MIB)
            assert 5000 <= measured.workspace_inodes <= disk.most_inodes(64 * MIB, 5000)
            (image,) = images(tmp_path)
            assert image.stat().st_size == 64 * MIB
            assert (image.stat().st_uid, image.stat().st_mode & 0o777) == (0, 0o600)
            found = bench.python(PROGRAM)
            assert found["owner"] == found["uid"] == measured.uid
            assert found["ran"] == [str(measured.uid)]  # programs run, and set-uid bits mean nothing
            assert found["mode"] == 0o700
            assert found["listed"] == ["program"]  # nothing of the filesystem's own lies in it
            assert found["node"] == "Operation not permitted"
            assert found["fifo"] is None
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")
            assert_nothing(tmp_path)

    asyncio.run(act())


def test_a_memory_workspace_is_measured_as_such_and_leaves_no_disk(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            measured, control = await bench.create()
            assert (measured.workspace, measured.workspace_size, measured.workspace_inodes) == (
                "tmpfs",
                256 * MIB,
                65536,
            )
            assert_nothing(tmp_path)
            os.close(control)

    asyncio.run(act())


def test_a_full_disk_says_so_and_takes_nothing_more_of_the_hosts(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            _, control = await bench.create()
            (image,) = images(tmp_path)
            before = allocated(image)
            assert before >= 64 * MIB  # taken before anything is written
            found = bench.python(FILL)
            assert found["size"][1] == found["inodes"][1] == "No space left on device"
            assert disk.least_usable(64 * MIB, 1024) // MIB <= found["size"][0] < 64
            assert 1000 <= found["inodes"][0] <= disk.most_inodes(64 * MIB, 1024)
            os.sync()
            # Files on it need no further block of the host's; the filesystem below may add one of its own tables.
            assert 64 * MIB <= allocated(image) <= before + MIB
            assert bench.execute("sh", "-c", "rm /workspace/f*; echo fits > /workspace/small")[0] == 0
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_a_memory_limit_need_not_hold_what_is_on_the_disk(benches, tmp_path):
    async def act():
        more = "head -c 300000000 /dev/zero > /workspace/f && wc -c < /workspace/f"
        async with benches.open(tmp_path, profile(benches, workspace=400 * MIB)) as bench:
            _, control = await bench.create()
            assert bench.execute("sh", "-c", more) == (
                0,
                "300000000\n",
            )  # beyond memory = 160 MiB, and nobody is killed
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def _option(name: str) -> Callable[[dict[str, Any]], None]:
    def change(host: dict[str, Any]) -> None:
        options = host["Mounts"][1]["VolumeOptions"]["DriverConfig"]["Options"]
        options["o"] = ",".join(part for part in options["o"].split(",") if part != name)

    return change


def _noexec(host: dict[str, Any]) -> None:
    host["Mounts"][1]["VolumeOptions"]["DriverConfig"]["Options"]["o"] += ",noexec"


def _plain_volume(host: dict[str, Any]) -> None:
    del host["Mounts"][1]["VolumeOptions"]["DriverConfig"]


def _memory(host: dict[str, Any]) -> None:
    host["Mounts"].pop()
    host["Tmpfs"]["/workspace"] = "rw,nosuid,nodev,exec,size=64m"


WEAKER = {
    "/workspace lacks nosuid": _option("nosuid"),
    "/workspace lacks nodev": _option("nodev"),
    "/workspace is noexec": _noexec,
    "not on the task's disk": _plain_volume,  # on the host's own disk: as when dockerd had not mounted ours
    "/workspace is tmpfs, not the task's disk": _memory,
}


@pytest.mark.parametrize(("names", "change"), WEAKER.items(), ids=WEAKER)
def test_a_disk_that_is_not_as_promised_is_refused_and_nothing_is_left(benches, tmp_path, monkeypatch, names, change):
    honest = containers.create_body

    def weakened(*arguments: Any, **named: Any) -> dict[str, Any]:
        body = honest(*arguments, **named)
        change(body["HostConfig"])
        return body

    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(containers, "create_body", weakened)
                with pytest.raises(RunnerError) as refused:
                    await bench.create()
            assert refused.value.refused.code == "host"
            assert names in refused.value.refused.reason
            assert bench.containers() == []
            assert_nothing(tmp_path)
            _, control = await bench.create()  # the same plan, unweakened, is made
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


# --- how long it lives ---------------------------------------------------------------------------------------


def test_a_disk_outlives_its_sandbox_and_its_engine_and_ends_with_its_task(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path / "a", profile(benches)) as bench:
            first, control = await bench.create("s1")
            change = "echo kept > f; chmod 0 f; mkdir lost+found; chmod 777 ."
            assert bench.execute("sh", "-c", f"cd /workspace; {change}")[0] == 0
            os.kill(first.pid, 9)
            await _until(lambda: bool(bench.ended))
            assert attached(tmp_path) == []  # between two sandboxes it is a file and nothing else
            os.close(control)
            second, control = await bench.create("s2")
            assert second.uid == first.uid
            assert bench.execute("ls", "-A", "/workspace", sandbox="s2") == (0, "f\nlost+found\n")
            assert bench.execute("stat", "-c", "%a", "/workspace", sandbox="s2") == (
                0,
                "700\n",
            )  # whatever tools made it
            assert bench.execute("cat", "/workspace/f", sandbox="s2")[0] == 1  # other modes are as they were
            assert bench.execute("sh", "-c", "chmod 600 /workspace/f; cat /workspace/f", sandbox="s2") == (0, "kept\n")
            os.close(control)
            instance = bench.instance
        assert len(images(tmp_path)) == 1
        async with benches.open(tmp_path / "a", profile(benches), instance=instance) as bench:
            assert await bench.engine.keep_disks(("t", "another")) == ("t",)
            third, control = await bench.create("s3")
            assert third.uid == first.uid
            assert bench.execute("cat", "/workspace/f", sandbox="s3") == (0, "kept\n")
            os.close(control)
            await bench.engine.destroy("s3", "over")
            await bench.engine.remove_disk("t")
            await bench.engine.remove_disk("t")  # one that is gone is no error
            assert_nothing(tmp_path / "a")
            _, control = await bench.create("s4")
            assert bench.execute("sh", "-c", "ls -A /workspace", sandbox="s4") == (0, "")
            os.close(control)
            await bench.engine.destroy("s4", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_a_disk_whose_first_sandbox_never_came_is_whole_for_the_next(benches, tmp_path):
    """As after kill -9 of the engine between the disk and its container."""

    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            _, lease = bench.engine._disks.open("t", profile(benches).ceilings)
            lease.release()
            measured, control = await bench.create("s1")
            assert measured.uid == lease.uid
            assert bench.execute("ls", "-A", "/workspace") == (0, "")
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_the_next_sandbox_waits_until_the_disk_is_free(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            measured, control = await bench.create("s1")
            os.close(control)  # PID 1 exits; the next sandbox is asked for while this one is still there
            again, control = await bench.create("s2")
            assert again.uid == measured.uid
            assert len(attached(tmp_path)) == 1
            os.close(control)
            await bench.engine.destroy("s2", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_disks_of_tasks_that_are_over_go_at_the_start_and_another_instance_keeps_its_own(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path / "other", profile(benches)) as other:
            _, theirs = await other.create("s1")
            async with benches.open(tmp_path / "dead", profile(benches)) as dead:
                _, control = await dead.create("s1")
                os.close(control)
            half = tmp_path / "dead/state/engine/disks/0123.new"
            half.mkdir()
            (half / "image").write_bytes(b"half made")
            async with benches.open(tmp_path / "dead", profile(benches), instance=dead.instance) as next_run:
                assert not half.exists()
                assert len(images(tmp_path / "dead")) == 1
                assert await next_run.engine.keep_disks(("u",)) == ()
                assert_nothing(tmp_path / "dead")
            assert other.execute("sh", "-c", "echo on > /workspace/f && cat /workspace/f") == (0, "on\n")
            assert len(attached(tmp_path / "other")) == 1
            os.close(theirs)
            await other.engine.destroy("s1", "over")
            await other.engine.remove_disk("t")

    asyncio.run(act())


def test_a_disk_made_while_the_engine_is_told_who_lives_stays(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            _, control = await bench.create()
            await bench.engine.keep_disks(())
            assert bench.execute("touch", "/workspace/f")[0] == 0
            assert len(images(tmp_path)) == 1
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


# --- when it cannot be given -----------------------------------------------------------------------------------


def test_a_disk_that_does_not_fit_is_refused_with_what_is_free(benches, tmp_path, monkeypatch):
    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "RESERVE", 1 << 60)
                with pytest.raises(RunnerError, match=r"MiB free") as refused:
                    await bench.create()
            assert refused.value.refused.code == "busy"
            assert_nothing(tmp_path)
            _, control = await bench.create()
            os.close(control)
            await bench.engine.destroy("s1", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_a_disk_whose_owner_is_taken_is_refused_and_given_when_it_is_free(benches, tmp_path, monkeypatch):
    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            measured, control = await bench.create("s1")
            os.close(control)
            await bench.engine.destroy("s1", "over")
            elsewhere = UidRange(measured.uid, 1)
            with pytest.raises(RunnerError, match="every sandbox uid"):
                elsewhere.lease()  # kept for the disk: nobody else gets it
            taken = elsewhere.lease_again(measured.uid, images(tmp_path)[0].parent)  # as after the host's restart
            with pytest.raises(RunnerError, match="owns the task's disk") as refused:
                await bench.create("s2")
            assert refused.value.refused.retryable
            assert len(images(tmp_path)) == 1  # and it is still there
            taken.release()
            again, control = await bench.create("s3")
            assert again.uid == measured.uid
            os.close(control)
            await bench.engine.destroy("s3", "over")
            await bench.engine.remove_disk("t")
            elsewhere.lease().release()  # with the disk, the claim to its owner ends

    asyncio.run(act())


def test_a_disk_that_something_holds_is_never_mounted_twice(benches, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_LET_GO_S", 0.2)

    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            _, control = await bench.create("s1")
            os.close(control)
            await bench.engine.destroy("s1", "over")
            held = loop.attach(images(tmp_path)[0].resolve())
            with pytest.raises(RunnerError, match="still holds the task's disk") as refused:
                await bench.create("s2")
            assert refused.value.refused.code == "busy"
            held.close()
            _, control = await bench.create("s3")
            os.close(control)
            await bench.engine.destroy("s3", "over")
            await bench.engine.remove_disk("t")

    asyncio.run(act())


def test_a_task_whose_profile_lost_its_disk_gets_no_empty_workspace_instead(benches, tmp_path):
    filters = {"default": (ROOT / "profiles/seccomp/default.json").read_bytes()}

    async def act():
        async with benches.open(tmp_path, profile(benches)) as bench:
            _, control = await bench.create("s1")
            os.close(control)
            await bench.engine.destroy("s1", "over")
            bench.engine.use({"default": benches.profile()}, filters)
            with pytest.raises(RunnerError, match="has none any more"):
                await bench.create("s2")
            await bench.engine.remove_disk("t")
            _, control = await bench.create("s3")
            os.close(control)

    asyncio.run(act())


def test_a_host_without_the_means_refuses_the_profile_when_it_is_loaded(benches, tmp_path, monkeypatch):
    filters = {"default": (ROOT / "profiles/seccomp/default.json").read_bytes()}

    async def act():
        async with benches.open(tmp_path) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "_program", lambda name: None)
                patch.setattr(loop, "CONTROL", tmp_path / "none")
                with pytest.raises(RunnerError, match=r"loop devices.*mkfs\.ext4") as refused:
                    bench.engine.compile({"default": profile(benches)}, filters)
                assert refused.value.refused.code == "host"
                bench.engine.compile({"default": benches.profile()}, filters)  # memory needs none of it
            with pytest.raises(RunnerError, match="too small") as refused:
                bench.engine.compile({"default": profile(benches, workspace_inodes=100_000)}, filters)
            assert refused.value.refused.code == "profile"
            bench.engine.compile({"default": profile(benches)}, filters)

    asyncio.run(act())


def test_the_space_of_an_image_is_taken_again_when_something_gave_it_back(tmp_path):
    disks = Disks(tmp_path / "disks", UidRange(270_000, 8, folder=tmp_path / "uids"))
    disks.start()
    made, lease = disks.open("t", Ceilings(workspace=64 * MIB, workspace_inodes=1024))
    lease.release()
    assert allocated(made.image) >= 64 * MIB
    subprocess.run(
        ["fallocate", "--punch-hole", "--offset", str(32 * MIB), "--length", str(8 * MIB), made.image], check=True
    )
    assert allocated(made.image) < 60 * MIB
    Disk(made.folder, disk._read(made.folder), fresh=False).attach().close()
    assert allocated(made.image) >= 64 * MIB
    disks.remove("t")


# --- through the whole daemon ------------------------------------------------------------------------------------


SNAPSHOT = """
name = "{name}"
kind = "task"
description = "Snapshots, for tests."
image = "toolrunner/tools"
seccomp = "default"
tools = ["shell_run", "fs_read", "fs_write", "workspace_diff"]
snapshot = "{name}"
workspace_kind = "{kind}"
[ceilings]
memory = "256MiB"
workspace = "64MiB"
workspace_inodes = 1024
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Path]:
    """The shipped catalogue and a task profile with a small disk."""
    for name in ("profiles", "tools", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "profiles/small.toml").write_text(SMALL)
    for name, kind in (("changed", "disk"), ("full", "memory")):
        (tmp_path / f"profiles/{name}.toml").write_text(SNAPSHOT.format(name=name, kind=kind))
    return tmp_path


def _attached_to(daemon: Daemon) -> list[str]:
    return attached(daemon.state)


def test_a_disk_outlives_a_killed_daemon_and_ends_with_its_task(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    handed = daemon.credentials(task="keeps", profile="small", tools={"shell_run": {}})
    with daemon.connect(handed) as runner:
        assert not runner.workspace_lost
        assert runner.call("shell_run", {"argv": ["sh", "-c", "echo kept > f; mkdir d; ln -s /etc d/l"]}).ok
        daemon.child("gate").kill()
    daemon.ended()
    daemon.wait(lambda: not daemon.containers() and not _attached_to(daemon), 30)
    daemon.start()
    with daemon.connect(handed) as runner:
        assert not runner.workspace_lost
        assert runner.call("shell_run", {"argv": ["cat", "f"]}).stdout == b"kept\n"
        engine = daemon.child("engine")
        engine.kill()
        daemon.wait(lambda: "engine is back" in daemon.said(), 30)
    with daemon.connect(handed) as runner:
        assert not runner.workspace_lost
        assert runner.call("shell_run", {"argv": ["cat", "f"]}).stdout == b"kept\n"
        begun = daemon.entries(entries.SandboxBegin)
        assert {(entry.isolation.workspace, entry.isolation.workspace_size) for entry in begun} == {("ext4", 64 * MIB)}
        assert len({entry.isolation.uid for entry in begun}) == 1
        assert len(images(daemon.state)) == 1
        runner.end_task()
    daemon.wait(lambda: not images(daemon.state) and not _attached_to(daemon), 30)


def test_a_task_that_ended_while_no_daemon_ran_leaves_no_disk(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    lives = daemon.credentials(task="lives", profile="small", tools={"shell_run": {}})
    for handed in (lives, daemon.credentials(task="expires", profile="small", tools={"shell_run": {}}, ttl_s=15)):
        with daemon.connect(handed) as runner:
            assert runner.call("shell_run", {"argv": ["touch", "f"]}).ok
    assert len(images(daemon.state)) == 2
    daemon.stop()
    assert len(images(daemon.state)) == 2
    assert _attached_to(daemon) == []
    daemon.start()
    ended = lambda: [entry for entry in daemon.entries(entries.TaskEnd) if entry.task == "expires"]  # noqa: E731
    daemon.wait(lambda: bool(ended()), 60)
    daemon.wait(lambda: len(images(daemon.state)) == 1, 30)
    with daemon.connect(lives) as runner:
        assert not runner.workspace_lost
        assert runner.call("shell_run", {"argv": ["ls"]}).stdout == b"f\n"
    daemon.ask(admin.EndTask(task="lives", why="the test is over"))
    daemon.wait(lambda: not images(daemon.state), 30)


# --- snapshots and what changed between them -------------------------------------------------------------------


def manifest_of(daemon: Daemon, call: str) -> tuple[entries.Workspace, dict[str, tree.Thing]]:
    """What the ledger says of the workspace after a call, and the manifest it names, checked against its root."""
    entry = daemon.outcome(call)
    found = entry.workspace
    kept = daemon.content(entry, found.manifest.digest)
    assert tree.root(kept) == found.root
    return found, tree.read(kept)


def shell(runner: Any, script: str) -> Any:
    done = runner.call("shell_run", {"argv": ["sh", "-c", script]})
    assert done.ok, done
    return done


def command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = ["--state", str(daemon.state), "--socket", str(daemon.place / "run/admin.sock")]
    return subprocess.run(
        [daemon.python, "-m", "runner", "task", "diff", *arguments, *place],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_the_receipt_names_what_the_workspace_held_after_each_call(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    for profile_name in ("changed", "full"):
        tools: dict[str, Any] = {"shell_run": {}, "fs_read": {}}
        with daemon.connect(task=f"t-{profile_name}", profile=profile_name, tools=tools) as runner:
            first = shell(runner, "echo one > a; echo two > b; sleep 0.2")
            same = shell(runner, "true")
            second = shell(runner, "echo 222 > b; chmod 4755 a; ln -s /etc/passwd l; mkfifo p")
            looked = runner.call("fs_read", {"path": "a"})
        before, had = manifest_of(daemon, first.call)
        unchanged, _ = manifest_of(daemon, same.call)
        after, has = manifest_of(daemon, second.call)
        assert {path: (thing.size, thing.mode) for path, thing in had.items()} == {"a": (4, "0644"), "b": (4, "0644")}
        assert had["a"].sha256 == hashlib.sha256(b"one\n").hexdigest()
        assert (before.hashed, before.files, before.size, before.beside) == (profile_name, 2, 8, ())
        assert unchanged.root == before.root != after.root
        assert unchanged.read == (0 if profile_name == "changed" else 2)
        assert [(change.kind, change.path) for change in tree.compare(had, has)] == [
            ("changed", "a"),
            ("changed", "b"),
            ("added", "l"),
            ("added", "p"),
        ]
        assert (has["a"].mode, has["l"].target, has["l"].sha256, has["p"].type) == ("4755", "/etc/passwd", "", "fifo")
        assert daemon.outcome(looked.call).workspace is None  # it cannot write, so there is nothing to say
    with daemon.connect(tools={"shell_run": {}}) as runner:  # the default profile takes none
        assert daemon.outcome(shell(runner, "touch f").call).workspace is None
    daemon.wait(daemon.verifies, 10)


def test_a_snapshot_beyond_its_bounds_says_so_and_the_next_is_whole_again(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue, config="[limits]\nsnapshot_files = 50\nsnapshot_bytes = 1000000\n")
    with daemon.connect(profile="full", tools={"shell_run": {}}) as runner:
        for script, problem in (
            ("for n in $(seq 60); do touch f$n; done", "50 files and folders"),
            ("rm f*; truncate -s 4M sparse", "1000000 bytes to read"),
        ):
            found = daemon.outcome(shell(runner, script).call).workspace
            assert problem in found.problem
            assert (found.root, found.manifest) == ("", None)
        found, things = manifest_of(daemon, shell(runner, "rm sparse; touch last").call)
        assert (found.problem, list(things)) == ("", ["last"])


def test_calls_side_by_side_are_named_beside_a_snapshot(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    handed = daemon.credentials(profile="full", tools={"shell_run": {}})
    with daemon.connect(handed) as runner, daemon.connect(handed) as other:
        with runner.stream(
            "shell_run", {"argv": ["sh", "-c", "echo go; while [ ! -e over ]; do sleep 0.01; done"]}
        ) as slow:
            next(iter(slow))
            quick = shell(other, "touch f")
            shell(other, "touch over")
            assert slow.result().ok
        alone = shell(other, "true")
    assert daemon.outcome(quick.call).workspace.beside == (slow.call,)
    assert daemon.outcome(alone.call).workspace.beside == ()


def test_a_call_whose_sandbox_died_says_that_there_is_no_root(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    with daemon.connect(profile="full", tools={"shell_run": {}}) as runner:
        shell(runner, "touch f")
        with runner.stream("shell_run", {"argv": ["sh", "-c", "echo go; sleep 300"]}) as running:
            next(iter(running))
            (pid,) = daemon.sandbox_pids()
            os.kill(pid, 9)
            assert running.result().outcome.kind == "interrupted"
        found = daemon.outcome(running.call).workspace
        assert "sandbox is gone" in found.problem
        assert found.root == ""


def test_an_operator_sees_what_a_task_changed(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    with daemon.connect(task="t-op", profile="changed", tools={"shell_run": {}, "fs_read": {}}) as runner:
        first = shell(runner, "echo one > a; mkdir d; echo gone > d/g")
        second = shell(runner, "echo two > a; rm d/g; printf x > \"$(printf 'n\\033[31m\\n')\"")
        looked = runner.call("fs_read", {"path": "a"})
        now = json.loads(command(daemon, "t-op", "--json").stdout)
        assert {change["path"]: change["change"] for change in now["changes"]} == {
            "a": "added",
            "d": "added",
            "n\x1b[31m": "added",  # the shell's $( ) drops the newline
        }
        since = command(daemon, "t-op", "--since", first.call)
        assert since.returncode == 0, since.stderr
        assert "\x1b" not in since.stdout
        assert "1 added, 1 removed, 1 changed" in since.stdout
        named = command(daemon, "t-op", "--since", first.call, "--until", second.call, "--json")
        changes = {change["path"]: change for change in json.loads(named.stdout)["changes"]}
        assert changes["a"]["before"]["sha256"] == hashlib.sha256(b"one\n").hexdigest()
        assert changes["a"]["after"]["sha256"] == hashlib.sha256(b"two\n").hexdigest()
        assert "after" not in changes["d/g"]
        refused = command(daemon, "t-op", "--since", looked.call)
        assert refused.returncode != 0
        assert "no snapshot" in refused.stderr
        assert "no such call of task" in command(daemon, "another", "--since", first.call).stderr
    daemon.ask(admin.EndTask(task="t-op", why="the test is over"))
    gone = command(daemon, "t-op")
    assert gone.returncode != 0
    assert "no sandbox now" in gone.stderr
    kept = command(daemon, "t-op", "--until", second.call)  # evidence outlives the task
    assert "3 added" in kept.stdout
    # A manifest that is not the one in the ledger is not believed.
    digest = daemon.outcome(first.call).workspace.manifest.digest
    daemon.stop()
    with contextlib.closing(sqlite3.connect(daemon.state / "content" / SMALL_CONTENT)) as database, database:
        database.execute("UPDATE blob SET data = ? WHERE digest = ?", (b"{}", bytes.fromhex(digest)))
    spoiled = command(daemon, "t-op", "--since", first.call, "--until", second.call)
    assert spoiled.returncode != 0
    assert "not the one that the ledger names" in spoiled.stderr
    assert not daemon.verifies()


def test_an_agent_sees_what_changed_since_a_baseline_that_it_keeps(daemon):
    with daemon.connect() as runner:
        shell(
            runner,
            "mkdir s; printf 'one\\ntwo\\n' > s/a; head -c 5000 /dev/zero > s/bin; echo x > s/gone; echo old > other",
        )
        baseline = runner.call("workspace_diff", {"path": "s", "mode": "baseline"})
        assert baseline.value["files"] == 3
        nothing = runner.call("workspace_diff", {"path": "s"}, stdin=baseline.stdout)
        assert (nothing.value["changes"], nothing.stdout) == ([], b"")
        shell(
            runner,
            "cd s; printf 'one\\n2\\n' > a; head -c 5001 /dev/zero > bin; rm gone; ln -s /etc/passwd link; mkfifo p; "
            "chmod 700 .; echo new > n; echo changed > ../other",
        )
        found = runner.call("workspace_diff", {"path": "s"}, stdin=baseline.stdout)
        assert found.value["counts"] == {"added": 3, "removed": 1, "changed": 2}
        changes = {change["path"]: change for change in found.value["changes"]}
        assert changes["a"]["before"]["sha256"] == hashlib.sha256(b"one\ntwo\n").hexdigest()
        assert changes["bin"]["after"]["size"] == 5001
        assert changes["link"]["after"] == {"type": "link", "mode": "0777", "target": "/etc/passwd"}
        assert changes["p"]["after"]["type"] == "fifo"
        assert b"--- before/a\n+++ after/a\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n" in found.stdout
        assert b"--- before/gone\n+++ /dev/null\n" in found.stdout
        assert b"root:" not in found.stdout
        assert found.value["only_digests"] == 1  # bin: no text
        empty = runner.call("workspace_diff", {"path": "s"})
        assert empty.value["counts"] == {"added": 5, "removed": 0, "changed": 0}
        without = runner.call("workspace_diff", {"path": "s", "mode": "baseline", "text": False})
        assert b"one" not in without.stdout
        for hostile in (
            b"nonsense",
            b"[]",
            b'{"path": 1}',
            b"[" * 100_000,
            baseline.stdout * 2,
            b'{"path":"a","text":7}',
        ):
            refused = runner.call("workspace_diff", {"path": "s"}, stdin=hostile)
            assert (refused.ok, refused.value["error"]["code"]) == (False, "baseline")
        shell(runner, "echo three >> s/a")
        known = runner.call("workspace_diff", {"path": "s"}, stdin=without.stdout)
        assert (known.value["counts"]["changed"], known.value["only_digests"], known.stdout) == (1, 1, b"")


def test_the_manifest_of_a_snapshot_is_a_baseline_too(catalogue, make_daemon):
    daemon = make_daemon(catalogue=catalogue)
    with daemon.connect(profile="full", tools={"shell_run": {}, "workspace_diff": {}}) as runner:
        first = shell(runner, "echo one > a; touch 'n\\x'; printf x > \"$(printf '\\377')\"")
        entry = daemon.outcome(first.call)
        kept = daemon.content(entry, entry.workspace.manifest.digest)
        assert runner.call("workspace_diff", {}, stdin=kept).value["changes"] == []
        shell(runner, "echo two > a")
        (change,) = runner.call("workspace_diff", {}, stdin=kept).value["changes"]
        assert (change["path"], change["change"]) == ("a", "changed")


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
