"""Constraint maps: what a token grants for one tool, whether a child's map attenuates its parent's, what a call breaks.

The closed world of the draft's §3.3: an argument nobody named is refused unless the map has `*`; an empty map is `*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.model import Value
from runner.token.constraints import MAX_DEPTH, Work, check, problem, subsumes
from runner.token.narrow import describe, shown

REST = "*"  # the reserved key for every argument that the map does not name
_OPEN: dict[str, Any] = {REST: {"constraint_type": "wildcard"}}

ConstraintMap = Mapping[str, Any]


class Violation(Value, frozen=True):
    """What an invocation breaks: the argument, the constraint type (or `closed`, `required`), and what would pass."""

    argument: str
    kind: str
    reason: str
    allowed: str


class Widening(Value, frozen=True):
    """Where a child's map grants more than its parent's: the step of §8, the argument, and what the parent allows."""

    step: str
    reason: str
    argument: str
    allowed: str


def map_problem(constraints: object, depth: int = MAX_DEPTH) -> str:
    """Why a constraint map is not well-formed; "" when it is."""
    if type(constraints) is not dict:
        return "a constraint map is not an object"
    for name, constraint in constraints.items():
        if not 0 < len(name) <= 128 or not name.isprintable():
            return "an argument name is empty, too long or not printable"
        found = problem(constraint, depth)
        if found:
            return f"argument {shown(name)}: {found}"
        if name == REST and (constraint["constraint_type"] != "wildcard" or "optional" in constraint):
            return "`*` is not a plain wildcard"
    return ""


def attenuates(parent: ConstraintMap, child: ConstraintMap, work: Work) -> Widening | None:
    """None when `child` grants nothing that `parent` does not (§4.5); else where it would grant more."""
    above, below = parent or _OPEN, child or _OPEN

    def wider(step: str, name: str, words: str) -> Widening:
        known = above.get(name, above.get(REST))
        allowed = describe(known) if known is not None else ", ".join(sorted(shown(each)[1:-1] for each in above))[:400]
        return Widening(step=step, reason=words, argument=name, allowed=allowed)

    # p2: names.
    if REST in below and REST not in above:
        return wider("4p2", REST, "`*` was added")
    for name in below:
        if name not in above and REST not in above:
            return wider("4p2", name, f"argument {shown(name)} is not the parent's to grant")
    for name, constraint in above.items():
        if name != REST and name not in below and (not constraint.get("optional") or REST in below):
            return wider("4p2", name, f"argument {shown(name)} was dropped")
    for name, constraint in below.items():
        known = above.get(name)
        # p3: what the parent requires stays required.
        if known is not None and constraint.get("optional", False) and not known.get("optional", False):
            return wider("4p3", name, f"argument {shown(name)} became optional")
        # p4: each constraint is at least as tight.
        if not subsumes(known if known is not None else above[REST], constraint, work):
            return wider("4p4", name, f"argument {shown(name)}: the constraint is not narrower than the parent's")
    return None


def violation(constraints: ConstraintMap, arguments: Mapping[str, Any]) -> Violation | None:
    """The first thing about `arguments` that the map does not allow (§8, step 6b); None when it allows them all."""
    granted = constraints or _OPEN
    for name, value in arguments.items():
        constraint = granted.get(name) if name != REST else None
        if constraint is None:
            if REST in granted:
                continue
            names = ", ".join(sorted(shown(known)[1:-1] for known in granted))[:400]
            return Violation(argument=name, kind="closed", reason="the token does not name it", allowed=names)
        if not check(constraint, value):
            kind = constraint["constraint_type"]
            allowed = describe(constraint)
            return Violation(argument=name, kind=kind, reason="outside what the token allows", allowed=allowed)
    for name, constraint in granted.items():
        if name != REST and name not in arguments and not constraint.get("optional", False):
            return Violation(
                argument=name, kind="required", reason="the token requires this argument", allowed=describe(constraint)
            )
    return None
