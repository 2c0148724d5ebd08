"""User ids for sandboxes, leased host-wide: a lock file per uid, so that daemons side by side never share one.

Two sandboxes with one uid would share signals, pipe budgets and every per-user limit of the kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
from pathlib import Path

from runner.errors import refuse

FOLDER = Path("/run/toolrunner-uids")  # one place for every instance on the host; /run/lock is writable by anyone


class UidLease:
    """One uid, ours while the lock file's descriptor is open. The gid is the same number."""

    def __init__(self, uid: int, descriptor: int) -> None:
        self.uid = uid
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back; a second time does nothing. The file stays: unlinking it would race with the next owner."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class UidRange:
    """`count` uids from `first` on. `lease` blocks on files only; call it from a worker thread."""

    def __init__(self, first: int, count: int, *, folder: Path = FOLDER, proc: Path = Path("/proc")) -> None:
        self._range = range(first, first + count)
        self._folder = folder
        self._proc = proc

    def lease(self, keep: Path | None = None) -> UidLease:
        """A uid, the lowest that nobody leases, nothing keeps, no account has and no process runs as.

        With `keep`, nobody else gets this uid while that path exists, even after the lease is over: files of it lie
        there. The lock file says so, until the host restarts; such uids are taken from the top, where after that the
        leases of others come last. Raises `RunnerError` (busy)."""
        for uid in reversed(self._range) if keep else self._range:
            descriptor = self._take(uid, keep)
            if descriptor >= 0:
                return UidLease(uid, descriptor)
        raise refuse(
            "busy",
            f"every sandbox uid from {self._range.start} to {self._range.stop - 1} is in use on this host",
            next_step="end tasks, or raise sandboxes.uid_count",
        )

    def lease_again(self, uid: int, keep: Path) -> UidLease:
        """The very uid that owns the files in `keep`. Raises `RunnerError` (busy) when it is not to be had now."""
        descriptor = self._take(uid, keep)
        if descriptor < 0:
            raise refuse(
                "busy",
                f"uid {uid}, which owns the task's disk, is in use elsewhere on this host",
                next_step="retry; or end the task: its disk goes with it",
                retry_after_ms=1000,
            )
        return UidLease(uid, descriptor)

    def _take(self, uid: int, keep: Path | None) -> int:
        """The descriptor that holds the lock on `uid`, -1 when the uid is not free."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / f"uid-{uid}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return -1
        # Looked at under the lock: whoever had it before may have died with processes left behind.
        if _kept_by_another(descriptor, keep) or uid in uids_in_use(self._proc) or _has_account(uid):
            os.close(descriptor)
            return -1
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, os.fsencode(keep) if keep else b"", 0)
        return descriptor


def _kept_by_another(descriptor: int, keep: Path | None) -> bool:
    """Whether the lock file names a path that exists and is not ours."""
    named = os.pread(descriptor, 4096, 0)
    return bool(named) and (keep is None or named != os.fsencode(keep)) and os.path.lexists(named)


def uids_in_use(proc: Path = Path("/proc")) -> set[int]:
    """Every real, effective, saved and filesystem uid of every process. Not the owner of /proc/PID: a process that
    is not dumpable shows as root's."""
    found: set[int] = set()
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                for line in (proc / entry.name / "status").read_text().splitlines():
                    if line.startswith("Uid:"):
                        found.update(int(part) for part in line.split()[1:])
                        break
    return found


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
