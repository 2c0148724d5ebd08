"""PID 1 of a sandbox: one loop between gate, the launchers and the pipes of the tools.

    python3 -I -S -B /usr/lib/runner/guest/supervisor.py /run/runner/control.sock

It decides nothing about what may run. It exits, and with it everything in the container, when the control connection
ends or breaks, and when a launcher dies during its call or does not report within a second of being told to end it.
What it holds in memory is bounded by the credit that gate gives.

Launchers are forked from a copy of PID 1 that was made before it knew of anything (`runner/guest/seed.py`).
"""

from __future__ import annotations

import binascii
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(__file__.rsplit("/", 3)[0])

from runner.guest import frame, walls
from runner.guest.call import REST_S, TOOLS, Call, write
from runner.guest.launcher import CANCEL
from runner.guest.seed import launch, serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")  # cgroup v1, v2
_MAX_CALLS = 64  # gate's own ceiling is lower; this bounds descriptors and launchers whatever gate asks
_MAX_IDLE = 8  # launchers kept or built for later calls, unless more ran at once of late: each costs about 4 MB
_HELD = 512 << 10  # bytes of memory kept between pieces of output
_OF_LATE = 1 / 64  # calls until one launcher less is remembered
_MAX_SERVED = 500  # calls a launcher serves: their cost adds up against its own CPU ceiling
_MAX_JAILS = 256  # that a START may name by key: the one spelled out first is forgotten, by gate too
_GRACE_S = 1.0  # from telling a launcher to end its call to giving up the sandbox
_TICK_S = 0.05  # how late a deadline may be noticed
_CONTROL = select.EPOLLIN | select.EPOLLRDHUP


class Worker:
    """The supervisor's view of one launcher: what it was built for, the calls it may still serve, the one it serves."""

    def __init__(self, connection: socket.socket, build: dict[str, Any], ruleset: walls.Ruleset, calls: int) -> None:
        self.connection, self.build, self.ruleset, self.calls = connection, build, ruleset, calls
        self.reader, self.call = frame.Reader(frame.FROM_LAUNCHER), 0
        self.process, self.walls = 0, b""  # known when its walls stand


