"""What a chunk passes, how it is kept, and what a hostile result becomes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.model import Chunk
from runner.stream.filters import Cap
from runner.stream.hygiene import Clean
from runner.stream.pump import Pump
from runner.stream.result import structured
from runner.stream.stage import Name
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite


class Through:
    """A filter that holds back what it is told to, until it is asked for it."""

    def __init__(self, limit: int, held: bytes = b"") -> None:
        self.waits_ms = 0
        self.raw = None
        self._cap = Cap(limit)
        self._held = held

    def take(self, stream: Name, data: bytes) -> list[Clean]:
        self.waits_ms = 200 if self._held else 0
        return [Clean(stream, kept)] if (kept := self._cap.take(data)) else []

    def pause(self, quiet_ms: int) -> list[Clean]:
        return self.close() if quiet_ms >= self.waits_ms else []

    def close(self) -> list[Clean]:
        held, self._held, self.waits_ms = self._held, b"", 0
        return [Clean("stderr", held, "base64")] if held else []

    async def consult(self) -> list[Clean]:
        return []


@given(some.lists(some.binary(max_size=50)), some.integers(0, 200))
def test_the_cap_lets_exactly_so_many_bytes_pass_in_order(pieces: list[bytes], limit: int) -> None:
    cap = Cap(limit)
    passed = b"".join(cap.take(piece) for piece in pieces)
    whole = b"".join(pieces)
    assert passed == whole[:limit]
    assert cap.hit == (len(whole) > limit)


class Content:
    """Keeps what the pump sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def end(self, stream: int) -> str:
        opened, *written = self.sent
        assert {message.stream for message in self.sent} == {stream}
        return hashlib.sha256(opened.salt + b"".join(each.data for each in written)).hexdigest()


def salts() -> Callable[[], bytes]:
    numbers = itertools.count()
    return lambda: bytes([next(numbers)]) * 16


def test_the_cap_counts_what_base64_stands_for_and_cuts_no_group() -> None:
    cap = Cap(10)
    assert cap.take(b"QUJDREVG", "base64") == b"QUJDREVG"
    assert cap.take(b"QUJDREVG", "base64") == b"QUJD"
    assert cap.hit
    assert cap.take(b"QUJD", "base64") == b""
    exact = Cap(6)
    assert exact.take(b"QUJDREVG", "base64") == b"QUJDREVG"
    assert not exact.hit


