"""Bodies: whole, bounded, and never the sender's framing."""

from __future__ import annotations

import asyncio

import pytest

from runner.egress.body import Body, Cut, Inlet, chunk
from runner.egress.head import CHUNKED, UNTIL_CLOSE, Syntax


class Pieces:
    """A stream that says what it was given, a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step

    async def read(self, size: int = 1 << 16) -> bytes:
        taken, self._data = self._data[: min(size, self._step)], self._data[min(size, self._step) :]
        return taken

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("nothing is written here")

    async def end(self) -> None:
        """Nothing to end."""

    def abort(self) -> None:
        """Nothing to abort."""


def read(data: bytes, length: int, *, strict: bool = True, step: int = 1 << 16) -> tuple[bytes, bytes]:
    """The body, and what follows it."""

    async def run() -> tuple[bytes, bytes]:
        inlet = Inlet(Pieces(data, step))
        body, found = Body(inlet, length, strict=strict), b""
        while piece := await body.read():
            found += piece
        assert body.over
        rest = b""
        while piece := await inlet.some(1 << 16):
            rest += piece
        return found, rest

    return asyncio.run(run())


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1 << 16])
def test_each_framing_ends_where_it_says(step: int) -> None:
    assert read(b"hello, more", 5, step=step) == (b"hello", b", more")
    assert read(b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nmore", CHUNKED, step=step) == (b"hello0123456789", b"more")
    assert read(b"to the end", UNTIL_CLOSE, step=step) == (b"to the end", b"")
    assert read(b"more", 0, step=step) == (b"", b"more")


def test_chunks_are_written_as_they_are_read() -> None:
    framed = chunk(b"a" * 300) + chunk(b"b") + chunk(b"")
    assert read(framed + b"x", CHUNKED) == (b"a" * 300 + b"b", b"x")


STRICT_ONLY = {
    "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "extension of the last": b"5\r\nhello\r\n0;x\r\n\r\n",
    "space after the length": b"5 \r\nhello\r\n0\r\n\r\n",
    "trailer": b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
}
NEVER = {
    "bare LF": b"5\nhello\r\n0\r\n\r\n",
    "bare LF after the chunk": b"5\r\nhello\n0\r\n\r\n",
    "bare LF in an extension": b"5;\nx\r\nhello\r\n0\r\n\r\n",
    "bare CR": b"5\rX\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "longer than it says": b"5\r\nhello!\r\n0\r\n\r\n",
    "shorter than it says": b"5\r\nhell\r\n0\r\n\r\n",
    "absurd": b"1000000000000000\r\nhello\r\n0\r\n\r\n",
    "endless line": b"0" * 5000 + b"5\r\nhello\r\n0\r\n\r\n",
    "endless extension": b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
}


@pytest.mark.parametrize("data", STRICT_ONLY.values(), ids=STRICT_ONLY)
def test_what_servers_send_is_skipped_and_from_a_sandbox_refused(data: bytes) -> None:
    assert read(data, CHUNKED, strict=False) == (b"hello", b"")
    with pytest.raises(Syntax):
        read(data, CHUNKED)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("data", NEVER.values(), ids=NEVER)
def test_chunks_with_two_readings_are_none(data: bytes, strict: bool) -> None:
    with pytest.raises(Syntax):
        read(data, CHUNKED, strict=strict)


@pytest.mark.parametrize(
    ("data", "length"), [(b"hell", 5), (b"5\r\nhel", CHUNKED), (b"5\r\nhello\r\n", CHUNKED), (b"0\r\n", CHUNKED)]
)
def test_a_body_that_ends_early_is_cut(data: bytes, length: int) -> None:
    with pytest.raises(Cut):
        read(data, length)


def test_a_head_is_bounded_and_begins_as_http_does() -> None:
    async def head(data: bytes, step: int = 1 << 16) -> bytes:
        return await Inlet(Pieces(data, step)).head(64)

    good = b"GET / HTTP/1.1\r\nA: b\r\n\r\n"
    for step in (1, 5, 100):
        assert asyncio.run(head(good + b"rest", step)) == good
    assert asyncio.run(head(b"")) == b""
    for wrong in (
        b"\x16\x03\x01\x02\x00",
        b"\x05\x01\x00",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1",
        b"G" * 65,
    ):
        with pytest.raises(Syntax):
            asyncio.run(head(wrong, 7))
    with pytest.raises(Cut):
        asyncio.run(head(good[:-2]))
