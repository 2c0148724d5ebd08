"""The one authoriser: what every part allows and nothing else, on the strictest terms, naming the rule that lacks."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.address import opening, parse
from runner.catalog.egress import compile_rules, overlap
from runner.catalog.place import Place
from runner.config import RuleFile
from runner.destination import path, path_pattern
from runner.egress.allowlist import Allowlists, Limit, Verdict, address_verdict, authorise
from runner.errors import CODES
from runner.model import Allowlist, EgressRule
from runner.wire.egress import Requested


def rule(name: str = "r", host: str = "api.example.com", **fields: Any) -> EgressRule:
    fields.setdefault("ports", (443,))
    return EgressRule(name=name, host=host, **fields)


def lists(profile: tuple[EgressRule, ...], tool: tuple[EgressRule, ...]) -> Allowlists:
    return Allowlists((Allowlist(part="profile p", rules=profile), Allowlist(part="tool t", rules=tool)))


def get(path_: str = "/v1/x", **fields: Any) -> Requested:
    made = {"id": 1, "protocol": "https", "host": "api.example.com", "port": 443, "visibility": "full", "method": "GET"}
    return Requested(**{**made, "path": path_, **fields})


def tunnel(host: str = "api.example.com", port: int = 443, protocol: Any = "https") -> Requested:
    return Requested(id=1, protocol=protocol, host=host, port=port, visibility="opaque")


INSPECT = rule(inspect=True, methods=("GET", "HEAD"), paths=("/v1/*",))
PASS = rule()

TABLE = [
    # request, profile's rule, tool's rule, allowed, deciding part, part of the reason
    (tunnel(), PASS, PASS, True, "", ""),
    (get(), INSPECT, INSPECT, True, "", ""),
    (get(), PASS, INSPECT, True, "", ""),
    (get(), INSPECT, PASS, True, "", ""),
    (tunnel(), PASS, INSPECT, False, "tool t", "an opaque tunnel hides"),
    (tunnel(), INSPECT, PASS, False, "profile p", "an opaque tunnel hides"),
    (tunnel(), rule(host="www.example.com"), PASS, False, "profile p", "no rule for host api.example.com"),
    (tunnel(), PASS, rule(host="www.example.com"), False, "tool t", "no rule for host api.example.com"),
    (tunnel(port=8443), PASS, PASS, False, "profile p", "profile p/r is not for port 8443"),
    (tunnel(port=8443), rule(ports=(443, 8443)), PASS, False, "tool t", "tool t/r is not for port 8443"),
    (get(method="PUT"), PASS, INSPECT, False, "tool t", "does not allow PUT"),
    (get("/v2/x"), PASS, INSPECT, False, "tool t", "does not allow this path"),
    (get("/v1"), PASS, INSPECT, False, "tool t", "does not allow this path"),
    (get(protocol="http", port=80, visibility="head"), PASS, PASS, False, "profile p", "is for https, not for http"),
    (tunnel(protocol="tcp"), PASS, PASS, False, "profile p", "is for https, not for tcp"),
    (tunnel(), rule(host="*.example.com"), PASS, True, "", ""),
    (tunnel("example.com"), rule(host="*.example.com"), rule(host="example.com"), False, "profile p", "no rule"),
    (tunnel("a.b.example.com"), rule(host="*.example.com"), PASS, False, "profile p", "no rule"),
    (tunnel("api.example.com.evil.net"), PASS, PASS, False, "profile p", "no rule"),
    (tunnel("notexample.com"), rule(host="*.example.com"), PASS, False, "profile p", "no rule"),
    (get(upgrade="websocket"), INSPECT, INSPECT, True, "", ""),
    (get(upgrade="h2c"), INSPECT, INSPECT, False, "syntax", "websocket"),
    (get(upgrade="TLS/1.0"), INSPECT, INSPECT, False, "syntax", "websocket"),
    # Not canonical, whoever calls.
    (tunnel("API.example.com"), PASS, PASS, False, "syntax", "canonical"),
    (tunnel("api.example.com."), PASS, PASS, False, "syntax", "canonical"),
    (tunnel("a b.example.com"), rule(host="*.example.com"), PASS, False, "syntax", "letters"),
    (tunnel("a\0.example.com"), rule(host="*.example.com"), PASS, False, "syntax", "letters"),
    (tunnel(port=0), PASS, PASS, False, "syntax", "port"),
    (get("/v1/../admin"), INSPECT, INSPECT, False, "syntax", "dot segment"),
    (get("/v1/%61"), INSPECT, INSPECT, False, "syntax", "canonical"),
    (get("/v1//x"), INSPECT, INSPECT, False, "syntax", "empty segment"),
    (get(method="get"), INSPECT, INSPECT, False, "syntax", "upper case"),
    (get(method="TRACE"), PASS, PASS, False, "syntax", "refused"),
    (get(method=""), PASS, PASS, False, "syntax", "upper case"),
    (get(visibility="opaque"), PASS, PASS, False, "syntax", "neither method nor path"),
]


@pytest.mark.parametrize(("request_", "profile", "tool", "allowed", "part", "says"), TABLE)
def test_the_table(
    request_: Requested, profile: EgressRule, tool: EgressRule, allowed: bool, part: str, says: str
) -> None:
    verdict = authorise(lists((profile,), (tool,)), request_)
    assert (verdict.allowed, verdict.part) == (allowed, part)
    assert says in verdict.reason
    assert verdict.rules == (("profile p/r", "tool t/r") if allowed else ())
    assert (verdict.code == "") is allowed
    assert allowed or verdict.code in CODES
    assert bool(verdict.missing) is (not allowed and part != "syntax")


def test_no_part_and_an_empty_part_allow_nothing() -> None:
    for empty in (Allowlists(()), lists((), ()), lists((PASS,), ()), lists((), (PASS,))):
        for verdict in (empty.authorise(tunnel()), empty.connect("api.example.com", 443)):
            assert not verdict.allowed
            assert verdict.reason
    assert lists((PASS,), (PASS,)).authorise(tunnel()).allowed


def test_terms_are_the_strictest_of_all_parts() -> None:
    verdict = lists(
        (rule("wide", up=1000, rate=60, record="digest"),), (rule("own", up=5000, down=9000, keep=True),)
    ).authorise(tunnel())
    assert (verdict.up, verdict.down, verdict.rate) == (1000, 9000, 60)
    assert verdict.limits == (
        Limit(rule="profile p/wide", up=1000, rate=60),
        Limit(rule="tool t/own", up=5000, down=9000),
    )
    assert (verdict.record, verdict.keep) == ("digest", True)
    plain = lists((PASS,), (PASS,)).authorise(tunnel())
    assert (plain.limits, plain.up, plain.down, plain.rate, plain.record, plain.keep) == ((), 0, 0, 0, "path", False)


def test_the_most_specific_rule_is_the_one_that_counts() -> None:
    found = lists(
        (PASS,),
        (
            rule("wildcard", host="*.example.com", inspect=True),
            rule("any", inspect=True),
            rule("methods", inspect=True, methods=("GET",)),
            rule("paths", inspect=True, paths=("/v1/*",)),
            rule("later", inspect=True, paths=("/v1/*",)),
        ),
    )
    assert found.authorise(get("/v1/x")).rules[1] == "tool t/paths"
    assert found.authorise(get("/v2/x")).rules[1] == "tool t/methods"
    assert found.authorise(get("/v2/x", method="PUT")).rules[1] == "tool t/any"
    assert found.authorise(get("/v1/x", host="www.example.com")).allowed is False
    assert [each.rules for each in found.explain(get("/v1/x"))] == [
        ("profile p/r",),
        tuple(f"tool t/{name}" for name in ("paths", "later", "methods", "any", "wildcard")),
    ]


def test_a_tunnel_is_opened_where_any_matching_rule_wants_it() -> None:
    for profile, tool, inspect in (
        (PASS, PASS, False),
        (PASS, INSPECT, True),
        (INSPECT, PASS, True),
        (rule(host="*.example.com", inspect=True), PASS, True),
    ):
        verdict = lists((profile,), (tool,)).connect("api.example.com", 443)
        assert (verdict.allowed, verdict.protocol, verdict.inspect) == (True, "https", inspect)
    both = lists((PASS, rule("other", inspect=True, paths=("/v9/*",))), (PASS,)).connect("api.example.com", 443)
    assert both.inspect
    other_port = lists((PASS, rule("other", inspect=True, ports=(8443,))), (PASS,)).connect("api.example.com", 443)
    assert not other_port.inspect


def test_tunnels_by_protocol() -> None:
    tcp = rule(protocol="tcp", ports=(5432,))
    verdict = lists((tcp,), (tcp,)).connect("api.example.com", 5432)
    assert (verdict.allowed, verdict.protocol, verdict.inspect) == (True, "tcp", False)
    assert lists((tcp,), (tcp,)).authorise(tunnel(port=5432, protocol="tcp")).allowed
    https = rule(ports=(5432,))
    mixed = lists((tcp,), (https,)).connect("api.example.com", 5432)
    assert (mixed.allowed, mixed.code) == (False, "egress")
    assert "one part takes it for https and another for tcp" in mixed.reason
    assert lists((tcp, https), (https,)).connect("api.example.com", 5432).protocol == "https"
    http = rule(protocol="http", ports=(443,))
    assert not lists((http,), (http,)).connect("api.example.com", 443).allowed
    denied = lists((tcp,), (tcp,)).connect("api.example.com", 443)
    assert (denied.allowed, denied.part) == (False, "profile p")
    assert denied.missing == '# profiles/p.toml\n[[egress]]\nname = "api-example-com"\nhost = "api.example.com"'
    assert not lists((tcp,), (tcp,)).connect("api.example.com\0", 5432).allowed


def test_what_is_missing_is_the_smallest_rule_in_the_file_of_the_part() -> None:
    denied = lists((PASS,), (INSPECT, rule("api-example-com", host="x.example"))).authorise(
        get("/v2/a*b", method="PUT")
    )
    assert denied.missing.splitlines() == [
        "# tools/t/tool.toml",
        "[[egress]]",
        'name = "api-example-com-1"',
        'host = "api.example.com"',
        'tls = "inspect"',
        'methods = ["PUT"]',
        'paths = ["/v2/{any}"]',
    ]
    daemon = Allowlists((Allowlist(part="daemon"),)).authorise(tunnel("keys.example.com", 8443))
    assert daemon.missing.splitlines() == [
        "# runner.toml",
        "[[daemon.destinations]]",
        'name = "keys-example-com"',
        'host = "keys.example.com"',
        "ports = [8443]",
    ]
    literal = lists((), ()).authorise(tunnel("10.0.0.7", 5432, "tcp"))
    assert literal.missing.splitlines()[4:] == ["ports = [5432]", 'protocol = "tcp"', 'addresses = ["10.0.0.7/32"]']
    assert lists((), ()).authorise(tunnel("4000::1")).missing == ""  # nothing can open it
    assert lists((), ()).authorise(get("/a*%2Fb")).missing == ""  # no pattern can say it


def test_addresses_are_judged_after_names() -> None:
    open_ = rule(addresses=("10.0.0.0/8",))
    both, one = lists((open_,), (open_,)), lists((PASS,), (open_,))
    public = ["93.184.215.14", "2606:2800:21f::1"]
    for found in (both, one, lists((PASS,), (PASS,))):
        assert address_verdict(found, found.authorise(tunnel()), "api.example.com", public).allowed
    assert address_verdict(both, both.authorise(tunnel()), "api.example.com", ["10.1.2.3"]).allowed
    denied = address_verdict(one, one.authorise(tunnel()), "api.example.com", ["10.1.2.3"])
    assert (denied.allowed, denied.part, denied.code) == (False, "address", "egress")
    assert denied.reason == "api.example.com: 10.1.2.3 is private, and no rule of profile p names that range"
    assert denied.missing.splitlines()[0] == "# profiles/p.toml"
    assert denied.missing.splitlines()[-1] == 'addresses = ["10.1.2.3/32"]'
    # One bad address among good ones refuses the name.
    for mixed in ([*public, "127.0.0.1"], ["127.0.0.1", *public], [*public, "not an address"], []):
        assert not address_verdict(both, both.authorise(tunnel()), "api.example.com", mixed).allowed
    # A denial stays one, whatever the addresses are.
    refused = both.authorise(tunnel("other.example.com"))
    assert address_verdict(both, refused, "other.example.com", public) is refused


def test_a_literal_needs_a_rule_for_it_and_its_range() -> None:
    for host, addresses, allowed in (
        ("93.184.215.14", (), True),
        ("10.0.0.7", (), False),
        ("10.0.0.7", ("10.0.0.0/8",), True),
        ("2606:2800:21f::1", (), True),
        ("::1", (), False),
        ("::1", ("::1/128",), True),
    ):
        named = rule(host=host, addresses=addresses)
        assert lists((named,), (named,)).authorise(tunnel(host)).allowed is allowed
        assert lists((named,), (named,)).connect(host, 443).allowed is allowed
        assert not lists((PASS,), (PASS,)).authorise(tunnel(host)).allowed
    wild = rule(host="*.0.0.7", addresses=("10.0.0.0/8",))  # no catalogue makes it
    assert not lists((wild,), (wild,)).authorise(tunnel("10.0.0.7")).allowed


def test_any_host_is_any_name_and_the_other_part_says_which() -> None:
    anywhere = rule("any", host="*", inspect=True)
    named = lists((rule(inspect=True),), (anywhere,))
    assert named.authorise(get()).rules == ("profile p/r", "tool t/any")
    assert named.connect("api.example.com", 443).inspect
    denied = named.authorise(get(host="www.example.com"))
    assert (denied.part, denied.reason) == ("profile p", "profile p has no rule for host www.example.com")
    assert not named.authorise(get(port=8443)).allowed
    assert not lists((), (anywhere,)).authorise(get()).allowed


def test_any_host_is_no_address_but_those_of_the_ranges_it_opens() -> None:
    where = ("10.0.0.7", "93.184.215.14", "fd00::7", "169.254.169.254", "127.0.0.1")
    given = tuple(rule(f"r{n}", host=host, addresses=(host,) if n != 1 else ()) for n, host in enumerate(where))
    closed, open_ = (rule("any", host="*", addresses=each) for each in ((), ("10.0.0.0/8", "fc00::/7")))
    for tool, allowed in ((closed, []), (open_, ["10.0.0.7", "fd00::7"])):
        found = [host for host in where if lists(given, (tool,)).authorise(tunnel(host)).allowed]
        assert found == allowed
    # A name that leads into a range needs both to open it, as with any other rule.
    verdict = (named := lists((PASS,), (open_,))).authorise(tunnel())
    assert verdict.allowed
    assert address_verdict(named, verdict, "api.example.com", ["93.184.215.14"]).allowed
    refused = address_verdict(named, verdict, "api.example.com", ["10.0.0.7"])
    assert (refused.part, "no rule of profile p names that range" in refused.reason) == ("address", True)
    both = lists((rule(addresses=("10.0.0.7",)),), (open_,))
    assert address_verdict(both, both.authorise(tunnel()), "api.example.com", ["10.0.0.7"]).allowed
    assert not address_verdict(both, both.authorise(tunnel()), "api.example.com", ["10.0.0.8"]).allowed


def test_a_named_host_is_counted_before_any_host() -> None:
    tool = (rule("any", host="*", up=1), rule("below", host="*.example.com", up=2), rule("own", up=3))
    for kept, up in ((tool, 3), (tool[:2], 2), (tool[:1], 1)):
        assert lists((PASS,), kept).authorise(tunnel()).up == up


def test_rules_that_are_not_canonical_open_nothing() -> None:
    for wrong in (rule(paths=("/../x",), inspect=True), rule(addresses=("0.0.0.0/0",)), rule(addresses=("x",))):
        with pytest.raises(ValueError):
            lists((wrong,), ())


# --- properties -----------------------------------------------------------------------------------------------

HOSTS = ["api.example.com", "www.example.com", "example.com", "a.www.example.com", "10.0.0.7", "93.184.215.14"]
PATHS = ["/", "/v1", "/v1/", "/v1/7", "/v1/7/x", "/v2/a%2Fb", "/v1/*"]
rules = st.builds(
    rule,
    name=st.sampled_from("abcdef"),
    host=st.sampled_from([*HOSTS, "*.example.com", "*.www.example.com", "*"]),
    ports=st.sampled_from([(443,), (80,), (443, 80)]),
    protocol=st.sampled_from(["https", "http", "tcp"]),
    inspect=st.booleans(),
    methods=st.sampled_from([(), ("GET",), ("PUT", "GET")]),
    paths=st.sampled_from([(), ("/v1/*",), ("/v1/{id}", "/v2/a%2Fb"), ("/*",)]),
    addresses=st.sampled_from([(), ("10.0.0.0/8",)]),
)


def lists_of(each: st.SearchStrategy[EgressRule]) -> st.SearchStrategy[list[tuple[EgressRule, ...]]]:
    part = st.lists(each, max_size=6, unique_by=lambda one: one.name).map(tuple)
    return st.lists(part, min_size=1, max_size=3)


def lawful(each: EgressRule) -> bool:
    """Whether the catalogue would make such a rule: it judges only requests that can be read."""
    if each.inspect or each.protocol == "http":
        return (each.protocol == "https") is each.inspect
    return not each.methods and not each.paths


parts = lists_of(rules)


def build(drawn: list[tuple[EgressRule, ...]]) -> list[Allowlist]:
    names = ["profile p", "tool t", "daemon"]
    return [Allowlist(part=name, rules=each) for name, each in zip(names, drawn, strict=False)]


requests = st.one_of(
    st.builds(tunnel, st.sampled_from(HOSTS), st.sampled_from([443, 80]), st.sampled_from(["https", "tcp"])),
    st.builds(
        get,
        st.sampled_from(PATHS),
        host=st.sampled_from(HOSTS),
        port=st.sampled_from([443, 80]),
        protocol=st.sampled_from(["https", "http"]),
        method=st.sampled_from(["GET", "PUT"]),
    ),
)


def by_definition(each: EgressRule, asked: Requested) -> bool:
    """Whether a rule allows a request, written as the documentation says it."""
    literal = parse(asked.host)
    if each.host == "*":
        named = literal is None or any(literal in opening(text) for text in each.addresses)
    else:
        named = each.host == asked.host or (
            each.host.startswith("*.")
            and asked.host.endswith(each.host[1:])
            and "." not in asked.host.removesuffix(each.host[1:])
        )
    if not named or asked.port not in each.ports or each.protocol != asked.protocol:
        return False
    if asked.visibility == "opaque":
        return not (each.inspect or each.methods or each.paths)
    if each.methods and asked.method not in each.methods:
        return False
    return not each.paths or any(path_pattern(text).matches(asked.path.split("/")) for text in each.paths)


@given(parts, requests)
def test_allowed_is_what_every_part_allows_by_definition(drawn: list[tuple[EgressRule, ...]], asked: Requested) -> None:
    verdict = Allowlists(build(drawn)).authorise(asked)
    matching = [[each for each in part if by_definition(each, asked)] for part in drawn]
    private = asked.host == "10.0.0.7"
    wanted = all(matching) and not (private and not all(any(e.addresses for e in part) for part in matching))
    assert verdict.allowed is wanted
    if wanted:
        assert len(verdict.rules) == len(drawn)
        assert verdict.inspect is (asked.protocol == "https" and any(e.inspect for part in matching for e in part))


@given(lists_of(rules.filter(lawful)), requests)
def test_the_missing_rule_is_what_the_deciding_part_lacked(
    drawn: list[tuple[EgressRule, ...]], asked: Requested
) -> None:
    """Put where its comment says, it is read by the catalogue, and the next denial, if any, is another part's."""
    allowlists = build(drawn)
    for _ in range(2 * len(allowlists) + 1):
        verdict = Allowlists(allowlists).authorise(asked)
        if verdict.allowed:
            break
        assert verdict.missing, verdict
        allowlists = [_with(each, verdict) for each in allowlists]
    assert verdict.allowed


