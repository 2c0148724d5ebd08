"""The egress process: `python -m runner.serve.egress PARENT_FD GATE_FD USER`.

It keeps the host's network and gives up everything else: user, new privileges, new programs. It never binds or opens a
listener: those come as descriptors, one per call. When gate or parent is gone, so is everything that passed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from runner.catalog import Catalog, compile_bundle
from runner.egress.calls import Readable
from runner.egress.refusals import Stop
from runner.egress.server import Proxy
from runner.egress.upstream import client_context
from runner.errors import RunnerError, refusal, refuse
from runner.model import Allowlist
from runner.serve import confine, log, privilege
from runner.serve.channel import Channel
from runner.wire import egress as wire
from runner.wire import parent

_log = logging.getLogger(__name__)
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class Asks:
    """Gate's side of a request: questions out, answers in."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[wire.Answer]] = {}
        self._last = 0
        self.channel: Channel | None = None

    async def ask(self, call: str, request: wire.Requested, readable: Readable) -> wire.Answer:
        """Token and policy, shown what can be read. Raises `Stop` (unavailable) when gate is gone."""
        head, body, last = readable
        asked = wire.Ask(number=self._number(), call=call, request=request, head=head, body=body, last=last)
        return await self._answered(asked)

    async def look(self, call: str, request: int, data: bytes, *, last: bool) -> wire.Answer:
        """The same about the next piece of its body."""
        return await self._answered(wire.Look(number=self._number(), call=call, id=request, data=data, last=last))

    async def keep(self, call: str, request: int, data: bytes) -> bool:
        """A piece of a response; whether more is wanted. Raises `Stop` (unavailable) when gate is gone."""
        return (await self._answered(wire.Keep(number=self._number(), call=call, id=request, data=data))).allowed

    def _number(self) -> int:
        self._last -= 1  # downwards: no number of ours is ever one of gate's own requests
        return self._last

    async def _answered(self, asked: wire.Ask | wire.Look | wire.Keep) -> wire.Answer:
        if self.channel is None or self.channel.closed.is_set():
            raise Stop("unavailable", "gate is gone")
        answer: asyncio.Future[wire.Answer] = asyncio.get_running_loop().create_future()
        self._waiting[asked.number] = answer
        self.channel.post(asked)
        try:
            return await answer
        finally:
            del self._waiting[asked.number]

    def answered(self, answer: wire.Answer) -> None:
        """Gate has decided; perhaps nobody waits for it any more."""
        waiting = self._waiting.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def post(self, message: wire.FromEgress) -> None:
        """Tell gate."""
        if self.channel is not None:
            self.channel.post(message)


