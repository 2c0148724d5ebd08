"""What a chunk passes, how it is kept, and what a hostile result becomes."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.stream.filters import Cap
from runner.stream.pump import Pump, salted
from runner.stream.result import structured
from runner.wire.recorder import StoreClose, StoreOpen, StoreWrite


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


def test_output_is_kept_under_a_salted_digest_before_it_is_handed_on() -> None:
    async def run() -> None:
        content = Content()
        pump = Pump(content, limit=5, numbers=(1, 2), salts=(b"s" * 16, b"t" * 16))
        first = await pump.take("stdout", b"abc")
        assert first is not None
        assert content.sent == [StoreOpen(stream=1, salt=b"s" * 16), StoreWrite(stream=1, data=b"abc")]
        assert await pump.take("stderr", b"defg") is not None
        assert await pump.take("stdout", b"more") is None
        assert pump.capped
        pump.delivered("stdout", 2)
        stdout, stderr = await pump.close()
        assert stdout is not None
        assert stderr is not None
        assert (stdout.size, stdout.delivered, stderr.size, stderr.delivered) == (3, 2, 2, 0)
        assert stdout.digest == hashlib.sha256(b"s" * 16 + b"abc").hexdigest()
        assert content.sent[-1] == StoreClose(stream=2, digest=stderr.digest)

    asyncio.run(run())


def test_a_stream_without_output_is_none() -> None:
    async def run() -> None:
        content = Content()
        assert await Pump(content, limit=5, numbers=(1, 2), salts=(b"", b"")).close() == (None, None)
        assert content.sent == []

    asyncio.run(run())


def test_salted_names_the_salt_and_the_data() -> None:
    kept, named = salted(b"data", b"salt")
    assert named.digest == hashlib.sha256(kept).hexdigest()
    assert named.size == 4


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
