"""What policy sees: the Cedar schema of all tools, and one call's arguments as Cedar's JSON.

The mapping (policies/README.md tells it to policy authors):

    string                  String; a workspace path (`[paths]`) in its normal form, below /workspace
    integer                 Long
    number                  decimal, four places; a value that needs more is refused, never rounded
    boolean                 Bool
    array of these          Set; order and repetition are lost
    array of strings `x`    also `x_text`: String, the elements joined by single spaces, in order
    object                  Record, when its properties are declared and closed (additionalProperties = false)
    null, several types,    not visible, unless the manifest's `[project]` gives the argument a Cedar type
    open maps, nested arrays

An argument that need not be present is an optional attribute: a policy must ask `has` first, or it does not load.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from decimal import Decimal as Exact
from typing import Any, Literal, NamedTuple, cast

import jsonschema_rs
import msgspec

from runner.errors import refuse
from runner.model import Manifest

GROUPS = ("low", "medium", "high", "any")
EGRESS = "egress"  # the action of a request to a destination; in no group: those are of tools
WORKSPACE = "/workspace"

_DEPTH = 4  # records inside records that policy sees; deeper ones are not visible
_INT64 = 1 << 63
_SCALARS: dict[str, ScalarName] = {"string": "String", "integer": "Long", "number": "decimal", "boolean": "Bool"}

ScalarName = Literal["String", "Long", "Bool", "decimal"]


class Scalar(msgspec.Struct, frozen=True):
    """One value. `path` when it is a workspace path, which policy sees in its normal form."""

    name: ScalarName
    path: bool = False


class SetOf(msgspec.Struct, frozen=True):
    """An array as a set."""

    item: Scalar


class Text(msgspec.Struct, frozen=True):
    """An array of strings as one string."""


class Projected(msgspec.Struct, frozen=True):
    """A value of any shape, shown as the type that `[project]` names."""

    name: str


class Record(msgspec.Struct, frozen=True):
    """A closed object: attribute -> how it is shown."""

    fields: dict[str, Attribute]


class Attribute(msgspec.Struct, frozen=True):
    """One attribute of a record, read from the property `source`."""

    source: str
    shape: Scalar | SetOf | Text | Projected | Record
    required: bool


class Place(NamedTuple):
    """A destination as policy names it: `Destination::"host:port"`, and its attributes."""

    id: str
    host: str
    port: int
    protocol: str


Shape = Scalar | SetOf | Text | Projected | Record


# --- manifests to schema -----------------------------------------------------------------------------------


def visible(manifest: Manifest) -> Record:
    """The arguments of a tool as policy sees them. Raises `RunnerError` (manifest) when two attributes share a name."""
    schema = jsonschema_rs.dereference(manifest.parameters, offline=True)
    try:
        return _record(schema, 0, manifest)
    except KeyError as error:
        raise refuse(
            "manifest",
            f"parameter `{error.args[0]}` has the name that policy gives to the text of an array",
            field=f"tools/{manifest.id}/tool.toml",
            next_step="rename one of the two",
        ) from None


def hidden(manifest: Manifest) -> tuple[str, ...]:
    """Declared arguments that policy cannot see."""
    shown = {attribute.source for attribute in visible(manifest).fields.values()}
    return tuple(sorted(set(manifest.parameters.get("properties", {})) - shown))


def _record(schema: Mapping[str, Any], depth: int, manifest: Manifest | None = None) -> Record:
    required = schema.get("required", ())
    fields: dict[str, Attribute] = {}
    for name, inner in schema.get("properties", {}).items():
        shape = _shape(inner, depth, name, manifest)
        if shape is None or name.startswith("__"):  # Cedar's JSON reads __entity and __extn as more than data
            continue
        wanted = {name: Attribute(name, shape, name in required and not isinstance(shape, Projected))}
        if shape == SetOf(Scalar("String")):
            wanted[f"{name}_text"] = Attribute(name, Text(), name in required)
        for key, attribute in wanted.items():
            if key in fields or (key != name and key in schema["properties"]):
                raise KeyError(key)
            fields[key] = attribute
    return Record(fields)


def _shape(schema: Any, depth: int, name: str, manifest: Manifest | None) -> Shape | None:
    if manifest and name in manifest.project:
        return Projected(manifest.project[name])
    kind = _kind(schema) if isinstance(schema, dict) else None
    path = bool(manifest and name in manifest.paths)
    if not isinstance(kind, str):
        return None
    if kind in _SCALARS:
        return Scalar(_SCALARS[kind], path=path and kind == "string")
    if kind == "array" and not schema.get("prefixItems"):
        item = _shape(schema.get("items"), _DEPTH, "", None)
        if not isinstance(item, Scalar):
            return None
        return SetOf(Scalar(item.name, path=path and item.name == "String"))
    if kind == "object" and depth < _DEPTH and schema.get("additionalProperties") is False:
        return None if schema.get("patternProperties") else _record(schema, depth + 1)
    return None


def _kind(schema: Mapping[str, Any]) -> Any:
    """The one type a schema allows, also when only its `enum` or `const` says so."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum", ())
    types = {type(choice) for choice in choices}
    implied = {str: "string", bool: "boolean", int: "integer"}.get(types.pop()) if len(types) == 1 else None
    return schema.get("type", implied)


