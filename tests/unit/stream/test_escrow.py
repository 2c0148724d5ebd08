"""What is taken comes back byte by byte, nothing leaves in clear, and no more is kept than was asked for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.ledger.escrow import PIECES, SEGMENT, Identities, Recipients, new_identity
from runner.model import RawMode
from runner.stream.escrow import Escrow, Place
from runner.wire.recorder import WITH_ENTRY, StoreClose, StoreOpen, StoreWrite

SECRET, PUBLIC = new_identity()
KEYS = Recipients((PUBLIC,))
SALT = b"s" * 16


class Store:
    """A recorder that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[StoreOpen | StoreWrite | StoreClose] = []

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        self.sent.append(message)

    def content(self) -> bytes:
        """What was closed under its name."""
        opened, *written, closed = self.sent
        assert isinstance(opened, StoreOpen)
        assert isinstance(closed, StoreClose)
        data = opened.salt + b"".join(each.data for each in written if isinstance(each, StoreWrite))
        assert not closed.drop
        assert hashlib.sha256(data).hexdigest() == closed.digest
        return data


def take(
    pieces: Sequence[tuple[Place, bytes]], mode: RawMode = "always", *, limit: int = 1 << 30, **end: bool
) -> tuple[Any, bytes, Store]:
    """The outcome's word, what is kept (salt first), and the recorder."""
    store = Store()
    escrow = Escrow(store, KEYS, call="c1", mode=mode, limit=limit, number=7, salt=lambda: SALT)

    async def run() -> tuple[Any, tuple[bytes, ...]]:
        for place, data in pieces:
            if escrow.full and place != "value":
                escrow.lose(len(data))
                continue
            escrow.take(place, data)
            await escrow.flush()
        return await escrow.close(**{"found": False, "held": False} | end)

    raw, contents = asyncio.run(run())
    content = contents[0] if contents else store.content() if raw is not None else b""
    if raw is not None:
        assert raw.content.digest == hashlib.sha256(content).hexdigest()
        assert raw.content.size == len(content) - len(SALT)
        assert content.startswith(SALT)
    return raw, content, store


def joined(pieces: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The same with neighbours of one stream made one."""
    found: list[tuple[str, bytes]] = []
    for name, data in pieces:
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + data)
        elif data:
            found.append((name, data))
    return found


PIECES_OF = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=400)), max_size=30)


@settings(max_examples=60)
@given(PIECES_OF, st.integers(1, 400))
def test_what_was_taken_is_what_is_opened(pieces: list[tuple[Place, bytes]], times: int) -> None:
    given_ = [(name, data * times) for name, data in pieces]
    raw, content, _ = take(given_)
    found = list(Identities(SECRET).open([content[len(SALT) :]], "c1"))
    assert joined(found) == joined(given_)
    if not any(data for _, data in given_):
        assert raw is None
        return
    for name in ("stdout", "stderr"):
        assert getattr(raw, name) == sum(len(data) for stream, data in given_ if stream == name)
    assert (raw.kept, raw.lost, raw.recipients) == ("always", 0, KEYS.fingerprints)


def test_little_travels_with_its_entry_and_more_goes_ahead_in_segments() -> None:
    raw, content, store = take([("stdout", b"x" * 1000), ("stderr", b"y"), ("value", b"{}")])
    assert store.sent == []
    assert (raw.segments, raw.stdout, raw.stderr, raw.result) == (1, 1000, 1, 2)
    assert len(content) <= WITH_ENTRY
    raw, content, store = take([("stdout", b"x" * (3 * SEGMENT + 1))])
    assert raw.segments == 4
    assert [type(each) for each in store.sent] == [StoreOpen, StoreWrite, StoreWrite, StoreClose]
    assert b"x" * 32 not in content


def test_a_tool_that_changes_stream_with_every_byte_makes_bounded_segments() -> None:
    raw, content, _ = take([("stdout", b"o"), ("stderr", b"e")] * (2 * PIECES))
    assert raw.segments == 4
    assert len(list(Identities(SECRET).open([content[16:]], "c1"))) == 4 * PIECES


@pytest.mark.parametrize(
    ("mode", "end", "kept"),
    [
        ("always", {}, "always"),
        ("filtered", {}, None),
        ("filtered", {"found": True}, "filtered"),
        ("filtered", {"found": True, "held": True}, "held"),
        ("held", {"found": True}, None),
        ("held", {"held": True}, "held"),
        ("never", {"found": True, "held": True}, None),
    ],
)
@pytest.mark.parametrize("size", [100, 2 * SEGMENT])
def test_it_is_kept_when_the_profile_says_so(mode: RawMode, end: dict[str, bool], kept: str | None, size: int) -> None:
    raw, content, store = take([("stdout", b"x" * size)], mode, **end)
    assert (raw.kept if raw else None) == kept
    if kept:
        assert b"".join(data for _, data in Identities(SECRET).open([content[16:]], "c1")) == b"x" * size
    elif size > SEGMENT:
        assert store.sent[-1] == StoreClose(stream=7, drop=True)
    else:
        assert store.sent == []


def test_what_is_dropped_at_once_was_never_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> bytes:
        raise AssertionError("it was encrypted")

    monkeypatch.setattr(Recipients, "seal", no)
    assert take([("stdout", b"x" * (SEGMENT - 1))], "filtered")[0] is None
    with pytest.raises(AssertionError):
        take([("stdout", b"x")], "filtered", found=True)


def test_what_comes_after_the_limit_is_said_to_be_lost() -> None:
    """The piece that reaches it is whole: whatever a filter lets through is kept."""
    raw, content, _ = take([("stdout", b"x" * 6), ("stderr", b"y" * 6), ("stdout", b"z"), ("value", b"{}")], limit=10)
    assert (raw.stdout, raw.stderr, raw.result, raw.lost) == (6, 6, 2, 1)
    assert b"z" not in b"".join(data for _, data in Identities(SECRET).open([content[16:]], "c1"))
    raw, _, _ = take([("stdout", b"x" * 9), ("stderr", b"y")], limit=11)
    assert (raw.stdout, raw.stderr, raw.lost) == (9, 1, 0)


def test_nothing_that_was_sent_is_in_clear() -> None:
    marker = b"the-words-of-a-customer"
    raw, content, store = take([("stdout", marker * 20_000)])
    assert raw.stdout == len(marker) * 20_000
    assert marker not in content
    assert not any(marker in each.data for each in store.sent if isinstance(each, StoreWrite))
