"""Disk workspaces: an ext4 filesystem in a file of its own, for as long as its task lives.

    STATE/engine/disks/<digest of the task id>/{image, record.json}

The file has its whole size reserved before anything is written to it, so a full workspace is never news to the
host's disk. dockerd mounts the file's loop device as an anonymous volume of the sandbox's container, in its own mount
namespace: what the mount needs goes with the container, the loop device with the mount. Between two sandboxes of a
task a disk is a file and nothing else. Files on it belong to one uid, which is kept for it (`uids.py`)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from runner.engine import loop
from runner.engine.template import WORKSPACE
from runner.engine.uids import UidLease, UidRange
from runner.errors import refuse
from runner.model import Ceilings

log = logging.getLogger(__name__)

RESERVE = 1 << 30  # stays free on the host's disk, whatever tasks ask for: ledger and logs live there too
INODE = 256  # bytes of the inode table for each file
_BLOCK = 4096
_GROUP = _BLOCK * _BLOCK * 8  # bytes that one bitmap block describes; mke2fs rounds the inodes of each group up
_PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"
_MAKE_S = 300.0  # mke2fs of a terabyte takes seconds; a disk that takes longer is broken
_LET_GO_S = 10.0  # a dead sandbox's mount is written back before its loop device goes
_LEAST = 64 << 20  # below this the journal is a large part of it


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task: str
    uid: int
    size: int
    inodes: int


class Disk:
    """One task's disk. `fresh` until its first sandbox is whole; size in bytes, `inodes` as the profile asked."""

    def __init__(self, folder: Path, record: _Record, *, fresh: bool) -> None:
        self.folder = folder
        self.image = folder / "image"
        self.task, self.uid, self.size, self.inodes = record.task, record.uid, record.size, record.inodes
        self.fresh = fresh

    def attach(self) -> loop.Loop:
        """Its block device, when no earlier one is left. Raises `RunnerError` (busy, host)."""
        deadline = time.monotonic() + _LET_GO_S
        while loop.attached_below(self.folder):  # two filesystems on one file would destroy it
            if time.monotonic() > deadline:
                raise refuse("busy", "an earlier sandbox still holds the task's disk", retry_after_ms=1000)
            time.sleep(0.05)
        descriptor = os.open(self.image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _fill(descriptor, self.size)  # what a trim gave back is taken again before anybody relies on it
        finally:
            os.close(descriptor)
        return loop.attach(self.image)

    def settle(self, pid: int) -> None:
        """Make it look like any workspace, through the sandbox's own mount, before a tool runs: a new filesystem has
        another mode and a folder of its own, and so may one that tools have used.

        A mount that is not this disk is left alone: the measurement refuses it. Raises OSError."""
        place = os.open(f"/proc/{pid}/root{WORKSPACE}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            device = os.fstat(place).st_dev
            if loop.backing(f"{os.major(device)}:{os.minor(device)}") != str(self.image):
                return
            os.fchmod(place, 0o700)
            with contextlib.suppress(FileNotFoundError):
                if os.stat("lost+found", dir_fd=place, follow_symlinks=False).st_uid == 0:  # mke2fs's, not a tool's
                    os.rmdir("lost+found", dir_fd=place)
        finally:
            os.close(place)


class Disks:
    """Every disk of this instance. Methods block: call them from a worker thread."""

    def __init__(self, folder: Path, uids: UidRange) -> None:
        self._folder = folder
        self._uids = uids
        self._making = threading.Lock()  # free space is looked at and taken by one at a time
        self._found: set[Path] = set()  # disks of an earlier run that nobody has spoken for yet

    def start(self) -> None:
        """Find what an earlier run left. No container of it is alive any more."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = self._folder.resolve()  # as the kernel names backing files
        for folder in self._folder.iterdir():
            if folder.suffix:  # half made, or half removed
                shutil.rmtree(folder)
            else:
                self._found.add(folder)
        for device, image in loop.attached_below(self._folder).items():
            log.warning("taking apart %s, left over on %s", device, image)
            loop.detach(device)

    def keep(self, tasks: Collection[str]) -> tuple[str, ...]:
        """Of the disks found at the start, remove all but those of `tasks`. Returns the tasks that have a disk."""
        wanted = {self._place(task) for task in tasks}
        for folder in self._found - wanted:
            log.warning("removing the disk of a task that is over")
            _remove(folder)
        self._found &= wanted
        return tuple(task for task in tasks if _read(self._place(task)) is not None)

    def has(self, task: str) -> bool:
        """Whether the task has a disk."""
        return self._place(task).exists()

    def open(self, task: str, ceilings: Ceilings) -> tuple[Disk, UidLease]:
        """The task's disk, made if it has none, and its owner's uid leased. A disk keeps the size it was made with.

        Raises `RunnerError` (busy, host)."""
        folder = self._place(task)
        record = _read(folder)
        if record is not None:
            return Disk(folder, record, fresh=False), self._uids.lease_again(record.uid, folder)
        if folder.exists():
            raise refuse("host", "the task's disk has no readable record", field=str(folder), next_step="end the task")
        lease = self._uids.lease(folder)
        try:
            wanted = _Record(task=task, uid=lease.uid, size=ceilings.workspace, inodes=ceilings.workspace_inodes)
            with self._making:
                self._make(folder, wanted)
        except BaseException:
            lease.release()
            raise
        return Disk(folder, wanted, fresh=True), lease

    def remove(self, task: str) -> None:
        """Delete the task's disk. One that is not there is no error. What was on it is not overwritten."""
        folder = self._place(task)
        self._found.discard(folder)
        _remove(folder)

    def _place(self, task: str) -> Path:
        return self._folder / hashlib.sha256(task.encode()).hexdigest()[:32]  # a task's own name becomes no path

    def _make(self, folder: Path, record: _Record) -> None:
        half = folder.with_suffix(".new")
        half.mkdir(mode=0o700)
        try:
            descriptor = os.open(half / "image", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _check_space(descriptor, record.size)
                _fill(descriptor, record.size)
                _make_filesystem(half / "image", record)
                _fill(descriptor, record.size)  # mke2fs writes zeros as holes
            finally:
                os.close(descriptor)
            (half / "record.json").write_bytes(msgspec.json.encode(record))
            half.rename(folder)
        except BaseException:
            shutil.rmtree(half)
            raise


def unsupported() -> str:
    """What this host lacks for disk workspaces, "" when it lacks nothing."""
    missing = []
    if not loop.CONTROL.is_char_device():
        missing.append("loop devices (/dev/loop-control)")
    if not _kernel_has_ext4():
        missing.append("ext4 in its kernel")
    if _program("mkfs.ext4") is None:
        missing.append("mkfs.ext4 (install e2fsprogs)")
    return ", ".join(missing)


def check(ceilings: Ceilings, where: str) -> None:
    """Raise `RunnerError` (profile, host) unless a disk of these ceilings can be made and kept on this host."""
    missing = unsupported()
    if missing:
        raise refuse(
            "host",
            f'workspace_kind = "disk" needs what this host lacks: {missing}',
            field=where,
            next_step="see `runner doctor`; or take the profile out of the catalogue",
        )
    least = max(_LEAST, 4 * INODE * ceilings.workspace_inodes)
    if ceilings.workspace < least:
        raise refuse(
            "profile",
            f"a disk workspace of {ceilings.workspace >> 20}MiB is too small for its journal and "
            f"{ceilings.workspace_inodes} inodes of {INODE} bytes",
            field=where,
            allowed=f"at least {-(-least >> 20)}MiB",
        )


def most_inodes(size: int, inodes: int) -> int:
    """What mke2fs may make of `inodes` asked: it rounds up to whole blocks of them in each group."""
    return inodes + _BLOCK // INODE * -(-size // _GROUP)


def least_usable(size: int, inodes: int) -> int:
    """Bytes that files can have on a disk of `size`, at the least: the rest is inode table, journal and bitmaps."""
    return size - size // 8 - INODE * most_inodes(size, inodes)


def _check_space(descriptor: int, size: int) -> None:
    there = os.fstatvfs(descriptor)
    free = there.f_bavail * there.f_frsize
    if free - size < RESERVE:
        raise refuse(
            "busy",
            f"the task's disk of {size >> 20}MiB does not fit: the state directory's disk has {free >> 20}MiB free, "
            f"and {RESERVE >> 20}MiB of it stay free",
            next_step="end tasks, or free space under the state directory",
        )


def _fill(descriptor: int, size: int) -> None:
    """Have every block of the file, without changing what is in those that it has."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        code = "busy" if error.errno == errno.ENOSPC else "host"
        raise refuse(code, f"space for the task's disk cannot be reserved: {error.strerror}") from error


def _make_filesystem(image: Path, record: _Record) -> None:
    program = _program("mkfs.ext4")
    if program is None:
        raise refuse("host", "there is no mkfs.ext4", next_step="install e2fsprogs")
    # No reserved blocks, no discard (it would give the space back), nothing left for a kernel thread to write later.
    options = f"nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner={record.uid}:{record.uid}"
    command = [program, "-q", "-F", "-b", str(_BLOCK), "-I", str(INODE), "-m", "0", "-N", str(record.inodes)]
    command += ["-J", f"size={_journal_mib(record.size)}", "-O", "^resize_inode", "-E", options, "--", str(image)]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={"PATH": _PROGRAMS, "LC_ALL": "C"},
            timeout=_MAKE_S,
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise refuse("host", f"mkfs.ext4 failed: {said.decode(errors='replace').strip()[:400]}") from error


def _journal_mib(size: int) -> int:
    """mke2fs's own choice takes an eighth of small disks. 4 MiB is the least that it accepts."""
    return min(max(size >> 26, 4), 64)


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PROGRAMS)


def _kernel_has_ext4() -> bool:
    """Built in or loaded, or a module that mounting loads."""
    if "ext4" in Path("/proc/filesystems").read_text().split():
        return True
    modules = Path("/lib/modules", os.uname().release)
    lists = [modules / "modules.builtin", modules / "modules.dep"]
    return any("/ext4.ko" in path.read_text(errors="replace") for path in lists if path.is_file())


def _read(folder: Path) -> _Record | None:
    try:
        return msgspec.json.decode((folder / "record.json").read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None


def _remove(folder: Path) -> None:
    """The name first: what a crash leaves half removed is not taken for a disk."""
    gone = folder.with_suffix(".old")
    try:
        folder.rename(gone)
        shutil.rmtree(gone)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refuse("host", f"the disk cannot be removed: {error.strerror}", field=str(gone)) from error
