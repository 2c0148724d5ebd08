"""Answers of one request, under its number: paced by the client's credit and by its socket."""

from __future__ import annotations

import asyncio
from typing import Protocol

from runner.gate.calls import Finished, Running
from runner.model import Chunk
from runner.wire import agent


class Connection(Protocol):
    """What a reply needs of its connection."""

    writable: asyncio.Event
    closed: bool
    owed: int

    def room(self, number: int) -> int:
        """Output bytes that the client can take for this number now."""

    def send(self, message: agent.FromDaemon) -> None:
        """Queue a message."""


class RequestReply:
    """Answers of one request, under its number. Implements `runner.gate.calls.Reply`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._room = asyncio.Event()
        self.running: Running | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody reads the answers any more."""
        return self._connection.closed

    def follows(self, running: Running) -> None:
        """This request's credit, stdin and cancel steer that call."""
        self.running = running

    async def accepted(self, call: str, *, replayed: bool) -> None:
        """The call is decided and recorded."""
        self._connection.send(agent.Accepted(number=self._number, call=call, replayed=replayed))

    async def output(self, chunk: Chunk) -> None:
        """One chunk, in as many pieces as the client's credit asks for; waits for credit and for the socket."""
        sent = 0
        while sent < len(chunk.data) and not self.gone:
            await self._connection.writable.wait()
            room = self._connection.room(self._number)
            if not room:
                self._room.clear()
                await self._room.wait()
                continue
            piece = chunk.data[sent : sent + room]
            self._connection.send(
                agent.Output(number=self._number, stream=chunk.stream, offset=chunk.offset + sent, data=piece)
            )
            sent += len(piece)

    async def result(self, call: str, finished: Finished) -> None:
        """The acknowledgement."""
        receipt = finished.receipt
        self._connection.send(
            agent.Result(
                number=self._number,
                call=call,
                outcome=finished.outcome,
                receipt=receipt.digest,
                position=receipt.position,
                durable=receipt.durable,
                value=finished.value,
                stdout_bytes=finished.stdout,
                stderr_bytes=finished.stderr,
            )
        )
        if not receipt.durable:
            self._connection.owed = max(self._connection.owed, receipt.position)

    def stdin_credit(self, count: int) -> None:
        """The tool has room."""
        self._connection.send(agent.StdinCredit(number=self._number, bytes=count))

    def forward(self, message: agent.Stdin | agent.Credit | agent.Cancel) -> None:
        """Steering from the client."""
        self._room.set()
        running = self.running
        if running is None:
            return
        if isinstance(message, agent.Credit):
            running.credit(message.bytes)
        elif isinstance(message, agent.Stdin):
            running.stdin(message.data, eof=message.eof)
        else:
            running.cancel("cancelled", "the client cancelled it")

    def abandon(self) -> None:
        """The client is gone: its call is cancelled and sealed, unless it is detached."""
        self._room.set()
        if self.running is not None and not self.running.detach:
            self.running.cancel("cancelled", "the client went away")
