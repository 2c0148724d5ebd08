"""A socketpair between two processes of the house: `wire/` frames, numbered requests, passed descriptors.

Both ends are ours, so frames are bounded but not scanned. A closed channel means the other process ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from runner.errors import RunnerError, refuse
from runner.wire.frame import Decoder, FrameReader, encode

_log = logging.getLogger(__name__)
MAX_INTERNAL_FRAME = 64 << 20  # a whole catalogue travels as one message
_HIGH_WATER = 1 << 20  # bytes waiting before `send` makes its caller wait
_BATCH = 64  # messages in one system call

Handler = Callable[[Any, int | None], None]


class Channel:
    """One end. `on_message` gets every message that answers no request, with the descriptor it carried."""

    def __init__(
        self, sock: socket.socket, union: Any, on_message: Handler, *, carriers: tuple[type, ...] = ()
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder: Decoder[Any] = Decoder(union, elements=1 << 30, depth=64, scan_first=False)
        self._reader = FrameReader(MAX_INTERNAL_FRAME)
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
        self._queue(message, descriptor)
        if not self._blocked:
            self._flush()

    def _queue(self, message: Any, descriptor: int | None) -> None:
        data = memoryview(encode(message))
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
        self._queue(message, None)
        if not self._blocked and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        if not self._blocked and not self.closed.is_set():
            self._flush()

    async def request(self, message: Any) -> tuple[Any, int | None]:
        """Send a numbered message and wait for its answer. Raises `RunnerError` (unavailable) when the peer ends."""
        if self.closed.is_set():
            raise refuse("unavailable", "a part of the daemon has ended")
        answer: asyncio.Future[tuple[Any, int | None]] = self._loop.create_future()
        self._pending[message.number] = answer
        self.post(message)
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
            data, descriptors, _, _ = socket.recv_fds(self._sock, 1 << 18, 8)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._descriptors.extend(descriptors)
        if not data:
            self.close()
            return
        try:
            for body in self._reader.feed(data):
                message = self._decoder.decode(body)
                try:
                    self._dispatch(message)
                except Exception:  # a defect of ours must not leave the messages behind it unread
                    _log.exception("a %s could not be taken", type(message).__name__)
        except RunnerError as error:
            _log.error("the other process speaks another language: %s", error.refused.line())
            self.close()

    def _dispatch(self, message: Any) -> None:
        descriptor = self._descriptors.popleft() if isinstance(message, self._carriers) and self._descriptors else None
        answer = self._pending.pop(getattr(message, "number", -1), None)
        if answer is None:
            self._on_message(message, descriptor)
        elif not answer.done():
            answer.set_result((message, descriptor))
        elif descriptor is not None:
            os.close(descriptor)
