"""What changes between two bundles: over the cases of both, and over the calls that a ledger recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from runner.gate.serving import Serving
from runner.model import Decision
from runner.review.cases import Case, EgressPoint, Point
from runner.review.recorded import Recorded

MOST = 1000  # differing calls that are listed; all are counted


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One call on which two bundles differ. `what` is the coarsest thing that does: decision, rules or reason."""

    place: str  # file:line of a case, or a call's id
    name: str
    tool: str
    what: str
    old: Decision
    new: Decision


class Comparison(msgspec.Struct, kw_only=True):
    """How many calls were asked about, what differs, and how many could not be asked about and why."""

    asked: int = 0
    differences: list[Difference] = []
    counts: Counter[str] = msgspec.field(default_factory=Counter)  # "allow → deny", "rules", "reason"
    left_out: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, place: str, name: str, point: Point | EgressPoint, old: Serving, new: Serving) -> None:
        """Ask both about one call."""
        before, after = point.decide(old), point.decide(new)
        self.asked += 1
        what = differs(before, after)
        if not what:
            return
        self.counts[f"{before.effect} → {after.effect}" if before.effect != after.effect else what] += 1
        if len(self.differences) < MOST:
            tool = point.question.tool
            self.differences.append(Difference(place=place, name=name, tool=tool, what=what, old=before, new=after))


def differs(old: Decision, new: Decision) -> str:
    """The coarsest thing in which two decisions differ, "" for none. Which bundle decided is none."""
    if (old.effect, old.code) != (new.effect, new.code):
        return "decision"
    if old.rules != new.rules:
        return "rules"
    return "reason" if (old.reason, old.allowed) != (new.reason, new.allowed) else ""


def over_cases(cases: Iterable[tuple[str, Case]], old: Serving, new: Serving) -> Comparison:
    """Every case once, also when both folders have it."""
    found = Comparison(differences=[])
    done: set[bytes] = set()
    for place, case in cases:
        asked = msgspec.json.encode((case.point, case.name), order="sorted")
        if asked not in done:
            done.add(asked)
            found.add(place, case.name, case.point, old, new)
    return found


def over_calls(calls: Iterable[Recorded], old: Serving, new: Serving) -> Comparison:
    """Every recorded call whose arguments are kept, in the session as it was then."""
    found = Comparison(differences=[])
    for each in calls:
        if each.point is None:
            found.left_out[each.why] += 1
        elif not each.call.decision.policy:
            found.left_out["the token refused it, and no policy was asked"] += 1
        else:
            found.add(each.call.call, each.call.time, each.point, old, new)
    return found


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules by what happened to them."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]


def rules(old: Serving, new: Serving) -> Rules:
    """Which rules are new, gone, or have another text."""
    before = {rule.id: rule.source.text for rule in old.policies.all_rules}
    after = {rule.id: rule.source.text for rule in new.policies.all_rules}
    return Rules(
        added=[each for each in after if each not in before],
        removed=[each for each in before if each not in after],
        changed=[each for each in after if each in before and before[each] != after[each]],
    )
