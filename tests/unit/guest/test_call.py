"""A pipe of a running call: read at once, and left to fill for a moment after a small piece."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runner.guest import frame
from runner.guest.call import REST_S, Call

START = {"kind": "argv", "wall_ms": 60_000, "credit": 1 << 20, "stdin": False}
Watched = dict[int, Callable[[], None]]


class Running:
    """A call, what it has sent, and which of its pipes are watched."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.watched: Watched = {}
        self._nothing = os.open(os.devnull, os.O_RDWR)
        self.call = Call(1, START, self._nothing, self._watch, lambda kind, _, data: self.sent.append((kind, data)))
        self.call.started = True
        self.call.add_credit(0)
        self.tool = os.dup(self.call.theirs[1])  # its standard output

    def _watch(self, pipe: int, events: int, handler: Any = None) -> None:
        if events:
            self.watched[pipe] = handler
        else:
            self.watched.pop(pipe, None)

    def write(self, data: bytes) -> None:
        os.write(self.tool, data)
        for handler in list(self.watched.values()):
            handler()

    def close(self) -> None:
        self.call.shut()
        self.call.handed()
        os.close(self.tool)
        os.close(self._nothing)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


def test_a_small_piece_leaves_at_once_and_what_follows_is_gathered(running: Running) -> None:
    running.write(b"a\n")
    assert running.sent == [(frame.STDOUT, b"a\n")]
    for _ in range(100):
        running.write(b"b\n")
    assert len(running.sent) == 1  # it rests
    assert running.call.rests(time.monotonic())
    assert not running.call.rests(time.monotonic() + REST_S)
    running.write(b"")
    assert running.sent[1:] == [(frame.STDOUT, b"b\n" * 100)]


def test_large_pieces_do_not_wait(running: Running) -> None:
    for _ in range(3):
        running.write(bytes(8192))
    assert [len(data) for _, data in running.sent] == [8192] * 3
    assert not running.call.rests(time.monotonic())
