"""The proxy: a listener per call, a task per connection, an authority per sandbox; opened and closed by gate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from runner.config import Egress
from runner.egress.allowlist import Allowlists
from runner.egress.authority import Authority
from runner.egress.calls import Call, Gate
from runner.egress.connection import Connection
from runner.egress.link import Link
from runner.egress.refusals import Stop
from runner.egress.upstream import Resolver, client_context
from runner.model import Allowlist
from runner.wire.egress import Closed, Open, Requested

_log = logging.getLogger(__name__)
_ACCEPTS = 16  # connections of one call in one turn of the loop
_PAUSE_S = 0.1
_NO_CONNECTION = Stop("busy", "too many connections are open", part="connections")


async def _closed(number: int, call: Call | None) -> Closed:
    return await call.ended(number) if call is not None else Closed(number=number)


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

    def close(self, number: int, name: str) -> Coroutine[Any, Any, Closed]:
        """End a call: from this very step on nothing of it passes. What is returned waits until nothing is left."""
        call = self._calls.pop(name, None)
        if call is not None:
            asyncio.get_running_loop().remove_reader(call.listener.fileno())
            call.end()
        return _closed(number, call)

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
            asyncio.get_running_loop().call_later(2 * config.connect_s, self.resolver.discard)
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
            # Upstream links first: who waits for one is told why it was cut, and is not silent meanwhile.
            for link in sorted(call.links, key=lambda link: link.partner is None):
                silent = now - link.moved > self.config.idle_s
                if link.partner is not None:
                    link.partner.moved = now if silent else max(link.moved, link.partner.moved)
                if silent:
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
            asked = Requested(id=call.number(), protocol="http", host="", port=0, visibility="head")
            call.refused(asked, _NO_CONNECTION)
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
