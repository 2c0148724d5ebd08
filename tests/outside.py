"""A proxy in a thread, a gate that records, and servers on loopback: what every test of egress asks for."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import ipaddress
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
import trustme
import uvloop

from runner.config import Egress
from runner.egress.calls import Readable
from runner.egress.link import Link
from runner.egress.server import Proxy
from runner.model import Allowlist, EgressRule
from runner.wire import egress as wire

LOOPBACK = ("127.0.0.0/8",)
NAME = "api.example.test"
DEADLINE_S = 20.0


def rule(name: str = "api", host: str = NAME, port: int = 443, **more: Any) -> EgressRule:
    """A rule for a server on loopback."""
    return EgressRule(name=name, host=host, ports=(port,), addresses=more.pop("addresses", LOOPBACK), **more)


class Recorded:
    """A gate: remembers what it is told and asked, and answers what the test says."""

    def __init__(self) -> None:
        self.asked: list[wire.Requested] = []
        self.read: list[Readable] = []
        self.looked: list[tuple[int, bytes, bool]] = []
        self.judge: Callable[[bytes], wire.Answer] = lambda _: wire.Answer(number=0, allowed=True)
        self.told: list[Any] = []
        self.kept: list[tuple[int, bytes]] = []
        self.wanted = 1 << 30  # pieces after which no more is
        self.decide: Callable[[wire.Requested], wire.Answer] = lambda _: wire.Answer(number=0, allowed=True)

    async def ask(self, call: str, request: wire.Requested, readable: Readable) -> wire.Answer:
        self.asked.append(request)
        self.read.append(readable)
        return self.decide(request)

    async def look(self, call: str, request: int, data: bytes, *, last: bool) -> wire.Answer:
        self.looked.append((request, data, last))
        return self.judge(data)

    async def keep(self, call: str, request: int, data: bytes) -> bool:
        self.kept.append((request, data))
        return len(self.kept) <= self.wanted

    def post(self, message: Any) -> None:
        self.told.append(message)

    def of(self, kind: type) -> list[Any]:
        """What was told of this kind, in order."""
        return [message for message in self.told if isinstance(message, kind)]


class Origin:
    """A server on loopback: `serve(connection)` in a thread for each connection that was made to it."""

    def __init__(
        self, serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self._serve = serve
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.dialled = 0
        self.received = bytearray()  # what handlers note here
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.dialled += 1
            thread = threading.Thread(target=self._handle, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE_S)
        self._open.add(connection)
        with contextlib.suppress(OSError):
            if self._context is not None:
                plain, connection = connection, self._context.wrap_socket(connection, server_side=True)
                self._open.discard(plain)
                self._open.add(connection)
            self._serve(connection)
        with contextlib.suppress(OSError):
            connection.close()
        self._open.discard(connection)

    def close(self) -> None:
        """Everything of it is gone when this returns."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked, as JSON."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = {
            "method": self.command,
            "target": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
        }
        self.server.seen.append(seen)  # type: ignore[attr-defined]
        shown = seen if self.server.echo else {"ok": True}  # type: ignore[attr-defined]
        text = json.dumps(shown).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = _answer  # noqa: N815  # the library asks for it

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class _Closing(ssl.SSLSocket):
    """Closed when it is dropped: ssl drops the socket it began to make when the peer was gone by then."""

    def __del__(self) -> None:
        self.close()


