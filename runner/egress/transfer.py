"""The bytes of one allowed request, and of its response.

Both sides speak HTTP/1.1 with us and never with each other: every head is written anew from what was judged, every body
is framed anew, and what one side sends out of turn ends the connection. Redirects are answers like any other. Bodies
pass as they are: nothing is decompressed.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from runner.config import Egress
from runner.destination import PORTS, Destination
from runner.egress.body import Body, Cut, Inlet, chunk
from runner.egress.calls import Call, Passage
from runner.egress.head import CHUNKED, UNTIL_CLOSE, Request, Response, Syntax, end_to_end, parse_response, render
from runner.egress.inject import Filled, Filter, Needles, Watch
from runner.egress.link import Stream
from runner.egress.refusals import Stop
from runner.egress.shown import Pieces
from runner.egress.tunnel import exceeded, relay
from runner.egress.upstream import Upstream

_BUFFERED = 256 << 10  # a body that a credential may go into is counted anew when it is no longer than this
_INFORMATIONAL = 16  # responses before the final one
_SHOWN = 8  # a credential shorter than this would be found everywhere


class Sides(Protocol):
    """The connection that a request came by."""

    @property
    def config(self) -> Egress:
        """The proxy's settings."""

    call: Call
    stream: Stream
    inlet: Inlet

    def release(self) -> None:
        """The upstream connection serves no other request."""


class Asked(NamedTuple):
    """A request as the sandbox put it, canonical."""

    head: Request
    where: Destination
    path: str
    query: str
    secure: bool


