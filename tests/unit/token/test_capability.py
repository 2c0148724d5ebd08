"""Constraint maps: the key rules of §4.5, the closed world of §3.3, and that a child's map never grants more."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.token.capability import attenuates, map_problem, violation
from runner.token.constraints import Work

EXAMPLES = int(os.environ.get("RUNNER_PROPERTY_EXAMPLES", "1500"))


def c(kind: str, **members: Any) -> dict[str, Any]:
    return {"constraint_type": kind, **members}


WILD = c("wildcard")
TEXT = c("exact", value="t")
MAYBE = c("range", max=200, optional=True)


# Facts of the draft's vectors J.8 and J.22 (tenuo-ai/tenuo, ietf/vectors): parent, child, the step that refuses.
@pytest.mark.parametrize(
    ("parent", "child", "step"),
    [
        ({}, {"path": TEXT}, ""),
        ({}, {}, ""),
        ({"path": WILD}, {"path": TEXT}, ""),
        ({"path": TEXT}, {}, "4p2"),
        ({"path": TEXT}, {"path": WILD}, "4p4"),
        ({"head": MAYBE}, {"head": c("range", max=100)}, ""),
        ({"path": TEXT}, {"path": {**TEXT, "optional": True}}, "4p3"),
        ({"path": TEXT, "head": MAYBE}, {"path": TEXT}, ""),
        ({"path": TEXT, "head": MAYBE}, {"head": MAYBE}, "4p2"),
        ({"path": TEXT, "*": WILD}, {"path": TEXT, "tail": c("range", max=5)}, ""),
        ({"path": TEXT}, {"path": TEXT, "*": WILD}, "4p2"),
        ({"path": TEXT}, {"path": TEXT, "extra": WILD}, "4p2"),
        ({"path": TEXT, "head": MAYBE, "*": WILD}, {"path": TEXT, "*": WILD}, "4p2"),
        ({}, {"*": WILD}, ""),
        ({"*": WILD}, {}, ""),
        ({"path": TEXT, "*": WILD}, {"path": TEXT, "new": {**WILD, "optional": True}}, ""),
        ({"path": TEXT, "*": WILD}, {"path": TEXT}, ""),
    ],
)
def test_key_rules(parent: dict[str, Any], child: dict[str, Any], step: str) -> None:
    assert map_problem(parent) == map_problem(child) == ""
    found = attenuates(parent, child, Work())
    assert (found.step if found else "") == step


@pytest.mark.parametrize(
    ("granted", "arguments", "kind"),
    [
        ({}, {"anything": 1}, ""),
        ({"path": TEXT}, {"path": "t"}, ""),
        ({"path": TEXT}, {"path": "u"}, "exact"),
        ({"path": TEXT}, {}, "required"),
        ({"path": TEXT}, {"path": "t", "x": 1}, "closed"),
        ({"path": TEXT}, {"path": "t", "*": 1}, "closed"),
        ({"path": TEXT, "*": WILD}, {"path": "t", "x": 1, "*": 2}, ""),
        ({"path": TEXT, "*": WILD}, {"x": 1}, "required"),
        ({"head": MAYBE}, {}, ""),
        ({"head": MAYBE}, {"head": 100}, ""),
        ({"head": MAYBE}, {"head": 201}, "range"),
        ({"head": MAYBE}, {"head": None}, "range"),
    ],
)
def test_closed_world(granted: dict[str, Any], arguments: dict[str, Any], kind: str) -> None:
    broken = violation(granted, arguments)
    assert (broken.kind if broken else "") == kind
    assert broken is None or broken.allowed


@pytest.mark.parametrize(
    "constraints",
    [
        [],
        None,
        "x",
        {"": WILD},
        {"a\n": WILD},
        {"a\0": WILD},
        {"a" * 129: WILD},
        {"*": TEXT},
        {"*": {**WILD, "optional": False}},
        {"a": None},
        {"a": c("x")},
    ],
)
def test_not_well_formed(constraints: object) -> None:
    assert map_problem(constraints)


values = st.sampled_from([0, 1, 2, "a"])
some = st.sampled_from(
    [
        WILD,
        c("exact", value=1),
        c("exact", value="a"),
        c("range", min=1),
        c("range", max=1),
        c("one_of", values=[1, "a"]),
        c("not_one_of", excluded=["a"]),
        c("all", constraints=[c("range", min=1), WILD]),
        c("any", constraints=[c("exact", value=1), c("exact", value="a")]),
    ]
)
entries = st.builds(
    lambda constraint, optional: {**constraint, "optional": True} if optional else constraint, some, st.booleans()
)
maps = st.builds(
    lambda named, rest: {**named, "*": WILD} if rest else named,
    st.dictionaries(st.sampled_from("pqr"), entries, max_size=3),
    st.booleans(),
)
calls = st.lists(st.dictionaries(st.sampled_from([*"pqrs", "*"]), values, max_size=4), max_size=10)


@settings(max_examples=EXAMPLES * 2, deadline=None)
@given(maps, maps, calls)
def test_what_a_child_map_allows_its_parent_allows(
    parent: dict[str, Any], child: dict[str, Any], seen: list[dict[str, Any]]
) -> None:
    if attenuates(parent, child, Work()) is None:
        assert [call for call in seen if violation(child, call) is None and violation(parent, call) is not None] == []