class Web:
    """An HTTP server that remembers what it was asked; over TLS when given a context."""

    def __init__(
        self, context: ssl.SSLContext | None = None, handler: type[http.server.BaseHTTPRequestHandler] = Echo
    ) -> None:
        outer = self
        if context is not None:
            context.sslsocket_class = _Closing

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = False
            block_on_close = True

            def get_request(self) -> Any:
                connection, address = super().get_request()
                outer.dialled += 1
                connection.settimeout(DEADLINE_S)
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                outer.open.append(connection)
                return connection, address

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that hang up are what some tests are about."""

        self.dialled = 0
        self.open: list[socket.socket] = []
        self._server = Server(("127.0.0.1", 0), handler)
        self.seen: list[dict[str, Any]] = []
        self._server.seen = self.seen  # type: ignore[attr-defined]
        self._server.echo = True  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def quiet(self) -> Web:
        """Do not repeat what was asked."""
        self._server.echo = False  # type: ignore[attr-defined]
        return self

    def close(self) -> None:
        """Everything of it is gone when this returns."""
        self._server.shutdown()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()


class Beyond(BaseException):
    """The proxy was about to dial what is not loopback: stopped before anything was sent, and no `OSError` to it."""


async def _dial(link: Link, address: tuple[str, int]) -> None:
    """What a proxy under test connects by. A check that is missing must not be found by what leaves."""
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise Beyond(address)
    await _CONNECT(link, address)


_CONNECT = Link.connect


class Outside:
    """A proxy, its gate, and whatever servers a test starts. It dials loopback, or fails."""

    def __init__(self, authority: trustme.CA | None = None, **settings: Any) -> None:
        self.gate = Recorded()
        self.authority = authority or trustme.CA()
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(mock.patch.object(Link, "connect", _dial))
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.config = Egress(**{"hosts": {NAME: ("127.0.0.1",), "other.example.test": ("127.0.0.1",)}, **settings})
        self.listeners: dict[str, int] = {}
        self.proxy: Proxy = self.run(self._make())
        self._sweeper = asyncio.run_coroutine_threadsafe(self._sweep(), self._loop)

    async def _make(self) -> Proxy:
        return Proxy(self.config, self.authority.cert_pem.bytes(), self.gate)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.proxy.sweep(self._loop.time())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Carry this out where the proxy runs."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def open(
        self,
        *rules: EgressRule,
        call: str = "c1",
        sandbox: str = "s1",
        profile: tuple[EgressRule, ...] | None = None,
        injections: tuple[wire.Injection, ...] = (),
        canary: str = "",
        blind: bool = False,
    ) -> int:
        """Open a call of which the tool has these rules, and the profile the same or its own. Returns the port."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port: int = listener.getsockname()[1]
        parts = (
            Allowlist(part="profile default", rules=profile or rules),
            Allowlist(part="tool fetch", rules=rules),
        )
        message = wire.Open(
            number=1,
            call=call,
            sandbox=sandbox,
            allowlists=parts,
            injections=injections,
            canary=canary,
            blind=blind,
        )

        async def opened() -> None:
            self.proxy.open(message, listener)

        self.run(opened())
        return port

    def end(self, call: str = "c1") -> wire.Closed:
        """Close a call."""

        async def close() -> wire.Closed:
            return await self.proxy.close(2, call)

        closed: wire.Closed = self.run(close())
        return closed

    def tls(self, *names: str) -> ssl.SSLContext:
        """A server's context for these names, by the authority that the proxy trusts."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*(names or (NAME,))).configure_cert(context)
        return context

    def bundle(self, sandbox: str = "s1") -> bytes:
        """Whom a sandbox trusts."""

        async def made() -> bytes:
            return self.proxy.bundle(sandbox)

        found: bytes = self.run(made())
        return found

    def client_tls(self, sandbox: str = "s1") -> ssl.SSLContext:
        """A client's context as a sandbox has it."""
        return ssl.create_default_context(cadata=self.bundle(sandbox).decode())

    def web(self, context: ssl.SSLContext | None = None, **more: Any) -> Web:
        """A web server."""
        made = Web(context, **more)
        self._stack.callback(made.close)
        return made

    def origin(self, serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Origin:
        """A server that does as it is told."""
        made = Origin(serve, context)
        self._stack.callback(made.close)
        return made

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Until it is so."""
        limit = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert time.monotonic() < limit, "it never came"
            time.sleep(0.005)
        return found

    def close(self) -> None:
        """Everything is gone when this returns."""
        self._sweeper.cancel()
        self.run(self.proxy.shutdown())
        self._stack.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Dns:
    """A DNS server on loopback that gives each query for an A record the next of its answers, for no time at all."""

    def __init__(self, answers: Callable[[int], list[str]]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self.asked = 0
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, peer = self._sock.recvfrom(4096)
            if query == b"stop":
                return
            end = query.index(b"\0", 12) + 5
            kind = struct.unpack(">H", query[end - 4 : end - 2])[0]
            found: list[bytes] = []
            if kind == 1:
                found = [socket.inet_aton(each) for each in self._answers(self.asked)]
                self.asked += 1
            head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
            records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + each for each in found)
            self._sock.sendto(head + query[12:end] + records, peer)

    def close(self) -> None:
        """Gone when this returns."""
        self._sock.sendto(b"stop", ("127.0.0.1", self.port))
        self._thread.join()
        self._sock.close()


def talk(port: int, data: bytes, *, half_close: bool = False, wait_s: float = DEADLINE_S) -> bytes:
    """Send these bytes to the proxy; everything that it says until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        return drained(sock)


def drained(sock: socket.socket) -> bytes:
    """What comes until the end, or until it is cut."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            found += data
    return found


def refused(answer: bytes) -> dict[str, Any]:
    """What a refusal says; fails when the answer is none."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"X-Runner-Refused: " in head, answer[:300]
    found: dict[str, Any] = msgspec.json.decode(body)
    return found


def tunnel(port: int, where: str) -> socket.socket:
    """A CONNECT that was allowed."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    sock.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            break
        answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        answer += drained(sock)
        sock.close()
        raise AssertionError(answer.decode("latin-1"))
    return sock


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A proxy on loopback and what a test needs around it."""
    made = Outside()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def make_outside() -> Iterator[Callable[..., Outside]]:
    """Proxies with settings of their own: `make_outside(idle_s=0.2)`."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Outside:
            made = Outside(**settings)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def dns() -> Iterator[Callable[[Callable[[int], list[str]]], Dns]]:
    """Name servers: `dns(lambda number: ["198.51.100.9"])`."""
    with contextlib.ExitStack() as stack:

        def make(answers: Callable[[int], list[str]]) -> Dns:
            made = Dns(answers)
            stack.callback(made.close)
            return made

        yield make
