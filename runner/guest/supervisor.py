"""PID 1 of a sandbox: one loop between gate, the launchers and the pipes of the tools.

    python3 -I -S -B /usr/lib/runner/guest/supervisor.py /run/runner/control.sock

It decides nothing about what may run. It exits, and with it everything in the container, when the control
connection ends or breaks, when a launcher dies during its call, and when a launcher does not report within a second
of being told to end its call. What it holds in memory is bounded by the credit that gate gives.
"""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(str(Path(__file__).parents[2]))

from runner.guest import frame, launcher, walls
from runner.guest.call import Call

TOOLS = Path("/run/tools")  # a tmpfs: Landlock lets tools read it, PID 1 alone writes it
_TOOL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_CALLS = 64  # gate's own ceiling is lower; this bounds descriptors and launchers whatever gate asks
_MAX_IDLE = 8  # launchers kept for later calls: each costs about 4 MB
_GRACE_S = 1.0  # from telling a launcher to end its call to giving up the sandbox
_OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")  # cgroup v1, v2


class Worker:
    """The supervisor's view of one launcher: its jail, and the call it serves."""

    def __init__(self, connection: socket.socket, jail: tuple[dict[str, Any], int], keep: bool) -> None:
        self.connection, self.jail, self.keep = connection, jail, keep
        self.reader = frame.Reader(frame.LAUNCHER)
        self.call: Call | None = None


