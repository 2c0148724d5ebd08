"""Case L04: each system call by which a recorder changes its disk fails, one after the other, in a real process.

strace(1) is attached to a process that does a fixed piece of work, and lets the n-th call of one kind fail: below
Python, so that the calls of SQLite and of the C library are among them. What is judged is what is on disk afterwards.
A call that strace lets return a smaller number was not made at all, which no kernel does; short writes are made by a
limit on file size instead, where the kernel itself cuts them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from runner.errors import RunnerError
from runner.evidence.verify import Report, verify
from runner.ledger import entry as entries
from runner.ledger.retention import Criteria
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Recorder

TESTS = Path(__file__).resolve().parents[1]
# What changes a disk. `unknown` holds it against what a recorder was seen to call.
CHANGES = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "unlink", "mkdir", "rmdir", "fchmod",
    "fchown", "fallocate",
)  # fmt: skip
LOOKS = {
    "access", "close", "dup", "execve", "faccessat2", "fcntl", "flock", "fstat", "fstatfs", "getdents64",
    "ioctl", "lseek", "lstat", "madvise", "mmap", "munmap", "newfstatat", "poll", "pread64", "read", "readlink",
    "readlinkat", "stat", "statfs", "statx", "sync_file_range",
}  # fmt: skip
SYNCS = ("fsync", "fdatasync")
FAULTS = {
    "EIO": "error=EIO:when={}",
    "ENOSPC": "error=ENOSPC:when={}+",  # a disk that is full stays full
    "ENOSPC once": "error=ENOSPC:when={}",  # and the reserve that is given up then has room
    "EROFS": "error=EROFS:when={}+",
    "EINTR": "error=EINTR:when={}",
    "nothing written": "retval=0:when={}",
}
_RESERVE = 64 << 10
_WRITES = ("write", "pwrite64")
_CALL = re.compile(r"\d+ +(?P<call>[a-z0-9_]+)\(")
DONE, REFUSED = 0, 1


def sites(call: str) -> list[str]:
    """The faults that a call can have."""
    return [fault for fault in FAULTS if fault != "nothing written" or call in _WRITES]


def load_sample() -> ModuleType:
    """tests/vectors/ledger_sample.py."""
    spec = importlib.util.spec_from_file_location("ledger_sample", TESTS / "vectors/ledger_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Run:
    """How one piece of work went: how it ended, what it said last, the greatest size it acknowledged, and the calls
    that were hit, as strace tells them."""

    status: int
    said: str
    acknowledged: int
    hit: tuple[str, ...]


class Workers:
    """A process that has imported everything, and forks one that does the work as often as it is asked to."""

    def __enter__(self) -> Self:
        self._socket, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=its, env={"PATH": os.environ["PATH"]}
            )
        self._lines = self._socket.makefile("r", encoding="utf-8")
        assert self._lines.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._lines.close()
        self._socket.close()

    def work(self, state: Path, log: Path, *strace: str, largest: int = 0) -> Run:
        """The work in `state`, under strace with these options, or with no file above `largest` bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{largest} {state}\n".encode())
        self._process.stdin.flush()
        pid = int(self._lines.readline())
        tracer = None
        try:
            if strace:
                tracer = subprocess.Popen(["strace", "-f", "-y", "-qq", "-o", log, *strace, "-p", str(pid)])
                while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
                    assert tracer.poll() is None, "strace cannot attach"
                    time.sleep(0.002)
        finally:
            os.kill(pid, signal.SIGCONT)
        acknowledged, said = 0, ""
        while not (line := self._lines.readline()).startswith("ended "):
            assert line, "the worker is gone"
            what, _, rest = line.strip().partition(" ")
            acknowledged = max(acknowledged, int(rest)) if what == "durable" else acknowledged
            said = rest if what == "failed" else said
        if tracer is not None:
            tracer.wait(60)
        text = log.read_text(encoding="utf-8", errors="replace") if strace else ""
        hit = [line for line in text.split("\n") if "(INJECTED)" in line]
        return Run(int(line.split()[1]), said, acknowledged, tuple(hit))


