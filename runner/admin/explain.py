"""What a live task's calls may reach, as gate knows it now: facts, and the word of token and policy. Changes nothing.

Gate does not judge by allowlists: egress does. Whoever asks gets them, and judges by the same function.
"""

from __future__ import annotations

from runner.catalog.egress import allowlists
from runner.errors import refuse
from runner.gate import egress
from runner.gate.parts import Parts
from runner.gate.schema import EGRESS
from runner.gate.tasks import Task
from runner.model import Decision
from runner.wire import admin
from runner.wire.egress import Requested


def explain(parts: Parts, asked: admin.ExplainEgress) -> admin.EgressView:
    """The facts, and with a request the two words. Raises `RunnerError` (arguments, unknown_tool, not_granted)."""
    serving, task = parts.serving, parts.tasks.live.get(asked.task)
    if task is None:
        raise refuse(
            "arguments", f"there is no live task `{asked.task[:64]}`", field="task", next_step="see `runner task list`"
        )
    profile = serving.task_profiles[task.profile]
    tools = tuple(name for name in profile.tools if serving.tools[name].egress)
    step = f"name one of: {', '.join(tools)}" if tools else "none of its tools has a network: nothing of it goes out"
    tool = asked.tool or (tools[0] if len(tools) == 1 else "")
    if not tool:
        raise refuse("arguments", "which tool?", field="tool", next_step=step)
    if tool not in serving.tools:
        raise refuse("unknown_tool", f"no tool `{tool[:64]}`", field="tool", next_step=step)
    if tool not in profile.tools:
        reason = f"the task's profile `{profile.name}` does not hold tool `{tool}`"
        step = f"add it to `tools` in profiles/{profile.name}.toml, reload and begin a new task; in this one, {step}"
        raise refuse("not_granted", reason, field="tool", next_step=step)
    manifest, request = serving.tools[tool], asked.request
    view = admin.EgressView(
        task=task.id,
        tool=tool,
        profile=profile.name,
        tools=tools,
        allowlists=allowlists(profile, manifest),
        secrets=manifest.secrets,
    )
    if request is None:
        return view
    return admin.EgressView(
        **{name: getattr(view, name) for name in view.__struct_fields__ if name not in ("token", "policy")},
        token=_token(task, request),
        policy=_policy(parts, task, tool, request),
    )


def _token(task: Task, request: Requested) -> admin.EgressWord:
    if task.granted is None:
        return admin.EgressWord(
            asked=False, reason="no holder of the task's token has connected since the daemon started"
        )
    denied = egress.beyond(task.granted, request)
    if denied is None:
        return admin.EgressWord(allowed=True, reason="the root token's capability egress grants this")
    return _word(denied)


def _policy(parts: Parts, task: Task, tool: str, request: Requested) -> admin.EgressWord:
    asked = egress.Outward(
        principal=task.principal, tool=tool, profile=task.profile, peer_uid=task.uid, request=request
    )
    session = task.context.view("", 0)
    return _word(egress.decide(asked, {EGRESS: {}}, session, parts.serving.policies))  # the token has its own word


def _word(decision: Decision) -> admin.EgressWord:
    allowed = decision.effect == "allow"
    reason = decision.reason if allowed else f"{decision.effect}: {decision.reason}"
    return admin.EgressWord(allowed=allowed, rules=decision.rules, reason=reason, missing=decision.allowed)
