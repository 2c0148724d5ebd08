"""Bytes both ways between two streams, as fast as the slower takes them, until a budget, silence or an end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from runner.egress.hello import Hello, NotAHello, parse_hello, second_hello
from runner.egress.inject import Watch
from runner.egress.link import PIECE, Link, Stream
from runner.egress.refusals import Stop

_ROOM = 256 << 10  # one system call moves what a socket holds
_TURN = 8  # such pieces before another connection has its turn


class Meter(Protocol):
    """What a request may still move, and what it has moved."""

    def room(self, *, up: bool) -> int:
        """Bytes that may still pass this way."""

    def count(self, moved: int, *, up: bool) -> None:
        """They have passed."""


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """All of them at once; the first that fails ends the others, and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_hello(stream: Link, ahead: bytes) -> tuple[Hello, bytes]:
    """A tunnel's first bytes: the hello and everything read with it. Raises `Stop` when they are no ClientHello."""
    data = ahead
    while True:
        hello = checked(data)
        if hello is not None:
            return hello, data
        more = await stream.read(PIECE)
        if not more:
            raise Stop("name", "the tunnel ended before TLS began", part="tls")
        data += more


def checked(data: bytes) -> Hello | None:
    """The hello in `data`, None while it is not whole. Raises `Stop`."""
    try:
        return parse_hello(data)
    except NotAHello as error:
        raise Stop("name", f"what came first in the tunnel is not acceptable: {error}", part="tls") from None


def same_name(hello: Hello, host: str, *, literal: bool) -> None:
    """The server is asked for by the name that was judged. Raises `Stop`. An address has no name to ask for (RFC 6066
    §3), so there, and only there, it may be absent."""
    asked = hello.name.lower().removesuffix(".")
    if literal and not asked:
        return
    if literal or asked != host:
        what = "asks for no name" if not asked else "asks for another name (SNI) than CONNECT did"
        raise Stop("name", f"the TLS in the tunnel {what}", part="tls")


async def relay(
    sandbox: Stream,
    upstream: Stream,
    meter: Meter,
    *,
    ahead: bytes = b"",
    watch: Watch | None = None,
    hello: Hello | None = None,
) -> None:
    """Move bytes until both ends are done. `ahead` came from the sandbox already; with `hello` it begins with that, and
    a second ClientHello must ask for the same name. Raises `Stop` (budget, name), `Leak`, `OSError`."""
    await together(
        _up(sandbox, upstream, meter, ahead, watch, hello),
        _pump(upstream, sandbox, meter, up=False, watch=None),
    )


async def _up(
    source: Stream, sink: Stream, meter: Meter, ahead: bytes, watch: Watch | None, hello: Hello | None
) -> None:
    if hello is not None:
        await _move(ahead[: hello.size], sink, meter, up=True, watch=watch)
        ahead = await _second(source, ahead[hello.size :], hello.name)
    if ahead:
        await _move(ahead, sink, meter, up=True, watch=watch)
    await _pump(source, sink, meter, up=True, watch=watch)


async def _second(source: Stream, data: bytes, name: str) -> bytes:
    """What the client says after its first hello, held to the same name when that is a hello again."""
    while (at := second_hello(data)) == -2:
        more = await source.read(PIECE)
        if not more:
            return data
        data += more
    while at >= 0:
        hello = checked(data[at:])
        if hello is not None:
            if hello.name.lower() != name.lower():
                raise Stop("name", "the second ClientHello asks for another name than the first", part="tls")
            return data
        more = await source.read(PIECE)
        if not more:
            return data[:at]
        data += more
    return data


async def _pump(source: Stream, sink: Stream, meter: Meter, *, up: bool, watch: Watch | None) -> None:
    if not isinstance(source, Link):
        while data := await source.read(PIECE):
            await _move(data, sink, meter, up=up, watch=watch)
        await sink.end()
        return
    buffer = bytearray(_ROOM)
    room = memoryview(buffer)
    turn = 0
    while count := await source.read_into(room):
        if watch is not None:
            watch.look(buffer, count)  # where it lies: a copy of each piece would cost more than the search
        await _move(room[:count], sink, meter, up=up, watch=None)
        turn += 1
        if turn % _TURN == 0:
            await asyncio.sleep(0)
    await sink.end()


async def _move(data: bytes | memoryview, sink: Stream, meter: Meter, *, up: bool, watch: Watch | None) -> None:
    """One piece; of one that exceeds the budget no more than fits."""
    if watch is not None:
        watch.look(bytes(data), len(data))
    room = meter.room(up=up)
    part = data[:room]
    meter.count(len(part), up=up)
    await sink.write(part)
    if len(data) > room:
        raise exceeded(up=up)


def exceeded(*, up: bool) -> Stop:
    """A budget of bytes is used up."""
    return Stop("budget", f"the budget of bytes {'to' if up else 'from'} the destination is used up")
