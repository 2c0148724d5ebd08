"""A socket that never blocks whoever sends, and a bell that wakes whoever waits at it.

What the kernel gave or took is recorded inside the C call that moved it (`extend` of a `map`), before a signal's
handler can raise: an interrupt anywhere neither loses a byte nor sends one twice. Holds no lock: see `link.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import time
from io import FileIO

from runner.client.core import END, PIECE, Core

_PIECE = (PIECE,)
_QUIET = (sockets.MSG_NOSIGNAL,)  # a program may have set SIGPIPE to kill it
_RING = (1).to_bytes(8, "little")


class Endpoint:
    """Bytes from the socket into a core's `inbox`, and from its `outbox` into the socket."""

    def __init__(self, core: Core, socket: sockets.socket) -> None:
        self.broken = False  # the daemon reads no more
        self._core = core
        self._socket = socket
        self._sending = b""  # taken from the outbox
        self._sent: list[int] = []  # bytes of it that the kernel took
        self._bell = FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")
        self._bell_number = self._bell.fileno()
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._watched = 0  # events of the socket that the poll object knows

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    def backlog(self) -> bool:
        """Whether the kernel has not taken all there is to send."""
        return bool(self._sending or self._core.outbox)

    def flush(self) -> None:
        """Send what the kernel takes now."""
        core = self._core
        while self._sending or core.outbox:
            if self._sent:
                self._sending, self._sent = self._sending[self._sent[0] :], []
            elif not self._sending:
                self._sending, core.outbox = b"".join(core.outbox), []
            else:
                try:
                    self._sent.extend(map(self._socket.send, (self._sending,), _QUIET))
                except BlockingIOError:
                    return
                except OSError:  # nobody is there; why, is in what it sent last
                    self._sending, core.outbox, self.broken = b"", [], True
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(sockets.SHUT_RDWR)

    def listen(self, deadline: float | None, above: bool) -> bool:
        """Wait for bytes, for room to send or for the bell, and take the bytes. Returns False when `deadline` passed.

        For one thread at a time; `above` says that it is in a signal's handler, over a `listen` of its own."""
        watched = select.POLLIN | select.POLLOUT if self._sending or self._core.outbox else select.POLLIN
        poll = self._poll
        if above:  # the one below may be in its call
            poll = select.poll()
            poll.register(self._socket, watched)
        elif watched != self._watched:
            self._watched = 0  # unknown, until the call is done
            poll.register(self._socket, watched)
            self._watched = watched
        events = poll.poll() if deadline is None else poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for descriptor, event in events:
            if descriptor == self._bell_number:
                self._bell.read(8)
            elif event & ~select.POLLOUT:
                self._read()
        return bool(events)

    def _read(self) -> None:
        inbox = self._core.inbox
        try:
            inbox.extend(map(self._socket.recv, _PIECE))
        except BlockingIOError:
            pass
        except OSError:
            inbox.append(END)

    def ring(self) -> None:
        """Wake whoever listens. From the thread that may close it only, or under its lock."""
        if not self._bell.closed:
            self._bell.write(_RING)

    def close(self) -> None:
        """Let go of the socket. Does nothing the second time."""
        self._socket.close()
        self._bell.close()
