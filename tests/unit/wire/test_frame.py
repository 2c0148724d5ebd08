"""Frames: any cut of the bytes gives the same bodies; hostile bodies give a refusal and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.config import Limits
from runner.errors import RunnerError
from runner.wire import agent
from runner.wire.frame import Decoder, FrameReader, encode, scan

LIMITS = Limits()
DECODERS: list[Decoder[Any]] = [
    Decoder(union, elements=LIMITS.max_elements, depth=LIMITS.max_depth)
    for union in (agent.FromClient, agent.FromDaemon)
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
messages = st.one_of(
    st.builds(agent.Stdin, number=st.integers(0, 2**53), data=st.binary(max_size=200), eof=st.booleans()),
    st.builds(agent.Ping, token=st.integers(-(2**63), 2**64 - 1)),
    st.builds(agent.Bye, reason=st.text(max_size=50)),
    st.builds(agent.Call, number=st.integers(1, 9), proof=st.text(max_size=50), because=st.lists(st.text(max_size=5))),
)


def protocol(act: Any) -> None:
    """Whatever `act` does, the only way out beside success is a refusal with code `protocol`."""
    try:
        act()
    except RunnerError as error:
        assert error.refused.code == "protocol"  # noqa: PT017 - success is fine too


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_any_cut_gives_the_same_frames(sent: list[Any], cuts: list[int]) -> None:
    data = b"".join(encode(message) for message in sent)
    reader, bodies, start, turn = FrameReader(1 << 16), [], 0, 0
    while start < len(data):
        size = cuts[turn % len(cuts)]
        bodies += list(reader.feed(data[start : start + size]))
        start, turn = start + size, turn + 1
    assert [DECODERS[0].decode(body) for body in bodies] == [
        msgspec.structs.replace(m, because=tuple(m.because)) if isinstance(m, agent.Call) else m for m in sent
    ]
    assert reader.pending == 0


@pytest.mark.parametrize("length", [0, 1001, 1 << 31, (1 << 32) - 1])
def test_an_impossible_length_is_refused_before_its_body(length: int) -> None:
    reader = FrameReader(1000)
    with pytest.raises(RunnerError, match="frame length"):
        list(reader.feed(length.to_bytes(4, "big")))
    assert list(FrameReader(1000).feed((1000).to_bytes(4, "big") + bytes(1000))) == [bytes(1000)]


def test_frames_before_a_bad_length_are_still_given() -> None:
    bodies = FrameReader(1000).feed(encode(agent.Ping()) + bytes(4))
    assert DECODERS[0].decode(next(bodies)) == agent.Ping()
    with pytest.raises(RunnerError, match="frame length"):
        next(bodies)


@settings(max_examples=400)
@given(st.binary(max_size=300))
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc1")
def test_random_bytes_are_refused_or_a_message(body: bytes) -> None:
    for decoder in DECODERS:
        protocol(lambda decoder=decoder: decoder.decode(body))


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_message_is_refused_or_reencodes(data: st.DataObject) -> None:
    body = bytearray(encode(data.draw(messages))[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    def act() -> None:
        message = DECODERS[0].decode(bytes(body))
        assert DECODERS[0].decode(encode(message)[4:]) == message or message != message

    protocol(act)


@settings(max_examples=400)
@given(values)
def test_scan_takes_exactly_what_has_one_reading(value: Any) -> None:
    """What msgspec writes (string keys, no twins, no extensions) passes, unless it is too deep or too much."""
    body = msgspec.msgpack.encode(value)
    scan(body, 10_000, 100)
    decoded = msgspec.msgpack.decode(body)
    assert msgspec.msgpack.encode(decoded) == body


@settings(max_examples=600)
@given(st.binary(max_size=120))
def test_what_scan_takes_a_general_decoder_reads_the_same(body: bytes) -> None:
    def act() -> None:
        scan(body, 1000, 16)
        try:
            value = msgspec.msgpack.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # text that is not UTF-8: the decoder's to refuse
        assert count(value) <= 1000

    protocol(act)


def count(value: Any) -> int:
    """Values in a value, keys counted."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(inner) for inner in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def bomb(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "body",
    [
        bomb(17),
        bomb(900_000),
        b"\x81\xa1a" * 17 + b"\xc0",
        b"\xdd\x00\x00\x10\x00" + b"\xc0" * 4096,
        b"\xdc\x10\x00" + b"\x90" * 4096,
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x82\xa1a\x01\xd9\x01a\x02",  # the same key in two encodings
        b"\x82\xa1a\x01\xda\x00\x01a\x02",
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\x80\x02",
        b"\x81\x90\x02",
        b"\x81\xa1a",
        b"\xd4\x00\x00",
        b"\xc7\x01\x00\x00",
        b"\xc1",
        b"",
        b"\xc0\xc0",
        b"\xa5abc",
        b"\xcb\x00",
        b"\xde\x00",
    ],
)
def test_scan_refuses(body: bytes) -> None:
    with pytest.raises(RunnerError) as caught:
        scan(body, 4096, 16)
    assert caught.value.refused.code == "protocol"


def test_scan_takes_the_allowed_twins() -> None:
    scan(bomb(16), 4096, 16)
    scan(b"\xdc\x0f\xff" + b"\xc0" * 4095, 4096, 16)
    scan(b"\x82\xa1a\x01\xa1b\x02", 4096, 16)
    scan(b"\x82\xa1a\x81\xa1a\x01\xa1b\x81\xa1a\x02", 4096, 16)  # the same key in different maps


def test_no_coercion() -> None:
    for field in ({"number": "1"}, {"number": 1.0}, {"number": True}, {"number": None}, {"number": [1]}):
        with pytest.raises(RunnerError):
            DECODERS[0].decode(msgspec.msgpack.encode({"type": "cancel", **field}))
    assert DECODERS[0].decode(msgspec.msgpack.encode({"type": "cancel", "number": 1})) == agent.Cancel(number=1)


@pytest.mark.parametrize(
    "name", ["__class__", "_private", "HELLO", "hello\x00", "ｈｅｌｌｏ", "hel\u200blo", "accepted", ""]
)
def test_no_other_name_reaches_a_message(name: str) -> None:
    body = {"type": name, "version": 1, "chain": ["t"], "proof": "p"}
    with pytest.raises(RunnerError):
        DECODERS[0].decode(msgspec.msgpack.encode(body))
    assert isinstance(DECODERS[0].decode(msgspec.msgpack.encode({**body, "type": "hello"})), agent.Hello)
