"""PID 1 of a sandbox: one loop between gate, the launchers and the pipes of the tools.

    python3 -I -S -B /usr/lib/runner/guest/supervisor.py /run/runner/control.sock

It decides nothing about what may run. It exits, and with it everything in the container, when the control connection
ends or breaks, and when a launcher dies during its call or does not report within a second of being told to end it.
What it holds in memory is bounded by the credit that gate gives.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(__file__.rsplit("/", 3)[0])

from runner.guest import frame, walls
from runner.guest.launcher import Launcher

TOOLS = Path("/run/tools")  # a tmpfs: Landlock lets tools read it, PID 1 alone writes it
STDIN_WINDOW = 256 << 10  # bytes of stdin that gate may have on their way to the tool
_MAX_CALLS = 64  # gate's own ceiling is lower; this bounds descriptors and launchers whatever gate asks
_MAX_IDLE = 8  # launchers kept for later calls: each costs about 4 MB
_MAX_SERVED = 500  # calls a launcher serves: their cost adds up against its own CPU ceiling
_GRACE_S = 1.0  # from telling a launcher to end its call to giving up the sandbox
_TICK_S = 0.05  # how late a deadline may be noticed
Act = Callable[..., None]
_CONTROL = select.EPOLLIN | select.EPOLLRDHUP


class Call:
    """A running or draining call: its pipes, its credit, its verdict. `watch` and `send` are the supervisor's.

    Output moves only against credit: without it the pipe is not read, and the tool blocks. When every process is gone,
    what the pipes hold is counted once: a descriptor smuggled into another call neither delays the end nor adds."""

    def __init__(self, number: int, start: dict[str, Any], watch: Act, send: Act) -> None:
        self.number, self.code = number, Path(start["tool"], start.get("code_digest", ""))
        self.deadline = time.monotonic() + start["wall_ms"] / 1000
        self.verdict: dict[str, str] = {}  # outcome kind and reason, when it did not end by itself
        self.report: dict[str, Any] = {}  # the launcher's, when every process is gone
        self.result = b""
        self._watch, self._send, self._credit = watch, send, int(start["credit"])
        self._pipes: dict[int, int] = {}  # frame type -> our end
        self._left: dict[int, int] = {}  # frame type -> bytes still to come: unknown until no process is left
        self._input, self._eof = bytearray(), False
        self.theirs: list[int] = []  # the tool's ends, in the order of its descriptors
        for kind in (frame.STDIN, frame.STDOUT, frame.STDERR)[not start.get("stdin") :]:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ours, theirs = (writer, reader) if kind == frame.STDIN else (reader, writer)
            os.set_blocking(ours, False)
            self._pipes[kind], self._left[kind] = ours, sys.maxsize
            self.theirs.append(theirs)
        if frame.STDIN in self._pipes:
            send(frame.STDIN_CREDIT, number, STDIN_WINDOW.to_bytes(4, "big"))

    def add_credit(self, amount: int) -> None:
        """Gate is ready for `amount` more bytes of output. Nothing is read before the first call of this."""
        self._credit += amount
        for kind in self._pipes.keys() - {frame.STDIN}:
            self._watch(self._pipes[kind], select.EPOLLIN if self._credit else 0, partial(self._pump, kind))

    def _pump(self, kind: int) -> None:
        """Move one piece out of a pipe, as far as credit and what is left allow."""
        room = min(frame.MAX_DATA, self._credit, self._left[kind])
        try:
            data = os.read(self._pipes[kind], room) if room else b""
        except BlockingIOError:
            return
        if data:
            self._send(kind, self.number, data)
        self._left[kind] -= len(data)
        if (room and not data) or not self._left[kind]:
            self.shut(kind)
        self.add_credit(-len(data))

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

    def drain(self, report: dict[str, Any]) -> None:
        """Every process is gone: what is in the pipes now is all there will be."""
        self.report = report
        self.shut(frame.STDIN)
        for kind, pipe in list(self._pipes.items()):
            self._left[kind] = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
            self._pump(kind)

    def finish(self) -> bool:
        """Report the end, unless processes live or bytes wait for credit; whether it was reported."""
        over = bool(self.report) and not self._pipes
        if over and self.result and not self.verdict:
            self._send(frame.RESULT, self.number, self.result)
        if over:
            self._send(frame.ENDED, self.number, frame.encode({**self.report, **self.verdict}))
        return over

    def shut(self, *kinds: int) -> None:
        """Close the pipes of these types, or all of them."""
        for kind in self._pipes.keys() & (kinds or self._pipes.keys()):
            self._watch(self._pipes[kind], 0)
            os.close(self._pipes.pop(kind))


class Worker:
    """The supervisor's view of one launcher: its jail, the calls it may still serve, the one it serves."""

    def __init__(self, connection: socket.socket, jail: tuple[dict[str, Any], int], calls: int) -> None:
        self.connection, self.jail, self.calls = connection, jail, calls
        self.reader, self.call = frame.Reader(frame.LAUNCHER), 0