class EgressProcess:
    """Egress behind its channels to parent, gate and broker."""

    def __init__(self) -> None:
        self._asks = Asks()
        self._proxy: Proxy | None = None
        self._offered: dict[int, tuple[Catalog, bytes]] = {}
        self._destinations = Allowlist(part="daemon")
        self._dials: socket.socket | None = None  # broker's listener, until it is served
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, parent_fd: int, gate_fd: int) -> None:
        """Serve until gate or parent ends."""
        taken = socket.socket(fileno=parent_fd)
        self._upward = Channel(taken, parent.FromParent, self._from_parent, carriers=(parent.Dials,))
        gate = Channel(socket.socket(fileno=gate_fd), wire.FromGate, self._from_gate, carriers=(wire.Open,))
        self._asks.channel = gate
        waits = [asyncio.ensure_future(channel.closed.wait()) for channel in (gate, self._upward)]
        sweeper = asyncio.ensure_future(self._sweep())
        gc.freeze()
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in (*waits, sweeper, *self._tasks):
            wait.cancel()
        if self._proxy is not None:
            await self._proxy.shutdown()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self._proxy is not None:
                self._proxy.sweep(asyncio.get_running_loop().time())

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- parent -------------------------------------------------------------------------------------------

    def _from_parent(self, message: Any, descriptor: int | None) -> None:
        if isinstance(message, parent.Offer):
            self._run(self._offer(message))
        elif isinstance(message, parent.Dials) and descriptor is not None:
            if self._dials is not None:
                self._dials.close()  # of a broker that is gone
            self._dials = socket.socket(fileno=descriptor)
            self._run(self._serve_dials())
        elif isinstance(message, parent.Commit):
            catalog, trust = self._offered.pop(message.generation)
            self._offered.clear()
            self._adopt(catalog, trust)

    async def _offer(self, offer: parent.Offer) -> None:
        try:
            catalog = await asyncio.to_thread(compile_bundle, offer.bundle)
            self._offered[offer.generation] = catalog, authorities(catalog.config.egress.trust, offer.bundle)
        except RunnerError as error:
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=error.refused))
        except Exception:
            _log.exception("the catalogue could not be compiled")
            broken = refusal("internal", "egress has a defect; the log has the details")
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=broken))
        else:
            self._upward.post(parent.Compiled(generation=offer.generation))

    def _adopt(self, catalog: Catalog, trust: bytes) -> None:
        self._destinations = Allowlist(part="daemon", rules=catalog.destinations)
        if self._proxy is None:
            self._proxy = Proxy(catalog.config.egress, trust, self._asks)
            self._upward.post(parent.Ready())
            self._run(self._serve_dials())
        else:
            self._proxy.adopt(catalog.config.egress, trust)
            self._proxy.replace(wire.BROKER, (self._destinations,))

    # --- gate ---------------------------------------------------------------------------------------------

    def _from_gate(self, message: Any, descriptor: int | None) -> None:
        if isinstance(message, wire.Answer):
            self._asks.answered(message)
        elif isinstance(message, wire.Forget):
            if self._proxy is not None:
                self._proxy.forget(message.sandbox)
        elif isinstance(message, wire.Open):
            self._asks.post(self._open(message, descriptor))
        elif isinstance(message, wire.Trust):
            self._asks.post(self._trust(message))
        elif isinstance(message, wire.Close):
            self._run(self._close(self._ready().close(message.number, message.call)))

    def _open(self, message: wire.Open, descriptor: int | None) -> wire.FromEgress:
        if descriptor is None:
            return wire.Failed(number=message.number, refusal=refusal("internal", "no listener came with the call"))
        listener = socket.socket(fileno=descriptor)
        try:
            self._ready().open(message, listener)
        except RunnerError as error:
            listener.close()
            return wire.Failed(number=message.number, refusal=error.refused)
        except ValueError as error:
            listener.close()
            return wire.Failed(number=message.number, refusal=refusal("internal", f"egress: {error}"))
        return wire.Done(number=message.number)

    def _trust(self, message: wire.Trust) -> wire.FromEgress:
        try:
            return wire.Trusted(number=message.number, bundle=self._ready().bundle(message.sandbox))
        except RunnerError as error:
            return wire.Failed(number=message.number, refusal=error.refused)

    async def _close(self, closing: Coroutine[Any, Any, wire.Closed]) -> None:
        self._asks.post(await closing)

    def _ready(self) -> Proxy:
        if self._proxy is None:
            raise refuse("unavailable", "egress is starting", retry_after_ms=1000)
        return self._proxy

    # --- broker -------------------------------------------------------------------------------------------

    async def _serve_dials(self) -> None:
        """Broker's own way out: a call like any other, by the daemon's own allowlist."""
        if self._proxy is None or self._dials is None:
            return  # once there is a catalogue
        await self._proxy.close(0, wire.BROKER)
        listener, self._dials = self._dials, None
        allowed = (self._destinations,)
        opened = wire.Open(number=0, call=wire.BROKER, sandbox=wire.BROKER, allowlists=allowed, blind=True)
        self._proxy.open(opened, listener)


def authorities(path: str, bundle: parent.Bundle) -> bytes:
    """Whom egress trusts: the host's authorities and those of `egress.trust`, as PEM. Raises `RunnerError` (config) for
    a file that holds no certificates."""
    found = ssl.get_default_verify_paths().cafile
    host = next((Path(each) for each in (found, *_BUNDLES) if each and Path(each).is_file()), None)
    parts = [host.read_bytes()] if host is not None else []
    if path:
        more = bundle.keys.get(path)
        if more is None:
            raise refuse("config", "egress.trust was not read", field=path)
        parts.append(more)
    whole = b"\n".join(parts)
    try:
        if whole:
            client_context(whole)
        if path:  # of an empty text the defaults would be taken
            ssl.create_default_context(cadata=parts[-1].decode("ascii", "ignore").strip() or "none")
    except (ssl.SSLError, ValueError):
        raise refuse(
            "config", "no PEM certificates of authorities", field=path, next_step="egress.trust names a file of them"
        ) from None
    return whole


def main() -> int:
    """Keep the network, drop everything else, then serve."""
    parent_fd, gate_fd = map(int, sys.argv[1:3])
    user = sys.argv[3]
    log.configure("egress")
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two descriptors a connection
    privilege.drop_to(user)
    privilege.harden()
    confine.no_programs()
    privilege.clear_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(EgressProcess().serve(parent_fd, gate_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
