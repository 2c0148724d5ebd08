"""Output that is no text travels as base64 and arrives as what it was, however it was cut on its way."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.client.calls import printable
from runner.client.core import Core
from runner.client.errors import CallError
from runner.client.exchange import Exchange
from runner.model import Chunk
from runner.wire import agent


def outputs(stream: str, text: bytes, binary: bytes, size: int) -> list[agent.Output]:
    """A stream as a daemon sends it: text, then base64, in pieces of any size."""
    found, offset = [], 0
    for data, encoding in ((text, ""), (base64.b64encode(binary), "base64")):
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            found.append(agent.Output(number=1, stream=stream, offset=offset, data=piece, encoding=encoding))
            offset += len(piece)
    return found


def taken(messages: list[agent.Output]) -> list[Chunk]:
    core: Any = Core.__new__(Core)
    exchange = Exchange()
    exchange.chunks.extend(messages)
    return [chunk for _ in messages if (chunk := core.take(exchange)) is not None]


@given(some.binary(max_size=40), some.integers(1, 9), some.integers(1, 9))
def test_pieces_decode_to_what_the_tool_wrote(binary: bytes, size: int, other: int) -> None:
    mixed: list[agent.Output] = []
    for pair in zip(outputs("stdout", b"text ", binary, size), outputs("stderr", b"", binary, other), strict=False):
        mixed += pair
    for stream, text, step in (("stdout", b"text ", size), ("stderr", b"", other)):
        mixed += [each for each in outputs(stream, text, binary, step) if each not in mixed]
    chunks = taken(mixed)
    for stream, expected in (("stdout", b"text " + binary), ("stderr", binary)):
        assert b"".join(chunk.data for chunk in chunks if chunk.stream == stream) == expected
    gathered = Exchange()
    gathered.chunks.extend(mixed)
    assert gathered.gathered() == (b"text " + binary, binary)


@given(some.binary(min_size=1, max_size=40), some.integers(1, 9), some.integers(0, 20))
def test_following_goes_on_where_a_piece_says(binary: bytes, size: int, number: int) -> None:
    messages = outputs("stdout", b"text ", binary, size)
    chunks = taken(messages)
    upto = chunks[: number % len(chunks) + 1]
    end = upto[-1].end
    rest = []
    for each in messages:
        skip = max(0, end - each.offset)
        if skip < len(each.data):
            rest.append(
                agent.Output(
                    number=1, stream="stdout", offset=each.offset + skip, data=each.data[skip:], encoding=each.encoding
                )
            )
    assert b"".join(chunk.data for chunk in (*upto, *taken(rest))) == b"text " + binary
    assert chunks[-1].end == messages[-1].offset + len(messages[-1].data)


def test_what_is_no_base64_is_the_daemons_fault() -> None:
    with pytest.raises(CallError, match="not base64"):
        taken([agent.Output(number=1, stream="stdout", offset=0, data=b"****", encoding="base64")])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\ttext\r\n", "plain\ttext\r\n"),
        ("é 👩‍🔬 می‌خواهم".encode(), "é 👩‍🔬 می‌خواهم"),
        (b"a\0\x1b[0m\xff\r", r"a\x00\x1b[0m\xff\x0d"),
        ("\u202e\x9b".encode(), r"\u{202e}\x9b"),
    ],
)
def test_text_can_always_be_printed(data: bytes, text: str) -> None:
    assert printable(data) == text
