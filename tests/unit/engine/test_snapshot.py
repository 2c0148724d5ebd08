"""Reading a hostile tree from outside: nothing beyond it is read, nothing is waited for, and half is never whole."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.engine import snapshot
from runner.engine.snapshot import Bounds, Known, Taken, take
from runner.errors import RunnerError
from runner.ledger import tree

BOUNDS = Bounds(files=1000, size=1 << 20, seconds=30)
SECRET = b"what lies outside"
SWAP = """
import os, sys
os.chdir(sys.argv[1])
while True:
    os.symlink("../secret", "new"); os.rename("new", "f")
    os.rename("d", "was"); os.symlink("../outside", "d")
    with open("new", "w") as file: file.write("inside")
    os.rename("new", "f")
    os.unlink("d"); os.rename("was", "d")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(SECRET)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs, as a memory workspace is."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def read(folder: Path, known: Known | None = None, **bounds: Any) -> Taken:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return take(
            held, known, BOUNDS if not bounds else Bounds(**{"files": 1000, "size": 1 << 20, "seconds": 30} | bounds)
        )
    finally:
        os.close(held)


def things(taken: Taken) -> dict[str, tree.Thing]:
    return tree.read(tree.manifest(taken.lines, b""))


def settled(*paths: Path) -> None:
    """Wait until the clock has left the tick in which these were last changed."""
    newest = max(path.stat().st_ctime_ns for path in paths)
    while time.clock_gettime_ns(time.CLOCK_REALTIME) - newest <= snapshot._TICK_NS:
        time.sleep(0.01)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_lines_are_those_of_a_manifest_in_the_order_of_bytes(place):
    (place / "a").mkdir(mode=0o750)
    (place / "a/b").write_bytes(b"abc")
    (place / "a.txt").write_bytes(b"")
    (place / "a.txt").chmod(0o6755)
    (place / "ü").symlink_to("a/b")
    (place / os.fsdecode(b"\xff\\\n")).mkdir()
    taken = read(place)
    assert tree.lines(things(taken).values()) == taken.lines
    assert [(thing.path, thing.type, thing.mode) for thing in things(taken).values()] == [
        ("a", "folder", "0750"),
        ("a.txt", "file", "6755"),
        ("a/b", "file", "0644"),
        ("ü", "link", "0777"),
        ("\\xff\\\\\n", "folder", "0755"),
    ]
    assert things(taken)["a/b"].sha256 == sha(b"abc")
    assert things(taken)["ü"].target == "a/b"
    assert (taken.files, taken.size, taken.read) == (5, 3, 2)


