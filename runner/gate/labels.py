"""Where labels come from: the tool that was called, the files that it may have read. Pure.

A tool with `[paths]` reads what its arguments name: its manifest says so, the guest holds it to that. Any other tool
that is given the workspace could have read any file of it, and nothing outside the sandbox sees which: its result
carries the labels of all of them, and once such a tool has run that may write, any file may hold a copy, so every
result does, unless the profile says that programs are trusted not to read those files (`programs = false`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from runner.gate.schema import normal
from runner.model import Manifest, TaskProfile, ToolProfile

_LONGEST = 256  # labels that one set holds: more are no text's


def of_result(
    manifest: Manifest, tool: ToolProfile, profile: TaskProfile, arguments: Mapping[str, Any], *, mixed: bool
) -> frozenset[str]:
    """The labels that a call's result carries before anybody has looked at it. `mixed`: a program has run before it."""
    found = set(manifest.labels)
    if profile.files and tool.workspace != "none":
        read = _paths(manifest, arguments)
        for rule in profile.files:
            anywhere = rule.programs and (mixed or read is None)
            if anywhere or any(_meets(path, rule.path) for path in read or ()):
                found.add(rule.label)
    return frozenset(found)


def mixes(manifest: Manifest, tool: ToolProfile) -> bool:
    """Whether a call of this tool can leave any file's text in any other."""
    return tool.workspace == "write" and not manifest.paths


def of_task(profile: TaskProfile, tools: Mapping[str, Manifest]) -> frozenset[str]:
    """Every label that a task with this profile can have been given."""
    given = {label for name in profile.tools if name in tools for label in tools[name].labels}
    return frozenset(given | {rule.label for rule in profile.files})


def widened(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels as policy sees them: `pii.email` is `pii`, too. Sorted."""
    found = {
        ".".join(parts[: count + 1]) for each in labels for parts in [each.split(".")] for count in range(len(parts))
    }
    return tuple(sorted(found)[:_LONGEST])


def _paths(manifest: Manifest, arguments: Mapping[str, Any]) -> list[str] | None:
    """What the arguments name of the workspace; None for a tool that could read any of it."""
    if not manifest.paths:
        return None
    found: list[str] = []
    properties = manifest.parameters.get("properties", {})
    for name in manifest.paths:
        value = arguments.get(name, properties.get(name, {}).get("default", ()))
        found += [normal(each) for each in ([value] if isinstance(value, str) else value) if isinstance(each, str)]
    return found


def _meets(path: str, rule: str) -> bool:
    """Whether one is the other, or lies below it: a folder that is searched holds the files below."""
    names = path.strip("/").split("/")
    return all(fnmatchcase(name, each) for name, each in zip(names, rule.strip("/").split("/"), strict=False))
