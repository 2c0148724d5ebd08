"""A constraint in words, for refusals that teach, and in JSON Schema, for listings of what a token may call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runner.token.jcs import canonical
from runner.token.paths import normal_path

_WIDTH = 400  # characters of a description: enough to act on, too few to flood a log
_VALUES = 12  # values named one by one

Schema = dict[str, Any]


def shown(value: Any, width: int = 80) -> str:
    """A value of a stranger as short printable text: JSON with everything beyond printable ASCII escaped."""
    try:
        text = canonical(value).decode()
    except ValueError:
        return "?"
    if len(text) > width:
        text = text[: width - 1] + "…"
    return "".join(c if " " <= c <= "~" or c == "…" else f"\\u{ord(c):04x}" for c in text)


def describe(constraint: Mapping[str, Any]) -> str:
    """What the constraint would accept, in at most 400 characters. Never raises."""
    try:
        text = _words(constraint, 4)
    except (KeyError, TypeError, AttributeError, RecursionError):
        text = "nothing: the constraint is not well-formed"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _words(constraint: Mapping[str, Any], depth: int) -> str:
    kind = constraint["constraint_type"]
    if kind == "exact":
        return f"exactly {shown(constraint['value'])}"
    if kind == "range":
        return _range_words(constraint)
    if kind == "path_containment":
        return f"a path within {normal_path(constraint['root'])}"
    if kind in ("all", "any"):
        if depth == 0:
            return "…"
        joint = " and " if kind == "all" else " or "
        return "(" + joint.join(_words(clause, depth - 1) for clause in constraint["constraints"][:_VALUES]) + ")"
    lists = {
        "one_of": ("one of ", "values"),
        "not_one_of": ("anything but ", "excluded"),
        "contains": ("an array with ", "required"),
        "subset": ("an array of ", "allowed"),
    }
    if kind in lists:
        prefix, member = lists[kind]
        values = constraint[member]
        return prefix + ", ".join(shown(v) for v in values[:_VALUES]) + (", …" if len(values) > _VALUES else "")
    return "any value" if kind == "wildcard" else "nothing: the constraint type is not known here"


def _range_words(constraint: Mapping[str, Any]) -> str:
    words = []
    if "min" in constraint:
        word = "at least" if constraint.get("min_inclusive", True) else "more than"
        words.append(f"{word} {shown(constraint['min'])}")
    if "max" in constraint:
        word = "at most" if constraint.get("max_inclusive", True) else "less than"
        words.append(f"{word} {shown(constraint['max'])}")
    return "a number " + " and ".join(words) if words else "a number"


# What only values of one type satisfy; JSON Schema's keywords alone let other types pass.
_TYPES = {"range": "number", "subset": "array", "contains": "array", "path_containment": "string"}


def narrow_schema(parameters: Mapping[str, Any], constraints: Mapping[str, Any]) -> Schema:
    """The JSON Schema of a tool's arguments, narrowed to what the constraint map lets through.

    A closed map removes the properties it does not name; what it requires is required. The original stays unchanged."""
    narrowed = dict(parameters)
    properties: dict[str, Any] = parameters.get("properties", {})
    named = {name: constraint for name, constraint in constraints.items() if name != "*"}
    is_open = not constraints or "*" in constraints
    kept = dict(properties) if is_open else {name: properties[name] for name in properties if name in named}
    for name, constraint in named.items():
        kept[name] = _narrowed(kept.get(name, {}), constraint)
    required = set(parameters.get("required", ()))
    required.update(name for name, constraint in named.items() if not constraint.get("optional", False))
    narrowed["properties"] = kept
    if required:
        narrowed["required"] = sorted(required)
    if not is_open:
        narrowed["additionalProperties"] = False
    return narrowed


def _narrowed(schema: Any, constraint: Mapping[str, Any]) -> Schema:
    """One property's schema and the constraint: what both accept, as far as JSON Schema can say it."""
    result: Schema = dict(schema) if isinstance(schema, dict) else {}
    kind = constraint["constraint_type"]
    if kind in _TYPES:
        result.setdefault("type", _TYPES[kind])
    if kind in _NARROWERS:
        return _NARROWERS[kind](result, constraint)
    return result  # wildcard


def _exact(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    return {**schema, "const": constraint["value"]}


def _one_of(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    return {**schema, "enum": _common(schema.get("enum"), constraint["values"])}


def _not_one_of(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    return _also(schema, {"not": {"enum": constraint["excluded"]}})


def _subset(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    items = schema.get("items")
    return {**schema, "items": _one_of(items if isinstance(items, dict) else {}, {"values": constraint["allowed"]})}


def _contains(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    return _also(schema, *({"contains": {"const": value}} for value in constraint["required"]))


def _all(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    for clause in constraint["constraints"]:
        schema = _narrowed(schema, clause)
    return schema


def _any(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    return _also(schema, {"anyOf": [_narrowed({}, clause) for clause in constraint["constraints"]]})


def _path(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    before = schema.get("description", "")
    words = f"(must lie within {normal_path(constraint['root'])})"
    return {**schema, "description": f"{before} {words}" if before else words}


def _range(schema: Schema, constraint: Mapping[str, Any]) -> Schema:
    result = dict(schema)
    for bound, inclusive, name, exclusive, tighter in (
        ("min", "min_inclusive", "minimum", "exclusiveMinimum", max),
        ("max", "max_inclusive", "maximum", "exclusiveMaximum", min),
    ):
        if bound in constraint:
            keyword = name if constraint.get(inclusive, True) else exclusive
            result[keyword] = tighter(result.get(keyword, constraint[bound]), constraint[bound])
    return result


_NARROWERS: dict[str, Callable[[Schema, Mapping[str, Any]], Schema]] = {
    "exact": _exact,
    "one_of": _one_of,
    "not_one_of": _not_one_of,
    "range": _range,
    "subset": _subset,
    "contains": _contains,
    "all": _all,
    "any": _any,
    "path_containment": _path,
}


def _common(old: Any, new: list[Any]) -> list[Any]:
    if not isinstance(old, list):
        return list(new)
    texts = {canonical(value) for value in new}
    return [value for value in old if canonical(value) in texts]


def _also(schema: Schema, *clauses: Schema) -> Schema:
    return {**schema, "allOf": [*schema.get("allOf", []), *clauses]} if clauses else schema
