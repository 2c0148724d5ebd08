"""The tools' own code, in this process, on a workspace of the test's."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.guest import beneath, python_tool
from runner.guest.beneath import Call, ToolError

TOOLS = Path(__file__).parents[3] / "tools"


def load(name: str) -> ModuleType:
    """A tool's main.py, as the guest would load it."""
    path, known = list(sys.path), sys.modules.get("main")
    try:
        return python_tool.load(str(TOOLS / name))
    finally:
        sys.path[:] = path
        sys.modules.pop("main", None)
        if known:
            sys.modules["main"] = known


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(beneath, "WORKSPACE", str(tmp_path))
    return tmp_path


def run(workspace: Path, name: str, **arguments: Any) -> Any:
    roots = {key: str(workspace) for key in ("path",)}
    return load(name).run(Call(name, arguments, roots))


class Pipes:
    """Stands for sys: the tools read sys.stdin.buffer and write sys.stdout.buffer."""

    class _End:
        def __init__(self, data: bytes) -> None:
            self.buffer = io.BytesIO(data)

    def __init__(self, data: bytes) -> None:
        self.stdin, self.stdout = self._End(data), self._End(b"")


def piped(workspace: Path, name: str, data: bytes = b"", **arguments: Any) -> tuple[Any, bytes]:
    """A tool that streams: its result and its standard output."""
    module, pipes = load(name), Pipes(data)
    module.__dict__["sys"] = pipes
    result = module.run(Call(name, arguments, {"path": str(workspace)}))
    return result, pipes.stdout.buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        "ünï".encode() * 50,
        b"\x00\xff",
        b"a\x00b",
        b"\xf0\x9f\x98",
        bytes(range(256)),
        b"\xe2\x82\xac" * 99,
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 65536])
def test_reading_in_pieces_gives_back_the_file(workspace: Path, data: bytes, limit: int) -> None:
    import base64

    (workspace / "f").write_bytes(data)
    found, offset, turns = b"", 0, 0
    while True:
        piece = run(workspace, "fs_read", path="f", offset=offset, limit=limit)
        found += piece["content"].encode() if "content" in piece else base64.b64decode(piece["base64"])
        assert piece["next"] == len(found)
        offset, turns = piece["next"], turns + 1
        assert piece["size"] == len(data)
        if piece["eof"]:
            break
        assert turns <= len(data)
    assert found == data


def test_listing_is_bounded(workspace: Path) -> None:
    for number in range(30):
        (workspace / f"file{number:02}").write_text("x")
    (workspace / os.fsdecode(b"bad\xff")).write_text("")
    listed = run(workspace, "fs_list", limit=10)
    assert (len(listed["entries"]), listed["truncated"]) == (10, True)
    assert listed["entries"][0] == {"path": "bad\\xff", "kind": "file", "size": 0}
    assert run(workspace, "fs_list")["truncated"] is False
    with pytest.raises(ToolError):
        run(workspace, "fs_list", path="file00")


def test_searching_finds_lines_and_passes_over_the_rest(workspace: Path) -> None:
    (workspace / "src").mkdir()
    (workspace / "src/a.py").write_text("def one():\n    pass\nDEF\n")
    (workspace / "src/b.txt").write_text("def two\r\n")
    (workspace / "bin").write_bytes(b"def\0")
    (workspace / "link").symlink_to("src/a.py")
    found = run(workspace, "fs_search", pattern="def")
    assert [(match["path"], match["line"], match["text"]) for match in found["matches"]] == [
        ("src/a.py", 1, "def one():"), ("src/b.txt", 1, "def two"),
    ]  # fmt: skip
    assert (found["files"], found["skipped"], found["truncated"]) == (2, 2, False)
    assert len(run(workspace, "fs_search", pattern="def", glob="*.py", ignore_case=True)["matches"]) == 2
    assert len(run(workspace, "fs_search", pattern="def", glob="src/*.txt")["matches"]) == 1
    assert run(workspace, "fs_search", pattern="def", path="src/a.py")["matches"][0]["path"] == "a.py"
    assert run(workspace, "fs_search", pattern="d", limit=1)["truncated"] is True
    with pytest.raises(ToolError, match="not a regular expression"):
        run(workspace, "fs_search", pattern="(")


