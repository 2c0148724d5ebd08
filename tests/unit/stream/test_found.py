"""Recall on planted secrets and personal data, and how little of what only looks like it is found (K03, K04)."""

from __future__ import annotations

import pytest
from planted import CREDENTIALS, NEGATIVES, PII, negatives, planted

from runner.catalog import shared
from runner.catalog.filters import compile_filter_rules
from runner.stream.patterns import Patterns

_FOLDER = shared("policies") / "filters"
_EACH = 30


@pytest.fixture(scope="module")
def patterns() -> Patterns:
    files = {f"filters/{path.name}": path.read_bytes() for path in sorted(_FOLDER.glob("*.toml"))}
    return Patterns(compile_filter_rules(files))


def recall(patterns: Patterns, label: str, text: bytes, value: bytes) -> bool:
    """Whether the whole value goes."""
    at = text.index(value)
    return any(
        each.label.startswith(label) and each.start <= at and each.end >= at + len(value)
        for each in patterns.find(text)
    )


@pytest.mark.parametrize("kind", sorted(CREDENTIALS))
def test_planted_credentials_are_found(patterns: Patterns, kind: str) -> None:
    found = [recall(patterns, "credential", *each) for each in planted(CREDENTIALS[kind], f"unseen {kind}", _EACH)]
    assert sum(found) / len(found) >= 0.95


@pytest.mark.parametrize("kind", sorted(PII))
def test_planted_personal_data_is_found(patterns: Patterns, kind: str) -> None:
    found = [recall(patterns, kind, *each) for each in planted(PII[kind], f"unseen {kind}", _EACH)]
    assert sum(found) / len(found) >= 0.90


def test_what_only_looks_like_it_is_left_alone(patterns: Patterns) -> None:
    found = [(kind, text) for kind, text in negatives("unseen", _EACH) if patterns.find(text)]
    assert len(found) / (len(NEGATIVES) * _EACH) <= 0.01, found[:5]
