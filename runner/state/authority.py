"""What was announced and what was revoked, as authentication asks it on every call."""

from __future__ import annotations

from runner.state.store import Store
from runner.token.claims import VerifiedChain


class Authority:
    """Revocations in memory (asked per call), announcements from the file (asked per connection)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revoked = store.revocations()

    def announced(self, root_jti: str) -> str | None:
        """The digest under which an operator announced this root token, or None."""
        return self._store.announced(root_jti)

    def revoke(self, target: str, value: str) -> None:
        """From now on it is revoked; the entry was written before this."""
        self._revoked.add((target, value))

    def revoked(self, verified: VerifiedChain) -> str:
        """Why this chain is revoked, "" when it is not. A revoked token takes every token derived from it along."""
        who = verified.principal
        named = [("task", who.task), ("agent", who.agent), ("owner", who.owner)]
        for target, value in [*(("token", jti) for jti in verified.jtis), *named]:
            if (target, value) in self._revoked:
                return f"the {target} was revoked"
        return ""
