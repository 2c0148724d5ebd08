"""How bytes reach the disk, and what it means when they do not.

Every failure below ends the recorder: it answers nothing more, and the next start recovers. A failed fsync is never
repeated, because the kernel may have dropped the pages and a second fsync would lie. Nothing is acknowledged before
step 4, so an acknowledged entry survives a crash at any instruction.

| # | write | when | a failure or crash here leaves |
| --- | --- | --- | --- |
| 1 | content ahead of entries: one SQLite transaction, WAL, FULL | commit | content that no entry names: harmless |
| 2 | large content: tmp/*, fsync, rename, fsync folder | its end | the same; tmp/* is emptied at start |
| 3 | tail: append content, entries, a signed checkpoint | commit | a torn group: cut and noted as `repair` |
| 4 | tail: fdatasync. On return: **acknowledge** | commit | the same: nobody was told of the group |
| 5 | pack/N-*, tile/entries/N, tile/L/N: .new, fsync, rename | tidy | files of what the tail holds too |
| 6 | fsync of the folders of 5 | tidy | the same: start does 5 again, and compares |
| 7 | tail.new, fsync | tidy | the old tail, whole; tail.new is removed |
| 8 | tail.new to tail: rename, fsync folder | tidy | the old tail or the new one, each whole |
| 9 | partial tiles of what became full: unlink | tidy | partial tiles, still true, checked like all |
| 10 | partial tiles; content of the tail, as 1 | stop | none: only readers without the tail need them |
| 11 | checkpoint.new, fsync, rename, fsync folder | tidy, stop | an earlier checkpoint of the same ledger |
| 12 | SQLite's log copied into its database, fdatasync | tidy, stop | the log, which holds all of it |

Each row is tested both ways, *failed and not persisted* and *failed but persisted* (`tests/unit/recorder/
test_failures.py`: each call site in turn fails before or after it did what was asked, or is the last), and 3 to 11 with
what was not synced lost in part and out of order (`test_reordered.py`). What is durable when: `Recorder.append` and
`store` nothing; `Recorder.commit`, on return, every entry taken before it, its content, and a signed checkpoint over
both; `tidy` adds nothing to that, it moves what is durable; `close` is a commit and a tidy. A call that raises says
nothing of the entries since the last commit: they may be there at the next start, or not.

**No room** (ENOSPC, EDQUOT) is the one failure that is not the end, where a reserve of disk is kept (`reserve.py`), and
only of a write, never of a sync or a rename. Rows 1, 2 and 3: the reserve is given up and the write done again; it had
written nothing. Rows 5, 7, 10 and 11, while their file is not there yet: they wait until there is room, since the
tail holds everything (12 likewise). What finds no room without a reserve to give up is the end.

Below Python, each system call of a run fails in turn (`scripts/soak disk`). One failed sync is survived: SQLite's own
of the folder of its log, whose result it ignores; `content.py` has made every name there durable before.

commit needs one fdatasync, and 1 only when content came ahead of its entry (large, or of no single entry). tidy
writes 5 to 9 once 256 entries are in the tail, and 11 at most once a second.

What retention removes has a table of its own, in `prune.py`.

Creation is key and key.pub, each written as 11 is, then 11 (an empty tree), then 7 and 8: a folder with a checkpoint
of size 0 and no tail is a creation that was cut off, and is done again. The writes of a replaced key are in
`rotate.py`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import refuse
from runner.ledger.tile import TEMPORARY

FILE_MODE = 0o600
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)
FOLDER_MODE = 0o700


@contextmanager
def to_disk(what: str) -> Iterator[None]:
    """Errors of the disk as the refusal they are: `RunnerError` (ledger), to be treated as the end."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise _lost(what, f"{error.strerror or error}{place}") from error
    except sqlite3.Error as error:
        raise _lost(what, str(error)) from error


def _lost(what: str, why: str) -> Exception:
    return refuse(
        "ledger",
        f"{what} failed: {why}",
        next_step="free or repair the disk, then start the daemon again; it recovers what was acknowledged",
    )


class NoRoom(OSError):
    """A file that is not there yet found no room; nothing else was touched, and doing it again later is safe."""


def is_full(error: OSError | sqlite3.Error) -> bool:
    """Whether a write failed for lack of room and nothing else. Of a failed sync this says nothing."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def no_more() -> bool:
    """Where nothing is held in reserve."""
    return False


def begin(descriptor: int, start: int, size: int) -> None:
    """Have the disk begin to write a part of a file. Says nothing of what is durable, nor whether it could: that is the
    sync's. (posix_fadvise begins it too, but also drops the pages, for which it asks every core.)"""
    _libc.sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def write_all(descriptor: int, data: bytes | bytearray, more_room: Callable[[], bool] = no_more) -> None:
    """Write all of `data`, however many writes it takes. Nothing is durable; OSError leaves any part of it written.

    A write that found no room wrote nothing: it is done again when `more_room` made some."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            if not is_full(error) or not more_room():
                raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable on return. Raises OSError: which of them are is unknown then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder (0700) and its parents up to one that exists; their names are durable on return."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with _new(made):
            made.mkdir(FOLDER_MODE)
        sync_folder(made.parent)


@contextmanager
def _new(path: Path) -> Iterator[None]:
    """Making `path`, which nobody reads yet: one that found no room is removed again, for the room it takes."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        if path.is_file():
            path.unlink()
        raise NoRoom(error.errno, error.strerror, str(path)) from error


def write_new(path: Path, data: bytes, *, mode: int = FILE_MODE) -> None:
    """A file that appears under its name only when it is whole and on disk. The name itself is durable when the caller
    has synced the folder. OSError leaves the old file, whole, or the new one, and perhaps a temporary one; `NoRoom` the
    old file, and nothing else."""
    temporary = path.with_name(path.name + TEMPORARY)
    with _new(temporary):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with _new(temporary):
            os.fchmod(descriptor, mode)
            write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # A crash here leaves a temporary file that nobody reads.
    temporary.rename(path)


def replace(path: Path, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Replace a file as a whole; durable on return. OSError leaves the old file or the new one, each whole."""
    write_new(path, data, mode=mode)
    sync_folder(path.parent)


def write_once(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files that never change again; all are durable on return. One that exists must hold the same bytes.

    OSError leaves some of them, each whole; doing it again completes them. Raises `RunnerError` (ledger) when one holds
    others: evidence would have been rewritten."""
    folders: set[Path] = set()
    for path, data in files:
        make_folder(path.parent)
        if path.exists():
            if path.read_bytes() != data:
                raise refuse(
                    "ledger",
                    "it holds other bytes than the tail does for the same entries",
                    field=str(path),
                    next_step="keep the folder for examination; restore a backup, or move it away and begin anew",
                )
        else:
            write_new(path, data)
        # Also for one that existed: the crash that left it may have come before its folder was synced.
        folders.add(path.parent)
    for folder in sorted(folders):
        sync_folder(folder)


def lock(path: Path) -> int:
    """Hold the ledger for this process; the descriptor is the lock. Raises `RunnerError` when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise refuse(
            "ledger",
            "another recorder writes this ledger",
            field=str(path),
            next_step="stop the other daemon, or give this one its own state folder",
        ) from None
    return descriptor
