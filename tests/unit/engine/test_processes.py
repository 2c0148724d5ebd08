"""Which program a pid is: read where only root may look, hashed once per unchanged file, never by its path."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from runner.engine import processes
from runner.engine.processes import Processes

SLEEP = Path(shutil.which("sleep") or "/bin/sleep").resolve()


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A program whose name looks like the rest of its /proc/PID/stat."""
    program = tmp_path / ") S 1 1 (\x1b"
    shutil.copy(SLEEP, program)
    process = subprocess.Popen([program, "600"])
    yield program, process
    process.kill()
    process.wait()


def test_a_process_is_named_by_its_start_and_its_program(odd: tuple[Path, subprocess.Popen[bytes]]) -> None:
    program, process = odd
    found = asyncio.run(Processes().identify(7, process.pid))
    assert found.number == 7
    assert found.digest == hashlib.sha256(SLEEP.read_bytes()).hexdigest()
    assert found.executable == str(program)
    assert found.problem == ""
    seconds = found.start / os.sysconf("SC_CLK_TCK")
    assert seconds == pytest.approx(psutil.Process(process.pid).create_time() - psutil.boot_time(), abs=2)
    assert found.cgroup.startswith("/")


def test_a_program_is_hashed_once_and_again_when_it_was_changed_behind_its_times(tmp_path: Path) -> None:
    program, known = tmp_path / "program", Processes()
    shutil.copy(SLEEP, program)
    status = program.stat()
    first = subprocess.Popen([program, "600"])
    try:
        before = asyncio.run(known.identify(1, first.pid))
        assert asyncio.run(known.identify(2, first.pid)).digest == before.digest
        assert len(known._known) == 1
    finally:
        first.kill()
        first.wait()
    data = bytearray(SLEEP.read_bytes())
    data[-1] ^= 1
    with program.open("r+b") as file:  # the same inode and size
        file.write(data)
    os.utime(program, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = subprocess.Popen([program, "600"])
    try:
        after = asyncio.run(known.identify(3, second.pid))
    finally:
        second.kill()
        second.wait()
    assert after.digest == hashlib.sha256(data).hexdigest() != before.digest


def test_the_program_is_the_one_that_runs_not_the_one_at_its_path(odd: tuple[Path, subprocess.Popen[bytes]]) -> None:
    program, process = odd
    program.unlink()
    program.write_bytes(b"another")
    found = asyncio.run(Processes().identify(1, process.pid))
    assert found.digest == hashlib.sha256(SLEEP.read_bytes()).hexdigest()
    assert found.executable == f"{program} (deleted)"


@pytest.mark.parametrize("pid", [0, -1, (1 << 22) + 1])
def test_what_is_not_there_is_a_problem_and_no_error(pid: int) -> None:
    found = asyncio.run(Processes().identify(1, pid))
    assert found.problem
    assert (found.start, found.digest) == (0, "")


def test_a_kernel_thread_has_no_program() -> None:
    found = asyncio.run(Processes().identify(1, 2)) if Path("/proc/2/stat").exists() else None
    if found is not None and psutil.Process(2).ppid() == 0:
        assert found.problem
        assert found.digest == ""
    mine = asyncio.run(Processes().identify(1, os.getpid()))  # the twin
    assert mine.digest == hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()


def test_a_program_without_end_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_MOST", 1 << 10)
    found = asyncio.run(Processes().identify(1, os.getpid()))
    assert found.digest == ""
    assert "MiB" in found.problem


def test_no_more_is_remembered_than_its_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "_REMEMBERED", 2)
    known = Processes(tmp_path)
    for pid in range(1, 5):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_bytes(b"1 (x) " + b" ".join([b"5"] * 40))
        (folder / "cgroup").write_bytes(b"3:cpu:/c\n1:name=systemd:/unit\n0::/\n")
        (folder / "program").write_bytes(b"%d" % pid)
        (folder / "exe").symlink_to(folder / "program")
        assert asyncio.run(known.identify(1, pid)).cgroup == "/unit"
    assert len(known._known) == 2