class Supervisor:
    """The loop. Whatever its methods raise ends the sandbox."""

    def __init__(self, control: socket.socket, abi: int, seed: socket.socket | None) -> None:
        self._control, self._reader, self._output = control, frame.Reader(frame.FROM_GATE), bytearray()
        self._epoll, self._waits = select.epoll(), False
        self._handlers: dict[int, Callable[[], None]] = {}
        self._calls: dict[int, Call] = {}
        self._workers: dict[int, Worker] = {}  # by the call they serve
        self._idle: list[Worker] = []  # oldest first
        self._peak = 0.0  # launchers that served at once of late
        self._wanted: list[dict[str, Any]] = []  # launchers to build when there is nothing else to do
        self._jails: dict[str, dict[str, Any]] = {}  # by key, oldest first
        self._rulesets: dict[str, walls.Ruleset] = {}  # of those, made when first needed
        self._code: dict[str, int] = {}  # folder of a tool's code that is here -> memory for it compiled
        self._abi, self._scoped, self._seed = abi, abi >= 6, seed
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        counter = next((path for path in _OOM_COUNTERS if os.path.exists(path)), os.devnull)
        self._counter = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._probe.bind(walls.ABSTRACT_PROBE)

    def run(self) -> None:
        """Serve until the control connection ends."""
        self._control.setblocking(False)
        self._watch(self._control.fileno(), _CONTROL, self._from_gate)
        if self._seed:
            self._watch(self._seed.fileno(), select.EPOLLIN, self._from_seed)
        self._send(frame.READY, 0, frame.encode({"landlock": self._abi, "scoped": self._scoped, "uid": os.getuid()}))
        while True:
            for call in list(self._calls.values()):
                if call.finish():
                    del self._calls[call.number]
                elif not call.report and time.monotonic() >= call.deadline:
                    if call.verdict:
                        raise TimeoutError("a launcher did not end its call in time")
                    self._end(call, "timed_out", "wall time")
            self._flush()
            while self._wanted:
                with contextlib.suppress(OSError):  # whoever needs it will be told
                    self._keep(self._launcher(self._wanted.pop()))
            now = time.monotonic()
            rests = [call for call in self._calls.values() if call.rests(now)]
            for descriptor, _ in self._epoll.poll(REST_S if rests else _TICK_S if self._calls else None):
                if descriptor in self._handlers:  # unless an earlier event of this turn closed it
                    self._handlers[descriptor]()

    def _send(self, kind: int, number: int, payload: bytes = b"") -> None:
        self._output += frame.pack(kind, number, payload)  # leaves at the end of this turn

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self._control.send(self._output)]
        except BlockingIOError:
            pass
        if self._waits != bool(self._output):
            self._waits = not self._waits
            self._epoll.modify(self._control.fileno(), _CONTROL | (select.EPOLLOUT if self._waits else 0))

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
            elif call.started:  # or else its launcher is told when it says so
                os.kill(self._workers[call.number].process, CANCEL)

    def _from_gate(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:  # only room to write
            return
        if not data:
            raise EOFError("the control connection ended")
        for kind, number, payload in self._reader.feed(data):
            call = self._calls.get(number)
            if kind == frame.START:
                self._start(number, json.loads(payload), payload)
            elif kind == frame.PREPARE:
                asked = json.loads(payload)
                asked["jail"] = self._jail(asked["jail"])
                if self._scoped:  # or else no launcher is kept
                    self._wanted.append(asked | {"folder": ""})
            elif kind == frame.PING:
                self._send(frame.PONG, 0)
            elif kind in (frame.CODE, frame.TRUST):
                self._take_files(kind, payload)
            elif call and kind == frame.STDIN:
                call.feed(payload)
            elif call and kind == frame.CREDIT:
                call.add_credit(int.from_bytes(payload, "big"))
            elif call and kind == frame.CANCEL:
                self._end(call, json.loads(payload)["kind"], "")

    def _from_seed(self) -> None:
        raise EOFError("the seed ended")

    def _take_files(self, kind: int, payload: bytes) -> None:
        if kind == frame.TRUST:  # the authorities whose certificates tools are to accept
            write(f"{TOOLS}/trust", "ca.pem", payload)
        else:
            self._take_code(**json.loads(payload))

    def _take_code(self, tool: str, digest: str, files: dict[str, str]) -> None:
        """Check a tool's code and put it into a folder of its own: a running call keeps what it began with."""
        content = {path: binascii.a2b_base64(text.encode(), strict_mode=True) for path, text in files.items()}
        parts = {tool, *"/".join(files).split("/")}
        if {"", ".", ".."} & parts or "/" in tool or frame.code_digest(content) != digest:
            raise ValueError(f"the code of `{tool}` has a bad name, or not the digest {digest}")
        folder = f"{TOOLS}/{tool}/{digest}"
        used = {folder, *(call.folder for call in self._calls.values())}
        for old in [held for held in self._code.keys() - used if held.startswith(f"{TOOLS}/{tool}/")]:
            for worker in [worker for worker in self._idle if worker.build["folder"] == old]:
                self._discard(worker)
            _remove(old)
            os.close(self._code.pop(old))
        if folder not in self._code:
            for path, data in content.items():
                place, _, name = f"{folder}/{path}".rpartition("/")
                write(place, name, data)
            self._code[folder] = os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._send(frame.CODE_READY, 0, frame.encode({"tool": tool, "digest": digest}))

    def _start(self, number: int, start: dict[str, Any], request: bytes) -> None:
        if not number or number in self._calls:
            raise ValueError(f"call number {number} cannot be started")
        call = self._calls[number] = Call(number, start, self._nothing, self._watch, self._send)
        jail = self._jail(start["jail"])
        try:
            if len(self._calls) > (_MAX_CALLS if self._scoped else 1):
                raise OSError("the sandbox runs as many calls as it can")
            if call.folder and call.folder not in self._code:
                raise OSError(f"the sandbox does not hold this code of `{start['tool']}`")
            if call.folder or (start["isolation"] == "call" and self._scoped):  # for its own process alone
                call.hold(request)
                request = b""
            call.place()
            worker = self._launcher(
                {"jail": jail, "cpu_s": start["cpu_s"], "isolation": start["isolation"], "folder": call.folder}
            )
            worker.call, self._workers[number], call.kills = number, worker, self._oom_kills()
            self._peak = max(self._peak - _OF_LATE, len(self._workers))
            _send_all(worker.connection, frame.pack(frame.START, number, request), call.theirs)
        except OSError as error:
            self._fault(number, frame.encode({"code": "unavailable", "reason": str(error)}))
        call.handed()

    def _jail(self, given: dict[str, Any] | str) -> dict[str, Any]:
        """The walls that a START asks for: spelled out at first, then named by their key."""
        if isinstance(given, str):
            if given not in self._jails:
                raise ValueError(f"no jail was spelled out under the key {given[:64]}")
            return self._jails[given]
        if self._jails.setdefault(given["key"], given) != given:
            raise ValueError("two jails under one key")
        if len(self._jails) > _MAX_JAILS:
            oldest = next(iter(self._jails))
            del self._jails[oldest]
            self._forget(oldest)
        return given

    def _forget(self, key: str) -> None:
        if key in self._rulesets:
            os.close(self._rulesets.pop(key).descriptor)

    def _ruleset(self, jail: dict[str, Any]) -> walls.Ruleset:
        """One for all launchers of these walls, for as long as it names what is there. Raises OSError."""
        held = self._rulesets.get(jail["key"])
        if held is None or not held.stands():
            self._forget(jail["key"])
            held = self._rulesets[jail["key"]] = walls.Ruleset(self._abi, jail)
        return held

    def _fault(self, number: int, payload: bytes) -> None:
        """The call's process never existed. Its launcher may not have built its walls: it goes too."""
        self._calls.pop(number).shut()
        if number in self._workers:
            self._discard(self._workers.pop(number))
        self._send(frame.FAULT, number, payload)

    def _launcher(self, build: dict[str, Any]) -> Worker:
        """An idle launcher that was built for the very same, or a new one. Raises OSError."""
        for worker in [worker for worker in reversed(self._idle) if worker.build == build]:
            self._idle.remove(worker)
            if worker.ruleset.stands():
                return worker
            self._discard(worker)
        jail, isolation, folder = build["jail"], build["isolation"], build["folder"]
        ruleset = self._ruleset(jail)
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno(), *([self._code[folder]] if folder else []), ruleset.descriptor]
        try:
            if self._seed:
                _send_all(self._seed, b".", passed)
            elif not os.fork():
                launch(self._abi, passed)
        finally:
            theirs.close()
        writable = "yes" if "/workspace" in jail["write"] else ""
        asked = [isolation, folder, build["cpu_s"], jail["open_files"], jail["file_size"], writable, jail["seccomp"]]
        ours.sendall(frame.pack(frame.BUILD, 0, "\n".join(map(str, asked)).encode()))
        worker = Worker(ours, build, ruleset, _MAX_SERVED if self._scoped and isolation == "launcher" else 1)
        self._watch(ours.fileno(), select.EPOLLIN, lambda: self._from_launcher(worker))
        return worker

    def _keep(self, worker: Worker) -> None:
        self._idle.append(worker)
        if len(self._idle) > max(_MAX_IDLE, self._peak - len(self._workers)):
            self._discard(self._idle[0])

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
            if kind == frame.BUILT:
                process, *names = payload.decode().split("\n")
                worker.process = int(process)
                worker.walls = frame.encode({"walls": dict.fromkeys(names, True)})
            elif kind == frame.FAULT and worker.call:
                self._fault(worker.call, payload)
            elif kind == frame.FAULT:
                self._discard(worker)
            elif number != worker.call:
                raise ValueError("a launcher spoke of a call that is not its own")
            else:
                self._from_call(worker, self._calls[number], kind, payload)

    def _from_call(self, worker: Worker, call: Call, kind: int, payload: bytes) -> None:
        """A launcher's word that its call has begun, or that nothing of it is left."""
        if not call.started:
            call.started = True
            self._send(frame.STARTED, call.number, worker.walls)
        if kind == frame.ENDED:
            report = frame.REPORT.unpack(payload)
            worker.call, worker.calls = 0, worker.calls - 1
            del self._workers[call.number]
            if worker.calls:
                self._keep(worker)
            else:
                self._discard(worker)
                if self._scoped:
                    self._wanted.append(worker.build)
            call.drain(report, self._oom_kills() if report[0] else 0)
        elif call.verdict:
            os.kill(worker.process, CANCEL)
        else:
            call.add_credit(0)

    def _discard(self, worker: Worker) -> None:
        """Close the connection: the launcher exits on that, and the kernel reaps it (SIGCHLD is ignored)."""
        if worker in self._idle:
            self._idle.remove(worker)
        self._watch(worker.connection.fileno(), 0)
        worker.connection.close()

    def _oom_kills(self) -> int:
        """How often the kernel has killed in this container for memory; 0 where no counter can be seen."""
        for line in os.pread(self._counter, 4096, 0).split(b"\n"):
            if line.startswith(b"oom_kill "):
                return int(line[9:])
        return 0


def _send_all(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    sent = socket.send_fds(connection, [data], descriptors)
    if sent < len(data):
        connection.sendall(data[sent:])


def _remove(folder: str) -> None:
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(folder)


def main(path: str) -> NoReturn:
    """PID 1, from its first instruction to its last; `path` is the control socket's."""
    try:
        # Blocked, not ignored: what is forked takes one call to be rid of it. Ended children are reaped by the kernel.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        walls.prctl(walls.DUMPABLE, 0)  # no other process can look inside
        gc.collect()
        gc.freeze()
        walls.trim()
        abi, seed = walls.landlock_abi(), None
        if abi >= 6:
            seed, theirs = socket.socketpair()
            if not os.fork():
                seed.close()
                serve(theirs, abi)
            theirs.close()
        walls.hold(_HELD)
        control = socket.socket(socket.AF_UNIX)
        control.connect(path)
        Supervisor(control, abi, seed).run()
    except Exception as error:
        sys.stderr.write(f"supervisor: {type(error).__name__}: {error}\n")
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
