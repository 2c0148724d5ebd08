"""The mapping from JSON Schema to what policy sees, and one call's arguments shown by it: exact, or refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.gate.schema import cedar_schema, cedar_type, decimal, hidden, normal, show, visible
from runner.model import Manifest


def manifest(
    properties: dict[str, Any], required: tuple[str, ...] = (), extra: dict[str, Any] | None = None, **more: Any
) -> Manifest:
    schema = {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}
    return Manifest(
        id="tool",
        description="A tool.",
        consequence="low",
        profile="narrow",
        kind="python",
        digest="0" * 64,
        code_digest="",
        parameters={**schema, **(extra or {})},
        **more,
    )


STRINGS = {"type": "array", "items": {"type": "string"}}
CLOSED = {"type": "object", "additionalProperties": False, "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("schema", "cedar"),
    [
        ({"type": "string"}, "String"),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"minLength": 5}]}, "String"),
        ({"enum": ["a", "b"]}, "String"),
        ({"const": True}, "Bool"),
        ({"enum": [1, 2]}, "Long"),
        ({"type": "integer"}, "Long"),
        ({"type": "number"}, "decimal"),
        ({"type": "boolean"}, "Bool"),
        ({"type": "array", "items": {"type": "integer"}}, "Set<Long>"),
        ({"type": "array", "items": {"type": "number"}}, "Set<decimal>"),
        (CLOSED, '{ "n": Long }'),
        ({**CLOSED, "required": []}, '{ "n"?: Long }'),
        ({"$ref": "#/$defs/size"}, "Long"),
    ],
)
def test_what_is_visible(schema: dict[str, Any], cedar: str) -> None:
    tool = manifest({"x": schema}, ("x",), {"$defs": {"size": {"type": "integer"}}})
    (attribute,) = visible(tool).fields.values()
    assert (cedar_type(attribute.shape), attribute.required) == (cedar, True)
    assert hidden(tool) == ()


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "additionalProperties": False, "properties": {"x": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "null"},
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {**CLOSED, "patternProperties": {"^x": {}}},
        {"type": "array"},
        {"type": "array", "items": {"type": ["string", "integer"]}},
        {"type": "array", "items": STRINGS},
        {"type": "array", "items": {"type": "string"}, "prefixItems": [{"type": "integer"}]},
        {"enum": ["a", 1]},
        {"enum": [None]},
        {"enum": [1, 1.5]},
        {"$ref": "#/$defs/loop"},
        {},
        True,
    ],
)
def test_what_is_not_visible_without_a_projection(schema: Any) -> None:
    loop = {"$defs": {"loop": {"type": "array", "items": {"$ref": "#/$defs/loop"}}}}
    assert hidden(manifest({"x": schema}, extra=loop)) == ("x",)
    assert hidden(manifest({"x": schema}, extra=loop, project={"x": "String"})) == ()


def test_records_end_four_deep() -> None:
    def depth(text: str) -> int:
        return text.count("{")

    shown = visible(manifest({"x": _nested(9)})).fields["x"]
    assert depth(cedar_type(shown.shape)) == 4


def test_an_array_of_strings_is_also_a_text() -> None:
    record = visible(manifest({"argv": STRINGS}, ("argv",)))
    assert {key: cedar_type(each.shape) for key, each in record.fields.items()} == {
        "argv": "Set<String>",
        "argv_text": "String",
    }
    assert show(record, {"argv": ["sh", "-c", "a  | b"]}) == {
        "argv": ["sh", "-c", "a  | b"],
        "argv_text": "sh -c a  | b",
    }


@pytest.mark.parametrize("names", [("argv", "argv_text"), ("argv_text", "argv")])
def test_a_parameter_cannot_take_the_place_of_that_text(names: tuple[str, str]) -> None:
    tool = manifest({name: STRINGS if name == "argv" else {"type": "string"} for name in names})
    with pytest.raises(RunnerError, match="argv_text") as caught:
        visible(tool)
    assert caught.value.refused.code == "manifest"


@pytest.mark.parametrize("name", ["__entity", "__extn", "__expr"])
def test_names_that_the_engine_reads_as_more_than_data_are_not_shown(name: str) -> None:
    inner = {**CLOSED, "properties": {name: {"type": "string"}, "n": {"type": "integer"}}}
    record = visible(manifest({"x": inner}))
    assert show(record, {"x": {name: {"type": "Owner", "id": "root"}, "n": 1}}) == {"x": {"n": 1}}


# --- values ------------------------------------------------------------------------------------------------


def _show(schema: Any, value: Any, **more: Any) -> Any:
    return show(visible(manifest({"x": schema}, **more)), {"x": value}).get("x")


@pytest.mark.parametrize(
    ("schema", "value", "shown"),
    [
        ({"type": "string"}, "é\u202e", "é\u202e"),
        ({"type": "integer"}, 2**53 - 1, 2**53 - 1),
        ({"type": "boolean"}, False, False),
        ({"type": "number"}, 1, {"__extn": {"fn": "decimal", "arg": "1.0000"}}),
        ({"type": "number"}, -0.5, {"__extn": {"fn": "decimal", "arg": "-0.5000"}}),
        ({"type": "number"}, -0.0, {"__extn": {"fn": "decimal", "arg": "0.0000"}}),
        ({"type": "number"}, 0.1, {"__extn": {"fn": "decimal", "arg": "0.1000"}}),
        ({"type": "array", "items": {"type": "integer"}}, [3, 1], [3, 1]),
        (CLOSED, {"n": 1}, {"n": 1}),
    ],
)
def test_values_are_shown_exactly(schema: Any, value: Any, shown: Any) -> None:
    assert _show(schema, value) == shown


@pytest.mark.parametrize(
    ("schema", "value", "field"),
    [
        ({"type": "integer"}, 3.0, "x"),
        ({"type": "integer"}, True, "x"),
        ({"type": "integer"}, 1 << 63, "x"),
        ({"type": "number"}, 0.00001, "x"),
        ({"type": "number"}, 1e300, "x"),
        ({"type": "number"}, float("nan"), "x"),
        ({"type": "number"}, float("inf"), "x"),
        ({"type": "number"}, True, "x"),
        ({"type": "string"}, 1, "x"),
        ({"type": "boolean"}, 1, "x"),
        (STRINGS, "sh", "x"),
        (STRINGS, ["a", 1], "x[1]"),
        (CLOSED, {"n": 1.0}, "x.n"),
        (CLOSED, [1], "x"),
    ],
)
def test_a_value_that_is_not_exactly_its_type_is_refused(schema: Any, value: Any, field: str) -> None:
    with pytest.raises(RunnerError) as caught:
        _show(schema, value)
    assert (caught.value.refused.code, caught.value.refused.field) == ("arguments", field)
    assert caught.value.refused.allowed


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("String", "a", "a"),
        ("String", {"b": 1, "a": [None]}, '{"a":[null],"b":1}'),
        ("String", 5, "5"),
        ("String", None, None),
        ("Long", 5, 5),
        ("Bool", True, True),
        ("Set<String>", ["a"], ["a"]),
        ("Set<String>", {"k": 1}, ["k"]),
        ("Set<String>", "a", ["a"]),
        ("decimal", 2.5, {"__extn": {"fn": "decimal", "arg": "2.5000"}}),
    ],
)
def test_projections(kind: str, value: Any, shown: Any) -> None:
    assert _show({}, value, project={"x": kind}) == shown


@pytest.mark.parametrize(("kind", "value"), [("Long", "5"), ("Bool", 1), ("Set<Long>", ["a"]), ("decimal", "1.0")])
def test_a_projection_that_does_not_hold_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(RunnerError):
        _show({}, value, project={"x": kind})


def test_a_projected_argument_is_always_optional() -> None:
    tool = manifest({"x": {"type": ["string", "null"]}}, ("x",), project={"x": "String"})
    assert '"x"?: String' in cedar_schema([tool])


@given(st.integers(-(2**53), 2**53).map(lambda n: n) | st.floats(allow_nan=False, allow_infinity=False))
@example(922337203685477.5)
@example(1e15)
@example(5e-324)
def test_a_decimal_is_the_number_or_nothing(number: float) -> None:
    try:
        text = decimal(number, "x")
    except RunnerError:
        exact = Decimal(repr(number))
        assert exact != exact.quantize(Decimal("0.0001")) if abs(exact) < 9 * 10**14 else True
    else:
        assert Decimal(text) == Decimal(repr(number))
        assert len(text.partition(".")[2]) == 4


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("a", "/workspace/a"),
        (".", "/workspace"),
        ("", "/workspace"),
        ("a/../.git/config", "/workspace/.git/config"),
        ("./a//b/", "/workspace/a/b"),
        ("/workspace/a", "/workspace/a"),
        ("//workspace/a", "/workspace/a"),
        ("///etc", "/etc"),
        ("../etc/passwd", "/etc/passwd"),
        ("../../../..", "/"),
        ("/proc/self/root/etc", "/proc/self/root/etc"),
    ],
)
def test_a_path_is_judged_in_its_normal_form(path: str, seen: str) -> None:
    assert normal(path) == seen
    assert _show({"type": "string"}, path, paths={"x": "read"}) == seen
    assert _show(STRINGS, [path], paths={"x": "read"}) == [seen]
    assert _show({"type": "string"}, path) == path


@given(st.text("ab./"))
def test_a_normal_form_is_normal_and_stays(path: str) -> None:
    seen = normal(path)
    assert seen.startswith("/")
    assert normal(seen) == seen
    assert not {".", ".."} & set(seen.split("/"))
    assert "//" not in seen
