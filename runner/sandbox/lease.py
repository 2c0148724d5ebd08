"""What a call holds of the world while it runs: a port, a listener that egress serves, credentials of the broker.

A lease is opened when the call's sandbox is there, and closed with the call, however that ends: listener, connections
and placeholders are dead and leases revoked when `async with` is left. Without egress or broker a call that needs one
is refused; there is nothing weaker to fall back to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

from runner.catalog.egress import allowlists
from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.model import Allowlist, CallPlan, Delivered, Manifest, OutcomeKind, SecretRef, TaskProfile
from runner.sandbox.claim import Engine
from runner.sandbox.connection import Sandbox
from runner.sandbox.plan import FIRST_PORT, uses_network
from runner.wire.broker import PUBLIC_FIELDS
from runner.wire.broker import Lease as Issued
from runner.wire.egress import Closed, Injection

T = TypeVar("T")
_log = logging.getLogger(__name__)
_READY_S = 60.0  # for broker, its providers, engine and egress together: a call waits no longer to begin
_ANSWER_S = 10.0  # a part that says nothing for so long is stuck: closing takes it a millisecond
_AFTER_MS = 10_000  # beyond the call's deadline: it may be late to start, and its credentials end with it anyway
_RENEWED_MS = 50  # a lease that has less left is one that its provider does not renew
_PLACEHOLDER = 24  # random bytes: 32 characters that nothing else will ever be
CANARY = "RUNNER_CANARY_TOKEN"  # a variable that looks like a credential, and that no tool has a use for


class Egress(Protocol):
    """The one process with a network: `runner.wire.egress.EgressCaller`."""

    async def open(
        self,
        listener: int,
        *,
        call: str,
        sandbox: str,
        allowlists: tuple[Allowlist, ...],
        injections: tuple[Injection, ...] = (),
        canary: str = "",
    ) -> None:
        """Serve the listener, whose descriptor is closed here, until `close`."""

    async def close(self, call: str) -> Closed:
        """Nothing of the call passes any more."""

    async def trust(self, sandbox: str) -> bytes:
        """The certificate authorities that a sandbox should trust, as PEM."""

    def forget(self, sandbox: str) -> None:
        """The sandbox is gone, and its own authority with it."""


class Broker(Protocol):
    """The keeper of credentials: `runner.wire.broker.BrokerCaller`."""

    async def issue(
        self, *, call: str, task: str, tool: str, names: tuple[str, ...], ttl_ms: int, read: bool
    ) -> tuple[Issued, ...]:
        """A lease for each name, in order, or none at all."""

    async def renew(self, call: str, ttl_ms: int) -> dict[str, int]:
        """How many milliseconds each lease of the call lives from now."""

    async def revoke_call(self, call: str) -> Any:
        """None of the call's leases lives any more."""


class Running(Protocol):
    """The call as gate steers it."""

    call: str
    task: str

    def cancel(self, kind: OutcomeKind, reason: str) -> None:
        """Have it killed."""


class Watch(Protocol):
    """Who answers and counts the call's requests: `runner.gate.requests.Watched`."""

    def begin(self) -> None:
        """Requests may come from now on."""

    async def end(self, closed: Closed | None) -> tuple[entries.Network, dict[str, int]]:
        """None may any more. Returns their sums, and how many each credential went with, once all are recorded.
        `closed` is egress's account, None when it ended before it gave one."""


class Held(Protocol):
    """What the task's output is searched for: `runner.stream.secrets.Secrets`."""

    def hold(self, call: str, name: str, values: tuple[bytes, ...], *, lasting: bool) -> None:
        """The call will hold these; not `lasting`, they are revoked when it ends. Raises `RunnerError` (unavailable)
        when they could not be found."""

    def canary(self, fresh: Callable[[], str]) -> str:
        """The task's own, made the first time."""

    def over(self, call: str) -> None:
        """The call holds nothing any more."""


