"""Images as evidence: what sandboxes of an image id were made of, saved once, with a list of its packages beside it.

    STATE/engine/images/{<digest of the archive>.tar, <image id>.json}

Done in the background when the first sandbox of an image exists. The archive is `docker save`, streamed; the record is
written last, so that what a crash cuts off is done again. Nothing of the image is run: its package list is read from
dpkg's own files in the layers, as data, within bounds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from runner.engine.docker import Docker
from runner.errors import RunnerError, refuse

RESERVE = 1 << 30  # stays free on the host's disk: ledger and logs live there too
_MANIFEST = 4 << 20  # bytes of the archive's manifest and of the image's config
_STATUS = 32 << 20  # bytes of dpkg's status; Debian's largest installations have 10
_SBOM = 768 << 10  # bytes of the list: some 5,000 packages
_ID = re.compile(r"sha256:([0-9a-f]{64})")
_STATUS_FILE, _STATUS_FOLDER = "var/lib/dpkg/status", "var/lib/dpkg/status.d/"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_URL = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's name space for URLs


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image. `problem` says why something of it is not there."""

    digest: str = ""  # SHA-256 of the archive
    size: int = 0
    sbom: str = ""  # CycloneDX 1.5, JSON
    packages: int = 0
    problem: str = ""


class Archives:
    """The archives of one instance. Every method may block; one image at a time."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most  # bytes of all archives together
        self._turn = threading.Lock()
        self._stopping = False

    def stop(self) -> None:
        """Engine ends: what is being saved is given up, and done again next time."""
        self._stopping = True

    def archive(self, docker: Docker, image: str) -> Archived:
        """The image's archive, made now unless it is there. Total: what fails is said in `problem`, and tried again
        with the next daemon."""
        named = _ID.fullmatch(image)
        if named is None:
            return Archived(problem="its id is not a digest")
        with self._turn:
            known = self._known(named[1])
            if known is not None:
                return known
            try:
                return self._make(docker, image, named[1])
            except RunnerError as error:
                return Archived(problem=error.refused.reason[:200])
            except OSError as error:
                return Archived(problem=f"it could not be saved: {error.strerror}")

    def _known(self, name: str) -> Archived | None:
        try:
            found = msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=Archived)
            whole = (self._folder / f"{found.digest}.tar").stat().st_size == found.size
        except (OSError, msgspec.MsgspecError):
            return None
        return found if whole else None

    def _make(self, docker: Docker, image: str, name: str) -> Archived:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._folder.glob("*.new"):  # of a run that died
            left.unlink()
        self._check_room(docker, image)
        new = self._folder / "archive.new"
        try:
            digest, size = self._save(docker, image, new)
            _check_config(new, name)
            sbom, packages, problem = "", 0, ""
            try:
                installed = list(_packages(_status(new)))
                sbom, packages = _sbom(image, installed), len(installed)
            except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
                problem = f"its packages could not be listed: {error}"[:200]
            new.rename(self._folder / f"{digest}.tar")
        finally:
            new.unlink(missing_ok=True)
        made = Archived(digest=digest, size=size, sbom=sbom, packages=packages, problem=problem)
        record = self._folder / "record.new"
        with record.open("wb") as file:
            file.write(msgspec.json.encode(made))
            file.flush()
            os.fsync(file.fileno())
        # A crash before this rename: the archive is made once more, under the same name or another.
        record.rename(self._folder / f"{name}.json")
        _sync(self._folder)
        return made

    def _check_room(self, docker: Docker, image: str) -> None:
        found = docker.image(image)
        if found is None:
            raise refuse("unavailable", "the image is not on this host any more")
        there, _ = usage(self._folder)
        if there + found.size > self._most:
            raise refuse("unavailable", f"archives may have {self._most} bytes, and {there} are in use")
        if shutil.disk_usage(self._folder).free - found.size < RESERVE:
            raise refuse("unavailable", "the disk has no room for it")

    def _save(self, docker: Docker, image: str, path: Path) -> tuple[str, int]:
        total, size = hashlib.sha256(), 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in docker.save(image):
                size += len(piece)
                if self._stopping:
                    raise refuse("unavailable", "the daemon ended")
                if size > self._most:
                    raise refuse("unavailable", f"its archive has more than {self._most} bytes")
                total.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(descriptor)
        return total.hexdigest(), size


def usage(folder: Path) -> tuple[int, int]:
    """Bytes and number of the archives in a folder."""
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.tar")] if folder.is_dir() else []
    except PermissionError:  # root's to look at
        return 0, 0
    return sum(sizes), len(sizes)


def _check_config(path: Path, name: str) -> None:
    """An image's id is the digest of its config: raises `RunnerError` unless the archive holds that one."""
    try:
        with tarfile.open(path, "r:") as archive:
            config = _read(archive, str(_manifest(archive)["Config"]), _MANIFEST)
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise refuse("unavailable", f"what was saved is no archive of an image: {error}") from None
    if hashlib.sha256(config).hexdigest() != name:
        raise refuse("unavailable", "what was saved is another image")


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    (only,) = json.loads(_read(archive, "manifest.json", _MANIFEST))
    return dict(only)


