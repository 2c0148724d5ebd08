"""What the policies' answer means: five effects in order, and a denial wherever the engine's answer is not whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from runner.gate.rules import Rule
from runner.model import Effect

# DENY beats DEFER beats STEP_UP beats MODIFY beats ALLOW, whatever the order of the rules.
PRECEDENCE: tuple[Effect, ...] = ("deny", "defer", "step_up", "modify", "allow")
TEXT = 300


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the policies say. `rules` are the ids of those that decided; `errors` is never empty beside an allow."""

    effect: Effect
    reason: str
    rules: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    allowed: str = ""
    obligations: tuple[str, ...] = ()  # "injected=block"; with them an allow is a modify


def strongest(effects: Iterable[Effect]) -> Effect:
    """The effect that wins among those that matched; none is DENY."""
    found = set(effects)
    return next((effect for effect in PRECEDENCE if effect in found), "deny")


def verdict(rules: Mapping[str, Rule], allowed: bool | None, reasons: Sequence[str], errors: Sequence[str]) -> Verdict:
    """The engine's answer as a verdict; `allowed` is None when it gave none. `rules` are by the engine's ids.

    An error beside whatever answer denies, and so does no answer."""
    if errors or allowed is None:
        return _failed(rules, errors)
    matched = [rule for key, rule in rules.items() if key in reasons]
    if not allowed and matched:
        return Verdict(
            effect="deny",
            reason=matched[0].reason or f"rule {matched[0].id} forbids this call",
            rules=tuple(rule.id for rule in matched),
        )
    if not allowed:
        permits = [rule for rule in rules.values() if rule.effect == "permit"]
        near = ", ".join(rule.id for rule in permits[:3])
        return Verdict(
            effect="deny",
            reason=f"no policy permits this call; these did not match: {near}"
            if near
            else "no policy permits this tool",
            allowed="; ".join(rule.reason for rule in permits[:3] if rule.reason)[:TEXT],
        )
    if not matched or len(matched) != len(set(reasons)):
        return _failed(rules, ["the engine named a rule that is not in the bundle"])
    effect = strongest(rule.decision for rule in matched)
    deciding = [rule for rule in matched if rule.decision == effect]
    # Of every permit that holds, decided by or not: a wider one beside it lifts no obligation.
    obligations = tuple(sorted({each for rule in matched for each in rule.labels}))
    return Verdict(
        effect="modify" if obligations and effect == "allow" else effect,
        obligations=obligations,
        reason=deciding[0].reason or f"rule {deciding[0].id} permits this call",
        rules=tuple(rule.id for rule in deciding),
    )


def failed_rules(errors: Sequence[str], named: Mapping[str, str]) -> list[str]:
    """The ids of the rules that the engine's errors are about."""
    keys = [match.group(1) for error in errors if (match := re.search(r"policy `([^`]*)`", error))]
    return [named[key] for key in keys if key in named]


def _failed(rules: Mapping[str, Rule], errors: Sequence[str]) -> Verdict:
    """A denial that names the rules which could not be evaluated, and why."""
    told: list[str] = []
    ids: list[str] = []
    for error in errors:
        named = re.search(r"policy `([^`]*)`", error)
        rule = rules.get(named.group(1)) if named else None
        text = error.replace(f"`{named.group(1)}`", f"`{rule.id}`", 1) if named and rule else error
        told.append("".join(char if char.isprintable() else " " for char in text[:TEXT]))
        if rule:
            ids.append(rule.id)
    why = told[0] if told else "the policy engine gave no answer"
    return Verdict(
        effect="deny", reason=f"policy could not be evaluated: {why}", rules=tuple(ids), errors=(why, *told[1:])
    )
