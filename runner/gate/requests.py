"""What live calls ask of the network: each request's decision by token and policy, its entries, its end.

Egress has found every allowlist to allow a request when it asks; what it refuses itself, it tells. Each becomes an
entry: an allowed one before egress dials. What it tells of a request that was not allowed, or is over, is no entry:
the ledger would refuse it (`runner/ledger/sequence.py`), and egress reads hostile bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from runner.config import Limits
from runner.gate.calls import Running
from runner.gate.cassette import Cassette, Shelf
from runner.gate.egress import Carried, answer, authorize_egress
from runner.gate.entries import Journal, content
from runner.gate.origin import MAX_SOURCES
from runner.gate.outgoing import CANARY, NOTHING, Look, Looks, Placed
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.ledger import entry as entries
from runner.model import Authenticated, Decision
from runner.wire import egress as wire

Reply = Callable[[wire.Answer], None]
Decide = Callable[[wire.Requested, Carried], Decision]

_log = logging.getLogger(__name__)
_BY_TOKEN = ("not_granted", "constraint")  # codes of what the token denies; every other denial is policy's
_UNTOLD = "egress ended before it told how much of this had passed"
_MOST = (1 << 53) - 1  # what an entry holds exactly: more is the sum of what a broken egress tells of several requests
_OWN = Decision(effect="allow", reason="one of [daemon.destinations]: neither token nor policy speaks of the daemon")


class Watched:
    """The requests of one call, from its listener's opening to its end; or, without a `task`, the daemon's own."""

    def __init__(self, requests: Requests, call: str, task: str, decide: Decide, placed: Placed | None = None) -> None:
        self._requests = requests
        self.call = call
        self.task = task
        self.decide = decide
        self.placed = placed
        self.looks: dict[int, Look] = {}  # of allowed requests
        self.pending: set[asyncio.Task[None]] = set()
        self.open: set[int] = set()  # allowed requests that have no end yet
        self.cassette = Cassette(requests.shelf)
        self.counted: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.hosts: dict[str, None] = {}  # that requests went to

    def begin(self) -> None:
        """Requests may come from now on."""
        self._requests.live[self.call] = self

    async def end(self, closed: wire.Closed | None) -> tuple[entries.Network, dict[str, int]]:
        """None may any more. Returns their sums, and how many each credential went with, once all are recorded.

        `closed` has egress's own sums: it tells only so many refusals singly. None when it ended before it closed."""
        await self._requests.cut(self)
        self._requests.live.pop(self.call, None)
        await self.cassette.drop()
        counted = self.counted
        if closed is not None:
            counted["own"], counted["up"], counted["down"] = closed.refused, closed.up, closed.down
        network = entries.Network(
            requests=counted["requests"],
            refused=min(counted["refused"] + counted["own"], _MOST),
            up=min(counted["up"], _MOST),
            down=min(counted["down"], _MOST),
            opaque=counted["opaque"],
            hosts=tuple(self.hosts),
        )
        return network, dict(self.used)


