"""One connection to the daemon: the handshake, numbers, frames in and out, and what its loss means.

A raw `asyncio.Protocol`, because every frame passes here (14 µs a hop where streams take 30). Pings are answered
here, so a connection lives while nobody awaits anything, as long as its loop runs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket as sockets
from typing import Any

from runner.client.calls import Exchange
from runner.client.credentials import Identity
from runner.client.errors import CallError, raised, refused
from runner.config import PROTOCOL_VERSION
from runner.errors import Refusal, RunnerError
from runner.wire import agent
from runner.wire.frame import HEADER, Decoder, FrameReader, encode

MAX_INCOMING = 16 << 20  # one frame of the daemon's: a list of tools, or the largest structured result
HANDSHAKE_S = 15.0  # the daemon gives up on us after ten

# The daemon is trusted not to send duplicate keys; what tools wrote lies inside as bytes.
_DECODER: Decoder[agent.FromDaemon] = Decoder(agent.FromDaemon, elements=0, depth=0, scan_first=False)


class Connection(asyncio.Protocol):
    """See the module. Made by `Connection.open`."""

    def __init__(self, identity: Identity, facts: agent.SessionFacts) -> None:
        self.welcome: agent.Welcome | None = None
        self.tools_digest = ""
        self.durable = -1  # every entry up to here is on disk
        self._identity = identity
        self._facts = facts
        self._reader = FrameReader(MAX_INCOMING)
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._lost: CallError | None = None
        self._leaving = False
        self._news = asyncio.Event()  # welcome, durable or loss
        self._drained = asyncio.Event()
        self._drained.set()

    @classmethod
    async def open(
        cls, identity: Identity, facts: agent.SessionFacts, socket: str | os.PathLike[str] | sockets.socket
    ) -> Connection:
        """Connect, prove possession, and be welcomed. Raises `CallError`s: `Unavailable` without a daemon,
        `Unauthenticated` with a token it does not take, `ProtocolError` with another version."""
        loop = asyncio.get_running_loop()
        connection = cls(identity, facts)
        try:
            if isinstance(socket, sockets.socket):
                await loop.create_unix_connection(lambda: connection, sock=socket)
            else:
                await loop.create_unix_connection(lambda: connection, os.fspath(socket))
        except OSError as error:
            raise _no_daemon(socket, error) from error
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await connection._until(lambda: connection.welcome is not None)
        except TimeoutError:
            connection.abort()
            raise refused("unavailable", f"the daemon did not finish the handshake in {HANDSHAKE_S:g} s") from None
        except BaseException:
            connection.abort()
            raise
        return connection

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._handle(_DECODER.decode(body))
        except RunnerError as error:
            self._lose(error if isinstance(error, CallError) else raised(error.refused))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(refused("unavailable", "the connection to the daemon is closed", next_step="connect again"))

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    # --- from the daemon ---

    def _handle(self, message: agent.FromDaemon) -> None:
        number = getattr(message, "number", 0)
        if number:
            exchange = self._exchanges.get(number)
            if exchange is None:
                raise refused("protocol", f"the daemon answered number {number}, which is not under way")
            if exchange.feed(message):
                del self._exchanges[number]
        elif isinstance(message, agent.Ping):
            self.send(agent.Pong(token=message.token))
        elif isinstance(message, agent.Durable):
            self.durable = max(self.durable, message.position)
            self._news.set()
        elif isinstance(message, agent.ToolsChanged):
            self.tools_digest = message.digest
        elif isinstance(message, agent.Challenge):
            self._prove(message)
        elif isinstance(message, agent.Welcome):
            self.welcome, self.tools_digest = message, message.tools_digest
            self._news.set()
        elif isinstance(message, agent.Closing):
            self._lose(raised(message.refusal))
            self.abort()
        elif isinstance(message, agent.TaskEnded):
            self._lose(refused("task_ended", message.reason or "the task is over"))
            self.abort()
        elif isinstance(message, agent.Bye):
            self._leaving = True

    def _prove(self, challenge: agent.Challenge) -> None:
        if self._identity.challenged:
            raise refused("protocol", "the daemon sent a second challenge")
        if PROTOCOL_VERSION not in challenge.versions:
            theirs = ", ".join(map(str, challenge.versions))
            raise refused("version", f"this client speaks version {PROTOCOL_VERSION}, the daemon {theirs}")
        proof = self._identity.prove_hello(challenge)
        self.send(agent.Hello(version=PROTOCOL_VERSION, chain=self._identity.chain, proof=proof, session=self._facts))

    def _lose(self, why: CallError) -> None:
        if self._lost is not None:
            return
        self._lost = why
        for exchange in self._exchanges.values():
            exchange.fail(_lost_call(exchange, why))
        self._exchanges.clear()
        self._news.set()
        self._drained.set()

    # --- to the daemon ---

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, None while it lives."""
        return self._lost

    def send(self, message: agent.FromClient) -> None:
        """Queue one message; nothing when the connection is gone."""
        if self._transport is not None and self._lost is None:
            self._transport.write(encode(message))

    async def writable(self) -> None:
        """Wait while the daemon does not read."""
        await self._drained.wait()

    async def ask(self, make: Any, *, window: int = 0, detached: bool = False, keyed: bool = False) -> Exchange:
        """Send the request that `make(number)` builds and follow it. Raises `Unavailable` when nothing was sent."""
        await self._drained.wait()
        if self._lost is not None:
            raise self._lost
        if self._leaving:
            raise refused("unavailable", "the daemon is shutting down", next_step="connect again when it is back")
        assert self.welcome is not None
        number = next(self._numbers)
        window = min(window or self.welcome.call_window, self.welcome.call_window)
        frame = encode(make(number, window))
        if len(frame) - HEADER > self.welcome.max_frame:
            raise refused(
                "arguments",
                f"the call needs a frame of {len(frame) - HEADER} bytes",
                allowed=f"{self.welcome.max_frame} bytes",
                next_step="send large inputs by stdin or `put`",
            )
        exchange = Exchange(self, number, window, detached=detached, keyed=keyed)
        self._exchanges[number] = exchange
        assert self._transport is not None
        self._transport.write(frame)
        return exchange

    async def _until(self, ready: Any) -> None:
        while not ready():
            if self._lost is not None:
                raise self._lost
            self._news.clear()
            await self._news.wait()

    async def until_durable(self, position: int) -> None:
        """Wait until the entry at `position` is on disk. Raises when the connection is lost before."""
        await self._until(lambda: self.durable >= position)

    def prove_call(self, tool: str, arguments: dict[str, Any]) -> str:
        """A fresh proof for one call."""
        return self._identity.prove_call(tool, arguments)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Say bye and close. Calls under way that are not detached are cancelled by that."""
        if self._transport is None or self._lost is not None:
            return
        self.send(agent.Bye())
        self._lose(refused("unavailable", "this client closed the connection", next_step="connect again"))
        self._transport.close()
        await asyncio.sleep(0)


def _no_daemon(socket: Any, error: OSError) -> CallError:
    reason = f"no daemon answers at {socket}: {error.strerror or error}"
    step = "start it with `runner serve`, or name its socket in RUNNER_SOCKET"
    if isinstance(error, PermissionError):
        step = "run as a user of the agents' group that the daemon's [peers] names"
    return refused("unavailable", reason, next_step=step)


def _lost_call(exchange: Exchange, why: CallError) -> CallError:
    """What the loss of the connection means for one request.

    The daemon sends `Accepted` before a call's process exists, so a call that was not accepted has not begun
    as far as this side can see. Only an idempotency key makes certain that a repeat runs nothing twice."""
    if why.code in ("revoked", "task_ended", "unauthenticated"):
        return raised(why.refused, exchange.call)
    if exchange.call:
        return raised(
            Refusal(
                code="interrupted",
                reason=f"{why.reason}; call {exchange.call} had begun and may have had effects",
                next_step="connect again; `result(call)` answers for a detached call",
            ),
            exchange.call,
        )
    again = "connect again and repeat the call"
    return raised(
        Refusal(
            code="unavailable",
            reason=f"{why.reason}, and no answer had come",
            next_step=again if exchange.keyed else f"{again}; with an idempotency_key it never runs twice",
            retryable=exchange.keyed,
        )
    )