def cedar_schema(manifests: Iterable[Manifest]) -> str:
    """The whole schema as Cedar text: an action per tool, in the groups of its consequence and `any`, and `egress`."""
    lines = [
        "entity Owner;",
        "entity Agent in [Owner] { owner: String, task: String, session: String, profile: String };",
        "entity Tool { consequence: String, digest: String };",
        "entity Destination { host: String, port: Long, protocol: String };",
        "type Session = {",
        "  calls: Long, denied: Long, tools: Set<String>, untrusted: Long, original_request: String,",
        "  labels: Set<String>, forgotten: Long",
        "};",
        *(f'action "{group}";' for group in GROUPS),
    ]
    for manifest in sorted(manifests, key=lambda each: each.id):
        lines += [
            f'action "{manifest.id}" in [Action::"{manifest.consequence}", Action::"any"] appliesTo {{',
            "  principal: [Agent], resource: [Tool], context: {",
            f"    arguments: {cedar_type(visible(manifest))},",
            "    labels: Set<String>, session: Session, peer_uid: Long, depth: Long",
            "  }",
            "};",
        ]
    lines += [
        f'action "{EGRESS}" appliesTo {{',
        "  principal: [Agent], resource: [Destination], context: {",
        "    tool: String, host: String, port: Long, protocol: String, visibility: String, upgrade: String,",
        "    method?: String, path?: String,",
        "    labels: Set<String>, secrets: Set<String>, whole: Bool,",
        "    session: Session, peer_uid: Long, depth: Long",
        "  }",
        "};",
    ]
    return "\n".join(lines) + "\n"


def cedar_type(shape: Shape) -> str:
    """The Cedar type of a shape, as schema text."""
    match shape:
        case Scalar(name=name) | Projected(name=name):
            return name
        case SetOf(item=item):
            return f"Set<{item.name}>"
        case Text():
            return "String"
        case Record(fields=fields):
            inner = (f'"{key}"{"" if each.required else "?"}: {cedar_type(each.shape)}' for key, each in fields.items())
            return "{ " + ", ".join(inner) + " }"


# --- one call to context ------------------------------------------------------------------------------------


def show(record: Record, value: Mapping[str, Any], field: str = "") -> dict[str, Any]:
    """`value` as Cedar's JSON. Raises `RunnerError` (arguments) for one that cannot be shown as its type exactly."""
    shown: dict[str, Any] = {}
    for key, attribute in record.fields.items():
        if attribute.source not in value:
            continue
        given = value[attribute.source]
        # A projected null is an absent attribute; everywhere else the schema has refused it already.
        if given is not None or not isinstance(attribute.shape, Projected):
            shown[key] = _show(attribute.shape, given, f"{field}.{attribute.source}" if field else attribute.source)
    return shown


def _show(shape: Shape, value: Any, field: str) -> Any:
    match shape:
        case Scalar():
            return _scalar(shape, value, field)
        case SetOf(item=item) if isinstance(value, list):
            return [_scalar(item, each, f"{field}[{number}]") for number, each in enumerate(value)]
        case Text() if isinstance(value, list):
            return " ".join(_scalar(Scalar("String"), each, field) for each in value)
        case Record() if isinstance(value, dict):
            return show(shape, value, field)
        case Projected(name=name):
            return _project(name, value, field)
    raise refuse("arguments", "is not of the type that policy reads", field=field, allowed=cedar_type(shape))


def _scalar(shape: Scalar, value: Any, field: str) -> Any:
    match shape.name:
        case "String" if type(value) is str:
            return normal(value) if shape.path else value
        case "Bool" if type(value) is bool:
            return value
        case "Long" if type(value) is int and -_INT64 <= value < _INT64:
            return value
        case "decimal" if type(value) in (int, float):
            return {"__extn": {"fn": "decimal", "arg": decimal(value, field)}}
        case "Long" if type(value) is float:
            raise refuse(
                "arguments", "is an integer written with a fraction", field=field, allowed="an integer: 3, not 3.0"
            )
    raise refuse("arguments", "is not of the type that policy reads", field=field, allowed=shape.name)


def decimal(value: int | float, field: str) -> str:
    """A number as Cedar's decimal. Raises `RunnerError` (arguments) when four places cannot say it exactly."""
    scaled = Exact(repr(value)).scaleb(4)
    if not scaled.is_finite() or scaled != scaled.to_integral_value() or not -_INT64 <= scaled < _INT64:
        raise refuse(
            "arguments",
            "policy reads numbers with four decimal places, and rounds none",
            field=field,
            allowed="a number with at most four decimal places, below 922337203685477",
        )
    whole, places = divmod(abs(int(scaled)), 10_000)
    return f"{'-' if scaled < 0 else ''}{whole}.{places:04d}"


def normal(path: str) -> str:
    """A workspace path in the form that policy reads: absolute, below /workspace when relative, without `.`, `..` and
    doubled slashes. Lexical: the guest opens paths without following links, so this is the file that is opened."""
    joined = posixpath.normpath(posixpath.join(WORKSPACE, path))
    return "/" + joined.lstrip("/")


def _project(name: str, value: Any, field: str) -> Any:
    if name.startswith("Set<"):
        items = list(value) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        item = Scalar(cast("ScalarName", name[4:-1]))
        return [_scalar(item, each, f"{field}[{number}]") for number, each in enumerate(items)]
    if name == "String" and not isinstance(value, str):
        # Compact JSON with sorted keys: one value has one text.
        return msgspec.json.encode(value, order="sorted").decode()
    return _scalar(Scalar(cast("ScalarName", name)), value, field)
