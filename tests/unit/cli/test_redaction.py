"""`runner filter test`, `list`, `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runner.cli.redaction import app
from runner.errors import RunnerError
from runner.stream.specimen import written

RULE = """\
[[rule]]
id = "acme-key"
label = "credential.acme"
description = "Key of ACME"
pattern = '''acme_[a-z0-9]{8}'''
examples = ["acme_<lan:8>"]
counter_examples = ["acme_x"]
"""


def run(*arguments: str, given: bytes = b"") -> Any:
    return CliRunner().invoke(app, list(arguments), input=given)


def test_findings_are_shown_masked_with_place_rule_and_what_stands_instead(tmp_path: Path) -> None:
    token = written("ghp_<an:36>", "cli")
    text = tmp_path / "out.log"
    text.write_bytes(b"fine\nkey " + token + b" of jane@example.org\n")
    done = run("test", str(text))
    assert done.exit_code == 0
    assert token.decode() not in done.stdout
    assert "jane@" not in done.stdout
    assert "[REDACTED:github-token]" in done.stdout
    found = json.loads(run("test", str(text), "--json").stdout)
    first, second = found["findings"]
    assert (first["line"], first["column"], first["rule"], first["action"]) == (2, 5, "github-token", "redact")
    assert (second["label"], second["after"]) == ("pii.email", "j***@e***.org")
    assert found["counts"] == {"github-token": 1, "email": 1}
    assert token.decode() in run("test", str(text), "--show").stdout  # positive control


def test_exit_status_is_that_of_grep_and_standard_input_is_read() -> None:
    assert run("test", "-", given=b"nothing to see\n").exit_code == 1
    assert run("test", "-", given=b"mail jane@example.org\n").exit_code == 0


def test_unknown_files_and_profiles_are_refused() -> None:
    assert isinstance(run("test", "/nonexistent").exception, RunnerError)
    refused = run("test", "-", "--profile", "nobody", given=b"x").exception
    assert isinstance(refused, RunnerError)
    assert "default" in refused.refused.next_step


def test_a_teams_folder_is_listed_checked_and_used(tmp_path: Path) -> None:
    folder = tmp_path / "filters"
    folder.mkdir()
    (folder / "acme.toml").write_text(RULE)
    where = ("--policies", str(tmp_path))
    assert json.loads(run("list", "--json", *where).stdout)[0]["place"] == "policies/filters/acme.toml:1"
    assert "1 rules" in run("list", *where).stdout
    assert json.loads(run("check", "--json", *where).stdout) == {"rules": 1, "examples": 2}
    assert run("test", "-", *where, given=b"acme_12345678").exit_code == 0
    assert run("test", "-", *where, given=b"jane@example.org").exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("acme_<lan:8>", "acme-<lan:8>", "does not find its example"),
        ('"acme_x"', '"acme_abcdefgh"', "finds its counter-example"),
        ("{8}", "+", "has no end"),
        ("'''\n", "'''\ngroup = \"g\"\n", "no group"),
    ],
)
def test_a_wrong_rule_is_refused_with_file_and_line(tmp_path: Path, old: str, new: str, why: str) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "acme.toml").write_text(RULE.replace(old, new))
    refused = run("check", "--policies", str(tmp_path)).exception
    assert isinstance(refused, RunnerError)
    assert refused.refused.field == "policies/filters/acme.toml:1"
    assert why in refused.refused.reason
