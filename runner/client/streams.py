"""Following one call: as a stream to iterate, or to its end, with stdin pumped beside."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterable, AsyncIterator

from runner.client.calls import CallResult, Exchange, Input, OnOutput
from runner.model import Chunk


async def follow(exchange: Exchange, stdin: Input | None, on_output: OnOutput | None) -> CallResult:
    """Gather the call's output to its end. When the waiting task is cancelled, so is the call, unless detached."""
    stdout: list[bytes]
    stderr: list[bytes]
    try:
        async with feeding(exchange, stdin):
            if on_output is None:
                stdout, stderr = exchange.collect()
            else:
                stdout, stderr = [], []
                while (chunk := await exchange.next_chunk()) is not None:
                    (stderr if chunk.stream == "stderr" else stdout).append(chunk.data)
                    waited = on_output(chunk)
                    if inspect.isawaitable(waited):
                        await waited
            answer = await exchange.finished()
    except BaseException:
        exchange.abandon()
        raise
    return exchange.to_result(answer, b"".join(stdout), b"".join(stderr))


async def detach(exchange: Exchange, stdin: Input | None) -> CallResult:
    """Wait until the call is accepted and its stdin is sent, then leave it alone."""
    exchange.ignore()
    call = await exchange.accepted()
    async with feeding(exchange, stdin) as pump:
        if pump is not None:
            await pump
    return CallResult(call=call, ended=None, replayed=exchange.replayed)


class Stream:
    """A call that is followed. Iterate it once for its chunks; not reading pauses the tool, and no other."""

    def __init__(self, exchange: Exchange, call: str) -> None:
        self.call = call  # the daemon's id
        self._exchange = exchange
        self._kept: tuple[list[bytes], list[bytes]] = ([], [])

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self.next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def next(self) -> Chunk | None:
        """The next piece of output; None when the call has ended."""
        return await self._exchange.next_chunk()

    async def write_stdin(self, data: bytes) -> bool:
        """Send bytes to the tool; waits while it does not read. False when the call ended before it took them."""
        return await self._exchange.write_stdin(data)

    async def close_stdin(self) -> None:
        """Let the tool read end of file."""
        await self._exchange.close_stdin()

    def cancel(self) -> None:
        """Ask for the call's end; `result()` then says `cancelled`."""
        self._exchange.cancel()

    async def result(self) -> CallResult:
        """The call's end. Output that was not iterated yet is in it; what was iterated is not kept twice."""
        stdout, stderr = self._kept
        async for chunk in self:
            (stderr if chunk.stream == "stderr" else stdout).append(chunk.data)
        answer = await self._exchange.finished()
        return self._exchange.to_result(answer, b"".join(stdout), b"".join(stderr))


@contextlib.asynccontextmanager
async def streaming(exchange: Exchange) -> AsyncIterator[Stream]:
    try:
        yield Stream(exchange, await exchange.accepted())
    finally:
        exchange.abandon()


@contextlib.asynccontextmanager
async def feeding(exchange: Exchange, source: Input | None) -> AsyncIterator[asyncio.Task[None] | None]:
    """Pump stdin beside what the block does. When the source fails, the block is cancelled and the failure raised."""
    if source is None:
        yield None
        return
    block = asyncio.current_task()
    assert block is not None
    pump = asyncio.create_task(_feed(exchange, source))

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


async def _feed(exchange: Exchange, source: Input) -> None:
    if isinstance(source, bytes):
        await exchange.write_stdin(source)
    elif isinstance(source, AsyncIterable):
        async for piece in source:
            if not await exchange.write_stdin(piece):
                return
    else:
        for piece in source:
            if not await exchange.write_stdin(piece):
                return
    await exchange.close_stdin()