class Transfer:
    """The bytes of one request and its response."""

    def __init__(
        self, exchange: Sides, asked: Asked, body: Pieces, filled: Filled, content: Filter, passage: Passage
    ) -> None:
        self._exchange = exchange
        self._config = exchange.config
        self._asked = asked
        self._body = body
        self._filled = filled
        self._content = content
        self._passage = passage
        self._sandbox = exchange.stream
        self._inlet = exchange.inlet
        self._watch = Watch(exchange.call.credentials.needles, "bytes after the upgrade")
        shown = {*filled.shown, *content.values}
        self._secret = bool(shown)
        self._echo = Filter(Needles((each, "credential") for each in shown if len(each) >= _SHOWN), "response")
        self._closes = False  # the end of the response is the end of the connection
        self._recording = passage.recording
        self.sent = False  # anything of the request
        self.answered = False  # anything of the response

    async def answer(self, upstream: Upstream) -> bool:
        """Send, and pass the answer on. Returns whether the sandbox's connection goes on."""
        head = self._asked.head
        body, length, first = self._body, head.length, b""
        if self._content.rewrites and not body.over:
            first, length = await self._gathered(body)
        await self._send(upstream, self._request_head(length))
        self.sent = True
        if first:
            await self._send(upstream, first)
        if body.over:
            keep = await self._down(upstream)
        else:
            keep = await self._both_ways(upstream, body, length)
        if keep is None:
            return False
        if not keep:
            self._exchange.release()
        return head.keep and body.over and not self._closes

    async def _both_ways(self, upstream: Upstream, body: Pieces, length: int) -> bool | None:
        """Body up and response down at once: a destination may answer before it has read everything."""
        up = asyncio.ensure_future(self._up(upstream, body, length))
        down = asyncio.ensure_future(self._down(upstream))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            broke = up.exception() if up.done() else None
            if broke is not None and not isinstance(broke, OSError):
                raise broke
            keep = await down  # also where writing broke: a destination may have answered and read no further
            return keep if keep is None or (up.done() and broke is None) else False
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    # --- towards the destination ----------------------------------------------------------------------------

    def _request_head(self, length: int) -> bytes:
        asked, head = self._asked, self._asked.head
        default = asked.where.port == PORTS["https" if asked.secure else "http"]
        host = str(asked.where).removesuffix(f":{asked.where.port}") if default else str(asked.where)
        kept = end_to_end(tuple(self._filled.headers))
        headers = [(b"Host", host.encode()), *((name, value) for name, value in kept if name not in _OURS)]
        if self._filled.shown or self._content.rewrites:  # what comes back must be readable
            headers = [(name, value) for name, value in headers if name != b"accept-encoding"]
            headers.append((b"Accept-Encoding", b"identity"))
        if length == CHUNKED:
            headers.append((b"Transfer-Encoding", b"chunked"))
        elif length or any(name == b"content-length" for name, _ in head.headers):
            headers.append((b"Content-Length", b"%d" % length))
        if head.upgrade:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", head.upgrade.encode())]
        try:
            return render(f"{head.method} {self._filled.path}{self._filled.query} HTTP/1.1".encode(), headers)
        except Syntax as error:
            raise Stop("injection", f"the credential does not fit its place: {error}") from None

    async def _gathered(self, body: Pieces) -> tuple[bytes, int]:
        """A body that a credential may go into: counted anew when it is short, framed anew in chunks when it is not."""
        parts, size = [], 0
        while size <= _BUFFERED and (piece := await body.read()):
            piece = self._content.feed(piece)
            parts.append(piece)
            size += len(piece)
        if body.over:
            parts.append(self._content.finish())
            whole = b"".join(parts)
            return whole, len(whole)
        return chunk(b"".join(parts)), CHUNKED

    async def _up(self, upstream: Upstream, body: Pieces, length: int) -> None:
        while piece := await body.read():
            piece = self._content.feed(piece)
            if piece:
                await self._send(upstream, chunk(piece) if length == CHUNKED else piece)
        last = self._content.finish()
        if last:
            await self._send(upstream, chunk(last) if length == CHUNKED else last)
        if length == CHUNKED:
            await self._send(upstream, chunk(b""))

    async def _send(self, upstream: Upstream, data: bytes) -> None:
        if len(data) > self._passage.room(up=True):
            raise exceeded(up=True)
        self._passage.count(len(data), up=True)
        await upstream.stream.write(data)

    # --- towards the sandbox --------------------------------------------------------------------------------

    async def _down(self, upstream: Upstream) -> bool | None:
        """The response. Returns whether the upstream connection serves another request; None after an upgrade."""
        try:
            response = await self._response_head(upstream)
        except Syntax as error:
            raise Stop("upstream", f"the response cannot be passed on: {error}") from None
        except Cut:
            raise Stop("upstream", "the destination ended before it had answered") from None
        if response.status == 101:
            await self._switched(upstream)
            return None
        asked = self._asked.head
        endless = response.length == UNTIL_CLOSE or (response.length == CHUNKED and asked.old)
        self._closes = endless
        headers = [(name, value) for name, value in end_to_end(response.headers) if name != _REFUSED]
        if response.status == 204:  # there is no body whose length could be told (RFC 9110 §8.6)
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        if response.length == CHUNKED and not endless:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if endless or not asked.keep:
            headers.append((b"Connection", b"close"))
        if self._recording is not None:
            self._recording.begin(response, secret=self._secret)
        await self._give(render(b"HTTP/1.1 %d %b" % (response.status, response.reason), headers))
        try:
            await self._down_body(upstream, response, chunks=response.length == CHUNKED and not endless)
        except Syntax as error:
            raise Stop("upstream", f"the response's body: {error}") from None
        except Cut:
            raise Stop("upstream", "the destination ended in the middle of its response") from None
        return response.keep and not upstream.inlet.waiting

    async def _down_body(self, upstream: Upstream, response: Response, *, chunks: bool) -> None:
        body = Body(upstream.inlet, response.length, strict=False)
        while piece := await body.read():
            piece = self._echo.feed(piece)
            if piece:
                await self._pass_on(piece, chunks=chunks)
        last = self._echo.finish()
        if last:
            await self._pass_on(last, chunks=chunks)
        if chunks:
            await self._give(chunk(b""))
        if self._recording is not None:
            await self._recording.end()

    async def _pass_on(self, piece: bytes, *, chunks: bool) -> None:
        await self._give(chunk(piece) if chunks else piece)
        if self._recording is not None:
            await self._recording.add(piece)

    async def _response_head(self, upstream: Upstream) -> Response:
        """The final response's head: informational ones are for us (we asked for none)."""
        config, head = self._config, self._asked.head
        for _ in range(_INFORMATIONAL):
            if not await upstream.inlet.arrived():
                raise Cut
            try:
                async with asyncio.timeout(config.head_s):
                    raw = await upstream.inlet.head(config.head_bytes)
            except TimeoutError:
                raise Stop("timeout", f"the response's head took longer than {config.head_s:g} s") from None
            response = parse_response(raw, head.method, config.headers)
            if response.status == 101 and not head.upgrade:
                raise Syntax("it changes to a protocol that was not asked for")
            if response.status == 407:
                raise Syntax("it asks for credentials of a proxy, and that is not the destination's to ask")
            if response.status == 101 or response.status >= 200:
                self._passage.status = response.status
                self._echo.feed(raw)
                self._echo.finish()
                if response.status == 101:
                    await self._give(_switch(response, head))
                return response
        raise Syntax("there is no end to informational responses")

    async def _switched(self, upstream: Upstream) -> None:
        """After an upgrade both sides say what they like; it is counted, and looked at for placeholders."""
        if early := upstream.inlet.rest():
            await self._give(early)
        await relay(self._sandbox, upstream.stream, self._passage, ahead=self._inlet.rest(), watch=self._watch)
        self._exchange.release()

    async def _give(self, data: bytes) -> None:
        room = self._passage.room(up=False)
        part = data[:room]
        self._passage.count(len(part), up=False)
        self.answered = True
        await self._sandbox.write(part)
        if len(data) > room:
            raise exceeded(up=False)


_OURS = frozenset({b"host", b"content-length"})
_REFUSED = b"x-runner-refused"  # what we say of ourselves, no destination can


def _switch(response: Response, head: Request) -> bytes:
    """A 101 as the sandbox sees it. Raises `Syntax` when it is another protocol than was asked for."""
    fields = dict(response.headers)
    if fields.get(b"upgrade", b"").decode("latin-1").lower() != head.upgrade:
        raise Syntax("it changes to another protocol than was asked for")
    headers = [*end_to_end(response.headers), (b"Connection", b"Upgrade"), (b"Upgrade", head.upgrade.encode())]
    return render(b"HTTP/1.1 101 %b" % response.reason, headers)
