"""What lies in a workspace, read from outside the sandbox: names, modes and digests. Reads only; follows nothing.

The tree is hostile and may change under the reader. Every name is opened by openat2(2) beneath the folder that holds
it, on the same filesystem, through no link; only regular files are read, and none is waited for. What cannot be read
within the bounds is no snapshot at all: half a tree would look like a whole one.

The lines are those of `runner/ledger/tree.py`; the root over them and the receipt are gate's."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import select
import stat
import struct
import time
from collections.abc import Iterator

import msgspec

from runner.engine.template import WORKSPACE
from runner.errors import RunnerError, refuse

PIECE = 1 << 20
MAX_DEPTH = 256  # folders below one another: each holds a descriptor while what is in it is read
MAX_LINES = 16 << 20  # bytes of the manifest: 100,000 files with paths of a usual length
_OPENAT2 = 437  # the same on every architecture
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOATIME
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # removed or swapped since it was listed
_TICK_NS = 50_000_000  # file times move in clock ticks of up to 10 ms: a change within one may leave them as they were

_libc = ctypes.CDLL(None, use_errno=True)
_encoder = msgspec.json.Encoder(order="sorted")

Stamp = tuple[int, int, int, int]  # inode, size, mtime_ns, ctime_ns
Known = dict[bytes, tuple[Stamp, str, int]]  # path -> stamp, digest and size when it was last read


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """At most this many things in the tree, bytes read, and seconds."""

    files: int
    size: int
    seconds: float


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The lines in the order of paths; how many; bytes of all files; how many files were read just now."""

    lines: bytes
    files: int
    size: int
    read: int


def open_workspace(pid: int, pidfd: int) -> int:
    """A descriptor of /workspace as PID 1 of a sandbox sees it. Raises `RunnerError` (unavailable) when it is gone."""
    try:
        folder = os.open(f"/proc/{pid}/root{WORKSPACE}", _FOLDER | os.O_CLOEXEC)
    except OSError as error:
        raise refuse("unavailable", f"the sandbox is gone: {error.strerror}") from error
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):  # it ended meanwhile: the number may have meant another process
        os.close(folder)
        raise refuse("unavailable", "the sandbox is gone")
    return folder


def take(folder: int, known: Known | None, bounds: Bounds) -> Taken:
    """Read the tree in the open `folder`. With `known`, only files whose stamp differs are read; it is brought up to
    date. Raises `RunnerError` (not_supported) naming the bound that the tree exceeds."""
    return _Reader(folder, known, bounds).take()


