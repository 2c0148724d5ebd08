"""Which program an agent is, read where only root may look: start time, control group and executable of one pid.

Asked once per connection, never per call. What is read is hostile: a program is opened as the kernel runs it (never
by its path), is only hashed, and a hash is reused only for the same file unchanged.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from pathlib import Path

import anyio
import anyio.to_thread

from runner.wire.engine import Identified

_PROC = Path("/proc")
_MOST = 512 << 20  # bytes of a program that are hashed: a second of one core; interpreters and browsers are below it
_PIECE = 1 << 20
_REMEMBERED = 256  # programs; an entry is some 200 bytes
_TEXT = 200  # characters of a path in an entry
_START = 19  # field 22 of /proc/PID/stat, counted from behind the program's name

# Which file, and whether it is the one that was hashed: a writer can set mtime back, ctime it cannot.
Key = tuple[int, int, int, int, int]


class Processes:
    """Looks processes up. Belongs to one event loop; files are read in threads of its own bound."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._known: OrderedDict[Key, str] = OrderedDict()
        # Two, and none of engine's others: a file system that never answers must not hold up sandboxes.
        self._threads = anyio.CapacityLimiter(2)

    async def identify(self, number: int, pid: int) -> Identified:
        """The answer to request `number`. Total: what cannot be read is said in `problem`."""
        if pid <= 0:
            return Identified(number=number, problem="it is in another pid namespace")
        try:
            return await anyio.to_thread.run_sync(
                self._look, number, pid, limiter=self._threads, abandon_on_cancel=True
            )
        except OSError as error:
            return Identified(number=number, problem=f"it cannot be looked at: {error.strerror}")

    def _look(self, number: int, pid: int) -> Identified:
        folder = self._proc / str(pid)
        start, cgroup = _start(folder), _cgroup(folder)
        executable, digest, problem = "", "", ""
        try:
            executable = _shown(os.fsencode((folder / "exe").readlink()))
            digest = self._digest(folder / "exe")
        except OSError as error:
            problem = f"its program cannot be read: {error.strerror}"
        except ValueError as error:
            problem = str(error)
        if _start(folder) != start:
            return Identified(number=number, problem="it ended while it was looked at")
        return Identified(
            number=number, start=start, cgroup=cgroup, executable=executable, digest=digest, problem=problem
        )

    def _digest(self, path: Path) -> str:
        """SHA-256 of the program. Raises OSError, or ValueError saying why it is not hashed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ValueError("its program is not a regular file")
            if before.st_size > _MOST:
                raise ValueError(f"its program has more than {_MOST >> 20} MiB")
            found = self._known.get(_key(before))
            if found is not None:
                return found
            total, read = hashlib.sha256(), 0
            while piece := file.read(_PIECE):
                total.update(piece)
                read += len(piece)
                if read > _MOST:
                    raise ValueError(f"its program has more than {_MOST >> 20} MiB")
            if _key(os.fstat(descriptor)) != _key(before):
                raise ValueError("its program was written to while it was read")
        self._known[_key(before)] = total.hexdigest()
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return total.hexdigest()


def _key(status: os.stat_result) -> Key:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _start(folder: Path) -> int:
    """Clock ticks after boot. Its own name, in brackets, may hold brackets and blanks: what follows the last counts."""
    return int((folder / "stat").read_bytes().rpartition(b")")[2].split()[_START])


def _cgroup(folder: Path) -> str:
    """The control group: of cgroup v2, or on v1 the one that the service manager made."""
    found: dict[bytes, bytes] = {}
    for line in (folder / "cgroup").read_bytes().splitlines():
        _, controllers, path = line.split(b":", 2)
        found[controllers] = path
    unified = found.get(b"", b"/")
    return _shown(unified if unified != b"/" else found.get(b"name=systemd") or found.get(b"pids") or unified)


def _shown(text: bytes) -> str:
    """Bytes that a stranger chose, as text that fits into an entry."""
    return text.decode("utf-8", "backslashreplace")[:_TEXT]
