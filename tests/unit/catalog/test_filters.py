"""policies/filters/*.toml and [labels]: read whole, errors with file and line, part of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.catalog import compile_bundle, read_folders, shared
from runner.catalog.filters import check_labels, compile_filter_rules
from runner.catalog.place import Place
from runner.errors import RunnerError

RULE = """\
# a team's own
[[rule]]
id = "acme-key"
label = "credential.acme"
description = "Key of ACME"
pattern = '''acme_[a-z0-9]{8}'''
entropy = 2.5
examples = ["acme_<lan:8>"]
"""


def read(files: Mapping[str, str]) -> list[str]:
    return [rule.id for rule in compile_filter_rules({name: text.encode() for name, text in files.items()})]


def refused(files: Mapping[str, str]) -> tuple[str, str]:
    with pytest.raises(RunnerError) as caught:
        read(files)
    assert caught.value.refused.code == "policy"
    return caught.value.refused.field, caught.value.refused.reason


def test_rules_are_read_files_by_name_and_rules_in_order() -> None:
    other = RULE.replace("acme-key", "first")
    assert read(
        {"filters/z.toml": other, "filters/a.toml": RULE, "base.cedar": "", "filters/injection.toml": "x = 1"}
    ) == [
        "acme-key",
        "first",
    ]
    (rule,) = compile_filter_rules({"filters/a.toml": RULE.encode()})
    assert (rule.entropy, rule.place) == (2500, "policies/filters/a.toml:2")


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        (RULE + "colour = 1\n", ":9", "unknown field `colour`"),
        (RULE.replace('id = "acme-key"', 'id = "Acme"'), ":3", "id"),
        (RULE.replace("credential.acme", "credential..acme"), ":4", "label"),
        (RULE.replace("credential.acme", "secret.acme"), ":4", "another part"),
        (RULE.replace('examples = ["acme_<lan:8>"]\n', ""), "", "examples"),
        (RULE.replace('"acme_<lan:8>"', ""), ":8", "examples"),
        (RULE.replace("entropy = 2.5", "entropy = 9.0"), ":7", "entropy"),
        (RULE.replace("entropy = 2.5", 'check = "magic"'), ":7", "check"),
        ("rule = 1", "", "rule"),
        ("x =\n", ":1", "not TOML"),
        (RULE + RULE, ":11", "is also the id of the rule at policies/filters/x.toml:2"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_line(text: str, place: str, why: str) -> None:
    where, reason = refused({"filters/x.toml": text})
    assert where.startswith(f"policies/filters/x.toml{place}")
    assert why in reason


def test_ids_are_unique_among_files() -> None:
    where, reason = refused({"filters/a.toml": RULE, "filters/b.toml": RULE})
    assert where == "policies/filters/b.toml:3"
    assert "policies/filters/a.toml:2" in reason


def test_rules_are_part_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "filters").mkdir()
    bare = read_folders(shared("profiles"), shared("tools"), tmp_path)
    (tmp_path / "filters" / "acme.toml").write_text(RULE)
    bundle = read_folders(shared("profiles"), shared("tools"), tmp_path)
    assert bundle.digest != bare.digest
    catalog = compile_bundle(bundle)
    assert [rule.id for rule in catalog.filters] == ["acme-key"]
    assert "filters/acme.toml" in catalog.policies
    assert RULE.encode() in catalog.contents.values()
    (tmp_path / "filters" / "more").mkdir()
    (tmp_path / "filters" / "more" / "x.toml").write_text(RULE)
    with pytest.raises(RunnerError, match=r"filters/more/x\.toml"):
        compile_bundle(read_folders(shared("profiles"), shared("tools"), tmp_path))


def test_the_packages_own_rules_are_read() -> None:
    catalog = compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies")))
    assert len(catalog.filters) > 150
    assert {rule.label.split(".")[0] for rule in catalog.filters} == {"credential", "pii"}


def test_labels_of_a_task_profile(tmp_path: Path) -> None:
    for path in shared("profiles").rglob("*"):
        if path.is_file() and path.suffix in (".toml", ".json"):
            target = tmp_path / path.relative_to(shared("profiles"))
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    default = tmp_path / "default.toml"
    text = default.read_text()
    default.write_text(text + '\n[labels]\n"pii.email" = "hash"\ncredential = "block"\n"*" = "mark"\n')
    catalog = compile_bundle(read_folders(tmp_path, shared("tools"), shared("policies")))
    assert catalog.task_profiles["default"].labels == {"pii.email": "hash", "credential": "block", "*": "mark"}
    for wrong in ('"pii.email" = "hide"', '"Pii" = "hash"', 'secret = "allow"', '"secret.x" = "mask"'):
        default.write_text(f"{text}\n[labels]\n{wrong}\n")
        with pytest.raises(RunnerError, match="labels") as caught:
            compile_bundle(read_folders(tmp_path, shared("tools"), shared("policies")))
        assert caught.value.refused.field.startswith("profiles/default.toml:")


def test_labels_without_a_mistake_pass() -> None:
    assert check_labels({"pii": "mask"}, Place("x", b"", "profile")) == {"pii": "mask"}
