"""`runner policy explain` and `diff` on calls that a real daemon recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.catalog import shared
from runner.cli.init import lay_out
from runner.client.errors import CallError
from runner.ledger import entry as entries

pytestmark = pytest.mark.docker


def test_recorded_calls_are_explained_and_compared(
    make_daemon: Callable[..., Daemon], tmp_path: Path, runner: Any
) -> None:
    lay_out(tmp_path / "catalogue")
    policies = tmp_path / "catalogue/policies"
    daemon = make_daemon(catalogue=tmp_path / "catalogue")
    with daemon.connect(tools={"fs_write": {}, "fs_read": {}, "shell_run": {}}) as agent:
        agent.call("fs_write", {"path": "a.txt", "content": "x"})
        agent.call("fs_read", {"path": "a.txt"})
        for tool, arguments in (("fs_write", {"path": ".git/config", "content": "x"}), ("fs_list", {})):
            with pytest.raises(CallError):
                agent.call(tool, arguments)
        agent.call("shell_run", {"argv": ["true"]})

    def recorded() -> list[entries.Call]:
        return list(daemon.entries(entries.Call))

    daemon.wait(lambda: len(recorded()) == 5, 10)
    by_tool = {(call.tool, call.decision.effect): call.call for call in recorded()}

    def explained(call: str, *more: object) -> Any:
        return json.loads(runner("policy", "explain", call, "--state", daemon.state, "--json", *more).stdout)

    denied = explained(by_tool["fs_write", "deny"])
    assert denied["decided_again_the_same"]
    assert (denied["now"]["rules"], denied["smallest"]["change"]["new"]) == (["git-internals"], "config")
    refused = explained(by_tool["fs_list", "deny"])
    assert (refused["recorded"]["policy"], refused["now"]["decision"]) == (
        "",
        "allow",
    )  # the token's word, not policy's
    last = explained(by_tool["shell_run", "allow"])
    assert last["decided_again_the_same"]
    session = {change["change"]["field"]: change["change"].get("old") for change in last["flips"]}
    assert session["session.denied"] == 2  # counted again from the ledger: one by policy, one by the token

    # The catalogue of that time explains it, whatever lies in the folder now; named folders are asked instead.
    text = (policies / "base.cedar").read_text()
    permit = 'permit (principal, action in Action::"low", resource)'
    assert permit in text
    (policies / "base.cedar").write_text(
        text.replace(permit, permit.replace("principal", 'principal == Agent::"no"', 1))
    )
    assert explained(by_tool["fs_read", "allow"])["decided_again_the_same"]
    now = explained(by_tool["fs_read", "allow"], "--policies", policies)
    assert (now["decided_again_the_same"], now["now"]["decision"]) == (False, "deny")
    assert now["smallest"]["change"]["field"] == "principal.agent"

    found = json.loads(runner("policy", "diff", shared("policies"), policies, "--state", daemon.state, "--json").stdout)
    assert found["calls"]["asked"] == 4
    assert found["calls"]["counts"] == {"allow → deny": 1}
    assert found["calls"]["left_out"] == {"the token refused it, and no policy was asked": 1}
    assert [each["place"] for each in found["calls"]["differences"]] == [by_tool["fs_read", "allow"]]
    assert daemon.verifies()
