"""Frames that were valid once: bytes turned, cut, doubled, spliced, lengths that lie. Reproducible from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from runner.wire import agent
from runner.wire.frame import encode

_NASTY = (
    b"\x00",
    b"\xff",
    b"\xc1",
    b"\x80",
    b"\x90",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)


def valid(proof: str) -> tuple[bytes, ...]:
    """A frame of each kind that a client may send once it is welcome, but for the one that ends its task."""
    return tuple(
        encode(message)
        for message in (
            agent.Call(number=1, proof=proof, window=100, intent="to be mutated", because=("a", "b"), stdin=True),
            agent.Stdin(number=1, data=b"some input", eof=True),
            agent.Credit(number=1, bytes=1000),
            agent.Cancel(number=1),
            agent.ListTools(number=2),
            agent.Attach(number=3, call="a-call", stdout=1),
            agent.GetResult(number=4, call="a-call"),
            agent.Ping(token="token"),
            agent.Pong(token="token"),
            agent.Hello(version=1, chain=("a.b.c", "d.e.f"), proof=proof),
            agent.Bye(reason="done"),
        )
    )


def mutate(chance: random.Random, frames: tuple[bytes, ...]) -> bytes:
    """One frame, changed; most keep a true length, so that what lies inside is reached."""
    body = bytearray(chance.choice(frames)[4:])
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4, 8))):
        if not body:
            break
        place = chance.randrange(len(body))
        match chance.randrange(6):
            case 0:
                body[place] ^= 1 << chance.randrange(8)
            case 1:
                body[place] = chance.randrange(256)
            case 2:
                body[place:place] = chance.choice(_NASTY)
            case 3:
                del body[place : place + chance.randrange(1, 9)]
            case 4:
                body[place:place] = body[place : place + chance.randrange(1, 33)]
            case _:
                body[place:] = chance.choice(frames)[4 + place :]
    length = len(body)
    if chance.random() < 0.05:
        length = chance.choice((0, 1, length + 1, max(0, length - 1), 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1))
    return length.to_bytes(4, "big") + bytes(body)


_TAG = b"\xa4type"


def hostile(chance: random.Random) -> Iterator[bytes]:
    """Bodies that are no message before a hello: the families of cases S01, S11 and S15."""
    heads = b"\x80\x81\x90\x91\xc0\xc1\xc2\xc3\x00\x7f\xe0\xff"
    yield b""
    yield from (bytes([head]) for head in heads)
    yield from _lengths()
    for depth in (17, 100, 1000, 100_000):
        yield b"\x91" * depth
        yield b"\x91" * depth + b"\xc0"
        yield b"\x81\xa1a" * depth + b"\xc0"
        yield b"\x81" + _TAG + b"\x91" * depth
    yield from _names()
    yield from _values()
    yield from (b"\xc1" + chance.randbytes(chance.randrange(1, 2000)) for _ in range(100))


def _lengths() -> Iterator[bytes]:
    """Binaries, extensions, strings, arrays and maps: cut, empty, as long as their lengths can say."""
    wide = ((1, 0xC4), (2, 0xC5), (4, 0xC6), (1, 0xC7), (2, 0xC8), (4, 0xC9), (1, 0xD9), (2, 0xDA), (4, 0xDB))
    for width, code in (*wide, (2, 0xDC), (4, 0xDD), (2, 0xDE), (4, 0xDF)):
        for count in {0, 1, 0xFF, (1 << 8 * width) - 1}:
            head = bytes([code]) + count.to_bytes(width, "big")
            yield head
            yield head + b"\xc0" * 100
            yield b"\x81" + _TAG + head + b"x"


def _names() -> Iterator[bytes]:
    """Names that are no operation of a client's, and keys that come twice, as text and as bytes."""
    names = ("__class__", "__init__", "_private", "Call", "CALL", "cаll", "call\0", "call ", "challenge", "", "x" * 300)
    for name in names:
        text = name.encode()
        head = bytes([0xA0 | len(text)]) if len(text) < 32 else b"\xda" + len(text).to_bytes(2, "big")
        yield b"\x81" + _TAG + head + text
        yield b"\x82" + _TAG + head + text + b"\xa6number\x01"
        yield b"\x81\xc4\x04type" + head + text
        yield b"\x82" + _TAG + b"\xa3bye\xc4\x04type" + head + text
        yield b"\x82" + _TAG + head + text + _TAG + b"\xa3bye"
        yield b"\x82" + _TAG + b"\xa3bye" + _TAG + head + text


def _values() -> Iterator[bytes]:
    """Keys that are no text, numbers at every edge, text that is not UTF-8, and requests before a hello."""
    for key in (b"\x01", b"\xc0", b"\xcb" + b"\0" * 8, b"\x90", b"\x80", b"\xa4typ\xff", b"\xa3bye"):
        yield b"\x81" + key + b"\xa3bye"
        yield b"\x82" + _TAG + b"\xa3bye" + key + b"\x01"
    for number in (0, -1, 1 << 53, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1):
        wide = b"\xcf" + number.to_bytes(8, "big") if number >= 0 else b"\xd3" + number.to_bytes(8, "big", signed=True)
        for name in (b"\xaalist_tools", b"\xa4call", b"\xa6cancel", b"\xa6credit", b"\xa6attach"):
            yield b"\x82" + _TAG + name + b"\xa6number" + wide
    for text in (b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80"):
        head = bytes([0xA0 | len(text)]) + text
        yield b"\x81" + _TAG + head
        yield b"\x82" + _TAG + b"\xa3bye\xa6reason" + head
