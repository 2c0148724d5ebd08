"""The proxy: a listener per call, a task per connection, requests one after the other.

CONNECT opens a tunnel, opaque or inspected; an absolute `http://` target is a request of its own. Anything else is
answered by what to do instead. After a refusal the connection is closed: nothing that was sent behind a refused request
is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from runner.config import Egress
from runner.destination import Destination, Malformed, absolute, authority, is_literal, method, origin
from runner.egress.allowlist import Allowlists
from runner.egress.authority import Authority
from runner.egress.body import Cut, Inlet
from runner.egress.calls import Call, Gate, Passage, denied
from runner.egress.exchange import Asked, Broken, Exchange, permit, reach
from runner.egress.head import Request, Syntax, parse_request
from runner.egress.inject import Leak, Watch
from runner.egress.link import Link, Stream, TlsLink
from runner.egress.refusals import Stop
from runner.egress.tunnel import read_hello, relay, same_name
from runner.egress.upstream import Resolver, client_context
from runner.model import Allowlist
from runner.wire.egress import Closed, Open, Requested

_log = logging.getLogger(__name__)
_ACCEPTS = 16  # connections of one call in one turn of the loop
_PAUSE_S = 0.1
_LINGER_S = 1.0  # for a refusal to be read by who is still sending
_LINGER_BYTES = 1 << 20
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_NO_CONNECTION = Stop("busy", "too many connections are open")


class Proxy:
    """Every open call. `trust` is a PEM bundle: whom egress believes upstream."""

    def __init__(self, config: Egress, trust: bytes, gate: Gate) -> None:
        self.config = config
        self.trust = trust
        self.context: ssl.SSLContext = client_context(trust)
        self.resolver = Resolver(config.hosts, config.nameservers, config.connect_s)
        self._gate = gate
        self._calls: dict[str, Call] = {}
        self._authorities: dict[str, Authority] = {}
        self._connections = 0

    # --- what gate asks for ---------------------------------------------------------------------------------

    def open(self, opened: Open, listener: socket.socket) -> None:
        """Serve this listener. Raises `ValueError` for rules that are not canonical, or a call that is open."""
        if opened.call in self._calls:
            raise ValueError("the call is open already")
        call = Call(opened, listener, self._gate)
        listener.setblocking(False)
        self._calls[call.id] = call
        self._listen(call)

    async def close(self, number: int, name: str) -> Closed:
        """End a call; when this returns nothing of it is left."""
        call = self._calls.pop(name, None)
        if call is None:
            return Closed(number=number)
        asyncio.get_running_loop().remove_reader(call.listener.fileno())
        call.end()
        return await call.ended(number)

    def bundle(self, sandbox: str) -> bytes:
        """Whom a sandbox should trust: the same as egress, and its own authority."""
        return self.trust.rstrip(b"\n") + b"\n" + self.authority(sandbox).pem

    def forget(self, sandbox: str) -> None:
        """The sandbox is gone."""
        self._authorities.pop(sandbox, None)

    def authority(self, sandbox: str) -> Authority:
        """The sandbox's own, made when it is first needed."""
        if sandbox not in self._authorities:
            self._authorities[sandbox] = Authority(sandbox)
        return self._authorities[sandbox]

    def adopt(self, config: Egress, trust: bytes) -> None:
        """New settings, for what begins from now on."""
        if (config.hosts, config.nameservers) != (self.config.hosts, self.config.nameservers):
            self.resolver = Resolver(config.hosts, config.nameservers, config.connect_s)
        if trust != self.trust:
            self.trust, self.context = trust, client_context(trust)
        self.config = config

    def replace(self, name: str, allowlists: tuple[Allowlist, ...]) -> None:
        """Other allowlists for an open call, for what it asks for from now on."""
        if name in self._calls:
            self._calls[name].allowlists = Allowlists(allowlists)

    def sweep(self, now: float) -> None:
        """Once a second: cut whatever has been silent for too long."""
        for call in self._calls.values():
            for link in tuple(call.links):
                if now - link.moved > self.config.idle_s:
                    link.silent = True
                    link.abort()

    async def shutdown(self) -> None:
        """End every call."""
        for name in tuple(self._calls):
            await self.close(0, name)
        await self.resolver.close()

    def _listen(self, call: Call) -> None:
        if not call.over:
            asyncio.get_running_loop().add_reader(call.listener.fileno(), self._accept, call)

    # --- connections ----------------------------------------------------------------------------------------

    def _accept(self, call: Call) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _address = call.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.error("a connection could not be accepted: %s", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(call.listener.fileno())
                loop.call_later(_PAUSE_S, self._listen, call)  # no descriptor is free: others may be closed by then
                return
            self._begin(call, sock)

    def _begin(self, call: Call, sock: socket.socket) -> None:
        """Serve one connection; one too many is told so in whatever its buffer takes."""
        link = Link(sock, call.links.discard)
        if call.connections >= self.config.connections_per_call or self._connections >= self.config.connections:
            with contextlib.suppress(OSError):
                sock.send(_NO_CONNECTION.answer())
            link.close()
            return
        call.attach(link)
        link.no_delay()
        self._connections += 1
        call.connections += 1
        call.run(self._serve(call, link))

    async def _serve(self, call: Call, link: Link) -> None:
        try:
            await Connection(self, call, link).serve()
            link.close()
        except Exception:
            _log.exception("a connection failed")  # a defect of ours: it ends this connection and no other
        finally:
            link.abort()
            self._connections -= 1
            call.connections -= 1


class Connection:
    """One connection of a sandbox."""

    def __init__(self, proxy: Proxy, call: Call, link: Link) -> None:
        self._proxy = proxy
        self._call = call
        self._link = link

    async def serve(self) -> None:
        """Until either side is done."""
        inlet = Inlet(self._link)
        await self._requests(self._link, inlet, self._first)

    async def _requests(
        self, stream: Stream, inlet: Inlet, each: Callable[[Exchange, Inlet, Request], Awaitable[bool]]
    ) -> None:
        """One request after the other, then a clean end; a refusal is the last thing said."""
        exchange = Exchange(self._proxy, self._call, self._link, stream, inlet)
        head: Request | None = None
        try:
            while True:
                head = None
                raw = await self._head(inlet)
                if not raw:
                    break
                head = self._parsed(raw)
                if not await each(exchange, inlet, head):
                    break
            await stream.end()
            await self._linger(stream)
        except Stop as stop:
            with contextlib.suppress(OSError):
                await stream.write(stop.answer(body=head is None or head.method != "HEAD"))
                await stream.end()
                await self._linger(stream)
        except (Broken, OSError, Cut):
            stream.abort()
        finally:
            exchange.close()

    async def _head(self, inlet: Inlet) -> bytes:
        """The next request's head; b"" when there is none. Raises `Stop`."""
        if not await inlet.arrived():
            return b""
        config = self._proxy.config
        try:
            async with asyncio.timeout(config.head_s):
                return await inlet.head(config.head_bytes)
        except Syntax as error:
            raise self._refused(str(error)) from None
        except TimeoutError:
            raise self._refused(f"the request's head took longer than {config.head_s:g} s", "timeout") from None

    def _parsed(self, raw: bytes) -> Request:
        try:
            return parse_request(raw, self._proxy.config.headers)
        except Syntax as error:
            raise self._refused(str(error)) from None

    def _refused(self, reason: str, code: str = "syntax", where: Destination | None = None) -> Stop:
        """Refuse what is not even a request that could be judged."""
        stop = Stop(code, reason, part="syntax")
        self._tell(stop, where)
        return stop

    def _tell(self, stop: Stop, where: Destination | None = None, protocol: str = "http") -> None:
        host, port = where or ("", 0)
        asked = Requested(
            id=self._call.number(),
            protocol="https" if protocol == "https" else "http",
            host=host,
            port=port,
            visibility="opaque" if protocol == "https" else "head",
        )
        self._call.refused(asked, stop)

    async def _linger(self, stream: Stream) -> None:
        """Let the last answer be read: closing on unread bytes would take it back (RFC 9112 §9.6)."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                left = _LINGER_BYTES
                while left > 0 and (data := await stream.read()):
                    left -= len(data)

    # --- kinds of request -----------------------------------------------------------------------------------

    async def _first(self, exchange: Exchange, inlet: Inlet, head: Request) -> bool:
        """A request to the proxy itself."""
        if head.method == "CONNECT":
            await self._connect(inlet, head)
            return False
        if head.target.startswith("/") or head.target == "*":
            raise self._refused(
                "this is a proxy: ask for a whole URL (GET http://host/path), or use CONNECT for https; "
                "clients do so when http_proxy and https_proxy are set"
            )
        try:
            target = absolute(head.target)
            method(head.method)
            where = Destination(target.host, target.port)
            if head.header(b"host") is not None:
                self._same_host(head, where, 80)
        except Malformed as error:
            raise self._refused(str(error)) from None
        return await exchange.carry(Asked(self._fit(head), where, target.path, target.query, secure=False))

    async def _inner(self, where: Destination, exchange: Exchange, head: Request) -> bool:
        """A request inside an inspected tunnel."""
        try:
            path, query = origin(head.target)
            method(head.method)
            if head.header(b"host") is None:
                raise Malformed("Host is missing")
            self._same_host(head, where, 443)
        except Malformed as error:
            raise self._refused(str(error), where=where) from None
        return await exchange.carry(Asked(self._fit(head), where, path, query, secure=True))

    def _fit(self, head: Request) -> Request:
        if head.upgrade and head.length:
            raise self._refused("a request that asks for an upgrade has no body")
        return head

    def _same_host(self, head: Request, where: Destination, default: int) -> None:
        value = (head.header(b"host") or b"").decode("latin-1")
        if authority(value, default) != where:
            raise Malformed("Host names another place than the request's target")

    # --- tunnels --------------------------------------------------------------------------------------------

    async def _connect(self, inlet: Inlet, head: Request) -> None:
        call = self._call
        try:
            where = authority(head.target)
            if head.header(b"host") is not None:
                self._same_host(head, where, where.port)
            if head.length or head.upgrade or head.expect:
                raise Malformed("CONNECT has neither a body nor an upgrade")
        except Malformed as error:
            raise self._refused(str(error)) from None
        try:
            verdict = call.allowlists.connect(*where)
            call.credentials.fill((), "", "", head.headers)
            if not verdict.allowed:
                raise denied(verdict)
        except Leak as leak:
            raise self._told(call.leaked(call.number(), leak), where) from None
        except Stop as stop:
            raise self._told(stop, where) from None
        if verdict.inspect:
            await self._inspected(inlet, where)
        else:
            await self._opaque(inlet, where, verdict.protocol == "tcp")

    def _told(self, stop: Stop, where: Destination) -> Stop:
        self._tell(stop, where, "https")
        return stop

    async def _inspected(self, inlet: Inlet, where: Destination) -> None:
        """End TLS here, so that each request inside can be judged."""
        await self._link.write(_ESTABLISHED)
        try:
            ahead = await self._hello(inlet.rest(), where)
            context = self._proxy.authority(self._call.sandbox).context(where.host)
            stream = TlsLink(self._link, context, ahead=ahead, server=True)
            async with asyncio.timeout(self._proxy.config.head_s):
                await stream.handshake()
        except (Stop, TimeoutError, ssl.SSLError) as error:
            stop = error if isinstance(error, Stop) else Stop("name", _handshake(error), part="tls")
            self._told(stop, where)
            raise Broken(stop) from None

        async def each(exchange: Exchange, _: Inlet, head: Request) -> bool:
            return await self._inner(where, exchange, head)

        await self._requests(stream, Inlet(stream), each)

    async def _hello(self, ahead: bytes, where: Destination) -> bytes:
        """The bytes of a hello to the tunnel's own name. Raises `Stop`."""
        try:
            async with asyncio.timeout(self._proxy.config.head_s):
                hello, data = await read_hello(self._link, ahead)
        except TimeoutError:
            raise Stop("timeout", "TLS did not begin in time", part="tls") from None
        same_name(hello, where.host, literal=is_literal(where.host))
        return data

    async def _opaque(self, inlet: Inlet, where: Destination, tcp: bool) -> None:
        """A tunnel that stays closed to us: judged once, compared with its first bytes, counted."""
        call = self._call
        requested = Requested(
            id=call.number(),
            protocol="tcp" if tcp else "https",
            host=where.host,
            port=where.port,
            visibility="opaque",
        )
        try:
            verdict = call.allowlists.authorise(requested)
            if not verdict.allowed:
                raise denied(verdict)
            if call.bound(verdict):
                raise Stop(
                    "injection", "a credential is bound to this destination, and an opaque tunnel cannot carry it"
                )
            passage = Passage(call, verdict, requested.id)
            passage.enter()
        except Stop as stop:
            call.refused(requested, stop)
            raise
        await permit(call, requested, verdict, passage)
        ended: Stop | None = None
        upstream: Link | None = None
        established = False
        try:
            upstream, _ = await reach(self._proxy, call, verdict, where, passage)
            await self._link.write(_ESTABLISHED)
            established = True
            ahead = inlet.rest() if tcp else await self._hello(inlet.rest(), where)
            watch = Watch(call.credentials.needles, "opaque tunnel") if call.credentials.needles else None
            again = None if tcp else (where.host, is_literal(where.host))
            await relay(self._link, upstream, passage, ahead=ahead, watch=watch, again=again)
        except Stop as stop:
            ended = stop
        except Leak as leak:
            ended = call.leaked(requested.id, leak)
        except OSError:
            silent = self._link.silent or (upstream is not None and upstream.silent)
            idle = Stop("timeout", f"no byte passed for {self._proxy.config.idle_s:g} s")
            ended = idle if silent else Stop("upstream", "a connection broke")
        finally:
            if call.over and ended is None:
                ended = Stop("interrupted", "the call is over")
            passage.over(ended)
            if upstream is not None:
                upstream.abort() if ended is not None else upstream.close()
        if ended is not None:
            if ended.part == "address":
                call.refused(requested, ended)
            raise Broken(ended) if established else ended


def _handshake(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the TLS of the tunnel did not begin in time"
    return f"the client does not accept this proxy's TLS: {getattr(error, 'reason', '') or 'cut'}"
