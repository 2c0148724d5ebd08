"""One launcher: a process that walls itself in, proves it, and then serves one call at a time.

Tools inherit the walls. The launcher is the subreaper of everything a call starts; when the call ends, however it
ends, `kill(-1, SIGKILL)` reaches exactly its signal scope, and only when nothing is left does it report.

`isolation = "launcher"`: the tool is spawned into the launcher's own domain, and the launcher is kept. `"call"`: the
tool is forked into a nested scope, from which it cannot signal its launcher either, and both are discarded.
"""

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from errno import EAGAIN, EINVAL, EMFILE, ENFILE, ENOMEM
from pathlib import Path
from typing import Any, NoReturn

from runner.guest import frame, walls

_PYTHON = ["/usr/bin/python3", "-I", "-S", "-B", str(Path(__file__).with_name("python_tool.py"))]
_LEAST_FILES = 32  # the launcher's own descriptors and a call's pipes must fit
_OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")  # cgroup v1, v2
_OWN_OOM_SCORE, _TOOL_OOM_SCORE = b"750", b"1000"  # out of memory, the tool goes first
_CEILINGS = (EAGAIN, EMFILE, ENFILE, ENOMEM)  # not the fault of who named the program
_SEALABLE = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class Launcher:
    """The state of a launcher process between `fork` and `_exit`."""

    def __init__(self, connection: socket.socket, abi: int) -> None:
        """Leave the supervisor behind; the connection becomes 3, so that a call's descriptors lie above its own."""
        self._abi, self._reader, self._descriptors = abi, frame.Reader(frame.LAUNCHER), list[int]()
        self._walls: dict[str, bool] = {}
        os.dup2(connection.detach(), 3, inheritable=False)
        self._connection = socket.socket(fileno=3)
        os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, stack: None)  # every other signal stays ignored
        os.setsid()
        # Dumpable, or else /proc/self is root's; closed again when the walls are measured.
        for option in walls.CHILD_SUBREAPER, walls.NO_NEW_PRIVS, walls.DUMPABLE:
            walls.prctl(option, 1)
        walls.prctl(walls.PDEATHSIG, signal.SIGKILL)
        self._oom = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        counter = next((path for path in _OOM_COUNTERS if Path(path).exists()), os.devnull)
        self._counter = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> NoReturn:
        """Serve until the supervisor closes the connection."""
        while True:
            for kind, number, payload in self._receive():
                if kind == frame.START:  # a CANCEL that comes now is for the call that has just ended
                    self._serve(number, json.loads(payload), payload)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        # Not socket.recv_fds: it drops the flag, and the descriptors would be inherited.
        data, passed, flags, _ = self._connection.recvmsg(1 << 16, socket.CMSG_SPACE(32), socket.MSG_CMSG_CLOEXEC)
        if not data or flags & socket.MSG_CTRUNC:
            os._exit(0)
        self._descriptors += [number for _, _, found in passed for number in memoryview(found).cast("i")]
        return list(self._reader.feed(data))

    def _send(self, kind: int, number: int, payload: bytes) -> None:
        self._connection.sendall(frame.pack(kind, number, payload))

    def _serve(self, number: int, start: dict[str, Any], request: bytes) -> None:
        descriptors, self._descriptors = self._descriptors, []
        python, code = start["kind"] == "python", "unavailable"
        try:
            self._walls = self._walls or self._build(start["jail"], start["cpu_s"])
            if python:  # its request, sealed, and memory for its result
                descriptors += [os.memfd_create(name, _SEALABLE) for name in ("request", "result")]
                os.write(descriptors[-2], request)
                os.lseek(descriptors[-2], 0, os.SEEK_SET)
                fcntl.fcntl(descriptors[-2], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
            begun, kills, code = time.monotonic_ns(), self._oom_kills(), "arguments"
            process = self._begin(start, descriptors)
        except (OSError, ValueError, IndexError) as error:
            code = "unavailable" if getattr(error, "errno", 0) in _CEILINGS else code
            fault = {"code": code, "reason": f"cannot be started: {error}"[:2000]}
            self._send(frame.FAULT, number, frame.encode(fault))
            return
        self._send(frame.STARTED, number, frame.encode({"walls": self._walls}))
        status, usage = self._wait(number, process, begun)
        result = os.pread(descriptors[-1], start["result"] + 1, 0) if python else b""
        ended = _judge(start, status, usage, len(result), status != 0 and self._oom_kills() > kills)
        for descriptor in descriptors:
            os.close(descriptor)
        if result and ended["kind"] == "exited":
            self._send(frame.RESULT, number, result)
        self._send(frame.ENDED, number, frame.encode(ended))

    def _build(self, jail: dict[str, Any], cpu_s: int) -> dict[str, bool]:
        """Put up the walls, then prove them. Raises OSError, ValueError."""
        walls.confine(self._abi, jail)
        # The CPU limit is inherited, so that nobody changes another's limits. NPROC would count per uid: never used.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (jail["file_size"], jail["file_size"]))
        resource.setrlimit(resource.RLIMIT_NOFILE, (jail["open_files"], jail["open_files"]))
        walls.load_filter(jail["seccomp"])
        measured = walls.measure(self._abi, jail)
        walls.prctl(walls.DUMPABLE, 0)
        if jail["open_files"] < _LEAST_FILES or not all(measured.values()):
            raise ValueError(f"fewer than {_LEAST_FILES} open files, or a wall does not hold: {measured}")
        return measured

    def _begin(self, start: dict[str, Any], descriptors: list[int]) -> int:
        """Start the call's first process; a bare name is looked up in the image's PATH. Raises OSError, ValueError."""
        argv: list[str] = _PYTHON if start["kind"] == "python" else start.get("argv", [])
        environment: dict[str, str] = start.get("environment", {})
        moves = list(enumerate(descriptors if start.get("stdin") else [self._null, *descriptors]))
        os.write(self._oom, _TOOL_OOM_SCORE)  # inherited by the child; ours goes back below
        try:
            if start["isolation"] == "call" and self._abi >= 6:
                return _fork_nested(argv, environment, moves, self._abi)
            files = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in moves]
            return os.posix_spawnp(argv[0], argv, environment, file_actions=files, setsid=True, setsigdef=_SIGNALS)
        finally:
            os.write(self._oom, _OWN_OOM_SCORE)

    def _wait(self, number: int, process: int, begun: int) -> tuple[int, dict[str, int]]:
        """Until nothing of the call is left: the status of its first process, and what all of them used."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        while not (ended := [found for found in _reap(os.WNOHANG) if found[0] == process]):
            for ready in select.select([self._connection.fileno(), self._wake], [], [])[0]:
                if ready == self._wake:
                    os.read(self._wake, 4096)
                elif any(kind == frame.CANCEL and call == number for kind, call, _ in self._receive()):
                    _kill_scope()
        wall = (time.monotonic_ns() - begun) // 1000
        _kill_scope()
        left, after = sum(1 for _ in _reap(0)), resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
        usage = {"cpu_user_us": int(cpu[0] * 1e6), "cpu_system_us": int(cpu[1] * 1e6), "leftover": left}
        return ended[0][1], {**usage, "max_rss_kib": ended[0][2].ru_maxrss, "wall_us": wall}

    def _oom_kills(self) -> int:
        """How often the kernel has killed in this container for memory; 0 where no counter can be seen."""
        found = re.search(rb"^oom_kill (\d+)", os.pread(self._counter, 4096, 0), re.MULTILINE)
        return int(found[1]) if found else 0


def _judge(start: dict[str, Any], status: int, usage: dict[str, int], result: int, oom: bool) -> dict[str, Any]:
    """How the call ended by itself."""
    code, used = os.waitstatus_to_exitcode(status), usage["cpu_user_us"] + usage["cpu_system_us"]
    kind, reason = "exited", ""
    if oom:
        kind, reason = "oom", "the kernel ended a process at the sandbox's memory ceiling"
    elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= start["cpu_s"] * 1_000_000):
        kind, reason = "timed_out", f"cpu time: more than {start['cpu_s']} s"
    elif result > start["result"]:
        kind, reason = "output_capped", f"the result is longer than {start['result']} bytes"
    return {"kind": kind, "reason": reason, "usage": usage, "exit_code" if code >= 0 else "signal": abs(code)}


def _reap(options: int) -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Ended processes: those there are with WNOHANG, all there will be without."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.wait4(-1, options))[0]:
            yield found


def _kill_scope() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _fork_nested(argv: list[str], environment: dict[str, str], moves: list[tuple[int, int]], abi: int) -> int:
    answer, report = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            for target, source in moves:
                os.dup2(source, target)
            walls.confine(abi)
            os.execvpe(argv[0], argv, environment)  # noqa: S606 (running the tool is what this is for)
        except BaseException as error:
            os.write(report, str(getattr(error, "errno", EINVAL)).encode())
        finally:
            os._exit(127)
    os.close(report)
    failure = os.read(answer, 16)
    os.close(answer)
    if failure:
        raise OSError(int(failure), os.strerror(int(failure)), argv[0])
    return child
