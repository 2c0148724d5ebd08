"""The protocol without a socket: bytes in, bytes out, whatever way the bytes are cut."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim.bare import CHALLENGE, result, welcome

from runner.client.core import END, MAX_INCOMING, Core
from runner.client.credentials import Identity, find_credentials
from runner.client.exchange import DROPPED, GATHERED, QUEUED, Exchange
from runner.errors import refusal
from runner.wire import agent
from runner.wire.frame import FrameReader, encode

WINDOW = 100
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(agent.FromClient)


@pytest.fixture(scope="session")
def identity_bytes(sim: Any) -> bytes:
    return bytes(sim.credentials("/nowhere"))


def opened(handed: bytes) -> Core:
    """A core after its handshake; what it sent for that is taken."""
    core = Core(Identity(find_credentials(handed)), agent.SessionFacts())
    feed(core, encode(CHALLENGE) + encode(welcome(call_window=WINDOW)))
    assert [type(message) for message in taken(core)] == [agent.Hello]
    return core


def feed(core: Core, *pieces: bytes) -> None:
    for piece in pieces:
        core.inbox.append(piece)
        core.receive()


def taken(core: Core) -> list[Any]:
    frames, core.outbox = core.outbox, []
    return [_DECODER.decode(body) for body in FrameReader(1 << 24).feed(b"".join(frames))]


def begun(core: Core, **how: Any) -> Exchange:
    exchange = Exchange(**how)
    core.begin(exchange, lambda number, window: agent.Call(number=number, proof="p", window=window))
    return exchange


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def all_of(core: Core) -> dict[str, Any]:
    """What can be seen of a core, the frames it would send included."""
    exchanges = {
        number: {name: getattr(exchange, name) for name in Exchange.__slots__ if name != "error"}
        for number, exchange in core.exchanges.items()
    }
    return {
        "exchanges": exchanges,
        "sent": taken(core),
        "lost": str(core.lost),
        "digest": core.tools_digest,
        "durable": core.durable,
    }


numbers = st.integers(1, 3)
messages = st.one_of(
    st.builds(agent.Accepted, number=numbers, call=st.just("call-1")),
    st.builds(
        agent.Output,
        number=numbers,
        stream=st.sampled_from(["stdout", "stderr"]),
        offset=st.just(0),
        data=st.binary(max_size=WINDOW // 3),
    ),
    st.builds(agent.StdinCredit, number=numbers, bytes=st.integers(1, 9)),
    st.builds(agent.Durable, position=st.integers(0, 9)),
    st.builds(agent.ToolsChanged, digest=st.sampled_from(["d2", "d3"])),
    st.builds(agent.Ping, token=st.integers(0, 9)),
    st.builds(agent.Pong, token=st.integers(0, 9)),
    st.builds(result, numbers),
    st.builds(agent.Refused, number=numbers, refusal=st.just(refusal("busy", "later"))),
    st.just(agent.Bye()),
    st.just(agent.TaskEnded(reason="over")),
    st.just(agent.Closing(refusal=refusal("revoked", "taken back"))),
)


@given(st.lists(messages, max_size=12), st.lists(st.integers(0, 1 << 16), max_size=12), st.booleans())
def test_the_cut_of_the_stream_changes_nothing(
    identity_bytes: bytes, script: list[Any], places: list[int], ends: bool
) -> None:
    data = b"".join(encode(message) for message in script)
    seen = []
    for pieces in ([data] if data else [], cut(data, places), [data[i : i + 1] for i in range(len(data))]):
        core = opened(identity_bytes)
        every = [begun(core, output=output) for output in (QUEUED, GATHERED, DROPPED)]
        feed(core, *pieces, *([END] if ends else []))
        errors = [str(exchange.error) for exchange in every]
        chunks = [list(exchange.chunks) for exchange in every]
        seen.append((all_of(core), errors, chunks, [exchange.answer for exchange in every]))
    assert seen[0] == seen[1] == seen[2]


@given(st.lists(st.integers(1, WINDOW), min_size=1, max_size=40), st.sampled_from([QUEUED, GATHERED, DROPPED]))
def test_credit_is_what_was_consumed_and_never_more_than_the_window(
    identity_bytes: bytes, sizes: list[int], output: int
) -> None:
    core = opened(identity_bytes)
    exchange = begun(core, output=output)
    taken(core)
    room, offset = WINDOW, 0
    for size in sizes:
        size = min(size, room)  # an honest daemon
        if size:
            feed(core, encode(agent.Output(number=1, stream="stdout", offset=offset, data=b"x" * size)))
            room, offset = room - size, offset + size
        if output == QUEUED:
            while core.take(exchange) is not None:
                core.settle(exchange)
        room += sum(message.bytes for message in taken(core) if isinstance(message, agent.Credit))
        assert core.lost is None
        assert WINDOW // 2 < room + exchange.owed <= WINDOW  # at most half is owed: a daemon always has room
        assert room == exchange.room
    assert len(exchange.gathered()[0]) == (offset if output == GATHERED else 0)


def test_output_above_the_credit_is_a_flow_error(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)
    exchange = begun(core)
    full = agent.Output(number=1, stream="stdout", offset=0, data=b"x" * WINDOW)
    feed(core, encode(full))
    assert core.lost is None
    feed(core, encode(agent.Output(number=1, stream="stdout", offset=WINDOW, data=b"x")))
    assert core.lost is not None
    assert core.lost.code == "flow"
    assert exchange.ended()
    assert not core.exchanges


def test_stdin_is_cut_to_the_credit(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)
    exchange = begun(core)
    feed(core, encode(agent.Accepted(number=1, call="c")) + encode(agent.StdinCredit(number=1, bytes=5)))
    taken(core)
    view = memoryview(b"twelve bytes")
    assert core.stdin(exchange, view) == 5
    assert not exchange.writable()
    feed(core, encode(agent.StdinCredit(number=1, bytes=100)))
    assert core.stdin(exchange, view[5:]) == 7
    assert [message.data for message in taken(core)] == [b"twelv", b"e bytes"]


def test_numbers_are_counted_and_a_request_that_failed_uses_none(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)

    def broken(number: int, window: int) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError):
        core.begin(Exchange(), broken)
    assert [begun(core).number for _ in range(3)] == [1, 2, 3]
    assert [message.number for message in taken(core)] == [1, 2, 3]


def test_nobody_cancels_what_was_never_sent_or_is_over(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)
    core.abandon(Exchange())
    exchange = begun(core)
    taken(core)
    feed(core, encode(result(1)))
    core.abandon(exchange)
    core.close_stdin(exchange)
    assert taken(core) == []
    running = begun(core)
    core.abandon(running)  # the twin: this one is under way
    assert [type(message) for message in taken(core)] == [agent.Call, agent.Cancel]


def test_a_frame_of_the_longest_length_is_awaited_and_a_longer_one_is_not(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)
    feed(core, MAX_INCOMING.to_bytes(4, "big") + b"x" * 1000)
    assert core.lost is None
    core = opened(identity_bytes)
    feed(core, (MAX_INCOMING + 1).to_bytes(4, "big"))
    assert core.lost is not None
    assert core.lost.code == "protocol"


def test_a_second_challenge_is_refused(identity_bytes: bytes) -> None:
    core = opened(identity_bytes)
    feed(core, encode(CHALLENGE))
    assert core.lost is not None
    assert core.lost.code == "protocol"
