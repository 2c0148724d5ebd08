"""Each way a manifest or profile can be wrong is exactly one error: code, file:line, what is wrong, what to do."""

from __future__ import annotations

from typing import Any

import pytest

COUNT, SH, BASE, NARROW = "tools/count/tool.toml", "tools/sh/tool.toml", "profiles/base.toml", "profiles/narrow.toml"

# file, text to find, its replacement, line of the error (0 = the file as a whole), part of the reason
MANIFESTS = [
    (COUNT, 'id = "count"', 'id = "Count"', 1, "does not match"),
    (COUNT, 'id = "count"', 'id = "other"', 1, "not the folder's name"),
    (COUNT, 'id = "count"\n', "", 0, "missing required field `id`"),
    (COUNT, 'id = "count"', "id = 7", 1, "Expected `str`"),
    (COUNT, 'id = "count"', "id = ", 1, "not TOML"),
    (COUNT, 'description = "Counts words."', 'description = ""', 2, "1 to 2000 characters"),
    (COUNT, '"low"', '"none"', 3, "Invalid enum value"),
    (COUNT, 'profile = "narrow"', 'profile = "wide"', 4, "no tool profile `wide`"),
    (COUNT, 'profile = "narrow"', 'profile = "base"', 4, "no tool profile `base`"),
    (COUNT, '"python"', '"shell"', 5, "Invalid enum value"),
    (COUNT, '"python"', '"argv"', 5, "an argv tool needs it"),
    (COUNT, 'kind = "python"', 'kind = "python"\nargv = ["x"]', 6, "a python tool has none"),
    (COUNT, 'kind = "python"', 'kind = "python"\ncolour = "red"', 6, "unknown field `colour`"),
    (COUNT, 'path = "read"', 'path = "execute"', 7, "Invalid enum value"),
    (COUNT, 'path = "read"', 'file = "read"', 8, "`file` is not a parameter"),
    (COUNT, 'path = "read"', 'mode = "read"', 8, "not a string"),
    (COUNT, 'type = "object"\n', "", 10, 'type = "object"'),
    (COUNT, "additionalProperties = false\n", "", 10, "additionalProperties = false"),
    (COUNT, "additionalProperties = false", "additionalProperties = true", 10, "additionalProperties = false"),
    (COUNT, 'required = ["path"]', 'required = ["paths"]', 13, "`paths` is not a property"),
    (COUNT, 'required = ["path"]', "required = 7", 13, "not valid JSON Schema"),
    (COUNT, 'type = "string"', 'type = "strin"', 16, "not valid JSON Schema"),
    (COUNT, 'type = "string"', 'type = "string"\npattern = "(?=x)y"', 17, "not valid JSON Schema"),
    (COUNT, 'type = "string"', 'type = "string"\npattern = "("', 17, "not valid JSON Schema"),
    (COUNT, 'type = "string"', '"$ref" = "https://schema.example/x"', 10, "not valid JSON Schema"),
    (COUNT, 'type = "string"', '"$ref" = "#/$defs/none"', 10, "not valid JSON Schema"),
    (COUNT, 'type = "string"', 'type = "string"\ndefault = 2026-01-01', 10, "not JSON"),
    (COUNT, "[parameters.properties.mode]", '[parameters.properties."a-b"]', 18, "does not match"),
    (COUNT, 'mode = "String"', 'mode = "Map"', 22, "`Map` is not a type"),
    (COUNT, 'mode = "String"', 'node = "String"', 22, "`node` is not a parameter"),
    (COUNT, "[project]", '[result]\ntype = "nothing"\n[project]', 22, "not valid JSON Schema"),
    (COUNT, 'kind = "python"', 'kind = "python"\nlabels = ["Customer"]', 6, "`Customer` is not a label"),
    (COUNT, 'kind = "python"', 'kind = "python"\nlabels = ["secret.mine"]', 6, "what issued secrets have"),
    (SH, '["{argv}"]', '["{argw}"]', 6, "names no parameter"),
    (SH, '["{argv}"]', '["--x={argv}"]', 6, "mixes braces and text"),
    (SH, '["{argv}"]', '["sh", ""]', 6, "is empty"),
    (SH, '["{argv}"]', "[]", 5, "an argv tool needs it"),
    (SH, "[parameters]", '[result]\ntype = "object"\n\n[parameters]', 9, "only a python tool"),
]

