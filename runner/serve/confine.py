"""The system calls that egress gives up: the one process that reads hostile bytes and has a route to the outside."""

from __future__ import annotations

import errno

import pyseccomp

_CLONE_THREAD = 0x00010000
_NO_PROGRAMS = (
    *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
    *("listen", "unshare", "setns", "mount", "bpf", "io_uring_setup", "userfaultfd", "perf_event_open", "keyctl"),
)


def no_programs() -> None:
    """From now on this process, and every thread of it, can neither start a program nor make a process, trace another
    one, or listen. Whoever parses hostile bytes with a route to the outside needs none of these."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in _NO_PROGRAMS:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    # Threads are made by clone with CLONE_THREAD; glibc asks clone3 first, whose flags no filter can read.
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.load()
