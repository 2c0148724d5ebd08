"""What gate remembers of tokens: proofs already accepted, chains already verified, and what the registry must answer.

All of it is bounded. A full replay window refuses work (`busy`) rather than forget a proof it accepted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from runner.config import Limits
from runner.errors import refuse
from runner.token.claims import Anchors, VerifiedChain, verify_chain
from runner.token.strict import NotAccepted, unauthenticated

_SHARE = 4  # one root token may fill this fraction of the replay window: a flood by one task is not everyone's `busy`


class Registry(Protocol):
    """What the state of this daemon knows of tokens."""

    def announced(self, root_jti: str) -> str | None:
        """The digest that an operator announced for this root token, None when nobody did."""

    def revoked(self, verified: VerifiedChain) -> str:
        """Why this chain is revoked: one of its tokens, its task, agent or owner; "" when it is not."""


class ReplayWindow:
    """Each proof is accepted once while its `iat` is within the window (the draft, step 7i).

    A proof whose second was already forgotten is refused too, so a clock that steps back revives none."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds: dict[int, dict[bytes, str]] = {}  # iat -> proof -> root token that used it
        self._used: dict[str, int] = {}  # root token -> proofs remembered
        self._size = 0
        self._forgotten = -1  # the latest iat that was dropped
        self._swept = -1  # the second in which that was last looked for

    def __len__(self) -> int:
        return self._size

    def check(self, verified: VerifiedChain, jti: str, iat: int, now: float) -> None:
        """Raises `RunnerError`: unauthenticated when the proof was accepted before, busy when memory is full."""
        self._forget(now)
        if iat <= self._forgotten or _key(verified, jti) in self._seconds.get(iat, ()):
            raise unauthenticated(NotAccepted("7i", "the proof was used before"))
        share = self._used.get(verified.root_jti, 0)
        if self._size >= self._limits.replay_proofs or share >= self._limits.replay_proofs // _SHARE:
            raise refuse(
                "busy",
                "more calls in the last minute than this daemon can tell apart",
                retry_after_ms=1000 * self._limits.proof_window_s,
            )

    def record(self, verified: VerifiedChain, jti: str, iat: int) -> None:
        """The proof is accepted: never again. Call right after `check`, with nothing awaited between."""
        self._seconds.setdefault(iat, {})[_key(verified, jti)] = verified.root_jti
        self._used[verified.root_jti] = self._used.get(verified.root_jti, 0) + 1
        self._size += 1

    def _forget(self, now: float) -> None:
        if self._swept == int(now):
            return
        self._swept = int(now)
        horizon = now - self._limits.proof_window_s
        for second in [second for second in self._seconds if second < horizon]:
            for root in self._seconds.pop(second).values():
                self._size -= 1
                self._used[root] -= 1
                if not self._used[root]:
                    del self._used[root]
            self._forgotten = max(self._forgotten, second)


def _key(verified: VerifiedChain, jti: str) -> bytes:
    """A proof among all proofs, in 16 bytes: jti is unique per holder only."""
    return hashlib.blake2b(f"{verified.leaf_digest} {jti}".encode(), digest_size=16).digest()


class ChainCache:
    """Verified chains by the digest of their exact text: reconnecting costs a hash, not a signature per token.

    Time is not remembered: expiry is checked at each use. Forgotten when the trust anchors change."""

    def __init__(self, anchors: Anchors, audience: str, limits: Limits) -> None:
        self._anchors = anchors
        self._audience = audience
        self._limits = limits
        self._kept: OrderedDict[bytes, tuple[VerifiedChain, int]] = OrderedDict()
        self._bytes = 0

    def verified(self, chain: Sequence[str], now: float) -> VerifiedChain:
        """The chain, verified at `now`. Raises `RunnerError` (unauthenticated)."""
        key, size = _digest(chain, self._limits)
        kept = self._kept.get(key)
        # A clock that stepped back makes a token future-dated again: verified afresh, and refused with its step.
        if kept and kept[0].issued - self._limits.iat_skew_s <= now < kept[0].expires:
            self._kept.move_to_end(key)
            return kept[0]
        found = verify_chain(chain, self._anchors, now, self._audience, self._limits)
        if kept is None:
            self._bytes += size
        self._kept[key] = (found, size)
        while self._bytes > self._limits.cached_chain_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
        return found


def _digest(chain: Sequence[str], limits: Limits) -> tuple[bytes, int]:
    """A digest that no other list of strings has, and the size; refused by length before anything is hashed."""
    size = sum(map(len, chain))
    if size > limits.chain_bytes or len(chain) > limits.delegation_depth + 1:
        raise unauthenticated(NotAccepted("2b", "the chain is too long"))
    digest = hashlib.sha256()
    for text in chain:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return digest.digest(), size
