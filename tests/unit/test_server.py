"""A connection's turn: how much of what a client sends at once is served before the others come."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from types import SimpleNamespace
from typing import Any

from runner import server
from runner.config import Limits
from runner.wire import agent
from runner.wire.frame import encode
from runner.wire.states import State


class Transport:
    """Notes what is written and whether it is read from."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.pongs = 0
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return self._sock

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.pongs += data == encode(agent.Pong())

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def _open(sock: socket.socket) -> tuple[server.Connection, Transport]:
    parts = SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: 0.0, now=lambda: 0.0))
    house: Any = SimpleNamespace(
        limits=Limits(), parts=parts, strangers=None, connections=set(), per_uid=Counter(), admits=lambda peer: None,
        nonce=lambda: "nonce", audience="runner:test",
    )  # fmt: skip
    connection, transport = server.Connection(house), Transport(sock)
    connection.connection_made(transport)  # type: ignore[arg-type] # as much of one as is used
    connection.session.state = State.OPEN
    return connection, transport


async def _turn() -> None:
    await asyncio.sleep(0)


def test_a_flood_of_small_frames_is_served_a_few_in_a_turn() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection, transport = _open(ours)
            turn = server._TURN
            ping = encode(agent.Ping())
            connection.data_received(ping * (3 * turn + 5) + ping[:3])
            assert transport.pongs == turn
            assert not transport.reading
            await _turn()
            assert transport.pongs == 2 * turn
            await _turn()
            assert transport.pongs == 3 * turn
            await _turn()
            assert transport.pongs == 3 * turn + 5
            assert transport.reading
            connection.data_received(ping[3:])  # the one that was cut
            assert transport.pongs == 3 * turn + 6

    asyncio.run(work())


def test_a_client_that_does_not_read_is_not_served_on() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection, transport = _open(ours)
            ping = encode(agent.Ping())
            connection.pause_writing()
            connection.data_received(ping * 10)  # it was on its way already
            assert transport.pongs == 1
            for _ in range(5):
                await _turn()
            assert transport.pongs == 1
            assert not transport.reading
            connection.resume_writing()
            await _turn()
            assert transport.pongs == 10
            assert transport.reading

    asyncio.run(work())


def test_what_waits_for_its_turn_is_no_slow_frame() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection, _ = _open(ours)
            ping = encode(agent.Ping())
            connection.pause_writing()
            connection.data_received(ping * 10)
            assert connection._liveness.due(15.0, State.OPEN) is None  # the peer's delay would be its end by now
            connection.resume_writing()
            await _turn()
            connection.data_received(ping[:3])
            assert connection._liveness.due(15.0, State.OPEN) is not None  # the twin: a frame that it does not finish

    asyncio.run(work())
