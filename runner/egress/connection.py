"""One connection of a sandbox: its requests one after the other, and the tunnels that they open.

CONNECT opens a tunnel, opaque or inspected; an absolute `http://` target is a request of its own. Anything else is
answered by what to do instead. After a refusal the connection is closed: nothing that was sent behind a refused request
is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

from runner.destination import Destination, Malformed, absolute, authority, is_literal, method, origin
from runner.egress.allowlist import Verdict
from runner.egress.authority import Authority
from runner.egress.body import Cut, Inlet
from runner.egress.calls import Call, Passage, as_judged, denied
from runner.egress.exchange import DEFECT, Broken, Exchange, House, permit, reach
from runner.egress.head import Request, Syntax, parse_request
from runner.egress.hello import Hello
from runner.egress.inject import Leak, Watch
from runner.egress.link import Link, Stream, TlsLink
from runner.egress.refusals import Stop
from runner.egress.transfer import Asked
from runner.egress.tunnel import read_hello, relay, same_name
from runner.wire.egress import Requested

_LINGER_S = 1.0  # for a refusal to be read by who is still sending
_LINGER_BYTES = 1 << 20
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Front(House, Protocol):
    """What a connection needs of the proxy."""

    def authority(self, sandbox: str) -> Authority:
        """The certificate authority of a sandbox."""


class Connection:
    """One connection of a sandbox."""

    def __init__(self, proxy: Front, call: Call, link: Link) -> None:
        self.proxy = proxy
        self.call = call
        self.link = link

    async def serve(self) -> None:
        """Until either side is done."""
        inlet = Inlet(self.link)
        await self._requests(self.link, inlet, self._first)

    async def _requests(
        self, stream: Stream, inlet: Inlet, each: Callable[[Exchange, Inlet, Request], Awaitable[bool]]
    ) -> None:
        """One request after the other, then a clean end; a refusal is the last thing said."""
        exchange = Exchange(self.proxy, self.call, self.link, stream, inlet)
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
            exchange.release()
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
        config = self.proxy.config
        try:
            async with asyncio.timeout(config.head_s):
                return await inlet.head(config.head_bytes)
        except Syntax as error:
            raise self._refused(str(error)) from None
        except TimeoutError:
            raise self._refused(f"the request's head took longer than {config.head_s:g} s", "timeout") from None

    def _parsed(self, raw: bytes) -> Request:
        try:
            return parse_request(raw, self.proxy.config.headers)
        except Syntax as error:
            raise self._refused(str(error)) from None

    def _refused(self, reason: str, code: str = "syntax", where: Destination | None = None) -> Stop:
        """Refuse what is not even a request that could be judged."""
        stop = Stop(code, reason, part="syntax")
        host, port = where or ("", 0)
        asked = Requested(id=self.call.number(), protocol="http", host=host, port=port, visibility="head")
        self.call.refused(asked, stop)
        return stop

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
        call = self.call
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
            number = call.number()
            raise self._told(call.leaked(number, leak), where, number) from None
        except Stop as stop:
            raise self._told(stop, where) from None
        if verdict.inspect:
            await self._inspected(inlet, where)
        else:
            await self._opaque(inlet, where, verdict.protocol == "tcp")

    def _told(self, stop: Stop, where: Destination, number: int = 0) -> Stop:
        """Refuse a tunnel."""
        asked = Requested(
            id=number or self.call.number(), protocol="https", host=where.host, port=where.port, visibility="opaque"
        )
        self.call.refused(asked, stop)
        return stop

    async def _inspected(self, inlet: Inlet, where: Destination) -> None:
        """End TLS here, so that each request inside can be judged."""
        await self.link.write(_ESTABLISHED)
        try:
            _, ahead = await self.hello(inlet.rest(), where)
            context = self.proxy.authority(self.call.sandbox).context(where.host)
            stream = TlsLink(self.link, context, ahead=ahead, server=True)
            async with asyncio.timeout(self.proxy.config.head_s):
                await stream.handshake()
        except (Stop, TimeoutError, ssl.SSLError) as error:
            stop = error if isinstance(error, Stop) else Stop("name", _handshake(error), part="tls")
            self._told(stop, where)
            raise Broken(stop) from None

        async def each(exchange: Exchange, _: Inlet, head: Request) -> bool:
            return await self._inner(where, exchange, head)

        await self._requests(stream, Inlet(stream), each)

    async def hello(self, ahead: bytes, where: Destination) -> tuple[Hello, bytes]:
        """A hello to the tunnel's own name, and all bytes read with it. Raises `Stop`."""
        try:
            async with asyncio.timeout(self.proxy.config.head_s):
                hello, data = await read_hello(self.link, ahead)
        except TimeoutError:
            raise Stop("timeout", "TLS did not begin in time", part="tls") from None
        same_name(hello, where.host, literal=is_literal(where.host))
        return hello, data

    async def _opaque(self, inlet: Inlet, where: Destination, tcp: bool) -> None:
        """A tunnel that stays closed to us: judged once, compared with its first bytes, counted."""
        call = self.call
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
            requested = as_judged(requested, verdict)
            if call.bound(verdict.rules):
                raise Stop("injection", "a credential is bound to this destination; an opaque tunnel cannot carry it")
            passage = Passage(call, verdict, requested.id)
            passage.enter()
        except Stop as stop:
            call.refused(requested, stop)
            raise
        await permit(call, requested, verdict, passage)
        await _Opaque(self, where, tcp).carry(inlet, requested, verdict, passage)


