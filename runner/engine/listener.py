"""A listener on loopback inside a sandbox's network namespace: the one way out that a call has, made from outside.

The namespace has no other interface. Whoever holds the descriptor accepts what connects there, wherever it runs."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from concurrent.futures import Future
from threading import Thread

from runner.errors import refuse

_CLONE_NEWNET = 0x40000000
_BACKLOG = 128  # connections of one call that wait to be accepted

_libc = ctypes.CDLL(None, use_errno=True)


def listen(pid: int, pidfd: int, port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port` where PID 1 of a sandbox is. Blocks for about 0.2 ms.

    Raises `RunnerError` (unavailable) when the sandbox is gone or something of it holds the port."""
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refuse("unavailable", f"the sandbox is gone: {error.strerror}") from error
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):  # it ended meanwhile: the number may have meant another process
            raise refuse("unavailable", "the sandbox is gone")
        made: Future[socket.socket] = Future()
        # A thread of its own that ends in there: one that came back could come back to the wrong place.
        thread = Thread(target=_make, args=(namespace, port, made), name="listener")
        thread.start()
        thread.join()
        return made.result()
    except OSError as error:
        reason = f"no listener on port {port} of the sandbox: {error.strerror}"
        raise refuse("unavailable", reason, retry_after_ms=100) from error
    finally:
        os.close(namespace)


def _make(namespace: int, port: int, made: Future[socket.socket]) -> None:
    try:
        if _libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a call that just ended
            listener.bind(("127.0.0.1", port))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        made.set_result(listener)
    except OSError as error:
        made.set_exception(error)