def _with(allowlist: Allowlist, verdict: Verdict) -> Allowlist:
    file = {"profile p": "profiles/p.toml", "tool t": "tools/t/tool.toml", "daemon": "runner.toml"}[allowlist.part]
    if verdict.missing.splitlines()[0] != f"# {file}":
        return allowlist
    table = tomllib.loads(verdict.missing)
    table = table["daemon"]["destinations"] if "daemon" in table else table["egress"]
    files = msgspec.convert(table, tuple[RuleFile, ...])
    (made,) = compile_rules(files, Place(file, b"", "profile"), anywhere=True)
    kept = tuple(each for each in allowlist.rules if each.name != made.name)
    return Allowlist(part=allowlist.part, rules=(*kept, made))


@given(rules, rules, requests)
def test_rules_that_allow_a_request_together_overlap(one: EgressRule, other: EgressRule, asked: Requested) -> None:
    both = by_definition(one, asked) and by_definition(other, asked)
    assert overlap(one, other) is overlap(other, one)
    assert overlap(one, other) or not both


@given(parts, rules, requests)
def test_a_part_more_never_allows_more_and_a_rule_more_never_less(
    drawn: list[tuple[EgressRule, ...]], more: EgressRule, asked: Requested
) -> None:
    before = Allowlists(build(drawn)).authorise(asked).allowed
    part = Allowlist(part="tool more", rules=(more,))
    assert Allowlists([*build(drawn), part]).authorise(asked).allowed <= before
    wider = [(*drawn[0], msgspec.structs.replace(more, name="more")), *drawn[1:]]
    assert Allowlists(build(wider)).authorise(asked).allowed >= before


@given(parts, st.text(max_size=30), st.integers(), st.text(max_size=30), st.text(max_size=9))
def test_hostile_requests_have_a_verdict(
    drawn: list[tuple[EgressRule, ...]], host: str, port: int, path_: str, method: str
) -> None:
    found = Allowlists(build(drawn))
    verdict = found.authorise(get(path_, host=host, port=port, method=method))
    if verdict.allowed:
        assert host in HOSTS
        assert path(path_) == path_
    assert not found.connect(host, port).allowed or host in HOSTS
    assert found.explain(get(path_, host=host, port=port, method=method))
