"""May this task do this now? Total: every question has a decision, and whatever is unclear, missing or broken is DENY.

Pure: no clock, no files, no sockets; the same question against the same catalogue has the same decision, which is what
makes replay possible. The order of the answers is the order of the code: the tool exists, the task's profile holds it,
the arguments fit its schema, the policies permit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from runner.errors import Refusal, RunnerError
from runner.model import Authenticated, Decision, Effect, Manifest, Principal, TaskProfile, Value

_NAMES = 200  # the most of a list of names or of a hostile name in an answer


class SessionView(Value, frozen=True, kw_only=True):
    """What a session has done so far, as gate counted it; policy reads it. The request is the agent's own claim."""

    calls: int = 0
    denied: int = 0
    tools: tuple[str, ...] = ()  # tools it has called
    untrusted: int = 0  # calls whose output reached the agent
    original_request: str = ""
    depth: int = 0  # delegations between the root token and this one
    labels: tuple[str, ...] = ()  # of everything that was delivered to it
    forgotten: int = 0  # pieces of labelled text that are not known again when they go out: there was too much


class Question(Value, frozen=True, kw_only=True):
    """Everything of one call that a decision depends on, beside the session and the catalogue."""

    principal: Principal
    tool: str
    arguments: dict[str, Any]
    profile: str
    peer_uid: int
    labels: tuple[str, ...] = ()  # what the arguments carry, by patterns or because they copy labelled text


class Checker(Protocol):
    """Compiled argument schemas: `runner.gate.arguments.Arguments`."""

    def validate(self, manifest: Manifest, arguments: Mapping[str, Any]) -> Refusal | None:
        """None when they fit."""


class Catalogue(Protocol):
    """What is known of tools and profiles: one generation of it for the whole call."""

    @property
    def tools(self) -> Mapping[str, Manifest]:
        """Every tool, by id."""

    @property
    def task_profiles(self) -> Mapping[str, TaskProfile]:
        """Every task profile, by name."""

    @property
    def arguments(self) -> Checker:
        """Their argument schemas."""


class Answer(Protocol):
    """A verdict: `runner.gate.policy.Verdict`."""

    @property
    def effect(self) -> Effect:
        """The effect that won."""

    @property
    def reason(self) -> str:
        """Why, for the agent."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Ids of the rules that decided."""

    @property
    def allowed(self) -> str:
        """What would pass."""

    @property
    def obligations(self) -> tuple[str, ...]:
        """What must be done with a permit."""


class Policies(Protocol):
    """Compiled policies: `runner.gate.policy.PolicyBundle`."""

    @property
    def digest(self) -> str:
        """Of the whole bundle."""

    def evaluate(
        self, tool: str, principal: Principal, profile: str, arguments: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Answer:
        """The verdict on one call."""


def authorize(
    authenticated: Authenticated,
    session: SessionView,
    catalogue: Catalogue,
    policies: Policies,
    labels: tuple[str, ...] = (),
) -> Decision:
    """The decision on an authenticated call whose arguments carry `labels`. Never raises."""
    try:
        question = Question(
            principal=authenticated.principal,
            tool=authenticated.tool,
            arguments=authenticated.arguments,
            profile=authenticated.profile,
            peer_uid=authenticated.call.peer.uid,
            labels=labels,
        )
    except Exception as error:
        return _broken(error, policies)
    return decide(question, session, catalogue, policies)


def decide(question: Question, session: SessionView, catalogue: Catalogue, policies: Policies) -> Decision:
    """The decision on a question. Never raises."""
    try:
        decision = _before_policy(question, catalogue) or _by_policy(question, session, policies)
        return msgspec.structs.replace(decision, policy=policies.digest)
    except RunnerError as error:
        return msgspec.structs.replace(_refused(error.refused), policy=_digest(policies))
    except Exception as error:
        return _broken(error, policies)


def _before_policy(question: Question, catalogue: Catalogue) -> Decision | None:
    """The denials that need no policy; None when the call is one that policy may judge."""
    manifest = catalogue.tools.get(question.tool)
    if manifest is None:
        return _deny("unknown_tool", f"no tool `{_short(question.tool)}` in the catalogue")
    profile = catalogue.task_profiles.get(question.profile)
    if profile is None:
        return _deny("not_granted", f"the token names task profile `{_short(question.profile)}`, which does not exist")
    if question.tool not in profile.tools:
        reason = f"task profile `{profile.name}` does not hold tool `{question.tool}`"
        return _deny("not_granted", reason, allowed=_short(", ".join(profile.tools)))
    refused = catalogue.arguments.validate(manifest, question.arguments)
    return _refused(refused) if refused is not None else None


def seen(question: Question, session: SessionView) -> tuple[str, Principal, str, dict[str, Any], dict[str, Any]]:
    """What policy is asked with: `Policies.evaluate`'s arguments."""
    context = {
        "labels": question.labels,
        "session": session_context(session),
        "peer_uid": question.peer_uid,
        "depth": session.depth,
    }
    return question.tool, question.principal, question.profile, question.arguments, context


def session_context(session: SessionView) -> dict[str, Any]:
    """The session as every rule sees it."""
    return {
        "calls": session.calls,
        "denied": session.denied,
        "tools": session.tools,
        "untrusted": session.untrusted,
        "original_request": session.original_request,
        "labels": session.labels,
        "forgotten": session.forgotten,
    }


def _by_policy(question: Question, session: SessionView, policies: Policies) -> Decision:
    verdict = policies.evaluate(*seen(question, session))
    known = verdict.effect in ("allow", "modify", "step_up", "defer")
    return Decision(
        effect=verdict.effect if known else "deny",
        reason=verdict.reason,
        rules=verdict.rules,
        code="" if known else "denied",
        allowed=verdict.allowed,
        obligations=verdict.obligations,
    )


def _refused(refused: Refusal) -> Decision:
    return _deny(refused.code, refused.reason, field=refused.field, allowed=refused.allowed)


def _deny(code: str, reason: str, *, field: str = "", allowed: str = "") -> Decision:
    return Decision(effect="deny", reason=reason, code=code, field=field, allowed=allowed)


def _broken(error: Exception, policies: Policies) -> Decision:
    """A part of the decision failed: that is DENY, and the type of the failure is all that is told."""
    decision = _deny("denied", f"the decision could not be made ({type(error).__name__})")
    return msgspec.structs.replace(decision, policy=_digest(policies))


def _digest(policies: Policies) -> str:
    try:
        return str(policies.digest)
    except Exception:  # a missing part must not turn a denial into an error
        return ""


def _short(text: str) -> str:
    cut = text if len(text) <= _NAMES else text[: _NAMES - 1] + "…"
    return "".join(char if char.isprintable() else "?" for char in cut)
