"""T10: of 10,000 pairs of a parent's and a child's map, whatever a child accepts its parent accepts.

A child is made by narrowing its parent at random and sometimes widening it: enough pairs attenuate for the claim to be
about something, which is counted. Arguments are taken from the two maps' own values, and from just beside them.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.token.capability import attenuates, map_problem, violation
from runner.token.constraints import Work

PAIRS = 10_000
BIG = 1152921504606847000  # as JSON writes the double 2^60, which has another value as a Python int
ATOMS: list[Any] = [
    0,
    1,
    2,
    3,
    1.5,
    BIG,
    float(BIG),
    True,
    None,
    "a",
    "b",
    "/workspace/src",
    "/workspace/src/x",
    "/workspace/y",
    "src/../y",
]
ROOTS = ["/", "/workspace", "/workspace/src", "/workspace/src/x"]
NAMES = "pqr"
Map = dict[str, Any]


def c(kind: str, **members: Any) -> Map:
    return {"constraint_type": kind, **members}


def some(pick: Random, most: int, least: int = 0) -> list[Any]:
    return [pick.choice(ATOMS) for _ in range(pick.randint(least, most))]


def constraint(pick: Random, depth: int = 0) -> Map:
    kind = pick.randrange(10 if depth < 2 else 8)
    if kind == 0:
        return c("exact", value=pick.choice(ATOMS))
    if kind == 1:
        low, high = sorted((pick.randint(0, 3), pick.randint(0, 3)))
        return c("range", min=low, max=high, min_inclusive=pick.random() < 0.7)
    if kind == 2:
        return c("range", **{pick.choice(["min", "max"]): pick.choice([0, 1, 2, 3, BIG, float(BIG)])})
    if kind == 3:
        return c("one_of", values=some(pick, 4, 1))
    if kind == 4:
        return c("not_one_of", excluded=some(pick, 3))
    if kind == 5:
        return pick.choice([c("contains", required=some(pick, 2)), c("subset", allowed=some(pick, 4))])
    if kind == 6:
        return c("path_containment", root=pick.choice(ROOTS))
    if kind == 7:
        return c("wildcard")
    clauses = [constraint(pick, depth + 1) for _ in range(pick.randint(1, 3))]
    return c("all" if kind == 8 else "any", constraints=clauses)


def narrower(pick: Random, parent: Map) -> Map:
    """What is likely to be narrower, and now and then is not."""
    kind, chance = parent["constraint_type"], pick.random()
    if chance < 0.15:
        return constraint(pick)
    if chance < 0.4:
        return dict(parent)
    if kind == "wildcard":
        return constraint(pick)
    if kind == "range":
        bounds = {name: parent[name] for name in ("min", "max") if name in parent}
        least, most = bounds.get("min", 0), bounds.get("max", 3)
        value = pick.choice([BIG, float(BIG)]) if max(least, most) > 3 else pick.randint(least, max(least, most))
        return pick.choice([c("exact", value=value), {**parent, "max": max(value, bounds.get("min", 0))}])
    if kind == "one_of":
        kept = pick.sample(parent["values"], pick.randint(1, len(parent["values"])))
        return pick.choice([c("one_of", values=kept), c("exact", value=kept[0])])
    if kind == "not_one_of":
        return c("not_one_of", excluded=[*parent["excluded"], pick.choice(ATOMS)])
    if kind == "contains":
        return c("contains", required=[*parent["required"], pick.choice(ATOMS)])
    if kind == "subset":
        return c("subset", allowed=parent["allowed"][: pick.randint(0, len(parent["allowed"]))])
    if kind == "path_containment":
        deeper = [root for root in ROOTS if len(root) >= len(parent["root"])]
        inside = c("exact", value=f"{parent['root'].rstrip('/')}/z")
        return pick.choice([c("path_containment", root=pick.choice(deeper)), inside])
    if kind in ("all", "any"):
        clauses = [narrower(pick, clause) for clause in parent["constraints"]]
        if kind == "any":
            return c("any", constraints=clauses[: pick.randint(1, len(clauses))])
        return c("all", constraints=[*clauses, constraint(pick, 2)])
    return dict(parent)


def entry(pick: Random, made: Map) -> Map:
    return {**made, "optional": True} if pick.random() < 0.4 else made


def parent_map(pick: Random) -> Map:
    made = {name: entry(pick, constraint(pick)) for name in NAMES if pick.random() < 0.6}
    return {**made, "*": c("wildcard")} if pick.random() < 0.3 else made


def child_map(pick: Random, parent: Map) -> Map:
    made: Map = {}
    for name, above in parent.items():
        if name == "*":
            if pick.random() < 0.5:
                made["*"] = c("wildcard")
        elif not above.get("optional") or pick.random() < 0.7:
            bare = {member: value for member, value in above.items() if member != "optional"}
            made[name] = narrower(pick, bare)
            if (above.get("optional") and pick.random() < 0.6) or pick.random() < 0.05:
                made[name] = {**made[name], "optional": True}
    if pick.random() < 0.1:
        made[pick.choice(NAMES + "s")] = entry(pick, constraint(pick))
    return made


def values(pick: Random, found: Any) -> list[Any]:
    """Every literal of a constraint, and something beside it."""
    if isinstance(found, dict):
        return [
            value for member, inner in found.items() if member != "constraint_type" for value in values(pick, inner)
        ]
    if isinstance(found, list):
        return [found, found[:-1], *(value for inner in found for value in [inner, *values(pick, inner)])]
    if isinstance(found, str):
        return [found, f"{found}/x", f"{found}/../y"]
    return [found, found + 1, found - 0.5] if type(found) in (int, float) else [found]


def arguments(pick: Random, child: Map, parent: Map) -> Map:
    made: Map = {}
    for name in {*child, *parent, *pick.sample(NAMES + "s", 1)} - {"*"}:
        if pick.random() < 0.85:
            near = values(pick, child.get(name, {})) + values(pick, parent.get(name, {}))
            made[name] = pick.choice([*near, *ATOMS[:1], pick.choice(ATOMS), some(pick, 3)])
    return made


def test_ten_thousand_pairs() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=PAIRS, deadline=None, database=None)
    @given(st.integers(0, 2**64 - 1))
    def judge(seed: int) -> None:
        pick = Random(seed)
        parent = parent_map(pick)
        child = child_map(pick, parent)
        assert map_problem(parent) == map_problem(child) == ""
        seen["pairs"] += 1
        attenuated = attenuates(parent, child, Work()) is None
        seen["attenuate"] += attenuated
        for _ in range(8):
            call = arguments(pick, child, parent)
            if violation(child, call) is None:
                above = violation(parent, call)
                seen["accepted" if attenuated else "accepted by a child that is wider"] += 1
                if attenuated:
                    assert above is None, (parent, child, call)
                seen["and refused by its parent"] += above is not None

    judge()
    assert seen["pairs"] >= PAIRS
    # The claim is about something: thousands of calls of thousands of pairs, and wider children are wider.
    assert seen["attenuate"] > PAIRS // 5, seen
    assert seen["accepted"] > PAIRS // 2, seen
    assert seen["and refused by its parent"] > 100, seen
