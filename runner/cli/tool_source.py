"""The files of a new python tool: a template, or a Python function's type hints and source."""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec

from runner.errors import RunnerError, refuse

_MANIFEST = """\
id = {id}
description = {description}
# low: only reads · medium: changes the workspace · high: runs what the caller wrote
consequence = "medium"
# The walls around one call: `runner profile list`.
profile = "compute"
# python: main.py's run(call) is called; argv: a program is run with the arguments in its command line.
kind = "python"
"""

_CODE = '''\
"""{id}: what it does."""

from typing import Any


def run(call: Any) -> dict[str, Any]:
    """`call.arguments` fit the schema in tool.toml; the value returned is the call's result."""
    text = call.arguments["text"]
    print(f"counting {{len(text)}} characters")  # standard output is streamed to the caller
    return {{"words": len(text.split())}}
'''


def template(tool: str) -> dict[str, bytes]:
    """A tool that works and is meant to be edited."""
    parameters = {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {"text": {"type": "string", "description": "Text to count words in.", "maxLength": 65536}},
    }
    result = {"type": "object", "required": ["words"], "properties": {"words": {"type": "integer"}}}
    head = _MANIFEST.format(id=_toml(tool), description=_toml(f"{tool}: counts words; say here what it does."))
    return {"tool.toml": _manifest(head, parameters, result), "main.py": _CODE.format(id=tool).encode()}


def derive(tool: str, target: str) -> dict[str, bytes]:
    """A tool from `module:function`. Raises `RunnerError` (manifest) saying what about the function does not fit."""
    function = _load(target)
    parameters, result = _schemas(function, target)
    description = (inspect.getdoc(function) or f"{tool}: taken from {target}.").strip()[:2000]
    head = _MANIFEST.format(id=_toml(tool), description=_toml(description))
    return {"tool.toml": _manifest(head, parameters, result), "main.py": _wrap(function, target)}


def _wrong(target: str, reason: str, next_step: str = "") -> RunnerError:
    return refuse("manifest", f"--from {target[:120]}: {reason}", next_step=next_step or "correct the function")


def _load(target: str) -> Callable[..., Any]:
    module_name, _, name = target.partition(":")
    if not module_name or not name.isidentifier():
        raise _wrong(target, "is not module:function", "write it as package.module:function")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise _wrong(target, f"cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not inspect.isfunction(function):
        raise _wrong(target, "is not a function", "name a function defined at the top of its module")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise _wrong(target, "is async or a generator; a tool's function returns its result")
    return function


def _schemas(function: Callable[..., Any], target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON Schemas of parameters and result from the type hints, plain JSON types only."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise _wrong(target, f"its type hints cannot be read: {error}") from error
    fields: list[Any] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise _wrong(target, f"parameter `{name}` cannot be given by name")
        if name not in hints:
            raise _wrong(target, f"parameter `{name}` has no type hint")
        given = () if parameter.default is parameter.empty else (_default(parameter.default),)
        fields.append((name, hints[name], *given))
    returned = hints.get("return", type(None))
    try:
        made = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        (parameters,), found = msgspec.json.schema_components([made], ref_template="#/$defs/{name}")
        parameters = found.pop("Arguments", parameters)
        result = {} if returned is type(None) else msgspec.json.schema(returned)
    except (TypeError, ValueError) as error:
        raise _wrong(target, f"a type hint has no JSON Schema: {error}") from error
    if found or "$ref" in json.dumps(result):
        names = ", ".join(found) or "the result"
        raise _wrong(
            target, f"uses a class as a type ({names}); the function is given plain JSON values", "use dict, list, str"
        )
    parameters = {"type": "object", "additionalProperties": False, **_without_null(parameters)}
    parameters.pop("title", None)
    return parameters, _without_null(result)


def _default(value: Any) -> Any:
    return msgspec.field(default_factory=lambda: value) if isinstance(value, list | dict | set) else value


def _without_null(schema: Any) -> Any:
    """The schema without `default = null`, which TOML cannot say and which says nothing."""
    if isinstance(schema, dict):
        return {key: _without_null(value) for key, value in schema.items() if not (key == "default" and value is None)}
    return [_without_null(value) for value in schema] if isinstance(schema, list) else schema


def _wrap(function: Callable[..., Any], target: str) -> bytes:
    """main.py: the function's own source, the imports it uses, and run(call). Refuses what would not run alone."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise _wrong(target, "its source cannot be read") from error
    if not source.startswith("def "):
        raise _wrong(target, "has a decorator, or is not defined with `def`", "move the decorated part out of it")
    used = inspect.getclosurevars(function)
    if used.nonlocals:
        raise _wrong(target, f"uses variables of an enclosing function: {', '.join(sorted(used.nonlocals))}")
    imports = []
    for name, value in sorted(used.globals.items()):
        origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        if origin.partition(".")[0] not in sys.stdlib_module_names:
            raise _wrong(
                target,
                f"uses `{name}` of its module, which does not travel with it",
                "move it into the function, or write main.py by hand: it may have files beside it",
            )
        imports.append(_import(name, value, origin))
    lost = sorted(name for name in used.unbound if not hasattr(builtins, name) and name in function.__code__.co_names)
    missing = [name for name in lost if not _is_attribute(function, name)]
    if missing:
        raise _wrong(target, f"uses `{missing[0]}`, which its module does not define")
    head = f'"""Taken from {target}."""\n\nfrom __future__ import annotations\n\n'
    run = f"def run(call):\n    return {function.__name__}(**call.arguments)\n"
    return (head + "".join(imports) + "\n\n" + source.rstrip() + "\n\n\n" + run).encode()


def _import(name: str, value: Any, origin: str) -> str:
    if isinstance(value, ModuleType):
        return f"import {origin}\n" if origin == name else f"import {origin} as {name}\n"
    own = getattr(value, "__name__", name)
    return f"from {origin} import {own}\n" if own == name else f"from {origin} import {own} as {name}\n"


def _is_attribute(function: Callable[..., Any], name: str) -> bool:
    """Whether `name` is only ever reached through another object: `path.name`, not `name`."""
    import dis

    loads = [each.opname for each in dis.get_instructions(function) if each.argval == name]
    return all("GLOBAL" not in opname and "NAME" not in opname for opname in loads)


# --- TOML out ---------------------------------------------------------------------------------------------------


def _manifest(head: str, parameters: dict[str, Any], result: dict[str, Any]) -> bytes:
    text = head + "\n" + _table("parameters", parameters, ("properties",))
    for name, schema in parameters.get("properties", {}).items():
        text += "\n" + _table(f"parameters.properties.{_key(name)}", schema)
    if result:
        text += "\n" + _table("result", result)
    return text.encode()


def _table(name: str, values: dict[str, Any], skip: tuple[str, ...] = ()) -> str:
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in values.items() if key not in skip]
    return "\n".join([f"[{name}]", *lines]) + "\n"


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else _toml(key)


def _toml(value: Any) -> str:
    """A JSON value as TOML. JSON's escapes are TOML's; DEL is the one character TOML also wants escaped."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
