"""What a token's holder is shown: the catalogue, the task profile and the token together, narrowed by constraints."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.catalog import compile_bundle, read_folders, shared
from runner.gate.listing import listing, listing_digest
from runner.gate.serving import Serving
from runner.model import FilterRule
from runner.stream.patterns import Patterns
from runner.stream.tasks import Filters

TEXTS = Filters(lambda: bytes(32)).texts("t", Patterns(()), None)


@pytest.fixture(scope="module")
def serving() -> Serving:
    folders = [Path(shared(name)) for name in ("profiles", "tools", "policies")]
    return Serving.compile(compile_bundle(read_folders(*folders)))


def test_only_what_all_three_hold_is_listed(serving: Serving) -> None:
    granted = {"fs_read": {}, "shell_run": {}, "no_such_tool": {}}
    assert [spec.name for spec in listing(serving, "default", granted, TEXTS)] == ["fs_read", "shell_run"]
    assert listing(serving, "default", {}, TEXTS) == ()
    # A capability for requests is granted like a tool, and is none.
    assert [spec.name for spec in listing(serving, "default", {"fs_read": {}, "egress": {}}, TEXTS)] == ["fs_read"]
    assert listing(serving, "default", {"egress": {}}, TEXTS) == ()
    assert listing(serving, "no_such_profile", granted, TEXTS) == ()


def test_schemas_are_narrowed_by_the_token_and_the_digest_follows(serving: Serving) -> None:
    exact = {"fs_read": {"path": {"constraint_type": "exact", "value": "a.txt"}}}
    (open_spec,) = listing(serving, "default", {"fs_read": {}}, TEXTS)
    (narrow_spec,) = listing(serving, "default", exact, TEXTS)
    assert set(open_spec.parameters["properties"]) == {"path", "offset", "limit"}
    assert set(narrow_spec.parameters["properties"]) == {"path"}
    assert narrow_spec.parameters["properties"]["path"]["const"] == "a.txt"
    assert listing_digest((open_spec,)) != listing_digest((narrow_spec,))
    assert narrow_spec.digest == open_spec.digest == serving.tools["fs_read"].digest


def test_what_a_description_must_not_tell_is_not_listed(serving: Serving) -> None:
    """K14: also where an operator wrote it there."""
    filters = Filters(lambda: bytes(32))
    secrets = filters.secrets("t")
    rule = FilterRule(id="word", label="credential.word", description="a word", pattern="standard input")
    texts = filters.texts("t", Patterns((rule,)), None)
    granted = {name: {} for name in serving.task_profiles["default"].tools}
    said = " ".join(spec.description for spec in listing(serving, "default", granted, TEXTS))
    assert "standard input" in said
    assert "workspace" in said
    secrets.hold("c", "word", (b"workspace",), lasting=True)
    clean = " ".join(spec.description for spec in listing(serving, "default", granted, texts))
    assert "standard input" not in clean
    assert "workspace" not in clean.replace("[REDACTED:word]", "")
    assert "[REDACTED:word]" in clean
    assert texts.counts["secret:word"] > 0