_FILES = '[[files]]\npath = "{path}"\nlabel = "{label}"\n\n[ceilings]'
PROFILES = [
    (BASE, "[ceilings]", _FILES.format(path="x", label="no label"), 11, "is not a label"),
    (BASE, "[ceilings]", _FILES.format(path="x", label="secret"), 11, "what issued secrets have"),
    (BASE, "[ceilings]", _FILES.format(path="../etc", label="x"), 10, "not in the workspace"),
    (BASE, "[ceilings]", _FILES.format(path="/etc", label="x"), 10, "not in the workspace"),
    (BASE, "[ceilings]", _FILES.format(path="", label="x"), 10, "not in the workspace"),
    (BASE, 'name = "base"', 'name = "bass"', 1, "must be the file's name"),
    (BASE, 'kind = "task"', 'kind = "box"', 2, '"task" or "tool"'),
    (BASE, 'kind = "task"', 'kind = "task"\nprivileged = true', 3, "unknown field `privileged`"),
    (BASE, '"toolrunner/tools"', '"Tools:latest; rm"', 4, "image"),
    (BASE, 'seccomp = "base"', 'seccomp = "none"', 5, "no filter"),
    (BASE, '"count", "sh"', '"count", "shell"', 6, "no tool `shell`"),
    (BASE, '["count", "sh"]', "[]", 6, "allows nothing"),
    (BASE, '"90s"', '"90 seconds"', 7, "is not a time"),
    (BASE, '"128MiB"', '"128 megabytes"', 10, "is not a size"),
    (BASE, '"128MiB"', '"71MiB"', 10, "tmpfs is charged"),
    (BASE, 'seccomp = "base"', 'seccomp = "base"\nworkspace_kind = "nfs"', 6, "Invalid enum value"),
    (BASE, 'seccomp = "base"', 'seccomp = "base"\nsnapshot = "all"', 6, "Invalid enum value"),
    (BASE, "cpus = 0.5", "cpus = 0", 11, "less than the least"),
    (BASE, "cpus = 0.5", "cpus = inf", 11, "cpus"),
    (BASE, "cpus = 0.5", "cpus = nan", 11, "cpus"),
    (BASE, "pids = 64", "pids = -1", 12, "less than the least"),
    (BASE, "pids = 64", 'pids = "64"', 12, "Expected `int`"),
    (BASE, "pids = 64", "threads = 64", 12, "unknown field `threads`"),
    (NARROW, '"call"', '"vm"', 4, "Invalid enum value"),
    (NARROW, '"read"', '"all"', 5, "Invalid enum value"),
    (NARROW, '"socket"', '"socket; rm"', 7, "not the name of a system call"),
    (NARROW, '"1500ms"', '"31s"', 8, "above the ceiling of task profile `base`"),
    (NARROW, 'wall = "1500ms"', "open_files = 512", 8, "above the ceiling"),
    (NARROW, 'wall = "1500ms"', 'memory = "1GiB"', 8, "unknown field `memory`"),
]


@pytest.mark.parametrize(("path", "old", "new", "line", "says"), MANIFESTS)
def test_a_broken_manifest(folders: Any, path: str, old: str, new: str, line: int, says: str) -> None:
    assert folders.compile()
    folders.edit(path, old, new)
    refused = folders.refusal()
    assert refused.code == "manifest"
    assert refused.field == (f"{path}:{line}" if line else path)
    assert says in refused.reason
    assert refused.next_step


@pytest.mark.parametrize(("path", "old", "new", "line", "says"), PROFILES)
def test_a_broken_profile(folders: Any, path: str, old: str, new: str, line: int, says: str) -> None:
    assert folders.compile()
    folders.edit(path, old, new)
    refused = folders.refusal()
    assert refused.code == "profile"
    assert refused.field == f"{path}:{line}"
    assert says in refused.reason
    assert refused.next_step


def test_a_key_that_is_not_known_is_no_tool(folders: Any) -> None:
    folders.write(COUNT, 'network = "host"\n' + (folders.root / COUNT).read_text())
    refused = folders.refusal()
    assert (refused.code, refused.field) == ("manifest", f"{COUNT}:1")
    assert "unknown field `network`" in refused.reason


@pytest.mark.parametrize("name", ["low", "medium", "high", "any"])
def test_a_tool_cannot_have_the_name_of_an_action_group(folders: Any, name: str) -> None:
    folders.write(f"tools/{name}/tool.toml", (folders.root / SH).read_text().replace('"sh"', f'"{name}"'))
    assert "action group" in folders.refusal().reason


def test_no_tool_has_the_name_of_the_capability_for_the_network(folders: Any) -> None:
    folders.write("tools/egress/tool.toml", (folders.root / SH).read_text().replace('"sh"', '"egress"'))
    refused = folders.refusal()
    assert refused.field == "tools/egress/tool.toml:1"
    assert "tokens and policies" in refused.reason


@pytest.mark.parametrize(
    ("path", "text", "code", "says"),
    [
        ("tools/stray.py", "", "manifest", "outside a tool's folder"),
        ("tools/empty/main.py", "", "manifest", "is missing"),
        ("profiles/notes.txt", "", "profile", "not a <name>.toml"),
        ("profiles/UPPER.toml", "", "profile", "not a <name>.toml"),
        ("profiles/seccomp/deep/x.json", "{}", "profile", "not a seccomp/<name>.json"),
        ("profiles/seccomp/x.json", "{", "profile", "not a JSON object"),
        ("profiles/seccomp/x.json", "[]", "profile", "not a JSON object"),
        ("profiles/seccomp/x.json", '{"defaultAction": "SCMP_ACT_ALLOW"}', "profile", "must refuse"),
        ("profiles/seccomp/x.json", "{}", "profile", "must refuse"),
        ("policies/base.cedar.swp", "", "policy", "not a *.cedar file"),
        ("policies/more/x.cedar", "", "policy", "not a *.cedar file"),
    ],
)
def test_a_file_that_does_not_belong(folders: Any, path: str, text: str, code: str, says: str) -> None:
    assert folders.compile()
    folders.write(path, text)
    refused = folders.refusal()
    assert (refused.code, says in refused.reason) == (code, True)
    assert refused.field.startswith(path.split("/")[0] + "/")


def test_a_python_tool_without_main_is_refused(folders: Any) -> None:
    (folders.root / "tools/count/main.py").unlink()
    assert "needs main.py" in folders.refusal().reason


def test_text_that_is_not_utf8(folders: Any) -> None:
    folders.write(COUNT, b"id = '\xff'")
    refused = folders.refusal()
    assert (refused.code, refused.reason) == ("manifest", "the file is not UTF-8")


def test_only_the_draft_that_is_documented(folders: Any) -> None:
    folders.edit(COUNT, 'type = "object"', '"$schema" = "http://json-schema.org/draft-07/schema#"\ntype = "object"')
    assert "only draft 2020-12" in folders.refusal().reason
