"""What the egress benches share: a proxy in this process, and a server and a client in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outside import Outside

_SO_TIMESTAMPNS = 35  # asm-generic/socket.h: `recvmsg` tells when the kernel received what it reads
_FORK = multiprocessing.get_context("fork")  # before any thread is made


@contextlib.contextmanager
def server(serve: Callable[[socket.socket], None], *, threads: bool = False) -> Iterator[int]:
    """A process that serves one connection after the other on loopback, or each in a thread; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if threads:
                threading.Thread(target=one, args=(connection,), daemon=True).start()
            else:
                one(connection)

    process = _FORK.Process(target=run, daemon=True)
    process.start()
    port: int = listener.getsockname()[1]
    listener.close()
    try:
        yield port
    finally:
        process.kill()
        process.join()


class Client:
    """A process that runs what it is asked to, so that its work is not the proxy's."""

    def __init__(self, work: dict[str, Callable[..., Any]]) -> None:
        self._mine, its = _FORK.Pipe()
        self._process = _FORK.Process(target=self._run, args=(its, work), daemon=True)
        self._process.start()
        its.close()

    def _run(self, its: Connection, work: dict[str, Callable[..., Any]]) -> None:
        self._mine.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(EOFError):
            while True:
                name, arguments = its.recv()
                its.send(work[name](*arguments))

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the named piece of work returns."""
        self.begin(name, *arguments)
        return self.finish()

    def begin(self, name: str, *arguments: Any) -> None:
        """Start a piece of work."""
        self._mine.send((name, arguments))

    def finish(self) -> Any:
        """What the work that was begun returns."""
        return self._mine.recv()

    def close(self) -> None:
        """Gone when this returns."""
        self._mine.close()
        self._process.join()


def cpu_us() -> float:
    """Microseconds of CPU that this process, the proxy's, has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1e6


@contextlib.contextmanager
def proxy() -> Iterator[Outside]:
    """The proxy, to be made after every process was forked."""
    made = Outside()
    try:
        yield made
    finally:
        made.close()
