"""A request needs the token's word and the policies', beside the rules: each part alone denies, and is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from networked import BUDGET, HOST, OPAQUE, PLAIN, TCP, Networked
from wishes import fetch, python, talk, told

from runner.ledger import entry as entries

pytestmark = pytest.mark.docker
ANY = {"constraint_type": "wildcard"}
EACH = dict.fromkeys(("host", "port", "protocol", "method", "path"), ANY)


def exact(value: Any) -> dict[str, Any]:
    return {"constraint_type": "exact", "value": value}


def connect(host: str, port: int) -> dict[str, Any]:
    """Ask for a tunnel."""
    return {"send": f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"}


def statuses(runner: Any, *wishes: dict[str, Any] | str) -> tuple[list[int], str]:
    """What each of these requests gets, and the call."""
    done = runner.call("net_run", fetch(*wishes))
    return [each["status"] for each in told(done)], done.call


def decided(networked: Networked, call: str) -> list[tuple[str, str, str]]:
    """Who denied each request of a call, by which code and field."""
    return [(each.part, each.decision.code, each.decision.field) for each in networked.requests(call)]


def test_a_token_without_egress_reaches_nothing(networked: Networked) -> None:
    before = networked.services.dialled
    with networked.connect(tools={"net_run": {}}) as runner:
        found, call = statuses(runner, networked.url("/v1/x"), networked.url("/x", PLAIN))
        assert found == [403, 403]
        opaque = runner.call("net_run", talk(connect(OPAQUE, networked.web.port)))
        assert "the token does not grant egress" in told(opaque)[0]
        assert '"part": "token"' in told(opaque)[0]
    assert decided(networked, call) == [("token", "not_granted", "")] * 2
    assert networked.outcome(call).network.refused == 2
    assert networked.services.dialled == before
    with networked.connect(tools={"net_run": {}, "egress": {}}) as runner:
        assert statuses(runner, networked.url("/v1/x"))[0] == [200]


def test_what_a_token_says_of_host_method_and_path_is_kept(networked: Networked) -> None:
    reads = EACH | {"host": exact(HOST), "method": exact("GET"), "path": exact("/v1/mine")}
    with networked.connect(tools={"net_run": {}, "egress": reads}) as runner:
        found, call = statuses(
            runner,
            networked.url("/v1/mine?page=2"),
            networked.url("/v1/other"),
            {"url": networked.url("/v1/mine"), "method": "POST", "body": "x"},
            networked.url("/v1/mine", PLAIN),
        )
        assert found == [200, 403, 403, 403]
    assert decided(networked, call) == [
        ("", "", ""),
        ("token", "constraint", "path"),
        ("token", "constraint", "method"),
        ("token", "constraint", "host"),
    ]
    assert len(networked.web.seen) == 1
    assert not networked.plain.seen


def test_what_a_token_says_of_paths_cannot_be_kept_in_an_opaque_tunnel_so_there_is_none(networked: Networked) -> None:
    tcp = connect(TCP, networked.tcp.port) | {"then": "x", "half": True}
    for limits, answer in ((EACH | {"path": exact("/v1/mine")}, " 403 "), (EACH, " 200 ")):
        before = networked.tcp.dialled
        with networked.connect(tools={"net_run": {}, "egress": limits}) as runner:
            done = runner.call("net_run", talk(tcp))
            assert answer in told(done)[0]
        allowed = answer == " 200 "
        assert networked.tcp.dialled - before == allowed
        assert decided(networked, done.call) == [("", "", "") if allowed else ("token", "constraint", "path")]


def test_a_derived_token_reaches_less(networked: Networked) -> None:
    tools = {"net_run": {}, "egress": EACH}
    with networked.connect(tools=tools, depth=1) as runner:
        narrow = runner.attenuate({"net_run": {}, "egress": EACH | {"path": exact("/v1/mine")}})
        bare = runner.attenuate({"net_run": {}})
        own, _ = statuses(runner, networked.url("/v1/mine"), networked.url("/v1/other"))
        assert own == [200, 200]
    with networked.daemon.connect(narrow) as child:
        found, call = statuses(child, networked.url("/v1/mine"), networked.url("/v1/other"))
        assert found == [200, 403]
        assert decided(networked, call)[1] == ("token", "constraint", "path")
    with networked.daemon.connect(bare) as child:
        assert statuses(child, networked.url("/v1/mine"))[0] == [403]


def test_a_policy_forbids_one_path_for_everybody_and_one_task_everything(networked: Networked) -> None:
    with networked.connect() as runner:
        found, call = statuses(runner, networked.url("/forbidden"), networked.url("/v1/x"))
        assert found == [403, 200]
        done = runner.call("net_run", fetch(networked.url("/forbidden")))
        assert "nobody reads what is forbidden" in done.text
    first, second = networked.requests(call)
    assert (first.part, first.decision.rules) == ("policy", ("not-this-path",))
    assert first.decision.policy == second.decision.policy != ""
    with networked.connect(task="t-home-1") as runner:
        found, call = statuses(runner, networked.url("/v1/x"))
        assert found == [403]
    assert networked.requests(call)[0].decision.rules == ("not-this-task",)


def test_nobody_can_be_asked_while_a_request_waits_so_it_is_refused(networked: Networked) -> None:
    with networked.connect() as runner:
        found, call = statuses(runner, networked.url("/asked"))
        assert found == [403]
    (asked,) = networked.requests(call)
    assert (asked.part, asked.decision.effect, asked.decision.rules) == ("policy", "step_up", ("ask-a-human",))
    assert networked.outcome(call).network.refused == 1
    assert not networked.web.seen


def test_an_entry_stands_before_the_service_hears_of_a_request(networked: Networked) -> None:
    """Record before act: while the service still holds the request, its decision is in the ledger."""
    wait = python("""
import os, sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=60)
""", networked.url("/hold"))  # fmt: skip
    with networked.connect() as runner, runner.stream("net_run", wait) as running:
        networked.daemon.wait(lambda: networked.web.seen)
        networked.daemon.wait(
            lambda: [each for each in networked.daemon.entries(entries.Egress) if each.call == running.call]
        )
        assert not [each for each in networked.daemon.entries(entries.EgressEnd) if each.call == running.call]
        running.cancel()
        assert running.result().outcome.kind == "cancelled"
    (ended,) = networked.ends(running.call)
    assert (ended.code, ended.status, ended.address) == ("interrupted", 0, "127.0.0.1")
    networked.daemon.wait(lambda: networked.web.seen[0]["over"])


def test_a_path_is_recorded_by_its_digest_where_the_rule_says_so(networked: Networked) -> None:
    """The path of one customer is nobody's to read in a ledger: it lies in the content store, salted."""
    with networked.connect() as runner:
        found, call = statuses(runner, networked.url("/customers/4711-kowalski", BUDGET), networked.url("/v1/open"))
        assert found == [200, 200]
    hidden, shown = networked.requests(call)
    assert (shown.path, shown.path_content) == ("/v1/open", None)
    assert hidden.path == ""
    assert hidden.path_content.size == len("/customers/4711-kowalski")
    ledger = msgspec.json.encode([each for each in networked.daemon.entries() if getattr(each, "call", "") == call])
    assert b"/v1/open" in ledger
    assert b"kowalski" not in ledger
    assert networked.web.seen[0]["target"] == "/customers/4711-kowalski"