class Supervisor:
    """The loop. Its methods raise `ProtocolError` or OSError when the sandbox must end."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._reader, self._output = control, frame.Reader(frame.FROM_GATE), bytearray()
        self._epoll, self._handlers = select.epoll(), dict[int, Callable[[], None]]()
        self._calls: dict[int, Call] = {}
        self._workers: dict[int, Worker] = {}  # by the number of their call
        self._idle: list[Worker] = []  # oldest first
        self._code: dict[tuple[str, str], Path] = {}  # (tool, digest) -> its folder
        self._abi = walls.landlock_abi()
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._probe.bind(walls.ABSTRACT_PROBE)
        counter = next((path for path in _OOM_COUNTERS if Path(path).exists()), os.devnull)
        self._oom = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)

    # --- call.Hub ---

    def send(self, data: bytes) -> None:
        """Queue bytes for gate; they leave at the end of this turn of the loop."""
        self._output += data

    def watch(self, descriptor: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `descriptor` is ready; 0 for `events` ends that."""
        if events and descriptor not in self._handlers:
            self._epoll.register(descriptor, events)
            self._handlers[descriptor] = handler
        elif not events and self._handlers.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    def kill(self, call: Call, kind: str, reason: str) -> None:
        """End the call with this outcome kind; the first verdict stands."""
        if call.verdict is None and call.report is None:
            call.deadline = time.monotonic() + _GRACE_S
            self._workers[call.number].connection.sendall(frame.pack(frame.CANCEL, call.number))
        call.verdict = call.verdict or (kind, reason)

    def oom_kills(self) -> int:
        """How often the kernel has killed in this container for memory; 0 where no counter can be seen."""
        found = re.search(rb"^oom_kill (\d+)", os.pread(self._oom, 4096, 0), re.MULTILINE)
        return int(found[1]) if found else 0

    # --- the loop ---

    def run(self) -> None:
        """Serve until the control connection ends."""
        self._control.setblocking(False)
        self.watch(self._control.fileno(), select.EPOLLIN | select.EPOLLRDHUP, self._from_gate)
        ready = {"landlock": self._abi, "scoped": self._abi >= 6, "uid": os.getuid()}
        self.send(frame.pack_json(frame.READY, 0, ready))
        while True:
            patience = self._settle()
            self._flush()
            for descriptor, _ in self._epoll.poll(patience):
                handler = self._handlers.get(descriptor)  # gone when an earlier event of this turn closed it
                if handler:
                    handler()

    def _settle(self) -> float:
        """Report the calls that are over, enforce the deadlines of the others; seconds until the next deadline."""
        patience, now = -1.0, time.monotonic()
        for call in list(self._calls.values()):
            if call.drained:
                call.finish()
                del self._calls[call.number]
            elif call.report is None:  # one that only waits for credit has met its deadline
                if now >= call.deadline and call.verdict:
                    raise frame.ProtocolError("a launcher did not end its call in time")
                if now >= call.deadline:
                    self.kill(call, "timed_out", "wall time")
                left = max(0.0, call.deadline - now)
                patience = left if patience < 0 else min(patience, left)
        return patience

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self._control.send(self._output)]
        except BlockingIOError:
            pass
        writing = select.EPOLLOUT if self._output else 0
        self._epoll.modify(self._control.fileno(), select.EPOLLIN | select.EPOLLRDHUP | writing)

    # --- frames from gate ---

    def _from_gate(self) -> None:
        try:
            data = self._control.recv(1 << 17)
        except BlockingIOError:  # only room to write
            return
        if not data:
            raise frame.ProtocolError("the control connection ended")
        for kind, number, payload in self._reader.feed(data):
            call = self._calls.get(number)
            if kind == frame.START:
                self._start(number, frame.read_json(payload), payload)
            elif kind == frame.PING:
                self.send(frame.pack(frame.PONG, 0))
            elif kind == frame.CODE:
                self._take_code(frame.read_json(payload))
            elif call is None:
                continue  # it ended while this frame was on its way
            elif kind == frame.STDIN:
                call.add_stdin(payload)
            elif kind == frame.CREDIT:
                call.add_credit(int.from_bytes(payload, "big"))
            elif kind == frame.CANCEL:
                self.kill(call, str(frame.read_json(payload)["kind"]), "")
                if call.report is not None:  # its processes are gone; what it wrote is not wanted any more
                    call.close()

    def _take_code(self, message: dict[str, Any]) -> None:
        """Check a tool's code against its digest and put it into a folder of its own: a running call keeps what it
        began with. Older code of the tool goes when no call uses it."""
        tool, digest = str(message["tool"]), str(message["digest"])
        folder = TOOLS / tool / digest
        try:
            files = {path: base64.b64decode(text, validate=True) for path, text in message["files"].items()}
            parts = [part for path in files for part in path.split("/")]
            if not _TOOL.fullmatch(tool) or {"", ".", ".."} & set(parts) or frame.code_digest(files) != digest:
                raise ValueError(f"the code of `{tool}` has a bad name or not the digest {digest}")
            for held, old in [item for item in self._code.items() if item[0][0] == tool]:
                if str(old) not in [call.code for call in self._calls.values()]:
                    shutil.rmtree(self._code.pop(held))
            for path, data in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
        except (ValueError, OSError) as error:
            self._fault(0, "unavailable", str(error))
        else:
            self._code[tool, digest] = folder
            self.send(frame.pack_json(frame.CODE_READY, 0, {"tool": tool, "digest": digest}))

    def _fault(self, number: int, code: str, reason: str) -> None:
        self.send(frame.pack_json(frame.FAULT, number, {"code": code, "reason": reason[:2000]}))

    def _start(self, number: int, start: dict[str, Any], payload: bytes) -> None:
        if not number or number in self._calls:
            raise frame.ProtocolError(f"call number {number} cannot be started")
        folder = self._code.get((start["tool"], start.get("code_digest", "")))
        if not self._abi:
            self._fault(number, "unavailable", "this kernel has no Landlock: the walls of a call cannot be built")
        elif len(self._calls) >= (_MAX_CALLS if self._abi >= 6 else 1):
            self._fault(number, "busy", "the sandbox runs as many calls as it can")
        elif start["kind"] == "python" and not folder:
            self._fault(number, "unavailable", f"the sandbox does not hold this code of `{start['tool']}`")
        else:
            try:
                call = Call(number, start, self, time.monotonic(), str(folder or ""))
                self._calls[number] = call
                self._hand_over(call, self._worker(start), frame.pack(frame.START, number, payload))
            except OSError as error:
                self._forget(number)
                self._fault(number, "unavailable", f"the call cannot be started: {error}")

    def _hand_over(self, call: Call, worker: Worker, whole: bytes) -> None:
        self._workers[call.number], worker.call = worker, call
        try:
            sent = socket.send_fds(worker.connection, [whole], call.theirs)
            worker.connection.sendall(whole[sent:])
        except OSError:
            self._discard(worker)
            raise
        call.close_theirs()

    # --- launchers ---

    def _worker(self, start: dict[str, Any]) -> Worker:
        """A kept launcher of the very same jail, or a new one. Raises OSError."""
        jail = (start["jail"], start["cpu_s"])
        keep = start["isolation"] == "launcher" and self._abi >= 6
        for worker in reversed(self._idle if keep else []):
            if worker.jail == jail:
                self._idle.remove(worker)
                return worker
        ours, theirs = socket.socketpair()
        if not os.fork():
            launcher.begin(theirs, self._abi)
        theirs.close()
        ours.settimeout(_GRACE_S)  # a launcher that waits for a call reads at once
        worker = Worker(ours, jail, keep)
        self.watch(ours.fileno(), select.EPOLLIN, lambda: self._from_launcher(worker))
        return worker

    def _from_launcher(self, worker: Worker) -> None:
        try:
            data = worker.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except ConnectionError:
            data = b""
        if not data and worker.call:
            raise frame.ProtocolError("a launcher died during its call")
        if not data:
            self._discard(worker)
        for kind, number, payload in worker.reader.feed(data):
            call = worker.call
            if call is None or call.number != number:
                raise frame.ProtocolError("a launcher spoke of a call that is not its own")
            if kind != frame.ENDED:
                self.send(frame.pack(kind, number, payload))
            if kind == frame.STARTED:
                call.begin()
            elif kind == frame.FAULT:
                self._forget(number)
                self._release(worker, worker.keep)
            else:
                report = frame.read_json(payload)
                self._release(worker, worker.keep and not report.pop("spent"))
                call.drain(report)

    def _release(self, worker: Worker, keep: bool) -> None:
        """Keep a launcher for the next call of its jail, or let it go; the oldest goes when there are too many."""
        assert worker.call is not None
        del self._workers[worker.call.number]
        worker.call = None
        self._idle.append(worker)
        if not keep:
            self._discard(worker)
        elif len(self._idle) > _MAX_IDLE:
            self._discard(self._idle[0])

    def _discard(self, worker: Worker) -> None:
        """Close the connection: the launcher exits on that, and the kernel reaps it (SIGCHLD is ignored)."""
        worker.call = None
        if worker in self._idle:
            self._idle.remove(worker)
        self.watch(worker.connection.fileno(), 0, self._from_gate)
        worker.connection.close()

    def _forget(self, number: int) -> None:
        call = self._calls.pop(number, None)
        if call:
            call.close()


def main(path: str) -> None:
    """Be PID 1. Returns when the sandbox must end."""
    walls.prctl(walls.DUMPABLE, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(path)
    try:
        Supervisor(control).run()
    except (frame.ProtocolError, OSError) as error:
        sys.stderr.write(f"supervisor: {error}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    finally:
        os._exit(1)
