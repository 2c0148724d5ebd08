"""Leases: issue → deliver → renew → revoke, each of one call.

A lease is delivered in the same turn of the loop in which it is found that nobody has revoked its call meanwhile; from
then on the broker holds its handle, and no value. After a revocation no lease of the call is alive, and none that a
provider was still making comes alive: that one is undone when it comes. What a provider made is in the journal before
it is delivered, and leaves it when the provider has undone it: a crash at any place undoes it at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runner.broker.journal import Outstanding
from runner.broker.keeper import Keeper, Opened
from runner.broker.providers.compile import Compiled
from runner.broker.providers.provider import Issued, Provider, Wish, unavailable
from runner.config import Secrets
from runner.errors import RunnerError, refuse
from runner.wire import broker as wire

_log = logging.getLogger(__name__)
_THREADS = 8  # of each provider: one that hangs holds up no other
_NAMES = 32  # secrets of one call
_FLIGHTS = 256  # calls that wait for a provider
_OVER = 8192  # calls remembered to be over: a lease for one of them would outlive it
_AGAIN_S = (0.2, 1.0, 5.0, 15.0, 60.0)  # between attempts to undo; the last one repeats
_GRACE_S = 5.0  # for providers to undo what is left when the broker ends; the journal has the rest


class _Held:
    """One lease that lives. Its value is gone: gate has it."""

    __slots__ = ("call", "ends", "handle", "id", "last", "made", "provider", "renewable", "task", "timer")

    def __init__(self, *, id_: str, call: str, task: str, ends: float, last: float) -> None:
        self.id = id_
        self.call = call
        self.task = task
        self.ends = ends  # on the loop's clock
        self.last = last  # no renewal goes beyond it
        self.handle = ""
        self.provider: Provider | None = None
        self.made: Outstanding | None = None
        self.renewable = False
        self.timer: asyncio.TimerHandle | None = None


class _Flight:
    """A request that waits for providers."""

    __slots__ = ("call", "done", "over", "task")

    def __init__(self, call: str, task: str) -> None:
        self.call = call
        self.task = task
        self.over = False  # revoked
        self.done = asyncio.Event()  # delivered, or what came of it is being undone


class _Came:
    """What came of one name."""

    __slots__ = ("issued", "made", "name", "provider")

    def __init__(self, name: str, provider: Provider | None, issued: Issued, made: Outstanding | None) -> None:
        self.name = name
        self.provider = provider
        self.issued = issued
        self.made = made


class Leases:
    """Every lease of this broker. One loop calls it."""

    def __init__(self, keeper: Keeper, on_expired: Callable[[str, str], None]) -> None:
        self._keeper = keeper
        self._on_expired = on_expired
        self._settings = Secrets()
        self._compiled = Compiled({}, {})
        self._held: dict[str, dict[str, _Held]] = {}  # call -> id -> lease
        self._flights: set[_Flight] = set()
        self._over: OrderedDict[str, None] = OrderedDict()
        self._undoing: dict[str, asyncio.Task[None]] = {}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._left: dict[str, Outstanding] | None = None  # by a broker before this one; None until the journal is open

    def use(self, settings: Secrets, compiled: Compiled) -> None:
        """These providers from now on; leases that live keep theirs. What a broker that died has left is revoked now,
        not at the first call. Without a master key nothing is left, and nothing can be leased."""
        self._settings, self._compiled = settings, compiled
        try:
            opened = self._keeper.open()
        except RunnerError as error:
            _log.warning("no secret can be used: %s", error.refused.line())
        else:
            self._recover(opened)

    @property
    def living(self) -> int:
        """Leases that live."""
        return sum(map(len, self._held.values()))

    # --- issue ------------------------------------------------------------------------------------------------

    def issue(self, asked: wire.Issue) -> Coroutine[Any, Any, tuple[wire.Lease, ...]]:
        """A lease for each name, or none. Raises `RunnerError` (unavailable), now or when it is awaited.

        Counted as begun when this returns: whatever is revoked after it, however soon, is not delivered."""
        if asked.call in self._over:
            raise unavailable("the call is over")
        if not 0 < len(asked.names) <= _NAMES or len(self._flights) >= _FLIGHTS:
            raise refuse("busy", f"more than {_NAMES} secrets, or {_FLIGHTS} calls that wait for providers")
        try:
            opened = self.opened()
        except RunnerError as error:  # an agent reads this: without the place
            refused = error.refused
            raise unavailable(
                f"the broker's store is not open: {refused.reason}", next_step=refused.next_step
            ) from None
        flight = _Flight(asked.call, asked.task)
        self._flights.add(flight)
        return self._issue(opened, asked, flight)

    async def _issue(self, opened: Opened, asked: wire.Issue, flight: _Flight) -> tuple[wire.Lease, ...]:
        try:
            wish = Wish(read=asked.read, ttl_s=min(asked.ttl_ms / 1000, self._settings.ttl_s))
            came = await asyncio.gather(
                *(self._one(opened, name, wish) for name in asked.names), return_exceptions=True
            )
            # From here to the return nothing waits: either the call was revoked before, or its revocation finds these.
            failed = [each for each in came if isinstance(each, BaseException)]
            ready = [each for each in came if isinstance(each, _Came)]
            if not failed and not flight.over:
                return tuple(self._deliver(opened, asked, wish, each) for each in ready)
            for each in ready:
                each.issued.secret.wipe()
                self._undo(each.made, each.provider)
            raise failed[0] if failed else unavailable("the call is over")
        finally:
            self._flights.discard(flight)
            flight.done.set()

    async def _one(self, opened: Opened, name: str, wish: Wish) -> _Came:
        try:
            whose, secret, provider = self._compiled.of(name)
        except LookupError:
            raise unavailable(
                f"nothing provides the secret `{name[:128]}`", next_step="see [secrets.providers] and the manifest"
            ) from None
        if provider is None:
            stored = opened.store.get(secret)
            if stored is None:
                raise unavailable(f"no secret `{name[:64]}` is stored", next_step="run `runner secret set`")
            return _Came(name, None, Issued(stored), None)
        issued, made = await self._in_thread(whose, _make, opened, provider, whose, secret, wish, self._settings)
        return _Came(name, provider, issued, made)

    def _deliver(self, opened: Opened, asked: wire.Issue, wish: Wish, came: _Came) -> wire.Lease:
        issued, loop = came.issued, asyncio.get_running_loop()
        ttl = wish.ttl_s if issued.ttl_s is None else max(0.0, min(wish.ttl_s, issued.ttl_s))
        now = loop.time()
        held = _Held(
            id_=came.made.id if came.made else _fresh("l"),
            call=asked.call,
            task=asked.task,
            ends=now + ttl,
            last=now + self._settings.max_ttl_s,
        )
        held.provider, held.made, held.renewable = came.provider, came.made, issued.renewable
        held.timer = loop.call_later(ttl, self._expire, held)
        self._held.setdefault(asked.call, {})[held.id] = held
        secret = issued.secret
        lease = wire.Lease(
            id=held.id,
            name=came.name,
            accessor=_fresh("a"),
            fingerprint=opened.fingerprint(secret.value),
            value=bytes(secret.value),
            fields={name: bytes(value) for name, value in secret.fields.items()},
            version=secret.version,
            reach=issued.reach,
            ttl_ms=int(ttl * 1000),
            dynamic=came.made is not None,
        )
        secret.wipe()
        _log.info("lease %s of %s, accessor %s, for call %s", lease.id, lease.name, lease.accessor, asked.call)
        return lease

    # --- renew ------------------------------------------------------------------------------------------------

    async def renew(self, call: str, ttl_s: float) -> dict[str, int]:
        """How many milliseconds each lease of the call lives from now. Raises `RunnerError` (unavailable)."""
        held = [*self._held.get(call, {}).values()]
        if not held:
            raise unavailable("the call has no lease that lives")
        await asyncio.gather(*(self._renew(each, ttl_s) for each in held))
        living = self._held.get(call, {})
        if any(each.id not in living for each in held):  # revoked or expired meanwhile
            raise unavailable("a lease ended while it was being renewed")
        now = asyncio.get_running_loop().time()
        return {each.id: max(0, int((each.ends - now) * 1000)) for each in held}

    async def _renew(self, held: _Held, ttl_s: float) -> None:
        loop = asyncio.get_running_loop()
        wanted = min(ttl_s, self._settings.ttl_s, held.last - loop.time())
        if held.made is not None and held.provider is not None:
            if not held.renewable or wanted <= 0:
                return  # it lives as long as it does
            wanted = await self._in_thread(held.made.provider, held.provider.renew, held.made.handle, wanted)
        if held.id in self._held.get(held.call, {}):
            assert held.timer is not None
            held.timer.cancel()
            held.ends = loop.time() + max(0.0, wanted)
            held.timer = loop.call_later(max(0.0, wanted), self._expire, held)

    # --- revoke -----------------------------------------------------------------------------------------------

    def revoke(self, kind: str, value: str) -> tuple[int, int]:
        """End the leases of a call, of a task, or all: dead when this returns. Returns how many, and how many of all
        that were ended the providers still have to undo."""
        if kind == "call":
            self._over[value] = None
            while len(self._over) > _OVER:
                self._over.popitem(last=False)
            calls = [value]
        else:
            calls = [
                call
                for call, held in self._held.items()
                if kind == "all" or any(each.task == value for each in held.values())
            ]
        for flight in self._flights:
            if kind == "all" or value == (flight.call if kind == "call" else flight.task):
                flight.over = True
        ended = [each for call in calls for each in self._held.pop(call, {}).values()]
        for each in ended:
            self._end(each)
        return len(ended), len(self._undoing)

    def _expire(self, held: _Held) -> None:
        if self._held.get(held.call, {}).pop(held.id, None) is None:
            return
        if not self._held[held.call]:
            del self._held[held.call]
        self._end(held)
        self._on_expired(held.call, held.id)

    def _end(self, held: _Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
        self._undo(held.made, held.provider)

    # --- what providers made ----------------------------------------------------------------------------------

    def _undo(self, made: Outstanding | None, provider: Provider | None) -> None:
        """Have the provider end what it made, however often it takes."""
        if made is not None and provider is not None and made.id not in self._undoing:
            task = asyncio.ensure_future(self._undone(made, provider))
            self._undoing[made.id] = task
            task.add_done_callback(lambda _: self._undoing.pop(made.id, None))

    async def _undone(self, made: Outstanding, provider: Provider) -> None:
        attempt = 0
        while True:
            try:
                await self._in_thread(made.provider, provider.revoke, made.handle)
                break
            except RunnerError as error:
                _log.warning("lease %s of %s:%s is not revoked yet: %s", made.id, made.provider, made.name,
                             error.refused.reason)  # fmt: skip
            if time.time() > made.expires:
                _log.error(
                    "lease %s of %s:%s was never revoked there; it has expired", made.id, made.provider, made.name
                )
                break
            await asyncio.sleep(_AGAIN_S[min(attempt, len(_AGAIN_S) - 1)])
            attempt += 1
        self.opened().journal.gone(made.id)

    def opened(self) -> Opened:
        """Store and journal; what an earlier broker left outstanding is being undone from then on."""
        opened = self._keeper.open()
        if self._left is None:
            self._recover(opened)
        return opened

    def _recover(self, opened: Opened) -> None:
        if self._left is None:  # no lease of ours is in it yet
            self._left = dict(opened.journal.outstanding)
            if opened.journal.dropped:
                _log.warning("%d bytes at the end of the lease journal were a cut write", opened.journal.dropped)
            if self._left:
                _log.warning("%d leases are left of a broker that died", len(self._left))
        for made in [*self._left.values()]:
            provider = self._compiled.provider(made.provider)
            if provider is None:
                _log.error("lease %s of %s:%s is left, and no such provider is configured: it stays until one is",
                           made.id, made.provider, made.name)  # fmt: skip
            else:
                self._undo(self._left.pop(made.id), provider)

    async def close(self) -> None:
        """End everything; give providers a moment to undo it."""
        self.revoke("all", "")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                for flight in [*self._flights]:
                    await flight.done.wait()
                if self._undoing:
                    await asyncio.wait([*self._undoing.values()])
        for task in [*self._undoing.values()]:
            task.cancel()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if self._keeper.opened is not None:
            self._keeper.opened.journal.close()

    async def _in_thread(self, whose: str, what: Callable[..., Any], *arguments: Any) -> Any:
        pool = self._pools.get(whose)
        if pool is None:
            pool = self._pools[whose] = ThreadPoolExecutor(_THREADS, f"provider {whose}")
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, what, *arguments)
        except RunnerError:
            raise
        except Exception as error:
            # Its text may hold what a server answered: only where it happened is said.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("provider %s: %s at %s:%s", whose, type(error).__name__, place.filename, place.lineno)
            raise unavailable(
                f"{whose}: what it answered could not be handled", next_step="see the daemon's log"
            ) from None


def _make(
    opened: Opened, provider: Provider, whose: str, secret: str, wish: Wish, settings: Secrets
) -> tuple[Issued, Outstanding | None]:
    """In a thread: have it made, and in the journal before anybody knows of it."""
    issued = provider.issue(secret, wish)
    if not issued.handle:
        return issued, None
    made = Outstanding(_fresh("l"), whose, secret, issued.handle, time.time() + settings.max_ttl_s)
    # A crash between the answer and the next line leaves a lease that only its time to live ends.
    try:
        opened.journal.made(made)
    except RunnerError:
        issued.secret.wipe()
        provider.revoke(issued.handle)
        raise
    return issued, made


def _fresh(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(16)}"
