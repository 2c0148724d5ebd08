"""What gate says of a live task's reach: its profile and tool as they are in force, its token, its policies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runner.admin.explain import explain
from runner.catalog import compile_bundle, read_folders, shared
from runner.errors import RunnerError
from runner.gate.policy import PolicyBundle
from runner.gate.tasks import Task
from runner.model import EgressRule, Principal
from runner.wire import admin
from runner.wire.egress import Requested

API = EgressRule(name="api", host="api.example.com", ports=(443,))
RULES = b"""
@id("out") @reason("all may leave") permit (principal, action == Action::"egress", resource);
@id("quiet") @reason("not after output") forbid (principal, action == Action::"egress", resource)
when { context.session.untrusted > 0 };
"""


def parts(*tools: str) -> Any:
    """Gate, in which these tools have a network and one task lives."""
    catalog = compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies")))
    networked = {name: msgspec.structs.replace(catalog.tools[name], egress=(API,)) for name in tools}
    networked["apart"] = networked[tools[0]] if tools else catalog.tools["shell_run"]
    manifests = {**catalog.tools, **networked}
    for name in catalog.tools:
        if name not in tools:
            manifests[name] = msgspec.structs.replace(catalog.tools[name], egress=())
    profile = msgspec.structs.replace(catalog.task_profiles["default"], egress=(API,))
    serving = SimpleNamespace(
        tools=manifests,
        task_profiles={"default": profile},
        policies=PolicyBundle.compile({"p.cedar": RULES}, catalog.tools),
    )
    who = Principal(agent="a", owner="o", task="t", session="s")
    task = Task(who, token="jti", profile="default", expires=0, begun=True, now=0.0)
    return SimpleNamespace(serving=serving, tasks=SimpleNamespace(live={"t": task}))


def asked(host: str = "api.example.com") -> Requested:
    return Requested(id=1, protocol="https", host=host, port=443, visibility="opaque")


def test_facts_come_first_and_words_with_a_request() -> None:
    gate = parts("shell_run")
    view = explain(gate, admin.ExplainEgress(task="t", tool=""))
    assert (view.tool, view.tools, view.profile) == ("shell_run", ("shell_run",), "default")
    assert [each.part for each in view.allowlists] == ["profile default", "tool shell_run"]
    assert (view.token.asked, view.policy.asked) == (False, False)
    view = explain(gate, admin.ExplainEgress(task="t", tool="shell_run", request=asked()))
    assert (view.policy.asked, view.policy.allowed, view.policy.rules) == (True, True, ("out",))


def test_the_token_is_the_root_s_as_its_holder_proved_it() -> None:
    gate = parts("shell_run")
    message = admin.ExplainEgress(task="t", tool="shell_run", request=asked())
    before = explain(gate, message)
    assert not before.token.asked
    assert "since the daemon started" in before.token.reason
    gate.tasks.live["t"].granted = {"shell_run": {}}
    assert (explain(gate, message).token.asked, explain(gate, message).token.allowed) == (True, False)
    gate.tasks.live["t"].granted = {"egress": {}}
    assert explain(gate, message).token.allowed


def test_the_session_is_as_it_is_now() -> None:
    gate = parts("shell_run")
    message = admin.ExplainEgress(task="t", tool="shell_run", request=asked())
    assert explain(gate, message).policy.allowed
    gate.tasks.live["t"].context.delivered("c1")
    word = explain(gate, message).policy
    assert (word.allowed, word.rules) == (False, ("quiet",))
    assert "not after output" in word.reason


@pytest.mark.parametrize(
    ("tools", "task", "tool", "code", "says", "step"),
    [
        (("shell_run",), "other", "shell_run", "arguments", "no live task", "see `runner task list`"),
        (("shell_run", "python_run"), "t", "", "arguments", "which tool", "name one of: shell_run, python_run"),
        ((), "t", "", "arguments", "which tool", "none of its tools has a network: nothing of it goes out"),
        (("shell_run",), "t", "nothing", "unknown_tool", "no tool", "name one of: shell_run"),
        (("shell_run",), "t", "apart", "not_granted", "does not hold", "add it to `tools` in profiles/default.toml"),
    ],
)
def test_what_cannot_be_told(tools: tuple[str, ...], task: str, tool: str, code: str, says: str, step: str) -> None:
    with pytest.raises(RunnerError, match=says) as caught:
        explain(parts(*tools), admin.ExplainEgress(task=task, tool=tool))
    assert caught.value.refused.code == code
    assert caught.value.refused.next_step.startswith(step)