def test_nothing_outside_is_read_and_nothing_is_waited_for(place):
    (place / "link").symlink_to("../secret")
    (place / "folder").symlink_to("../outside")
    (place / "up").symlink_to("..")
    os.link(place.parent / "secret", place / "hard")  # as a tool cannot: only what is its own can be linked into there
    os.mkfifo(place / "fifo")
    os.mknod(place / "device", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero would never end
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
        found = things(read(place))
    assert {path: thing.type for path, thing in found.items()} == {
        "link": "link",
        "folder": "link",
        "up": "link",
        "hard": "file",
        "fifo": "fifo",
        "device": "device",
        "socket": "socket",
    }
    assert [path for path, thing in found.items() if thing.sha256] == ["hard"]


def test_a_file_swapped_for_a_link_shows_one_or_the_other_never_what_the_link_names(place):
    (place / "d").mkdir()
    (place / "d/secret").write_bytes(b"inside")
    (place / "f").write_bytes(b"inside")
    attacker = subprocess.Popen([sys.executable, "-I", "-c", SWAP, str(place)])
    seen: set[tuple[str, str]] = set()
    rounds = 0
    try:
        while rounds < 400 or not {("f", "file"), ("f", "link")} <= seen:  # until the race was there to be lost
            found = things(read(place))
            seen |= {(path, thing.type) for path, thing in found.items()}
            assert {thing.sha256 for thing in found.values() if thing.size > 0} <= {sha(b"inside")}
            rounds += 1
    finally:
        attacker.kill()
        attacker.wait()
    assert sha(SECRET) == sha((place / "../secret").read_bytes())  # it is there, for whoever follows a link


@pytest.mark.parametrize(
    ("make", "bounds", "named"),
    [
        (lambda place: [(place / str(n)).touch() for n in range(11)], {"files": 10}, "10 files and folders"),
        (lambda place: (place / "f").write_bytes(bytes(2000)), {"size": 1999}, "1999 bytes to read"),
        (lambda place: os.truncate(_touched(place / "f"), 1 << 40), {}, "bytes to read"),
        (lambda place: (place / "f").touch(), {"seconds": 0.0}, "0 s"),
    ],
)
def test_beyond_a_bound_there_is_no_snapshot(place, make, bounds, named):
    (place / "first").touch()
    assert read(place).files == 1
    make(place)
    with pytest.raises(RunnerError, match=named) as refused:
        read(place, **bounds)
    assert refused.value.refused.code == "not_supported"


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_folders_are_read_down_to_a_depth_and_not_beyond_it(place):
    def deep(levels: int) -> None:
        held = os.open(place, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir("d", dir_fd=held)
            below = os.open("d", os.O_RDONLY, dir_fd=held)
            os.close(held)
            held = below
        os.close(held)

    deep(snapshot.MAX_DEPTH)
    assert read(place).files == snapshot.MAX_DEPTH
    shutil.rmtree(place / "d")
    deep(snapshot.MAX_DEPTH + 1)
    before = descriptors()
    with pytest.raises(RunnerError, match=f"folders {snapshot.MAX_DEPTH} deep"):
        read(place)
    assert descriptors() == before


def test_long_names_beyond_the_manifest_are_no_snapshot(place, monkeypatch):
    (place / ("n" * 255)).touch()
    assert read(place).files == 1
    monkeypatch.setattr(snapshot, "MAX_LINES", 300)
    with pytest.raises(RunnerError, match="bytes of names"):
        read(place)


def test_only_what_changed_is_read_again(place):
    for name in ("same", "longer", "moved", "touched"):
        (place / name).write_bytes(name.encode())
    settled(*place.iterdir())
    known: Known = {}
    assert read(place, known).read == 4
    again = read(place, known)
    assert again.read == 0
    assert again.lines == read(place).lines
    (place / "longer").write_bytes(b"longer and longer")
    (place / "moved").rename(place / "moved here")
    status = (place / "touched").stat()
    (place / "touched").write_bytes(b"TOUCHED")  # as long as before
    os.utime(place / "touched", ns=(status.st_atime_ns, status.st_mtime_ns))  # and as old, it says
    changed = read(place, known)
    assert changed.read == 3
    assert changed.lines == read(place).lines
    (place / "same").unlink()
    assert read(place, known).lines == read(place).lines


def test_a_file_that_changed_just_now_is_read_again(place):
    known: Known = {}
    for number in range(50):  # within one tick of the clock, without a pause
        (place / "f").write_bytes(b"%02d" % number)
        assert things(read(place, known))["f"].sha256 == sha(b"%02d" % number)


def test_full_sees_a_write_through_a_mapping_in_memory_that_moves_no_time(in_memory):
    """What `changed` cannot promise, and says so: on tmpfs a mapped page is written without the kernel's notice."""
    path = in_memory / "f"
    path.write_bytes(b"before" + bytes(4090))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"b"  # the page is writable from here on
        settled(path)
        known: Known = {}
        first = read(in_memory, known)
        mapped[0:5] = b"after"
        assert things(read(in_memory))["f"].sha256 == sha(path.read_bytes()) != things(first)["f"].sha256
        assert read(in_memory, known).read == 0


def test_looking_leaves_no_trace(place):
    (place / "f").write_bytes(b"abc")
    os.utime(place / "f", ns=(1, 1))
    before = (place / "f").stat()
    assert read(place).read == 1
    assert (place / "f").stat() == before
    assert before.st_atime_ns == 1
