"""A system call filter in words: its groups, and what a tool profile takes away from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.engine.seccomp import CallGroup


def filter_lines(groups: Sequence[CallGroup]) -> list[str]:
    """One paragraph per group: what it is for, what it opens, how many calls."""
    return [f"{group.name} ({_count(group)}): {group.purpose} Opens: {group.opens}" for group in groups]


def narrowed(name: str, groups: Sequence[CallGroup], deny: Sequence[str]) -> str:
    """What is left of the filter of this name when these calls are refused too, and which groups lose them."""
    lost = {group.name: _lost(group, deny) for group in groups}
    before = sum(len(group.allowed) for group in groups)
    after = before - sum(len(calls) for calls in lost.values())
    parts = [f"{group} loses {', '.join(calls)}" for group, calls in lost.items() if calls]
    return f"{after} of the {before} system calls of filter {name}: {'; '.join(parts)}"


def filter_json(groups: Sequence[CallGroup], tools: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The groups with every call, and for each tool profile what it refuses on top, by group."""
    return {
        "groups": {
            group.name: {
                "for": group.purpose,
                "opens": group.opens,
                "calls": group.allowed,
                "conditional": group.conditional,
                "answered": group.refused,
            }
            for group in groups
        },
        "calls": sum(len(group.allowed) for group in groups),
        "narrowed": {
            tool: {group.name: _lost(group, deny) for group in groups if _lost(group, deny)}
            for tool, deny in tools.items()
        },
    }


def _lost(group: CallGroup, deny: Sequence[str]) -> list[str]:
    return sorted(set(group.allowed) & set(deny))


def _count(group: CallGroup) -> str:
    parts = []
    if group.allowed:
        some = f", {len(group.conditional)} with conditions on their arguments" if group.conditional else ""
        parts.append(f"{len(group.allowed)} call{'s' * (len(group.allowed) != 1)}{some}")
    if group.refused:
        parts.append(f"{len(group.refused)} answered without reaching the kernel")
    return "; ".join(parts)
