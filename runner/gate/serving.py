"""The catalogue in force: compiled as one, swapped as one. A call holds the one it began with."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from runner.catalog import Catalog
from runner.gate.arguments import Arguments
from runner.gate.policy import PolicyBundle
from runner.model import Manifest, TaskProfile, ToolProfile


class Serving(msgspec.Struct, frozen=True):
    """Manifests, profiles, argument schemas and policy of one generation."""

    catalog: Catalog
    arguments: Arguments
    policies: PolicyBundle

    @classmethod
    def compile(cls, catalog: Catalog) -> Serving:
        """Compile a catalogue for use. Raises `RunnerError` (policy, manifest); nothing changes then."""
        return cls(
            catalog=catalog,
            arguments=Arguments(catalog.tools.values()),
            policies=PolicyBundle.compile(catalog.policies, catalog.tools),
        )

    @property
    def tools(self) -> Mapping[str, Manifest]:
        """Every tool, by id."""
        return self.catalog.tools

    @property
    def task_profiles(self) -> Mapping[str, TaskProfile]:
        """Every task profile, by name."""
        return self.catalog.task_profiles

    @property
    def tool_profiles(self) -> Mapping[str, ToolProfile]:
        """Every tool profile, by name."""
        return self.catalog.tool_profiles