class Supervisor:
    """The loop. Whatever its methods raise ends the sandbox."""

    def __init__(self, control: socket.socket, abi: int) -> None:
        self._control, self._reader, self._output = control, frame.Reader(frame.FROM_GATE), bytearray()
        self._epoll, self._handlers = select.epoll(), dict[int, Callable[[], None]]()
        self._calls: dict[int, Call] = {}
        self._workers: dict[int, Worker] = {}  # by the call they serve
        self._idle: list[Worker] = []  # oldest first
        self._code: set[Path] = set()  # (tool, digest) of the code that is here, as a path below TOOLS
        self._abi, self._scoped = abi, abi >= 6
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._probe.bind(walls.ABSTRACT_PROBE)

    def run(self) -> None:
        """Serve until the control connection ends."""
        self._control.setblocking(False)
        self._watch(self._control.fileno(), _CONTROL, self._from_gate)
        self._send(frame.READY, 0, frame.encode({"landlock": self._abi, "scoped": self._scoped, "uid": os.getuid()}))
        while True:
            for call in list(self._calls.values()):
                if call.finish():
                    del self._calls[call.number]
                elif not call.report and time.monotonic() >= call.deadline:
                    if call.verdict:
                        raise TimeoutError("a launcher did not end its call in time")
                    self._end(call, "timed_out", "wall time")
            try:
                while self._output:
                    del self._output[: self._control.send(self._output)]
            except BlockingIOError:
                self._epoll.modify(self._control.fileno(), _CONTROL | select.EPOLLOUT)
            for descriptor, _ in self._epoll.poll(_TICK_S if self._calls else None):
                if descriptor in self._handlers:  # unless an earlier event of this turn closed it
                    self._handlers[descriptor]()

    def _send(self, kind: int, number: int, payload: bytes = b"") -> None:
        self._output += frame.pack(kind, number, payload)  # leaves at the end of this turn

    def _watch(self, descriptor: int, events: int, handler: Callable[[], None] | None = None) -> None:
        """Call `handler` whenever `descriptor` is ready; 0 for `events` ends that."""
        if events and handler and descriptor not in self._handlers:
            self._epoll.register(descriptor, events)
            self._handlers[descriptor] = handler
        elif not events and descriptor in self._handlers:
            self._epoll.unregister(descriptor)
            del self._handlers[descriptor]

    def _end(self, call: Call, kind: str, reason: str) -> None:
        """End the call with this outcome kind; the first verdict stands."""
        if not call.verdict:
            call.verdict = {"kind": kind, "reason": reason}
            call.deadline = time.monotonic() + _GRACE_S
            if call.report:  # its processes are gone: what it wrote is not wanted any more
                call.shut()
            else:
                self._workers[call.number].connection.sendall(frame.pack(frame.CANCEL, call.number))

    def _from_gate(self) -> None:
        self._epoll.modify(self._control.fileno(), _CONTROL)
        try:
            data = self._control.recv(1 << 17)
        except BlockingIOError:  # only room to write
            return
        if not data:
            raise EOFError("the control connection ended")
        for kind, number, payload in self._reader.feed(data):
            call = self._calls.get(number)
            if kind == frame.START:
                self._start(number, json.loads(payload), frame.pack(kind, number, payload))
            elif kind == frame.PING:
                self._send(frame.PONG, 0)
            elif kind == frame.CODE:
                self._take_code(**json.loads(payload))
            elif call and kind == frame.STDIN:
                call.feed(payload)
            elif call and kind == frame.CREDIT:
                call.add_credit(int.from_bytes(payload, "big"))
            elif call and kind == frame.CANCEL:
                self._end(call, json.loads(payload)["kind"], "")

    def _take_code(self, tool: str, digest: str, files: dict[str, str]) -> None:
        """Check a tool's code and put it into a folder of its own: a running call keeps what it began with."""
        content = {path: base64.b64decode(text, validate=True) for path, text in files.items()}
        parts = {tool, *"/".join(files).split("/")}
        if {"", ".", ".."} & parts or "/" in tool or frame.code_digest(content) != digest:
            raise ValueError(f"the code of `{tool}` has a bad name, or not the digest {digest}")
        code = Path(tool, digest)
        used = {code, *(call.code for call in self._calls.values())}
        for old in [held for held in self._code - used if held.parent == code.parent]:
            shutil.rmtree(TOOLS / old)
            self._code.remove(old)
        for path, data in content.items() if code not in self._code else ():
            (TOOLS / code / path).parent.mkdir(parents=True, exist_ok=True)
            (TOOLS / code / path).write_bytes(data)
        self._code.add(code)
        self._send(frame.CODE_READY, 0, frame.encode({"tool": tool, "digest": digest}))

    def _start(self, number: int, start: dict[str, Any], whole: bytes) -> None:
        if not number or number in self._calls:
            raise ValueError(f"call number {number} cannot be started")
        call = self._calls[number] = Call(number, start, self._watch, self._send)
        try:
            if len(self._calls) > (_MAX_CALLS if self._scoped else 1):
                raise OSError("the sandbox runs as many calls as it can")
            if start["kind"] == "python" and call.code not in self._code:
                raise OSError(f"the sandbox does not hold this code of `{start['tool']}`")
            worker = self._launcher((start["jail"], start["cpu_s"]), start["isolation"] == "launcher" and self._scoped)
            worker.call, self._workers[number] = number, worker
            sent = socket.send_fds(worker.connection, [whole], call.theirs)
            worker.connection.sendall(whole[sent:])
        except OSError as error:
            self._fault(number, frame.encode({"code": "unavailable", "reason": str(error)}))
        for descriptor in call.theirs:
            os.close(descriptor)

    def _fault(self, number: int, payload: bytes) -> None:
        """The call's process never existed. Its launcher may not have built its walls: it goes too."""
        self._calls.pop(number).shut()
        if number in self._workers:
            self._discard(self._workers.pop(number))
        self._send(frame.FAULT, number, payload)

    def _launcher(self, jail: tuple[dict[str, Any], int], keep: bool) -> Worker:
        """A kept launcher of the very same jail, or a new one. Raises OSError."""
        for worker in reversed(self._idle if keep else []):
            if worker.jail == jail:
                self._idle.remove(worker)
                return worker
        ours, theirs = socket.socketpair()
        if not os.fork():
            try:
                Launcher(theirs, self._abi).run()
            finally:
                os._exit(1)
        theirs.close()
        worker = Worker(ours, jail, _MAX_SERVED if keep else 1)
        self._watch(ours.fileno(), select.EPOLLIN, lambda: self._from_launcher(worker))
        return worker

    def _from_launcher(self, worker: Worker) -> None:
        try:
            data = worker.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except ConnectionError:
            data = b""
        except BlockingIOError:
            return
        if not data and worker.call:
            raise EOFError("a launcher died during its call")
        if not data:
            self._discard(worker)
        for kind, number, payload in worker.reader.feed(data):
            if kind == frame.FAULT:
                self._fault(number, payload)
            elif kind == frame.STARTED:
                self._send(kind, number, payload)
                self._calls[number].add_credit(0)
            elif kind == frame.RESULT:
                self._calls[number].result = payload
            else:
                worker.call, worker.calls = 0, worker.calls - 1
                self._idle.append(self._workers.pop(number))
                if not worker.calls or len(self._idle) > _MAX_IDLE:
                    self._discard(self._idle[0] if worker.calls else worker)
                self._calls[number].drain(json.loads(payload))

    def _discard(self, worker: Worker) -> None:
        """Close the connection: the launcher exits on that, and the kernel reaps it (SIGCHLD is ignored)."""
        if worker in self._idle:
            self._idle.remove(worker)
        self._watch(worker.connection.fileno(), 0)
        worker.connection.close()


if __name__ == "__main__":
    try:
        for ignored in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(ignored, signal.SIG_IGN)
        walls.prctl(walls.DUMPABLE, 0)  # no other process can look inside
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(sys.argv[1])
        Supervisor(connection, walls.landlock_abi()).run()
    except Exception as error:
        sys.stderr.write(f"supervisor: {type(error).__name__}: {error}\n")
    finally:
        os._exit(1)
