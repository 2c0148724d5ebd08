"""One launcher: a process that walls itself in, proves it, and then serves one call at a time.

Tools inherit the walls. The launcher is the subreaper of everything a call starts; when the call ends, however it
ends, `kill(-1, SIGKILL)` reaches exactly its signal scope, and only when nothing is left does it report. It
holds no byte of the call's input or output.

`isolation = "launcher"`: the tool is posix_spawned into the launcher's own domain, and the launcher is kept for the
next call. `isolation = "call"`: the tool is forked into a nested scope, from which it cannot signal its launcher
either, and both are discarded after the call.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from errno import E2BIG, EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM
from pathlib import Path
from typing import Any, NoReturn

from runner.guest import frame, walls

PYTHON_TOOL = ["/usr/bin/python3", "-I", "-S", "-B", str(Path(__file__).with_name("python_tool.py"))]
WORKSPACE = "/workspace"
_PATH = "/usr/local/bin:/usr/bin:/bin"
_LEAST_FILES = 32  # the launcher's own descriptors and a call's pipes must fit
_CALLERS_FAULT = (E2BIG, EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM)
_OWN_OOM_SCORE, _TOOL_OOM_SCORE = b"750", b"1000"  # under memory pressure the tool goes first, then the launcher
_SIGNALS = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]


class Refused(Exception):
    """The call's process never existed. `code` is a row of the daemon's table of refusals."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Launcher:
    """The state of a launcher process between `fork` and `_exit`."""

    def __init__(self, connection: socket.socket, abi: int) -> None:
        self._abi = abi
        self._connection = connection
        self._reader = frame.Reader(frame.TO_LAUNCHER)
        self._descriptors: list[int] = []
        self._wake, self._oom, self._null = -1, -1, -1
        self._walls: dict[str, bool] | None = None

    def run(self) -> NoReturn:
        """Serve until the supervisor closes the connection."""
        self._detach()
        while True:
            for kind, number, payload in self._receive():
                if kind == frame.START:  # a CANCEL that comes now is for the call that has just ended
                    self._serve(number, frame.read_json(payload))

    def _detach(self) -> None:
        """Leave everything of the supervisor behind: descriptors, session, signal dispositions."""
        kept = os.dup2(self._connection.fileno(), 3)
        self._connection.detach()
        self._connection = socket.socket(fileno=kept)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > kept:
                with contextlib.suppress(OSError):  # the listing's own descriptor
                    os.close(int(name))
        os.set_inheritable(kept, False)
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(self._null, 0)
        os.dup2(self._null, 1)
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, stack: None)  # every other signal stays ignored
        os.setsid()
        walls.prctl(walls.PDEATHSIG, signal.SIGKILL)
        walls.prctl(walls.CHILD_SUBREAPER, 1)
        walls.prctl(walls.NO_NEW_PRIVS, 1)
        walls.prctl(walls.DUMPABLE, 1)  # else /proc/self belongs to root; closed again when the walls are measured
        self._oom = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(self._oom, _OWN_OOM_SCORE)
        os.chdir(WORKSPACE)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data, descriptors, flags, _ = socket.recv_fds(self._connection, 1 << 16, 8, socket.MSG_CMSG_CLOEXEC)
        if not data or flags & socket.MSG_CTRUNC:
            os._exit(0)
        self._descriptors += descriptors
        return list(self._reader.feed(data))

    def _serve(self, number: int, start: dict[str, Any]) -> None:
        descriptors, self._descriptors = self._descriptors, []
        try:
            if self._walls is None:
                self._build(start["jail"], start["cpu_s"])
            process = self._spawn(start, descriptors)
        except (Refused, OSError, ValueError) as error:
            code = error.code if isinstance(error, Refused) else "unavailable"
            self._send(frame.FAULT, number, {"code": code, "reason": str(error)[:2000]})
            if self._walls is None:
                os._exit(1)
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        begun = time.monotonic_ns()
        self._send(frame.STARTED, number, {"walls": self._walls})
        self._send(frame.ENDED, number, self._wait(number, process, begun))

    def _build(self, jail: dict[str, Any], cpu_s: int) -> None:
        """Put up the walls, then prove them. Raises `Refused`."""
        if jail["open_files"] < _LEAST_FILES:
            raise Refused("unavailable", f"the jail allows {jail['open_files']} open files; a call needs {_LEAST_FILES}")
        try:
            walls.confine(jail["read"], jail["write"], jail["execute"], self._abi)
            walls.limit(jail["open_files"], jail["file_size"], cpu_s)
            walls.load_filter(jail["seccomp"])
        except (OSError, ValueError, KeyError) as error:
            raise Refused("unavailable", f"the walls of this call cannot be built: {error}") from None
        measured = walls.measure(self._abi, jail["write"])
        walls.prctl(walls.DUMPABLE, 0)
        missing = [name for name, refused in measured.items() if not refused]
        if missing:
            raise Refused("unavailable", "a wall does not hold: " + ", ".join(missing))
        self._walls = measured

    def _spawn(self, start: dict[str, Any], descriptors: list[int]) -> int:
        """Start the call's first process. Raises `Refused`."""
        environment = {str(name): str(value) for name, value in start.get("environment", {}).items()}
        argv = PYTHON_TOOL if start["kind"] == "python" else [str(word) for word in start.get("argv", ())]
        program = _find(argv, environment.get("PATH", _PATH))
        standard = descriptors if start.get("stdin") else [self._null, *descriptors]
        begin = _fork_nested if start["isolation"] == "call" and self._abi >= 6 else _spawn
        os.write(self._oom, _TOOL_OOM_SCORE)  # inherited by the child; ours goes back below
        try:
            return begin(program, argv, environment, standard)
        except (OSError, ValueError) as error:
            raise _refusal(argv[0], error) from None
        finally:
            os.write(self._oom, _OWN_OOM_SCORE)

    def _wait(self, number: int, process: int, begun: int) -> dict[str, int | bool]:
        """Until the call's first process has ended or the supervisor says so; then until nothing of it is left."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        tally = _Tally(process)
        while tally.status is None:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif any(kind == frame.CANCEL and call == number for kind, call, _ in self._receive()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(-1, signal.SIGKILL)
            tally.reap(os.WNOHANG)
        ended = time.monotonic_ns()
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        before = tally.reaped
        tally.reap(0)
        return {
            "status": tally.status,
            "wall_us": (ended - begun) // 1000,
            "cpu_user_us": int(tally.user * 1e6),
            "cpu_system_us": int(tally.system * 1e6),
            "max_rss_kib": tally.resident,
            "leftover": tally.reaped - before,
            "spent": time.process_time() >= 0.5,  # the CPU ceiling counts for the launcher too: retire early
        }

    def _send(self, kind: int, number: int, message: dict[str, Any]) -> None:
        self._connection.sendall(frame.pack_json(kind, number, message))


class _Tally:
    """What was reaped: how the first process ended, and what all of them used."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.status: int | None = None
        self.reaped, self.resident, self.user, self.system = 0, 0, 0.0, 0.0

    def reap(self, options: int) -> None:
        """Collect ended processes: those there are with WNOHANG, all there will be without."""
        with contextlib.suppress(ChildProcessError):
            while True:
                process, status, used = os.wait4(-1, options)
                if not process:
                    return
                self.reaped += 1
                self.user += used.ru_utime
                self.system += used.ru_stime
                self.resident = max(self.resident, used.ru_maxrss)
                if process == self._process:
                    self.status = status


