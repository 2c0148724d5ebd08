"""One readable request: judged, asked, dialled; then its bytes pass (`transfer`), and gate is told how it ended."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from runner.config import Egress
from runner.destination import Destination
from runner.egress.allowlist import Verdict
from runner.egress.body import Body, Cut, Inlet
from runner.egress.calls import OPAQUE, Call, Passage, Readable, as_judged, denied
from runner.egress.head import Syntax
from runner.egress.inject import Filled, Filter, Leak, Unfit
from runner.egress.link import Link, Stream
from runner.egress.refusals import Stop
from runner.egress.shown import Forbidden, Pieces, Shown
from runner.egress.transfer import Asked, Transfer
from runner.egress.upstream import Resolver, Upstream, dial, secure
from runner.wire.egress import Requested


class House(Protocol):
    """What every call uses and none changes."""

    config: Egress
    resolver: Resolver
    context: ssl.SSLContext


async def reach(house: House, call: Call, verdict: Verdict, where: Destination, passage: Passage) -> tuple[Link, float]:
    """Look up, judge every address, dial. Returns the link and until when a handshake may take. Raises `Stop`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + house.config.connect_s
    try:
        async with asyncio.timeout_at(until):
            addresses = await house.resolver.addresses(where.host)
    except TimeoutError:
        raise Stop("timeout", f"the name {where.host} could not be looked up in time", part="dns") from None
    judged = call.allowlists.addresses(verdict, where.host, addresses)
    if not judged.allowed:
        raise denied(judged)
    link, passage.address = await dial(addresses, where.port, until, opened=call.attach, closed=call.links.discard)
    return link, until


async def permit(
    call: Call, requested: Requested, verdict: Verdict, passage: Passage, readable: Readable = OPAQUE
) -> None:
    """Gate's word, after which the request has an entry and must be ended. Raises `Stop`."""
    try:
        answer = await call.gate.ask(call.id, as_judged(requested, verdict), readable)
    except asyncio.CancelledError:  # whatever the answer would have been: nothing was sent
        passage.over(Stop("interrupted", "the call is over"))
        raise
    if not answer.allowed:
        raise Forbidden(answer)


DEFECT = Stop("unavailable", "egress has a defect; the log has the details")


