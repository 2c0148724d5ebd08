"""A request of a call: the capability first, then the policies; closed, total, and blind where it cannot read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import CODES
from runner.gate.authorize import SessionView
from runner.gate.egress import Carried, Outward, answer, authorize_egress, beyond, decide
from runner.gate.policy import PolicyBundle, Verdict
from runner.model import Authenticated, Manifest, Peer, Principal, ToolCall
from runner.token.capability import attenuates
from runner.token.constraints import Work
from runner.wire.egress import Requested

TOOL = Manifest(
    id="fetch",
    description="Fetches.",
    consequence="low",
    profile="narrow",
    kind="python",
    digest="d",
    code_digest="",
    parameters={"type": "object", "additionalProperties": False, "properties": {}},
)
POLICY = """
@id("out") @reason("as allowed") permit(principal, action == Action::"egress", resource);
@id("no-writes") @reason("only reads leave") forbid(principal, action == Action::"egress", resource)
when { context has method && !(["GET", "HEAD"].contains(context.method)) };
@id("no-admin") forbid(principal, action == Action::"egress", resource)
when { context has path && context.path like "/admin/*" };
@id("one-place") forbid(principal, action == Action::"egress", resource == Destination::"bad.example.com:443");
@id("v6") forbid(principal, action == Action::"egress", resource == Destination::"[2606:2800:21f::1]:443");
@id("no-tcp") forbid(principal, action == Action::"egress", resource) when { resource.protocol == "tcp" };
@id("port") forbid(principal, action == Action::"egress", resource)
when { resource.host == "odd.example.com" && resource.port > 1024 };
@id("blind") forbid(principal, action == Action::"egress", resource)
when { context.visibility == "opaque" && context.session.untrusted > 0 };
@id("who") forbid(principal == Agent::"evil", action, resource);
@id("which") forbid(principal, action == Action::"egress", resource) when { context.tool == "other" };
@id("ask") @decision("step_up") permit(principal, action == Action::"egress", resource)
when { context.host == "pay.example.com" };
@id("tools") permit(principal, action in Action::"any", resource);
"""
POLICIES = PolicyBundle.compile({"p.cedar": POLICY.encode()}, {"fetch": TOOL})
ANY = {"constraint_type": "wildcard"}
HERE = {"constraint_type": "exact", "value": "api.example.com"}
OPEN: dict[str, Any] = {"egress": {}}


def opaque(host: str = "api.example.com", port: int = 443, protocol: Any = "https") -> Requested:
    return Requested(id=1, protocol=protocol, host=host, port=port, visibility="opaque")


def get(path: str = "/v1/x", method: str = "GET", **fields: Any) -> Requested:
    made = {"id": 1, "protocol": "https", "host": "api.example.com", "port": 443, "visibility": "full"}
    return Requested(**{**made, "method": method, "path": path, **fields})


def asked(request: Requested, agent: str = "a", tool: str = "fetch") -> Outward:
    who = Principal(agent=agent, owner="o", task="t", session="s")
    return Outward(principal=who, tool=tool, profile="default", peer_uid=1000, request=request)


POLICY_TABLE = [
    (asked(opaque()), {}, "allow", ("out",)),
    (asked(get()), {}, "allow", ("out",)),
    (asked(get(method="POST")), {}, "deny", ("no-writes",)),
    (asked(get("/admin/x")), {}, "deny", ("no-admin",)),
    (asked(opaque("bad.example.com")), {}, "deny", ("one-place",)),
    (asked(opaque("bad.example.com", 8443)), {}, "allow", ("out",)),
    (asked(opaque("2606:2800:21f::1")), {}, "deny", ("v6",)),
    (asked(opaque(protocol="tcp")), {}, "deny", ("no-tcp",)),
    (asked(opaque("odd.example.com", 8443)), {}, "deny", ("port",)),
    (asked(opaque("odd.example.com", 443)), {}, "allow", ("out",)),
    (asked(opaque()), {"untrusted": 1}, "deny", ("blind",)),
    (asked(get()), {"untrusted": 1}, "allow", ("out",)),
    (asked(get(), agent="evil"), {}, "deny", ("who",)),
    (asked(get(), tool="other"), {}, "deny", ("which",)),
    (asked(get(host="pay.example.com")), {}, "step_up", ("ask",)),
]


@pytest.mark.parametrize(("question", "session", "effect", "rules"), POLICY_TABLE)
def test_policies_see_the_request(question: Outward, session: dict[str, Any], effect: str, rules: Any) -> None:
    decision = decide(question, OPEN, SessionView(**session), POLICIES)
    assert (decision.effect, decision.rules) == (effect, rules)
    assert decision.policy == POLICIES.digest
    sent = answer(7, decision)
    assert (sent.number, sent.allowed) == (7, effect == "allow")


TOKENS = [
    ({}, opaque(), "not_granted", "does not grant egress"),
    ({"fetch": {}}, opaque(), "not_granted", "does not grant egress"),
    ({"egress": {}}, opaque(), "", ""),
    ({"egress": {}}, get(), "", ""),
    ({"egress": {"*": ANY}}, get(), "", ""),
    ({"egress": {"host": HERE, "*": ANY}}, opaque(), "", ""),
    ({"egress": {"host": HERE, "*": ANY}}, get(), "", ""),
    ({"egress": {"host": HERE, "*": ANY}}, opaque("www.example.com"), "constraint", "host"),
    ({"egress": {"host": HERE, "*": ANY}}, opaque("API.example.com"), "constraint", "host"),
    # A closed world: what the map does not name is not granted.
    ({"egress": {"host": HERE}}, opaque(), "constraint", "does not name it"),
    ({"egress": {"host": HERE, "port": ANY, "protocol": ANY}}, opaque(), "", ""),
    ({"egress": {"host": HERE, "port": ANY, "protocol": ANY}}, get(), "constraint", "does not name it"),
    ({"egress": {"host": ANY, "port": {"constraint_type": "range", "max": 443}, "protocol": ANY}}, opaque(), "", ""),
    (
        {"egress": {"host": ANY, "port": {"constraint_type": "range", "max": 443}, "protocol": ANY}},
        opaque(port=8443),
        "constraint",
        "outside",
    ),
    (
        {"egress": {"host": HERE, "protocol": {"constraint_type": "exact", "value": "https"}, "*": ANY}},
        opaque(),
        "",
        "",
    ),
    (
        {"egress": {"protocol": {"constraint_type": "exact", "value": "https"}, "*": ANY}},
        opaque(protocol="tcp"),
        "constraint",
        "outside",
    ),
    # What cannot be read cannot be kept.
    ({"egress": {"method": {"constraint_type": "exact", "value": "GET"}, "*": ANY}}, get(), "", ""),
    (
        {"egress": {"method": {"constraint_type": "exact", "value": "GET"}, "*": ANY}},
        get(method="PUT"),
        "constraint",
        "",
    ),
    ({"egress": {"method": {"constraint_type": "exact", "value": "GET"}, "*": ANY}}, opaque(), "constraint", "opaque"),
    (
        {"egress": {"path": {"constraint_type": "path_containment", "root": "/v1"}, "*": ANY}},
        opaque(),
        "constraint",
        "opaque",
    ),
    (
        {"egress": {"path": {"constraint_type": "exact", "value": "", "optional": True}, "*": ANY}},
        opaque(),
        "constraint",
        "opaque",
    ),
    ({"egress": {"path": {"constraint_type": "path_containment", "root": "/v1"}, "*": ANY}}, get("/v1/x"), "", ""),
    (
        {"egress": {"path": {"constraint_type": "path_containment", "root": "/v1"}, "*": ANY}},
        get("/v10"),
        "constraint",
        "",
    ),
    ({"egress": {"path": ANY, "method": ANY, "*": ANY}}, opaque(), "", ""),
    ({"egress": {"path": ANY}}, opaque(), "constraint", "does not name it"),  # not an open map in disguise
    ({"egress": {"tool": ANY, "*": ANY}}, opaque(), "constraint", "requires"),
]


@pytest.mark.parametrize(("granted", "request_", "code", "says"), TOKENS)
def test_tokens_narrow_it_like_a_tool(granted: dict[str, Any], request_: Requested, code: str, says: str) -> None:
    decision = decide(asked(request_), granted, SessionView(), POLICIES)
    assert (decision.effect, decision.code) == ("deny" if code else "allow", code)
    if code:
        assert says in decision.reason or decision.field == says
        assert code in CODES
        assert decision.rules[0].startswith("token:")
        assert decision.allowed
        assert not answer(1, decision).allowed
        assert answer(1, decision).next_step == decision.allowed
    assert (beyond(granted, request_) is None) is (code == "")


def test_a_derived_token_only_narrows_it() -> None:
    two = {"constraint_type": "one_of", "values": ["api.example.com", "www.example.com"]}
    parent = {"host": two, "*": ANY}
    narrower = {"host": HERE, "*": ANY}
    assert attenuates(parent, narrower, Work()) is None
    for wider in ({}, {"*": ANY}, {"host": ANY, "*": ANY}, {"host": {**HERE, "value": "evil.net"}, "*": ANY}):
        assert attenuates(parent, wider, Work()) is not None
    assert decide(asked(opaque("www.example.com")), {"egress": parent}, SessionView(), POLICIES).effect == "allow"
    assert decide(asked(opaque("www.example.com")), {"egress": narrower}, SessionView(), POLICIES).effect == "deny"


def test_an_authenticated_call_is_asked_the_same() -> None:
    call = Authenticated(
        call=ToolCall(number=1, proof="", peer=Peer(uid=1000, pid=1)),
        principal=asked(get()).principal,
        tool="fetch",
        arguments={},
        constraints={},
        chain=("j",),
        leaf_digest="l",
        proof_id="p",
        profile="default",
        expires=0,
    )
    for request in (get(), get(method="PUT"), opaque("bad.example.com")):
        for granted in (OPEN, {}):
            whole = authorize_egress(call, granted, SessionView(), POLICIES, request, Carried())
            assert whole == decide(asked(request), granted, SessionView(), POLICIES)


def test_a_token_denial_asks_no_policy() -> None:
    class Nothing:
        digest = "x"

        def evaluate_egress(self, *asked: Any) -> Verdict:
            raise AssertionError("policy was asked")

    assert decide(asked(get()), {}, SessionView(), Nothing()).code == "not_granted"
    broken = decide(asked(get()), OPEN, SessionView(), Nothing())
    assert (broken.effect, broken.code) == ("deny", "denied")
    assert "AssertionError" in broken.reason
    assert authorize_egress(None, OPEN, SessionView(), POLICIES, get(), Carried()).effect == "deny"  # type: ignore[arg-type]


@pytest.mark.parametrize("effect", ["modify", "step_up", "defer", "deny", "", "ALLOW", None])
def test_nothing_but_allow_lets_a_request_out(effect: Any) -> None:
    class Says:
        digest = "x"

        def evaluate_egress(self, *asked: Any) -> Any:
            return msgspec.structs.replace(Verdict(effect="deny", reason="r"), effect=effect)

    assert not answer(1, decide(asked(get()), OPEN, SessionView(), Says())).allowed


def test_no_policy_permits_nothing() -> None:
    none = PolicyBundle.compile({}, {"fetch": TOOL})
    assert decide(asked(get()), OPEN, SessionView(), none).reason == "no policy permits egress"
    tools_only = b'@id("all") permit(principal, action in Action::"any", resource);'
    only = PolicyBundle.compile({"p.cedar": tools_only}, {"fetch": TOOL})
    assert decide(asked(get()), OPEN, SessionView(), only).effect == "deny"
    # and a permit of requests permits no tool
    out = PolicyBundle.compile({"p.cedar": POLICY.split("\n")[1].encode()}, {"fetch": TOOL})
    assert decide(asked(get()), OPEN, SessionView(), out).effect == "allow"
    context = {"session": {}, "peer_uid": 1, "depth": 0}
    assert out.evaluate("fetch", asked(get()).principal, "default", {}, context).effect == "deny"


@given(st.text(max_size=40), st.integers(), st.text(max_size=40), st.text(max_size=12))
def test_hostile_requests_have_a_decision(host: str, port: int, path: str, method: str) -> None:
    for request in (opaque(host, port), get(path, method, host=host, port=port)):
        decision = decide(asked(request), {"egress": {"host": HERE, "*": ANY}}, SessionView(), POLICIES)
        assert decision.effect in ("allow", "deny")
        assert decision.effect == "deny" or host == "api.example.com"
