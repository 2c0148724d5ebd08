"""Cases, coverage and unreached rules, on the real tools with policies of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runner.catalog import shared
from runner.cli import policy
from runner.cli.init import lay_out
from runner.cli.policy import compiled
from runner.errors import EXIT_INVALID, RunnerError, exit_status
from runner.gate.rules import cut
from runner.review.cases import Point, read_cases, run_cases
from runner.review.reach import reach
from runner.review.values import ABSENT, boundaries, changes, constants, fitting, plain

app = typer.Typer()
app.add_typer(policy.app, name="policy")

ALL = '@id("all") permit (principal, action, resource);\n'
FS_READ = 'principal, action == Action::"fs_read", resource'


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["policy", *map(str, arguments)])


def folder(place: Path, text: str, cases: str = "") -> Path:
    (place / "a.cedar").write_text(text)
    if cases:
        (place / "cases").mkdir(exist_ok=True)
        (place / "cases/a.toml").write_text(cases)
    return place


def unreached(place: Path, rule: str, cases: str = "") -> tuple[str, ...]:
    made = folder(place, ALL + rule, cases)
    return reach(compiled(made, None, None), [case for _, case in read_cases(made)]).unreached


@pytest.mark.parametrize(
    "condition",
    [
        "context.arguments has limit && context.arguments.limit > 98303",  # the schema's maximum
        "context.arguments has limit && context.arguments.limit == 4711",  # a constant of the rule
        'context.arguments.path like "*/secret/*"',
        'context.arguments.path == "/workspace/a\\"b"',
        'context.arguments.path like "*\\*"',
        "context.arguments has offset && !(context.arguments has limit)",
        "context.session.denied >= 1000",
        'context.session.tools.contains("shell_run")',
        'context.session.original_request like "*pay*"',
        "context.depth == 3",
        "context.peer_uid == 0",
        'principal.task == "nightly"',
        'principal == Agent::"robot"',
        'principal in Owner::"acme"',
        # Only two attributes together.
        'context.depth == 3 && context.arguments.path like "*/secret/*" && context.session.calls > 7',
    ],
)
def test_a_rule_that_some_call_reaches_is_found_to_be(tmp_path: Path, condition: str) -> None:
    rule = f'@id("r") forbid ({FS_READ}) when {{ {condition} }};'
    assert unreached(tmp_path, rule) == ()
    # The control: the same rule beside a contradiction is reached by nothing.
    assert unreached(tmp_path, rule.replace("};", "} when { context.depth < context.depth };")) == ("r",)


def test_a_rule_that_nothing_but_a_case_reaches(tmp_path: Path) -> None:
    """What no boundary and no constant is: two arguments that must be equal, and not trivially so."""
    given = "context.arguments"
    rule = (
        f'@id("r") forbid (principal, action == Action::"fs_search", resource) when {{ {given} has glob }}'
        f' when {{ {given}.glob == {given}.pattern && {given}.glob like "?*-*?" }}'
        f' unless {{ ["?-?", "?x-x?"].contains({given}.glob) }};'
    )
    assert unreached(tmp_path, rule) == ("r",)
    case = (
        '[[case]]\nname = "twice"\ntool = "fs_search"\narguments = { pattern = "?ab-c?", glob = "?ab-c?" }\n'
        'expect = { decision = "deny", rule = "r", reason = "" }\n'
    )
    assert unreached(tmp_path, rule, case) == ()


def test_check_tells_the_place_and_strict_refuses(tmp_path: Path) -> None:
    made = folder(tmp_path, ALL + f'@id("dead") forbid ({FS_READ}) when {{ 1 > 2 && context.depth > 1 }};')
    done = call("check", "--policies", made)
    assert done.exit_code == 0
    assert "unreached: dead (policies/a.cedar:2:1)" in done.output
    strict = call("check", "--strict", "--policies", made)
    assert isinstance(strict.exception, RunnerError)
    assert strict.exception.refused.field == "policies/a.cedar:2:1"
    assert exit_status(strict.exception.refused) == EXIT_INVALID
    folder(tmp_path, ALL)
    assert call("check", "--strict", "--policies", made).exit_code == 0


CASE = """\
[[case]]
name = "a read"
tool = "fs_read"
arguments = { path = "x" }
expect = { decision = "allow", rule = "all", reason = "" }
"""


def test_test_ends_with_1_when_a_case_fails(tmp_path: Path) -> None:
    made = folder(tmp_path, ALL, CASE)
    assert call("test", "--policies", made).exit_code == 0
    folder(tmp_path, ALL, CASE.replace('"allow"', '"deny"'))
    failed = call("test", "--policies", made)
    assert failed.exit_code == 1
    assert "policies/cases/a.toml:1" in failed.output
    assert "must be deny" in failed.output
    folder(tmp_path, "permit", CASE)
    broken = call("test", "--policies", made)
    assert isinstance(broken.exception, RunnerError)
    assert exit_status(broken.exception.refused) == EXIT_INVALID


def test_coverage_counts_what_cases_say_of_a_rule(tmp_path: Path) -> None:
    text = ALL + f'@id("no") forbid ({FS_READ}) when {{ context.depth > 0 }};\n@id("idle") permit ({FS_READ});'
    denied = CASE.replace('"allow", rule = "all"', '"deny", rule = "no"') + "session = { depth = 1 }\n"
    report = json.loads(call("test", "--json", "--policies", folder(tmp_path, text, CASE + denied)).output)
    counts = {row["rule"]: (row["expected"], row["decided"], row["matched"]) for row in report["coverage"]}
    assert counts == {"all": (1, 1, 2), "no": (1, 1, 1), "idle": (0, 1, 2)}
    assert report["untested"] == ["idle"]


def test_every_rule_that_holds_is_named_whoever_won(tmp_path: Path) -> None:
    """Asked in two sets, one of each effect, and one rule at a time: the same rules hold."""
    text = "".join(
        f'@id("r{number}") {effect} ({FS_READ}) when {{ context.depth > {number % 3} }};'
        for number, effect in enumerate(["permit", "forbid", "permit", "forbid", "permit", "forbid"])
    )
    served = compiled(folder(tmp_path, text), None, None)
    for depth in range(4):
        view = Point.of(tool="fs_read", arguments={"path": "x"}, profile="default").session
        point = Point.of(tool="fs_read", arguments={"path": "x"}, profile="default", session=type(view)(depth=depth))
        alone = []
        for number in range(6):
            rule = served.policies.all_rules[number].source.text.replace("forbid", "permit")
            one = compiled(folder(tmp_path, rule), None, None)
            alone += point.decide(one).rules
        assert list(point.matching(served)) == alone
    assert alone == [f"r{number}" for number in range(6)]


# --- the values themselves ---------------------------------------------------------------------------------------


def test_boundaries_of_each_kind() -> None:
    assert set(boundaries({"type": "integer", "minimum": 3, "exclusiveMaximum": 9})) == {3, 8, 0, 1}
    assert boundaries({"enum": ["a", "b"], "type": "string"})[:2] == ["a", "b"]
    assert boundaries({"type": "boolean"}) == [False, True]
    assert {len(each) for each in boundaries({"type": "string", "minLength": 2, "maxLength": 5})} == {1, 2, 5}
    assert [] in boundaries({"type": "array", "items": {"type": "integer"}})
    assert boundaries({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})[0] == {"a": 1}
    assert boundaries(True) == []


def test_every_shipped_tool_has_a_plain_call() -> None:
    served = compiled(None, None, None)
    for manifest in served.tools.values():
        found = plain(served, manifest)
        assert found is not None, manifest.id
        assert set(found.question.arguments) == set(manifest.parameters.get("required", ()))
    assert fitting({"type": "string", "enum": ["file", "tree"]}) == ["file", "tree"]
    assert fitting({"type": "string", "pattern": "^0?[0-7]{3}$", "default": "644"}) == ["644"]


def test_constants_of_a_rule() -> None:
    text = (
        '@id("a") @reason("no") permit (principal == Agent::"bot", action, resource) when {\n'
        '  // "a comment"\n  context.arguments.p like "a*\\*\\u{e9}" && context.n > -5 && principal.task == "t\\n" &&\n'
        '  context.r.lessThan(decimal("1.5")) };'
    )
    (source,) = cut("a.cedar", text.encode())
    found = constants(source)
    assert (found.strings, found.patterns) == (["t\n"], ["a*\\*\\u{e9}"])
    assert found.texts() == ["t\n", "a*é", "ax*é"]
    assert found.texts("bc")[3:] == ["abc*é"]
    assert found.longs == [-6, -5, -4]
    assert found.decimals == [1.4999, 1.5, 1.5001]
    assert (found.entities, found.principal) == ({"Agent": ["bot"]}, {"task"})


def test_a_change_is_one_change() -> None:
    served = compiled(None, None, None)
    point = Point.of(tool="fs_write", arguments={"path": "a/.git/b", "content": "x", "append": True}, profile="default")
    found = list(changes(point, served))
    assert ("arguments", "append") in {change.place for change in found if change.new is ABSENT}
    assert "a/b" in {change.new for change in found if change.place == ("arguments", "path")}
    for change in found:
        other = change.onto(point)
        differing = [
            name
            for name in {*point.question.arguments, *other.question.arguments}
            if point.question.arguments.get(name) != other.question.arguments.get(name)
        ]
        assert len(differing) == (change.place[0] == "arguments")
        assert other != point
    assert len(
        {(change.place, json.dumps(change.new) if change.new is not ABSENT else None) for change in found}
    ) == len(found)


def test_the_shipped_bundle_is_reached_and_tested_whole() -> None:
    served = compiled(None, None, None)
    cases = read_cases(shared("policies"))
    found = reach(served, [case for _, case in cases])
    assert (found.unreached, found.bare, found.cut) == ((), (), ())
    assert not [result.place for result in run_cases(cases, served) if result.difference]


def test_a_schema_for_editors_lies_beside_the_policies_and_is_no_part_of_them(tmp_path: Path) -> None:
    made = folder(tmp_path, ALL)
    before = compiled(made, None, None).policies.digest
    assert call("schema", "--write", "--policies", made).exit_code == 0
    text = (made / "runner.cedarschema").read_text()
    assert 'action "fs_read"' in text
    assert compiled(made, None, None).policies.digest == before
    assert "policy schema --write" not in call("check", "--policies", made).output
    (made / "runner.cedarschema").write_text(text + "\n")
    assert "policy schema --write" in call("check", "--policies", made).output
    (made / "other.cedarschema").write_text(text)
    assert isinstance(call("check", "--policies", made).exception, RunnerError)  # what is not known is refused


def test_a_new_folder_has_the_schema_of_its_tools(tmp_path: Path) -> None:
    written = lay_out(tmp_path / "new")
    assert tmp_path / "new/policies/runner.cedarschema" in written
    where = [f"--{name}={tmp_path / 'new' / name}" for name in ("policies", "tools", "profiles")]
    assert json.loads(call("check", "--json", *where).output)["schema_stale"] is False
    tool = tmp_path / "new/tools/fs_list/tool.toml"
    text = tool.read_text()
    assert "properties.recursive]" in text
    tool.write_text(text.replace("properties.recursive]", "properties.deep]"))
    assert json.loads(call("check", "--json", *where).output)["schema_stale"] is True


@pytest.mark.parametrize(
    "text", ["case = 3\n", 'case = ""\n', "case = []\n", "[case]\n", CASE + "[other]\n", 'note = """\n[[case]]\n"""\n']
)
def test_a_file_of_cases_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Never run would read as holding."""
    done = call("test", "--policies", folder(tmp_path, ALL, text))
    assert isinstance(done.exception, RunnerError)
    assert done.exception.refused.field == "policies/cases/a.toml"