def _find(argv: list[str], path: str) -> str:
    """The program that `argv[0]` names, looked up as a shell would. Raises `Refused`."""
    if not argv or not argv[0]:
        raise Refused("arguments", "argv is empty: its first element names the program")
    if "/" in argv[0]:
        return argv[0]
    for folder in path.split(":"):
        candidate = f"{folder}/{argv[0]}"
        if folder.startswith("/") and "\0" not in candidate and os.access(candidate, os.X_OK):
            return candidate
    raise Refused("arguments", f"no program `{argv[0][:200]}` in this sandbox (looked in {path[:500]})")


def _spawn(program: str, argv: list[str], environment: dict[str, str], standard: list[int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(standard)]
    return os.posix_spawn(program, argv, environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_SIGNALS)


def _fork_nested(program: str, argv: list[str], environment: dict[str, str], standard: list[int]) -> int:
    answer, report = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        scoped = 0
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            for target, source in enumerate(standard):
                os.dup2(source, target)
            walls.confine_scope()
            scoped = 1
            os.execve(program, argv, environment)  # noqa: S606 (running the tool is what this is for)
        except BaseException as error:
            os.write(report, b"%d %d" % (scoped, getattr(error, "errno", None) or EINVAL))
        finally:
            os._exit(127)
    os.close(report)
    failure = os.read(answer, 16).split()
    os.close(answer)
    if failure:
        os.waitpid(child, 0)
        code = int(failure[1])
        if failure[0] == b"0":
            raise Refused("unavailable", f"the scope of this call cannot be built: {os.strerror(code)}")
        raise OSError(code, os.strerror(code))
    return child


def _refusal(name: str, error: OSError | ValueError) -> Refused:
    """Whose fault it is that a program did not start: the caller's who named it, or a ceiling's."""
    if not isinstance(error, OSError):
        return Refused("arguments", f"`{name[:200]}` cannot be run: {error}")
    code = "arguments" if error.errno in _CALLERS_FAULT else "unavailable"
    return Refused(code, f"`{name[:200]}` cannot be run: {error.strerror}")


def begin(connection: socket.socket, abi: int) -> NoReturn:
    """Be a launcher, in a process just forked from the supervisor. Never returns and never raises."""
    try:
        Launcher(connection, abi).run()
    except BaseException as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"launcher: {type(error).__name__}: {error}\n")
    finally:
        os._exit(1)
