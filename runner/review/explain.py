"""Why a call was decided as it was: which rules held, which nearly did, and what would have changed the decision.

Found by asking the engine about calls that differ from this one in one attribute or argument. What was not tried is not
known: "no change found" is no proof that there is none.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from runner.gate.authorize import Question
from runner.gate.serving import Serving
from runner.model import Decision
from runner.review.cases import Point
from runner.review.values import ABSENT, Change, changes

MOST = 5000  # calls asked about: a second or two
_MOST_TEXT = 1 << 26  # characters of arguments asked about: ten seconds, where a call is long
_BEFORE = frozenset({"arguments", "unknown_tool", "not_granted"})  # codes of decisions that no policy made


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and the decision after it; `rules` are those that hold then and did not before."""

    change: Change
    after: Decision
    rules: tuple[str, ...]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """`near` has for each rule that did not hold the smallest change found that makes it hold; `flips` for each
    attribute and other decision the smallest found that gives it, smallest first."""

    question: Question
    decision: Decision
    matching: tuple[str, ...]
    by_policy: bool
    near: dict[str, Change]
    flips: tuple[Flip, ...]
    tried: int
    all_tried: bool


def explain(point: Point, served: Serving, most: int = MOST) -> Explained:
    """The decision on a call and what surrounds it."""
    decision = point.decide(served)
    matching = point.matching(served)
    by_policy = decision.code not in _BEFORE
    most = min(most, _MOST_TEXT // len(json.dumps(point.question.arguments)))
    tried, all_tried = 0, True
    near: dict[str, Change] = {}
    flips: dict[tuple[str, str], Flip] = {}
    for change in changes(point, served):
        if tried == most:
            all_tried = False
            break
        tried += 1
        other = change.onto(point)
        after = other.decide(served)
        if after.code in _BEFORE and decision.effect != after.effect:
            continue  # a call that is refused before policy sees it teaches nothing of policy
        rules = tuple(each for each in other.matching(served) if each not in matching)
        for rule in rules:
            if rule not in near or change.size < near[rule].size:
                near[rule] = change
        if after.effect != decision.effect:
            kind = (change.field, after.effect)
            if kind not in flips or change.size < flips[kind].change.size:
                flips[kind] = Flip(change=change, after=after, rules=rules)
    order = [rule.id for rule in served.policies.rules(point.question.tool)]
    return Explained(
        question=point.question,
        decision=decision,
        matching=matching,
        by_policy=by_policy,
        near={rule: near[rule] for rule in order if rule in near},
        flips=tuple(sorted(flips.values(), key=lambda flip: flip.change.size)),
        tried=tried,
        all_tried=all_tried,
    )


def change_view(change: Change) -> dict[str, Any]:
    """A change for JSON: `old` and `new` are missing where the argument is left out."""
    values = {"old": change.old, "new": change.new}
    shown = {name: value for name, value in values.items() if value is not ABSENT}
    return {"field": change.field, "size": change.size, **shown}


def decision_view(decision: Decision) -> dict[str, Any]:
    """A decision for JSON."""
    return {
        "decision": decision.effect,
        "rules": list(decision.rules),
        "reason": decision.reason,
        "code": decision.code,
        "policy": decision.policy,
    }