class Sweep:
    """Tries faults, and judges what each one left. `wrong` collects what was not as promised."""

    def __init__(self, workers: Workers, place: Path) -> None:
        self._workers = workers
        self._state = place / "state"
        self._log = place / "strace"
        self._sample = load_sample()
        self._counts: dict[str, int] = {}
        self.wrong: list[str] = []
        self.tried: Counter[str] = Counter()
        self.ended: Counter[int] = Counter()
        self.places: set[str] = set()

    def counts(self) -> dict[str, int]:
        """How often an undisturbed run makes each call that changes the disk. No other call may reach the state."""
        if self._counts:
            return self._counts
        run = self._workers.work(self._state, self._log, "-e", "trace=all")
        assert run.status == DONE, run
        found: Counter[str] = Counter()
        for line in self._log.read_text(encoding="utf-8", errors="replace").split("\n"):
            if match := _CALL.match(line):
                name = match["call"]
                assert name in CHANGES or name in LOOKS or str(self._state) not in line, f"unknown: {line}"
                found[name] += name in CHANGES
        shutil.rmtree(self._state)
        self._counts = {name: count for name, count in found.items() if count}
        return self._counts

    def fault(self, call: str, fault: str, nth: int) -> bool:
        """Let the `nth` call fail so. Returns whether there was one."""
        inject = f"inject={call}:{FAULTS[fault].format(nth)}"
        run = self._workers.work(self._state, self._log, "-e", f"trace={call}", "-e", inject)
        if run.hit:
            self._judge(f"{call} {fault} {nth}", run)
            self.tried[f"{call} {fault}"] += 1
            self.places |= {_place(line, self._state) for line in run.hit[:1]}
            if fault == "EIO" and call in SYNCS and run.status == DONE and not _of_sqlite(run.hit[0], self._state):
                self.wrong.append(f"{call} {fault} {nth}: a failed sync was survived: {run.hit[0]}")
        shutil.rmtree(self._state, ignore_errors=True)
        return bool(run.hit)

    def cut(self, largest: int) -> int:
        """No file may grow above `largest` bytes: the write that crosses it is cut short by the kernel, and the next
        one fails. Returns the status."""
        run = self._workers.work(self._state, self._log, largest=largest)
        self._judge(f"files of at most {largest} bytes", run)
        self.tried["short write"] += run.status != DONE
        shutil.rmtree(self._state, ignore_errors=True)
        return run.status

    def _judge(self, what: str, run: Run) -> None:
        """As found, and after recovery: it verifies, and holds everything that was acknowledged."""
        self.ended[run.status] += 1
        if run.status not in (DONE, REFUSED):
            self.wrong.append(f"{what}: ended with {run.status}: {run.said}")
        if run.status == REFUSED and "next: " not in run.said:
            self.wrong.append(f"{what}: does not teach: {run.said}")
        ledger, content = self._state / "ledger", self._state / "content"
        try:
            if (ledger / "tail").exists():
                key = (ledger / "key.pub").read_text()
                self._whole(f"{what}, as found", verify(ledger, key, content), run.acknowledged)
            elif run.acknowledged:
                self.wrong.append(f"{what}: the tail is gone")
            key = load_or_create_key(ledger, self._sample.ORIGIN)
            recorder = Recorder.open(self._state, self._sample.ORIGIN, key, lambda: self._sample.NOW)
            recorder.seal_interrupted(self._sample.NOW)
            self._sample.add(recorder, *self._sample.pairs(9000, 3), self._sample.stop())
            recorder.close()
            found = verify(ledger, (ledger / "key.pub").read_text(), content)
            self._whole(f"{what}, started again", found, run.acknowledged + 1)
            if found.open_calls or found.unsigned:
                self.wrong.append(f"{what}: {found}")
        except RunnerError as error:
            self.wrong.append(f"{what}: {error.refused.line()}")

    def _whole(self, what: str, found: Report, least: int) -> None:
        if not found.ok or found.signed < least:
            self.wrong.append(f"{what}: {least} were acknowledged, {found}")


