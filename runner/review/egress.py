"""Which part lets a request out, and which does not: the same questions that egress and gate ask, told part by part.

Whoever asks brings the parts: the command line from a folder's catalogue, or from what a daemon says of a live task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.destination import Target
from runner.egress.allowlist import Allowlists, Limit
from runner.gate import egress
from runner.gate.authorize import SessionView
from runner.gate.schema import EGRESS
from runner.model import Allowlist, Principal, Protocol, SecretRef, Value
from runner.wire.egress import Requested, Visibility


class Standing(Value, frozen=True, kw_only=True):
    """Who asks: a call of a tool in a task, what its token grants (None: no token was named), and its allowlists."""

    principal: Principal
    tool: str
    profile: str
    allowlists: tuple[Allowlist, ...]
    granted: dict[str, Any] | None = None
    secrets: tuple[SecretRef, ...] = ()
    session: SessionView = SessionView()
    peer_uid: int = 0


class Said(Value, frozen=True, kw_only=True):
    """What one part says. `rules` are those that matched or denied; `missing` is TOML, or what a token would need."""

    part: str
    asked: bool = True
    allowed: bool = False
    rules: tuple[str, ...] = ()
    reason: str = ""
    missing: str = ""


class Explained(Value, frozen=True, kw_only=True):
    """A request and every part's word on it. `decides` is the first part that denies, "" when none does."""

    request: Requested
    allowed: bool
    decides: str
    parts: tuple[Said, ...]
    inspect: bool = False
    limits: tuple[Limit, ...] = ()
    secrets: tuple[SecretRef, ...] = ()  # that may go with it


def requested(target: Target, method: str, allowlists: Allowlists) -> tuple[Requested, bool]:
    """The request as egress would see it, and whether it would open its tunnel to see it.

    A tunnel that some part does not let be is taken as it would be once that part did: opened where a rule of another
    reads what passes. One that no rule opens shows nothing but its destination, whatever the URL says."""
    if target.scheme == "http":
        return _readable(target, "http", method, "head"), False
    if target.scheme == "tcp":
        return _opaque(target, "tcp"), False
    tunnel = allowlists.connect(target.host, target.port)
    if tunnel.allowed:
        opened = tunnel.inspect
        return (_readable(target, "https", method, "full") if opened else _opaque(target, tunnel.protocol)), opened
    opened = bool(method) or allowlists.inspected(target.host, target.port)
    return (_readable(target, "https", method, "full") if opened else _opaque(target, "https")), opened


def explain(target: Target, method: str, standing: Standing, policies: egress.Policies) -> Explained:
    """Ask every part about a request to `target`; `method` may be "" where it is not known."""
    return explain_by(
        target,
        method,
        standing.allowlists,
        standing.secrets,
        lambda request: (_token(standing.granted, request), _policy(standing, request, policies)),
    )


def explain_by(
    target: Target,
    method: str,
    allowlists: tuple[Allowlist, ...],
    secrets: tuple[SecretRef, ...],
    words: Callable[[Requested], tuple[Said, Said]],
) -> Explained:
    """The same, where token and policy are somebody else's to ask: `words` gives what they say of the request."""
    compiled = Allowlists(allowlists)
    request, inspect = requested(target, method, compiled)
    verdict = compiled.authorise(request)
    parts = [
        Said(part=each.part, allowed=each.allowed, rules=each.rules, reason=each.reason, missing=each.missing)
        for each in compiled.explain(request)
    ]
    if not verdict.allowed and all(each.allowed for each in parts):  # an address, or a form that nobody judges
        parts.append(Said(part=verdict.part, reason=verdict.reason, missing=verdict.missing))
    parts += words(request)
    denies = [each.part for each in parts if each.asked and not each.allowed]
    return Explained(
        request=request,
        allowed=not denies,
        decides=denies[0] if denies else "",
        parts=tuple(parts),
        inspect=inspect,
        limits=verdict.limits,
        secrets=_injected(secrets, verdict.rules, request) if not denies else (),
    )


def _readable(target: Target, protocol: Protocol, method: str, visibility: Visibility) -> Requested:
    return Requested(
        id=1,
        protocol=protocol,
        host=target.host,
        port=target.port,
        visibility=visibility,
        method=method or "GET",
        path=target.path,
        query=bool(target.query),
    )


def _opaque(target: Target, protocol: Protocol) -> Requested:
    return Requested(id=1, protocol=protocol, host=target.host, port=target.port, visibility="opaque")


def _token(granted: Mapping[str, Any] | None, request: Requested) -> Said:
    if granted is None:
        return Said(part="token", asked=False, reason="no token was named")
    denied = egress.beyond(granted, request)
    if denied is None:
        return Said(part="token", allowed=True, reason="its capability egress grants this")
    return Said(part="token", rules=denied.rules, reason=denied.reason, missing=denied.allowed)


def _policy(standing: Standing, request: Requested, policies: egress.Policies) -> Said:
    asked = egress.Outward(
        principal=standing.principal,
        tool=standing.tool,
        profile=standing.profile,
        peer_uid=standing.peer_uid,
        request=request,
    )
    decision = egress.decide(asked, {EGRESS: {}}, standing.session, policies)  # the token has its own line
    allowed = decision.effect == "allow"
    reason = decision.reason if allowed else f"{decision.effect}: {decision.reason}"
    return Said(part="policy", allowed=allowed, rules=decision.rules, reason=reason, missing=decision.allowed)


def _injected(secrets: Sequence[SecretRef], rules: Sequence[str], request: Requested) -> tuple[SecretRef, ...]:
    if request.visibility == "opaque":
        return ()
    names = {rule.partition("/")[2] for rule in rules if rule.startswith("tool ")}
    return tuple(each for each in secrets if each.delivery == "inject" and names & set(each.destinations))
