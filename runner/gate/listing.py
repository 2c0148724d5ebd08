"""What a token may call, as its holder sees it: the catalogue narrowed by the chain's constraints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from runner.gate.serving import Serving
from runner.token.constraints import narrow_schema
from runner.wire.agent import ToolSpec


class Filter(Protocol):
    """What is told passes it: `runner.stream.texts.Texts`."""

    def text(self, text: str) -> str:
        """A text as it may be told."""


def listing(
    serving: Serving, profile: str, granted: Mapping[str, Mapping[str, Any]], filter_: Filter
) -> tuple[ToolSpec, ...]:
    """The tools that catalogue, task profile and token all have, by name. Policy is not asked: it needs arguments."""
    task = serving.task_profiles.get(profile)
    if task is None:
        return ()
    specs = []
    for name in sorted(set(granted) & set(serving.tools) & set(task.tools)):
        manifest = serving.tools[name]
        specs.append(
            ToolSpec(
                name=name,
                description=filter_.text(manifest.description),
                parameters=narrow_schema(manifest.parameters, dict(granted[name])),
                result=manifest.result,
                consequence=manifest.consequence,
                digest=manifest.digest,
                stdin=manifest.stdin,
            )
        )
    return tuple(specs)


def listing_digest(specs: tuple[ToolSpec, ...]) -> str:
    """A digest that changes when any of the tools does."""
    return hashlib.sha256(msgspec.json.encode(specs, order="sorted")).hexdigest()[:16]
