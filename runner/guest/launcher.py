"""One launcher: a process that walls itself in, proves it, and then serves one call at a time.

Tools inherit the walls. The launcher is the subreaper of everything a call starts; when the call ends, however it
ends, `kill(-1, SIGKILL)` reaches exactly its signal scope, and only when nothing is left does it report. It never
reads what a python tool is called with, nor what a call in a nested scope is: those descriptors pass through.

`isolation = "launcher"`: the tool lives in the launcher's own domain, and the launcher is kept. `"call"`: it lives in
a nested scope, from which it cannot signal its launcher either, and both are discarded. A python tool is not started
but forked, from a launcher that has imported what the tool will. Whatever is forked is forked ahead: when nothing
of an earlier call is left, and before anything of its own is known.
"""

from __future__ import annotations

# Not `signal`: it makes each of 62 numbers in a mask an enum member, and to touch one after a fork copies its page.
import _signal as signal  # type: ignore[import-not-found] # private, and in no stub
import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
import sys
import time
from errno import EAGAIN, EINVAL, EMFILE, ENFILE, ENOMEM

from runner.guest import frame, walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from runner.guest import python_tool

PYTHON = ["/usr/bin/python3", "-I", "-S", "-B", __file__.replace("launcher.py", "python_tool.py")]
CANCEL = signal.SIGUSR2  # from the supervisor: end the call. From the tool: it ends its own
_EVENTS = {signal.SIGCHLD, CANCEL}
_BRIEF_S = 0.002  # a call that ends within this is reported in one message
_LEAST_FILES = 32  # the launcher's own descriptors and a call's must fit
_OWN_OOM_SCORE, _TOOL_OOM_SCORE = b"750", b"1000"  # out of memory, the tool goes first
_CEILINGS = (EAGAIN, EMFILE, ENFILE, ENOMEM)  # not the fault of who named the program
_ALL = signal.valid_signals()
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python; programs expect them as they are
_MOST_IMPORTS = 100
_ACT_WHEN_IMPORTED = {"antigravity", "this", "__main__", "idlelib", "turtledemo"}


