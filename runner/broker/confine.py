"""`python -m runner.broker.confine PROGRAM ARGUMENT …`: become a program that has no network and dies with the broker.

The broker's network namespace has one listener, egress's: this closes it to the program. Sockets of paths stay, within
what the broker's user may open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import sys

import pyseccomp

_PR_SET_PDEATHSIG = 1
_MEMORY = 2 << 30
_FILES = 256
_FILE_BYTES = 16 << 20


def main() -> None:
    """Confine this process, then be the program."""
    argv = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() == 1:
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    filter_.add_rule(pyseccomp.ERRNO(errno.EACCES), "socket", pyseccomp.Arg(0, pyseccomp.NE, int(socket.AF_UNIX)))
    filter_.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "io_uring_setup")  # opens sockets without that call
    filter_.load()
    os.execve(argv[0], argv, dict(os.environ))  # noqa: S606 - the operator's own program, without a shell


if __name__ == "__main__":
    main()
