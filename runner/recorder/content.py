"""The content store: bytes named by their SHA-256, so that every digest in an entry resolves.

What a call keeps is small and comes with its entry: it does not pass here, but lies in the tail with the entry, and
from there goes into the pack of its bundle (`journal.py`). The rest is here. Up to 64 KiB it is rows of one SQLite
file, written in one transaction per group commit; larger content streams into files of its own. Salted content is
stored salt first and named with it. The same bytes are stored once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.errors import refuse
from runner.ledger.tile import LARGE_CONTENT, PARTIAL_CONTENT, SMALL, SMALL_CONTENT, content_path
from runner.recorder.durability import FILE_MODE, NoRoom, begin, is_full, make_folder, no_more, sync_folder, write_all

MAX_STREAMS = 4096  # two per running call; each holds up to 64 KiB of memory before it becomes a file
_AHEAD = 1 << 20  # bytes of a file after which the disk begins to write them: its last sync holds up every other call
_LOGGED = 4 << 20  # bytes in SQLite's own log that make it due to be copied: what SQLite would do by itself

_BUSY_MS = 5000  # for a lock that another process holds on the database, as a reader that recovers it does
_SCHEMA = "CREATE TABLE IF NOT EXISTS blob (digest BLOB PRIMARY KEY NOT NULL, data BLOB NOT NULL)"
_DELETE = "DELETE FROM blob WHERE digest = ?"
_INSERT = "INSERT OR IGNORE INTO blob (digest, data) VALUES (?, ?)"


class _Stream:
    """Content that is still arriving: in memory while small, then in a temporary file."""

    __slots__ = ("begun", "buffer", "descriptor", "hash", "more_room", "path", "size")

    def __init__(self, path: Path, more_room: Callable[[], bool]) -> None:
        self.path = path
        self.more_room = more_room
        self.hash = hashlib.sha256()
        self.buffer = bytearray()
        self.descriptor = -1
        self.size = 0  # of the file
        self.begun = 0  # so much of it is on its way to the disk

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        if self.descriptor >= 0:
            self._append(data)
            return
        self.buffer += data
        if len(self.buffer) > SMALL:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                self.descriptor = os.open(self.path, flags, FILE_MODE)
            except OSError as error:
                if not is_full(error) or not self.more_room():
                    raise
                self.descriptor = os.open(self.path, flags, FILE_MODE)
            self._append(self.buffer)
            self.buffer.clear()

    def _append(self, data: bytes | bytearray) -> None:
        write_all(self.descriptor, data, self.more_room)
        self.size += len(data)
        if self.size - self.begun >= _AHEAD:
            begin(self.descriptor, self.begun, self.size - self.begun)
            self.begun = self.size

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def drop(self) -> None:
        if self.descriptor >= 0:
            self.close()
            self.path.unlink()


class ContentStore:
    """The writer. One per ledger, under the ledger's lock. OSError and sqlite3.Error are the caller's to end on;
    `more_room` is asked first where there was none."""

    def __init__(self, folder: Path, more_room: Callable[[], bool] = no_more) -> None:
        self._folder = self.folder = folder
        self._more_room = more_room
        self._partial = folder / PARTIAL_CONTENT
        self._added: list[bytes] = []  # not named yet
        self._pending: dict[bytes, bytes] = {}
        self._streams: dict[int, _Stream] = {}
        self._made = 0
        self._logged = 0  # bytes committed since the database's log was last copied
        for needed in (self._partial, folder / LARGE_CONTENT):
            make_folder(needed)
        for left in self._partial.iterdir():  # of a run that died: nothing names them
            left.unlink()
        database = folder / SMALL_CONTENT
        # SQLite gives its files the mode of the first, so that is made here. It syncs the folder of its log too, but
        # tells nobody when that fails: both names are durable before it is asked for anything.
        for name in (database, folder / (SMALL_CONTENT + "-wal")):
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE))
        sync_folder(folder)
        self._database = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("PRAGMA secure_delete=ON")  # rows that are deleted, or move to another page, leave zeros
        self._database.execute("PRAGMA wal_autocheckpoint=0")  # SQLite would swallow the errors of its own: see `tidy`
        # SQLite answers with the mode it stayed in when it could not change it.
        if self._database.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            self._database.close()
            raise refuse("ledger", "the content store could not be put into WAL mode", field=str(database))
        sync_folder(folder)  # the end of the journal that this took: come back, it would empty the database
        self._database.execute(_SCHEMA)

    def store(self, data: bytes) -> str:
        """Keep `data`; durable after the next `commit`. Returns its name."""
        name = hashlib.sha256(data)
        if len(data) <= SMALL:
            self._pending[name.digest()] = data
        else:
            stream = _Stream(self._temporary(), self._more_room)
            stream.write(data)
            self._settle(stream, name.hexdigest())
        return name.hexdigest()

    def add(self, data: bytes) -> None:
        """Keep `data` from the next `commit` on, which also does all the work for it."""
        self._added.append(data)

    def open_stream(self, stream: int, salt: bytes = b"") -> None:
        """Begin content in pieces. Raises `RunnerError` (ledger) for a number in use, or too many."""
        if stream in self._streams or len(self._streams) >= MAX_STREAMS:
            raise refuse("ledger", f"content stream {stream} is open already, or {MAX_STREAMS} are")
        self._streams[stream] = opened = _Stream(self._temporary(), self._more_room)
        opened.write(salt)

    def write_stream(self, stream: int, data: bytes) -> None:
        """The next piece."""
        self._find(stream).write(data)

    def close_stream(self, stream: int, digest: str = "", *, drop: bool = False) -> None:
        """The end: its name must be `digest`, or `RunnerError` (ledger) is raised and it is forgotten."""
        name = self._find(stream).hash.hexdigest()
        if name == digest and not drop:
            self.end_stream(stream)
            return
        self._streams.pop(stream).drop()
        if not drop:
            raise refuse("ledger", f"content came as {name}, but {digest} was announced")

    def end_stream(self, stream: int) -> str:
        """The end; returns its name."""
        closing = self._find(stream)
        del self._streams[stream]
        if closing.descriptor >= 0:
            self._settle(closing, closing.hash.hexdigest())
        else:
            self._pending[closing.hash.digest()] = bytes(closing.buffer)
        return closing.hash.hexdigest()

    def commit(self) -> None:
        """Make everything stored so far durable, in one transaction."""
        for data in self._added:
            self.store(data)
        self._added.clear()
        if not self._pending:
            return
        try:
            self._insert()
        except sqlite3.Error as error:
            if not is_full(error) or not self._more_room():
                raise
            if self._database.in_transaction:  # SQLite may have rolled it back by itself
                self._database.execute("ROLLBACK")
            self._insert()
        self._logged += sum(map(len, self._pending.values()))
        self._pending.clear()

    def _insert(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(_INSERT, self._pending.items())
        self._database.execute("COMMIT")

    def tidy(self, *, stopping: bool = False) -> None:
        """Copy SQLite's log into its database when it is due. Nothing may wait for a `commit`. Raises `NoRoom`.

        A copy that failed is the caller's end like any other failure. It loses nothing: the log, synced at each commit,
        stays until a whole copy was written and synced, anew."""
        if stopping or self._logged >= _LOGGED:
            try:
                self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                if not is_full(error):
                    raise
                raise NoRoom(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder / SMALL_CONTENT)) from error
            self._logged = 0

    def read(self, digest: str, offset: int, length: int) -> bytes | None:
        """A piece of content that lies here by itself, not in a pack, and was committed; None when it is not here."""
        query = "SELECT substr(data, ?, ?) FROM blob WHERE digest = ?"
        row = self._database.execute(query, (offset + 1, length, bytes.fromhex(digest))).fetchone()
        if row is not None:
            return bytes(row[0])
        try:
            file = os.open(self._folder / content_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)

    def remove(self, digests: Sequence[bytes]) -> None:
        """Remove content that lies here by itself, not in a pack. What is not here is no error; nothing may wait for a
        `commit`."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(_DELETE, [(digest,) for digest in digests])
        self._database.execute("COMMIT")
        folders: set[Path] = set()
        for digest in digests:
            path = self._folder / content_path(digest.hex())
            if path.exists():
                path.unlink()
                folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)

    def flush(self) -> bool:
        """Bring what was removed from the database's own log into the database, and empty the log; whether it was done:
        not while a reader holds on to what was there. Never waits for one."""
        self._database.execute("PRAGMA busy_timeout=0")
        (busy, *_) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._database.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        return not busy

    def close(self) -> None:
        """Close without committing; open streams are forgotten."""
        for stream in self._streams.values():
            stream.drop()
        self._streams.clear()
        self._database.close()

    def _temporary(self) -> Path:
        self._made += 1
        return self._partial / str(self._made)

    def _find(self, stream: int) -> _Stream:
        found = self._streams.get(stream)
        if found is None:
            raise refuse("ledger", f"content stream {stream} is not open")
        return found

    def _settle(self, stream: _Stream, name: str) -> None:
        """Give a whole temporary file its name, durably."""
        path = self._folder / content_path(name)
        if path.exists():
            stream.drop()
            sync_folder(path.parent)  # the run that wrote it may have died before it did
            return
        os.fsync(stream.descriptor)
        stream.close()
        make_folder(path.parent)
        # A crash before the rename leaves a temporary file, which the next start removes.
        stream.path.rename(path)
        sync_folder(path.parent)
