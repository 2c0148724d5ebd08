"""tools/<id>/tool.toml and the code beside it, checked and turned into a `Manifest`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jsonschema_rs
import msgspec

from runner.catalog.egress import SecretFile, compile_rules, compile_secrets
from runner.catalog.files import Contents
from runner.catalog.labels import check_given
from runner.catalog.place import Place
from runner.config import TOOL_ID, RuleFile, decode_toml, parse_toml
from runner.errors import refuse
from runner.model import Consequence, Manifest, PathAccess, ToolProfile

MAX_CODE = 2 << 20  # the code travels to the guest as base64 in one JSON frame of at most 4 MiB
RESERVED_IDS = frozenset({"low", "medium", "high", "any"})  # action groups of the policy schema
EGRESS = "egress"  # no tool: the capability and the action by which token and policy judge what a call sends out
PROJECTIONS = ("String", "Long", "Bool", "decimal", "Set<String>", "Set<Long>", "Set<Bool>")
DRAFT = "https://json-schema.org/draft/2020-12/schema"

_REFERENCE = re.compile(r"^\{([A-Za-z_][A-Za-z0-9_]*)\}\Z")
_ARGUMENT = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,63}\Z")


class _ToolFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """tool.toml, as written."""

    id: str
    description: str
    consequence: Consequence
    profile: str
    kind: Literal["argv", "python"]
    parameters: dict[str, Any]
    argv: tuple[str, ...] = ()
    stdin: bool = False
    stdout: Literal["text", "bytes"] = "text"
    result: dict[str, Any] = {}
    paths: dict[str, PathAccess] = {}
    project: dict[str, str] = {}
    egress: tuple[RuleFile, ...] = ()
    secrets: tuple[SecretFile, ...] = ()
    labels: tuple[str, ...] = ()


def compile_tools(
    files: Mapping[str, bytes], profiles: Mapping[str, ToolProfile], contents: Contents
) -> dict[str, Manifest]:
    """Every folder of `tools/`. Raises `RunnerError` (manifest, not_supported)."""
    folders: dict[str, dict[str, bytes]] = {}
    for path, data in files.items():
        folder, _, rest = path.partition("/")
        if not rest:
            name = f"tools/{path}"
            raise refuse("manifest", "lies outside a tool's folder", field=name, next_step="move it into tools/<id>/")
        folders.setdefault(folder, {})[rest] = data
    return {folder: compile_tool(folder, content, profiles, contents) for folder, content in folders.items()}


def compile_tool(
    folder: str,
    files: Mapping[str, bytes],
    profiles: Mapping[str, ToolProfile] | None = None,
    contents: Contents | None = None,
) -> Manifest:
    """One tool from the files of its folder; without `profiles` the profile's name is not looked up.

    Raises `RunnerError` (manifest, not_supported)."""
    name = f"tools/{folder}/tool.toml"
    if "tool.toml" not in files:
        raise refuse("manifest", "is missing", field=name, next_step=f"write it, or run `runner tool new {folder}`")
    text = files["tool.toml"]
    data = parse_toml(text, name, "manifest")
    tool = decode_toml(text, _ToolFile, name, "manifest", data)
    place = Place(name, text, "manifest")
    _Check(place, tool).all(folder, files, profiles)
    egress = compile_rules(tool.egress, place, anywhere=True)
    secrets = compile_secrets(tool.secrets, egress, place)
    contents = contents or Contents()
    code = {path: content for path, content in files.items() if path != "tool.toml"}
    contents.plain(text)
    return Manifest(
        id=tool.id,
        description=tool.description,
        consequence=tool.consequence,
        profile=tool.profile,
        kind=tool.kind,
        digest=contents.archive(files),
        code_digest=contents.archive(code) if code else "",
        parameters=tool.parameters,
        result=tool.result,
        argv=tool.argv,
        stdin=tool.stdin,
        stdout=tool.stdout,
        paths=tool.paths,
        project=tool.project,
        files=code,
        egress=egress,
        secrets=secrets,
        labels=check_given(tool.labels, place),
    )


class _Check:
    """The rules of one manifest; each method is one group of them and raises for the first that is broken."""

    def __init__(self, place: Place, tool: _ToolFile) -> None:
        self._wrong = place.wrong
        self._tool = tool

    def all(self, folder: str, files: Mapping[str, bytes], profiles: Mapping[str, ToolProfile] | None) -> None:
        self._identity(folder, profiles)
        self._kind(files)
        properties = self._parameters()
        if self._tool.result:
            self._schema(self._tool.result, "result")
        self._argv(properties)
        self._sections(properties)

    def _identity(self, folder: str, profiles: Mapping[str, ToolProfile] | None) -> None:
        tool, wrong = self._tool, self._wrong
        if not TOOL_ID.match(tool.id):
            raise wrong(f"id: `{tool.id[:80]}` does not match {TOOL_ID.pattern}", "id")
        if tool.id in RESERVED_IDS:
            raise wrong(f"id: `{tool.id}` is an action group of the policy schema", "id", next_step="rename the tool")
        if tool.id == EGRESS:
            reason = "id: `egress` is the name by which tokens and policies judge what calls send out"
            raise wrong(reason, "id", next_step="rename the tool")
        if tool.id != folder:
            raise wrong(f"id: `{tool.id}` is not the folder's name `{folder}`", "id", next_step="make them equal")
        if not 1 <= len(tool.description) <= 2000:
            raise wrong("description: must have 1 to 2000 characters; models read it", "description")
        if profiles is not None and tool.profile not in profiles:
            known = f"use one of: {', '.join(sorted(profiles)) or 'none exist'}"
            raise wrong(f"profile: no tool profile `{tool.profile[:64]}`", "profile", next_step=known)
        asks = "egress" if tool.egress else "secrets" if tool.secrets else ""
        if profiles is not None and asks and profiles[tool.profile].isolation != "call":
            reason = f"profile: `{tool.profile}` shares a jail between calls, and a call with {asks} needs its own"
            raise wrong(reason, "profile", next_step='use a tool profile with isolation = "call"')

    def _kind(self, files: Mapping[str, bytes]) -> None:
        tool, wrong = self._tool, self._wrong
        if tool.kind == "argv" and not tool.argv:
            raise wrong("argv: an argv tool needs it", "kind", next_step='write argv = ["program", "{argument}"]')
        if tool.kind == "argv" and tool.result:
            raise wrong("result: only a python tool has a structured result", "result")
        if tool.kind == "python" and tool.argv:
            raise wrong("argv: a python tool has none; its main.py is called", "argv")
        if tool.kind == "python" and "main.py" not in files:
            raise wrong("kind: a python tool needs main.py beside tool.toml", "kind", next_step="write main.py")
        if sum(len(data) for data in files.values()) > MAX_CODE:
            raise wrong(f"the tool's files are more than {MAX_CODE} bytes", next_step="put large data into the image")

    def _parameters(self) -> dict[str, dict[str, Any]]:
        """The parameters' own schemas by name, after the rules that make arguments one closed object."""
        schema, wrong = self._tool.parameters, self._wrong
        if schema.get("type") != "object":
            raise wrong('parameters: must be a schema with type = "object"', "parameters")
        if schema.get("additionalProperties") is not False:
            reason = "must say additionalProperties = false: an argument that nobody declared is seen by no policy"
            raise wrong(f"parameters: {reason}", "parameters")
        self._schema(schema, "parameters")
        properties = schema.get("properties", {})
        for name in properties:
            if not _ARGUMENT.match(name):
                reason = f"parameters: `{name[:64]}` does not match {_ARGUMENT.pattern}"
                raise wrong(reason, "parameters", "properties", name)
        for name in schema.get("required", ()):
            if name not in properties:
                raise wrong(f"parameters.required: `{name[:64]}` is not a property", "parameters", "required")
        return {name: value if isinstance(value, dict) else {} for name, value in properties.items()}

    def _argv(self, properties: Mapping[str, dict[str, Any]]) -> None:
        for element in self._tool.argv:
            found = _REFERENCE.match(element)
            if found is None and ("{" in element or "}" in element or not element or "\0" in element):
                rule = 'an element is literal text or exactly "{name}"'
                raise self._wrong(f"argv: `{element[:80]}` is empty or mixes braces and text", "argv", next_step=rule)
            if found and found.group(1) not in properties:
                raise self._wrong(f"argv: `{element}` names no parameter", "argv")

    def _sections(self, properties: Mapping[str, dict[str, Any]]) -> None:
        tool, wrong = self._tool, self._wrong
        for section, keys in (("paths", tool.paths), ("project", tool.project)):
            for key in keys:
                if key not in properties:
                    raise wrong(f"{section}: `{key[:64]}` is not a parameter", section, key)
        for key, kind in tool.project.items():
            if kind not in PROJECTIONS:
                known = f"use one of: {', '.join(PROJECTIONS)}"
                raise wrong(f"project.{key}: `{kind[:64]}` is not a type", "project", key, next_step=known)
        for key in tool.paths:
            schema = properties[key]
            items = schema.get("items")
            if schema.get("type") != "string" and not (isinstance(items, dict) and items.get("type") == "string"):
                raise wrong(f"paths.{key}: the parameter is not a string or an array of strings", "paths", key)

    def _schema(self, schema: dict[str, Any], section: str) -> None:
        """`schema` is valid JSON Schema 2020-12, needs nothing outside itself, and its patterns run in linear time."""
        if schema.get("$schema", DRAFT) != DRAFT:
            raise self._wrong(f"{section}.$schema: only draft 2020-12 is read", section, "$schema")
        try:
            jsonschema_rs.meta.validate({"$schema": DRAFT, **schema})
            jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions(), offline=True)
        except jsonschema_rs.ValidationError as error:
            where = [str(part) for part in error.instance_path]
            reason = error.message.splitlines()[0][:300]
            path = ".".join([section, *where])
            raise self._wrong(f"{path}: not valid JSON Schema 2020-12: {reason}", section, *where) from None
        except (ValueError, TypeError) as error:
            raise self._wrong(f"{section}: not JSON: {str(error)[:200]}", section) from None
