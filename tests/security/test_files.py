"""E11 and E12: hostile files on their way in and out. Nothing outside is read or written, and the host writes nothing
but what the agent itself extracts, below the folder that it named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.client import CallError, InvalidArguments, ToolFailed
from runner.client.files import MAX_DEPTH, pack_tree

pytestmark = pytest.mark.docker

HOSTILE = r"""
import json, os
os.makedirs("in/plain"); os.chdir("in")
with open("plain/file", "w") as file: file.write("plain")
os.chmod("plain/file", 0o7755)
os.chmod("plain", 0o7777)
os.link("plain/file", "hard")
links = {"up": "../../../../etc", "abs": "/etc/passwd", "self": ".", "loop": "loop", "proc": "/proc/self/root"}
for name, target in links.items(): os.symlink(target, name)
os.mkfifo("fifo")
refused = {}
for name, act in {
    "char": lambda: os.mknod("char", 0o600 | 0o020000, os.makedev(1, 3)),
    "block": lambda: os.mknod("block", 0o600 | 0o060000, os.makedev(7, 0)),
    "socket": lambda: os.mknod("socket", 0o600 | 0o140000),
    "outside": lambda: os.link("/etc/passwd", "outside"),
}.items():
    try: act()
    except OSError as error: refused[name] = error.strerror
for name in (b"\xff\xfe", b"new\nline", b"\x1b[31m", b"back\\slash", b"-rf", b" ", "\u202e".encode(), b"n" * 255):
    with open(name, "w") as file: file.write("named")
with open("closed", "w") as file: file.write("closed")
os.chmod("closed", 0)
print(json.dumps(refused))
"""

LONG = """
import os
os.makedirs("long"); os.chdir("long")
for level in range(20):
    os.mkdir("n" * 250); os.chdir("n" * 250)
with open("bottom", "w") as file: file.write("x")
"""


def python(runner: Any, code: str) -> Any:
    done = runner.call("python_run", {"code": code})
    assert done.ok, done
    return done


def dig(folder: Path, levels: int) -> None:
    """Folders in folders, each with a file; from the host, since Landlock looks at every folder above in each step."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    uid = os.fstat(held).st_uid
    for _ in range(levels):
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=held))
        os.mkdir("d", 0o755, dir_fd=held)
        os.chown("d", uid, uid, dir_fd=held)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
        os.close(held)
        held = below
    os.close(held)


def everything(folder: Path) -> dict[str, tuple[bool, int]]:
    """What lies there: whether it is a folder, and its mode. Fails on anything that is neither file nor folder."""
    found = {}
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        assert path.is_file() or path.is_dir()
        found[path.relative_to(folder).as_posix()] = (path.is_dir(), path.stat().st_mode & 0o7777)
    return found


def test_links_swapped_a_thousand_times_a_second_lead_nowhere(daemon: Daemon, tmp_path: Path) -> None:
    from security.files_race import ACTS, race  # a program of its own, too: the long run

    counts = race(daemon, 8, tmp_path)
    assert counts["swaps"] > 200
    assert sum(counts[name] for name in ACTS) > 0
    assert sum(counts[f"{name} refused"] for name in ACTS) > 0  # the race was there to be lost
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "source"]


def test_a_hostile_tree_comes_out_as_plain_files_and_folders_and_the_rest_is_named(
    daemon: Daemon, tmp_path: Path
) -> None:
    with daemon.connect() as runner:
        refused = python(runner, HOSTILE).stdout
        # No device and no socket can be made at all, and no file of the image can be linked to.
        assert set(json.loads(refused)) == {"char", "block", "socket", "outside"}
        found = runner.get_tree("in", tmp_path / "out")
        assert runner.get("in/plain/file") == b"plain"
        for name in ("up", "abs", "self/abs", "fifo", "loop", "proc"):
            with pytest.raises((CallError, ToolFailed)):
                runner.get(f"in/{name}")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    there = everything(tmp_path / "out")
    assert {"plain": (True, 0o755), "plain/file": (False, 0o755), "hard": (False, 0o755)}.items() <= there.items()
    assert {name for name in there if not name.startswith(("plain", "hard"))} == {
        "new\nline",
        "\x1b[31m",
        "back\\slash",
        "-rf",
        " ",
        "\u202e",
        "n" * 255,
    }
    assert (tmp_path / "out/hard").stat().st_nlink == 1
    assert {"up", "abs", "self", "loop", "proc", "fifo", "closed", "\\\\xff\\\\xfe"} == set(found.skipped)
    assert found.files == 9


