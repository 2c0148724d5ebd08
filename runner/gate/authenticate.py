"""Who asks: a token chain and proofs of possession in, `VerifiedChain` for a connection and `Authenticated` for a call.

At hello (`Authenticator.open`):
 1. the chain verifies under a configured trust anchor (draft §8, steps 1–6; `token.claims`);
 2. the peer holds the leaf's key, here and now (step 7, over this connection's nonce);
 3. an operator announced exactly this root token: no authority without a record;
 4. nothing of the chain is revoked.
For each call (`Authenticator.authenticate`), as time has passed since:
 5. the trust anchor is still configured, no token has expired, nothing is revoked;
 6. the call's own proof: signature, leaf, audience, nonce, clock (steps 7a–7h);
 7. the proof was not used before (step 7i); it is remembered only if the token grants the call.
What the token grants (step 6b) is `capability`, apart, so that a proven caller's overreach becomes a decided call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from runner.config import Limits
from runner.errors import Refusal, refusal, refuse
from runner.gate.tokens import ChainCache, Registry, ReplayWindow
from runner.model import Authenticated, Peer, ToolCall
from runner.token.capability import violation
from runner.token.claims import Anchors, VerifiedChain
from runner.token.keys import PublicKey
from runner.token.narrow import shown
from runner.token.proof import verify_call, verify_hello
from runner.token.strict import NotAccepted, unauthenticated

RETIRED = "the issuer's key was retired"
_NAMED_TOOLS = 24  # granted tools named in a refusal


class Authenticator:
    """Turns tokens and proofs into identity. `started` is gate's start in seconds since the epoch: older proofs are
    refused, because the memory of accepted ones began then. Not shared between threads."""

    def __init__(self, anchors: Anchors, audience: str, registry: Registry, limits: Limits, started: float) -> None:
        self._audience = audience
        self._registry = registry
        self._limits = limits
        self._started = started
        self._replay = ReplayWindow(limits)
        self.replace_anchors(anchors)

    def replace_anchors(self, anchors: Anchors) -> None:
        """Trust these from now on: chains under a removed key are refused at their next call."""
        self._anchors = dict(anchors)
        self._chains = ChainCache(self._anchors, self._audience, self._limits)

    def retired(self, verified: VerifiedChain) -> str:
        """Why a chain is trusted no longer, "" while its trust anchor is in force."""
        return "" if self.trusts(verified.issuer, verified.anchor) else RETIRED

    def trusts(self, issuer: str, anchor: PublicKey) -> bool:
        """Whether this key of this issuer is in force."""
        return anchor in self._anchors.get(issuer, ())

    def open(self, chain: Sequence[str], hello: str, nonce: str, now: float, peer: Peer) -> VerifiedChain:
        """The identity of a new connection challenged with `nonce`. Raises `RunnerError`: unauthenticated, revoked."""
        # 1. The chain.
        verified = self._chains.verified(chain, now)
        # 2. Possession.
        verify_hello(hello, verified, self._audience, nonce, now, self._started, self._limits)
        # 3. Announced. A proven holder learns this much: the remedy is the operator's.
        if self._registry.announced(verified.root_jti) != verified.root_digest:
            raise refuse(
                "unauthenticated",
                "the root token was never announced to this daemon",
                next_step="have it minted by `runner token mint` or `runner exec` while the daemon runs",
                detail=f"root {verified.root_jti} digest {verified.root_digest} from uid {peer.uid}",
            )
        # 4. Revoked.
        self._check_revoked(verified)
        return verified

    def authenticate(self, call: ToolCall, verified: VerifiedChain, nonce: str, now: float) -> Authenticated:
        """A call of a connection that was opened with `verified` and `nonce`, proven to be its holder's.

        Raises `RunnerError`: unauthenticated, revoked, busy. What it returns may still be beyond the token:
        see `capability`."""
        # 5. Time has passed since the hello.
        if self.retired(verified):
            raise unauthenticated(NotAccepted("3b", "the trust anchor was removed"))
        if now >= verified.expires:
            raise refuse("unauthenticated", "the token has expired", detail=f"leaf {verified.leaf_jti}")
        self._check_revoked(verified)
        # 6. The call's proof.
        proven = verify_call(call.proof, verified, self._audience, nonce, now, self._started, self._limits)
        # 7. Once.
        self._replay.check(verified, proven.jti, proven.iat, now)
        authenticated = Authenticated(
            call=call,
            principal=verified.principal,
            tool=proven.tool,
            arguments=proven.arguments,
            constraints=verified.tools.get(proven.tool, {}),
            chain=verified.jtis,
            leaf_digest=verified.leaf_digest,
            proof_id=proven.jti,
            profile=verified.profile,
            expires=verified.expires,
        )
        if capability(authenticated, verified.tools) is None:
            self._replay.record(verified, proven.jti, proven.iat)
        return authenticated

    def _check_revoked(self, verified: VerifiedChain) -> None:
        why = self._registry.revoked(verified)
        if why:
            raise refuse("revoked", why, detail=f"root {verified.root_jti}")


def capability(authenticated: Authenticated, tools: Collection[str]) -> Refusal | None:
    """Step 6b: why the leaf token does not grant this call, None when it does. `tools` are the leaf's tool ids."""
    if authenticated.tool not in tools:
        names = sorted(tools)
        more = ", …" if len(names) > _NAMED_TOOLS else ""
        return refusal(
            "not_granted",
            f"the token does not grant {shown(authenticated.tool)}",
            rule="token:tools",
            allowed=", ".join(names[:_NAMED_TOOLS]) + more or "no tool",
        )
    broken = violation(authenticated.constraints, authenticated.arguments)
    if broken is None:
        return None
    name = shown(broken.argument)[1:-1]
    return refusal("constraint", broken.reason, rule=f"token:{name}:{broken.kind}", field=name, allowed=broken.allowed)