class Leases:
    """The leases of live calls, and the ports of each sandbox that are theirs."""

    def __init__(
        self,
        engine: Callable[[], Engine | None],
        egress: Callable[[], Egress | None],
        broker: Callable[[], Broker | None],
        abandon: Callable[[Literal["egress", "broker"]], None],
        *,
        ready_s: float = _READY_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        """Each part as it is now; None while it is being restarted. `abandon` takes one that does not answer for
        ended."""
        self.engine, self.egress, self.broker = engine, egress, broker
        self.abandon = abandon
        self.ready_s, self.answer_s = ready_s, answer_s
        self._ports: dict[str, tuple[str, int]] = {}  # call -> its sandbox and port
        self.open: set[NetworkLease] = set()

    def port(self, call: str, sandbox: str, manifest: Manifest) -> int:
        """The call's own port in the sandbox until `over`; 0 for a tool that needs none. The lowest that is free: a
        launcher that was built for it ahead may be waiting."""
        if not uses_network(manifest):
            return 0
        taken = {port for its, port in self._ports.values() if its == sandbox}
        port = next(port for port in range(FIRST_PORT, FIRST_PORT + len(taken) + 1) if port not in taken)
        self._ports[call] = sandbox, port
        return port

    def over(self, call: str) -> None:
        """The call is over: its port is free."""
        self._ports.pop(call, None)

    def of(
        self, plan: CallPlan, running: Running, manifest: Manifest, profile: TaskProfile, watch: Watch, held: Held
    ) -> Lease:
        """The lease of a planned call; nothing of it exists yet."""
        if not uses_network(manifest):
            return Lease()
        return NetworkLease(self, plan, self._ports[plan.call][1], running, manifest, profile, watch, held)

    def lost(self, part: Literal["egress", "broker"]) -> None:
        """It ended, and with it what it held for live calls: they are ended too, rather than run on without."""
        for lease in tuple(self.open):
            lease.lost(part)

    def expired(self, call: str, lease: str) -> None:
        """The broker let a lease of this call expire: a call does not go on with what is not its any more."""
        for each in tuple(self.open):
            if each.call == call:
                each.expired(lease)


class Lease:
    """Of a call that needs nothing. `async with` it; `deliver` when the sandbox is there."""

    network: entries.Network | None = None  # what went through it, and
    secrets: tuple[entries.SecretUse, ...] = ()  # which credentials it had: known when it is over

    @property
    def needed(self) -> bool:
        """Whether there is anything to deliver."""
        return False

    async def deliver(self, sandbox: Sandbox) -> Delivered:
        """Open it: what the call is given. Raises `RunnerError` while nothing of the call exists."""
        return Delivered()

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class NetworkLease(Lease):
    """Of a call with a network, credentials, or both."""

    def __init__(
        self,
        leases: Leases,
        plan: CallPlan,
        port: int,
        running: Running,
        manifest: Manifest,
        profile: TaskProfile,
        watch: Watch,
        held: Held,
    ) -> None:
        self._held = held
        self._leases = leases
        self._plan = plan
        self._port = port
        self._running = running
        self._manifest = manifest
        self._profile = profile
        self._watch = watch
        self._egress: Egress | None = None  # once it may serve the call
        self._broker: Broker | None = None  # once it may have issued something
        self._issued: tuple[tuple[SecretRef, Issued], ...] = ()
        self._placeholders: dict[str, str] = {}
        self._unserved: asyncio.Future[int] | None = None  # a listener that is coming and that nobody will serve
        self._closing: asyncio.Task[Closed | None] | None = None  # the listener
        self._renewing: asyncio.Task[None] | None = None
        self._delivered = False
        self._dead = ""  # why, before anything of the call existed

    @property
    def call(self) -> str:
        """The call's id."""
        return self._plan.call

    @property
    def needed(self) -> bool:
        """Whether there is anything to deliver."""
        return True

    async def deliver(self, sandbox: Sandbox) -> Delivered:
        """Open it: credentials first, then the listener. Raises `RunnerError` while nothing of the call exists."""
        try:
            async with asyncio.timeout(self._leases.ready_s):
                return await self._opened(sandbox)
        except TimeoutError:
            reason = f"what the call needs of the world was not there within {self._leases.ready_s:g} s"
            raise refuse("unavailable", reason, retry_after_ms=5000) from None

    async def _opened(self, sandbox: Sandbox) -> Delivered:
        self._allowed()
        self._leases.open.add(self)
        canary = self._held.canary(_fresh)
        if self._manifest.egress:
            await self._serve(sandbox, canary)
        else:
            await self._issue()
        environment, files = {CANARY: canary}, {}
        for ref, issued in self._issued:
            for field in issued.fields.keys() & PUBLIC_FIELDS:
                environment[f"{ref.variable}_{field.upper()}"] = _text(ref, issued.fields[field])
            if ref.delivery == "inject":
                environment[ref.variable] = self._placeholders[ref.name]
            elif ref.delivery == "env":
                environment[ref.variable] = _text(ref, issued.value)
            else:
                files[ref.variable] = issued.value
        if self._dead:
            raise refuse("unavailable", self._dead, retry_after_ms=2000)
        self._delivered = True
        return Delivered(environment=environment, files=files)

    def lost(self, part: Literal["egress", "broker"]) -> None:
        """End the call if it depends on this part."""
        if (self._egress if part == "egress" else self._broker) is not None:
            self._stop(f"{part} ended, and with it what it held for this call")

    def expired(self, lease: str) -> None:
        """End the call: this lease of its is dead."""
        name = next((ref.name for ref, issued in self._issued if issued.id == lease), "a secret")
        self._stop(f"the lease of {name} expired before the call ended")

    def _stop(self, reason: str) -> None:
        """Kill the call, and let nothing of it out meanwhile; one that does not exist yet never will."""
        self._dead = reason
        if self._delivered:
            self._running.cancel("killed", reason)
        if self._egress is not None:
            self._shut(self._egress)

    def _allowed(self) -> None:
        for ref in self._manifest.secrets:
            if ref.delivery not in self._profile.delivery:
                raise refuse(
                    "unavailable",
                    f"task profile {self._profile.name!r} does not let secrets reach tools as {ref.delivery!r}",
                    field=ref.name,
                    next_step="use a profile whose `delivery` names it, or have the tool use an injected one",
                )

    async def _issue(self) -> None:
        refs = self._manifest.secrets
        if not refs:
            return
        self._broker = broker = self._leases.broker()
        if broker is None:
            raise refuse("unavailable", "the broker is being restarted", retry_after_ms=2000)
        issued = await broker.issue(
            call=self._plan.call,
            task=self._running.task,
            tool=self._plan.tool,
            names=tuple(ref.name for ref in refs),
            ttl_ms=self._plan.wall_ms + _AFTER_MS,
            read=self._manifest.consequence == "low",  # a tool that only reads needs no more than that
        )
        for each in issued:  # known to the filters before anybody can have it; what they cannot find, nobody gets
            fields = [value for field, value in each.fields.items() if field not in PUBLIC_FIELDS]
            self._held.hold(self.call, each.name, (each.value, *fields), lasting=not each.dynamic)
        self._issued = tuple(zip(refs, issued, strict=True))
        self._placeholders = {ref.name: _fresh() for ref in refs if ref.delivery == "inject"}
        shortest = min(each.ttl_ms for each in issued)
        if shortest < self._plan.wall_ms:
            self._renewing = asyncio.ensure_future(self._renew(broker, shortest))

    async def _renew(self, broker: Broker, ttl_ms: int) -> None:
        """Keep the leases alive as long as their providers let them: a call that outlives one of them is ended."""
        while ttl_ms > _RENEWED_MS:
            await asyncio.sleep(ttl_ms * 2 / 3000)
            try:
                ttl_ms = min((await broker.renew(self._plan.call, self._plan.wall_ms + _AFTER_MS)).values())
            except RunnerError as failed:
                _log.warning("call %s: its leases are not renewed: %s", self._plan.call, failed)
                return

    async def _serve(self, sandbox: Sandbox, canary: str) -> None:
        engine, egress = self._leases.engine(), self._leases.egress()
        if engine is None or egress is None:
            part = "engine" if engine is None else "egress"
            raise refuse("unavailable", f"{part} is being restarted", retry_after_ms=2000)
        listening = asyncio.ensure_future(engine.listen(sandbox.id, self._port))  # while the broker issues
        try:
            await self._issue()
            listener = await listening
        except BaseException:
            self._unserved = listening
            raise
        self._watch.begin()
        self._egress = egress
        await egress.open(
            listener,
            call=self._plan.call,
            sandbox=sandbox.id,
            allowlists=allowlists(self._profile, self._manifest),
            injections=tuple(
                Injection(
                    name=ref.name,
                    placeholder=self._placeholders[ref.name],
                    value=issued.value,
                    rules=ref.destinations,
                    places=ref.places,
                )
                for ref, issued in self._issued
                if ref.delivery == "inject"
            ),
            canary=canary,
        )
        if sandbox.trusted_by is not egress:
            sandbox.trust(await egress.trust(sandbox.id), by=egress)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.ensure_future(self._close()))  # whatever becomes of whoever waits for it

    async def _close(self) -> None:
        """Total: a part that is gone took with it what it held."""
        used: dict[str, int] = {}
        if self._renewing is not None:
            self._renewing.cancel()
        if self._unserved is not None and not self._unserved.cancelled():
            await self._dropped(self._unserved)
        if self._egress is not None:
            self.network, used = await self._watch.end(await self._shut(self._egress))
        if self._broker is not None:
            await self._answered("broker", self._broker.revoke_call(self._plan.call))
        self.secrets = tuple(
            entries.SecretUse(
                name=ref.name,
                delivery=ref.delivery,
                lease=issued.id,
                accessor=issued.accessor,
                fingerprint=issued.fingerprint,
                used=used.get(ref.name, 0),
            )
            for ref, issued in self._issued
        )
        self._issued, self._placeholders = (), {}
        self._held.over(self.call)
        self._leases.open.discard(self)

    async def _dropped(self, listening: asyncio.Future[int]) -> None:
        """Close a listener that nobody will serve: its port is the next call's, and must be free by then."""
        with contextlib.suppress(RunnerError, TimeoutError):
            async with asyncio.timeout(self._leases.answer_s):
                os.close(await listening)

    def _shut(self, egress: Egress) -> asyncio.Task[Closed | None]:
        """Close the listener, once; egress's account of it, None when it is gone."""

        if self._closing is None:
            work = self._answered("egress", egress.close(self._plan.call))
            self._closing = asyncio.ensure_future(work)
        return self._closing

    async def _answered(self, part: Literal["egress", "broker"], work: Coroutine[Any, Any, T]) -> T | None:
        """A part's answer at the call's end, None when it ended before, or does not answer: a call is sealed all the
        same, and a part that is stuck serves nobody any more."""
        try:
            async with asyncio.timeout(self._leases.answer_s):
                return await work
        except RunnerError as failed:
            _log.warning("call %s: %s ended before it let go of it: %s", self._plan.call, part, failed)
        except TimeoutError:
            _log.critical("call %s: %s does not answer, and is given up", self._plan.call, part)
            self._leases.abandon(part)
        return None


def _fresh() -> str:
    return f"rnr-{secrets.token_urlsafe(_PLACEHOLDER)}"


def _text(ref: SecretRef, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise refuse("unavailable", "a variable cannot hold this secret: it is not text", field=ref.name)
    return text
