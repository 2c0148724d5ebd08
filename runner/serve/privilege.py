"""What a process gives up before it reads a byte of anybody: users, groups, network, new privileges, descriptors."""

from __future__ import annotations

import ctypes
import fcntl
import grp
import os
import pwd
import resource
import socket
import struct
import sys
from pathlib import Path

from runner.errors import refuse

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 0x1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def require_root() -> None:
    """Refuse to go on without root: users, namespaces and sockets need it."""
    if os.geteuid() != 0:
        raise refuse(
            "host", "runner serve must be started by root", next_step="run it with sudo, or as a system service"
        )


def user_id(name: str) -> tuple[int, int]:
    """uid and gid of a user of the daemon. Raises `RunnerError` (host) when it does not exist."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise refuse("host", f"there is no user `{name}`", next_step="run scripts/setup, or useradd -r it") from None
    return found.pw_uid, found.pw_gid


def group_id(name: str) -> int:
    """gid of a group. Raises `RunnerError` (host) when it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise refuse("host", f"there is no group `{name}`", next_step="run scripts/setup, or groupadd -r it") from None


def leave_network() -> None:
    """Move into a new, empty network namespace (no interface is up). The caller must be single-threaded root."""
    if _libc().unshare(_CLONE_NEWNET) != 0:
        raise refuse("host", f"unshare(CLONE_NEWNET): {os.strerror(ctypes.get_errno())}")


def loopback_up() -> None:
    """Bring `lo` up in this network namespace: 127.0.0.1 answers. Needs root."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s16x", b"lo")))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def listen_on_loopback(port: int) -> socket.socket:
    """A listener on 127.0.0.1 of this network namespace, for egress to answer."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def lock_memory() -> bool:
    """Keep this process's memory out of the swap area, page by page as it is touched. Needs root; lasts after it.
    False where the host does not allow it."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return False
    return bool(_libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)


def no_new_privileges() -> None:
    """No program that this process starts can gain privileges (set-uid bits, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def harden() -> None:
    """No new privileges for this process and what it starts, no core files, no /proc/PID/mem for its user."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def drop_to(user: str, groups: tuple[int, ...] = ()) -> None:
    """Become `user` for good, then check that root cannot be had back. Imports must be done before this."""
    uid, gid = user_id(user)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise refuse("host", f"could not become `{user}`")


def interpreter_readable(user: str) -> None:
    """Refuse when `user` could not read this interpreter: a child under a 0700 home would die without a word.

    Walks from the interpreter and the standard library up to the root, by mode bits as the kernel would."""
    uid, gid = user_id(user)
    for start in (Path(sys.prefix), Path(sys.executable).resolve(), Path(os.__file__).resolve()):
        for place in (start, *start.parents):
            status = place.stat()
            if status.st_uid == uid:
                allowed = status.st_mode & 0o500
            elif status.st_gid == gid:
                allowed = status.st_mode & 0o050
            else:
                allowed = status.st_mode & 0o005
            if not allowed & (0o111 if place.is_dir() else 0o444):
                raise refuse(
                    "host",
                    f"user `{user}` cannot read the interpreter: {place} is closed to it",
                    next_step="install the environment outside of a private home, e.g. with scripts/setup",
                )


def clear_environment(keep: tuple[str, ...] = ()) -> None:
    """Keep only what the interpreter and the log need, and `keep`."""
    for name in list(os.environ):
        if name not in ("PATH", "LANG", "LC_ALL", "TZ", *keep):
            del os.environ[name]
