"""Cases of requests: read, decided as gate decides, counted, compared; and refused where changes are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from runner.cli.commands import app
from runner.cli.policy import compiled
from runner.errors import RunnerError
from runner.review.cases import coverage, read_cases, run_cases
from runner.review.compare import over_cases
from runner.review.reach import reach

POLICY = """\
@id("out") @reason("reads leave") permit (principal, action == Action::"egress", resource)
when { context has method && context.method == "GET" };
@id("tools") permit (principal, action in Action::"any", resource);
"""
CASE = """\
[[case]]
name = "a read"
tool = "fs_read"
egress = {{ {egress} }}
expect = {{ decision = "{decision}", rule = "{rule}", reason = "" }}
"""


def made(place: Path, egress: str, decision: str = "allow", rule: str = "out", policy: str = POLICY) -> Path:
    (place / "cases").mkdir(parents=True)
    (place / "p.cedar").write_text(policy)
    (place / "cases" / "c.toml").write_text(CASE.format(egress=egress, decision=decision, rule=rule))
    return place


@pytest.mark.parametrize(
    ("egress", "decision", "rule"),
    [
        ('host = "API.example.com.", method = "GET"', "allow", "out"),
        ('host = "api.example.com", protocol = "http", method = "GET", path = "/%61"', "allow", "out"),
        ('host = "api.example.com", method = "PUT", path = "/a"', "deny", ""),
        ('host = "api.example.com"', "deny", ""),
        ('host = "db.example.com", port = 5432, protocol = "tcp"', "deny", ""),
    ],
)
def test_a_case_gets_the_decision_that_gate_makes(tmp_path: Path, egress: str, decision: str, rule: str) -> None:
    folder = made(tmp_path / "p", egress, decision, rule)
    (result,) = run_cases(read_cases(folder), compiled(folder, None, None))
    assert result.difference == ""
    assert result.matching == ((rule,) if rule else ())
    wrong = made(tmp_path / "q", egress, "deny" if decision == "allow" else "allow", rule)
    assert run_cases(read_cases(wrong), compiled(wrong, None, None))[0].difference


@pytest.mark.parametrize(
    ("egress", "says"),
    [
        ('host = "a_b"', "letters, digits"),
        ('host = "a.example", method = "get"', "upper case"),
        ('host = "a.example", method = "GET", path = "/../x"', "dot segment"),
        ('host = "a.example", protocol = "tcp"', "needs a port"),
        ('host = "a.example", colour = 1', "unknown field"),
        ("port = 443", "missing required field"),
    ],
)
def test_a_case_that_is_no_request(tmp_path: Path, egress: str, says: str) -> None:
    with pytest.raises(RunnerError) as caught:
        read_cases(made(tmp_path / "p", egress))
    assert caught.value.refused.code == "policy"
    assert caught.value.refused.field.startswith("policies/cases/c.toml:")
    assert says in caught.value.refused.reason


def test_rules_on_requests_are_counted_and_reached_by_cases(tmp_path: Path) -> None:
    folder = made(tmp_path / "p", 'host = "api.example.com", method = "GET"')
    served = compiled(folder, None, None)
    cases = read_cases(folder)
    (row,) = [row for row in coverage(served, run_cases(cases, served)) if row.rule == "out"]
    assert (row.expected, row.decided, row.matched) == (1, 1, 1)
    assert reach(served, [case for _, case in cases]).unreached == ()
    assert reach(served, []).unreached == ("out",)


def test_two_bundles_are_compared_over_requests_too(tmp_path: Path) -> None:
    old = made(tmp_path / "p", 'host = "api.example.com", method = "GET"')
    new = made(tmp_path / "q", 'host = "api.example.com", method = "GET"', policy=POLICY.replace('"GET"', '"HEAD"'))
    found = over_cases(read_cases(old), compiled(old, None, None), compiled(new, None, None))
    assert dict(found.counts) == {"allow → deny": 1}
    assert found.differences[0].tool == "fs_read"


def test_changes_of_a_request_are_not_tried_and_it_says_so(tmp_path: Path) -> None:
    folder = made(tmp_path / "p", 'host = "api.example.com", method = "GET"')
    done = CliRunner().invoke(app, ["policy", "explain", "c.toml:1", "--policies", str(folder)])
    assert isinstance(done.exception, RunnerError)
    assert done.exception.refused.code == "not_supported"
    assert "runner egress explain" in done.exception.refused.next_step