@pytest.mark.parametrize("head", ["[[case]] # why", "  [[case]]", "[[ case ]]"])
def test_a_case_is_found_however_its_head_is_written(tmp_path: Path, head: str) -> None:
    made = folder(tmp_path, ALL, CASE.replace("[[case]]", head))
    assert (
        json.loads(call("test", "--json", "--policies", made).output)["cases"][0]["place"] == "policies/cases/a.toml:1"
    )


@pytest.mark.parametrize("name", ["more.TOML", "more", "more.toml~"])
def test_a_case_that_would_not_be_run_is_refused(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path, ALL, CASE)
    Path(made, "cases", ".hidden").write_text("")
    assert call("test", "--policies", made).exit_code == 0
    Path(made, "cases", name).write_text(CASE)
    done = call("test", "--policies", made)
    assert isinstance(done.exception, RunnerError)
    assert done.exception.refused.field == f"policies/cases/{name}"


def test_a_tool_whose_cases_are_long_is_asked_about_less_often_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f'{ALL}@id("dead") forbid ({FS_READ}) when {{ context.depth < context.depth }};'
    made = folder(tmp_path, dead, CASE.replace('"x"', '"' + "x/" * 2000 + '"'))
    whole = json.loads(call("check", "--json", "--policies", made).output)["reach"]
    assert (whole["unreached"], whole["cut"]) == (["dead"], [])
    monkeypatch.setattr("runner.review.reach._MOST_TEXT", 50_000)
    less = json.loads(call("check", "--json", "--policies", made).output)["reach"]
    assert (less["unreached"], less["cut"]) == (["dead"], ["fs_read"])
    assert less["asked"] < whole["asked"]