def _place(line: str, state: Path) -> str:
    """The call, and the kind of file that it was to change."""
    match = _CALL.match(line)
    named = re.search(
        re.escape(str(state)) + r"([^\">]*)", line[line.rfind("AT_FDCWD<") + 1 :].replace(str(Path.cwd()), "")
    )
    return f"{match['call'] if match else '?'} {re.sub(r'[0-9a-f]{2,}', '#', named[1]) if named else '-'}"


def _of_sqlite(line: str, state: Path) -> bool:
    """Whether this is SQLite's own sync of its folder, whose result it ignores. Nothing hangs on it: `content.py` makes
    every name there durable by itself, before SQLite is asked for anything."""
    return re.search(r"fdatasync\(\d+<" + re.escape(str(state)) + r"/content>\)", line) is not None


# --- in the worker -------------------------------------------------------------------------------------------


def work(sample: ModuleType, state: Path, tell: Any) -> None:
    """Two lives of a ledger, over a bundle's end, with content of every size, a removal of content, and a stop."""
    ticks = itertools.count(step=10)  # the checkpoint file follows every commit
    for life in range(2):
        key = load_or_create_key(state / "ledger", sample.ORIGIN)
        recorder = Recorder.open(
            state, sample.ORIGIN, key, lambda: sample.NOW, lambda: float(next(ticks)), reserve=_RESERVE
        )
        try:
            recorder.seal_interrupted(sample.NOW)
            sample.add(recorder, sample.start())
            for group, count in enumerate((3, 130, 2)):
                first = life * 1000 + group * 200
                recorder.store(b"large" * 20_000 + bytes([life, group]))
                recorder.store(b"small" * 5_000 + bytes([life, group]))
                recorder.open_stream(1, sample.SALT)
                recorder.write_stream(1, b"dropped" * 12_000)
                recorder.close_stream(1, drop=True)
                sample.add(recorder, *sample.pairs(first, count))
                tell(f"durable {recorder.commit()}")
                recorder.tidy()
            if life:
                job = recorder.retention.select(Criteria(), keep=True)
                while not (found := recorder.work(job))[0]:
                    pass
                assert found[1] is not None
                chosen = found[1]
                listed = entries.Content(digest=chosen.pruned, size=32 * chosen.pieces)
                tombstone = entries.Prune(
                    time=sample.NOW,
                    of=Criteria(),
                    pruned=listed,
                    pieces=chosen.pieces,
                    size=chosen.size,
                    why="due",
                    by=0,
                )
                recorder.append(entries.encode(tombstone))
                job = recorder.retention.remove(chosen.pruned)
                while not recorder.work(job)[0]:
                    pass
            sample.add(recorder, sample.stop())
        except BaseException:
            recorder.abandon()
            raise
        recorder.close()
        tell(f"durable {recorder.size}")


def main() -> None:
    """Fork a worker for each line, stopped until somebody lets it go on. Nothing is written with write(2): those are
    the recorder's."""
    sample, upward = load_sample(), socket.socket(fileno=1)

    def tell(line: str) -> None:
        upward.sendall(f"{line}\n".encode())

    tell("ready")
    for line in sys.stdin:
        largest, _, state = line.rstrip("\n").partition(" ")
        pid = os.fork()
        if not pid:
            signal.raise_signal(signal.SIGSTOP)
            if int(largest):
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), resource.RLIM_INFINITY))
            try:
                work(sample, Path(state), tell)
            except RunnerError as error:
                tell(f"failed {error.refused.line()}")
                os._exit(REFUSED)
            except BaseException as error:
                tell(f"failed {error!r}")
                os._exit(2)
            os._exit(DONE)
        os.waitpid(pid, os.WUNTRACED)
        tell(str(pid))
        tell(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


if __name__ == "__main__":
    main()
