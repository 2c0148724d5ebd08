"""Who acted by whose word: the tree of tokens that the calls of a task came with, told from the ledger alone.

A token is known by the digests of its chain, not by its id: the id of a derived token is its parent's holder's to
choose. What a token grants is content (`authority` of a call's entry), and told where the content store is at hand. A
token that no call came with is in no entry; a connection refused before its first call is in a `refusals` entry, which
names no token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from runner.errors import refuse
from runner.evidence.acts import operator_of
from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger
from runner.evidence.view import CallView
from runner.ledger import entry as entries

_REVOKE, _TOKEN = b'"kind":"revoke"', b'"kind":"token"'  # a quote inside a JSON string is escaped
_SO_FAR = ("agent", "owner", "everything")  # these take back what was announced before them; the others for ever
_TREE = 100_000  # tokens of one tree; a task of ours has a handful

Grants = Mapping[str, Mapping[str, Any]]  # tool -> argument -> constraint


class Revoked(msgspec.Struct, frozen=True):
    """A revocation that meets a token itself, and so all below it."""

    position: int
    time: str
    by: str
    target: str
    value: str
    why: str


class Made(msgspec.Struct, frozen=True):
    """One call, by the token at which it hangs."""

    position: int
    time: str
    call: str
    tool: str
    effect: str
    outcome: str
    why: str


class Token(msgspec.Struct):
    """One token. `calls` are those made with it, not with the ones below it; `refused` are those of them that were
    never planned; `made` the newest of them. `grants` is None where the content store does not tell it."""

    token: str
    name: str
    depth: int
    owner: str
    first: int = -1  # position of the first call that came with it, or with one below
    expires: int = 0
    announced: int = -1  # position of the entry; root tokens only
    calls: int = 0
    refused: int = 0
    revoked: tuple[Revoked, ...] = ()
    grants: Grants | None = None
    dropped: tuple[str, ...] = ()  # tools that its parent has
    narrowed: tuple[str, ...] = ()  # tools whose arguments it may use less freely than its parent
    made: list[Made] = []
    below: list[Token] = []

    def walk(self) -> Iterator[Token]:
        """This one and all below it, parents first."""
        waiting = [self]
        while waiting:
            token = waiting.pop()
            yield token
            waiting.extend(reversed(token.below))


def tree(
    ledger: Ledger, views: Iterable[CallView], content: ContentReader | None = None, *, keep: int = 5
) -> list[Token]:
    """The trees of tokens behind these calls (newest first), one per root token; `keep` calls are told of each token.

    Raises `RunnerError` (ledger) when the tokens are too many to be honest ones."""
    growing = _Growing(content, keep)
    for view in views:
        growing.add(view)
    growing.settle(ledger)
    return growing.roots


class _Growing:
    """The tree so far."""

    def __init__(self, content: ContentReader | None, keep: int) -> None:
        self._content = content
        self._keep = keep
        self._tokens: dict[tuple[str, ...], Token] = {}  # by the digests from the root down
        self._made: dict[tuple[str, ...], deque[Made]] = {}
        self._tasks: dict[str, str] = {}  # of root tokens
        self.roots: list[Token] = []

    def add(self, view: CallView) -> None:
        call = view.call
        place: tuple[str, ...] = ()
        for depth in range(len(call.chain)):
            place = (*place, _digest(call, depth))
            if place not in self._tokens:
                self._grow(place, call, depth)
            self._tokens[place].first = view.position
        if not place:
            return
        leaf = self._tokens[place]
        leaf.calls += 1
        leaf.refused += call.plan is None
        made = self._made.setdefault(place, deque())
        if len(made) < self._keep:
            made.appendleft(_made(view))

    def _grow(self, place: tuple[str, ...], call: entries.Call, depth: int) -> None:
        if len(self._tokens) >= _TREE:
            raise refuse("ledger", f"the calls came with more than {_TREE} tokens")
        if depth:
            link = call.delegation[depth - 1] if depth <= len(call.delegation) else None
            token = Token(
                call.chain[depth], link.name if link else "", depth, call.who.owner, expires=link.expires if link else 0
            )
            self._tokens[place[:-1]].below.append(token)
        else:
            token = Token(call.chain[0], call.who.agent, 0, call.who.owner)
            self._tasks[token.token] = call.who.task
            self.roots.append(token)
        self._tokens[place] = token
        self._grant(token, self._tokens[place[:-1]] if depth else None, call)

    def _grant(self, token: Token, parent: Token | None, call: entries.Call) -> None:
        token.grants = _grants(self._content, call, token.depth)
        if parent is None or token.grants is None or parent.grants is None:
            return
        token.dropped = tuple(sorted(parent.grants.keys() - token.grants.keys()))
        token.narrowed = tuple(
            sorted(tool for tool, granted in token.grants.items() if granted != parent.grants.get(tool))
        )

    def settle(self, ledger: Ledger) -> None:
        """What other entries say of the tokens: that a root was announced, that one was revoked."""
        for place, made in self._made.items():
            self._tokens[place].made = list(made)
        for siblings in (self.roots, *(token.below for token in self._tokens.values())):
            siblings.sort(key=lambda token: token.first)
        revoked: list[tuple[int, entries.Revoke]] = []
        for start, run in ledger.backwards(lambda holds: holds(_REVOKE) or holds(_TOKEN)):
            for position, data in reversed(list(enumerate(run, start))):
                if _REVOKE in data or _TOKEN in data:
                    entry = entries.decode(data)
                    if isinstance(entry, entries.Revoke):
                        revoked.append((position, entry))
                    elif isinstance(entry, entries.Token):
                        self._announce(position, entry)
        for position, entry in reversed(revoked):
            self._revoke(position, entry)

    def _announce(self, position: int, entry: entries.Token) -> None:
        for root in self.roots:
            if root.token == entry.jti:  # of several announcements the first counts: this is read newest first
                root.announced, root.expires = position, entry.expires

    def _revoke(self, position: int, entry: entries.Revoke) -> None:
        found = Revoked(position, entry.time, operator_of(entry)[0], entry.target, entry.value, entry.why)
        for root in self.roots:
            if entry.target in _SO_FAR and position < root.announced:
                continue
            for token in root.walk():
                if self._meets(entry, token):
                    token.revoked = (*token.revoked, found)

    def _meets(self, entry: entries.Revoke, token: Token) -> bool:
        """Names are met wherever they stand; what is the whole task's, at its root."""
        named = {"token": token.token, "agent": token.name}
        if not token.depth:
            named |= {"owner": token.owner, "task": self._tasks[token.token], "everything": ""}
        return named.get(entry.target) == entry.value


def _digest(call: entries.Call, depth: int) -> str:
    """What tells a token from others of the same id."""
    if 0 < depth <= len(call.delegation):
        return call.delegation[depth - 1].digest
    return call.chain[depth]


def _made(view: CallView) -> Made:
    call, end = view.call, view.outcome
    why = call.decision.reason if call.plan is None else end.reason if end else ""
    return Made(view.position, call.time, call.call, call.tool, call.decision.effect, view.state, why)


def _grants(content: ContentReader | None, call: entries.Call, depth: int) -> Grants | None:
    """What the token at this depth grants, from the chain that the store keeps; None when it does not tell."""
    if content is None or call.authority is None:
        return None
    data = content.get(call.authority.digest)
    if data is None:
        return None
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except msgspec.MsgspecError:
        return None
    link = kept.chain[depth] if depth < len(kept.chain) else None
    return (link.tools or {}) if link is not None and link.jti == call.chain[depth] else None


class _Link(msgspec.Struct):
    jti: str
    tools: dict[str, dict[str, Any]] | None


class _Kept(msgspec.Struct):
    """`runner/gate/provenance.py` keeps it."""

    chain: list[_Link]