class _Reader:
    def __init__(self, folder: int, known: Known | None, bounds: Bounds) -> None:
        self._folder = folder
        self._known = known
        self._fresh: Known = {}
        self._bounds = bounds
        self._until = time.monotonic() + bounds.seconds
        self._read_bytes = self._read_files = self._total = self._size = 0

    def take(self) -> Taken:
        found: list[tuple[bytes, bytes]] = []
        for path, held, name in self._walk():
            try:
                told = self._line(path, held, name)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise refuse("unavailable", f"the workspace cannot be read: {error.strerror}") from error
            if told:
                found.append((path, told))
                self._size += len(told) + 1
                if self._size > MAX_LINES:
                    raise _beyond(f"{MAX_LINES} bytes of names")
        found.sort()
        if self._known is not None:
            self._known.clear()
            self._known.update(self._fresh)
        lines = b"".join([told + b"\n" for _, told in found])
        return Taken(lines=lines, files=len(found), size=self._total, read=self._read_files)

    def _walk(self) -> Iterator[tuple[bytes, int, str]]:
        """Everything below the folder: its path, an open descriptor of the folder that holds it, its name there."""
        stack = [(b"", os.dup(self._folder))]
        names = [self._names(stack[0][1], 0)]
        seen = len(names[0])
        try:
            while stack:
                prefix, held = stack[-1]
                if not names[-1]:
                    os.close(held)
                    stack.pop()
                    names.pop()
                    continue
                name, is_folder = names[-1].pop()
                path = prefix + os.fsencode(name)
                yield path, held, name
                below = self._enter(held, name) if is_folder else -1
                if below >= 0:
                    if len(stack) > MAX_DEPTH:
                        os.close(below)
                        raise _beyond(f"folders {MAX_DEPTH} deep")
                    stack.append((path + b"/", below))
                    names.append(self._names(below, seen))
                    seen += len(names[-1])
        finally:
            for _, held in stack:
                os.close(held)

    def _enter(self, held: int, name: str) -> int:
        """The folder of that name, open; -1 when it is none (any more)."""
        try:
            return _open(held, name, _FOLDER)
        except OSError as error:
            if error.errno in _GONE:
                return -1
            raise refuse("unavailable", f"the workspace cannot be read: {error.strerror}") from error

    def _names(self, folder: int, seen: int) -> list[tuple[str, bool]]:
        """What the folder holds, and which of it are folders."""
        found = []
        with os.scandir(folder) as listing:
            for entry in listing:
                found.append((entry.name, entry.is_dir(follow_symlinks=False)))
                if seen + len(found) > self._bounds.files:
                    raise _beyond(f"{self._bounds.files} files and folders")
        self._in_time()
        return found

    def _line(self, path: bytes, held: int, name: str) -> bytes:
        status = os.stat(name, dir_fd=held, follow_symlinks=False)
        told: dict[str, object] = {"path": _text(path), "mode": f"{stat.S_IMODE(status.st_mode):04o}"}
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            digest, size = self._content(path, held, name, status)
            self._total += size
            told |= {"type": "file", "size": size, "sha256": digest}
        elif kind == stat.S_IFDIR:
            told["type"] = "folder"
        elif kind == stat.S_IFLNK:
            told |= {"type": "link", "target": _text(os.fsencode(_target(held, name)))}
        else:
            told["type"] = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}.get(kind, "device")
        return _encoder.encode(told)

    def _content(self, path: bytes, held: int, name: str, status: os.stat_result) -> tuple[str, int]:
        known = self._known.get(path) if self._known is not None else None
        if known is not None and known[0] == _stamp(status):
            self._fresh[path] = known
            return known[1], known[2]
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        file = _open(held, name, _FILE)
        try:
            opened = os.fstat(file)
            if not stat.S_ISREG(opened.st_mode) or opened.st_ino != status.st_ino:
                raise FileNotFoundError(errno.ENOENT, "swapped since it was listed")
            digest, size = self._hash(file, opened.st_size)
        finally:
            os.close(file)
        # Believed the next time only if it was at rest: what changes within a clock tick may keep its stamp.
        if self._known is not None and now - max(opened.st_ctime_ns, opened.st_mtime_ns) > _TICK_NS:
            self._fresh[path] = (_stamp(opened), digest, size)
        return digest, size

    def _hash(self, file: int, most: int) -> tuple[str, int]:
        """Digest of at most `most` bytes, what the file held when it was opened: one that grows is not run after."""
        total, size = hashlib.sha256(), 0
        if self._read_bytes + most > self._bounds.size:
            raise _beyond(f"{self._bounds.size} bytes to read")
        while size < most and (piece := os.read(file, min(PIECE, most - size))):
            total.update(piece)
            size += len(piece)
            self._in_time()
        self._read_bytes += most
        self._read_files += 1
        return total.hexdigest(), size

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise _beyond(f"what can be read in {self._bounds.seconds:g} s")


def _open(folder: int, name: str, flags: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    while True:
        opened: int = _libc.syscall(_OPENAT2, folder, os.fsencode(name), how, ctypes.c_size_t(len(how)))
        if opened >= 0:
            return opened
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with the walk
            raise OSError(code, os.strerror(code))


def _target(folder: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise FileNotFoundError(errno.ENOENT, "swapped since it was listed") from error
        raise


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _text(name: bytes) -> str:
    """Bytes as text, one way only: a backslash is doubled, what is not UTF-8 is written as an escape."""
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _beyond(bound: str) -> RunnerError:
    return refuse("not_supported", f"the workspace holds more than a snapshot takes: {bound}")
