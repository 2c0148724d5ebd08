"""Paths are opened beneath their root and through no link, whatever lies there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.guest import beneath
from runner.guest.beneath import Call, Place, ToolError, inside, walk


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a granted folder `in`, a secret beside it, and links that lead out."""
    root = tmp_path / "workspace"
    (root / "in" / "deep").mkdir(parents=True)
    (root / "out").mkdir()
    (root / "in" / "file").write_text("fine")
    (root / "out" / "secret").write_text("secret")
    (root / "in" / "link").symlink_to("../out/secret")
    (root / "in" / "same").symlink_to("file")
    (root / "in" / "folder").symlink_to("../out")
    (root / "in" / "up").symlink_to("/")
    os.mkfifo(root / "in" / "fifo")
    monkeypatch.setattr(beneath, "WORKSPACE", str(root))
    return root


def call(workspace: Path, path: str, root: str = "in") -> Call:
    return Call("t", {"path": path}, {"path": str(workspace / root)})


@pytest.mark.parametrize("path", ["in/file", "./in//file", "in/deep/../file", "in/./file"])
def test_a_path_within_its_root_opens(workspace: Path, path: str) -> None:
    with call(workspace, path).open("path") as file:
        assert file.read() == b"fine"
    with call(workspace, str(workspace / "in/file")).open("path") as file:
        assert file.read() == b"fine"


@pytest.mark.parametrize(
    "path",
    [
        "in/link", "in/same", "in/folder/secret", "in/up/etc/passwd", "out/secret", "in/../out/secret", "../x", "/",
        "/etc/passwd", "/proc/self/fd/0", "", "in/file\0", "in/deep", "in/fifo", "in/none/x", "in/file/x",
        "in" + "/x" * 3000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["rb", "wb", "ab"])
def test_nothing_else_opens(workspace: Path, path: str, mode: str) -> None:
    with pytest.raises(ToolError) as refused:
        call(workspace, path).open("path", mode)
    assert refused.value.code
    assert (workspace / "out" / "secret").read_text() == "secret"
    assert (workspace / "in" / "file").read_text() == "fine"


def test_a_root_that_became_a_link_is_refused(workspace: Path) -> None:
    (workspace / "granted").symlink_to("out")
    with pytest.raises(ToolError, match="symbolic link"):
        call(workspace, "granted/secret", "granted").open("path")


def test_files_are_made_replaced_and_extended(workspace: Path) -> None:
    for mode, text, expected in (("wb", b"one", b"one"), ("ab", b"two", b"onetwo"), ("wb", b"3", b"3")):
        with call(workspace, "in/new").open("path", mode) as file:
            file.write(text)
        assert (workspace / "in" / "new").read_bytes() == expected
    with Place("in/a/b/c", str(workspace / "in")).writer(parents=True) as file:
        file.write(b"deep")
    assert (workspace / "in/a/b/c").read_bytes() == b"deep"
    with pytest.raises(ToolError):
        Place("in/folder/new/c", str(workspace / "in")).writer(parents=True)
    assert not (workspace / "out" / "new").exists()


def test_a_walk_reports_links_and_never_enters_them(workspace: Path) -> None:
    descriptor = os.open(workspace / "in", os.O_RDONLY)
    try:
        found = {path: beneath.kind_of(status.st_mode) for path, _, status in walk(descriptor)}
    finally:
        os.close(descriptor)
    assert found == {
        "deep": "folder", "fifo": "fifo", "file": "file",
        "folder": "link", "link": "link", "same": "link", "up": "link",
    }  # fmt: skip


def test_a_deep_tree_is_cut_not_followed_for_ever(workspace: Path) -> None:
    here = os.open(workspace, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    descriptor = os.open(workspace, os.O_RDONLY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    deepest = max(path.count("/") for path, _, _ in walk(descriptor))
    assert deepest == beneath.MAX_DEPTH - 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(descriptor)


@given(st.text(alphabet="ab./\0~\\ é", max_size=20))
def test_the_normal_form_stays_inside(path: str) -> None:
    try:
        relative: Any = inside(path, "/workspace/a")
    except ToolError:
        return
    assert not relative.startswith("/")
    assert ".." not in relative.split("/")
