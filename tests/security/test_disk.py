"""Case L07: the disk of a running daemon gets full, runs out of inodes, or goes read-only. Nothing runs unrecorded.

The state folder lies on a small ext4 of its own, in a file, mounted in a mount namespace of the daemon's own: the test
fills it and breaks it through /proc/PID/root, and all of it goes with the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.cli.checks import disk, reserve
from runner.client.errors import CallError
from runner.errors import EXIT_UNAVAILABLE, RunnerError
from runner.ledger import entry as entries
from runner.ledger.tile import RESERVE
from runner.wire import admin

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(120)]
WAITS = {"argv": ["sh", "-c", "echo go; read line; echo $line"]}
LONG = {"argv": ["sh", "-c", "echo go; exec sleep 300"]}
FULL = "the disk of the ledger is full"


class OwnDisk(Daemon):
    """A daemon whose state folder is a disk of its own."""

    @property
    def state(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.place}/state")

    @property
    def fillers(self) -> Path:
        """A folder on that disk, beside what is the daemon's."""
        folder = self.state / "filler"
        folder.mkdir(exist_ok=True)
        return folder

    def verifies(self) -> bool:
        """In the daemon's own mounts: SQLite follows links by itself."""
        code = (
            "import sys, pathlib; from runner.evidence.verify import verify; state = pathlib.Path(sys.argv[1]);"
            'sys.exit(not verify(state / "ledger", (state / "ledger/key.pub").read_text(), state / "content").ok)'
        )
        command = ["nsenter", "-t", str(self.pid), "-m", sys.executable, "-c", code, str(self.place / "state")]
        return subprocess.run(command, check=False, timeout=60).returncode == 0

    def refusing(self) -> str:
        said: str = self.ask(admin.Status()).refusing
        return said