class _Opaque:
    """An opaque tunnel that gate has allowed."""

    def __init__(self, connection: Connection, where: Destination, tcp: bool) -> None:
        self._connection = connection
        self._where = where
        self._tcp = tcp
        self._upstream: Link | None = None
        self._established = False

    async def carry(self, inlet: Inlet, requested: Requested, verdict: Verdict, passage: Passage) -> None:
        """Until it ends; gate is told how. Raises `Stop` while nothing was answered, then `Broken`."""
        call, ended = self._connection.call, None
        try:
            await self._carry(inlet, verdict, passage)
        except Stop as stop:
            ended = stop
            if stop.part == "address":
                call.refused(requested, stop)
        except Leak as leak:
            ended = call.leaked(requested.id, leak)
        except OSError:
            ended = self._gone()
        except asyncio.CancelledError:
            ended = Stop("interrupted", "the call is over")
            raise
        except Exception:
            ended = DEFECT
            raise
        finally:
            passage.over(ended)
            if self._upstream is not None:
                self._upstream.close() if ended is None else self._upstream.abort()
        if ended is not None:
            raise Broken(ended) if self._established else ended

    async def _carry(self, inlet: Inlet, verdict: Verdict, passage: Passage) -> None:
        mine, call, proxy = self._connection.link, self._connection.call, self._connection.proxy
        self._upstream, _ = await reach(proxy, call, verdict, self._where, passage)
        self._upstream.partner = mine
        await mine.write(_ESTABLISHED)
        self._established = True
        hello, ahead = None, inlet.rest()
        if not self._tcp:
            hello, ahead = await self._connection.hello(ahead, self._where)
        watch = Watch(call.credentials.needles, "opaque tunnel") if call.credentials.needles else None
        await relay(mine, self._upstream, passage, ahead=ahead, watch=watch, hello=hello)

    def _gone(self) -> Stop | None:
        """Why a link failed. Where the tunnel stood, one side hung up without a word, as many do: the TLS inside says
        whether anything is missing."""
        if self._connection.call.over:
            return Stop("interrupted", "the call is over")
        if self._connection.link.silent or (self._upstream is not None and self._upstream.silent):
            return Stop("timeout", f"no byte passed for {self._connection.proxy.config.idle_s:g} s")
        return None if self._established else Stop("upstream", "a connection broke")


def _handshake(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the TLS of the tunnel did not begin in time"
    return f"the client does not accept this proxy's TLS: {getattr(error, 'reason', '') or 'cut'}"
