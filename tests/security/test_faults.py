"""Case L04 in a real daemon: the recorder's disk fails below it while calls run. No call runs unrecorded, nothing that
was called durable is lost, and the next start tells the truth. (Every system call in turn: `scripts/soak disk`.)"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import Daemon

from runner.client import Runner
from runner.client.errors import CallError
from runner.errors import EXIT_UNAVAILABLE
from runner.ledger import entry as entries

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(120)]
SIZES = (10, 40_000, 200_000)  # output that lies with its entry, in a row, in a file


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("fdatasync", "error=EIO:when=6"),
        ("fsync", "error=EIO:when=1"),
        ("write", "error=EROFS:when=3"),
        ("openat", "error=EIO:when=1"),
        ("rename", "error=EROFS:when=1"),
        ("pwrite64", "error=EIO:when=1"),
    ],
)
def test_no_call_runs_unrecorded_when_the_disk_fails_in_its_middle(
    call: str, fault: str, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    durable: list[str] = []
    told: list[str] = []
    with daemon.connect() as runner, runner.stream("shell_run", {"argv": ["sh", "-c", "echo go; sleep 300"]}) as slow:
        next(iter(slow))
        durable.append(runner.call("shell_run", {"argv": ["true"]}, sync=True).call)  # the control, and slow with it
        with tracing(daemon, call, fault, daemon.place / "strace") as tracer:
            with pytest.raises(CallError):
                calls(runner, told, durable)
            with pytest.raises(CallError):
                slow.result()
            assert daemon.ended() == EXIT_UNAVAILABLE
            tracer.wait(30)
    assert "(INJECTED)" in (daemon.place / "strace").read_text()
    assert "next: free or repair the disk" in daemon.said()
    daemon.start()
    recorded = {entry.call for entry in daemon.entries(entries.Call)}
    ends = {entry.call: entry.outcome for entry in daemon.entries(entries.Outcome)}
    assert {*told, *durable, slow.call} <= recorded  # every process that was seen
    assert all(ends[each] == "exited" for each in durable)
    assert ends[slow.call] == "interrupted"
    assert daemon.verifies()
    daemon.wait(lambda: not daemon.containers(), 30)


def calls(runner: Runner, told: list[str], durable: list[str]) -> None:
    """Calls one after the other. `told` gets those whose process existed, `durable` those that came back as such."""
    for number in range(400):
        argv = ["head", "-c", str(SIZES[number % 3]), "/dev/zero"]
        with runner.stream("shell_run", {"argv": argv}, sync=True) as running:
            next(iter(running))
            told.append(running.call)
            done = running.result()
        assert done.durable
        durable.append(done.call)


@contextlib.contextmanager
def tracing(daemon: Daemon, call: str, fault: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """strace on the recorder, which lets a call fail so."""
    assert shutil.which("strace"), "this test needs strace: run scripts/setup --dev"
    pid = daemon.child("recorder").pid
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    with subprocess.Popen(["strace", "-f", "-y", "-qq", "-o", log, *inject, "-p", str(pid)]) as tracer:
        try:
            daemon.wait(lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text(), 20)
            yield tracer
        finally:
            tracer.kill()
