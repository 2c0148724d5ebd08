"""Values worth trying in a call: the boundaries of each argument's schema, what the rules compare with, parts left out.

Nothing here claims that a value matters: whoever uses these asks the policy engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import jsonschema_rs
import msgspec

from runner.gate.arguments import compile_schema
from runner.gate.rules import Rule, Source, words
from runner.gate.schema import Projected, Record, Scalar, SetOf, Shape, Text, visible
from runner.gate.serving import Serving
from runner.model import Manifest
from runner.review.cases import Point

ABSENT = msgspec.UNSET  # an argument that is left out
_STRING = 1 << 18  # the most characters made: as many as all arguments of a call may have by default
_ITEMS = 4096
_PIECES = 32  # parts of one value that are left out one by one
_IDENTITY = frozenset({"owner", "task", "session", "profile"})
_COUNTS = ("calls", "denied", "untrusted", "forgotten")
_ESCAPE = re.compile(r"\\(u\{([0-9a-fA-F]{1,6})\}|.)", re.DOTALL)
_PARTS = re.compile(r"(\\u\{[0-9a-fA-F]{1,6}\}|\\.|\*)", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One attribute or argument set to another value. `place` is named as in a rule, without `context`; `size` is how
    many characters of JSON differ between old and new: what is between their common beginning and end."""

    place: tuple[str, ...]
    old: Any
    new: Any
    size: int

    @property
    def field(self) -> str:
        """The place in one word."""
        return ".".join(self.place)

    def onto(self, point: Point) -> Point:
        """`point` with this change made."""
        return put(point, self.place, self.new)


def _size(old: str, new: str) -> int:
    """Halving, not stepping: a text may have all the characters that a call can."""
    shorter = min(len(old), len(new))
    begin = bisect_left(range(1, shorter + 1), True, key=lambda count: not old.startswith(new[:count]))
    rest = range(1, shorter - begin + 1)
    end = bisect_left(rest, True, key=lambda count: not old.endswith(new[len(new) - count :]))
    return len(old) + len(new) - 2 * (begin + end)


class Constants(msgspec.Struct, kw_only=True):
    """What one rule compares with, by kind; patterns as they are written, between the quotes."""

    strings: list[str] = []
    patterns: list[str] = []
    longs: list[int] = []
    decimals: list[float] = []
    entities: dict[str, list[str]] = {}
    principal: set[str] = set()  # attributes of the principal that it reads

    def texts(self, held: Any = "") -> list[str]:
        """The strings, and texts that the patterns fit: nothing, `x`, or what is `held` now in the place of one `*`."""
        found = list(self.strings)
        for pattern in self.patterns:
            stars = _PARTS.split(pattern).count("*")
            found += [_text(pattern, [star] * stars) for star in ("", "x")]
            if isinstance(held, str) and held:
                found += [_text(pattern, [""] * at + [held] + [""] * (stars - at - 1)) for at in range(stars)]
        return found


def constants(source: Source) -> Constants:
    """The constants in a rule's text. Raises nothing: what it does not understand it leaves out."""
    found = Constants(strings=[], patterns=[], longs=[], decimals=[], entities={}, principal=set())
    tokens = words(source.text)
    for at, token in enumerate(tokens):
        before, second = tokens[at - 1] if at else "", tokens[at - 2] if at > 1 else ""
        if token.startswith('"'):
            inner = token[1:-1]
            if before == "::":
                found.entities.setdefault(second, []).append(_text(inner))
            elif before == "like":
                found.patterns.append(inner)
            elif second == "decimal":
                found.decimals += _decimal(inner)
            elif at < 3 or tokens[at - 3] != "@":  # not an annotation's
                found.strings.append(_text(inner))
        elif token.isdecimal():
            number = -int(token) if before == "-" else int(token)
            found.longs += [number - 1, number, number + 1]
        elif before == "." and second == "principal":
            found.principal.add(token)
    return found


def _text(inner: str, stars: Sequence[str] = ()) -> str:
    """A string literal's text; each unescaped `*` stands for the next of `stars`, for itself when there are none."""
    rest = iter(stars)
    return "".join(next(rest, "*") if part == "*" else _unescaped(part) for part in _PARTS.split(inner))


def _unescaped(part: str) -> str:
    match = _ESCAPE.fullmatch(part)
    if match is None:
        return part
    if match[2]:
        return chr(int(match[2], 16)) if int(match[2], 16) < 0x110000 else ""
    return _SIMPLE.get(match[1], match[1])


def _decimal(text: str) -> list[float]:
    try:
        value = float(text)
    except ValueError:
        return []
    return [round(value + step, 4) for step in (-0.0001, 0, 0.0001)]


# --- the boundaries of a schema ------------------------------------------------------------------------------


