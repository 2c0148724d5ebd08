"""The demo's search for a key, wherever a key could have stayed: processes, memory, files, what Docker says.

Each search has a control: the same eyes find what must be there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil

from runner.engine.docker import Docker

SPOKEN = "environments and command lines of every process of this host"
INSIDE = "the sandboxes' memory, every process"
PLACEHOLDER = re.compile(rb"rnr-[A-Za-z0-9_-]{32}")
_SQLITE = b"SQLite format 3\0"
_PIECE = 1 << 20
_REGION = 1 << 30  # a mapping beyond it is a reservation, not data
_FOLDERS = ("workspace", "tmp", "run", "dev/shm")  # what can be written in a sandbox


class Searched(NamedTuple):
    """One place: how much was looked at, and how often the key and a placeholder are in it."""

    what: str
    size: int
    keys: int
    placeholders: int


class Search:
    """For keys, each as it is, in base64 wherever it begins, in hex and backwards."""

    def __init__(self, *keys: str) -> None:
        self._forms: set[bytes] = set()
        for plain in map(str.encode, keys):
            self._forms |= {plain, plain.hex().encode(), plain.hex().upper().encode(), plain[::-1]}
            for before in range(3):  # base64 of a text that begins so much earlier, without the ends that differ
                coded = base64.b64encode(b"\0" * before + plain)[before and before + 1 : -4]
                self._forms |= {coded, coded.replace(b"+", b"-").replace(b"/", b"_")}
        self._longest = max(map(len, self._forms))

    def look(self, what: str, data: Iterable[bytes]) -> Searched:
        """In pieces of bytes that follow each other."""
        size, keys, placeholders, before = 0, 0, 0, b""
        for piece in data:
            size += len(piece)
            both = before + piece  # what stands in `before` alone was counted with the piece that it ended
            keys += self._count(both) - self._count(before)
            placeholders += _placeholders(both) - _placeholders(before)
            before = both[-self._longest + 1 :]
        return Searched(what, size, keys, placeholders)

    def _count(self, data: bytes) -> int:
        return sum(data.count(form) for form in self._forms)


def _placeholders(data: bytes) -> int:
    return len(PLACEHOLDER.findall(data)) if b"rnr-" in data else 0


def memory(pids: Iterable[int]) -> Iterator[bytes]:
    """Everything that processes could have written to: a process that ended meanwhile has nothing."""
    for pid in pids:
        yield b"\0"
        place = Path(f"/proc/{pid}")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), (place / "mem").open("rb", 0) as file:
            for line in (place / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                where, mode, *_ = line.split()
                begin, end = (int(each, 16) for each in where.split("-"))
                if mode.startswith("rw") and end - begin <= _REGION:
                    yield from _region(file.fileno(), begin, end)


def _region(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end:
        try:
            data = os.pread(descriptor, min(_PIECE, end - begin), begin)
        except OSError:  # of a device, or unmapped meanwhile
            return
        if not data:
            return
        yield data
        begin += len(data)
    yield b"\0"


def spoken(pids: Iterable[int]) -> Iterator[bytes]:
    """Environments and command lines."""
    for pid in pids:
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                yield Path(f"/proc/{pid}/{name}").read_bytes() + b"\0"


def one_file(path: Path) -> Iterator[bytes]:
    """What a file of the demo's own holds."""
    yield path.read_bytes()


def files(root: Path, leave: Sequence[str] = ()) -> Iterator[bytes]:
    """Names and contents below a folder, but for these; no link is followed."""
    for _, folders, names, here in os.fwalk(root):
        folders[:] = [name for name in folders if name not in leave]
        names = [name for name in names if name not in leave]
        for name in (*folders, *names):
            yield os.fsencode(name) + b"\0"
        for name in names:
            with contextlib.suppress(OSError):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
                with os.fdopen(descriptor, "rb") as file:
                    while stat.S_ISREG(os.fstat(descriptor).st_mode) and (data := file.read(_PIECE)):
                        yield data
            yield b"\0"


def rows(root: Path) -> Iterator[bytes]:
    """Every value in every SQLite database below a folder that nobody writes: in its file a long one lies in pieces."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                continue
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(database):
            for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name out of its own schema
                    for value in row:
                        yield (value if isinstance(value, bytes) else str(value).encode()) + b"\0"


def live(search: Search, daemon: int, instance: str, agent_uid: int) -> list[Searched]:
    """Everything that lives, while a call holds the key: what must not hold it first, then what must.

    Raises OSError, psutil.Error or `RunnerError` where something cannot be looked at."""
    docker = Docker()
    try:
        described = {each: docker.inspect(each) for each in docker.owned(instance)}
    finally:
        docker.close()
    firsts = [int(each["State"]["Pid"]) for each in described.values() if each["State"]["Pid"]]
    inside = [*firsts, *(child.pid for pid in firsts for child in psutil.Process(pid).children(recursive=True))]
    lines = {child.pid: child.cmdline() for child in psutil.Process(daemon).children()}
    parts = {line[3].rpartition(".")[2]: pid for pid, line in lines.items() if len(line) > 3}
    agent = [each.pid for each in psutil.process_iter(["uids"]) if each.info["uids"].real == agent_uid]
    others = [daemon, *(pid for name, pid in parts.items() if name in ("engine", "recorder"))]
    told = (json.dumps(each).encode() for each in described.values())
    places = [place for pid in firsts for name in _FOLDERS if (place := Path(f"/proc/{pid}/root/{name}")).is_dir()]
    written = (data for place in places for data in files(place))
    return [
        search.look(SPOKEN, spoken(psutil.pids())),
        search.look("the agent's memory", memory(agent)),
        search.look(INSIDE, memory(inside)),
        search.look("the sandboxes' files", written),
        search.look("what Docker says of the sandboxes", told),
        search.look("memory of parent, engine, recorder", memory(others)),
        *(
            search.look(f"memory of {name}", memory([parts[name]]))
            for name in ("egress", "gate", "broker")
            if name in parts
        ),
    ]
