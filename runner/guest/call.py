"""One call as the supervisor holds it: its pipes, its credit, its verdict, its end."""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import time
from functools import partial

from runner.guest import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Act = Callable[..., None]

TOOLS = "/run/tools"  # a tmpfs: Landlock lets tools read it, PID 1 alone writes it
REST_S, _SMALL = 0.002, 4096  # after a piece this small its pipe fills: each is a turn of gate, whatever its size
_PIPE = 256 << 10  # bytes of output that wait: with the 64 KiB that a pipe has, every other piece is a small one
STDIN_WINDOW = 256 << 10  # bytes of stdin that gate may have on their way to the tool
_SEALABLE = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


class Call:
    """A running or draining call. `watch` and `send` are the supervisor's; `nothing` is an open /dev/null.

    Output moves only against credit: without it the pipe is not read, and the tool blocks. When every process is gone,
    what the pipes hold is counted once: a descriptor smuggled into another call neither delays the end nor adds."""

    def __init__(self, number: int, start: dict[str, Any], nothing: int, watch: Act, send: Act) -> None:
        self.number, self.start = number, start
        self.folder = f"{TOOLS}/{start['tool']}/{start['code_digest']}" if start["kind"] == "python" else ""
        self.deadline = time.monotonic() + start["wall_ms"] / 1000
        self.verdict: dict[str, str] = {}  # outcome kind and reason, when it did not end by itself
        self.started = False
        self.report: tuple[int, ...] = ()  # the launcher's, when every process is gone
        self.kills = 0  # how often memory had killed in this container when it began
        self._watch, self._send, self._credit = watch, send, int(start["credit"])
        self._resting: dict[int, float] = {}  # pipes that are not read until then
        self._pipes: dict[int, int] = {}  # frame type -> our end
        self._left: dict[int, int] = {}  # frame type -> bytes still to come, once no process is left
        self._input, self._eof, self._result = bytearray(), False, -1
        self._nothing, self._oom, self._placed = nothing, False, list[str]()
        self.theirs: list[int] = []  # what its process gets: standard input, output, error, request, result
        for kind in frame.STDIN, frame.STDOUT, frame.STDERR:
            if kind == frame.STDIN and not start.get("stdin"):
                self.theirs.append(nothing)
                continue
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ours, theirs = (writer, reader) if kind == frame.STDIN else (reader, writer)
            os.set_blocking(ours, False)
            if kind != frame.STDIN:
                with contextlib.suppress(OSError):  # the kernel bounds what a user's pipes hold together
                    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE)
            self._pipes[kind] = ours
            self.theirs.append(theirs)
        if frame.STDIN in self._pipes:
            send(frame.STDIN_CREDIT, number, STDIN_WINDOW.to_bytes(4, "big"))

    def hold(self, request: bytes) -> None:
        """Put what gate sent where only the call's process reads it. Raises OSError."""
        self.theirs.append(os.memfd_create("request", _SEALABLE))
        if os.write(self.theirs[-1], request) != len(request):
            raise OSError("no memory for the call's request")
        os.lseek(self.theirs[-1], 0, os.SEEK_SET)
        fcntl.fcntl(self.theirs[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        if self.folder:
            self._result = os.memfd_create("result", os.MFD_CLOEXEC)
            self.theirs.append(self._result)

    def place(self) -> None:
        """Put its secrets where its jail alone lets a tool read them. Raises OSError, ValueError."""
        for name, text in self.start.get("secrets", {}).items():
            self._placed.append(write(self.start["secrets_folder"], name, binascii.a2b_base64(text.encode()), 0o400))

    def _take_back(self) -> None:
        while self._placed:
            path = self._placed.pop()
            for folder in TOOLS, f"{TOOLS}/secrets", os.path.dirname(path):
                os.chmod(folder, 0o700)  # Landlock does not see a tool take its rights away
            os.unlink(path)

    def handed(self) -> None:
        """Its process has what is its own, or never will: close that here."""
        for descriptor in self.theirs:
            if descriptor not in (self._nothing, self._result):
                os.close(descriptor)

    def add_credit(self, amount: int) -> None:
        """Gate is ready for `amount` more bytes of output. Nothing is read before the call has begun."""
        self._credit += amount
        if self.started:
            for kind in self._pipes.keys() - {frame.STDIN}:
                self._empty(kind) if self.report else self._await(kind)

    def _await(self, kind: int) -> None:
        ready = self._credit and kind not in self._resting
        self._watch(self._pipes[kind], select.EPOLLIN if ready else 0, partial(self._pump, kind))

    def rests(self, now: float) -> bool:
        """Whether a pipe rests; one that has rested is read again."""
        for kind in [kind for kind, until in self._resting.items() if until <= now]:
            del self._resting[kind]
            if kind in self._pipes:
                self._await(kind)
        return bool(self._resting)

    def _take(self, kind: int, most: int) -> bytes | None:
        """One piece out of a pipe, sent on: at most that many bytes, b"" at its end, None when it holds nothing."""
        try:
            data = os.read(self._pipes[kind], most)
        except BlockingIOError:
            return None
        if data:
            self._send(kind, self.number, data)
            self._credit -= len(data)
        return data

    def _pump(self, kind: int) -> None:
        """A pipe of a running call has something, or has ended."""
        room = min(frame.MAX_DATA, self._credit)
        data = self._take(kind, room) if room else None
        if data == b"":
            self.shut(kind)
        elif data and len(data) < min(_SMALL, room):
            self._resting[kind] = time.monotonic() + REST_S
            self._await(kind)
        if not self._credit:
            self.add_credit(0)

    def _empty(self, kind: int) -> None:
        """Move what an ended call has left in a pipe, as far as credit allows."""
        while self._left[kind] and (room := min(frame.MAX_DATA, self._credit, self._left[kind])):
            self._left[kind] -= len(self._take(kind, room) or bytes(self._left[kind]))  # or else somebody else took it
        if not self._left[kind]:
            self.shut(kind)

    def feed(self, data: bytes | None = None) -> None:
        """Bytes for the tool, b"" the end; dropped when nobody can read them. Raises ValueError beyond the credit."""
        self._input += data or b""
        self._eof = self._eof or data == b""
        if len(self._input) > STDIN_WINDOW:
            raise ValueError("more stdin than there was credit for")
        try:
            count = os.write(self._pipes[frame.STDIN], self._input) if self._input else 0
        except BlockingIOError:
            count = 0
        except (KeyError, OSError):  # nobody reads any more
            count, self._eof = len(self._input), True
        del self._input[:count]
        if count:
            self._send(frame.STDIN_CREDIT, self.number, count.to_bytes(4, "big"))
        if self._eof and not self._input:
            self.shut(frame.STDIN)
        else:
            self._watch(self._pipes[frame.STDIN], select.EPOLLOUT if self._input else 0, self.feed)

    def drain(self, report: tuple[int, ...], kills: int) -> None:
        """Every process is gone: what is in the pipes now is all there will be. `kills`: as in `self.kills`, now."""
        self.report, self._oom = report, kills > self.kills
        self._take_back()
        self.shut(frame.STDIN)
        for kind, pipe in list(self._pipes.items()):
            room = min(frame.MAX_DATA, self._credit)
            if room and len(self._take(kind, room) or b"") < room:  # that was all
                self.shut(kind)
                continue
            self._left[kind] = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
            self._empty(kind)

    def finish(self) -> bool:
        """Report the end, unless processes live or bytes wait for credit; whether it was reported."""
        if not self.report or self._pipes:
            return False
        size = os.fstat(self._result).st_size if self.folder else 0
        result = os.pread(self._result, min(size, self.start["result"] + 1), 0) if size else b""
        ended = judge(self.start, self.report, len(result), self._oom) | self.verdict
        if result and ended["kind"] == "exited":
            self._send(frame.RESULT, self.number, result)
        self._send(frame.ENDED, self.number, frame.encode(ended))
        self.shut()
        return True

    def shut(self, *kinds: int) -> None:
        """Close the pipes of these types, or everything."""
        for kind in self._pipes.keys() & (kinds or self._pipes.keys()):
            self._watch(self._pipes[kind], 0)
            os.close(self._pipes.pop(kind))
        if not kinds:
            self._take_back()
        if not kinds and self._result >= 0:
            os.close(self._result)
            self._result = -1


def write(folder: str, name: str, data: bytes, mode: int = 0o644) -> str:
    """Put a file where tools may at most read it; whoever opens it meanwhile finds the old one or all of the new."""
    os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # of a write that failed
        os.unlink(f"{folder}/.new")
    with open(os.open(f"{folder}/.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
    os.rename(f"{folder}/.new", f"{folder}/{name}")
    return f"{folder}/{name}"


def judge(start: dict[str, Any], report: tuple[int, ...], result: int, oom: bool) -> dict[str, Any]:
    """How the call ended by itself: `report` as in `frame.REPORT`, the length of its result, whether memory killed."""
    status, user, system, rss, wall, left = report
    code, limit = os.waitstatus_to_exitcode(status), start["cpu_s"]
    kind, reason = "exited", ""
    if status and oom:
        kind, reason = "oom", "the kernel ended a process at the sandbox's memory ceiling"
    elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and user + system >= limit * 1_000_000):
        kind, reason = "timed_out", f"cpu time: more than {limit} s"
    elif result > start["result"]:
        kind, reason = "output_capped", f"the result is longer than {start['result']} bytes"
    usage = {"cpu_user_us": user, "cpu_system_us": system, "max_rss_kib": rss, "wall_us": wall, "leftover": left}
    return {"kind": kind, "reason": reason, "usage": usage, "exit_code" if code >= 0 else "signal": abs(code)}
