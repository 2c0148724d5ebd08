"""Trees out and back in; what comes back is hostile."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.client import CallError, InvalidArguments, ToolFailed, connect
from runner.client.files import MAX_DEPTH, Extracted, TreeWriter, outgoing, pack_tree

LIMIT = 1 << 20


def extract(data: bytes, folder: Path, *, limit: int = LIMIT, piece: int = 1000) -> Extracted:
    with TreeWriter(folder, limit) as tree:
        for start in range(0, len(data), piece):
            tree.feed(data[start : start + piece])
        return tree.finish()


def archive(*members: tuple[str, bytes | None, dict[str, Any]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar made by the standard library: (name, bytes or None, other fields)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_a_tree_comes_back_as_it_went(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "empty").mkdir(parents=True)
    (source / "a" / "one.txt").write_bytes(b"1" * 511)
    (source / ("long" * 60)).write_bytes(b"2" * 512)
    (source / "häßlich.txt").write_bytes(b"3" * 513)
    (source / "tool").write_bytes(b"#!")
    (source / "tool").chmod(0o755)
    os.utime(source / "tool", (1.5, 1.5))
    packed = b"".join(pack_tree(source))
    assert packed == b"".join(pack_tree(source))
    for piece in (1, 511, 512, 100_000):
        target = tmp_path / f"target{piece}"
        found = extract(packed, target, piece=piece)
        assert contents(target) == contents(source)
        assert (found.files, found.bytes, found.skipped) == (4, 511 + 512 + 513 + 2, ())
        assert (target / "tool").stat().st_mode & 0o111
        assert not (target / "a" / "one.txt").stat().st_mode & 0o111
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:  # and another reader agrees
        assert sorted(tar.getnames()) == sorted(contents(source))


def test_links_are_refused_or_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "real").write_bytes(b"x")
    (source / "link").symlink_to("real")
    (source / "out").symlink_to("../../etc")
    (source / "broken").symlink_to("nowhere")
    with pytest.raises(InvalidArguments, match="takes no links") as caught:
        b"".join(pack_tree(source))
    assert "omit_links" in caught.value.next_step
    extract(b"".join(pack_tree(source, omit_links=True)), tmp_path / "target")
    assert contents(tmp_path / "target") == {"real": b"x", "d": None}


def test_special_files_do_not_go_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArguments, match="neither a file nor"):
        b"".join(pack_tree(tmp_path))


def test_a_file_that_shrinks_while_it_is_read_keeps_the_stream_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log").write_bytes(b"x" * 5000)
    stream = pack_tree(source)
    first = next(stream)
    (source / "log").write_bytes(b"y" * 10)
    assert extract(first + b"".join(stream), tmp_path / "target").bytes == 5000


def test_what_goes_out(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert [(kind, b"".join(pieces)) for kind, pieces in (outgoing(b"raw"), outgoing(tmp_path / "f"))] == [
        ("file", b"raw"),
        ("file", b"abc"),
    ]
    assert outgoing(tmp_path)[0] == "tree"
    with pytest.raises(InvalidArguments, match="no such file"):
        outgoing(tmp_path / "missing")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers_are_understood(tmp_path: Path, form: int) -> None:
    name = "deep/" * 18 + "n" * 90
    data = archive(("d", None, {"type": tarfile.DIRTYPE}), (f"d/{name}", b"x" * 700, {"mtime": 1}), form=form)
    assert extract(data, tmp_path / "t").files == 1
    assert (tmp_path / "t" / "d" / name).read_bytes() == b"x" * 700


def header(**fields: bytes) -> bytes:
    """A raw header with a right checksum and wrong contents."""
    places = {"name": 0, "mode": 100, "size": 124, "kind": 156, "link": 157, "magic": 257, "prefix": 345}
    block = bytearray(512)
    defaults = {"name": b"f", "mode": b"0000644\0", "size": b"00000000000\0", "kind": b"0", "magic": b"ustar\x0000"}
    for name, value in {**defaults, **fields}.items():
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    return bytes(block)


END = bytes(1024)


def pax(record: bytes) -> bytes:
    length = len(record) + 2
    while len(str(length)) + 1 + len(record) + 1 != length:
        length += 1
    body = b"%d %s\n" % (length, record)
    return header(kind=b"x", size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


HOSTILE: dict[str, bytes] = {
    "absolute": archive(("/etc/x", b"x", {})),
    "parent": archive(("../x", b"x", {})),
    "parent inside": archive(("a/../../x", b"x", {})),
    "parent in the prefix": header(prefix=b"..", name=b"x") + END,
    "parent by pax": pax(b"path=../x") + header() + END,
    "parent by gnu name": header(kind=b"L", size=b"00000000005\0") + b"../x\0".ljust(512, b"\0") + header() + END,
    "absolute by pax": pax(b"path=/tmp/x") + header() + END,
    "NUL in a pax name": pax(b"path=a\0b") + header() + END,
    "twice": archive(("f", b"1", {}), ("f", b"2", {})),
    "file as folder": archive(("f", b"1", {}), ("f/g", b"2", {})),
    "folder as file": archive(("f", None, {"type": tarfile.DIRTYPE}), ("f", b"2", {})),
    "too deep": archive(("a/" * (MAX_DEPTH + 1) + "f", b"", {})),
    "too long": archive(("a" * 5000, b"", {})),
    "no name": header(name=b"") + END,
    "dot": header(name=b"./.") + END,
    "not UTF-8": header(name=b"\xff\xfe") + END,
    "size bomb": header(size=b"77777777777\0") + END,
    "negative size": header(size=b"\xff" * 12) + END,
    "binary size": header(size=b"\x80" + b"\0" * 10 + b"\x05") + END,
    "size with a sign": header(size=b"-0000000001\0") + END,
    "size of spaces and digits": header(size=b"0 0 0 0 0 0\0") + END,
    "link with a body": header(kind=b"2", link=b"/etc", size=b"00000001000\0") + bytes(512) + END,
    "sparse": header(kind=b"S") + END,
    "global pax": header(kind=b"g") + END,
    "pax size": pax(b"size=9999") + header() + END,
    "pax sparse": pax(b"GNU.sparse.major=1") + header() + END,
    "pax charset": pax(b"hdrcharset=BINARY") + header() + END,
    "pax length": header(kind=b"x", size=b"00000000012\0") + b"99 path=ab\n".ljust(512, b"\0") + header() + END,
    "pax without length": header(kind=b"x", size=b"00000000012\0") + b"path=abcd\n".ljust(512, b"\0") + header() + END,
    "pax too long": header(kind=b"x", size=b"00010000000\0") + END,
    "bad checksum": b"g" + header()[1:] + END,
    "not a tar": b"hello " * 1000,
    "another magic": header(magic=b"nope!\0") + END,
    "cut in a header": header()[:300],
    "cut in a body": header(size=b"00000001000\0") + b"x" * 100,
    "no end": header(),
    "half an end": header() + bytes(512),
    "empty": b"",
    "goes on": END + header() + END,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tree_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(InvalidArguments):
        extract(HOSTILE[name], inside / "target")
    assert list(inside.iterdir()) == []
    assert list(tmp_path.iterdir()) == [inside]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_links_and_special_files_are_left_out_and_named(tmp_path: Path, kind: bytes) -> None:
    data = archive(("bad\x1b[31m", None, {"type": kind, "linkname": "/etc/passwd"}), ("good", b"x", {"mode": 0o6777}))
    found = extract(data, tmp_path / "t")
    assert found.skipped == ("bad\\x1b[31m",)
    assert contents(tmp_path / "t") == {"good": b"x"}
    assert (tmp_path / "t" / "good").stat().st_mode & 0o7000 == 0


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = archive(("d", None, {"type": tarfile.SYMTYPE, "linkname": str(outside)}), ("d/f", b"x", {}))
    extract(data, tmp_path / "t")
    assert list(outside.iterdir()) == []
    assert (tmp_path / "t" / "d" / "f").read_bytes() == b"x"  # a folder of its own


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(*((f"f{index}", b"x" * 100, {}) for index in range(20)))
    with pytest.raises(InvalidArguments, match="larger than 1999"):
        extract(data, tmp_path / "t", limit=1999)
    assert extract(data, tmp_path / "t", limit=2000).files == 20
    monkeypatch.setattr("runner.client.files.MAX_MEMBERS", 9)
    with pytest.raises(InvalidArguments, match="more than 9"):
        extract(data, tmp_path / "u")


def test_an_existing_place_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for place in (tmp_path, tmp_path / "dangling"):
        with pytest.raises(InvalidArguments, match="exists"):
            extract(END, place)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=3000)
    | st.builds(
        lambda place, value: (lambda good: good[:place] + value + good[place + len(value) :])(
            archive(("a/b", b"x" * 600, {}), ("é" * 120, b"y", {}), ("l", None, {"type": tarfile.SYMTYPE}))
        ),
        st.integers(0, 6000),
        st.binary(min_size=1, max_size=12),
    )
)
def test_any_bytes_are_a_tree_or_a_refusal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        inside = Path(name) / "inside"
        inside.mkdir()
        try:
            extract(data, inside / "t")
        except CallError as error:
            assert error.code == "arguments"  # noqa: PT017 - success is fine too
            assert list(inside.iterdir()) == []
        assert [path.name for path in Path(name).iterdir()] == ["inside"]
        assert not [path for path in inside.rglob("*") if path.is_symlink()]


# --- through the tools ---


@pytest.fixture
def workspace(daemon: Any) -> dict[str, bytes]:
    """workspace_put and workspace_get, with a dict for a workspace."""
    kept: dict[str, bytes] = {}

    async def put(call: Any) -> None:
        call.accept()
        call.credit_stdin(1000)
        data = b""
        while not (message := await call.input.get()).eof:
            data += message.data
            call.credit_stdin(len(message.data))
        kept[f"{call.arguments['kind']}:{call.arguments['path']}"] = data
        call.finish()

    async def get(call: Any) -> None:
        call.accept()
        skipped = [{"path": "a\nb", "why": "a link"}, {"path": 7}, "?"]
        data = kept.get(f"{call.arguments['kind']}:{call.arguments['path']}")
        if data is None:
            await call.output(b"no such file\n", "stderr")
        else:
            await call.output(data)
        call.finish(exit_code=0 if data is not None else 1, value={"skipped": skipped})

    daemon.tools |= {"workspace_put": put, "workspace_get": get}
    return kept


def test_files_and_trees_go_and_come(daemon: Any, workspace: dict[str, bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "f").write_bytes(b"z" * 70_000)
    with connect(credentials=daemon.credentials) as runner:
        runner.put("note.txt", b"hello")
        runner.put("f", source / "a" / "f")
        runner.put("tree", source)
        assert runner.get("note.txt") == b"hello"
        assert runner.get("f") == b"z" * 70_000
        found = runner.get_tree("tree", tmp_path / "back")
        assert contents(found.folder) == contents(source)
        assert found.skipped == ("a\\nb",)
        with pytest.raises(ToolFailed, match="no such file"):
            runner.get("missing")
        with pytest.raises(ToolFailed, match="no such file"):
            runner.get_tree("missing", tmp_path / "none")
        with pytest.raises(InvalidArguments, match="larger than 4"):
            runner.get("note.txt", limit=4)
        workspace["tree:evil"] = HOSTILE["parent"]
        with pytest.raises(InvalidArguments, match="leaves it"):
            runner.get_tree("evil", tmp_path / "evil")
        assert runner.call("echo", {"text": "alive"}).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.sock", "back", "source"]


@pytest.mark.parametrize("make", [lambda path: path / "missing", lambda path: path / "source"])
def test_what_cannot_be_packed_is_refused(
    daemon: Any, workspace: dict[str, bytes], tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(InvalidArguments):
            runner.put("x", make(tmp_path))
        assert runner.call("echo", {"text": "alive"}).ok