def boundaries(schema: Any) -> list[Any]:
    """Values at the edges of a JSON Schema, and its defaults and examples; some may not fit the whole of it."""
    if not isinstance(schema, dict):
        return []
    found: list[Any] = []
    if "const" in schema:
        found.append(schema["const"])
    found += schema.get("enum", [])[:_ITEMS]
    if "default" in schema:
        found.append(schema["default"])
    found += schema.get("examples", [])
    kinds = schema.get("type", ())
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        found += _of_kind(kind, schema)
    return found


def _of_kind(kind: str, schema: Mapping[str, Any]) -> list[Any]:
    match kind:
        case "boolean":
            return [False, True]
        case "null":
            return [None]
        case "integer" | "number":
            edges = [schema[name] for name in ("minimum", "maximum") if name in schema]
            edges += [schema["exclusiveMinimum"] + 1] if "exclusiveMinimum" in schema else []
            edges += [schema["exclusiveMaximum"] - 1] if "exclusiveMaximum" in schema else []
            return [*edges, 0, 1] if kind == "integer" else [*edges, 0, 1, 0.5]
        case "string":
            lengths = (schema.get("minLength", 0), schema.get("maxLength", 1), 1)
            return ["x" * min(length, _STRING) for length in lengths]
        case "array":
            inner = boundaries(schema.get("items", {"type": "string"}))
            plain = min(inner, key=lambda each: len(json.dumps(each)), default="x") if inner else "x"
            plain = plain if plain != "" else "x"
            sizes = (schema.get("minItems", 0), schema.get("maxItems", 1), 1)
            return [[plain] * min(size, _ITEMS) for size in sizes] + [[each] for each in inner]
        case "object":
            named = {name: boundaries(each) for name, each in schema.get("properties", {}).items()}
            plain_ = {name: named[name][0] for name in schema.get("required", ()) if named.get(name)}
            return [plain_] + [{**plain_, name: each} for name, values in named.items() for each in values]
    return []


def fitting(schema: Any) -> list[Any]:
    """Those of its boundaries that fit the schema."""
    if not isinstance(schema, dict):
        return []
    fits = compile_schema(schema).is_valid
    return [value for value in boundaries(schema) if fits(value)]


def plain(served: Serving, manifest: Manifest) -> Point | None:
    """A call of a tool with only its required arguments, each the shortest that fits; None when none was found."""
    properties = _properties(manifest)
    arguments: dict[str, Any] = {}
    profile = next((name for name, each in served.task_profiles.items() if manifest.id in each.tools), "")
    for name in manifest.parameters.get("required", ()):
        values = sorted(fitting(properties.get(name)), key=lambda each: (each in ("", []), len(json.dumps(each))))
        if not values:
            return None
        arguments[name] = values[0]
    found = Point.of(tool=manifest.id, arguments=arguments, profile=profile)
    return found if found.valid(served) else None


def _properties(manifest: Manifest) -> dict[str, Any]:
    whole: dict[str, Any] = jsonschema_rs.dereference(manifest.parameters, offline=True)
    return dict(whole.get("properties", {}))


# --- changes of one call -------------------------------------------------------------------------------------


def changes(point: Point, served: Serving) -> Iterator[Change]:
    """Changes of one attribute or argument of `point`, none twice: first to what rules compare with."""
    manifest = served.tools.get(point.question.tool)
    if manifest is None:
        return
    by_rules = (pair for rule in served.policies.rules(manifest.id) for pair in rule_values(point, served, rule))
    yield from _unique(point, chain(by_rules, _values(point, manifest)))


def rule_changes(point: Point, served: Serving, rule: Rule) -> list[Change]:
    """Those that set what one rule reads to what it compares with."""
    return list(_unique(point, rule_values(point, served, rule)))


_Found = Iterator[tuple[tuple[str, ...], Any]]  # places and values to put there


def _unique(point: Point, found: Iterable[tuple[tuple[str, ...], Any]]) -> Iterator[Change]:
    done: set[bytes] = set()  # digests: there may be thousands, each as long as a call
    held: dict[tuple[str, ...], str] = {}
    for place, new in found:
        old = get(point, place)
        if place not in held:
            held[place] = _json(old)
        text = _json(new)
        key = hashlib.sha256(json.dumps([place, text]).encode()).digest()
        if key not in done and text != held[place]:
            done.add(key)
            yield Change(place=place, old=old, new=new, size=_size(held[place], text))


def _values(point: Point, manifest: Manifest) -> _Found:
    """Places of a call with values that need no rule: boundaries of schemas, parts left out, nothing done before."""
    required = manifest.parameters.get("required", ())
    for name, schema in _properties(manifest).items():
        place = ("arguments", name)
        held = get(point, place)
        yield from ((place, value) for value in (*_smaller(held), *fitting(schema)))
        if held is not ABSENT and name not in required:
            yield place, ABSENT
    yield from ((("arguments", name), ABSENT) for name in point.question.arguments if name not in _properties(manifest))
    yield from ((("session", name), 0) for name in _COUNTS)
    yield ("session", "tools"), ()
    yield ("session", "labels"), ()
    yield ("labels",), ()
    yield ("depth",), 0