def test_a_tree_ten_thousand_deep_is_cut_where_it_says_and_harms_nobody(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.connect() as runner:
        before = set(daemon.sandbox_pids())
        assert runner.call("shell_run", {"argv": ["mkdir", "deep"]}).ok
        (pid,) = set(daemon.sandbox_pids()) - before
        dig(Path(f"/proc/{pid}/root/workspace/deep"), 10_000)
        found = runner.get_tree("deep", tmp_path / "out")
        assert (found.files, len(found.skipped)) == (MAX_DEPTH, 1)
        assert (tmp_path / "out" / ("d/" * (MAX_DEPTH - 1)) / "f").is_file()
        assert not (tmp_path / "out" / ("d/" * (MAX_DEPTH + 1))).exists()
        assert runner.call("fs_list", {"path": "deep", "recursive": True}).ok
        assert runner.call("fs_search", {"path": "deep", "pattern": "x"}).value["matches"] == []
        looked = runner.call("workspace_diff", {"path": "deep"})
        assert (looked.ok, looked.value["not_seen"]) == (True, 1)
        python(runner, "import os; os.makedirs('flat/d/d'); open('flat/d/d/f', 'w').close()")
        assert runner.get_tree("flat", tmp_path / "flat").skipped == ()
        runner.end_task()


def test_names_longer_than_a_path_are_left_out_and_named(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.connect() as runner:
        python(runner, LONG)
        found = runner.get_tree("long", tmp_path / "out")
        assert found.files == 0
        assert len(found.skipped) == 5  # the folders below 4,096 bytes, and the file in the last
        assert len(everything(tmp_path / "out")) == 16


def test_a_sparse_terabyte_is_not_made_and_a_sparse_file_fills_nobodys_disk(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.connect() as runner:
        done = runner.call("shell_run", {"argv": ["sh", "-c", "mkdir s; truncate -s 1T s/huge"]})
        assert not done.ok  # beyond the ceiling of one file
        done = runner.call(
            "shell_run", {"argv": ["sh", "-c", "rm -f s/huge; truncate -s 100M s/sparse; echo x > s/small"]}
        )
        assert done.ok
        for limit in (1 << 20, 1 << 30):
            with pytest.raises((CallError, ToolFailed)):
                runner.get_tree("s", tmp_path / "out", limit=limit)
            assert list(tmp_path.iterdir()) == []  # nothing of it is left
        assert runner.call("shell_run", {"argv": ["rm", "s/sparse"]}).ok
        assert runner.get_tree("s", tmp_path / "out").files == 1


def test_a_local_tree_goes_in_without_its_links_and_swaps(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in ("a", "b", "d/c"):
        (source / name).write_bytes(b"inside")
    stream = pack_tree(source)
    next(stream)  # the header of `a`; what comes after it is swapped now
    (source / "b").unlink()
    (source / "b").symlink_to("../secret")
    with pytest.raises(InvalidArguments, match="takes no links"):
        b"".join(stream)
    (source / "b").unlink()
    os.mkfifo(source / "b")
    with pytest.raises(InvalidArguments, match="neither a file nor"):
        b"".join(pack_tree(source))
    (source / "b").unlink()
    stream = pack_tree(source)
    assert next(stream)[:1] == b"a"
    (source / "a").unlink()
    (source / "a").symlink_to("../secret")
    with pytest.raises(InvalidArguments, match="cannot be read"):
        next(stream)  # its body: never through the link
    (source / "a").unlink()
    (source / "a").write_bytes(b"inside")
    with daemon.connect() as runner:
        runner.put("in", source)
        assert runner.get("in/d/c") == b"inside"
    deep = tmp_path / "deep"
    (deep / ("d/" * MAX_DEPTH)).mkdir(parents=True)
    assert b"".join(pack_tree(deep))
    (deep / ("d/" * (MAX_DEPTH + 1))).mkdir()
    with pytest.raises(InvalidArguments, match=f"more than {MAX_DEPTH} deep"):
        b"".join(pack_tree(deep))
