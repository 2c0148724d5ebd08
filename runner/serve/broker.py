"""The broker process: `python -m runner.serve.broker PARENT_FD GATE_FD FOLDER USER`.

While it is still root it enters an empty network namespace, where it makes the one listener that egress will answer
(127.0.0.1:3128), which parent passes on; and it reads the master key where systemd gave one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.broker import master
from runner.broker.keeper import Keeper
from runner.broker.lease import Leases
from runner.broker.providers.compile import Compiled, compile_providers
from runner.config import Secrets, parse_config
from runner.errors import RunnerError, refusal, refuse
from runner.serve import log, privilege
from runner.serve.channel import Channel
from runner.wire import broker as wire
from runner.wire import parent

if TYPE_CHECKING:
    from runner.broker.providers.http import Network

_log = logging.getLogger(__name__)
_PORT = 3128
_MAX_TRUST = 4 << 20


def stamp() -> str:
    """Now, as views write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class BrokerProcess:
    """The broker behind its channels to parent and gate."""

    def __init__(self, keeper: Keeper, listener: socket.socket, *, locked: bool) -> None:
        self._keeper = keeper
        self._listener = listener
        self._locked = locked  # whether memory stays out of the swap area
        self._leases = Leases(keeper, self._expired)
        self._offered: dict[int, tuple[Secrets, Compiled]] = {}
        self._gate: Channel | None = None
        self._upward: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, parent_fd: int, gate_fd: int) -> None:
        """Serve until gate or parent ends, then end every lease."""
        self._upward = Channel(socket.socket(fileno=parent_fd), parent.FromParent, self._from_parent)
        self._gate = Channel(socket.socket(fileno=gate_fd), wire.FromGate, self._from_gate)
        self._upward.post(parent.Dials(), self._listener.detach())  # without egress behind it, dials are refused
        waits = [asyncio.ensure_future(channel.closed.wait()) for channel in (self._gate, self._upward)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self._leases.close()
        for task in self._tasks:
            task.cancel()

    # --- parent -------------------------------------------------------------------------------------------

    def _from_parent(self, message: Any, _: int | None) -> None:
        if isinstance(message, parent.Offer):
            self._offer(message)
        elif isinstance(message, parent.Commit) and message.generation in self._offered:
            self._leases.use(*self._offered.pop(message.generation))
            self._offered.clear()
            if not self._locked:
                _log.warning("memory cannot be locked here (LimitMEMLOCK): a secret could reach the swap area")
            self._locked = True  # once is enough

    def _offer(self, offer: parent.Offer) -> None:
        assert self._upward is not None
        bundle = offer.bundle
        try:
            config = parse_config(bundle.config, Path(bundle.config_path))
            network = partial(_network, _trust(config.egress.trust, bundle.keys))
            compiled = compile_providers(
                config.secrets, bundle.config, bundle.config_path, network, self._keeper.credential
            )
        except RunnerError as error:
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=error.refused))
        except Exception:
            _log.exception("the configuration could not be compiled")
            broken = refusal("internal", "broker has a defect; the log has the details")
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=broken))
        else:
            self._offered[offer.generation] = (config.secrets, compiled)
            self._upward.post(parent.Compiled(generation=offer.generation))

    # --- gate ---------------------------------------------------------------------------------------------

    def _from_gate(self, message: wire.FromGate, _: int | None) -> None:
        """In the order in which they came: only what waits for a provider goes on beside the rest."""
        assert self._gate is not None
        try:
            if isinstance(message, wire.Issue | wire.Renew):
                work = self._issue(message) if isinstance(message, wire.Issue) else self._renew(message)
                task = asyncio.ensure_future(self._leased(message.number, work))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._gate.post(self._carry_out(message))
        except Exception as error:
            self._failed(message.number, error)

    async def _leased(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._failed(number, error)

    def _issue(self, message: wire.Issue) -> Coroutine[Any, Any, None]:
        assert self._gate is not None
        gate, leases = self._gate, self._leases.issue(message)

        async def issued() -> None:
            gate.post(wire.Issued(number=message.number, leases=await leases))

        return issued()

    async def _renew(self, message: wire.Renew) -> None:
        assert self._gate is not None
        ttl = await self._leases.renew(message.call, message.ttl_ms / 1000)
        self._gate.post(wire.Renewed(number=message.number, ttl_ms=ttl))

    def _carry_out(self, message: wire.FromGate) -> wire.FromBroker:
        match message:
            case wire.Revoke():
                ended, pending = self._leases.revoke(message.kind, message.value)
                return wire.Revoked(number=message.number, leases=ended, pending=pending)
            case wire.List():
                return wire.Listed(number=message.number, secrets=self._leases.opened().store.views())
            case wire.Store():
                store = self._leases.opened().store
                after = store.put(message.name, message.value, message.fields, expect=message.expect, now=stamp())
                return wire.Stored(number=message.number, before=message.expect, after=after)
            case wire.Remove():
                self._leases.opened().store.remove(message.name, expect=message.expect)
                return wire.Stored(number=message.number, before=message.expect, after=0)
            case _:
                raise refuse("internal", "no request of the broker's")

    def _failed(self, number: int, error: Exception) -> None:
        assert self._gate is not None
        if isinstance(error, RunnerError):
            refused = error.refused
        else:  # its text could hold a value: only its kind is logged
            _log.error("a request of gate failed: %s", type(error).__name__)
            refused = refusal("unavailable", "broker has a defect; the log has the details")
        self._gate.post(wire.Failed(number=number, refusal=refused))

    def _expired(self, call: str, lease: str) -> None:
        assert self._gate is not None
        self._gate.post(wire.Expired(call=call, lease=lease))


def _network(trust: bytes) -> Network:
    """The way to providers' servers; its library is imported here, for configurations that have one."""
    from runner.broker.providers.http import Network

    return Network(trust=trust)


def _trust(path: str, given: dict[str, bytes]) -> bytes:
    """The authorities of [egress] trust: as parent read them, else from the file."""
    if not path:
        return b""
    if path in given:
        return given[path]
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_TRUST)
    except OSError as error:
        raise refuse("config", f"egress.trust: cannot read it: {error.strerror}", field=path) from None


def main() -> int:
    """Take what root alone can, drop everything, then serve."""
    parent_fd, gate_fd, folder, user = sys.argv[1:5]
    log.configure("broker")
    os.umask(0o077)
    try:
        privilege.leave_network()
        privilege.loopback_up()
        listener = privilege.listen_on_loopback(_PORT)
        key = master.from_credential(os.environ.get(master.CREDENTIALS_VARIABLE, ""))
        locked = privilege.lock_memory()
        privilege.drop_to(user)
        privilege.harden()
    except RunnerError as error:
        _log.critical("%s", error.refused.line())
        return 1
    privilege.clear_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is parent's to act on: gate must drain first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = BrokerProcess(Keeper(Path(folder), key), listener, locked=locked)
    asyncio.run(process.serve(int(parent_fd), int(gate_fd)))
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # not joined: threads that wait for a provider that hangs
