"""Kept responses: in order, within their bounds, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runner.config import Limits
from runner.gate import cassette
from runner.gate.cassette import Cassette, Shelf
from runner.wire.recorder import StoreClose, StoreOpen, StoreWrite

SALT = b"s" * 16
LARGE = bytes(range(256)) * 400  # 102,400 bytes


class Store:
    """The recorder: what it would keep, and what is open."""

    def __init__(self) -> None:
        self.open: dict[int, bytes] = {}
        self.kept: dict[str, bytes] = {}
        self.free = asyncio.Event()
        self.free.set()

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        await self.free.wait()
        match message:
            case StoreOpen():
                assert message.stream not in self.open
                self.open[message.stream] = message.salt
            case StoreWrite():
                self.open[message.stream] += message.data
            case StoreClose():
                data = self.open.pop(message.stream)
                if not message.drop:
                    assert hashlib.sha256(data).hexdigest() == message.digest
                    self.kept[message.digest] = data


def carried(work: Callable[[Store, Callable[..., Cassette]], Awaitable[None]]) -> Store:
    """Do this with a store, and a way to make cassettes of one shelf."""
    done: list[Store] = []

    async def run() -> None:
        store = Store()
        done.append(store)
        shelves: dict[Any, Shelf] = {}

        def make(**limits: int) -> Cassette:
            key = tuple(limits.items())
            return Cassette(shelves.setdefault(key, Shelf(store, lambda: SALT, Limits(**limits))))

        await asyncio.wait_for(work(store, make), 20)

    asyncio.run(run())
    (store,) = done
    assert not store.open
    return store


def test_a_small_one_travels_with_its_entry() -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make()
        assert await held.take(1, b"HTTP/1.1 200 OK\r\n\r\n")
        assert await held.take(1, b"body")
        named, contents, problem = await held.close(1, whole=True)
        whole = SALT + b"HTTP/1.1 200 OK\r\n\r\nbody"
        assert (contents, problem) == ((whole,), "")
        assert named is not None
        assert (named.digest, named.size) == (hashlib.sha256(whole).hexdigest(), len(whole) - 16)
        assert await held.close(1, whole=True) == (None, (), "")

    assert not carried(work).kept


def test_a_large_one_goes_in_pieces_two_at_once_apart() -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make()
        for start in range(0, len(LARGE), 10_000):
            assert await held.take(1, LARGE[start : start + 10_000])
            assert await held.take(2, LARGE[start : start + 10_000][::-1])
        for request in (2, 1):
            named, contents, problem = await held.close(request, whole=True)
            assert (contents, problem) == ((), "")
            assert named is not None
            assert named.size == len(LARGE)
            assert named.digest in store.kept

    store = carried(work)
    assert SALT + LARGE in store.kept.values()
    assert len(store.kept) == 2


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_one_that_was_cut_is_not_kept(size: int) -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make()
        assert await held.take(1, LARGE[:size])
        assert await held.close(1, whole=False) == (None, (), "it was cut")

    assert not carried(work).kept


def test_one_that_is_too_long_is_not_kept_and_no_more_is_wanted() -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make(kept_response=50_000)
        assert await held.take(1, LARGE[:50_000])
        assert not await held.take(1, b"x")
        assert not await held.take(1, b"x")
        assert await held.close(1, whole=True) == (None, (), "it is longer than 50000 bytes")
        assert await held.take(2, LARGE[:50_000])  # its twin, of exactly as much
        assert (await held.close(2, whole=True))[2] == ""

    assert len(carried(work).kept) == 1


def test_a_call_keeps_no_more_than_its_share() -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held, other = make(kept_per_call=100), make(kept_per_call=100)
        assert await held.take(1, b"x" * 90)
        assert not await held.take(2, b"x" * 11)
        assert await other.take(1, b"x" * 100)
        assert (await held.close(1, whole=True))[2] == ""
        assert not await held.take(3, b"x" * 11)  # what is kept counts until the call ends
        assert await held.take(4, b"x" * 10)
        assert "100 bytes already" in (await held.close(3, whole=True))[2]
        await held.drop()
        await other.drop()

    carried(work)


def test_a_piece_that_waits_for_the_recorder_is_not_overtaken_by_its_end() -> None:
    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make()
        store.free.clear()
        taking = asyncio.ensure_future(held.take(1, LARGE))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(held.close(1, whole=False))
        await asyncio.sleep(0)
        store.free.set()
        assert await taking
        assert (await closing)[2] == "it was cut"

    assert not carried(work).kept


def test_streams_at_the_recorder_are_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cassette, "_STREAMS", 2)

    async def work(store: Store, make: Callable[..., Cassette]) -> None:
        held = make()
        assert [await held.take(number, LARGE) for number in (1, 2, 3)] == [True, True, False]
        assert await held.take(4, b"small")
        assert "2 responses are being kept" in (await held.close(3, whole=True))[2]
        await held.drop()
        assert await held.take(5, LARGE)
        assert (await held.close(5, whole=True))[2] == ""

    assert len(carried(work).kept) == 1
