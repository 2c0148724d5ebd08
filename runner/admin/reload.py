"""A reload that an operator asks for: parent reads the files, gate judges them against what is in force.

Gate keeps no copy of what waits for a second person, only its digest: on confirmation the files are read anew, and
they are the same or the confirmation is refused. SIGHUP names nobody, so it cannot be the first of two persons.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from runner.admin.roster import Roster
from runner.config import Config
from runner.errors import Refusal, RunnerError, refuse
from runner.gate.serving import Serving
from runner.ledger import entry as entries
from runner.model import Value
from runner.token.claims import Anchors
from runner.wire.parent import Bundle, Reread

ACT = "activate-policy"


class Standing(Value, frozen=True):
    """What a catalogue puts into force, by digests. `authority` is over who may decide, mint, confirm, and open what is
    under escrow: `rules`, which the configuration says, and `keys`, the files that it names and no catalogue holds;
    `anchors` are the thumbprints of the issuers' keys in them."""

    catalogue: str
    policy: str
    authority: str
    files: dict[str, str]
    two_person: tuple[str, ...]
    rules: str = ""
    keys: dict[str, str] = msgspec.field(default_factory=dict)
    anchors: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """All of it in one digest: the catalogue's own does not cover the issuers' key files."""
        return hashlib.sha256(f"{self.catalogue} {self.authority}".encode()).hexdigest()

    def needs_two(self, before: Standing) -> bool:
        """Whether putting this into force after `before` takes a second person. What is in force says so itself: where
        anything takes two, one alone does not change who they are, or that it does."""
        policy = ACT in before.two_person and self.policy != before.policy
        return policy or (bool(before.two_person) and self.authority != before.authority)

    def changes(self, before: Standing) -> list[str]:
        """What differs that matters here, in words."""
        found = _differ(self.files, before.files)
        if self.rules != before.rules:
            found.append("runner.toml: operators, two_person, issuers, who signs policies, or who opens raw output")
        found += [f"{path}, a key file" for path in _differ(self.keys, before.keys)]
        # By name: key files are in no catalogue, so whoever confirms sees no other difference.
        found += [f"an issuer's key that it retires: {key}" for key in sorted({*before.anchors} - {*self.anchors})]
        found += [f"an issuer's key that it adds: {key}" for key in sorted({*self.anchors} - {*before.anchors})]
        return found


def _differ(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [path for path in sorted({*one, *other}) if one.get(path) != other.get(path)]


def standing(bundle: Bundle, config: Config, policy: str, anchors: tuple[str, ...] = ()) -> Standing:
    """What `bundle` would put into force; `policy` is the digest of its policies, `anchors` its issuers' keys."""
    keys = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(bundle.keys.items())}
    said = [config.operators, config.two_person, config.issuers, config.policy, config.escrow]
    rules = hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()
    authority = msgspec.json.encode([rules, keys], order="deterministic")
    return Standing(
        catalogue=bundle.digest,
        policy=policy,
        authority=hashlib.sha256(authority).hexdigest(),
        files={f"policies/{path}": hashlib.sha256(data).hexdigest() for path, data in bundle.policies.items()},
        two_person=config.two_person,
        rules=rules,
        keys=keys,
        anchors=anchors,
    )


class Request(Value, frozen=True):
    """Who wants a reload; with `pending`, who confirms the one that waits."""

    operator: entries.Operator
    why: str = ""
    pending: entries.Pending | None = None

    def entry(self, *, time: str, before: str, after: str, policy: str, anchors: tuple[str, ...]) -> entries.Reload:
        """The entry of a reload that was carried out for it."""
        return entries.Reload(time=time, before=before, after=after, policy=policy, anchors=anchors, **self.said)

    @property
    def first(self) -> entries.Operator:
        """Who asked for it first."""
        return self.pending.operator if self.pending else self.operator

    @property
    def said(self) -> dict[str, Any]:
        """Who wanted it, and why, as both kinds of its entries say it."""
        return {
            "by": self.first.uid,
            "operator": self.first,
            "confirmed": self.operator if self.pending else None,
            "pending": self.pending.id if self.pending else "",
            "why": self.pending.why if self.pending else self.why,
        }


