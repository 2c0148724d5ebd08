"""The walls a launcher puts around itself, and the proof that they stand: rlimits, Landlock, seccomp.

A wall can only take away. `measure` then attempts one forbidden act per wall: what counts is the refusal, not the
call that asked for it. Numbers are from the kernel's uapi headers (landlock.h, openat2.h, prctl.h, seccomp.h).
"""

from __future__ import annotations

import binascii
import ctypes
import os
import socket
import stat
import struct
from errno import EACCES, EAFNOSUPPORT, ENOSYS, EPERM, EROFS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 437, 444, 445, 446  # the same on every architecture
_SECCOMP = {"x86_64": 317, "aarch64": 277}
PDEATHSIG, DUMPABLE, CHILD_SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38  # prctl options
_NEW_USER, _AF_VSOCK, _NO_SYMLINKS = 0x10000000, 40, 0x04

# Landlock's filesystem rights are bits 0 to 15: how many each ABI knows, so that a ruleset handles all of them.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}
_EXECUTE, _WRITE_FILE, _READ, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2 | 1 << 3, 1 << 14, 1 << 15
_MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # folder, file, socket, FIFO, symlink; devices for nobody
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _MAKE | 1 << 4 | 1 << 5 | 1 << 13  # and remove, rename across folders
_ON_FILES = _EXECUTE | _WRITE_FILE | 1 << 2 | _TRUNCATE | _IOCTL_DEV  # what a rule on a non-directory may hold
_TRIM_THRESHOLD = -1  # of mallopt(3)
_NO_TCP, _CONNECT_TCP, _SCOPED = 0b11, 0b10, 0b11  # BIND and CONNECT (ABI 4); abstract sockets and signals (ABI 6)
ABSTRACT_PROBE = b"\0runner-wall"  # held by PID 1, so that a launcher can prove that it cannot reach it
_MADE_BY_TOOLS = ("/workspace/", "/tmp/", "/dev/shm/")  # below these anything may be swapped for a link


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _syscall(number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def landlock_abi() -> int:
    """The Landlock ABI that this kernel speaks and this process may use, 0 for none."""
    return max(0, int(_libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def trim() -> None:
    """Give memory that was freed back to the kernel."""
    _libc.malloc_trim(ctypes.c_size_t(0))


def hold(size: int) -> None:
    """Keep this much of freed memory: a piece of output would be mapped anew, page by page, where another one lay."""
    _libc.mallopt(_TRIM_THRESHOLD, size)


class Ruleset:
    """A Landlock domain to be entered: `read` may be read, `write` read and changed, `execute` read and run; nothing
    else, no TCP but to the port `connect`, and no signal or abstract socket leaves it. Without `jail`, the scope alone.
    Raises OSError, also for a path that is missing, or that tools can replace and that leads through a link.

    Whoever holds its descriptor can widen what is entered later: no tool may."""

    def __init__(self, abi: int, jail: dict[str, Any] | None = None) -> None:
        rights = (1 << _KNOWN.get(abi, 16)) - 1 if jail else 0
        attributes = struct.pack("=QQQ", rights, _NO_TCP if jail and abi >= 4 else 0, _SCOPED if abi >= 6 else 0)
        made = _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
        self.descriptor, self.places = made, dict[str, tuple[int, int]]()  # what stood for each path tools can replace
        allowed: dict[str, int] = {}
        for group, added in ("read", _READ), ("write", _WRITE), ("execute", _READ | _EXECUTE):
            allowed |= {path: allowed.get(path, 0) | added for path in (jail[group] if jail else ())}
        try:
            if jail and jail.get("connect"):  # refused by the kernel before ABI 4: all of TCP would be open there
                port = struct.pack("=QQ", _CONNECT_TCP, jail["connect"])
                _syscall(_ADD_RULE, ctypes.c_int(made), ctypes.c_int(2), port, ctypes.c_uint(0))
            for path, wanted in allowed.items():
                self._allow(path, wanted & rights)
        except OSError:
            os.close(self.descriptor)
            raise

    def _allow(self, path: str, wanted: int) -> None:
        made = path.startswith(_MADE_BY_TOOLS)
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _NO_SYMLINKS if made else 0)
        target = _syscall(_OPENAT2, ctypes.c_int(-1), os.fsencode(path), how, ctypes.c_size_t(len(how)))
        try:
            status = os.fstat(target)
            if made:
                self.places[path] = status.st_dev, status.st_ino
            rule = struct.pack("=Qi", wanted if stat.S_ISDIR(status.st_mode) else wanted & _ON_FILES, target)
            _syscall(_ADD_RULE, ctypes.c_int(self.descriptor), ctypes.c_int(1), rule, ctypes.c_uint(0))
        finally:
            os.close(target)

    def stands(self) -> bool:
        """Whether the folders that tools made are still the ones that it names."""
        try:
            found = {path: os.lstat(path) for path in self.places}
        except OSError:
            return False
        return all((found[path].st_dev, found[path].st_ino) == place for path, place in self.places.items())


def enter(ruleset: int) -> None:
    """Be confined by it from now on, and close it."""
    _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def load_filter(program: str) -> None:
    """Narrow the container's seccomp filter by a BPF program in base64; "" adds nothing. Raises OSError, ValueError."""
    code = ctypes.create_string_buffer(binascii.a2b_base64(program.encode(), strict_mode=True))
    wanted = struct.pack("@HP", len(code) // 8, ctypes.addressof(code))  # struct sock_fprog
    if program:
        _syscall(_SECCOMP[os.uname().machine], ctypes.c_uint(1), ctypes.c_uint(0), wanted)


def measure(abi: int, *, writable: bool) -> dict[str, bool]:
    """Attempt one forbidden act per wall: was it refused? Each would succeed, or fail in another way, were its wall
    missing; that is why the launcher is still dumpable while it measures. `writable`: the workspace may be written."""
    new = os.O_WRONLY | os.O_CREAT
    acts: dict[str, Callable[[], object]] = {
        "write_tool_code": lambda: os.open("/run/tools/.wall", new),
        "write_oom_score": lambda: os.open("/proc/self/oom_score_adj", os.O_WRONLY),
        "read_supervisor": lambda: os.open("/proc/1/environ", os.O_RDONLY),
        "make_user_namespace": lambda: _checked(_libc.unshare(_NEW_USER)),
        "open_vsock": lambda: socket.socket(_AF_VSOCK),
    }
    if not writable:
        acts["write_workspace"] = lambda: os.open("/workspace/.wall", new)
    if abi >= 4:
        acts["connect_tcp"] = lambda: socket.socket().connect(("127.0.0.1", 9))
        acts["bind_tcp"] = lambda: socket.socket().bind(("127.0.0.1", 0))
    if abi >= 6:
        acts["signal_supervisor"] = lambda: os.kill(1, 0)
        acts["connect_abstract"] = lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(ABSTRACT_PROBE)
    measured = dict.fromkeys(acts, False)
    for name, act in acts.items():
        try:
            act()
        except OSError as error:
            measured[name] = error.errno in (EACCES, EPERM, EROFS, ENOSYS, EAFNOSUPPORT)
    return measured
