"""A connected socket as two directions that can be awaited, and TLS over one.

A call's end must be felt at once by everything that passes bytes for it, so each link can be aborted from outside:
synchronously, with whatever the kernel had not sent yet thrown away. What waits on it then fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol

PIECE = 64 << 10  # bytes of one read where they are looked at; bulk relays bring a larger buffer of their own
_NO_LINGER = struct.pack("ii", 1, 0)


class Stream(Protocol):
    """What both kinds of link offer."""

    async def read(self, size: int = PIECE) -> bytes:
        """Some bytes; b"" at the end. Raises `OSError` when the peer, or the call, is gone."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Every byte, as fast as the peer takes them."""

    async def end(self) -> None:
        """Nothing more will be written."""

    def abort(self) -> None:
        """Gone, at once. Idempotent."""

    def fresh(self) -> bool:
        """Whether the peer has neither ended nor said anything that was not read."""


class Link:
    """A non-blocking socket. One task may read and one may write."""

    def __init__(self, sock: socket.socket, on_closed: Callable[[Link], object] = lambda _: None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._on_closed = on_closed
        self.closed = False
        self.silent = False  # whether it was aborted because no byte passed
        self.partner: Link | None = None  # of a link upstream: the sandbox's, for which it was made
        self.moved = self._loop.time()  # when a byte last passed, either way

    async def read(self, size: int = PIECE) -> bytes:
        """Some bytes; b"" at the end."""
        while True:
            self._alive()
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            else:
                self.moved = self._loop.time()
                return data

    async def read_into(self, room: memoryview) -> int:
        """Some bytes into `room`; 0 at the end."""
        while True:
            self._alive()
            try:
                count = self._sock.recv_into(room)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            else:
                self.moved = self._loop.time()
                return count

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Every byte, as fast as the peer takes them."""
        rest = memoryview(data)
        while rest:
            self._alive()
            try:
                sent = self._sock.send(rest)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            else:
                self.moved = self._loop.time()
                rest = rest[sent:]

    async def connect(self, address: tuple[str, int]) -> None:
        """Connect to a literal address."""
        try:
            self._sock.connect(address)
        except BlockingIOError:
            await self._ready(self._loop.add_writer, self._loop.remove_writer)
            self._alive()
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect") from None

    def fresh(self) -> bool:
        """Whether the peer has neither ended nor said anything that was not read."""
        if self.closed:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def end(self) -> None:
        """Nothing more will be written: what was written still arrives, then the peer reads the end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def no_delay(self) -> None:
        """Send what is written at once: whoever writes here writes whole pieces."""
        with contextlib.suppress(OSError):  # a test's socket pair has no such option
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Closed; what was written still arrives."""
        self._close()

    def abort(self) -> None:
        """Gone, at once: what the kernel has not sent yet never is."""
        if not self.closed:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._close()

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)  # before the number can be another socket's
        self._loop.remove_writer(self._fd)
        self._sock.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ConnectionAbortedError("the link was closed"))
        self._on_closed(self)

    def _alive(self) -> None:
        if self.closed:
            raise ConnectionAbortedError("the link was closed")

    async def _ready(self, watch: Callable[..., object], unwatch: Callable[[int], object]) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        watch(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if not self.closed:
                unwatch(self._fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class TlsLink:
    """TLS over a link. `ahead` are bytes of the peer that were read from it already."""

    def __init__(
        self, link: Link, context: ssl.SSLContext, *, name: str | None = None, ahead: bytes = b"", server: bool = False
    ) -> None:
        self._link = link
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._in.write(ahead)
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=name)
        self._turn = asyncio.Lock()  # records must leave in the order they were made

    async def handshake(self) -> None:
        """Raises `ssl.SSLError` when the peer, or its certificate, is not acceptable; `OSError` when it is gone."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    @property
    def protocol(self) -> str | None:
        """What ALPN chose."""
        return self._tls.selected_alpn_protocol()

    async def read(self, size: int = PIECE) -> bytes:
        """Some bytes; b"" when the peer said that it is done. Raises `OSError` when it went without a word."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {error.reason or 'cut'}") from None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Every byte, as fast as the peer takes them."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._tls.write(rest[:PIECE]) :]
            except ssl.SSLWantReadError:  # a renegotiation: not offered, so the peer asks for what it may not have
                raise ConnectionResetError("TLS: the peer wants a new handshake") from None
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {error.reason or 'cut'}") from None
            await self._flush()

    async def end(self) -> None:
        """Say that nothing more is written."""
        with contextlib.suppress(OSError):  # ssl.SSLError is one: the peer need not answer
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()
            await self._link.end()

    def abort(self) -> None:
        """Gone, at once."""
        self._link.abort()

    def fresh(self) -> bool:
        """Whether the peer has neither ended nor said anything that was not read."""
        return not self._in.pending and not self._tls.pending() and self._link.fresh()

    async def _fill(self) -> None:
        data = await self._link.read(PIECE)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    async def _flush(self) -> None:
        if self._out.pending:
            async with self._turn:
                await self._link.write(self._out.read())
