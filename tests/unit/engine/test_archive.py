"""An image is saved once, bounded, and only as what it is; its packages are read from its layers as a union would."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.engine import packages as listing
from runner.engine.archive import Archives, usage
from runner.engine.docker import Image
from runner.errors import RunnerError

CONFIG = b'{"architecture":"amd64"}'
ID = "sha256:" + hashlib.sha256(CONFIG).hexdigest()


def stanza(name: str, version: str = "1:2.0-1", status: str = "install ok installed") -> str:
    said = f"Status: {status}\n" if status else ""
    return f"Package: {name}\n{said}Architecture: amd64\nVersion: {version}\nDescription: x\n Package: not-one\n"


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def saved(*layers: dict[str, str], config: bytes = CONFIG) -> bytes:
    """What `docker save` would print."""
    files = {f"{number}/layer.tar": tar({name: text.encode() for name, text in layer.items()})
             for number, layer in enumerate(layers)}  # fmt: skip
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": list(files)}]
    return tar({"c.json": config, "manifest.json": json.dumps(manifest).encode(), **files})


class Docker:
    def __init__(self, data: bytes) -> None:
        self.data, self.saves = data, 0

    def image(self, name: str) -> Image | None:
        return Image(id=name, labels={}, size=len(self.data)) if self.data else None

    def save(self, image: str) -> Iterator[bytes]:
        self.saves += 1
        for start in range(0, len(self.data), 4096):
            yield self.data[start : start + 4096]


def made(folder: Path, data: bytes, most: int = 1 << 30) -> Any:
    docker: Any = Docker(data)
    return Archives(folder, most).archive(docker, ID)


def names(found: Any) -> list[str]:
    return [component["name"] for component in json.loads(found.sbom)["components"]]


STATUS = "var/lib/dpkg/status"


def test_it_is_saved_once_and_named_by_its_digest(tmp_path: Path) -> None:
    data = saved({STATUS: stanza("base-files") + "\n" + stanza("gone", status="deinstall ok config-files")})
    docker: Any = Docker(data)
    archives = Archives(tmp_path, 1 << 30)
    found = archives.archive(docker, ID)
    assert (found.digest, found.size, found.problem) == (hashlib.sha256(data).hexdigest(), len(data), "")
    assert (tmp_path / f"{found.digest}.tar").read_bytes() == data
    assert (names(found), found.packages) == (["base-files"], 1)
    assert archives.archive(docker, ID) == found
    assert Archives(tmp_path, 1 << 30).archive(docker, ID) == found  # the next daemon's too
    assert docker.saves == 1
    assert usage(tmp_path) == (len(data), 1)
    assert (tmp_path / f"{found.digest}.cdx.json").read_text() == found.sbom  # for whoever scans it
    (component,) = json.loads(found.sbom)["components"]
    assert component["purl"] == "pkg:deb/debian/base-files@1%3A2.0-1?arch=amd64"
    (tmp_path / f"{found.digest}.tar").unlink()  # a record without its archive is none
    assert archives.archive(docker, ID) == found
    assert docker.saves == 2


@pytest.mark.parametrize(
    ("layers", "packages"),
    [
        (({STATUS: stanza("a")}, {STATUS: stanza("a") + "\n" + stanza("b")}), ["a", "b"]),
        (({"./" + STATUS: stanza("a") + "\n" + stanza("b")}, {STATUS: stanza("b")}), ["b"]),
        (({STATUS: stanza("a")}, {"var/lib/dpkg/.wh.status": ""}), []),
        (({STATUS: stanza("a")}, {"var/lib/.wh.dpkg": ""}), []),
        (({STATUS: stanza("a")}, {"var/lib/dpkg/.wh..wh..opq": "", STATUS: stanza("c")}), ["c"]),
        (({"var/lib/dpkg/status.d/x": stanza("x", status=""), "var/lib/dpkg/status-old": stanza("old")},), ["x"]),
        (({"etc/passwd": "root"},), []),
    ],
)
def test_layers_are_read_as_a_union(tmp_path: Path, layers: Any, packages: list[str]) -> None:
    found = made(tmp_path, saved(*layers))
    assert names(found) == packages
    assert found.problem == ""


def test_another_image_is_not_taken_for_it(tmp_path: Path) -> None:
    for wrong in (saved({}, config=b"{}"), b"no archive" * 200, tar({"manifest.json": b"[]"})):
        found = made(tmp_path, wrong)
        assert found.problem
        assert found.digest == ""
    assert list(tmp_path.iterdir()) == []
    assert made(tmp_path, saved({})).digest  # the twin


def test_packages_beyond_their_bound_leave_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_STATUS", 100)
    found = made(tmp_path, saved({STATUS: stanza("a") * 9}))
    assert "larger" in found.problem
    assert found.digest
    assert found.sbom == ""


def test_what_has_no_room_or_is_gone_is_said(tmp_path: Path) -> None:
    data = saved({STATUS: stanza("a")})
    assert "archives may have" in made(tmp_path, data, most=len(data) - 1).problem
    assert "not on this host" in made(tmp_path, b"").problem
    docker: Any = Docker(data)
    assert Archives(tmp_path, 1 << 30).archive(docker, "latest").problem
    stopped = Archives(tmp_path, 1 << 30)
    stopped.stop()
    assert "ended" in stopped.archive(docker, ID).problem
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_removed_and_done_again(tmp_path: Path) -> None:
    (tmp_path / "archive.new").write_bytes(b"half")
    (tmp_path / "record.new").write_bytes(b"{")
    (tmp_path / f"{ID.removeprefix('sha256:')}.json").write_bytes(b"{")
    found = made(tmp_path, saved({STATUS: stanza("a")}))
    assert found.problem == ""
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".tar"]


def test_it_is_removed_with_all_that_names_it(tmp_path: Path) -> None:
    data = saved({STATUS: stanza("a")})
    found = made(tmp_path, data)
    other = tar({"x": b"y"})
    lost = hashlib.sha256(other).hexdigest()
    (tmp_path / f"{lost}.tar").write_bytes(other)  # its record went with a crash
    archives = Archives(tmp_path, 1 << 30)
    standing = {(each.image, each.digest, each.size) for each in archives.standing()}
    assert standing == {(ID, found.digest, len(data)), ("", lost, len(other))}
    archives.remove(found.digest)
    assert [each.digest for each in archives.standing()] == [lost]
    assert [path.name for path in tmp_path.iterdir()] == [f"{lost}.tar"]
    archives.remove(found.digest)  # done again after a crash
    archives.remove(lost)
    assert list(tmp_path.iterdir()) == []
    assert made(tmp_path, data) == found  # and it may come back


@pytest.mark.parametrize("left", ["cdx.json", "tar", "json"])
def test_a_removal_that_was_cut_off_anywhere_is_finished(tmp_path: Path, left: str) -> None:
    found = made(tmp_path, saved({STATUS: stanza("a")}))
    kept = ID.removeprefix("sha256:") + ".json" if left == "json" else f"{found.digest}.{left}"
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    Archives(tmp_path, 1 << 30).remove(found.digest)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_digest_is_no_path(tmp_path: Path) -> None:
    archives = Archives(tmp_path / "images", 1 << 30)
    assert archives.standing() == []
    archives.remove("a" * 64)  # the twin: there is no folder yet
    (tmp_path / "x.tar").write_bytes(b"")
    for name in ("../x", "", "A" * 64, "a" * 63, "a" * 64 + "\n"):
        with pytest.raises(RunnerError):
            archives.remove(name)
    assert (tmp_path / "x.tar").exists()
