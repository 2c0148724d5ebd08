"""The walls a launcher puts around itself, and the proof that they stand: rlimits, Landlock, seccomp.

Every wall can only take away. `measure` then attempts one forbidden act per wall: what counts is the refusal,
not the call that asked for it. Numbers are from the kernel's uapi headers (landlock.h, prctl.h, seccomp.h).
"""

from __future__ import annotations

import base64
import ctypes
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from errno import EACCES, EAFNOSUPPORT, ENOSYS, EPERM, EROFS

_libc = ctypes.CDLL(None, use_errno=True)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_SECCOMP = {"x86_64": 317, "aarch64": 277}

PDEATHSIG, DUMPABLE, CHILD_SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38  # prctl options
_NEW_USER = 0x10000000  # CLONE_NEWUSER
_AF_VSOCK = 40

# Filesystem rights by bit; the last index each Landlock ABI knows, so that a ruleset handles all of them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_ALL_RIGHTS = 16  # since ABI 5
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15  # what a rule on a non-directory may hold
_READ = _READ_FILE | _READ_DIR
_MAKE_DEVICES = 1 << 6 | 1 << 11  # MAKE_CHAR, MAKE_BLOCK: nobody gets these
_WRITE = (_READ | _WRITE_FILE | _TRUNCATE | 0x3FF0 | 1 << 13) & ~_MAKE_DEVICES
_NET = 0b11  # BIND_TCP, CONNECT_TCP (ABI 4)
_SCOPED = 0b11  # ABSTRACT_UNIX_SOCKET, SIGNAL (ABI 6)

ABSTRACT_PROBE = b"\0runner-wall"  # held by PID 1, so that a launcher can prove that it cannot reach it


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def landlock_abi() -> int:
    """The Landlock ABI that this kernel speaks and this process may use, 0 for none."""
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError:
        return 0


def _ruleset(rights: int, net: int, scoped: int) -> int:
    attributes = struct.pack("=QQQ", rights, net, scoped)
    return _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))


def _allow(ruleset: int, path: str, rights: int) -> None:
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _ON_FILES
        _syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("=Qi", rights, target), ctypes.c_uint(0))
    finally:
        os.close(target)


def confine(read: Sequence[str], write: Sequence[str], execute: Sequence[str], abi: int) -> None:
    """A Landlock domain of its own: `read` folders may be read, `write` read and changed, `execute` read and run;
    nothing else, no TCP, and from ABI 6 no signal or abstract socket leaves it. Raises OSError, also for a path
    that is not there: a rule that cannot be made is never left out."""
    rights = (1 << _RIGHTS.get(abi, _ALL_RIGHTS)) - 1
    ruleset = _ruleset(rights, _NET if abi >= 4 else 0, _SCOPED if abi >= 6 else 0)
    try:
        for paths, wanted in ((read, _READ), (write, _WRITE), (execute, _READ | _EXECUTE)):
            for path in paths:
                _allow(ruleset, path, wanted & rights)
        _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def confine_scope() -> None:
    """A nested domain that adds one thing: no signal leaves it, not even to the launcher. Raises OSError."""
    ruleset = _ruleset(0, 0, _SCOPED)
    _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def limit(open_files: int, file_size: int, cpu_s: int) -> None:
    """Per-process ceilings. CPU time is the launcher's own limit too, inherited: the tool cannot raise it, and no
    process ever needs to change another's limits. RLIMIT_NPROC is never used: it counts per uid, not per call."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load_filter(program: str) -> None:
    """Narrow the container's seccomp filter by a BPF program in base64; "" adds nothing. Raises OSError, ValueError."""
    if not program:
        return
    code = base64.b64decode(program, validate=True)
    if not code or len(code) % 8:
        raise ValueError("the seccomp program is not a list of 8-byte instructions")
    _syscall(_SECCOMP[os.uname().machine], ctypes.c_uint(1), ctypes.c_uint(0), ctypes.byref(_Program(len(code) // 8, code)))


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError as error:
        return error.errno in (EACCES, EPERM, EROFS, ENOSYS, EAFNOSUPPORT)
    return False


def _write(path: str, flags: int = 0) -> Callable[[], object]:
    return lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)


def _socket(act: Callable[[socket.socket], object], family: int = socket.AF_INET) -> Callable[[], object]:
    def attempt() -> None:
        with socket.socket(family, socket.SOCK_DGRAM if family == socket.AF_UNIX else socket.SOCK_STREAM) as made:
            act(made)

    return attempt


def measure(abi: int, write: Sequence[str]) -> dict[str, bool]:
    """Attempt one forbidden act per wall; the answer says of each whether it was refused. Each act would succeed,
    or fail in another way, if its wall were missing; so the launcher is still dumpable while it measures."""
    acts: dict[str, Callable[[], object]] = {
        "write_tool_code": _write("/run/tools/.wall", os.O_CREAT),
        "write_oom_score": _write("/proc/self/oom_score_adj"),
        "read_supervisor": lambda: os.open("/proc/1/environ", os.O_RDONLY | os.O_CLOEXEC),
        "make_user_namespace": lambda: _unshare(_NEW_USER),
        "open_vsock": _socket(lambda made: None, _AF_VSOCK),
    }
    for folder in ("/workspace", "/tmp"):  # noqa: S108 (the sandbox's own tmpfs)
        if folder not in write:
            acts["write_" + folder[1:]] = _write(folder + "/.wall", os.O_CREAT)
    if abi >= 4:
        acts["connect_tcp"] = _socket(lambda made: made.connect(("127.0.0.1", 9)))
        acts["bind_tcp"] = _socket(lambda made: made.bind(("127.0.0.1", 0)))
    if abi >= 6:
        acts["signal_supervisor"] = lambda: os.kill(1, 0)
        acts["connect_abstract"] = _socket(lambda made: made.connect(ABSTRACT_PROBE), socket.AF_UNIX)
    return {name: _refused(act) for name, act in acts.items()}


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