def test_writing_refuses_what_is_not_base64(workspace: Path) -> None:
    with pytest.raises(ToolError, match="base64"):
        run(workspace, "fs_write", path="f", content="!", base64=True)
    assert not (workspace / "f").exists()
    assert run(workspace, "fs_write", path="f", content="AA==", base64=True) == {"path": "f", "written": 1, "size": 1}


def tar(*entries: tuple[str, bytes, bytes], **kind: Any) -> bytes:
    """A stream of (name, type, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **kind) as archive:
        for name, what, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = what, len(data), "/etc/passwd"
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


FILE, FOLDER = tarfile.REGTYPE, tarfile.DIRTYPE


def test_a_tree_round_trips(workspace: Path) -> None:
    long = "/".join(["folder" * 10] * 4) + "/f"
    sent = tar(("./a", FILE, b"1"), ("d", FOLDER, b""), ("d/ü", FILE, b"2" * 5000), (long, FILE, b"3"))
    result, _ = piped(workspace, "workspace_put", sent, path="in/tree", kind="tree")
    assert (result["files"], result["folders"], result["bytes"]) == (3, 1, 5002)
    result, stream = piped(workspace, "workspace_get", path="in/tree", kind="tree")
    assert (result["files"], result["bytes"], result["skipped"]) == (3, 5002, [])
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        assert {"a", "d", "d/ü", long} <= set(archive.getnames())
    result, data = piped(workspace, "workspace_get", path="in/tree/d/ü", kind="file")
    assert data == b"2" * 5000


@pytest.mark.parametrize(
    "entry",
    [
        ("../x", FILE, b"1"), ("/x", FILE, b"1"), ("a/../../x", FILE, b"1"), ("a/..", FOLDER, b""), (".", FILE, b""),
        ("x", tarfile.SYMTYPE, b""), ("x", tarfile.LNKTYPE, b""), ("x", tarfile.FIFOTYPE, b""),
        ("x", tarfile.BLKTYPE, b""), ("x", tarfile.GNUTYPE_SPARSE, b""),
        ("link/x", FILE, b"1"), ("link", FILE, b"1"), ("file/x", FILE, b"1"),
    ],
)  # fmt: skip
def test_bad_entries_are_refused(workspace: Path, entry: tuple[str, bytes, bytes]) -> None:
    (workspace / "in").mkdir()
    (workspace / "in/file").write_text("kept")
    (workspace / "out").mkdir()
    (workspace / "in/link").symlink_to("../out")
    with pytest.raises(ToolError):
        piped(workspace, "workspace_put", tar(entry), path="in", kind="tree")
    assert list((workspace / "out").iterdir()) == []
    assert sorted(path.name for path in workspace.iterdir()) == ["in", "out"]


def test_a_header_that_would_fill_memory_is_refused(workspace: Path) -> None:
    bomb = tar(("x", tarfile.XHDTYPE, b"9" * (1 << 20)))
    with pytest.raises(ToolError, match="header is too long"):
        piped(workspace, "workspace_put", bomb, path=".", kind="tree")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=2048))
def test_garbage_is_refused_or_empty(workspace: Path, data: bytes) -> None:
    code = ""
    try:
        piped(workspace, "workspace_put", data, path="in", kind="tree")
    except ToolError as error:
        code = error.code
    assert code in ("", "tar", "entry")  # and no other exception
    assert not [path for path in workspace.rglob("*") if path.is_symlink()]


def test_a_file_that_shrinks_is_filled_up_and_reported() -> None:
    source = load("workspace_get").Exactly(io.BytesIO(b"123"), 5)
    assert source.read(2) + source.read(10) + source.read(10) == b"123\0\0"
    assert source.short is True
