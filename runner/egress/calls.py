"""One call at the proxy: what it may reach, what it holds, what it has spent, and everything that is open for it.

Calls share nothing. All that passes bytes for one is registered with it, so that its end is one synchronous step: the
listener and every link are gone, and no credential can be asked for, before anything else runs.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from runner.egress.allowlist import Allowlists, Limit, Verdict
from runner.egress.inject import Credentials, Leak
from runner.egress.link import Link
from runner.egress.recording import Recording
from runner.egress.refusals import Stop
from runner.egress.tunnel import exceeded
from runner.wire.egress import Answer, Closed, Ended, FromEgress, Injection, Leaked, Open, Refused, Requested

_UNBOUNDED = 1 << 62
_MINUTE = 60.0
_MAX_LEAKED = 16  # leaks of one call that are told: whoever reads them knows by then
_MAX_TOLD = 128  # refusals of one call that are told singly; the rest are counted


class Readable(NamedTuple):
    """What gate is shown of a request before it decides."""

    head: bytes = b""
    body: bytes = b""
    last: bool = True


OPAQUE = Readable()


class Gate(Protocol):
    """What egress needs of gate."""

    async def ask(self, call: str, request: Requested, readable: Readable) -> Answer:
        """Token and policy, shown what can be read. Raises `Stop` (unavailable) when gate is gone."""

    async def look(self, call: str, request: int, data: bytes, *, last: bool) -> Answer:
        """The same about the next piece of its body."""

    async def keep(self, call: str, request: int, data: bytes) -> bool:
        """The next piece of a response; whether more is wanted. Raises `Stop` (unavailable) when gate is gone."""

    def post(self, message: FromEgress) -> None:
        """Tell what has no answer."""


class _Spent:
    """What one call has spent of one rule."""

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self.begun: deque[float] = deque()


class Call:
    """An open call."""

    def __init__(self, opened: Open, listener: socket.socket, gate: Gate) -> None:
        self.id = opened.call
        self.sandbox = opened.sandbox
        self.allowlists = Allowlists(opened.allowlists)
        # No rule stands for what is refused, so the strictest of all says how its path is recorded.
        self._digests = any(rule.record == "digest" for part in opened.allowlists for rule in part.rules)
        self.credentials = Credentials(opened.injections, opened.canary)
        self.listener = listener
        self.gate = gate
        self.blind = opened.blind
        self.links: set[Link] = set()
        self.connections = 0
        self.over = False
        self.up = 0
        self.down = 0
        self._requests = 0
        self._refused = 0
        self._leaked = 0
        self._spent: dict[str, _Spent] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def number(self) -> int:
        """The next request's id."""
        self._requests += 1
        return self._requests

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that ends with the call."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def attach(self, link: Link) -> None:
        """This link passes bytes for the call. Raises `Stop` when there is no call any more."""
        if self.over:
            link.abort()
            raise Stop("interrupted", "the call is over")
        self.links.add(link)

    def spent(self, rule: str) -> _Spent:
        """The call's account of a rule."""
        return self._spent.setdefault(rule, _Spent())

    def bound(self, rules: Iterable[str]) -> tuple[Injection, ...]:
        """The credentials that may go where these rules (`part/name`) lead: those of the tool's own."""
        names = (rule.partition("/") for rule in rules)
        return self.credentials.bound(name for part, _, name in names if part.startswith("tool "))

    def refused(self, request: Requested, stop: Stop) -> None:
        """Tell gate of what never left."""
        self._refused += 1
        if self._refused <= _MAX_TOLD:
            if self._digests:
                request = msgspec.structs.replace(request, record="digest")
            self.gate.post(
                Refused(
                    call=self.id,
                    request=request,
                    code=stop.code,
                    part=stop.part,
                    reason=stop.reason,
                    missing=stop.missing,
                )
            )

    def leaked(self, number: int, leak: Leak) -> Stop:
        """Tell gate of a placeholder or canary that was out of its place; the refusal that follows from it."""
        self._leaked += 1
        if self._leaked <= _MAX_LEAKED:
            self.gate.post(Leaked(call=self.id, id=number, name=leak.name, where=leak.where))
        return Stop("injection", f"a credential's placeholder stands where it may not: {leak.where}")

    def end(self) -> None:
        """Nothing of this call passes any more, from this very step on."""
        self.over = True
        self.credentials.wipe()
        for link in tuple(self.links):
            link.abort()
        self.listener.close()

    async def ended(self, number: int) -> Closed:
        """After `end`: wait until everything has noticed; what the call came to."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        return Closed(number=number, requests=self._requests, refused=self._refused, up=self.up, down=self.down)


class Passage:
    """One allowed request: what it may still move, and what is told when it is over."""

    def __init__(self, call: Call, verdict: Verdict, number: int) -> None:
        self._call = call
        self._limits: list[tuple[Limit, _Spent]] = [(each, call.spent(each.rule)) for each in verdict.limits]
        self._began = time.monotonic()
        self._number = number
        self._up = 0
        self._down = 0
        self.address = ""
        self.status = 0
        self.secrets: set[str] = set()
        self.recording = Recording(call.gate, call.id, number) if verdict.keep else None

    def enter(self) -> None:
        """One more request by these rules. Raises `Stop` (rate, budget)."""
        for limit, spent in self._limits:
            while spent.begun and spent.begun[0] <= self._began - _MINUTE:
                spent.begun.popleft()
            if limit.rate and len(spent.begun) >= limit.rate:
                raise Stop("rate", f"{limit.rule} allows {limit.rate} requests a minute", part=limit.rule)
        for up in (True, False):
            if not self.room(up=up):
                raise exceeded(up=up)
        for limit, spent in self._limits:
            if limit.rate:
                spent.begun.append(self._began)

    def room(self, *, up: bool) -> int:
        """Bytes that may still pass this way."""
        left = [
            (limit.up - spent.up) if up else (limit.down - spent.down)
            for limit, spent in self._limits
            if (limit.up if up else limit.down)
        ]
        return max(0, min(left, default=_UNBOUNDED))

    def count(self, moved: int, *, up: bool) -> None:
        """They have passed."""
        if up:
            self._up += moved
            self._call.up += moved
        else:
            self._down += moved
            self._call.down += moved
        for _, spent in self._limits:
            if up:
                spent.up += moved
            else:
                spent.down += moved

    def over(self, stop: Stop | None) -> None:
        """Tell gate how it ended."""
        kept = self.recording
        self._call.gate.post(
            Ended(
                call=self._call.id,
                id=self._number,
                address=self.address,
                status=self.status,
                up=self._up,
                down=self._down,
                duration_us=int((time.monotonic() - self._began) * 1e6),
                code=stop.code if stop else "",
                reason=stop.reason if stop else "",
                secrets=tuple(sorted(self.secrets)),
                whole=kept is not None and kept.whole and stop is None,
                unkept=kept.problem if kept is not None else "",
            )
        )


def denied(verdict: Verdict) -> Stop:
    """The authoriser's no."""
    code = "syntax" if verdict.part == "syntax" else "egress"
    return Stop(code, verdict.reason, part=verdict.part, missing=verdict.missing)


def as_judged(request: Requested, verdict: Verdict) -> Requested:
    """The request with the rules that allow it."""
    return msgspec.structs.replace(request, rules=verdict.rules, record=verdict.record)
