"""Loop devices: a file as a block device, for as long as somebody has it open or mounted (loop(4)).

A device is set up in one system call and marked for autoclear: when its last mount and its last descriptor are gone,
the kernel takes it apart, also when we were killed meanwhile. Nothing here outlives whoever uses it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from runner.errors import refuse

CONTROL = Path("/dev/loop-control")
_SYS = Path("/sys/block")
_GET_FREE, _CONFIGURE, _CLEAR = 0x4C82, 0x4C0A, 0x4C01  # <linux/loop.h>
_AUTOCLEAR = 4
_TRIES = 32  # the free device that the kernel names may be taken by another process before we have it
_NAME = re.compile(r"loop\d+")

# struct loop_config: the file, the block size (0 = the default), struct loop_info64 and eight reserved words.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")


class Loop:
    """One attached device. Close it once something has mounted the device: the mount keeps it from then on."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of it; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def attach(image: Path) -> Loop:
    """The file as a block device. Raises `RunnerError` (host) when this host gives none."""
    try:
        file = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return _attach(image, file)
        finally:
            os.close(file)  # the device holds the file itself
    except OSError as error:
        raise refuse(
            "host", f"no loop device for {image}: {error.strerror}", next_step="see `losetup -a` and /dev/loop-control"
        ) from error


def _attach(image: Path, file: int) -> Loop:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, os.fsencode(image)[:63], b"", b"", 0, 0)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(file, 0, info))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return Loop(path, device)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every free loop device was taken by others")


def backing(number: str) -> str:
    """The file behind a device (`7:0` in mountinfo's form), "" when it is no attached loop device."""
    try:
        text = Path("/sys/dev/block", number, "loop/backing_file").read_text()
    except OSError:
        return ""
    return text.rstrip("\n").removesuffix(" (deleted)")


def autoclears(number: str) -> bool:
    """Whether the kernel takes the device apart when nobody uses it any more."""
    try:
        return Path("/sys/dev/block", number, "loop/autoclear").read_text().strip() == "1"
    except OSError:
        return False


def capacity(number: str) -> int:
    """The device's size in bytes, 0 when there is none."""
    try:
        return int(Path("/sys/dev/block", number, "size").read_text()) * 512
    except OSError:
        return 0


def attached_below(folder: Path) -> dict[str, Path]:
    """Every attached device whose file lies in `folder` or below it: device path -> file."""
    found = {}
    for block in _SYS.iterdir():
        if not _NAME.fullmatch(block.name):
            continue
        try:
            text = (block / "loop/backing_file").read_text()
        except OSError:  # not attached
            continue
        file = Path(text.rstrip("\n").removesuffix(" (deleted)"))
        if file.is_relative_to(folder):
            found[f"/dev/{block.name}"] = file
    return found


def detach(path: str) -> None:
    """Have the kernel take the device apart, now or when its last user is gone. One that is gone is no error."""
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(device, _CLEAR)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EBUSY):
            raise
    finally:
        os.close(device)
