"""Disk workspaces on real parts: what they promise, what they refuse, what is left of them (nothing)."""

from __future__ import annotations

import asyncio
import os
import shutil
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
            assert bench.execute("sh", "-c", "echo kept > /workspace/f; chmod 0 /workspace/f")[0] == 0
            os.kill(first.pid, 9)
            await _until(lambda: bool(bench.ended))
            assert attached(tmp_path) == []  # between two sandboxes it is a file and nothing else
            os.close(control)
            second, control = await bench.create("s2")
            assert second.uid == first.uid
            assert bench.execute("cat", "/workspace/f", sandbox="s2")[0] == 1  # modes are as they were, too
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


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Path]:
    """The shipped catalogue and a task profile with a small disk."""
    for name in ("profiles", "tools", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "profiles/small.toml").write_text(SMALL)
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


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
