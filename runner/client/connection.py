"""A connection driven by an event loop.

A raw protocol, because every frame passes here (14 µs a hop where streams take 30), and one with a buffer of its own:
asyncio's takes 256 KiB from the system for every read, which costs more than all that is done with it. Pings are
answered here, so a connection lives while nobody awaits anything, as long as its loop runs.
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets

from runner.client.core import END, HANDSHAKE_S, PIECE, Core, Make, Ready
from runner.client.credentials import Identity
from runner.client.errors import no_daemon, refused
from runner.client.exchange import Exchange
from runner.model import Chunk
from runner.wire.agent import SessionFacts


class Connection(asyncio.BufferedProtocol):
    """See the module. Made by `Connection.open`; used in its loop only."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[asyncio.Future[None], Ready] = {}
        self._arriving = memoryview(bytearray(PIECE))
        self._paused = False  # the daemon does not read

    @classmethod
    async def open(
        cls, identity: Identity, facts: SessionFacts, socket: str | os.PathLike[str] | sockets.socket
    ) -> Connection:
        """Connect, prove possession, and be welcomed. Raises `CallError`s: `Unavailable` without a daemon,
        `Unauthenticated` with a token it does not take, `ProtocolError` with another version."""
        loop = asyncio.get_running_loop()
        connection = cls(Core(identity, facts))
        core = connection.core
        try:
            if isinstance(socket, sockets.socket):
                await loop.create_unix_connection(lambda: connection, sock=socket)
            else:
                await loop.create_unix_connection(lambda: connection, os.fspath(socket))
        except OSError as error:
            raise no_daemon(socket, error) from error
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await connection.until(lambda: core.welcome is not None or core.lost is not None)
            if core.lost is not None:
                raise core.lost
        except TimeoutError:
            connection.abort()
            raise refused("unavailable", f"the daemon did not finish the handshake in {HANDSHAKE_S:g} s") from None
        except BaseException:
            connection.abort()
            raise
        return connection

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._arriving

    def buffer_updated(self, nbytes: int) -> None:
        self.core.inbox.append(bytes(self._arriving[:nbytes]))
        self._digest()

    def connection_lost(self, exc: Exception | None) -> None:
        self.core.inbox.append(END)
        self._digest()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # --- waiting ---

    async def until(self, ready: Ready) -> None:
        """Wait until `ready()`, which must hold once the connection is lost."""
        while not ready():
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = ready
            try:
                await future
            finally:
                del self._waiting[future]

    def _digest(self) -> None:
        core = self.core
        core.receive()
        if core.outbox:
            self._push()
        if core.lost is not None:
            self.abort()
        self._wake()

    def _wake(self) -> None:
        for future, ready in self._waiting.items():
            if not future.done() and ready():
                future.set_result(None)

    def _push(self) -> None:
        """Send what is queued; nothing when the connection is gone."""
        frames = self.core.outbox
        if frames:
            self.core.outbox = []
            if self._transport is not None:
                self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _room(self) -> bool:
        return not self._paused or self.core.lost is not None

    # --- what callers ask ---

    async def begin(self, exchange: Exchange, make: Make) -> None:
        """Send a request. Raises as `Core.begin`; nothing was sent then."""
        if self._paused:
            await self.until(self._room)
        self.core.begin(exchange, make)
        self._push()

    async def next_chunk(self, exchange: Exchange) -> Chunk | None:
        """The next piece of output; None at the call's end, however that is. Asking again grants more credit."""
        self.core.settle(exchange)
        self._push()
        await self.until(exchange.readable)
        return self.core.take(exchange)

    async def write_stdin(self, exchange: Exchange, data: bytes) -> bool:
        """Send as credit allows. Returns whether all of it was sent: not, when the call ended first."""
        view = memoryview(data)
        while view:
            await self.until(exchange.writable)
            if exchange.ended():
                return False
            view = view[self.core.stdin(exchange, view) :]
            self._push()
            if self._paused:
                await self.until(self._room)
        return True

    async def close_stdin(self, exchange: Exchange) -> None:
        """End of input, once the call is accepted."""
        await self.until(exchange.accepted)
        self.core.close_stdin(exchange)
        self._push()

    def cancel(self, exchange: Exchange) -> None:
        """Ask for the call's end; its last answer still comes."""
        self.core.cancel(exchange)
        self._push()

    def ignore(self, exchange: Exchange) -> None:
        """Let the call's output pass."""
        self.core.ignore(exchange)
        self._push()

    def abandon(self, exchange: Exchange) -> None:
        """The caller is gone: cancel the call unless it lives without one, and let its output pass."""
        self.core.abandon(exchange)
        self._push()

    async def until_durable(self, position: int) -> None:
        """Wait until the entry at `position` is on disk. Raises when the connection is lost before."""
        await self.until(lambda: self.core.durable >= position or self.core.lost is not None)
        if self.core.durable < position:
            self.core.check()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Say bye and close. Calls under way that are not detached are cancelled by that."""
        if self._transport is None or self.core.lost is not None:
            return
        self.core.bye()
        self._push()
        self._wake()
        self._transport.close()
        await asyncio.sleep(0)
