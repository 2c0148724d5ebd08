"""The reserve: room on the disk that is held back for what must still be written when the disk is full.

A file of `size` bytes, allocated and never read. When less than that is free beside it, or inodes run out, the disk is
`scarce`: no new call is taken, and nothing that can wait is written. The reserve itself is given up only when a write
finds no room, so that whoever fills the disk fails first; its room then serves revocations, kills and the outcomes of
running calls, here and in gate's state on the same disk. It is made again when three times its size is free.
"""

from __future__ import annotations

import os
from pathlib import Path

from runner.recorder.durability import FILE_MODE, is_full, sync_folder

_INODES = 64  # a bundle needs at most ten: its files, and the folders of a new thousand


class Reserve:
    """One reserve. With `size` 0 there is none to hold or to give up: what finds no room fails."""

    def __init__(self, path: Path, size: int) -> None:
        self.scarce = False
        self._gone = False
        self._size = size
        self._path = path
        self.look()

    def look(self) -> None:
        """Look at the disk; make the reserve when it is not there and there is plenty. Raises OSError."""
        if not self._size:
            return
        held = not self._gone and self._held()
        status = os.statvfs(self._path.parent)
        inodes = not status.f_files or status.f_favail >= _INODES  # some file systems do not count them
        least = 3 if not held else 2 if self.scarce else 1  # so that it does not come and go
        plenty = inodes and status.f_bavail * status.f_frsize >= least * self._size
        self._gone = not held and not (plenty and self._make())
        self.scarce = self._gone or not plenty

    def give_up(self) -> bool:
        """Make its room free; False when it was free already. Raises OSError."""
        if self._gone or not self._size:
            return False
        self._gone = self.scarce = True
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)  # a journaling file system gives blocks out again only then
        return True

    def _held(self) -> bool:
        """Whether all of it is allocated: a copy of it, or a cut-off one, holds nothing back."""
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return False
        return status.st_blocks * 512 >= self._size

    def _make(self) -> bool:
        self._path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, FILE_MODE)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if not is_full(error):
                raise
            return False
        return True
