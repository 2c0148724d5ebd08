"""`runner egress explain`, and what `tool` and `profile` say of destinations and secrets, to people and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runner.cli import credentials
from runner.cli.commands import app
from runner.errors import EXIT_REFUSED, RunnerError
from runner.token.keys import SigningKey, generate

PROFILE = """
[[egress]]
name = "apis"
host = "*.example.com"
up = "1MiB"
rate = 60

[[egress]]
name = "db"
host = "10.0.0.7"
ports = [5432]
protocol = "tcp"
addresses = ["10.0.0.0/24"]

[[egress]]
name = "plain"
host = "plain.example.com"
protocol = "http"
"""
TOOL = """
[[egress]]
name = "api"
host = "api.example.com"
tls = "inspect"
methods = ["GET"]
paths = ["/v1/*"]

[[egress]]
name = "files"
host = "files.example.com"

[[egress]]
name = "db"
host = "10.0.0.7"
ports = [5432]
protocol = "tcp"
addresses = ["10.0.0.7/32"]

[[egress]]
name = "plain"
host = "plain.example.com"
protocol = "http"
methods = ["GET"]

[[secrets]]
name = "api-key"
variable = "API_KEY"
destinations = ["api"]
places = ["header:Authorization"]
"""
POLICY = """
@id("out") @reason("as allowed") permit (principal, action == Action::"egress", resource);
@id("no-night") @reason("not that agent") forbid (principal == Agent::"night", action, resource);
"""


@pytest.fixture
def config(folders: Any) -> Path:
    """A configuration with a catalogue of its own."""
    for path, text in (("profiles/base.toml", PROFILE), ("tools/count/tool.toml", TOOL)):
        folders.write(path, (folders.root / path).read_text() + text)
    folders.write("policies/base.cedar", POLICY)
    return folders.write("runner.toml", 'profiles = "profiles"\ntools = "tools"\npolicies = "policies"\n')


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if isinstance(result.exception, RunnerError):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def explain(config: Path, url: str, *more: str | Path, status: int = 0) -> dict[str, Any]:
    where = ("--tool", "count", "--profile", "base", "--config", config)
    found: dict[str, Any] = json.loads(run("egress", "explain", url, *where, *more, "--json", status=status))
    return found


ALLOWED = [
    ("https://API.example.com/v1/x?y", (), "full", "https", ("profile base/apis", "tool count/api")),
    ("https://files.example.com/any", (), "opaque", "https", ("profile base/apis", "tool count/files")),
    ("tcp://10.0.0.7:5432", (), "opaque", "tcp", ("profile base/db", "tool count/db")),
    ("http://plain.example.com/a", (), "head", "http", ("profile base/plain", "tool count/plain")),
]


@pytest.mark.parametrize(("url", "more", "visibility", "protocol", "rules"), ALLOWED)
def test_what_may_go_out(
    config: Path, url: str, more: tuple[str, ...], visibility: str, protocol: str, rules: tuple[str, ...]
) -> None:
    found = explain(config, url, *more)
    assert (found["allowed"], found["decides"]) == (True, "")
    assert (found["request"]["visibility"], found["request"]["protocol"]) == (visibility, protocol)
    parts = {each["part"]: each for each in found["parts"]}
    assert tuple(parts["profile base"]["rules"] + parts["tool count"]["rules"]) == rules
    assert parts["policy"]["rules"] == ["out"]
    assert not parts["token"]["asked"]
    assert found["inspect"] is (visibility == "full")
    assert bool(found["secrets"]) is (visibility == "full")


DENIED = [
    ("https://api.example.com/v2/x", (), "tool count", "does not allow this path"),
    ("https://api.example.com/v1/x", ("--method", "PUT"), "tool count", "does not allow PUT"),
    ("https://www.example.com/", (), "tool count", "no rule for host"),
    ("https://a.b.example.com/", (), "profile base", "no rule for host"),
    ("https://api.example.com:8443/", (), "profile base", "not for port 8443"),
    ("http://api.example.com/", (), "profile base", "not for http"),
    ("https://127.0.0.1/", (), "profile base", "no rule for host"),
    ("tcp://files.example.com:443", (), "profile base", "not for tcp"),
]


@pytest.mark.parametrize(("url", "more", "decides", "why"), DENIED)
def test_which_part_decides_and_what_it_lacks(
    config: Path, url: str, more: tuple[str, ...], decides: str, why: str
) -> None:
    found = explain(config, url, *more, status=EXIT_REFUSED)
    assert (found["allowed"], found["decides"]) == (False, decides)
    (part,) = [each for each in found["parts"] if each["part"] == decides]
    assert why in part["reason"]
    assert "[[egress]]" in part["missing"]
    assert found["secrets"] == []
    shown = run(
        *("egress", "explain", url, "--tool", "count", "--profile", "base", "--config", config, *more),
        status=EXIT_REFUSED,
    )
    assert f"{decides} decides" in shown
    assert f"{decides} lacks:" in shown


def test_what_the_missing_rule_allows_once_it_is_there(config: Path, folders: Any) -> None:
    url = "https://www.example.com/a/b"
    missing = explain(config, url, status=EXIT_REFUSED)["parts"][1]["missing"]
    assert missing.splitlines()[0] == "# tools/count/tool.toml"
    folders.write("tools/count/tool.toml", (folders.root / "tools/count/tool.toml").read_text() + "\n" + missing + "\n")
    assert explain(config, url)["allowed"]


@pytest.mark.parametrize(("path", "tool_allows"), [("/v1/x", True), ("/v2/x", False)])
def test_what_a_profile_does_not_name_is_judged_as_the_tool_s_rule_reads_it(
    config: Path, folders: Any, path: str, tool_allows: bool
) -> None:
    """Not as a tunnel that hides what the tool judges: once the profile lets it be, it is opened."""
    url = f"https://api.example.com{path}"
    folders.edit("profiles/base.toml", '"*.example.com"', '"files.example.com"')
    found = explain(config, url, status=EXIT_REFUSED)
    assert found["decides"] == "profile base"
    assert (found["request"]["visibility"], found["request"]["path"], found["inspect"]) == ("full", path, True)
    profile, tool = found["parts"][:2]
    assert (tool["allowed"], tool["reason"]) == (
        tool_allows,
        "" if tool_allows else "tool count/api does not allow this path",
    )
    folders.write("profiles/base.toml", (folders.root / "profiles/base.toml").read_text() + "\n" + profile["missing"])
    assert explain(config, url, status=0 if tool_allows else EXIT_REFUSED)["allowed"] is tool_allows
    opaque = explain(config, "https://www.example.com/", status=EXIT_REFUSED)  # that no rule of any part reads
    assert opaque["request"]["visibility"] == "opaque"


def test_a_tool_that_the_profile_does_not_hold_is_added_to_it_or_had_from_another(config: Path, folders: Any) -> None:
    text = (folders.root / "profiles/base.toml").read_text()
    folders.write("profiles/bare.toml", text.replace('name = "base"', 'name = "bare"').replace('"count", ', ""))
    for holder, there in (("base", True), ("none", False)):
        if not there:
            folders.write("profiles/base.toml", text.replace('"count", ', ""))
        with pytest.raises(RunnerError) as caught:
            explain(config, "https://api.example.com/v1/x", "--profile", "bare")
        refused = caught.value.refused
        assert refused.code == "not_granted"
        assert "`tools` in profiles/bare.toml" in refused.next_step
        assert refused.next_step.endswith(f"a profile that does: {holder}")


def token(place: Path, tools: dict[str, Any], agent: str = "a", profile: str = "base") -> Path:
    wish = credentials.Wish(
        agent=agent, owner="o", task="t", session="s", profile=profile, tools=tools, ttl_s=60, depth=0, audience=""
    )
    text, _ = credentials.mint(wish, SigningKey(generate()), "https://issuer.example", SigningKey(generate()).public)
    path = place / "token"
    path.write_text(text)
    return path


def test_a_token_is_one_of_the_parts(config: Path, tmp_path: Path) -> None:
    url, any_ = "https://api.example.com/v1/x", {"constraint_type": "wildcard"}
    here = {"host": {"constraint_type": "exact", "value": "api.example.com"}, "*": any_}
    assert explain(config, url, "--token", token(tmp_path, {"egress": {}}))["allowed"]
    assert explain(config, url, "--token", token(tmp_path, {"egress": here}))["allowed"]
    for tools, asked, rule in (
        ({"count": {}}, url, "token:tools"),
        ({"egress": here}, "https://files.example.com/", "token:host:exact"),
        (
            {"egress": {"path": {"constraint_type": "path_containment", "root": "/v1"}, "*": any_}},
            "https://files.example.com/v1/x",
            "token:path:opaque",
        ),
    ):
        found = explain(config, asked, "--token", token(tmp_path, tools), status=EXIT_REFUSED)
        assert found["decides"] == "token"
        (part,) = [each for each in found["parts"] if each["part"] == "token"]
        assert part["rules"] == [rule]
        assert part["missing"]


def test_the_policies_are_asked_about_the_token_s_agent(config: Path, tmp_path: Path) -> None:
    night = token(tmp_path, {"egress": {}}, agent="night")
    found = explain(config, "https://files.example.com/", "--token", night, status=EXIT_REFUSED)
    assert found["decides"] == "policy"
    assert [each["rules"] for each in found["parts"] if each["part"] == "policy"] == [["no-night"]]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://a@api.example.com/", "egress"),
        ("https://api.example.com/../x", "egress"),
        ("https://0x7f.1/", "egress"),
        ("ftp://api.example.com/", "egress"),
        ("tcp://api.example.com", "egress"),
        ("api.example.com", "egress"),
    ],
)
def test_what_is_no_url_is_said_to_be_none(config: Path, url: str, code: str) -> None:
    with pytest.raises(RunnerError) as caught:
        explain(config, url)
    assert (caught.value.refused.code, caught.value.refused.field) == (code, "URL")


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--tool", "none"), "unknown_tool"), (("--tool", "count", "--profile", "night"), "profile")],
)
def test_names_that_nobody_has(config: Path, options: tuple[str, ...], code: str) -> None:
    with pytest.raises(RunnerError) as caught:
        run("egress", "explain", "https://api.example.com/", *options, "--config", config)
    assert caught.value.refused.code == code


def test_profiles_and_tools_are_explained_in_words(config: Path, folders: Any) -> None:
    profiles = ("--profiles", folders.root / "profiles", "--tools", folders.root / "tools")
    said = json.loads(run("profile", "check", *profiles, "--json"))["profiles"]["base (task)"]
    assert [line for line in said if "leave through egress alone" in line]
    assert [line for line in said if "apis: https to one name below example.com port 443; opaque" in line]
    assert [line for line in said if "db: tcp to 10.0.0.7 port 5432" in line and "10.0.0.0/24" in line]
    assert "secrets reach its tools by inject" in said
    assert not [line for line in said if "never lets out" in line]
    assert "*.example.com" in run("profile", "show", "base", *profiles)
    checked = json.loads(run("tool", "check", "count", *profiles, "--json"))["tools"][0]
    assert checked["egress"][0] == "api: https to api.example.com port 443; egress reads it: GET of /v1/*"
    assert checked["secrets"] == [
        "api-key: the tool holds a placeholder in API_KEY; the value goes in by rule api at header:authorization"
    ]
    for command in (("tool", "check"), ("tool", "show", "count")):
        assert "placeholder in API_KEY" in " ".join(run(*command, *profiles).split())
    shown = json.loads(run("tool", "show", "count", *profiles, "--json"))
    assert shown["egress"][0]["host"] == "api.example.com"


def test_a_profile_says_which_of_its_tools_destinations_it_never_lets_out(config: Path, folders: Any) -> None:
    profiles = ("--profiles", folders.root / "profiles", "--tools", folders.root / "tools")
    folders.edit("profiles/base.toml", '"*.example.com"', '"api.example.com"')
    folders.edit("profiles/base.toml", "ports = [5432]", "ports = [5433]")
    said = json.loads(run("profile", "check", *profiles, "--json"))["profiles"]["base (task)"]
    assert [line.partition("rule ")[2] for line in said if "never lets out" in line] == [
        "`files`: no rule here opens files.example.com",
        "`db`: no rule here opens 10.0.0.7",
    ]


def test_the_help_has_examples() -> None:
    shown = run("egress", "explain", "--help")
    assert "Example: runner egress explain" in shown
    assert "Exit status" in shown
