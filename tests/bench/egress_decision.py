"""Egress decision: one request judged by the allowlists of profile and tool, then by token and policy

Nothing is sent: the functions that egress and gate call for each request, in one process, without the message between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from common import emit, options, percentile

from runner.catalog import compile_bundle, read_folders, shared
from runner.destination import absolute
from runner.egress.allowlist import Allowlists
from runner.gate.authorize import SessionView
from runner.gate.egress import Outward, decide
from runner.gate.policy import PolicyBundle
from runner.gate.schema import EGRESS
from runner.model import Allowlist, EgressRule, Principal
from runner.wire.egress import Requested

RULES = 50  # of each part
POLICIES, ON_REQUESTS = 200, 32
BLOCK = 200  # decisions between two looks at the clock
URL = "http://h7.example.com/v2/items/4711/parts"


def lists(count: int) -> Allowlists:
    """Profile and tool, each with so many rules of other hosts around the one that is asked."""
    rules = tuple(
        EgressRule(
            name=f"r{number}",
            host=f"h{number}.example.com",
            ports=(443,),
            inspect=True,
            methods=("GET", "POST"),
            paths=("/v1/*", "/v2/items/{id}/parts", "/v3/*"),
            up=1 << 20,
            rate=600,
        )
        for number in range(count)
    )
    return Allowlists((Allowlist(part="profile p", rules=rules), Allowlist(part="tool t", rules=rules)))


def policies() -> PolicyBundle:
    """200 in all: one permit, 32 forbids on requests, half on hosts and half on the session, the rest on tools."""
    texts = ['@id("out") permit (principal, action == Action::"egress", resource);']
    for number in range(POLICIES - 1):
        action = f'action == Action::"{EGRESS}"' if number < ON_REQUESTS else 'action in Action::"any"'
        where = f"context.session.denied > {1000 + number}"
        if number < ON_REQUESTS and number % 2:
            where = f'context.host == "bad{number}.example.com"'
        texts.append(f'@id("no-{number}") forbid (principal, {action}, resource) when {{ {where} }};')
    tools = compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies"))).tools
    return PolicyBundle.compile({"p.cedar": "\n".join(texts).encode()}, tools)


def in_blocks(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each, a block of each in turn: a noisy host slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time_ns()
            for _ in range(BLOCK):
                work()
            found[name].append((time.process_time_ns() - began) / BLOCK / 1000)
    return found


def main(*, quick: bool) -> None:
    """Allowed and denied, few rules and many; the gate's half; the baseline: the standard library's parse of a URL."""
    path = absolute(URL).path
    get = Requested(id=1, protocol="https", host="h7.example.com", port=443, visibility="full", method="GET", path=path)
    tunnel = Requested(id=1, protocol="https", host="h7.example.com", port=443, visibility="opaque")
    few, many = lists(RULES), lists(RULES * 100)
    who = Principal(agent="a", owner="o", task="t", session="s")
    asked = Outward(principal=who, tool="t", profile="p", peer_uid=1, request=get)
    token = {
        "egress": {
            "host": {"constraint_type": "one_of", "values": ["h7.example.com"]},
            "*": {"constraint_type": "wildcard"},
        }
    }
    bundle, session = policies(), SessionView(calls=3, tools=("fs_read",))
    assert few.authorise(get).allowed
    assert not few.authorise(tunnel).allowed
    assert decide(asked, token, session, bundle).effect == "allow"
    works: dict[str, Callable[[], object]] = {
        "allowed": lambda: few.authorise(get),
        "denied": lambda: few.authorise(tunnel),
        "connect": lambda: few.connect("h7.example.com", 443),
        "many": lambda: many.authorise(get),
        "target": lambda: absolute(URL),
        "gate": lambda: decide(asked, token, session, bundle),
        "urlsplit": lambda: urlsplit.__wrapped__(URL) if hasattr(urlsplit, "__wrapped__") else urlsplit(URL),
    }
    in_blocks(works, 2)
    times = in_blocks(works, 5 if quick else 200)
    medians = {name: statistics.median(values) for name, values in times.items()}
    emit(
        "egress decision, 50 rules in each part",
        figures={
            "median_us": medians["allowed"],
            "p99_us": percentile(times["allowed"], 0.99),
            "denied_median_us": medians["denied"],
            "connect_median_us": medians["connect"],
            "rules_100x_median_us": medians["many"],
            "parse_target_median_us": medians["target"],
            "gate_median_us": medians["gate"],
        },
        baseline={"urlsplit_median_us": medians["urlsplit"]},
        ratios={
            "over_urlsplit": medians["allowed"] / medians["urlsplit"],
            "rules_100x": medians["many"] / medians["allowed"],
        },
        goal={"median_us": "<= 40", "rules_100x": "<= 1.1"},
        floor={"median_us": "<= 100", "rules_100x": "<= 1.25"},
        guarantee=(
            "every part has a rule for host, port, method and path in canonical form, checked again; a denial holds "
            "the rule that is missing. gate: besides, token constraints, and 200 policies of which 33 are on requests"
        ),
        measured=(
            f"CPU time of blocks of {BLOCK} decisions, in turns with the baseline: the standard library splits a URL. "
            "No lookup, no dial, no entry and no message between the processes is in it"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
