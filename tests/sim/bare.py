"""A daemon that is written down frame by frame: no tables, no verification, a plain socket in the test's hand."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from runner.client import Runner
from runner.model import Outcome
from runner.wire import agent
from runner.wire.frame import FrameReader, encode

_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(agent.FromClient)

CHALLENGE = agent.Challenge(versions=(1,), nonce="n", audience="a", time=1_700_000_000)


def welcome(**more: Any) -> agent.Welcome:
    fields: dict[str, Any] = {
        "session": "s",
        "task": "t",
        "agent": "a",
        "tools_digest": "d1",
        "max_frame": 1 << 20,
        "call_window": 64 << 10,
        "calls": 32,
        "heartbeat_ms": 30_000,
    }
    return agent.Welcome(**(fields | more))


def result(number: int, **more: Any) -> agent.Result:
    fields: dict[str, Any] = {"outcome": Outcome(kind="exited", exit_code=0), "receipt": "r", "position": number}
    return agent.Result(number=number, call=f"call-{number}", durable=False, **(fields | more))


class Bare:
    """One connection. `play` runs in a thread of its own."""

    def __init__(self, **more: Any) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX)
        self.ours.settimeout(20)
        self.seen: list[Any] = []
        self.error: BaseException | None = None
        self._welcome = welcome(**more)
        self._reader = FrameReader(1 << 24)
        self._thread: threading.Thread | None = None

    def send(self, *messages: Any) -> None:
        self.ours.sendall(b"".join(encode(message) for message in messages))

    def until(self, kind: type) -> Any:
        """Read up to the next message of a kind."""
        while True:
            for message in self.seen:
                if isinstance(message, kind):
                    self.seen.remove(message)
                    return message
            data = self.ours.recv(1 << 16)
            assert data, f"closed before a {kind.__name__}"
            self.seen += [_DECODER.decode(body) for body in self._reader.feed(data)]

    def open(self, credentials: bytes, play: Callable[[Bare], None] = lambda daemon: None) -> Runner:
        """A client of this daemon. After the handshake `play` goes on in a thread."""
        self.begin(play)
        return Runner(self.theirs, credentials)

    def begin(self, play: Callable[[Bare], None]) -> None:
        """Greet whoever connects to `theirs`, and play on, in a thread."""

        def run() -> None:
            try:
                self.send(CHALLENGE)
                self.until(agent.Hello)
                self.send(self._welcome)
                play(self)
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self.ours.close()
        if self._thread is not None:
            self._thread.join(20)
            assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            assert self._thread is not None
            self._thread.join(20)
        self.close()


def wait(ready: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@contextlib.contextmanager
def nagging(handler: Callable[[], object], enough: Callable[[], bool]) -> Iterator[None]:
    """Signals to the main thread until it is enough: one that comes just before a wait begins does not end it."""
    over = threading.Event()

    def nag() -> None:
        while not (enough() or over.is_set()):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            over.wait(0.01)

    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    thread = threading.Thread(target=nag)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)
        signal.signal(signal.SIGUSR1, before)
