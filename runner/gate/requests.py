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
from runner.gate.egress import answer, authorize_egress
from runner.gate.entries import Journal, content
from runner.gate.serving import Serving
from runner.gate.session import Session
from runner.ledger import entry as entries
from runner.model import Authenticated, Decision
from runner.wire import egress as wire

_log = logging.getLogger(__name__)
OWN = frozenset({"daemon:broker"})  # parts that dial by way of egress; the allowlist `daemon` is theirs alone


class Account:
    """The requests under one id: of a call, or of what the daemon itself dials."""

    def __init__(self, call: str, task: str, shelf: Shelf) -> None:
        self.call = call
        self.task = task
        self.pending: set[asyncio.Task[None]] = set()
        self.open: set[int] = set()  # allowed requests that have no end yet
        self.cassette = Cassette(shelf)
        self.counted: Counter[str] = Counter()
        self.used: Counter[str] = Counter()


class Watched(Account):
    """One call's requests, from its listener's opening to its end."""

    def __init__(
        self, requests: Requests, authenticated: Authenticated, running: Running, session: Session, serving: Serving
    ) -> None:
        super().__init__(running.call, running.task, requests.shelf)
        self._requests = requests
        self.authenticated = authenticated
        self.session = session
        self.serving = serving

    def begin(self) -> None:
        """Requests may come from now on."""
        self._requests.live[self.call] = self

    async def end(self) -> tuple[entries.Network, dict[str, int]]:
        """None may any more. Returns their sums, and how many each credential went with, once all are recorded."""
        while self.pending:
            await asyncio.wait(self.pending)
        self._requests.live.pop(self.call, None)
        await self.cassette.drop()
        sums = {name: self.counted[name] for name in ("requests", "refused", "up", "down", "opaque")}
        return entries.Network(**sums), dict(self.used)


class Requests:
    """Every live call's, and those of the daemon's own parts."""

    def __init__(self, journal: Journal, answer: Callable[[wire.Answer], None], limits: Limits) -> None:
        """`answer` tells egress."""
        self._journal = journal
        self._answer = answer
        self.shelf = Shelf(journal.recorder, journal.salt, limits)
        self.live: dict[str, Account] = {name: Account(name, "", self.shelf) for name in OWN}
        self.alerts = 0  # written since this process started
        self.newest = ""  # of them: when, and of which call

    def of(self, authenticated: Authenticated, running: Running, session: Session, serving: Serving) -> Watched:
        """The watch over a call that is about to run."""
        return Watched(self, authenticated, running, session, serving)

    def heard(self, message: wire.FromEgress) -> None:
        """A message of egress that answers no request of gate's."""
        watched = self.live.get(getattr(message, "call", ""))
        if watched is None:
            if isinstance(message, wire.Ask | wire.Keep):  # its call is over
                self._answer(wire.Answer(number=message.number, allowed=False, reason="the call is over"))
            return
        work: Coroutine[Any, Any, None]
        match message:
            case wire.Ask():
                work = self._asked(watched, message)
            case wire.Keep():
                work = self._kept(watched, message)
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

    async def _asked(self, watched: Account, asked: wire.Ask) -> None:
        """Decide, record, answer: in this order."""
        if asked.request.id in watched.open and isinstance(watched, Watched):
            _log.error("call %s: egress asked twice for request %d", watched.call, asked.request.id)
            self._answer(wire.Answer(number=asked.number, allowed=False, reason="a request's number is in use"))
            return
        decision = _decided(watched, asked.request)
        allowed = decision.effect == "allow"
        if allowed:
            watched.open.add(asked.request.id)
        watched.counted["requests" if allowed else "refused"] += 1
        if allowed and asked.request.visibility == "opaque":
            watched.counted["opaque"] += 1
        part = "" if allowed else "policy" if decision.code == "denied" else "token"
        await self._write(watched, asked.request, decision, part=part)
        # Not recorded is not answered: the journal stops the daemon then.
        self._answer(answer(asked.number, decision))

    async def _kept(self, watched: Account, keep: wire.Keep) -> None:
        """A piece of a response; of a call's alone, since what answers the daemon itself may be a credential."""
        wanted = isinstance(watched, Watched) and keep.id in watched.open
        wanted = wanted and await watched.cassette.take(keep.id, keep.data)
        self._answer(wire.Answer(number=keep.number, allowed=wanted))

    async def _refused(self, watched: Account, refused: wire.Refused) -> None:
        watched.counted["refused"] += 1
        decision = Decision(effect="deny", reason=refused.reason, code=refused.code)
        await self._write(watched, refused.request, decision, part=refused.part, missing=refused.missing)

    async def _write(
        self, watched: Account, request: wire.Requested, decision: Decision, *, part: str, missing: str = ""
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
            ),
            contents=contents,
        )

    async def _ended(self, watched: Account, ended: wire.Ended) -> None:
        if ended.id not in watched.open:  # it was denied, and its call ended before egress heard
            return
        watched.open.remove(ended.id)
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
            ),
            contents=contents,
        )

    async def _leaked(self, watched: Account, leaked: wire.Leaked) -> None:
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


def _decided(account: Account, request: wire.Requested) -> Decision:
    """Token and policy on a call's request. The daemon's own have neither: the allowlist `daemon` has let them out."""
    if not isinstance(account, Watched):
        return Decision(effect="allow", reason="a destination of the daemon's own", rules=("daemon.destinations",))
    facts, task = account.session.facts, account.session.task
    view = task.context.view(facts.original_request, len(account.authenticated.chain) - 1)
    return authorize_egress(
        account.authenticated, account.session.verified.tools, view, account.serving.policies, request
    )


def _without(path: str, text: str) -> str:
    """What is said of a request whose path only its digest tells."""
    return text.replace(path, "/(its path)") if len(path) > 1 else text
