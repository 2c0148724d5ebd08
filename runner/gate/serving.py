"""The catalogue in force: compiled as one, swapped as one. A call holds the one it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from runner.catalog import Catalog
from runner.gate.arguments import Arguments
from runner.gate.inspectors import SocketInspector
from runner.gate.policy import PolicyBundle
from runner.ledger.escrow import Recipients
from runner.model import Manifest, TaskProfile, ToolProfile


class Serving(msgspec.Struct, frozen=True):
    """Manifests, profiles, argument schemas and policy of one generation."""

    catalog: Catalog
    arguments: Arguments
    policies: PolicyBundle
    patterns: Any = None  # `runner.stream.patterns.Patterns`: what every text is searched for
    recipients: Recipients | None = None  # of raw output, where it may be kept

    inspector: Any = None  # `runner.stream.inspect.Inspector`: what untrusted output is looked at by
    outside: tuple[SocketInspector, ...] = ()  # and who is asked about it
    required: bool = False  # whether output that any of them did not see is withheld

    @classmethod
    def compile(cls, catalog: Catalog, patterns: Any = None, inspector: Any = None) -> Serving:
        """Compile a catalogue for use. Raises `RunnerError` (policy, manifest, config); nothing changes then."""
        recipients = catalog.config.escrow.recipients
        return cls(
            catalog=catalog,
            arguments=Arguments(catalog.tools.values()),
            policies=PolicyBundle.compile(catalog.policies, catalog.tools),
            patterns=patterns,
            recipients=Recipients(recipients) if recipients else None,
            inspector=inspector,
            outside=tuple(SocketInspector(each) for each in catalog.config.inspectors),
            required=any(each.required for each in catalog.config.inspectors),
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
