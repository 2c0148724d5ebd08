"""From a decision to a grant: the only way past STEP_UP and DEFER is a human's word, and no approver exists yet."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from runner.errors import Refusal, refusal
from runner.gate.authenticate import capability
from runner.model import Authenticated, Decision, Grant


def beyond(authenticated: Authenticated, tools: Collection[str]) -> Decision | None:
    """The denial of a proven call that its token does not grant; None when it does."""
    refused = capability(authenticated, tools)
    if refused is None:
        return None
    return Decision(
        effect="deny",
        reason=refused.reason,
        rules=(refused.rule,),
        code=refused.code,
        field=refused.field,
        allowed=refused.allowed,
    )


def approve(authenticated: Authenticated, decision: Decision, call: str) -> Grant | Refusal:
    """A grant for an allowed call, else the refusal the agent gets. Nothing but ALLOW and MODIFY passes: what MODIFY
    obliges to is in the decision, and held where the call's output is filtered."""
    if decision.effect in ("allow", "modify"):
        return Grant(authenticated=authenticated, decision=decision, call=call)
    if decision.effect in ("step_up", "defer"):
        return refusal(
            "approval_unavailable",
            f"policy answers {decision.effect}: {decision.reason}",
            rule=", ".join(decision.rules),
            field=decision.field,
        )
    return refusal(
        decision.code or "denied",
        decision.reason,
        rule=", ".join(decision.rules),
        field=decision.field,
        allowed=decision.allowed,
    )


def settle(decision: Decision) -> Decision:
    """The decision as it is recorded: STEP_UP and DEFER end as what they are, with the code that says why they deny."""
    if decision.effect in ("step_up", "defer"):
        return msgspec.structs.replace(decision, code="approval_unavailable")
    return decision
