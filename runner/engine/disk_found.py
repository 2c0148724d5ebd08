"""What the kernel says of a disk workspace, from outside the container, and every way it differs from the promise."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from runner.engine import loop
from runner.engine.disk import least_usable, most_inodes

_NEEDED = frozenset({"rw", "nosuid", "nodev"})
_MODE = 0o700


class DiskPromise(msgspec.Struct, frozen=True, kw_only=True):
    """The disk that /workspace has to be. Sizes in bytes."""

    image: str
    size: int
    inodes: int


class DiskFound(msgspec.Struct, frozen=True, kw_only=True):
    """The block device under /workspace and the filesystem on it, as the kernel reports them."""

    image: str  # the file behind the loop device, "" when it is none
    autoclear: bool
    size: int  # of the device
    usable: int  # bytes that files can have
    inodes: int
    uid: int  # of the filesystem's root folder
    mode: int


def read_disk(process: Path, device: str) -> DiskFound:
    """Measure the mount at /workspace of a process (`/proc/PID`). Raises OSError when the process is gone."""
    place = process / "root/workspace"
    filesystem, folder = os.statvfs(place), place.stat()
    return DiskFound(
        image=loop.backing(device),
        autoclear=loop.autoclears(device),
        size=loop.capacity(device),
        usable=filesystem.f_blocks * filesystem.f_frsize,
        inodes=filesystem.f_files,
        uid=folder.st_uid,
        mode=stat.S_IMODE(folder.st_mode),
    )


def disk_differences(
    kind: str, root: str, options: frozenset[str], found: DiskFound | None, promise: DiskPromise, uid: int
) -> list[str]:
    """In words; empty when /workspace is the task's disk as promised."""
    if kind != "ext4" or found is None:
        return [f"/workspace is {kind}, not the task's disk"]
    if found.image != promise.image or root != "/":
        return [f"/workspace is on {found.image or 'a device that is no loop device'}, not on the task's disk"]
    wrong = [f"/workspace lacks {option}" for option in sorted(_NEEDED - options)]
    if "noexec" in options:
        wrong.append("/workspace is noexec")
    if not found.autoclear:
        wrong.append("the loop device of /workspace would outlive its mount")
    if found.size != promise.size:
        wrong.append(f"the disk of /workspace has {found.size} bytes, not {promise.size}")
    if not least_usable(promise.size, promise.inodes) <= found.usable <= promise.size:
        wrong.append(f"/workspace holds {found.usable} bytes of {promise.size}")
    if not promise.inodes <= found.inodes <= most_inodes(promise.size, promise.inodes):
        wrong.append(f"/workspace has {found.inodes} inodes, not {promise.inodes}")
    if (found.uid, found.mode) != (uid, _MODE):
        wrong.append(f"/workspace has owner {found.uid} and mode {found.mode:04o}")
    return wrong