def _read(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    member = archive.getmember(name)
    if not member.isreg() or member.size > most:
        raise ValueError(f"{name} is no file, or larger than {most} bytes")
    file = archive.extractfile(member)
    assert file is not None
    with file:
        return file.read()


def _status(path: Path) -> dict[str, bytes]:
    """dpkg's status files as the layers leave them, by name: a later layer replaces or removes an earlier one's."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:") as archive:
        for layer in _manifest(archive)["Layers"]:
            file = archive.extractfile(layer)
            if file is None:
                raise ValueError(f"layer {layer} is no file")
            with file:
                _apply(file, found)
    return found


def _apply(layer: IO[bytes], found: dict[str, bytes]) -> None:
    added: dict[str, bytes] = {}
    with tarfile.open(fileobj=layer, mode="r:*") as files:
        for member in files:
            name = member.name.removeprefix("./")
            folder, _, base = name.rpartition("/")
            if base == _OPAQUE:
                _drop(found, folder)
            elif base.startswith(_WHITEOUT):
                _drop(found, f"{folder}/{base.removeprefix(_WHITEOUT)}".lstrip("/"))
            elif member.isreg() and (name == _STATUS_FILE or name.startswith(_STATUS_FOLDER)):
                if member.size + sum(map(len, added.values())) > _STATUS:
                    raise ValueError(f"dpkg's status is larger than {_STATUS} bytes")
                data = files.extractfile(member)
                assert data is not None
                added[name] = data.read()
    found.update(added)


def _drop(found: dict[str, bytes], place: str) -> None:
    for name in [name for name in found if name == place or name.startswith(f"{place}/")]:
        del found[name]


def _packages(status: dict[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """(name, version, architecture) of every installed package, each once, sorted."""
    seen = set()
    for name, data in status.items():
        for stanza in data.decode("utf-8", "replace").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
            # A file in status.d is a package that is there: it has no Status field.
            installed = (
                "Status" not in fields if name != _STATUS_FILE else fields.get("Status", "").endswith(" installed")
            )
            if installed and "Package" in fields and "Version" in fields:
                seen.add((fields["Package"], fields["Version"], fields.get("Architecture", "")))
    yield from sorted(seen)


def _sbom(image: str, packages: list[tuple[str, str, str]]) -> str:
    """The packages as CycloneDX 1.5. The same for the same image: it has no time, and its serial is its name's."""
    components = [
        {
            "type": "library",
            "bom-ref": (url := f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={quote(architecture)}"),
            "name": name,
            "version": version,
            "purl": url,
        }
        for name, version, architecture in packages
    ]
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_URL, image)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": image, "name": "image", "version": image}},
        "components": components,
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    if len(text) > _SBOM:
        raise ValueError(f"the list of {len(packages)} packages is longer than {_SBOM} bytes")
    return text


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
