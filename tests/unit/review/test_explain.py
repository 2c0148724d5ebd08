"""Explanations and differences: every change that is told flips the decision when it is really made."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runner.catalog import archive, shared, unarchive
from runner.cli import policy, policy_explain
from runner.cli.policy import compiled
from runner.errors import RunnerError
from runner.review import values
from runner.review.cases import Case, Point, read_cases
from runner.review.compare import differs, over_cases, rules
from runner.review.explain import explain
from runner.review.values import ABSENT

app = typer.Typer()
app.command("explain")(policy_explain.explain)
app.command("diff")(policy_explain.diff)
app.command("check")(policy.check)
SERVED = compiled(None, None, None)
CASES = [each for each in read_cases(shared("policies")) if each[1].egress is None]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def write(path: str, **more: Any) -> Point:
    return Point.of(tool="fs_write", arguments={"path": path, "content": "x"} | more, profile="default")


@pytest.mark.parametrize(("place", "case"), CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_what_is_told_of_a_shipped_case_is_so(place: str, case: Case) -> None:
    found = explain(case.point, SERVED)
    assert found.decision == case.point.decide(SERVED)
    assert found.all_tried
    for flip in found.flips:
        other = flip.change.onto(case.point)
        assert other.decide(SERVED) == flip.after
        assert flip.after.effect != found.decision.effect
        assert set(flip.rules) == set(other.matching(SERVED)) - set(found.matching)
    for rule, change in found.near.items():
        assert rule not in found.matching
        assert rule in change.onto(case.point).matching(SERVED)
    assert [flip.change.size for flip in found.flips] == sorted(flip.change.size for flip in found.flips)


def test_the_smallest_change_of_a_forbidden_path() -> None:
    found = explain(write("src/.git/hooks/pre-commit"), SERVED)
    assert found.matching == ("git-internals", "change-workspace")
    smallest = found.flips[0]
    assert (smallest.change.field, smallest.change.new) == ("arguments.path", "src/hooks/pre-commit")
    assert (smallest.after.effect, smallest.after.rules, smallest.change.size) == ("allow", ("change-workspace",), 5)
    assert set(found.near) == {"protected-folder", "ci-needs-a-human"}


def test_every_other_decision_is_looked_for() -> None:
    """What would allow a call is told also where what would forbid it is a smaller change."""
    found = explain(write("/workspace/src/..//.github/./workflows/ci.yml"), SERVED)
    assert found.decision.effect == "step_up"
    by_effect = {flip.after.effect: flip.change for flip in found.flips}
    assert by_effect["allow"].new == "/workspace/src/..//.github/./workflows"
    assert by_effect["deny"].size < by_effect["allow"].size


def test_an_argument_left_out_is_a_change() -> None:
    unknown = Point.of(tool="fs_read", arguments={"path": "x", "follow": True}, profile="default")
    found = explain(unknown, SERVED)
    assert not found.by_policy
    assert (found.flips[0].change.field, found.flips[0].change.new) == ("arguments.follow", ABSENT)
    assert found.flips[0].after.effect == "allow"


def test_a_decision_that_nothing_tried_changes_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_text('@id("all") permit (principal, action, resource);')
    served = compiled(tmp_path, None, None)
    found = explain(write("x"), served)
    assert (found.flips, found.near, found.decision.effect) == ((), {}, "allow")
    assert found.tried > 5
    assert explain(write("x"), served, most=3).tried == 3
    assert not explain(write("x"), served, most=3).all_tried


def test_explain_takes_the_place_that_check_prints(tmp_path: Path) -> None:
    report = json.loads(call("check", "--json").output)
    for row in report["cases"][:5]:
        told = json.loads(call("explain", row["place"], "--json").output)
        assert (told["case"], told["now"]["decision"]) == (row["place"], row["decision"])
    one = tmp_path / "one.toml"
    one.write_text(
        '[[case]]\nname = "x"\ntool = "fs_write"\narguments = { path = ".git/\\u202ea", content = "" }\n'
        'expect = { decision = "deny", reason = "" }\n'
    )
    text = call("explain", one).output
    assert "deny by git-internals" in text
    assert "\u202e" not in text + call("explain", one, "--json").output
    several = call("explain", shared("policies") / "cases/base.toml").exception
    assert isinstance(several, RunnerError)
    assert "name one by its line" in several.refused.next_step


# --- differences -------------------------------------------------------------------------------------------------


def other(place: Path, old: str, new: str) -> Path:
    text = (shared("policies") / "base.cedar").read_text()
    assert old in text
    (place / "base.cedar").write_text(text.replace(old, new))
    return place


def test_diff_counts_what_changes_over_the_cases(tmp_path: Path) -> None:
    made = other(tmp_path, "denied >= 1000", "denied >= 5000")
    found = json.loads(call("diff", shared("policies"), made, "--json").output)
    assert found["rules"] == {"added": [], "removed": [], "changed": ["too-many-denials"]}
    assert found["cases"]["asked"] == len(read_cases(shared("policies")))
    assert found["cases"]["counts"] == {"deny → allow": 1}
    (only,) = found["cases"]["differences"]
    assert (only["name"], only["old"]["rules"], only["new"]["rules"]) == (
        "a task that keeps being refused",
        ["too-many-denials"],
        ["run-programs"],
    )
    assert "1 differ" in call("diff", shared("policies"), made).output
    assert "0 differ" in call("diff", shared("policies"), shared("policies")).output


def test_diff_tells_rules_and_reasons_apart(tmp_path: Path) -> None:
    reworded = compiled(other(tmp_path, "write elsewhere", "write somewhere else"), None, None)
    found = over_cases(CASES, SERVED, reworded)
    assert (dict(found.counts), [each.what for each in found.differences]) == ({"reason": 2}, ["reason"] * 2)
    renamed = compiled(other(tmp_path, '@id("protected-folder")', '@id("kept")'), None, None)
    assert dict(over_cases(CASES, SERVED, renamed).counts) == {"rules": 2}
    told = rules(SERVED, renamed)
    assert (told.added, told.removed, told.changed) == (["kept"], ["protected-folder"], [])
    decision = CASES[0][1].point.decide(SERVED)
    assert differs(decision, decision) == ""


def test_an_archive_is_read_back(tmp_path: Path) -> None:
    files = {"a": b"", "b/c": b"x" * 300, "é": b"\0"}
    assert unarchive(archive(files)) == files
    with pytest.raises(RunnerError, match="ends too early"):
        unarchive(archive(files)[:-1])


@given(st.text("ab\\", max_size=8), st.text("ab\\", max_size=8))
def test_the_size_of_a_change_is_what_differs(old: str, new: str) -> None:
    def common(one: str, other: str) -> int:
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))

    begin = common(old, new)
    end = common(old[begin:][::-1], new[begin:][::-1])
    assert values._size(old, new) == len(old) - begin - end + len(new) - begin - end


def test_a_long_call_is_asked_about_less_often_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point.of(tool="shell_run", arguments={"argv": ["sh", "-c", "x /" * 30_000]}, profile="default")
    assert explain(point, SERVED).all_tried
    monkeypatch.setattr("runner.review.explain._MOST_TEXT", 600_000)
    found = explain(point, SERVED)
    assert (found.tried, found.all_tried) == (6, False)
