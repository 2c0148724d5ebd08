"""Following one call: as a stream to iterate, or to its end, with stdin pumped beside."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterable, AsyncIterator

from runner.client.calls import CallResult, Input, OnOutput, of_chunks, to_result
from runner.client.connection import Connection
from runner.client.exchange import GATHERED, Exchange
from runner.model import Chunk


async def follow(
    connection: Connection, exchange: Exchange, stdin: Input | None, on_output: OnOutput | None
) -> CallResult:
    """Gather the call's output to its end, with stdin pumped beside."""
    if stdin is None:
        return await collect(connection, exchange, on_output)
    async with feeding(connection, exchange, stdin):
        return await collect(connection, exchange, on_output)


async def collect(
    connection: Connection, exchange: Exchange, on_output: OnOutput | None, kept: list[Chunk] | None = None
) -> CallResult:
    """The call's end, with its output and what is `kept` of it already; `on_output` sees each chunk first."""
    if exchange.output == GATHERED:
        await connection.until(exchange.ended)
        return to_result(exchange, *exchange.gathered())
    kept = [] if kept is None else kept
    while (chunk := await connection.next_chunk(exchange)) is not None:
        kept.append(chunk)
        if on_output is not None:
            waited = on_output(chunk)
            if inspect.isawaitable(waited):
                await waited
    return of_chunks(exchange, kept)


async def detach(connection: Connection, exchange: Exchange, stdin: Input | None) -> CallResult:
    """Wait until the call is accepted and its stdin is sent, then leave it alone."""
    connection.ignore(exchange)
    await connection.until(exchange.accepted)
    call = exchange.accepted_call()
    async with feeding(connection, exchange, stdin) as pump:
        if pump is not None:
            await pump
    return CallResult(call=call, ended=None, replayed=exchange.replayed)


class Stream:
    """A call that is followed. Iterate it once for its chunks; not reading pauses the tool, and no other."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self.call = exchange.accepted_call()  # the daemon's id
        self._connection = connection
        self._exchange = exchange
        self._kept: list[Chunk] = []

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self.next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def next(self) -> Chunk | None:
        """The next piece of output; None when the call has ended."""
        return await self._connection.next_chunk(self._exchange)

    async def write_stdin(self, data: bytes) -> bool:
        """Send bytes to the tool; waits while it does not read. False when the call ended before it took them."""
        return await self._connection.write_stdin(self._exchange, data)

    async def close_stdin(self) -> None:
        """Let the tool read end of file."""
        await self._connection.close_stdin(self._exchange)

    def cancel(self) -> None:
        """Ask for the call's end; `result()` then says `cancelled`."""
        self._connection.cancel(self._exchange)

    async def result(self) -> CallResult:
        """The call's end. Output that was not iterated yet is in it; what was iterated is not kept twice."""
        return await collect(self._connection, self._exchange, None, self._kept)


@contextlib.asynccontextmanager
async def streaming(connection: Connection, exchange: Exchange) -> AsyncIterator[Stream]:
    """Follow a request until the block ends."""
    try:
        await connection.until(exchange.accepted)
        yield Stream(connection, exchange)
    finally:
        connection.abandon(exchange)


@contextlib.asynccontextmanager
async def feeding(
    connection: Connection, exchange: Exchange, source: Input | None
) -> AsyncIterator[asyncio.Task[None] | None]:
    """Pump stdin beside what the block does. When the source fails, the block is cancelled and the failure raised."""
    if source is None:
        yield None
        return
    block = asyncio.current_task()
    assert block is not None
    pump = asyncio.create_task(_feed(connection, exchange, source))

    def failed(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            block.cancel()

    pump.add_done_callback(failed)
    try:
        yield pump
    except asyncio.CancelledError:
        if pump.done() and not pump.cancelled() and pump.exception() is not None:
            block.uncancel()
            await pump  # raises what the source raised
        raise
    finally:
        pump.remove_done_callback(failed)
        pump.cancel()
        await asyncio.wait([pump])


async def _feed(connection: Connection, exchange: Exchange, source: Input) -> None:
    if isinstance(source, bytes):
        await connection.write_stdin(exchange, source)
    elif isinstance(source, AsyncIterable):
        async for piece in source:
            if not await connection.write_stdin(exchange, piece):
                return
    else:
        for piece in source:
            if not await connection.write_stdin(exchange, piece):
                return
    await connection.close_stdin(exchange)