@pytest.fixture
def own_disk(tool_image: str) -> Iterator[Callable[..., OwnDisk]]:
    """Daemons on ext4 of 160 MiB, made with these options of mkfs."""
    made: list[OwnDisk] = []

    def make(*options: str) -> OwnDisk:
        place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
        place.chmod(0o711)
        image, wrapper = place / "disk", place / "python"
        with image.open("wb") as file:
            file.truncate(160 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-e", "remount-ro", *options, image], check=True)
        (place / "state").mkdir()
        script = 'e2fsck -fp "$1" >/dev/null; [ $? -le 1 ] && mount -o loop "$1" "$2" && shift 2 && exec "$@"'
        wrapper.write_text(
            f"#!/bin/sh\nexec unshare -m sh -c '{script}' sh {image} {place / 'state'} {sys.executable} \"$@\"\n"
        )
        wrapper.chmod(0o755)
        daemon = OwnDisk(place, tool_image, python=str(wrapper))
        made.append(daemon)
        daemon.start()
        return daemon

    yield make
    for daemon in made:
        daemon.stop()
        daemon.start()  # its containers' label lies on that disk
        daemon.wait(lambda daemon=daemon: not daemon.containers(), 30)  # type: ignore[misc] # bound at once
        assert daemon.stop() == 0
        shutil.rmtree(daemon.place)


def fill_bytes(folder: Path) -> None:
    """Until no byte is left."""
    with (folder / "bytes").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def fill_inodes(folder: Path) -> None:
    """Until no file can be made."""
    number = len(list(folder.iterdir()))
    with contextlib.suppress(OSError):
        while True:
            (folder / str(number)).touch()
            number += 1


@contextlib.contextmanager
def begun(runner: Any, call: dict[str, Any]) -> Iterator[Any]:
    """A call whose process exists, for as long as the block lasts."""
    with runner.stream("shell_run", call, stdin=True) as running:
        next(iter(running))
        yield running


@pytest.mark.parametrize(
    ("options", "fill"), [((), fill_bytes), (("-N", "512"), fill_inodes)], ids=["no-bytes", "no-inodes"]
)
def test_on_a_full_disk_no_call_begins_and_every_other_one_is_sealed(
    options: tuple[str, ...], fill: Callable[[Path], None], own_disk: Callable[..., OwnDisk]
) -> None:
    daemon = own_disk(*options)
    content = daemon.state / "content"
    with (
        daemon.connect(task="t-on") as runner,
        daemon.connect(task="t-off") as other,
        begun(runner, WAITS) as running,
        begun(other, LONG) as doomed,
    ):
        assert daemon.refusing() == ""
        assert (content / RESERVE).stat().st_blocks * 512 >= 16 << 20
        assert [each.status for each in reserve(content)] == ["ok"]
        fill(daemon.fillers)
        daemon.wait(daemon.refusing, 30)
        assert FULL in daemon.said()
        assert "next: free 48 MiB" in daemon.said()
        assert (content / RESERVE).exists()  # whoever fills the disk fails first
        before = len(daemon.entries(entries.Call))
        for _ in range(3):
            with pytest.raises(CallError) as refused:
                runner.call("shell_run", {"argv": ["true"]})
            assert (refused.value.code, refused.value.retryable) == ("unavailable", True)
            assert "disk is full" in refused.value.reason
            assert "free the daemon's disk" in refused.value.next_step
        # What ends or forbids something goes on.
        daemon.ask(admin.Revoke(kind="task", value="t-off", why="on a full disk"))
        assert daemon.outcome(doomed.call).outcome == "killed"
        running.write_stdin(b"on\n")
        running.close_stdin()
        done = running.result()
        assert done.outcome.kind == "exited"
        assert done.durable
        assert daemon.outcome(running.call).outcome == "exited"
        assert len(daemon.entries(entries.Call)) == before
        if fill is fill_bytes:
            assert [each.status for each in reserve(content)] == ["warn"]
        # Freed, it takes calls again by itself.
        shutil.rmtree(daemon.fillers)
        daemon.wait(lambda: not daemon.refusing(), 30)
        assert runner.call("shell_run", {"argv": ["echo", "again"]}).stdout == b"again\n"
    daemon.wait(lambda: [each.state for each in daemon.entries(entries.Degraded)] == ["lost", "restored"], 10)
    assert daemon.verifies()
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.entries(entries.Start)[-1].previous == "clean"
    assert daemon.verifies()


def test_a_disk_filled_over_its_reserve_ends_the_daemon_and_the_next_start_seals(
    own_disk: Callable[..., OwnDisk],
) -> None:
    daemon = own_disk()
    with daemon.connect() as runner, begun(runner, WAITS) as running:
        fill_bytes(daemon.fillers)
        daemon.wait(daemon.refusing, 30)
        with contextlib.suppress(RunnerError):
            while True:  # each is an entry, for which the reserve is given up, until there is no room for one
                daemon.ask(admin.Revoke(kind="agent", value="nobody", why="x" * 400))
                fill_bytes(daemon.fillers)
        with pytest.raises(CallError):
            running.result()
    assert daemon.ended() == EXIT_UNAVAILABLE
    assert "No space left on device" in daemon.said() or "disk is full" in daemon.said()
    assert "next: free or repair the disk" in daemon.said()
    free(daemon)
    daemon.start()
    assert daemon.outcome(running.call).outcome == "interrupted"
    assert daemon.entries(entries.Start)[-1].previous == "dead"
    assert daemon.verifies()


def free(daemon: OwnDisk) -> None:
    """What an operator does to a disk whose daemon has ended."""
    script = 'mount -o loop "$1" "$2" && rm -r "$2/filler"'
    subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", daemon.place / "disk", daemon.place / "state"], check=True
    )


def test_a_disk_gone_read_only_ends_the_daemon_and_the_next_start_seals(own_disk: Callable[..., OwnDisk]) -> None:
    """As the kernel does it after an error: with files open for writing."""
    daemon = own_disk()
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["echo", "before"]}, sync=True).durable
    with daemon.connect() as runner, begun(runner, WAITS) as running:
        state = f"/proc/{daemon.pid}/root{daemon.place}/state"
        command = ["nsenter", "-t", str(daemon.pid), "-m", "mount", "-o", "remount,abort", str(daemon.place / "state")]
        subprocess.run(command, check=False, capture_output=True)
        with pytest.raises(OSError) as broken:
            Path(state, "touched").touch()
        assert broken.value.errno in (errno.EROFS, errno.EIO)
        assert disk(state, 1 << 40, writable=False).status == "fail"
        with pytest.raises(CallError):  # nothing new begins: it cannot be recorded
            runner.call("shell_run", {"argv": ["echo", "after"]}, sync=True)
        with pytest.raises(CallError):
            running.result()
    assert daemon.ended() == EXIT_UNAVAILABLE
    said = daemon.said()
    assert "failed: Read-only file system" in said or "failed: Input/output error" in said
    assert "next: free or repair the disk" in said
    assert "ended with 1: the daemon ends" in said
    daemon.start()
    assert daemon.outcome(running.call).outcome == "interrupted"
    assert daemon.verifies()
