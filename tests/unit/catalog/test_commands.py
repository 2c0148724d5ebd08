"""`runner policy`, `runner tool`, `runner profile` and `runner init`, as a person and a program see them."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runner.catalog import compile_bundle, compile_tool, read_bundle, shared
from runner.cli import init, policy, profile, tool
from runner.config import load_config
from runner.errors import EXIT_INVALID, Refusal, RunnerError, exit_status

app = typer.Typer()
app.add_typer(policy.app, name="policy")
app.add_typer(tool.app, name="tool")
app.add_typer(profile.app, name="profile")
app.command("init")(init.init)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=True)
    if result.exception:
        raise result.exception
    return result.output


def refused(*arguments: str | Path) -> Refusal:
    with pytest.raises(RunnerError) as caught:
        run(*arguments)
    assert exit_status(caught.value.refused) == EXIT_INVALID
    return caught.value.refused


def where(folders: Any) -> list[str]:
    names = ("profiles", "tools", "policies")
    return [part for name in names for part in (f"--{name}", str(folders.root / name))]


@pytest.mark.parametrize(
    "command",
    [
        "policy check",
        "policy test",
        "policy schema",
        "tool list",
        "tool show",
        "tool check",
        "tool new",
        "profile list",
        "profile show",
        "profile check",
    ],
)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    text = run(*command.split(), "--help")
    assert f"Example: runner {command}" in " ".join(text.split())
    assert "--json" in text


# --- policy ------------------------------------------------------------------------------------------------


CASE = """
[[case]]
name = "reads"
tool = "count"
profile = "base"
arguments = { path = "x" }
expect = { decision = "allow", rule = "all", reason = "all permits" }
"""


def test_policy_check_runs_cases(folders: Any) -> None:
    folders.write("policies/cases/a.toml", CASE)
    assert "1 of 1 cases hold" in run("policy", "check", *where(folders))
    report = json.loads(run("policy", "check", "--json", *where(folders)))
    assert (report["failed"], report["rules"], report["untested"]) == (0, ["all"], [])
    assert report["cases"][0]["place"] == "policies/cases/a.toml:2"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"allow"', '"deny"', "is allow"),
        ('rule = "all"', 'rule = "some"', "must be some"),
        ('rule = "all", ', "", "must be no rule"),
        ("all permits", "all forbids", "must say"),
        ('reason = "all permits"', 'reason = "", code = "denied"', "must have denied"),
        ('tool = "count"', 'tool = "none"', "is deny"),
    ],
)
def test_a_case_that_fails_is_named_with_its_line(folders: Any, old: str, new: str, says: str) -> None:
    folders.write("policies/cases/a.toml", "# first line\n" + CASE.replace(old, new))
    found = refused("policy", "check", *where(folders))
    assert (found.code, found.field) == ("policy", "policies/cases/a.toml:3")
    assert says in found.reason


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        (CASE.replace("tool =", "tol ="), "policies/cases/a.toml:4", "unknown field `tol`"),
        (CASE + CASE.replace("tool =", "tol ="), "policies/cases/a.toml:11", "unknown field `tol`"),
        (CASE.replace('"allow"', '"maybe"'), "policies/cases/a.toml:2", "Invalid enum value"),
        (CASE + CASE + "session = { calls = 1, mood = 2 }\n", "policies/cases/a.toml:9", "unknown field `mood`"),
        (CASE + "[[case]]\nname = 'x'\n", "policies/cases/a.toml:8", "missing required field"),
        (CASE + "[other]\n", "policies/cases/a.toml", "nothing else"),
        ("", "policies/cases/a.toml", "[[case]]"),
        ("[[case]\n", "policies/cases/a.toml:1", "not TOML"),
    ],
)
def test_a_broken_case_file(folders: Any, text: str, field: str, says: str) -> None:
    folders.write("policies/cases/a.toml", text)
    found = refused("policy", "check", *where(folders))
    assert found.field == field
    assert says in found.reason


def test_policy_check_names_the_broken_rule(folders: Any) -> None:
    folders.write("policies/base.cedar", "permit(principal, action, resource);")
    assert refused("policy", "check", *where(folders)).field == "policies/base.cedar:1:1"


def test_rules_without_a_case_are_told(folders: Any) -> None:
    assert "rules without a case: all" in run("policy", "check", *where(folders))


def test_policy_schema(folders: Any) -> None:
    text = run("policy", "schema", *where(folders)[:4])
    assert '"mode"?: String' in text
    assert 'action "sh" in [Action::"high", Action::"any"]' in text


# --- tool --------------------------------------------------------------------------------------------------


def test_tool_list_show_check(folders: Any) -> None:
    options = where(folders)[:4]
    assert {"count", "sh"} <= set(run("tool", "list", *options).split())
    assert [each["id"] for each in json.loads(run("tool", "list", "--json", *options))] == ["count", "sh"]
    assert "argv: Set<String>, argv_text: String" in run("tool", "show", "sh", *options)
    shown = json.loads(run("tool", "show", "count", "--json", *options))
    assert shown["policy"] == {"path": "String", "mode": "String"}
    assert "2 tools are whole" in run("tool", "check", *options)
    assert "1 tools are whole" in run("tool", "check", "sh", *options)


def test_a_tool_need_not_be_listed_by_a_profile_to_be_checked(folders: Any) -> None:
    (folders.root / "profiles/base.toml").unlink()
    assert "2 tools are whole" in run("tool", "check", *where(folders)[:4])


def test_tool_check_of_a_broken_tool(folders: Any) -> None:
    folders.edit("tools/sh/tool.toml", '"{argv}"', '"{x}"')
    assert refused("tool", "check", *where(folders)[:4]).field == "tools/sh/tool.toml:6"


def test_an_unknown_tool_is_told_the_known_ones(folders: Any) -> None:
    with pytest.raises(RunnerError) as caught:
        run("tool", "show", "sch", *where(folders)[:4])
    assert "count, sh" in caught.value.refused.next_step


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(folders: Any) -> None:
    folders.edit("tools/sh/tool.toml", "Runs a program.", "Runs \\u001b[31m a program.")
    for command in ("list", "check"):
        assert "\x1b" not in run("tool", command, *where(folders)[:4])
    assert "\x1b" not in run("tool", "show", "sh", *where(folders)[:4])


def _call(folder: Path, arguments: dict[str, Any]) -> Any:
    return runpy.run_path(str(folder / "main.py"))["run"](SimpleNamespace(arguments=arguments))


def test_a_new_tool_is_whole_and_works(tmp_path: Path) -> None:
    run("tool", "new", "word_count", "--dir", tmp_path)
    profiles = str(shared("profiles"))
    assert "1 tools are whole" in run("tool", "check", "word_count", "--tools", tmp_path, "--profiles", profiles)
    assert _call(tmp_path / "word_count", {"text": "one two"}) == {"words": 2}


def test_a_new_tool_overwrites_nothing(tmp_path: Path) -> None:
    run("tool", "new", "word_count", "--dir", tmp_path)
    (tmp_path / "word_count/main.py").write_text("mine")
    assert "nothing is overwritten" in refused("tool", "new", "word_count", "--dir", tmp_path).reason
    assert (tmp_path / "word_count/main.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["Word", "../x", "a.b", "", "low"])
def test_a_new_tool_needs_a_name(tmp_path: Path, name: str) -> None:
    refused("tool", "new", name, "--dir", tmp_path / "tools")
    assert not (tmp_path / "tools").exists()


SOURCE = '''
import math
import os.path as p
from collections import Counter
from typing import Literal
import msgspec

HERE = 1

def whole(text: str, top: int = 3, mode: Literal["up", "down"] = "up", note: str | None = None,
          weights: list[float] = []) -> dict[str, int]:
    """Count the words "of" a text.

    With \\\\ and \\x7f in it."""
    name = p.basename("a/b")
    found = Counter(text.split()).most_common(math.floor(top))
    return {**dict(found), name: len(weights)}

async def later(x: int) -> int:
    return x

def bare(x):
    return x

def spread(*x: int) -> int:
    return 1

def uses_module(x: int) -> int:
    return x + HERE

def uses_other(x: int) -> bytes:
    return msgspec.json.encode(x)

def uses_nothing(x: int) -> int:
    return x + MISSING

class Point(msgspec.Struct):
    x: int

def takes_class(point: Point) -> int:
    return point.x

def odd(x: complex) -> int:
    return 1

def decorated(f):
    return f

@decorated
def wrapped(x: int) -> int:
    return x

def outer():
    y = 1
    def inner(x: int) -> int:
        return x + y
    return inner

closure = outer()
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sample_functions.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sample_functions", raising=False)
    return "sample_functions"


def test_a_tool_from_a_function(tmp_path: Path, module: str) -> None:
    run("tool", "new", "words", "--from", f"{module}:whole", "--dir", tmp_path / "t")
    folder = tmp_path / "t/words"
    manifest = compile_tool("words", {path.name: path.read_bytes() for path in folder.iterdir()})
    assert manifest.description.startswith('Count the words "of" a text.')
    assert "\\ and \x7f" in manifest.description
    properties = manifest.parameters["properties"]
    assert manifest.parameters["required"] == ["text"]
    assert manifest.parameters["additionalProperties"] is False
    assert properties["mode"]["enum"] in (["down", "up"], ["up", "down"])
    assert properties["top"] == {"type": "integer", "default": 3}
    assert "default" not in properties["note"]
    assert manifest.result["type"] == "object"
    assert _call(folder, {"text": "a b a", "weights": [1.5]}) == {"a": 2, "b": 1}
    assert _call(folder, {"text": "a", "top": 1, "weights": []}) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("later", "async"),
        ("bare", "no type hint"),
        ("spread", "cannot be given by name"),
        ("uses_module", "`HERE`"),
        ("uses_other", "`msgspec`"),
        ("uses_nothing", "`MISSING`"),
        ("takes_class", "class as a type"),
        ("odd", "no JSON Schema"),
        ("wrapped", "decorator"),
        ("closure", "enclosing"),
        ("absent", "not a function"),
        ("HERE", "not a function"),
        ("", "module:function"),
    ],
)
def test_a_function_that_cannot_be_a_tool(tmp_path: Path, module: str, name: str, says: str) -> None:
    assert says in refused("tool", "new", "x", "--from", f"{module}:{name}", "--dir", tmp_path / "t").reason
    assert not (tmp_path / "t").exists()


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be imported" in refused("tool", "new", "x", "--from", "no_such_module:f", "--dir", tmp_path).reason


# --- profile -----------------------------------------------------------------------------------------------


def test_profile_check_says_numbers_in_words(folders: Any) -> None:
    text = run("profile", "check", *where(folders)[:4])
    for part in ("128MiB of memory", "0.5 CPU", "64 processes", "32MiB", "30 s", "1.5 s", "socket", "count, sh"):
        assert part in text
    for part in ("data (2 calls): Reading and writing. Opens: What is open already.", "1 with conditions on their"):
        assert part in " ".join(text.split())
    assert "2 of the 3 system calls of filter base: sockets loses socket" in " ".join(text.split())
    said = json.loads(run("profile", "check", "--json", *where(folders)[:4]))
    assert said["filters"]["base"] == {
        "groups": {
            "data": {
                "for": "Reading and writing.",
                "opens": "What is open already.",
                "calls": ["read", "write"],
                "conditional": [],
                "answered": [],
            },
            "sockets": {
                "for": "Talking.",
                "opens": "The receive paths.",
                "calls": ["socket"],
                "conditional": ["socket"],
                "answered": ["clone3"],
            },
        },
        "calls": 3,
        "narrowed": {"narrow": {"sockets": ["socket"]}},
    }
    assert set(said["profiles"]) == {"base (task)", "narrow (tool)"}
    assert {wall["name"] for wall in said["host"]} >= {"landlock", "seccomp", "cgroups"}


def test_profile_check_refuses_a_filter_that_is_wrong(folders: Any) -> None:
    path = folders.root / "profiles/seccomp/base.json"
    path.write_text(path.read_text().replace('"group": "data"', '"group": "nothing"'))
    assert "'nothing' is not one of `groups`" in refused("profile", "check", *where(folders)[:4]).reason


def test_profile_list_and_show(folders: Any) -> None:
    assert "narrow" in run("profile", "list", *where(folders)[:4])
    assert len(json.loads(run("profile", "list", "--json", *where(folders)[:4]))) == 2
    shown = json.loads(run("profile", "show", "base", "--json", *where(folders)[:4]))
    assert (shown["ceilings"]["memory"], shown["ceilings"]["open_files"]) == (128 << 20, 256)
    assert "134217728" in run("profile", "show", "base", *where(folders)[:4])
    assert "base, narrow" in refused("profile", "show", "nothing", *where(folders)[:4]).next_step


# --- init --------------------------------------------------------------------------------------------------


def test_init_lays_out_a_folder_that_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new/agents"
    assert "next:" in run("init", target)
    folders = ["--profiles", target / "profiles", "--tools", target / "tools", "--policies", target / "policies"]
    assert "cases hold" in run("policy", "check", *folders)
    config, text = load_config(target / "runner.toml")
    assert compile_bundle(read_bundle(config, target / "runner.toml", text)).tools
    assert config.profiles == str(target / "profiles")


@pytest.mark.parametrize("taken", ["runner.toml", "tools/x", "policies/base.cedar"])
def test_init_overwrites_nothing_and_writes_nothing_then(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert "nothing is overwritten" in refused("init", tmp_path).reason
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / taken).read_text() == "mine"


def test_what_init_writes_as_comments_is_right_when_it_is_taken(tmp_path: Path) -> None:
    init.lay_out(tmp_path)
    path = tmp_path / "runner.toml"
    commented = re.compile(r"# (?=[a-z_]+ = |\[+[a-z.]+\]+$)")
    lines = [commented.sub("", line, count=1) for line in path.read_text().splitlines()]
    path.write_text("\n".join(line for line in lines if not line.startswith("two_person")))  # stands above sections
    config, text = load_config(path)
    assert config.egress.hosts
    assert config.egress.nameservers
    assert config.secrets.names("vault:orders")
    assert [rule.host for rule in compile_bundle(read_bundle(config, path, text)).destinations] == ["vault.example"]


def test_init_as_json(tmp_path: Path) -> None:
    written = json.loads(run("init", "--json", tmp_path / "x"))["written"]
    assert str(tmp_path / "x/runner.toml") in written
    assert all(Path(path).is_file() for path in written)
