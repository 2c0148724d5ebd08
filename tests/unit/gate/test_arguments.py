"""Arguments against their schema: what fits passes, what does not is named without being repeated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.gate.arguments import Arguments, brief
from runner.model import Manifest

PROPERTIES: dict[str, Any] = {
    "path": {"type": "string", "maxLength": 10},
    "argv": {"type": "array", "items": {"type": "string"}},
    "count": {"type": "integer", "minimum": 1, "maximum": 9},
    "ratio": {"type": "number"},
    "mode": {"enum": ["fast", "slow"]},
    "name": {"type": "string", "pattern": "^(a+)+$"},
    "box": {"type": "object", "additionalProperties": False, "properties": {"n": {"type": "integer"}}},
    "free": {"type": "object"},
}
TOOL = Manifest(
    id="tool",
    description="A tool.",
    consequence="low",
    profile="narrow",
    kind="argv",
    digest="0" * 64,
    code_digest="",
    parameters={"type": "object", "additionalProperties": False, "properties": PROPERTIES, "required": ["path"]},
    argv=("x", "{argv}"),
    paths={"path": "read"},
)
ARGUMENTS = Arguments([TOOL])


def test_what_fits() -> None:
    whole = {"path": "a", "argv": ["b"], "count": 3, "ratio": 0.5, "mode": "fast", "name": "aaa", "box": {"n": 1}}
    assert ARGUMENTS.validate(TOOL, whole) is None
    assert ARGUMENTS.validate(TOOL, {"path": ""}) is None


DEEP: dict[str, Any] = {}
for _ in range(100_000):
    DEEP = {"x": DEEP}


@pytest.mark.parametrize(
    ("given_", "field", "says", "allowed"),
    [
        ({}, "path", "`path` is required", ""),
        ({"path": 1}, "path", "not of type", ""),
        ({"path": "x" * 11}, "path", "longer than 10", ""),
        ({"path": "a", "extra": 1}, "", "unknown argument `extra`", "path"),
        ({"path": "a", "argv": "ls"}, "argv", "not of type", ""),
        ({"path": "a", "argv": ["ls", 1]}, "argv[1]", "not of type", ""),
        ({"path": "a", "count": 10}, "count", "maximum of 9", ""),
        ({"path": "a", "count": True}, "count", "not of type", ""),
        ({"path": "a", "mode": "other"}, "mode", "not one of", '["fast","slow"]'),
        ({"path": "a", "name": "b"}, "name", "does not match", ""),
        ({"path": "a", "box": {"m": 1}}, "box", "unknown argument `m`", ""),
        ({"path": "a", "box": {"n": "1"}}, "box.n", "not of type", ""),
        ({"path": None}, "path", "not of type", ""),
        ({"path": "a\0b"}, "path", "NUL", "U+0000"),
        ({"path": "a", "argv": ["a\0"]}, "argv", "NUL", "U+0000"),
        ({"path": "a", "ratio": float("nan")}, "ratio", "not a finite", ""),
        ({"path": "a", "ratio": float("-inf")}, "ratio", "not a finite", ""),
        ({"path": "a", "count": 2**53}, "count", "2^53", ""),
        ({"path": "a", "free": {"n": -(2**60)}}, "free", "2^53", ""),
        ({"path": "\ud800"}, "path", "Unicode", ""),
        ({"path": "a", "free": {"\ud800": 1}}, "free", "Unicode", ""),
        ({"path": "a", "free": {1: 1}}, "free", "Unicode", ""),
        ({"path": "a", "free": DEEP}, "free", "nests deeper", ""),
        ({"path": b"a"}, "path", "not JSON", ""),
    ],
)
def test_what_does_not_fit(given_: dict[str, Any], field: str, says: str, allowed: str) -> None:
    refused = ARGUMENTS.validate(TOOL, given_)
    assert refused is not None
    assert (refused.code, refused.field) == ("arguments", field)
    assert says in refused.reason
    assert allowed in refused.allowed
    assert refused.next_step


def test_a_hostile_value_is_not_repeated() -> None:
    secret = "hunter2 " * 10_000
    for given_ in ({"path": secret}, {"path": "a", "mode": secret}, {"path": "a", "argv": secret}):
        refused = ARGUMENTS.validate(TOOL, given_)
        assert refused is not None
        assert "hunter2" not in refused.line()


def test_a_hostile_name_is_cut_and_made_printable() -> None:
    refused = ARGUMENTS.validate(TOOL, {"path": "a", "\x1b[31m\n" + "k" * 10_000: 1})
    assert refused is not None
    assert len(refused.line()) < 600
    assert refused.line().isprintable()


def test_a_pattern_cannot_run_away() -> None:
    # Exponential for a backtracking engine; the suite's time-out is what would notice.
    refused = ARGUMENTS.validate(TOOL, {"path": "a", "name": "a" * 200_000 + "b"})
    assert refused is not None
    assert refused.field == "name"


def test_a_tool_of_another_catalogue_is_refused() -> None:
    other = msgspec.structs.replace(TOOL, digest="1" * 64)
    assert ARGUMENTS.validate(TOOL, {"path": "a"}) is None
    assert ARGUMENTS.validate(other, {"path": "a"}) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from([*PROPERTIES, "other"]) | st.text(), JSON, max_size=6))
def test_any_arguments_get_an_answer_that_can_be_told(arguments: dict[str, Any]) -> None:
    refused = ARGUMENTS.validate(TOOL, arguments)
    if refused is None:
        assert isinstance(arguments["path"], str)
        assert set(arguments) <= set(PROPERTIES)
        assert "count" not in arguments or 1 <= arguments["count"] <= 9
    else:
        assert refused.code == "arguments"
        assert max(len(refused.reason), len(refused.field), len(refused.allowed)) <= 1200
        msgspec.json.encode(refused)


@given(st.text(st.characters(codec=None)), st.integers(1, 50))
def test_brief_text_is_printable_and_bounded(text: str, most: int) -> None:
    assert brief(text, most).isprintable()
    assert len(brief(text, most)) <= most * 6