class Launcher:
    """The state of a launcher process between `fork` and `_exit`."""

    def __init__(self, abi: int, passed: list[int]) -> None:
        """Leave the parent behind. `passed`: the connection, memory for a python tool's compiled code, the ruleset.
        They become 3, 4 and 5, so that what a python tool's call is given never has the numbers 3 and 4."""
        for number, descriptor in enumerate(passed, 3):  # ascending, none below what it becomes
            os.dup2(descriptor, number)
            os.set_inheritable(number, False)
        self._ruleset = 2 + len(passed)
        os.closerange(self._ruleset + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, 3)
        self._abi, self._reader, self._descriptors = abi, frame.Reader(frame.TO_LAUNCHER), list[int]()
        self._built = False  # whether its walls stand
        self._next: tuple[int, socket.socket] | None = None  # the next call's process, waiting
        self._tool: python_tool.Prepared | None = None
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # every signal is blocked; two are waited for
        os.setsid()
        # Dumpable, or else /proc/self is root's; closed again when the walls are measured.
        for option in walls.CHILD_SUBREAPER, walls.NO_NEW_PRIVS, walls.DUMPABLE:
            walls.prctl(option, 1)
        walls.prctl(walls.PDEATHSIG, signal.SIGKILL)
        self._oom = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(self._oom, _OWN_OOM_SCORE)

    def run(self) -> NoReturn:
        """Build the walls that are asked for first, then serve until the supervisor closes the connection."""
        while True:
            for kind, number, payload in self._receive():
                if kind == frame.BUILD:
                    self._build(*payload.decode().split("\n"))
                elif self._built:
                    self._serve(number, payload)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        # Not socket.recv_fds: it drops the flag, and the descriptors would be inherited.
        data, passed, flags, _ = self._connection.recvmsg(1 << 16, socket.CMSG_SPACE(32), socket.MSG_CMSG_CLOEXEC)
        if not data or flags & socket.MSG_CTRUNC:
            os._exit(0)
        self._descriptors += [number for _, _, found in passed for number in memoryview(found).cast("i")]
        return list(self._reader.feed(data))

    def _fault(self, number: int, code: str, error: Exception) -> None:
        reason = f"cannot be started: {error}"[:2000]
        self._connection.sendall(frame.pack(frame.FAULT, number, frame.encode({"code": code, "reason": reason})))

    def _build(
        self, isolation: str, folder: str, cpu_s: str, open_files: str, file_size: str, writable: str, seccomp: str
    ) -> None:
        """Put up the walls, prove them, and make ready for the first call. `folder` holds a python tool's code. Not as
        JSON: what a fork does not touch need not be copied."""
        self._python, self._nested = bool(folder), isolation == "call" and self._abi >= 6
        # Without a signal scope a launcher's kill(-1) reaches all others, and what is forked would hold what PID 1 has
        # read: there, everything is started by exec.
        self._forked = self._abi >= 6 and (self._python or self._nested)
        try:
            walls.enter(self._ruleset)
            # The CPU limit is inherited: nobody changes another's limits. NPROC would count per uid: never used.
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_size), int(file_size)))
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(open_files), int(open_files)))
            walls.load_filter(seccomp)
            measured = walls.measure(self._abi, writable=bool(writable))
            walls.prctl(walls.DUMPABLE, 0)
            if int(open_files) < _LEAST_FILES or not all(measured.values()):
                raise ValueError(f"fewer than {_LEAST_FILES} open files, or a wall does not hold: {measured}")
            if self._forked and self._python:
                self._preload(folder)
        except (OSError, ValueError) as error:
            self._fault(0, "unavailable", error)
            return
        self._built = True
        self._connection.sendall(frame.pack(frame.BUILT, 0, "\n".join([str(os.getpid()), *measured]).encode()))
        self._prepare()

    def _preload(self, folder: str) -> None:
        """Import what the tool's main.py imports, from the image alone, behind the walls."""
        from runner.guest import python_tool

        known = set(sys.modules)
        if not fcntl.fcntl(4, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            self._compile(folder)
        names, _, code = _content(4).partition(b"\0")
        for name in names.decode("ascii", "replace").split("\n")[:_MOST_IMPORTS]:
            top = name.partition(".")[0]
            if (top in sys.stdlib_module_names and top not in _ACT_WHEN_IMPORTED) or name == "runner.guest.beneath":
                with contextlib.suppress(Exception):  # the call itself will tell
                    __import__(name)
        self._tool = python_tool.Prepared(folder, code, sys.modules.keys() - known)
        gc.collect()
        gc.freeze()  # a call's collector need not touch what was here before it

    def _compile(self, folder: str) -> None:
        """A process that ends again reads and compiles main.py; nothing of it is run, and nobody else parses it. What
        it made is kept for every launcher of this code."""
        from runner.guest import python_tool

        made = os.memfd_create("code", os.MFD_CLOEXEC)
        if not os.fork():
            try:
                python_tool.compile_main(folder, made)
            finally:
                os._exit(1)
        list(_reap(0))
        _kill_scope()
        with contextlib.suppress(PermissionError):  # another launcher was first
            if os.pwrite(4, _content(made), 0):  # what did not compile here may do so in wider walls
                fcntl.fcntl(4, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        os.close(made)

    def _prepare(self) -> None:
        """Fork the next call's process ahead of it, where it is to be forked. Failing that, the call will say so."""
        if self._forked:
            with contextlib.suppress(OSError):
                self._next = self._fork()

    def _fork(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        os.write(self._oom, _TOOL_OOM_SCORE)  # inherited by the child
        try:
            child = os.fork()
            if not child:
                ours.close()  # or else it would not see its launcher go
                self._become(theirs)
        finally:
            os.write(self._oom, _OWN_OOM_SCORE)
        theirs.close()
        return child, ours

    def _become(self, launcher: socket.socket) -> NoReturn:
        """The next call's process: waits for its descriptors (standard input, output, error, request, result)."""
        try:
            os.setsid()
            if self._nested:
                walls.enter(walls.Ruleset(self._abi).descriptor)
            data, passed, _, _ = launcher.recvmsg(1, socket.CMSG_SPACE(32), socket.MSG_CMSG_CLOEXEC)
            if not data:  # discarded
                os._exit(0)
            found = list(memoryview(passed[0][2]).cast("i"))
            for target in range(3):
                os.dup2(found[target], target)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if self._tool:
                self._become_python(self._tool, launcher, *found[3:5])
            for number in _IGNORED:
                signal.signal(number, signal.SIG_DFL)
            start = json.loads(_content(found[3]))
            argv: list[str] = start.get("argv", [])
            os.execvpe(argv[0], argv, start.get("environment", {}))  # noqa: S606 (running the tool is what this is for)
        except BaseException as error:
            launcher.send(str(getattr(error, "errno", None) or EINVAL).encode())
        finally:
            os._exit(127)

    def _become_python(self, tool: python_tool.Prepared, launcher: socket.socket, request: int, result: int) -> None:
        for held in self._connection, launcher:  # their numbers will be somebody else's
            held.detach()
        os.dup2(request, 3, inheritable=False)
        os.dup2(result, 4, inheritable=False)
        os.closerange(5, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # the launcher's too: it knows by that
        walls.prctl(walls.DUMPABLE, 1)  # as after an exec: its own /proc/self is its own
        tool.run()

    def _serve(self, number: int, request: bytes) -> None:
        """One call, from its descriptors to its report."""
        descriptors, self._descriptors = self._descriptors, []
        begun, code = time.monotonic_ns(), "arguments"
        try:
            while signal.sigpending():  # whatever an earlier call has sent us
                signal.sigwait(_ALL)
            process, waiting = self._begin(descriptors, request)
            status, rss, user, system = self._wait(number, process, waiting)
        except (OSError, ValueError, IndexError) as error:
            _kill_scope()
            list(_reap(0))
            self._fault(number, "unavailable" if getattr(error, "errno", 0) in _CEILINGS else code, error)
            return
        wall = time.monotonic_ns() - begun
        _kill_scope()
        left = 0
        for _, _, used in _reap(0):
            left, user, system = left + 1, user + used.ru_utime, system + used.ru_stime
        report = frame.REPORT.pack(status, int(user * 1e6), int(system * 1e6), rss, wall // 1000, left)
        self._connection.sendall(frame.pack(frame.ENDED, number, report))
        for descriptor in descriptors:
            os.close(descriptor)
        if not self._nested:
            self._prepare()

    def _begin(self, descriptors: list[int], request: bytes) -> tuple[int, socket.socket | None]:
        """Start the call's first process; a bare name is looked up in the image's PATH. Raises OSError, ValueError."""
        if self._forked:
            process, waiting = self._next or self._fork()
            self._next = None
            try:
                socket.send_fds(waiting, [b"."], descriptors)
            except OSError:  # it did not live to see its call
                process, waiting = self._fork()
                socket.send_fds(waiting, [b"."], descriptors)
            return process, waiting
        start = json.loads(request or _content(descriptors[3]))
        argv: list[str] = PYTHON if self._python else start.get("argv", [])
        environment: dict[str, str] = start.get("environment", {})
        files = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(descriptors)]
        os.write(self._oom, _TOOL_OOM_SCORE)
        try:
            return os.posix_spawnp(
                argv[0], argv, environment, file_actions=files, setsid=True, setsigmask=(), setsigdef=_IGNORED
            ), None
        finally:
            os.write(self._oom, _OWN_OOM_SCORE)

    def _wait(self, number: int, process: int, waiting: socket.socket | None) -> tuple[int, int, float, float]:
        """Until the first process ends: its status and RSS, and the CPU of all that ended. Raises OSError when it
        could not be made the call's program."""
        told, user, system = False, 0.0, 0.0
        event = signal.sigtimedwait(_EVENTS, _BRIEF_S)
        if waiting:
            failure = waiting.recv(16)  # nothing, once it is what it is to be
            waiting.close()
            if failure:
                raise OSError(int(failure), os.strerror(int(failure)))
        while True:
            if event and event.si_signo == CANCEL:
                _kill_scope()
            for found, status, used in _reap(os.WNOHANG):
                user, system = user + used.ru_utime, system + used.ru_stime
                if found == process:
                    return status, used.ru_maxrss, user, system
            if not told:
                self._connection.sendall(frame.pack(frame.STARTED, number))
                told = True
            event = signal.sigwaitinfo(_EVENTS)


def _content(held: int) -> bytes:
    return os.pread(held, os.fstat(held).st_size, 0)


def _reap(options: int) -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Ended processes: those there are with WNOHANG, all there will be without."""
    try:
        while (found := os.wait4(-1, options))[0]:
            yield found
    except ChildProcessError:
        return


def _kill_scope() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
