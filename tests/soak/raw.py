"""A client of agent.sock of our own: it does what no honest one does."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec

from runner.client.credentials import Identity, find_credentials
from runner.wire import agent
from runner.wire.frame import FrameReader, encode

if TYPE_CHECKING:
    from house import Daemon

_DECODER = msgspec.msgpack.Decoder(agent.FromDaemon)


class Raw:
    """Frames by hand. Nothing is answered and no credit is given unless a test does it."""

    def __init__(self, daemon: Daemon, handed: bytes | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(daemon.place / "run" / "agent.sock"))
        self._reader = FrameReader(16 << 20)
        self._waiting: list[Any] = []
        self._identity = Identity(find_credentials(handed)) if handed else None
        self._number = 0

    def send(self, *messages: Any) -> None:
        self.sock.sendall(b"".join(encode(message) for message in messages))

    def next(self) -> Any:
        """The next message; None when the daemon has closed."""
        while not self._waiting:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self._waiting += [_DECODER.decode(body) for body in self._reader.feed(data)]
        return self._waiting.pop(0)

    def until(self, kind: type) -> Any:
        while not isinstance(message := self.next(), kind):
            assert message is not None, f"closed before a {kind.__name__}"
            if isinstance(message, agent.Ping):
                self.send(agent.Pong(token=message.token))
        return message

    def open(self) -> Raw:
        """Challenge, hello, welcome."""
        assert self._identity is not None
        proof = self._identity.prove_hello(self.until(agent.Challenge))
        self.send(agent.Hello(version=1, chain=self._identity.chain, proof=proof))
        self.until(agent.Welcome)
        return self

    def call(self, argv: list[str], **more: Any) -> agent.Call:
        return self.ask("shell_run", {"argv": argv}, **more)

    def ask(self, tool: str, arguments: dict[str, Any], **more: Any) -> agent.Call:
        assert self._identity is not None
        self._number += 1
        fields: dict[str, Any] = {"window": 65536, **more}
        return agent.Call(number=self._number, proof=self._identity.prove_call(tool, arguments), **fields)

    def closed(self) -> agent.Closing | None:
        """Read to the end; the closing message if there was one."""
        said = None
        while (message := self.next()) is not None:
            said = message if isinstance(message, agent.Closing) else said
        return said

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for this long; what came is kept."""
        self.sock.settimeout(seconds)
        try:
            message = self.next()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(20)
        self._waiting.insert(0, message)
        return False
