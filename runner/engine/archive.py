"""Images as evidence: what sandboxes of an image id were made of, saved once, with a list of its packages beside it.

    STATE/engine/images/{<digest of the archive>.tar, <digest of the archive>.cdx.json, <image id>.json}

Done in the background when the first sandbox of an image exists. The archive is `docker save`, streamed; the record is
written last, so that what a crash cuts off is done again, and removed first. The list of packages lies beside the
archive for whoever scans it; the ledger names the same bytes. Nothing is removed but by `remove`, which gate asks for
once the ledger says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from runner.engine.docker import Docker
from runner.engine.packages import check_config, packages
from runner.errors import RunnerError, refuse

RESERVE = 1 << 30  # stays free on the host's disk: ledger and logs live there too
_ID = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BILL = ".cdx.json"


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image. `problem` says why something of it is not there."""

    digest: str = ""  # SHA-256 of the archive
    size: int = 0
    sbom: str = ""  # CycloneDX 1.5, JSON
    packages: int = 0
    problem: str = ""


class Standing(NamedTuple):
    """An archive that is there. `image` is "" when no record says of which."""

    image: str
    digest: str
    size: int


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

    def standing(self) -> list[Standing]:
        """Every archive that is there. Raises `RunnerError` (unavailable) when the folder cannot be read."""
        with self._turn, _told("the archives cannot be listed"):
            if not self._folder.is_dir():
                return []
            images = {found.digest: name for name, found in self._records()}
            sizes = {path.stem: path.stat().st_size for path in sorted(self._folder.glob("*.tar"))}
            return [Standing(images.get(digest, ""), digest, size) for digest, size in sizes.items()]

    def remove(self, digest: str) -> None:
        """Remove one archive and what names it; what is gone is no error. Raises `RunnerError`: internal for what is no
        digest, unavailable when the disk does not take it."""
        if not _DIGEST.fullmatch(digest):
            raise refuse("internal", "an archive is named by its SHA-256")
        with self._turn, _told("the archive cannot be removed"):
            if not self._folder.is_dir():
                return
            for name, found in self._records():
                if found.digest == digest:
                    (self._folder / f"{name.removeprefix('sha256:')}.json").unlink()
            # A crash here leaves an archive without a record, which the next start removes by the same digest.
            (self._folder / f"{digest}{_BILL}").unlink(missing_ok=True)
            (self._folder / f"{digest}.tar").unlink(missing_ok=True)
            _sync(self._folder)

    def _records(self) -> list[tuple[str, Archived]]:
        """(image id, record) of each record that can be read."""
        names = sorted(path.stem for path in self._folder.glob("*.json") if _DIGEST.fullmatch(path.stem))
        return [(f"sha256:{name}", found) for name in names if (found := self._record(name)) is not None]

    def _record(self, name: str) -> Archived | None:
        try:
            return msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=Archived)
        except (OSError, msgspec.MsgspecError):
            return None

    def _known(self, name: str) -> Archived | None:
        found = self._record(name)
        try:
            whole = found is not None and (self._folder / f"{found.digest}.tar").stat().st_size == found.size
        except OSError:
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
            check_config(new, name)
            sbom, count, problem = packages(new, image)
            new.rename(self._folder / f"{digest}.tar")
        finally:
            new.unlink(missing_ok=True)
        made = Archived(digest=digest, size=size, sbom=sbom, packages=count, problem=problem)
        if sbom:
            self._write(f"{digest}{_BILL}", sbom.encode())
        # A crash before this: the archive is made once more, under the same name or another.
        self._write(f"{name}.json", msgspec.json.encode(made))
        return made

    def _write(self, name: str, data: bytes) -> None:
        new = self._folder / "record.new"
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._folder / name)
        _sync(self._folder)

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


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """An error of the disk as a refusal."""
    try:
        yield
    except OSError as error:
        raise refuse("unavailable", f"{what}: {error.strerror}") from error


def usage(folder: Path) -> tuple[int, int]:
    """Bytes and number of the archives in a folder."""
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.tar")] if folder.is_dir() else []
    except PermissionError:  # root's to look at
        return 0, 0
    return sum(sizes), len(sizes)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
