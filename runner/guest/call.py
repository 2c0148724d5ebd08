"""One call, as the supervisor holds it: its pipes, its credit, its verdict.

Output moves only against credit: without it the pipe is not read, and the tool blocks. When every process of the
call is gone, what its pipes hold is counted once and drained: a descriptor that a tool smuggled into another call
can neither delay the end nor add to it.
"""

import fcntl
import os
import select
import termios
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runner.guest import frame

STDIN_WINDOW = 256 << 10  # bytes of stdin that gate may have on their way to the tool


class Call:
    """A running or draining call. `watch` and `send` are the supervisor's."""

    def __init__(
        self, number: int, start: dict[str, Any], watch: Callable[..., None], send: Callable[..., None]
    ) -> None:
        self.number, self.code = number, Path(start["tool"], start.get("code_digest", ""))
        self.deadline = time.monotonic() + start["wall_ms"] / 1000
        self.verdict: dict[str, str] = {}  # outcome kind and reason, when it did not end by itself
        self.report: dict[str, Any] = {}  # the launcher's, when every process is gone
        self.result = b""
        self._watch, self._send, self._credit = watch, send, int(start["credit"])
        self._kinds = (frame.STDIN, frame.STDOUT, frame.STDERR)[not start.get("stdin") :]
        self._pipes: dict[int, int] = {}  # frame type -> our end
        self._left: dict[int, int] = {}  # frame type -> bytes still to drain
        self._input, self._eof = bytearray(), False

    def open(self) -> list[int]:
        """Make the pipes; the tool's ends, in the order of its descriptors. Raises OSError."""
        theirs = []
        for kind in self._kinds:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._pipes[kind] = writer if kind == frame.STDIN else reader
            theirs.append(reader if kind == frame.STDIN else writer)
            os.set_blocking(self._pipes[kind], False)
        return theirs

    def begin(self) -> None:
        """The process exists: let bytes move."""
        self._return_credit(STDIN_WINDOW if frame.STDIN in self._pipes else 0)
        self.add_credit(0)

    def add_credit(self, amount: int) -> None:
        """Gate is ready for `amount` more bytes of output."""
        self._credit += amount
        for kind in self._pipes.keys() - {frame.STDIN}:
            self._watch(self._pipes[kind], select.EPOLLIN if self._credit else 0, partial(self._pump, kind))

    def _pump(self, kind: int) -> None:
        """Move one piece out of a pipe, as far as credit and what is left allow."""
        room = min(frame.MAX_DATA, self._credit, self._left.get(kind, frame.MAX_DATA))
        try:
            data = os.read(self._pipes[kind], room) if room else b""
        except BlockingIOError:
            return
        if data:
            self._send(kind, self.number, data)
        if kind in self._left:
            self._left[kind] -= len(data)
        if (room and not data) or self._left.get(kind) == 0:
            self._shut(kind)
        self.add_credit(-len(data))

    def add_stdin(self, data: bytes) -> None:
        """Bytes for the tool, b"" the end; dropped when nobody can read them. Raises ValueError beyond the credit."""
        self._input += data
        self._eof = self._eof or not data
        if len(self._input) > STDIN_WINDOW:
            raise ValueError("more stdin than there was credit for")
        self._feed()

    def _feed(self) -> None:
        try:
            count = os.write(self._pipes[frame.STDIN], self._input) if self._input else 0
        except BlockingIOError:
            count = 0
        except (KeyError, OSError):  # nobody reads any more
            count, self._eof = len(self._input), True
        del self._input[:count]
        self._return_credit(count)
        if self._eof and not self._input:
            self._shut(frame.STDIN)
        else:
            self._watch(self._pipes[frame.STDIN], select.EPOLLOUT if self._input else 0, self._feed)

    def _return_credit(self, count: int) -> None:
        if count and not self.report:
            self._send(frame.STDIN_CREDIT, self.number, count.to_bytes(4, "big"))

    def drain(self, report: dict[str, Any]) -> None:
        """Every process is gone: what is in the pipes now is all there will be."""
        self.report = report
        self._shut(frame.STDIN)
        for kind, pipe in list(self._pipes.items()):
            waiting = array("i", [0])
            fcntl.ioctl(pipe, termios.FIONREAD, waiting)
            self._left[kind] = waiting[0]
            self._pump(kind)

    def finish(self) -> bool:
        """Report the end, unless processes live or bytes wait for credit; whether it was reported."""
        over = bool(self.report) and not self._pipes
        if over and self.result and not self.verdict:
            self._send(frame.RESULT, self.number, self.result)
        if over:
            self._send(frame.ENDED, self.number, frame.encode({**self.report, **self.verdict}))
        return over

    def _shut(self, kind: int) -> None:
        if kind in self._pipes:
            self._watch(self._pipes[kind], 0)
            os.close(self._pipes.pop(kind))

    def close(self) -> None:
        """Let go of every pipe."""
        for kind in self._kinds:
            self._shut(kind)
