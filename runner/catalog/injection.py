"""policies/filters/injection.toml: what text looks like that speaks to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from runner.catalog.filters import INJECTION
from runner.catalog.place import Place
from runner.config import decode_toml
from runner.model import InjectionRule

MAX_RULES = 500
_Examples = Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]


class _RuleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[injection]], as written."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    weight: Annotated[int, msgspec.Meta(ge=1, le=100)]
    kind: Literal["instruction", "discussion"] = "instruction"
    examples: Annotated[_Examples, msgspec.Meta(min_length=1)]
    counter_examples: _Examples = ()


class _RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    injection: Annotated[tuple[_RuleFile, ...], msgspec.Meta(max_length=MAX_RULES)] = ()


def compile_injection_rules(policies: Mapping[str, bytes]) -> tuple[InjectionRule, ...]:
    """Its rules in their order; none where there is no such file. Raises `RunnerError` (policy) naming file and line.

    Patterns are only read as text here; `runner.stream.inspect.Instructions` compiles them."""
    if INJECTION not in policies:
        return ()
    name, text = f"policies/{INJECTION}", policies[INJECTION]
    found: dict[str, InjectionRule] = {}
    for number, rule in enumerate(decode_toml(text, _RulesFile, name, "policy").injection):
        if rule.id in found:
            place = Place(name, text, "policy")
            raise place.wrong(f"rule {rule.id}: is also the id of another", "injection", str(number), "id")
        found[rule.id] = InjectionRule(**msgspec.structs.asdict(rule))
    return tuple(found.values())
