"""Answers of one request, under its number: paced by the client's credit and by its socket."""

from __future__ import annotations

import asyncio
from typing import Protocol

from runner.gate.calls import Finished, Running
from runner.model import Chunk
from runner.wire import agent


class Connection(Protocol):
    """What a reply needs of its connection."""

    @property
    def writable(self) -> bool:
        """Whether its socket takes more; every reply is woken when that changes."""

    @property
    def closed(self) -> bool:
        """Whether the peer is gone."""

    def owes(self, position: int) -> None:
        """The client was given a result whose entry is not on disk yet: tell it when it is."""

    def room(self, number: int) -> int:
        """Output bytes that the client can take for this number now."""

    def send(self, message: agent.FromDaemon, *, more: bool = False) -> None:
        """Queue a message. With `more`, another one follows at once: they may leave together."""

    def flush(self) -> None:
        """What waits for the next message leaves now."""


class RequestReply:
    """Answers of one request, under its number. Implements `runner.gate.calls.Reply`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._room = asyncio.Event()
        self._hastened = False
        self._deaf = False  # output was dropped: sending more would leave a gap
        self._early_credit, self._early_eof, self._early_cancel = 0, False, False  # came before there was a call
        self.running: Running | None = None  # the call this request began
        self._followed: Running | None = None
        self._cancels = True

    @property
    def gone(self) -> bool:
        """Whether nobody reads the answers any more."""
        return self._connection.closed

    def steers(self, running: Running) -> None:
        """This request began that call: its credit, stdin and cancel steer it, and its loss cancels it."""
        self.running = running
        self._catch_up()

    def follows(self, running: Running, *, cancels: bool = True) -> None:
        """This request follows a call that another one began: its cancel ends the call, its loss does not."""
        self._followed, self._cancels = running, cancels
        self._catch_up()

    def _catch_up(self) -> None:
        if self._early_credit and self.running is not None:
            self.running.credit(self._early_credit)
        if self._early_eof and self.running is not None:
            self.running.stdin(b"", eof=True)
        if self._early_cancel:
            self.forward(agent.Cancel(number=self._number))
        if self.gone:
            self.abandon()

    async def accepted(self, call: str, *, replayed: bool) -> None:
        """The call is decided and recorded."""
        self._connection.send(agent.Accepted(number=self._number, call=call, replayed=replayed))

    async def output(self, chunk: Chunk, *, last: bool = False) -> int:
        """One chunk, in as many pieces as the client's credit asks for; waits for credit and for the socket."""
        sent = 0
        while sent < len(chunk.data) and not self.gone and not self._deaf:
            room = self._connection.room(self._number) if self._connection.writable else 0
            if not room:
                if self._hastened:
                    self._deaf = True
                    break
                self._connection.flush()  # the client gives credit for what it has
                self._room.clear()
                await self._room.wait()
                continue
            piece = chunk.data[sent : sent + room]
            self._connection.send(
                agent.Output(
                    number=self._number,
                    stream=chunk.stream,
                    offset=chunk.offset + sent,
                    data=piece,
                    encoding=chunk.encoding,
                ),
                more=last,
            )
            sent += len(piece)
        return sent

    def wake(self) -> None:
        """The socket takes more, or nothing any more."""
        self._room.set()

    def hasten(self) -> None:
        """Wait for the client no more: what it has no room for now is dropped."""
        self._hastened = True
        self._room.set()

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
                filtered=finished.filtered,
                labels=finished.labels,
                sources=finished.sources,
                marked=finished.marked,
            )
        )
        if not receipt.durable:
            self._connection.owes(receipt.position)

    def stdin_credit(self, count: int) -> None:
        """The tool has room."""
        self._connection.send(agent.StdinCredit(number=self._number, bytes=count))

    def forward(self, message: agent.Stdin | agent.Credit | agent.Cancel) -> None:
        """Steering from the client."""
        self._room.set()
        running = self.running or self._followed
        if running is None:
            self._early(message)
        elif isinstance(message, agent.Cancel):
            if self._cancels:
                running.cancel("cancelled", "the client cancelled it")
        elif running is not self.running:
            return  # another request paces and feeds it
        elif isinstance(message, agent.Credit):
            running.credit(message.bytes)
        else:
            running.stdin(message.data, eof=message.eof)

    def _early(self, message: agent.Stdin | agent.Credit | agent.Cancel) -> None:
        if isinstance(message, agent.Credit):
            self._early_credit += message.bytes
        elif isinstance(message, agent.Stdin):
            self._early_eof = self._early_eof or message.eof  # data cannot come: there is no credit for it yet
        else:
            self._early_cancel = True

    def abandon(self) -> None:
        """The client is gone: its call is cancelled and sealed, unless it is detached."""
        self._room.set()
        if self._followed is not None:
            self._followed.wake()
        if self.running is not None and self.running.detach:
            self.running.stdin(b"", eof=True)  # nobody is left who could feed it
        elif self.running is not None:
            self.running.cancel("cancelled", "the client went away")
