"""A socketpair between two processes of the house: `wire/` frames, numbered requests, passed descriptors.

A closed channel means the other process ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from runner.errors import RunnerError, refuse
from runner.serve.inbox import Inbox
from runner.wire.frame import encode

_log = logging.getLogger(__name__)
_HIGH_WATER = 1 << 20  # bytes waiting before `send` makes its caller wait
_BATCH = 64  # messages in one system call
_CARRIED = socket.CMSG_SPACE(8 * array("i").itemsize)  # descriptors in one system call

Handler = Callable[[Any, int | None], None]


class Channel:
    """One end. `on_message` gets every message that answers no request, with the descriptor it carried."""

    def __init__(
        self, sock: socket.socket, union: Any, on_message: Handler, *, carriers: tuple[type, ...] = ()
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._inbox = Inbox(union)
        self._on_message = on_message
        self._carriers = carriers
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[memoryview, int | None]] = deque()
        self._queued = 0
        self._blocked = False  # the socket is full: a writer waits for room
        self._flushing = False  # a flush is due when the loop turns
        self._writable = asyncio.Event()
        self._writable.set()
        self._descriptors: deque[int] = deque()
        self._pending: dict[int, asyncio.Future[tuple[Any, int | None]]] = {}
        self._last = 0
        self.closed = asyncio.Event()
        self._loop.add_reader(sock, self._readable)

    def number(self) -> int:
        """A fresh request number."""
        self._last += 1
        return self._last

    def post(self, message: Any, descriptor: int | None = None) -> None:
        """Queue a message without waiting. A descriptor is duplicated by the kernel; ours is closed once sent."""
        if self.closed.is_set():
            if descriptor is not None:
                os.close(descriptor)
            return
        data = encode(message)
        if descriptor is None and not self._out:  # what nearly every message is: alone, and taken whole
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            self._queue(memoryview(data)[sent:], None)
        else:
            self._queue(memoryview(data), descriptor)
        if not self._blocked:
            self._flush()

    def _queue(self, data: memoryview, descriptor: int | None) -> None:
        self._queued += len(data)
        self._out.append((data, descriptor))
        if self._queued > _HIGH_WATER:
            self._writable.clear()

    async def send(self, message: Any) -> None:
        """Queue a message that nobody waits for; wait while too much is queued. It leaves with the next one that is
        posted, at the latest when the loop turns: one system call for what belongs together."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self.closed.is_set():
            return
        self._queue(memoryview(encode(message)), None)
        if not self._blocked and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        if not self._blocked and not self.closed.is_set():
            self._flush()

    async def request(self, message: Any, descriptor: int | None = None) -> tuple[Any, int | None]:
        """Send a numbered message and wait for its answer. Raises `RunnerError` (unavailable) when the peer ends. A
        descriptor is closed here, whatever happens."""
        if self.closed.is_set():
            if descriptor is not None:
                os.close(descriptor)
            raise refuse("unavailable", "a part of the daemon has ended")
        answer: asyncio.Future[tuple[Any, int | None]] = self._loop.create_future()
        self._pending[message.number] = answer
        self.post(message, descriptor)
        try:
            return await answer
        finally:
            if answer.cancelled() or self._pending.get(message.number) is answer:
                self._pending.pop(message.number, None)

    def close(self) -> None:
        """Close this end; every pending request fails. Idempotent."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._writable.set()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, descriptor in self._out:
            if descriptor is not None:
                os.close(descriptor)
        self._out.clear()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(refuse("unavailable", "a part of the daemon has ended"))
                answer.exception()  # retrieved here: an abandoned request is not an unhandled error
        self._pending.clear()

    def _flush(self) -> None:
        while self._out:
            data, descriptor = self._out[0]
            batch = [data]
            if descriptor is None:
                for following, carried in islice(self._out, 1, _BATCH):
                    if carried is not None:
                        break
                    batch.append(following)
            try:
                if descriptor is None:
                    sent = self._sock.sendmsg(batch)
                else:
                    sent = socket.send_fds(self._sock, batch, [descriptor])
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self.close()
                return
            if descriptor is not None:
                os.close(descriptor)
            self._sent(sent)
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._sock)
        if self._queued < _HIGH_WATER // 2:
            self._writable.set()

    def _sent(self, count: int) -> None:
        """Take what the kernel took off the queue; a descriptor went with the first byte."""
        self._queued -= count
        while count:
            data, _ = self._out[0]
            if count < len(data):
                self._out[0] = (data[count:], None)
                return
            count -= len(data)
            self._out.popleft()

    def _readable(self) -> None:
        try:
            count = self._receive() if self._carriers else self._sock.recv_into(self._inbox.room)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not count:
            self.close()
            return
        try:
            for message in self._inbox.take(count):
                try:
                    self._dispatch(message)
                except Exception:  # a defect of ours must not leave the messages behind it unread
                    _log.exception("a %s could not be taken", type(message).__name__)
        except RunnerError as error:
            _log.error("the other process speaks another language: %s", error.refused.line())
            self.close()

    def _receive(self) -> int:
        """Read bytes and the descriptors that came with them."""
        count, carried, _, _ = self._sock.recvmsg_into([self._inbox.room], _CARRIED, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in carried:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(array("i", data[: len(data) - len(data) % 4]))
        return count

    def _dispatch(self, message: Any) -> None:
        descriptor = self._descriptors.popleft() if isinstance(message, self._carriers) and self._descriptors else None
        answer = self._pending.pop(getattr(message, "number", -1), None)
        if answer is None:
            self._on_message(message, descriptor)
        elif not answer.done():
            answer.set_result((message, descriptor))
        elif descriptor is not None:
            os.close(descriptor)
