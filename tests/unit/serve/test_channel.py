"""A socketpair between two processes: order, descriptors, a full socket, an end in the middle."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runner.errors import RunnerError
from runner.serve.channel import Channel
from runner.wire import recorder as wire


class Pair:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.fail = False
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.near = Channel(ours, wire.FromRecorder, lambda message, _: None)
        self.far = Channel(theirs, wire.FromGate, self._take, carriers=(wire.StoreOpen,))
        self.descriptors: list[int] = []

    def _take(self, message: Any, descriptor: int | None) -> None:
        if self.fail:
            self.fail = False
            raise ValueError("a defect")
        if descriptor is not None:
            self.descriptors.append(descriptor)
        self.got.append(message)
        if isinstance(message, wire.Append):
            self.far.post(wire.Appended(number=message.number, position=1, digest="d"))


def paired(work: Callable[[Pair], Awaitable[None]]) -> None:
    async def run() -> None:
        pair = Pair()
        try:
            await asyncio.wait_for(work(pair), 20)
        finally:
            pair.near.close()
            pair.far.close()

    asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_messages_keep_their_order_however_they_were_sent_and_however_full_the_socket_is() -> None:
    async def work(pair: Pair) -> None:
        sent = []
        for number in range(300):
            message = wire.Store(data=bytes([number % 256]) * (number * 37 % 5000))
            sent.append(message)
            if number % 3:
                await pair.near.send(message)
            else:
                pair.near.post(message)
        await until(lambda: len(pair.got) == 300)
        assert pair.got == sent

    paired(work)


def test_what_is_sent_leaves_without_anything_posted_behind_it() -> None:
    async def work(pair: Pair) -> None:
        await pair.near.send(wire.Store(data=b"x"))
        await until(lambda: pair.got)

    paired(work)


def test_a_sender_waits_while_too_much_is_queued() -> None:
    async def work(pair: Pair) -> None:
        pair.far._loop.remove_reader(pair.far._sock)
        for _ in range(5):
            await asyncio.wait_for(
                pair.near.send(wire.Store(data=b"x" * (400 << 10))), 1
            ) if pair.near._writable.is_set() else None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair.near.send(wire.Store(data=b"x")), 0.05)

    paired(work)


def test_a_descriptor_travels_with_its_message_and_ours_is_closed() -> None:
    async def work(pair: Pair) -> None:
        reader, writer = os.pipe()
        await pair.near.send(wire.Store(data=b"before"))
        pair.near.post(wire.StoreOpen(stream=1), writer)
        await pair.near.send(wire.Store(data=b"after"))
        await until(lambda: len(pair.got) == 3)
        (theirs,) = pair.descriptors
        os.write(theirs, b"x")
        os.close(theirs)
        assert os.read(reader, 10) == b"x"
        assert os.read(reader, 10) == b""  # no second copy
        os.close(reader)

    paired(work)


def test_requests_are_answered_by_number_and_fail_when_the_peer_ends() -> None:
    async def work(pair: Pair) -> None:
        answer, _ = await pair.near.request(wire.Append(number=pair.near.number(), entry=b""))
        assert answer.position == 1
        pending = asyncio.ensure_future(pair.near.request(wire.Since(number=pair.near.number(), position=0)))
        await asyncio.sleep(0)
        pair.far.close()
        with pytest.raises(RunnerError) as refused:
            await pending
        assert refused.value.refused.code == "unavailable"
        assert pair.near.closed.is_set()
        with pytest.raises(RunnerError):
            await pair.near.request(wire.Since(number=9, position=0))
        await pair.near.send(wire.Store(data=b"x"))
        pair.near.post(wire.Store(data=b"x"))

    paired(work)


def test_a_defect_in_a_handler_does_not_hold_up_what_follows() -> None:
    async def work(pair: Pair) -> None:
        pair.fail = True
        await pair.near.send(wire.Store(data=b"1"))
        await pair.near.send(wire.Store(data=b"2"))
        await until(lambda: pair.got)
        assert pair.got == [wire.Store(data=b"2")]

    paired(work)