def test_little_output_waits_for_the_entry_under_a_salted_digest() -> None:
    async def run() -> None:
        content = Content()
        pump = Pump(content, Through(5), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        assert await pump.take("stdout", b"abc") == [Chunk(stream="stdout", offset=0, data=b"abc")]
        assert await pump.take("stderr", b"defg") == [Chunk(stream="stderr", offset=0, data=b"de")]
        assert await pump.take("stdout", b"more") == []
        pump.delivered("stdout", 2)
        stdout, stderr, held = await pump.close()
        assert stdout is not None
        assert stderr is not None
        assert (stdout.size, stdout.delivered, stderr.size, stderr.delivered) == (3, 2, 2, 0)
        assert held == (b"\0" * 16 + b"abc", b"\1" * 16 + b"de")
        assert [stdout.digest, stderr.digest] == [hashlib.sha256(each).hexdigest() for each in held]
        assert content.sent == []

    asyncio.run(run())


@given(some.lists(some.binary(min_size=1, max_size=WITH_ENTRY), max_size=4))
def test_more_output_is_kept_while_it_comes_and_nothing_of_it_twice(pieces: list[bytes]) -> None:
    async def run() -> None:
        content = Content()
        pump = Pump(content, Through(1 << 30), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        for piece in pieces:
            assert await pump.take("stdout", piece)
        stdout, _, held = await pump.close()
        whole = b"".join(pieces)
        sent = b"".join(message.data for message in content.sent if isinstance(message, StoreWrite))
        if stdout is None:
            assert not whole
            return
        assert stdout.digest == hashlib.sha256(b"\0" * 16 + whole).hexdigest()
        if held:
            assert (held, sent) == ((b"\0" * 16 + whole,), b"")
            assert len(held[0]) <= WITH_ENTRY  # what may travel with an entry
        else:
            assert sent == whole
            assert content.sent[0] == StoreOpen(stream=1, salt=b"\0" * 16)
            assert content.sent[-1] == StoreClose(stream=1, digest=stdout.digest)

    asyncio.run(run())


@pytest.mark.parametrize("more", [0, 1])
def test_the_recorder_names_what_is_longer_than_a_megabyte(more: int) -> None:
    async def run() -> None:
        content, piece = Content(), b"p" * (1 << 15)
        pump = Pump(content, Through(1 << 30), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        for _ in range(32):
            assert await pump.take("stdout", piece)
        if more:
            assert await pump.take("stdout", b"m")
        stdout, _, held = await pump.close()
        assert stdout is not None
        assert (stdout.size, held) == ((1 << 20) + more, ())
        assert stdout.digest == hashlib.sha256(b"\0" * 16 + piece * 32 + b"m" * more).hexdigest()
        assert isinstance(content.sent[-1], StoreWrite if more else StoreClose)  # who announces it

    asyncio.run(run())


def test_a_stream_without_output_is_none() -> None:
    async def run() -> None:
        content = Content()
        assert await Pump(content, Through(5), numbers=(1, 2), salt=salts(), clock=time.monotonic).close() == (
            None,
            None,
            (),
        )
        assert content.sent == []

    asyncio.run(run())


def test_what_waits_goes_after_a_quiet_and_is_kept_whatever_ends_the_call() -> None:
    async def run() -> None:
        pump = Pump(Content(), Through(99, held=b"QUI="), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        assert pump.wait_ms == 0
        assert [chunk.data for chunk in await pump.take("stdout", b"abc")] == [b"abc"]
        assert pump.wait_ms == 200
        assert await pump.pause() == [Chunk(stream="stderr", offset=0, data=b"QUI=", encoding="base64")]
        assert pump.wait_ms == 0
        assert await pump.finish() == []
        other = Pump(Content(), Through(99, held=b"QUI="), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        await other.take("stderr", b"text")
        _, stderr, held = await other.close()
        assert stderr is not None
        assert (stderr.size, stderr.delivered, stderr.encoding, stderr.text) == (8, 0, "base64", 4)
        assert held[0].endswith(b"textQUI=")

    asyncio.run(run())


def test_a_filter_that_fails_is_asked_nothing_more() -> None:
    class Fails(Through):
        def take(self, stream: Name, data: bytes) -> list[Clean]:
            raise ValueError("a defect")

        def close(self) -> list[Clean]:
            raise AssertionError("what it held must stay where it is")

    async def run() -> None:
        pump = Pump(Content(), Fails(99), numbers=(1, 2), salt=salts(), clock=time.monotonic)
        with pytest.raises(ValueError, match="a defect"):
            await pump.take("stdout", b"abc")
        assert await pump.take("stdout", b"abc") == []
        assert await pump.close() == (None, None, ())

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nan",
        b'"\\ud800"',
        b"\xff",
        b"1" * 40,
        b"-" + b"9" * 20,
        b"[" * 5000,
        b"[" * 100 + b"]" * 100,
        b"1e999",
    ],
)
def test_what_no_client_could_read_is_no_value(data: bytes) -> None:
    value, problem = structured(data, 1 << 20)
    assert value is None
    assert problem


def test_a_result_is_its_value() -> None:
    assert structured(b'{"a":[1,2.5,null,true,"x"]}', 100) == ({"a": [1, 2.5, None, True, "x"]}, "")
    assert structured(None, 100) == (None, "")
    assert structured(b"1" * 5, 4)[1]


def test_a_piece_is_what_is_filtered_in_a_few_milliseconds() -> None:
    """Ordinary output comes in large pieces; what is slow to filter in small ones, so that others have their turn."""
    now, rate = 0.0, 500e6  # bytes a second

    class Slow(Through):
        def take(self, stream: Name, data: bytes) -> list[Clean]:
            nonlocal now
            now += len(data) / rate
            return super().take(stream, data)

    async def run() -> None:
        nonlocal rate
        pump = Pump(Content(), Slow(1 << 30), numbers=(1, 2), salt=salts(), clock=lambda: now)
        assert pump.most == 64 << 10
        for _ in range(3):
            await pump.take("stdout", b"x" * pump.most)
        assert pump.most == 128 << 10
        rate = 2e6
        await pump.take("stdout", b"x" * pump.most)
        assert pump.most == 10_000  # 5 ms
        rate = 1e3
        await pump.take("stdout", b"x" * pump.most)
        assert pump.most == 4 << 10  # smaller ones would only cost more
        rate = 500e6
        for _ in range(5):
            await pump.take("stdout", b"x" * pump.most)
        assert pump.most == 128 << 10

    asyncio.run(run())