def rule_values(point: Point, served: Serving, rule: Rule) -> _Found:
    """Places that a rule reads, with what it compares with."""
    manifest = served.tools[point.question.tool]
    compared = constants(rule.source)
    for path in sorted(served.policies.reads(manifest.id, rule.id)):
        match path:
            case ("arguments", name, *inner):
                yield from _compared(point, visible(manifest), name, inner, ("arguments",), compared)
            case ("session", "tools" | "labels") | ("labels",):
                for value in compared.strings:
                    yield path, (value,)
                    yield path, tuple(sorted({*get(point, path), value}))
            case ("session", "original_request"):
                yield from ((path, value) for value in compared.texts(point.session.original_request))
            case ("session", name) | (("depth" | "peer_uid") as name,) if name in (*_COUNTS, "depth", "peer_uid"):
                yield from ((path, value) for value in compared.longs if value >= 0)
    for kind, name in (("Agent", "agent"), ("Owner", "owner")):
        yield from ((("principal", name), value) for value in compared.entities.get(kind, ()))
    for name in compared.principal & _IDENTITY:
        yield from ((("principal", name), value) for value in compared.texts(get(point, ("principal", name))))


def _compared(
    point: Point, record: Record, name: str, inner: Sequence[str], above: tuple[str, ...], compared: Constants
) -> _Found:
    attribute = record.fields.get(name)
    if attribute is None:
        return
    place = (*above, attribute.source)
    if isinstance(attribute.shape, Record):
        for each in inner[:1] or attribute.shape.fields:
            yield from _compared(point, attribute.shape, each, inner[1:], place, compared)
        return
    yield from ((place, value) for value in _as_shape(attribute.shape, get(point, place), compared))


def _json(value: Any) -> str:
    return "" if value is ABSENT else json.dumps(value)


def _as_shape(shape: Shape, held: Any, compared: Constants) -> Iterator[Any]:
    """The constants as values of an argument that policy sees as `shape`."""
    scalars: dict[str, list[Any]] = {
        "String": compared.texts(held),
        "Long": compared.longs,
        "decimal": [*compared.decimals],
        "Bool": [False, True],
    }
    match shape:
        case Scalar(name=name):
            yield from scalars[name]
        case Text():
            words = " ".join(held) if isinstance(held, list) and all(isinstance(each, str) for each in held) else ""
            yield from (text.split(" ") for text in compared.texts(words))
        case SetOf(item=item):
            for value in scalars[item.name]:
                yield [value]
                if isinstance(held, list):
                    yield [*held, value]
        case Projected(name=name):
            inner = name.removeprefix("Set<").removesuffix(">")
            yield from ([each] if inner != name else each for each in scalars[inner])


def _smaller(value: Any) -> Iterator[Any]:
    """A value with one of its parts left out: an element, a word, a folder of a path."""
    if isinstance(value, str):
        for separator in ("/", " ", "\n"):
            parts = value.split(separator)
            if 1 < len(parts) <= _PIECES:
                yield from (separator.join(parts[:at] + parts[at + 1 :]) for at in range(len(parts)))
    elif isinstance(value, list) and len(value) <= _PIECES:
        yield from (value[:at] + value[at + 1 :] for at in range(len(value)))
        for at, each in enumerate(value):
            yield from ([*value[:at], less, *value[at + 1 :]] for less in _smaller(each))


def _at(value: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        value = value.get(name, ABSENT) if isinstance(value, dict) else ABSENT
    return value


def _with(value: Any, place: tuple[str, ...], new: Any) -> Any:
    if not place:
        return new
    held = dict(value) if isinstance(value, dict) else {}
    inner = _with(held.get(place[0]), place[1:], new)
    return {name: each for name, each in {**held, place[0]: inner}.items() if each is not ABSENT}


def put(point: Point, place: tuple[str, ...], value: Any) -> Point:
    """`point` with one attribute or argument set to `value`; ABSENT leaves an argument out."""
    asked, session = point.question, point.session
    match place:
        case ("arguments", *inner):
            asked = msgspec.structs.replace(asked, arguments=_with(asked.arguments, tuple(inner), value))
        case ("session", name) | ("depth" as name,):
            session = msgspec.structs.replace(session, **{name: value})
        case ("principal", "profile" as name) | (("peer_uid" | "labels") as name,):
            asked = msgspec.structs.replace(asked, **{name: value})
        case ("principal", name):
            asked = msgspec.structs.replace(asked, principal=msgspec.structs.replace(asked.principal, **{name: value}))
    return Point(question=asked, session=session)


def get(point: Point, place: tuple[str, ...]) -> Any:
    """What `put` would replace."""
    match place:
        case ("arguments", *inner):
            return _at(point.question.arguments, tuple(inner))
        case ("session", name) | ("depth" as name,):
            return getattr(point.session, name)
        case ("principal", "profile" as name) | (("peer_uid" | "labels") as name,):
            return getattr(point.question, name)
    return getattr(point.question.principal, place[1])