class Exchange:
    """The requests of one connection of a sandbox, and the upstream connection that they share."""

    def __init__(self, house: House, call: Call, link: Link, stream: Stream, inlet: Inlet) -> None:
        self.house = house
        self.call = call
        self.stream = stream
        self.inlet = inlet
        self._link = link  # beneath `stream`
        self._upstream: Upstream | None = None

    @property
    def config(self) -> Egress:
        """The proxy's settings."""
        return self.house.config

    def close(self) -> None:
        """The sandbox's connection is over, or broken."""
        if self._upstream is not None:
            self._upstream.link.abort()
            self._upstream = None

    def release(self) -> None:
        """The upstream connection serves no other request; what was written to it still arrives."""
        if self._upstream is not None:
            self._upstream.link.close()
            self._upstream = None

    async def carry(self, asked: Asked) -> bool:
        """Everything about one request. Returns whether the connection goes on. Raises `Stop` while nothing was
        answered yet; `Broken` when the answer is cut."""
        call, head = self.call, asked.head
        requested = Requested(
            id=call.number(),
            protocol="https" if asked.secure else "http",
            host=asked.where.host,
            port=asked.where.port,
            visibility="head" if head.upgrade else "full",
            method=head.method,
            path=asked.path,
            query=bool(asked.query),
            upgrade=head.upgrade,
        )
        try:
            verdict, filled, content = self._judge(asked, requested)
            requested = as_judged(requested, verdict)
            passage = Passage(call, verdict, requested.id)
            passage.enter()
            body, readable = await self._readable(asked, requested.id)
        except Stop as stop:
            call.refused(requested, stop)
            raise
        await permit(call, requested, verdict, passage, readable)
        return await self._passed(asked, body, verdict, filled, content, passage, requested)

    async def _readable(self, asked: Asked, number: int) -> tuple[Pieces, Readable]:
        """The request's body, and what gate is shown of it all. Raises `Stop`."""
        body = Body(self.inlet, asked.head.length, strict=True)
        if asked.head.expect and not body.over and not self.inlet.waiting:
            await self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.call.blind:
            return body, OPAQUE
        shown = Shown(body, self.call, number)
        try:
            return shown, await shown.begin(asked)
        except (Syntax, Cut) as error:
            raise _body(error) from None
        except OSError:
            raise self.gone() from None

    def _judge(self, asked: Asked, requested: Requested) -> tuple[Verdict, Filled, Filter]:
        """By the allowlists, and by what the head holds of credentials. Raises `Stop`."""
        call = self.call
        verdict = call.allowlists.authorise(requested)
        # At its own host a credential's placeholder is no leak, also where the request is denied: nothing is sent then.
        bound = call.bound(verdict.rules if verdict.allowed else call.allowlists.leading_to(requested.host))
        try:
            filled = call.credentials.fill(bound, asked.path, asked.query, asked.head.headers)
            if not verdict.allowed:
                raise denied(verdict)
            return verdict, filled, call.credentials.body(bound, asked.head.headers)
        except Leak as leak:
            raise call.leaked(requested.id, leak) from None
        except Unfit as unfit:
            raise Stop("injection", str(unfit)) from None

    async def _passed(
        self, asked: Asked, body: Pieces, verdict: Verdict, filled: Filled, content: Filter, passage: Passage,
        requested: Requested,
    ) -> bool:  # fmt: skip
        """What gate has allowed: it is told of the end, whatever the end is."""
        ended: Stop | None = None
        run = Transfer(self, asked, body, filled, content, passage)
        try:
            upstream = await self._connected(asked, verdict, passage)
            return await run.answer(upstream)
        except Stop as stop:
            ended = stop
            if stop.part == "address":
                self.call.refused(requested, stop)
        except Leak as leak:
            ended = self.call.leaked(requested.id, leak)
        except Unfit as unfit:
            ended = Stop("injection", str(unfit))
        except (Syntax, Cut) as error:
            ended = _body(error)
        except OSError:
            ended = self.gone()
        except asyncio.CancelledError:
            ended = Stop("interrupted", "the call is over")
            raise
        except Exception:
            ended = DEFECT
            raise
        finally:
            passage.secrets |= set(filled.used) if passage.status or run.sent else set()
            passage.secrets |= content.used
            passage.over(ended)
            if ended is not None:
                self.close()
        raise Broken(ended) if run.answered else ended

    def gone(self) -> Stop:
        """Why a link failed."""
        if self.call.over:
            return Stop("interrupted", "the call is over")
        if self._link.silent or (self._upstream is not None and self._upstream.link.silent):
            return Stop("timeout", f"no byte passed for {self.house.config.idle_s:g} s")
        return Stop("upstream", "a connection broke")

    async def _connected(self, asked: Asked, verdict: Verdict, passage: Passage) -> Upstream:
        """The connection of the request before, where it still serves, or a new one."""
        held, self._upstream = self._upstream, None
        host, port = asked.where
        if held is not None:
            same = (held.host, held.port) == (host, port)
            if same and self._may(held, verdict) and held.stream.fresh():
                self._upstream = held
                passage.address = held.address
                return held
            held.link.abort()
        link, until = await reach(self.house, self.call, verdict, asked.where, passage)
        link.partner = self._link
        stream: Stream = link
        if asked.secure:
            try:
                async with asyncio.timeout_at(until):
                    stream = await secure(link, self.house.context, host)
            except TimeoutError:
                link.abort()
                raise Stop("timeout", "the destination's TLS did not answer in time", part="tls") from None
            except BaseException:
                link.abort()
                raise
        self._upstream = Upstream(link, stream, Inlet(stream), passage.address, host, port, verdict.opened)
        return self._upstream

    def _may(self, held: Upstream, verdict: Verdict) -> bool:
        """Whether this verdict, too, lets the address be dialled that is connected: other rules open other ranges."""
        if held.opened == verdict.opened:
            return True
        return self.call.allowlists.addresses(verdict, held.host, [held.address]).allowed


class Broken(Exception):
    """The answer had begun: the connection can only be cut."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


def _body(error: Syntax | Cut) -> Stop:
    """What is wrong with a request's body. Most often one is cut because the call was killed."""
    if isinstance(error, Cut):
        return Stop("interrupted", f"the request's body: {error}", next_step="send it again, whole")
    return Stop("syntax", f"the request's body: {error}")
