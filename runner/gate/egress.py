"""May this call send this request? The token's capability `egress` decides first, then the policies.

Pure and total: whatever is unclear, missing or broken is DENY. The capability is judged like a tool of that name whose
arguments are exactly `host`, `port`, `protocol` and, where a request can be read, `method` and `path`: a closed world,
so that a derived token narrows it as it narrows any tool. What a token says of methods or paths cannot be kept inside
an opaque tunnel, so there such a token grants nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from runner.destination import Destination
from runner.gate.authorize import Answer as PolicyAnswer
from runner.gate.authorize import SessionView, session_context
from runner.gate.schema import EGRESS, Place
from runner.model import Authenticated, Decision, Principal, Value
from runner.token.capability import ConstraintMap, violation
from runner.token.narrow import shown
from runner.wire import egress as wire

_READABLE = ("method", "path")
_OPEN = "with a capability for it: `--allow egress`, or `--allow egress={constraints on host, port, protocol, …}`"


class Carried(Value, frozen=True, kw_only=True):
    """What was found in what can be read of a request."""

    labels: tuple[str, ...] = ()  # by patterns, or because it copies labelled text
    secrets: tuple[str, ...] = ()  # credentials of the task that are not bound to go there
    whole: bool = True  # nothing of it was too large, or packed too deep, to be looked at
    sources: tuple[str, ...] = ()  # calls whose results it copies


class Outward(Value, frozen=True, kw_only=True):
    """One request of one call, and everything of the call that its decision depends on."""

    principal: Principal
    tool: str
    profile: str
    peer_uid: int
    request: wire.Requested
    carries: Carried = Carried()


class Policies(Protocol):
    """Compiled policies: `runner.gate.policy.PolicyBundle`."""

    @property
    def digest(self) -> str:
        """Of the whole bundle."""

    def evaluate_egress(
        self, principal: Principal, profile: str, where: Place, context: Mapping[str, Any]
    ) -> PolicyAnswer:
        """The verdict on one request."""


def authorize_egress(
    authenticated: Authenticated,
    granted: Mapping[str, ConstraintMap],
    session: SessionView,
    policies: Policies,
    request: wire.Requested,
    carries: Carried,
) -> Decision:
    """The decision on a request of an authenticated call; `granted` is what its leaf token grants. Never raises."""
    try:
        asked = Outward(
            principal=authenticated.principal,
            tool=authenticated.tool,
            profile=authenticated.profile,
            peer_uid=authenticated.call.peer.uid,
            request=request,
            carries=carries,
        )
    except Exception as error:
        return _broken(error)
    return decide(asked, granted, session, policies)


def decide(asked: Outward, granted: Mapping[str, ConstraintMap], session: SessionView, policies: Policies) -> Decision:
    """The decision on a request. Never raises."""
    try:
        decision = beyond(granted, asked.request)
        if decision is not None:
            return decision
        answer = policies.evaluate_egress(*seen(asked, session))
        known = answer.effect in ("allow", "modify", "step_up", "defer")
        return Decision(
            effect=answer.effect if known else "deny",
            reason=answer.reason,
            rules=answer.rules,
            code="" if known else "denied",
            allowed=answer.allowed,
            policy=policies.digest,
        )
    except Exception as error:
        return _broken(error)


def beyond(granted: Mapping[str, ConstraintMap], request: wire.Requested) -> Decision | None:
    """The denial of a request that the token does not grant; None when it does."""
    constraints = granted.get(EGRESS)
    if constraints is None:
        return _deny("not_granted", "the token does not grant egress", rule="token:tools", allowed=f"a token {_OPEN}")
    arguments: dict[str, Any] = {"host": request.host, "port": request.port, "protocol": request.protocol}
    if request.visibility == "opaque":
        for name in _READABLE:
            constraint = constraints.get(name)
            if constraint is None:
                continue
            if constraint.get("constraint_type") != "wildcard":
                reason = f"the token constrains {name}, which nobody can read in an opaque tunnel"
                allowed = 'a request by a rule with tls = "inspect", or a token without this constraint'
                return _deny("constraint", reason, rule=f"token:{name}:opaque", field=name, allowed=allowed)
            arguments[name] = ""  # any value at all passes: its absence does, too
    else:
        arguments |= {"method": request.method, "path": request.path}
    broken = violation(constraints, arguments)
    if broken is None:
        return None
    name = shown(broken.argument)[1:-1]
    reason = f"egress to {name}: {broken.reason}" if broken.argument == "host" else f"egress: {broken.reason}"
    return _deny("constraint", reason, rule=f"token:{name}:{broken.kind}", field=name, allowed=broken.allowed)


def seen(asked: Outward, session: SessionView) -> tuple[Principal, str, Place, dict[str, Any]]:
    """What policy is asked with: `Policies.evaluate_egress`'s arguments."""
    request = asked.request
    context: dict[str, Any] = {
        "tool": asked.tool,
        "host": request.host,
        "port": request.port,
        "protocol": request.protocol,
        "visibility": request.visibility,
        "upgrade": request.upgrade,
        "labels": asked.carries.labels,
        "secrets": asked.carries.secrets,
        "whole": asked.carries.whole,
        "session": session_context(session),
        "peer_uid": asked.peer_uid,
        "depth": session.depth,
    }
    if request.visibility != "opaque":
        context |= {"method": request.method, "path": request.path}
    where = Destination(request.host, request.port)
    return asked.principal, asked.profile, Place(str(where), request.host, request.port, request.protocol), context


def answer(number: int, decision: Decision) -> wire.Answer:
    """The decision as egress gets it: nothing but ALLOW lets a request out. No human can be asked while it waits."""
    allowed = decision.effect == "allow"
    waits = decision.effect in ("step_up", "defer")
    return wire.Answer(
        number=number,
        allowed=allowed,
        rule=", ".join(decision.rules),
        reason=f"policy answers {decision.effect}: {decision.reason}" if waits else decision.reason,
        next_step="" if allowed else decision.allowed,
    )


def _deny(code: str, reason: str, *, rule: str = "", field: str = "", allowed: str = "") -> Decision:
    return Decision(
        effect="deny", reason=reason, rules=(rule,) if rule else (), code=code, field=field, allowed=allowed
    )


def _broken(error: Exception) -> Decision:
    """A part of the decision failed: that is DENY, and the type of the failure is all that is told."""
    return _deny("denied", f"the decision could not be made ({type(error).__name__})")
