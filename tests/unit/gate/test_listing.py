"""What a token's holder is shown: the catalogue, the task profile and the token together, narrowed by constraints."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.catalog import compile_bundle, read_folders, shared
from runner.gate.listing import listing, listing_digest
from runner.gate.serving import Serving


@pytest.fixture(scope="module")
def serving() -> Serving:
    folders = [Path(shared(name)) for name in ("profiles", "tools", "policies")]
    return Serving.compile(compile_bundle(read_folders(*folders)))


def test_only_what_all_three_hold_is_listed(serving: Serving) -> None:
    granted = {"fs_read": {}, "shell_run": {}, "no_such_tool": {}}
    assert [spec.name for spec in listing(serving, "default", granted)] == ["fs_read", "shell_run"]
    assert listing(serving, "default", {}) == ()
    # A capability for requests is granted like a tool, and is none.
    assert [spec.name for spec in listing(serving, "default", {"fs_read": {}, "egress": {}})] == ["fs_read"]
    assert listing(serving, "default", {"egress": {}}) == ()
    assert listing(serving, "no_such_profile", granted) == ()


def test_schemas_are_narrowed_by_the_token_and_the_digest_follows(serving: Serving) -> None:
    exact = {"fs_read": {"path": {"constraint_type": "exact", "value": "a.txt"}}}
    (open_spec,) = listing(serving, "default", {"fs_read": {}})
    (narrow_spec,) = listing(serving, "default", exact)
    assert set(open_spec.parameters["properties"]) == {"path", "offset", "limit"}
    assert set(narrow_spec.parameters["properties"]) == {"path"}
    assert narrow_spec.parameters["properties"]["path"]["const"] == "a.txt"
    assert listing_digest((open_spec,)) != listing_digest((narrow_spec,))
    assert narrow_spec.digest == open_spec.digest == serving.tools["fs_read"].digest
