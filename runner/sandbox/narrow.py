"""A tool profile's `seccomp_deny` as a BPF program: allow everything, refuse these. Loaded by a launcher on top of
the container's filter; of two filters the stricter answer counts, so this one can only take away. Pure."""

from __future__ import annotations

import errno
import functools
import os

import pyseccomp

from runner.errors import refuse


@functools.cache
def compile_deny(syscalls: tuple[str, ...]) -> bytes:
    """The program, in the kernel's own format, for this machine's ABI; a call through another ABI kills the process.

    b"" for no system calls. Raises `RunnerError` (profile) for a name that this machine does not know."""
    if not syscalls:
        return b""
    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in syscalls:
        try:
            made.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        except (OSError, ValueError) as error:
            raise refuse(
                "profile", f"seccomp_deny: this machine knows no system call {name!r}", next_step="see `man 2 syscalls`"
            ) from error
    return _export(made)


def _export(made: pyseccomp.SyscallFilter) -> bytes:
    """libseccomp writes programs to a descriptor only: one in memory, so that no disk is touched."""
    with os.fdopen(os.memfd_create("bpf", os.MFD_CLOEXEC), "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
