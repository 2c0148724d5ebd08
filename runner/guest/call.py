"""One call, as the supervisor holds it: its pipes, its credit, its verdict.

Output moves only against credit: without it the pipe is not read, and the tool blocks. When every process of the
call is gone, what its pipes hold is counted once and drained: a descriptor that a tool smuggled into another call
can neither delay the end nor add to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import termios
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from runner.guest import frame

STDIN_WINDOW = 256 << 10  # bytes of stdin that gate may have on their way to the tool
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Hub(Protocol):
    """What a call needs of the supervisor."""

    def send(self, data: bytes) -> None:
        """Queue bytes for gate."""

    def watch(self, descriptor: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `descriptor` is ready; 0 for `events` ends that."""

    def kill(self, call: Call, kind: str, reason: str) -> None:
        """End the call with this outcome kind."""

    def oom_kills(self) -> int:
        """How often the kernel has killed in this container for memory."""


class Call:
    """A running or draining call; `theirs` are the tool's ends of its pipes, in the order of its descriptors.

    Raises OSError when they cannot be made."""

    def __init__(self, number: int, start: dict[str, Any], hub: Hub, now: float, code: str) -> None:
        self.number, self.code, self.deadline = number, code, now + start["wall_ms"] / 1000
        self.verdict: tuple[str, str] | None = None  # outcome kind and reason, when it did not end by itself
        self.report: dict[str, Any] | None = None  # the launcher's, when every process is gone
        self.theirs: list[int] = []
        self._hub, self._credit, self._cpu_s = hub, int(start["credit"]), int(start["cpu_s"])
        self._most, self._result = int(start["result"]), bytearray()
        self._pipes: dict[int, int] = {}  # frame type -> our end
        self._left: dict[int, int] = {}  # frame type -> bytes still to drain
        self._input, self._eof = bytearray(), False
        self._oom_before = hub.oom_kills()
        try:
            if start.get("stdin"):
                self._pipe(frame.STDIN, *reversed(os.pipe2(os.O_CLOEXEC)))
            self._pipe(frame.STDOUT, *os.pipe2(os.O_CLOEXEC))
            self._pipe(frame.STDERR, *os.pipe2(os.O_CLOEXEC))
            if start["kind"] == "python":
                self._give_arguments(start)
                self._pipe(frame.RESULT, *os.pipe2(os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def _pipe(self, kind: int, ours: int, theirs: int) -> None:
        os.set_blocking(ours, False)
        self._pipes[kind] = ours
        self.theirs.append(theirs)

    def _give_arguments(self, start: dict[str, Any]) -> None:
        request = {key: start.get(key, {}) for key in ("arguments", "roots", "tool", "result")}
        self.theirs.append(os.memfd_create("arguments", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        with os.fdopen(self.theirs[-1], "wb", closefd=False) as file:
            file.write(json.dumps({**request, "code": self.code}).encode())
        os.lseek(self.theirs[-1], 0, os.SEEK_SET)
        fcntl.fcntl(self.theirs[-1], fcntl.F_ADD_SEALS, _SEALS)

    def begin(self) -> None:
        """The process exists: let bytes move."""
        if frame.STDIN in self._pipes:
            self._return_credit(STDIN_WINDOW)
        self._watch()

    def _watch(self) -> None:
        for kind, pipe in self._pipes.items():
            if kind == frame.STDIN:
                self._hub.watch(pipe, select.EPOLLOUT if self._input else 0, self._feed)
            else:
                wanted = select.EPOLLIN if kind == frame.RESULT or self._credit > 0 else 0
                self._hub.watch(pipe, wanted, partial(self._pump, kind))

    def add_credit(self, amount: int) -> None:
        """Gate is ready for `amount` more bytes of output."""
        self._credit += amount
        self._watch()

    def add_stdin(self, data: bytes) -> None:
        """Bytes for the tool; b"" is the end. Dropped when nobody can read them. Raises `ProtocolError` beyond credit."""
        if frame.STDIN not in self._pipes:
            self._return_credit(len(data))
            return
        self._eof = self._eof or not data
        self._input += data
        if len(self._input) > STDIN_WINDOW:
            raise frame.ProtocolError("more stdin than there was credit for")
        self._feed()

    def _feed(self) -> None:
        try:
            count = os.write(self._pipes[frame.STDIN], self._input) if self._input else 0
        except BlockingIOError:
            count = 0
        except OSError:  # nobody reads any more
            count, self._eof = len(self._input), True
        del self._input[:count]
        self._return_credit(count)
        if self._eof and not self._input:
            self._shut(frame.STDIN)
        self._watch()

    def _return_credit(self, count: int) -> None:
        if count and self.report is None:
            self._hub.send(frame.pack(frame.STDIN_CREDIT, self.number, count.to_bytes(4, "big")))

    def _pump(self, kind: int) -> None:
        """Move one piece out of a pipe, as far as credit and what is left allow."""
        room = min(frame.MAX_DATA, self._left.get(kind, frame.MAX_DATA))
        if kind != frame.RESULT:
            room = min(room, self._credit)
        try:
            data = os.read(self._pipes[kind], room) if room else b""
        except BlockingIOError:
            return
        if kind in self._left:
            self._left[kind] -= len(data)
        if (room and not data) or self._left.get(kind) == 0:
            self._shut(kind)
        if kind == frame.RESULT:
            self._keep(data)
        elif data:
            self._credit -= len(data)
            self._hub.send(frame.pack(kind, self.number, data))
        self._watch()

    def _keep(self, data: bytes) -> None:
        self._result += data
        if len(self._result) > self._most:
            self._result.clear()
            self._hub.kill(self, "output_capped", f"the structured result is longer than {self._most} bytes")

    def drain(self, report: dict[str, Any]) -> None:
        """Every process is gone: what is in the pipes now is all there will be."""
        self.report = report
        self._shut(frame.STDIN)
        for kind, pipe in list(self._pipes.items()):
            waiting = array("i", [0])
            fcntl.ioctl(pipe, termios.FIONREAD, waiting)
            self._left[kind] = waiting[0]
            self._pump(kind)

    @property
    def drained(self) -> bool:
        """Whether the end can be reported."""
        return self.report is not None and not self._pipes

    def finish(self) -> None:
        """Report the end: the result of a python tool, then how it ended."""
        assert self.report is not None
        status: int = self.report.pop("status")
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        kind, reason = self.verdict or self._kind(status, signalled)
        ended: dict[str, Any] = {"kind": kind, "reason": reason, "usage": self.report}
        if signalled is not None:
            ended["signal"] = signalled
        elif kind == "exited":
            ended["exit_code"] = os.WEXITSTATUS(status)
        if self._result and kind == "exited":
            self._hub.send(frame.pack(frame.RESULT, self.number, bytes(self._result)))
        self._hub.send(frame.pack_json(frame.ENDED, self.number, ended))

    def _kind(self, status: int, signalled: int | None) -> tuple[str, str]:
        assert self.report is not None
        if status and self._hub.oom_kills() > self._oom_before:
            return "oom", "the kernel ended a process at the sandbox's memory ceiling"
        used = (self.report["cpu_user_us"] + self.report["cpu_system_us"]) / 1e6
        if signalled == signal.SIGXCPU or (signalled == signal.SIGKILL and used >= self._cpu_s):
            return "timed_out", f"cpu time: more than {self._cpu_s} s"
        return "exited", ""

    def _shut(self, kind: int) -> None:
        pipe = self._pipes.pop(kind, -1)
        if pipe >= 0:
            self._hub.watch(pipe, 0, self.close)
            os.close(pipe)

    def close_theirs(self) -> None:
        """The tool's ends have been passed on, or never will be."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Let go of everything."""
        self.close_theirs()
        for kind in list(self._pipes):
            self._shut(kind)