class Offered(NamedTuple):
    """A catalogue that gate has compiled, until parent commits it."""

    serving: Serving
    anchors: Anchors
    agents: frozenset[int]
    operators: Roster
    standing: Standing
    request: Request | None  # whose reload it is; None at start and by a signal


class Swap(NamedTuple):
    """A reload in force: its entry's position, and how many calls it stopped, whose issuer's key it retired."""

    position: int
    stopped: int = 0


class Held(Value, frozen=True):
    """A reload that waits: what it would put into force, after what, and the contents that it names."""

    offered: Standing
    before: Standing
    contents: tuple[bytes, ...]


class Reloads:
    """One at a time: asked of parent, judged when its files are offered, answered when they are in force or not."""

    def __init__(self, post: Callable[[Reread], None]) -> None:
        self._post = post
        self._one = asyncio.Lock()
        self._number = 0
        self._request: Request | None = None
        self._held: Held | None = None
        self._answer: asyncio.Future[Refusal | None] | None = None
        self.in_force: Standing | None = None
        self.swap: asyncio.Future[Swap] | None = None  # the newest

    def request(self, asked: int) -> Request | None:
        """Who asked for the reload of this number; None for a signal."""
        return self._request if asked and asked == self._number else None

    def judge(self, asked: int, offered: Standing, contents: Mapping[str, bytes]) -> None:
        """Raises `RunnerError` when what is offered may not be put into force on this word alone."""
        before, request = self.in_force, self.request(asked)
        if before is None:
            return  # the daemon starts: nothing is in force yet
        if request is not None and request.pending is not None:
            if offered.subject != request.pending.subject:
                raise refuse(
                    "conflict",
                    f"the files are not those that {request.pending.operator.name} asked for: they were altered since",
                    next_step="look at them, then `runner admin reload` asks for them anew",
                )
            if before.catalogue != request.pending.before:
                raise refuse(
                    "conflict",
                    "another catalogue has come into force since it was asked for",
                    next_step="`runner admin reload` asks for it anew",
                )
        elif offered.needs_two(before):
            if request is not None:
                self._held = Held(offered=offered, before=before, contents=tuple(contents.values()))
            raise refuse(
                "denied",
                f"it changes {', '.join(offered.changes(before))}, which takes two operators",
                rule=f"two_person {ACT}",
                next_step="ask with `runner admin reload`, and have another operator confirm it",
            )

    def refused(self, time: str, asked: int, refusal: Refusal, offered: str) -> entries.RefusedReload | None:
        """The entry of a reload that changed nothing; None of one that waits for a second person, which has its own.
        `offered` is the digest of the catalogue, "" where it was not read whole."""
        request = self.request(asked)
        if request is not None and self._held is not None:
            return None
        return entries.RefusedReload(
            time=time,
            offered=offered,
            code=refusal.code,
            field=_told(refusal.field),
            reason=_told(refusal.reason),
            **(request.said if request else {}),
        )

    def _waits(self) -> Held | None:
        return self._held

    def answered(self, asked: int, refusal: Refusal | None) -> None:
        """What became of a reload: None when parent had it put into force."""
        if asked == self._number and self._answer is not None and not self._answer.done():
            self._answer.set_result(refusal)

    async def ask(self, request: Request) -> Swap | Held:
        """Have the files read anew and put into force. What came of it, or what waits for a second person.

        Raises `RunnerError` with what is wrong with the files; the old ones stay in force then."""
        async with self._one:
            self._number += 1
            self._request, self._held = request, None
            self._answer = asyncio.get_running_loop().create_future()
            try:
                self._post(Reread(asked=self._number))
                refused = await self._answer
                if (held := self._waits()) is not None:
                    return held
                if refused is not None:
                    raise RunnerError(refused)
                assert self.swap is not None  # parent commits before it answers
                return await asyncio.shield(self.swap)
            finally:
                self._request = self._held = self._answer = None


def _told(text: str) -> str:
    """What a refusal says of files, which may be named in no encoding, as an entry can hold it."""
    return text.encode("utf-8", "replace").decode()[:500]
