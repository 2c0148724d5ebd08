"""A call's arguments against its tool's JSON Schema, in Rust, once per call.

Refusals name the field and what is expected, and hold at most a few printable characters of what was sent.
Patterns run in an engine that is linear in the input, whatever the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jsonschema_rs
import msgspec

from runner.errors import Refusal, refusal
from runner.model import Manifest

_EXACT = (1 << 53) - 1  # I-JSON (RFC 7493): integers that every JSON reader holds exactly
_DEPTH = 32
_TEXT = 200  # the most of a reason, field or list of choices that goes back


class Arguments:
    """Compiled schemas of one catalogue's tools, by manifest digest."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        manifests = tuple(manifests)
        self._validators = {manifest.digest: compile_schema(manifest.parameters) for manifest in manifests}
        self._no_nul = {manifest.digest: _no_nul(manifest) for manifest in manifests}

    def validate(self, manifest: Manifest, arguments: Mapping[str, Any]) -> Refusal | None:
        """None when `arguments` fit, else the refusal (code `arguments`) for the first thing that does not."""
        validator = self._validators.get(manifest.digest)
        if validator is None:
            return refusal("arguments", f"tool {manifest.id} has no compiled schema")
        plain = _not_ijson(arguments)
        if plain is not None:
            return plain
        try:
            validator.validate(arguments)
        except jsonschema_rs.ValidationError as error:
            return _explain(error, manifest)
        for name in self._no_nul[manifest.digest]:
            if name in arguments and _holds_nul(arguments[name]):
                return refusal("arguments", "holds a NUL character", field=name, allowed="text without U+0000")
        return None


def compile_schema(schema: dict[str, Any]) -> Any:
    """A validator whose messages hold no input and whose patterns are linear. Raises `ValueError`."""
    return jsonschema_rs.Draft202012Validator(
        schema, mask="the value", pattern_options=jsonschema_rs.RegexOptions(), offline=True
    )


def _no_nul(manifest: Manifest) -> tuple[str, ...]:
    """Arguments that become paths or words of a command line, neither of which can hold a NUL."""
    words = {part[1:-1] for part in manifest.argv if part.startswith("{")}
    return tuple(sorted(words | set(manifest.paths)))


def _holds_nul(value: Any) -> bool:
    return any("\0" in each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _not_ijson(arguments: Mapping[str, Any]) -> Refusal | None:
    """Refuse what RFC 7493 leaves out, and nesting deeper than a schema has reason for.

    Iterative: the depth of hostile input costs no stack here, and no more than `_DEPTH` of it in the validator."""
    todo: list[tuple[str, int, Any]] = [("", 0, arguments)]
    while todo:
        field, depth, value = todo.pop()
        if depth > _DEPTH:
            return refusal("arguments", f"nests deeper than {_DEPTH}", field=field)
        if type(value) is dict:
            for key, inner in value.items():
                if type(key) is not str or not _is_unicode(key):
                    return refusal("arguments", "has a key that is not valid Unicode text", field=field)
                todo.append((field or brief(key, 64), depth + 1, inner))
        elif type(value) is list:
            todo.extend((field, depth + 1, inner) for inner in value)
        else:
            wrong = _not_ijson_scalar(value, field)
            if wrong is not None:
                return wrong
    return None


def _not_ijson_scalar(value: Any, field: str) -> Refusal | None:
    """NaN, infinities, integers beyond 2^53, lone surrogates, and what no JSON reader makes."""
    if type(value) is str:
        if not value.isascii() and not _is_unicode(value):
            return refusal("arguments", "is not valid Unicode text", field=field)
    elif type(value) is int:
        if not -_EXACT <= value <= _EXACT:
            return refusal("arguments", "is an integer beyond 2^53 - 1", field=field, allowed="send it as a string")
    elif type(value) is float:
        if not math.isfinite(value):
            return refusal("arguments", "is not a finite number", field=field)
    elif type(value) is not bool and value is not None:
        return refusal("arguments", "is not JSON", field=field)
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(error: jsonschema_rs.ValidationError, manifest: Manifest) -> Refusal:
    field = _path(error.instance_path)
    allowed = ""
    match error.kind.as_dict():
        case {"unexpected": [first, *_]}:
            reason = f"unknown argument `{brief(str(first), 64)}`"
            allowed = ", ".join(sorted(manifest.parameters.get("properties", {}))) if not field else ""
        case {"property": missing}:
            reason = f"`{brief(str(missing), 64)}` is required"
            field = f"{field}.{missing}" if field else str(missing)
        case {"options": options}:
            reason, allowed = (
                "is not one of the allowed values",
                msgspec.json.encode(options).decode("utf-8", "replace"),
            )
        case _:
            reason = error.message
    return refusal("arguments", brief(reason), field=brief(field), allowed=brief(allowed))


def _path(parts: Iterable[str | int]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def brief(text: str, most: int = _TEXT) -> str:
    """At most `most` printable characters of `text`, the rest said to be there. Safe to show and to log."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in cut)[: most * 6]