class Requests:
    """Every live call's, and those of the daemon's own parts."""

    def __init__(self, journal: Journal, limits: Limits) -> None:
        self._journal = journal
        self.shelf = Shelf(journal.recorder, journal.salt, limits)
        self.live: dict[str, Watched] = {}
        self._own = Watched(self, wire.BROKER, "", lambda *_: _OWN)
        self._own.begin()
        self.alerts = 0  # written since this process started
        self.newest = ""  # of them: when, and of which call

    def of(
        self, authenticated: Authenticated, running: Running, session: Session, serving: Serving, looks: Looks
    ) -> Watched:
        """The watch over a call that is about to run. `looks` looks at what goes out of its task."""

        def decide(request: wire.Requested, carries: Carried) -> Decision:
            view = session.task.context.view(session.facts.original_request, len(authenticated.chain) - 1)
            return authorize_egress(authenticated, session.verified.tools, view, serving.policies, request, carries)

        return Watched(self, running.call, running.task, decide, Placed(looks, serving.tools.get(authenticated.tool)))

    def heard(self, message: wire.FromEgress, reply: Reply) -> None:
        """A message of egress that answers no request of gate's. `reply` leads to the very process that asked."""
        watched = self.live.get(getattr(message, "call", ""))
        if watched is None:
            if isinstance(message, wire.Ask | wire.Look | wire.Keep):  # its call is over
                reply(wire.Answer(number=message.number, allowed=False, reason="the call is over"))
            return
        work: Coroutine[Any, Any, None]
        match message:
            case wire.Ask():
                work = self._asked(watched, message, reply)
            case wire.Look():
                work = self._looked(watched, message, reply)
            case wire.Keep():
                work = self._kept(watched, message, reply)
            case wire.Refused():
                work = self._refused(watched, message)
            case wire.Ended():
                work = self._ended(watched, message)
            case wire.Leaked():
                work = self._leaked(watched, message)
            case _:
                return
        task = asyncio.ensure_future(work)
        watched.pending.add(task)
        task.add_done_callback(watched.pending.discard)

    async def lost(self) -> None:
        """Egress ended: so did what it carried for the daemon itself. Calls see to theirs when they end."""
        await self.cut(self._own)

    async def cut(self, watched: Watched) -> None:
        """Once all that it told is recorded, record the end of what egress never told the end of."""
        while watched.pending:
            await asyncio.wait(watched.pending)
        for number in tuple(watched.open):
            await self._ended(watched, wire.Ended(call=watched.call, id=number, code="interrupted", reason=_UNTOLD))

    async def _asked(self, watched: Watched, asked: wire.Ask, reply: Reply) -> None:
        """Decide, record, answer: in this order."""
        if asked.request.id in watched.open:
            _log.error("call %s: egress asked twice for request %d", watched.call, asked.request.id)
            reply(wire.Answer(number=asked.number, allowed=False, reason="a request's number is in use"))
            return
        look = watched.placed.begin(asked) if watched.placed is not None else None
        carries = look.carries if look is not None else NOTHING
        if look is not None and look.alarm():
            await self._leaked(watched, _canary(look, watched.call))
        decision = watched.decide(asked.request, carries)
        allowed = decision.effect == "allow"
        watched.counted["requests" if allowed else "refused"] += 1
        if allowed:
            watched.open.add(asked.request.id)
            if look is not None and not asked.last:
                watched.looks[asked.request.id] = look
            if len(watched.hosts) < MAX_SOURCES:
                watched.hosts[asked.request.host[:255]] = None
            watched.counted["opaque"] += asked.request.visibility == "opaque"
        part = "" if allowed else "token" if decision.code in _BY_TOKEN else "policy"
        await self._write(watched, asked.request, decision, part=part, carries=carries)
        # Not recorded is not answered: the journal stops the daemon then.
        reply(answer(asked.number, decision))

    async def _looked(self, watched: Watched, looked: wire.Look, reply: Reply) -> None:
        """More of an allowed request's body. What it turns out to carry is decided about; its end is told with that."""
        look = watched.looks.get(looked.id)
        if look is None:
            reply(wire.Answer(number=looked.number, allowed=False, reason="nothing more of this request is expected"))
            return
        decision = look.denied
        if decision is None and look.more(looked.data):
            if look.alarm():
                await self._leaked(watched, _canary(look, watched.call))
            decision = watched.decide(look.request, look.carries)
            look.denied = decision if decision.effect != "allow" else None
        reply(answer(looked.number, decision) if decision else wire.Answer(number=looked.number, allowed=True))

    async def _kept(self, watched: Watched, keep: wire.Keep, reply: Reply) -> None:
        """A piece of a response; of a call's alone, since what answers the daemon itself may be a credential."""
        wanted = watched is not self._own and keep.id in watched.open
        wanted = wanted and await watched.cassette.take(keep.id, keep.data)
        reply(wire.Answer(number=keep.number, allowed=wanted))

    async def _refused(self, watched: Watched, refused: wire.Refused) -> None:
        watched.counted["own"] += 1
        decision = Decision(effect="deny", reason=refused.reason, code=refused.code)
        await self._write(watched, refused.request, decision, part=refused.part, missing=refused.missing)

    async def _write(
        self,
        watched: Watched,
        request: wire.Requested,
        decision: Decision,
        *,
        part: str,
        missing: str = "",
        carries: Carried = NOTHING,
    ) -> None:
        path, kept, contents = request.path, None, tuple[bytes, ...]()
        reason = decision.reason
        if path and request.record == "digest":
            data, kept = content(path.encode(), self._journal.salt())
            reason, missing = _without(path, reason), _without(path, missing)
            path, contents = "", (data,)
        await self._journal.write(
            entries.Egress(
                time=self._journal.stamp(),
                call=watched.call,
                task=watched.task,
                request=request.id,
                protocol=request.protocol,
                host=request.host[:255],
                port=request.port,
                visibility=request.visibility,
                method=request.method[:32],
                path=path[:2000],
                path_content=kept,
                query=request.query,
                upgrade=request.upgrade[:40],
                allowed_by=request.rules,
                decision=entries.Decided(
                    effect=decision.effect,
                    reason=reason[:1000],
                    rules=decision.rules,
                    missing=decision.missing,
                    code=decision.code,
                    field=decision.field[:200],
                    policy=decision.policy,
                ),
                part=part[:100],
                missing=missing[:2000],
                carries=carries.labels,
                copies=carries.sources,
                misplaced=carries.secrets,
                unseen=not carries.whole,
            ),
            contents=contents,
        )

    async def _ended(self, watched: Watched, ended: wire.Ended) -> None:
        if ended.id not in watched.open:  # it was denied, and its call ended before egress heard
            return
        watched.open.remove(ended.id)
        look = watched.looks.pop(ended.id, None)
        late = look.carries if look is not None and look.carries != look.at_first else NOTHING
        response, contents, unkept = await watched.cassette.close(ended.id, whole=ended.whole)
        watched.counted["up"] += ended.up
        watched.counted["down"] += ended.down
        watched.used.update(ended.secrets)
        await self._journal.write(
            entries.EgressEnd(
                time=self._journal.stamp(),
                call=watched.call,
                task=watched.task,
                request=ended.id,
                address=ended.address[:64],
                status=ended.status,
                up=ended.up,
                down=ended.down,
                duration_us=ended.duration_us,
                code=ended.code[:40],
                reason=ended.reason[:500],
                secrets=ended.secrets,
                response=response,
                unkept=(unkept or ended.unkept)[:200],
                rules=look.denied.rules if look is not None and look.denied is not None else (),
                carries=late.labels,
                copies=late.sources,
                misplaced=late.secrets,
                unseen=not late.whole,
            ),
            contents=contents,
        )

    async def _leaked(self, watched: Watched, leaked: wire.Leaked) -> None:
        _log.critical("call %s: %s appeared where it must not: %s", watched.call, leaked.name, leaked.where[:200])
        self.alerts += 1
        self.newest = f"{self._journal.stamp()} call {watched.call}"
        await self._journal.write(
            entries.Alert(
                time=self._journal.stamp(),
                call=watched.call,
                task=watched.task,
                what=f"credential {leaked.name}"[:200],
                where=leaked.where[:500],
            ),
            sync=True,
        )


def _canary(look: Look, call: str) -> wire.Leaked:
    """What egress would have told, had it seen it."""
    return wire.Leaked(call=call, id=look.request.id, name=CANARY, where=look.where)


def _without(path: str, text: str) -> str:
    """What is said of a request whose path only its digest tells."""
    return text.replace(path, "/(its path)") if len(path) > 1 else text
