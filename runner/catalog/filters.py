"""policies/filters/*.toml: the rules that text is searched for credentials and personal data by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from runner.catalog.place import Place
from runner.config import decode_toml
from runner.model import Action, Check, FilterRule

_HEADER = re.compile(rb"\s*\[\[\s*rule\s*\]\]")
FOLDER = "filters/"
INJECTION = f"{FOLDER}injection.toml"  # rules of another kind, which inspection reads
MAX_RULES = 2000
_PATTERN = 8192  # characters of one pattern

_Id = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
Label = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31}){0,3}$")]
_OWN = frozenset({"secret", "injected", "untrusted", "uninspected"})  # other parts give them: no pattern may
_LABEL = re.compile(r"^(\*|[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31}){0,3})\Z")


class _RuleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[rule]], as written."""

    id: _Id
    label: Label
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=_PATTERN)]
    group: str = ""
    check: Check = ""
    entropy: Annotated[float, msgspec.Meta(ge=0, le=8)] = 0.0  # bits a byte
    allow: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ()
    examples: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]
    counter_examples: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()


class _RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rule: tuple[_RuleFile, ...] = ()


def is_filter(path: str) -> bool:
    """Whether a file of the policy folder holds rules of a filter."""
    return path.startswith(FOLDER) and path.endswith(".toml") and path.count("/") == 1


def compile_filter_rules(policies: Mapping[str, bytes]) -> tuple[FilterRule, ...]:
    """The rules of every file, files by name, rules in their order. Raises `RunnerError` (policy) naming file and line.

    Patterns are only read as text here; `runner.stream.patterns.Patterns` compiles them."""
    found: dict[str, FilterRule] = {}
    for path in sorted(path for path in policies if is_filter(path) and path != INJECTION):
        name, text = f"policies/{path}", policies[path]
        place = Place(name, text, "policy")
        lines = [number for number, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
        for number, rule in enumerate(decode_toml(text, _RulesFile, name, "policy").rule):
            # Where the file writes its rules otherwise than each under a header, its name has to do.
            made = _rule(rule, place, str(number), f"{name}:{lines[number]}" if number < len(lines) else name)
            if made.id in found:
                reason = f"rule {made.id}: is also the id of the rule at {found[made.id].place}"
                raise place.wrong(reason, "rule", str(number), "id", next_step="ids are unique among all files")
            found[made.id] = made
            if len(found) > MAX_RULES:
                raise place.wrong(f"more than {MAX_RULES} rules", "rule", str(number), next_step="merge rules")
    return tuple(found.values())


def _rule(rule: _RuleFile, place: Place, number: str, written: str) -> FilterRule:
    if rule.label.split(".", 1)[0] in _OWN:
        step = "use credential.…, pii.… or a word of your own"
        raise place.wrong(
            f"rule {rule.id}: label `{rule.label}` is given by another part", "rule", number, "label", next_step=step
        )
    values = msgspec.structs.asdict(rule)
    values["entropy"] = round(rule.entropy * 1000)
    return FilterRule(**values, place=written)


def check_labels(labels: Mapping[str, Action], place: Place) -> dict[str, Action]:
    """[labels] of a task profile. Raises the place's error for a word that is no label."""
    for label in labels:
        if not _LABEL.match(label):
            step = 'write "pii.email", pii or "*"'
            raise place.wrong(f"labels: `{label[:64]}` is not a label", "labels", label, next_step=step)
        if label.split(".", 1)[0] == "secret":
            raise place.wrong("labels: issued secrets are always redacted", "labels", label, next_step="remove it")
    return dict(labels)
