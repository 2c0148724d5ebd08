"""A listing promises what the token allows: the narrowed schema and the constraints agree on every call."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.token.capability import violation
from runner.token.narrow import narrow_schema, shown


def c(kind: str, **members: Any) -> dict[str, Any]:
    return {"constraint_type": kind, **members}


SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "A file."},
        "limit": {"type": "integer", "minimum": 1, "maximum": 50},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["path"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("constraint", "property_", "wanted"),
    [
        (c("exact", value="a"), "path", {"const": "a"}),
        (c("one_of", values=["a", "b"]), "path", {"enum": ["a", "b"]}),
        (c("not_one_of", excluded=["a"]), "path", {"allOf": [{"not": {"enum": ["a"]}}]}),
        (c("range", min=0, max=9), "limit", {"minimum": 1, "maximum": 9}),
        (c("range", max=9, max_inclusive=False), "limit", {"maximum": 50, "exclusiveMaximum": 9}),
        (c("subset", allowed=["x"]), "tags", {"items": {"type": "string", "enum": ["x"]}}),
        (c("contains", required=["x"]), "tags", {"allOf": [{"contains": {"const": "x"}}]}),
        (c("wildcard"), "path", {"description": "A file."}),
        (c("path_containment", root="/workspace/a"), "path", {"description": "A file. (must lie within /workspace/a)"}),
        (c("all", constraints=[c("range", min=3), c("range", max=4)]), "limit", {"minimum": 3, "maximum": 4}),
        (c("any", constraints=[c("exact", value="a")]), "path", {"allOf": [{"anyOf": [{"const": "a"}]}]}),
    ],
)
def test_each_type(constraint: dict[str, Any], property_: str, wanted: dict[str, Any]) -> None:
    before = copy.deepcopy(SCHEMA)
    narrowed = narrow_schema(SCHEMA, {property_: constraint})
    assert before == SCHEMA
    assert wanted.items() <= narrowed["properties"][property_].items()
    assert list(narrowed["properties"]) == [property_]


def test_open_and_closed_maps() -> None:
    assert narrow_schema(SCHEMA, {}) == SCHEMA
    opened = narrow_schema(SCHEMA, {"limit": c("range", max=5), "*": c("wildcard")})
    assert set(opened["properties"]) == {"path", "limit", "tags"}
    assert opened["required"] == ["limit", "path"]
    closed = narrow_schema(SCHEMA, {"path": c("wildcard"), "limit": c("range", max=5, optional=True)})
    assert set(closed["properties"]) == {"path", "limit"}
    assert closed["required"] == ["path"]
    assert closed["additionalProperties"] is False


sets = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True)
some = (
    st.builds(lambda value: c("exact", value=value), st.sampled_from(["a", 1, None, True]))
    | st.builds(lambda low: c("range", min=low, min_inclusive=False), st.integers(0, 2))
    | st.builds(lambda high: c("range", max=high), st.integers(0, 2))
    | st.builds(lambda many: c("one_of", values=many), sets)
    | st.builds(lambda many: c("not_one_of", excluded=many), sets)
    | st.just(c("wildcard"))
)
more = st.builds(
    lambda kind, clauses: c(kind, constraints=clauses),
    st.sampled_from(["all", "any"]),
    st.lists(some, min_size=1, max_size=2),
)
optional = st.builds(lambda constraint, flag: {**constraint, "optional": flag}, some | more, st.booleans())
maps = st.dictionaries(st.sampled_from("pq"), optional, max_size=2)
calls = st.dictionaries(st.sampled_from("pqr"), st.sampled_from(["a", "b", 0, 1, 2.5, None, True]), max_size=3)
OPEN = {"type": "object"}


@settings(max_examples=400, deadline=None)
@given(maps, st.lists(calls, max_size=8))
def test_schema_and_constraints_agree(constraints: dict[str, Any], seen: list[dict[str, Any]]) -> None:
    validator = jsonschema_rs.validator_for(narrow_schema(OPEN, constraints))
    for call in seen:
        assert validator.is_valid(call) is (violation(constraints, call) is None)


def test_shown_is_printable_and_short() -> None:
    assert shown("a\nb\x1b\u202e") == '"a\\nb\\u001b\\u202e"'
    assert len(shown("x" * 1000)) <= 80
    assert shown("\ud800") == shown(object()) == "?"
    assert shown("\U0001f600").isascii()
