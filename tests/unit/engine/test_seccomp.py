"""The filter file: what `validate` accepts, what it refuses, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.engine.seccomp import CONDITIONAL, NEVER, compact, explain, validate
from runner.errors import RunnerError

DEFAULT = Path(__file__).parents[3] / "profiles/seccomp/default.json"


def filter_with(**change: Any) -> bytes:
    rule = {"group": "g", "names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "bytes in"}
    whole = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "groups": {"g": {"for": "reading", "opens": "read paths"}},
        "syscalls": [rule],
    }
    return json.dumps({**whole, **change}).encode()


def rule_with(**change: Any) -> bytes:
    rule = {"group": "g", "names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "bytes in", **change}
    return filter_with(syscalls=[{key: value for key, value in rule.items() if value is not None}])


def test_the_filter_of_the_package_is_valid_and_gives_a_reason_for_every_rule():
    validate(DEFAULT.read_bytes())
    assert all(len(rule["comment"]) > 8 for rule in json.loads(DEFAULT.read_bytes())["syscalls"])


def test_a_small_filter_is_valid():
    validate(filter_with())
    validate(rule_with(names=["clone3"], action="SCMP_ACT_ERRNO", errnoRet=38))
    validate(rule_with(names=["socket"], args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "object|array"),
        (b'{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}', "twice"),
        (filter_with(defaultAction="SCMP_ACT_ALLOW"), "refuses the rest"),
        (filter_with(defaultAction="SCMP_ACT_LOG"), "refuses the rest"),
        (filter_with(architectures=[]), "second way in"),
        (filter_with(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]), "second way in"),
        (filter_with(archMap=[]), "unknown field"),
        (rule_with(comment=None), "states its reason"),
        (rule_with(comment="  "), "states its reason"),
        (rule_with(group=None), "every rule belongs to one"),
        (rule_with(group="h"), "every rule belongs to one"),
        (filter_with(groups={"g": {"for": "reading", "opens": " "}}), "what it `opens`"),
        (filter_with(groups={"g": {"for": "", "opens": "read paths"}}), "what it is `for`"),
        (filter_with(groups={name: {"for": "f", "opens": "o"} for name in "gh"}), "no rule belongs to it"),
        (filter_with(groups={"g": {"opens": "o"}}), "missing required field"),
        (rule_with(names=[]), "names no system call"),
        (rule_with(action="SCMP_ACT_LOG"), "is not SCMP_ACT_ALLOW"),
        (rule_with(action="SCMP_ACT_ERRNO"), "would mean nothing"),
        (rule_with(includes={}), "unknown field"),
        (rule_with(args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]), "argument 6"),
        (rule_with(args=[{"index": 0, "value": 0, "op": "SCMP_CMP_XX"}]), "SCMP_CMP_XX"),
        (rule_with(args=[{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}] * 2), "would allow either"),
    ],
)
def test_a_wrong_filter_is_refused_with_the_reason(text, why):
    with pytest.raises(RunnerError, match=why) as refused:
        validate(text, "seccomp/mine.json")
    assert refused.value.refused.code == "profile"
    assert refused.value.refused.field.startswith("seccomp/mine.json")


@pytest.mark.parametrize("name", sorted(NEVER))
def test_no_operator_can_open_what_reaches_the_host(name):
    with pytest.raises(RunnerError, match="never allowed"):
        validate(rule_with(names=["read", name]))


@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_some_calls_need_a_condition(name):
    with pytest.raises(RunnerError, match="needs a condition"):
        validate(rule_with(names=[name]))


def test_compact_keeps_every_rule_and_drops_the_prose():
    found = json.loads(compact(DEFAULT.read_bytes()))
    whole = json.loads(DEFAULT.read_bytes())
    assert [rule["names"] for rule in found["syscalls"]] == [rule["names"] for rule in whole["syscalls"]]
    assert not any({"comment", "group"} & set(rule) for rule in found["syscalls"])
    assert set(found) == {"defaultAction", "architectures", "syscalls"}


def test_every_call_of_the_package_s_filter_is_explained_by_one_group():
    text = DEFAULT.read_bytes()
    groups = explain(text)
    rules = json.loads(text)["syscalls"]
    allowed = {call for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for call in rule["names"]}
    listed = [call for group in groups for call in group.allowed]
    assert sorted(listed) == sorted(allowed)  # each once
    assert {call for group in groups for call in (*group.allowed, *group.refused)} == {
        call for rule in rules for call in rule["names"]
    }
    assert all(len(group.purpose) > 15 and len(group.opens) > 15 for group in groups)
    conditional = {call for group in groups for call in group.conditional}
    assert conditional >= CONDITIONAL - {"clone3"}
    assert not NEVER & allowed
