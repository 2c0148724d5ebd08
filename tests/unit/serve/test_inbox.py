"""Messages out of one reused buffer: any size, cut anywhere, and nothing that is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.serve import inbox
from runner.wire import recorder as wire
from runner.wire.frame import encode

SIZES = st.one_of(st.integers(0, 50), st.sampled_from([(64 << 10) - 30, 64 << 10, 200_000]))


def feed(box: inbox.Inbox, data: bytes) -> list[Any]:
    """One read of at most the room there is: what came of it, and so on until all is read."""
    found: list[Any] = []
    while data:
        room = box.room
        assert len(room)
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        found += box.take(count)
    return found


@given(st.lists(SIZES, max_size=6), st.lists(st.integers(1, 70_000), max_size=8))
def test_messages_come_back_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = [wire.Store(data=bytes([number]) * size) for number, size in enumerate(sizes)]
    stream = b"".join(encode(message) for message in sent)
    box, found = inbox.Inbox(wire.FromGate), list[Any]()
    for cut in [*cuts, len(stream)]:
        found += feed(box, stream[:cut])
        stream = stream[cut:]
    assert found == sent
    assert len(box.room) == 256 << 10  # a large frame's buffer is given back


def test_messages_do_not_refer_to_the_buffer() -> None:
    box = inbox.Inbox(wire.FromGate)
    (first,) = feed(box, encode(wire.Append(number=1, entry=b"first", contents=(b"kept",))))
    feed(box, encode(wire.Append(number=2, entry=b"other", contents=(b"else",))))
    assert (first.entry, first.contents) == (b"first", (b"kept",))


@pytest.mark.parametrize(
    "data",
    [bytes(4), b"\xff\xff\xff\xff", (inbox.MAX_INTERNAL_FRAME + 1).to_bytes(4, "big"), b"\x00\x00\x00\x01\xc1"],
)
def test_what_is_no_frame_or_no_message_is_refused(data: bytes) -> None:
    box = inbox.Inbox(wire.FromGate)
    whole = encode(wire.Store(data=b"x"))
    room = box.room
    room[: len(whole + data)] = whole + data
    messages = box.take(len(whole + data))
    assert next(messages) == wire.Store(data=b"x")  # what came before it was one
    with pytest.raises(RunnerError) as refused:
        next(messages)
    assert refused.value.refused.code == "protocol"
