"""What was announced and what was revoked, as authentication asks it on every call: a view of state and its ledger.

A token and a task are revoked for ever: their names are never used again. An agent, an owner and everything are
revoked as of that entry: tokens announced after it stand, or nobody of that name could ever be trusted again. Closed
until released, they take whatever comes with them, until an operator releases them; what was announced before the
release stays revoked, also what parents handed on under that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from runner.model import Principal
from runner.state.store import Store
from runner.token.claims import VerifiedChain

EVERYTHING = "everything"
_FOR_EVER = ("token", "task")
_KNOWN = 4096  # root tokens whose place in the ledger is kept in memory


class Authority:
    """Revocations in memory (asked per call), announcements from the file (asked per connection)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revocations = store.revocations
        self._closed = store.closed
        self._announced_at = lru_cache(_KNOWN)(store.announced_at)
        self._ahead: list[tuple[str, str]] = []  # being written to the ledger

    def announced(self, root_jti: str) -> str | None:
        """The digest under which an operator announced this root token, or None."""
        return self._store.announced(root_jti)

    def revoked(self, verified: VerifiedChain) -> str:
        """Why this chain is revoked, "" when it is not. A revoked token takes every token derived from it along."""
        return self.taken(verified.principal, verified.jtis)

    def taken(self, who: Principal, chain: tuple[str, ...]) -> str:
        """Why whoever acts as `who` by the tokens of `chain`, root to leaf, may not any more; "" when nothing was
        taken back. Of the names that parents gave, a revoked one takes its holder's and all below along."""
        if not self._revocations and not self._ahead:
            return ""
        for target, value in _named(who, chain):
            at = self._revocations.get((target, value))
            closed = at is not None and (target, value) in self._closed
            stands = at is None or (target not in _FOR_EVER and not closed and at <= self._announced_at(chain[0]))
            if not stands or (target, value) in self._ahead:
                what = EVERYTHING if target == EVERYTHING else f"the {target}"
                return f"{what} was revoked" + (", until an operator releases it" if closed else "")
        return ""

    @contextmanager
    def revoking(self, target: str, value: str) -> Iterator[None]:
        """While its entry is being written: nothing new begins on it, so that no call follows the entry."""
        self._ahead.append((target, value))
        try:
            yield
        finally:
            self._ahead.remove((target, value))

    def being_revoked(self, target: str, value: str) -> bool:
        """Whether an entry that revokes it is being written."""
        return (target, value) in self._ahead

    def closed_at(self, target: str, value: str) -> int:
        """Where in the ledger it was closed until its release; -1 when it is open."""
        return self._closed.get((target, value), -1)

    def closed(self) -> tuple[tuple[str, str], ...]:
        """What is closed now, as (target, value), in order."""
        return tuple(sorted(self._closed))

    def for_ever(self, target: str, value: str) -> bool:
        """Whether a token or task of this name was revoked: nothing can be announced under it."""
        return target in _FOR_EVER and (target, value) in self._revocations


def _named(who: Principal, chain: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for jti in chain:
        yield "token", jti
    yield "task", who.task
    yield "agent", who.agent
    for name in who.asserted:
        yield "agent", name
    yield "owner", who.owner
    yield EVERYTHING, ""
