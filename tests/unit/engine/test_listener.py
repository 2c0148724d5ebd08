"""The listener inside another network namespace: where it lies, who reaches it, when it is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.engine.listener import listen
from runner.errors import RunnerError

pytestmark = pytest.mark.root

# A process in a namespace of its own whose loopback is up; it connects to each port it is told, and says what came.
_INSIDE = """
import ctypes, fcntl, socket, struct, sys
assert ctypes.CDLL(None).unshare(0x40000000) == 0
sock = socket.socket()
fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))
print("up", flush=True)
for line in sys.stdin:
    with socket.socket() as sock:
        sock.settimeout(10)
        try:
            sock.connect(("127.0.0.1", int(line)))
            print(sock.recv(100).decode(), flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""


class Inside:
    """The process and its namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)

    def told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def connect(self, port: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{port}\n")
        self.process.stdin.flush()


@contextmanager
def inside() -> Iterator[Inside]:
    command = [sys.executable, "-I", "-c", _INSIDE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        found = Inside(process)
        try:
            assert found.told() == "up"
            yield found
        finally:
            process.kill()
            os.close(found.pidfd)


def test_it_is_reached_from_inside_and_accepted_outside() -> None:
    with inside() as there, listen(there.process.pid, there.pidfd, 3128) as listener:
        there.connect(3128)
        listener.settimeout(10)
        accepted, peer = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
        assert peer[0] == "127.0.0.1"
        assert there.told() == "hello"
        there.connect(3129)  # the port beside it is not open
        assert there.told() == "ConnectionRefusedError"


def test_it_is_not_reached_from_the_hosts_own_namespace() -> None:
    with inside() as there, listen(there.process.pid, there.pidfd, 3128) as listener:
        port = listener.getsockname()[1]
        with socket.socket() as taken:  # the same number is free out here: it is another loopback
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.2", port))
        # Whoever asked for it has not moved.
        assert Path("/proc/thread-self/ns/net").samefile("/proc/self/ns/net")


def test_closed_it_refuses_at_once_and_its_port_can_be_listened_on_again() -> None:
    with inside() as there:
        listen(there.process.pid, there.pidfd, 3128).close()
        there.connect(3128)
        assert there.told() == "ConnectionRefusedError"
        listen(there.process.pid, there.pidfd, 3128).close()


def test_a_port_that_is_held_and_a_namespace_that_is_gone_are_refusals() -> None:
    with inside() as there:
        pid, pidfd = there.process.pid, os.dup(there.pidfd)
        with listen(pid, pidfd, 3128), pytest.raises(RunnerError) as held:
            listen(pid, pidfd, 3128)
        assert held.value.refused.code == "unavailable"
        assert "3128" in held.value.refused.reason
    try:
        with pytest.raises(RunnerError) as gone:
            listen(pid, pidfd, 3128)
    finally:
        os.close(pidfd)
    assert gone.value.refused.code == "unavailable"
