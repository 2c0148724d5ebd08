"""Egress rules under attack: N05 (addresses), N06 (literals), N09 (names), P05 (one form for proxy, token and policy).

Nothing here sends a byte: the forms are judged by the functions that egress and gate judge with. Each attack stands
beside the same request as it is allowed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3

from runner.address import opening
from runner.destination import Malformed, absolute, authority, host_pattern, written
from runner.egress.allowlist import Allowlists, Verdict
from runner.gate.authorize import SessionView
from runner.gate.egress import Outward, beyond, decide, seen
from runner.gate.policy import PolicyBundle
from runner.model import Allowlist, EgressRule, Principal
from runner.wire.egress import Requested

PUBLIC = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
NAME = "api.example.com"


def lists(*rules: EgressRule) -> Allowlists:
    return Allowlists((Allowlist(part="profile p", rules=rules), Allowlist(part="tool t", rules=rules)))


def rule(host: str = NAME, **fields: Any) -> EgressRule:
    return EgressRule(name="r", host=host, **{"ports": (443,), **fields})


def tunnel(host: str = NAME, port: int = 443) -> Requested:
    return Requested(id=1, protocol="https", host=host, port=port, visibility="opaque")


# --- N05: an allowed name that resolves to where nobody may go ------------------------------------------------

FORMS = [
    # the address, and a range that opens it when a rule names it ("" where none can)
    *[("127.0.0.1", "127.0.0.0/8"), ("127.1.2.3", "127.0.0.0/8"), ("0.0.0.0", "0.0.0.0/32"), ("0.1.2.3", "0.0.0.0/8")],
    *[("10.0.0.1", "10.0.0.0/8"), ("172.16.0.1", "172.16.0.0/12"), ("192.168.0.1", "192.168.0.0/16")],
    *[("172.31.255.254", "172.16.0.0/12"), ("100.64.0.1", "100.64.0.0/10"), ("169.254.1.1", "169.254.0.0/16")],
    *[("169.254.169.254", "169.254.169.254/32"), ("169.254.170.2", "169.254.170.2/32")],
    *[("100.100.100.200", "100.100.100.200/32"), ("168.63.129.16", "168.63.129.16/32"), ("192.0.0.192", "192.0.0.192")],
    *[("192.0.0.1", "192.0.0.0/24"), ("192.0.2.9", "192.0.2.0/24"), ("198.51.100.1", "198.51.100.0/24")],
    *[("203.0.113.1", "203.0.113.0/24"), ("198.18.0.1", "198.18.0.0/15"), ("192.88.99.1", "192.88.99.0/24")],
    *[("224.0.0.1", "224.0.0.0/4"), ("239.255.255.250", "224.0.0.0/4"), ("240.0.0.1", "240.0.0.0/4")],
    *[("255.255.255.255", "255.255.255.255/32"), ("::1", "::1/128"), ("::", "::/128"), ("fe80::1", "fe80::/10")],
    *[
        ("fc00::1", "fc00::/7"),
        ("fd00:ec2::254", "fd00:ec2::254/128"),
        ("fec0::1", "fec0::/10"),
        ("ff02::1", "ff00::/8"),
    ],
    *[
        ("2001:db8::1", "2001:db8::/32"),
        ("3fff::1", "3fff::/20"),
        ("100::1", "100::/64"),
        ("2001:10::1", "2001:10::/28"),
    ],
    *[("2001:20::1", "2001:20::/28"), ("2001:2::1", "2001:2::/48"), ("5f00::1", "5f00::/16"), ("4000::1", "")],
    # an address inside an address: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP
    *[("::ffff:127.0.0.1", ""), ("::ffff:10.0.0.1", ""), ("::ffff:169.254.169.254", ""), ("::ffff:8.8.8.8", "")],
    *[("::127.0.0.1", ""), ("::10.0.0.1", ""), ("::ffff:0:127.0.0.1", ""), ("64:ff9b::127.0.0.1", "")],
    *[("64:ff9b::10.0.0.1", ""), ("64:ff9b::169.254.169.254", ""), ("64:ff9b:1::10.0.0.1", "")],
    *[("2002:7f00:1::1", ""), ("2002:a00:1::1", ""), ("2002:a9fe:a9fe::1", ""), ("2001:0:a00:1::1", "")],
    *[("2001::f5ff:fffe", ""), ("2606:2800:21f::5efe:a00:1", ""), ("2606:2800:21f::200:5efe:7f00:1", "")],
    # what is no address of one reading
    *[("127.1", ""), ("0177.0.0.1", ""), ("0x7f.0.0.1", ""), ("2130706433", ""), ("fe80::1%eth0", ""), ("", "")],
    *[("127.0.0.1\0", ""), (" 127.0.0.1", ""), ("::ffff:0x7f.1", ""), ("localhost", "")],
]


def resolved(found: Allowlists, *addresses: str) -> Verdict:
    return found.addresses(found.authorise(tunnel()), NAME, addresses)


@pytest.mark.parametrize(("address", "opens"), FORMS)
def test_n05_an_allowed_name_does_not_lead_there(address: str, opens: str) -> None:
    assert len(FORMS) >= 40
    plain = lists(rule())
    assert resolved(plain, *PUBLIC).allowed  # the same rules, the same name
    assert not resolved(plain, address).allowed
    assert not resolved(plain, *PUBLIC, address).allowed
    assert not resolved(plain, address, *PUBLIC).allowed
    # Every range that a rule can open but its own leaves it closed.
    others = {text for _, text in FORMS if text and (not opens or opening(text) != opening(opens))}
    elsewhere = tuple(sorted(text for text in others if not opens or not opening(opens).overlaps(opening(text))))
    if opens:
        assert not resolved(lists(rule(addresses=elsewhere)), address).allowed
        assert resolved(lists(rule(addresses=(opens,))), address).allowed
        one = Allowlists(
            (
                Allowlist(part="profile p", rules=(rule(),)),
                Allowlist(part="tool t", rules=(rule(addresses=(opens,)),)),
            )
        )
        assert not resolved(one, address).allowed  # the tool alone opens nothing


@pytest.mark.parametrize(
    ("address", "outer", "inner"),
    [
        ("64:ff9b::10.0.0.1", "64:ff9b::/96", "10.0.0.0/8"),
        ("2002:7f00:1::1", "2002::/16", "127.0.0.0/8"),
        ("::ffff:10.0.0.1", "::ffff:0:0/96", "10.0.0.0/8"),
        ("64:ff9b::169.254.169.254", "64:ff9b::/96", "169.254.169.254/32"),
    ],
)
def test_n05_an_address_inside_an_address_needs_both(address: str, outer: str, inner: str) -> None:
    assert not resolved(lists(rule(addresses=(outer,))), address).allowed
    assert not resolved(lists(rule(addresses=(inner,))), address).allowed
    assert resolved(lists(rule(addresses=(outer, inner))), address).allowed


# --- N06: literals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "127.0.0.1", "::1", "169.254.169.254"])
def test_n06_a_literal_is_refused_unless_a_rule_lists_it(address: str) -> None:
    free = address in ("93.184.215.14", "2606:2800:21f::1")
    named = rule(address, addresses=() if free else (address,))
    allowed = lists(named)
    assert allowed.authorise(tunnel(address)).allowed
    assert allowed.connect(address, 443).allowed
    if not free:
        assert not lists(rule(address)).authorise(tunnel(address)).allowed  # its range is not named
    names = lists(rule(), rule("*.example.com"), rule("*.215.14"), rule("*.0.1"))
    assert not names.authorise(tunnel(address)).allowed
    assert not names.connect(address, 443).allowed
    assert names.authorise(tunnel()).allowed


# --- N09: names that are none ---------------------------------------------------------------------------------

BROKEN = [
    *(f"{NAME}\0", f"\0{NAME}", f"{NAME}\0.evil.net", f"evil.net\0.{NAME}", f"{NAME}\r\nHost: evil.net", f"{NAME}\n"),
    *(f"{NAME}\r", f" {NAME}", f"{NAME} ", f"evil.net {NAME}", f"{NAME}\tevil.net", f"{NAME}\x0b", f"{NAME}\x7f"),
    *(f"user@{NAME}", f"user:pass@{NAME}", f"@{NAME}", f"{NAME}@evil.net", f"evil.net@{NAME}", f"{NAME}%00"),
    *(f"{NAME}%2eevil.net", f"{NAME}/evil.net", f"{NAME}\\evil.net", f"{NAME}#evil.net", f"{NAME}?evil.net"),
    *(f"{NAME},evil.net", f"{NAME};evil.net", f"{NAME}|evil.net", f"{NAME}..", f".{NAME}", f"{NAME}..evil.net"),
    *("api。example.com", "api\u3002example.com", "ａpi.example.com", "api.example.com\u200b", "api.exаmple.com"),
    *("ap\u0131.example.com", "*.example.com", "api_.example.com", "-api.example.com", "api-.example.com"),
    *(f"[{NAME}]", f"[{NAME}", f"{NAME}]", "xn--.example.com", "xn--a.example.com"),
]


@pytest.mark.parametrize("name", BROKEN)
def test_n09_what_is_no_name_reaches_no_rule(name: str) -> None:
    wide = lists(rule(), rule("*.example.com"), rule("evil.net"), rule("*.evil.net"), rule("*.api.example.com"))
    assert wide.authorise(tunnel()).allowed
    assert str(authority(f"{NAME}:443")) == f"{NAME}:443"
    for parse in (lambda: authority(f"{name}:443"), lambda: authority(name, 443)):
        with pytest.raises(Malformed):
            parse()
    assert not wide.authorise(tunnel(name)).allowed
    assert not wide.connect(name, 443).allowed


@pytest.mark.parametrize(
    "name", [f"{NAME}.evil.net", "api.example.com.co", "xapi.example.com", "api.example.comx", "example.com", "com"]
)
def test_a_name_that_looks_alike_is_another_name(name: str) -> None:
    found = lists(rule())
    assert not found.authorise(tunnel(authority(f"{name}:443").host)).allowed
    assert found.authorise(tunnel(authority(f"{NAME}.:443").host)).allowed


# --- P05: the proxy, the rules, the token and the policies read one form ----------------------------------------

HOSTS = [
    NAME,
    "www.example.com",
    "xn--mnchen-3ya.de",
    "93.184.215.14",
    "[2606:2800:21f::1]",
    "[::ffff:10.0.0.1]",
    "a.b",
]
POLICY = """
@id("here") permit(principal, action == Action::"egress", resource)
when { context.host == "api.example.com" && resource.host == context.host && context.port == resource.port };
@id("not-there") forbid(principal, action == Action::"egress", resource == Destination::"api.example.com:8443");
"""
POLICIES = PolicyBundle.compile({"p.cedar": POLICY.encode()}, {})
TOKEN = {"egress": {"host": {"constraint_type": "exact", "value": NAME}, "*": {"constraint_type": "wildcard"}}}
WHO = Principal(agent="a", owner="o", task="t", session="s")
NOISE = "\0\t\r\n @%\\,;:[]_*.-xn0189aAzZé。ａ\u200b\u0131"
PORTS = [
    "443",
    "8443",
    "80",
    "1",
    "65535",
    "0",
    "080",
    "0443",
    "+443",
    "-1",
    " 443",
    "443 ",
    "",
    "65536",
    "0x1bb",
    "４４３",
]


def mutated(random_: random.Random) -> str:
    text = random_.choice(HOSTS)
    for _ in range(random_.choice((0, 1, 1, 1, 2, 3))):
        at = random_.randrange(len(text) + 1)
        kind = random_.randrange(9)
        if kind == 0:
            text = "".join(random_.choice((char.lower(), char.upper())) for char in text)
        elif kind == 1:
            text += random_.choice((".", "..", ".evil.net", "%00.evil.net"))
        elif kind == 2:
            text = random_.choice(("user@", "u:p@", "@", "evil.net@", "*.", ".")) + text
        elif kind == 3:
            text = text[:at] + random_.choice(NOISE) + text[at:]
        elif kind == 4:
            text = text[:at] + text[at + 1 :]
        elif kind == 5 and at < len(text):
            text = f"{text[:at]}%{ord(text[at]) & 0xFF:02x}{text[at + 1 :]}"
        elif kind == 6:
            text = random_.choice(
                ("0x7f000001", "2130706433", "127.1", "0177.0.0.1", "1.2.3.4.", "[::1%25lo]", "[fe80::1%lo]")
            )
        elif kind == 7:
            text = text.replace(".", random_.choice(("。", "..", ".", "%2e")), 1)
        else:
            text = text.translate(str.maketrans("aeo", "аео")) if random_.random() < 0.3 else text
    return text


def read(parse: Callable[[], tuple[str, int]]) -> tuple[str, int] | None:
    try:
        return parse()
    except Malformed:
        return None


def cases(count: int) -> Iterator[tuple[str, str]]:
    random_ = random.Random(20261121)
    for _ in range(count):
        yield mutated(random_), random_.choice(PORTS[:3] * 6 + PORTS)


def test_p05_one_canonical_form_in_10_000_cases() -> None:
    allowlists = lists(rule(ports=(443, 8443, 80, 1, 65535)))
    accepted, disagreements = 0, []
    for name, number in cases(10_000):
        text = f"{name}:{number}"
        connect = read(lambda text=text: tuple(authority(text)))
        host_header = read(lambda text=text: tuple(authority(text, 443)))
        form = read(lambda text=text: absolute(f"http://{text}/")[1:3])
        explained = read(lambda text=text: absolute(f"https://{text}/", frozenset({"https"}))[1:3])
        if not connect == form == host_header == explained:
            disagreements.append((text, connect, host_header, form, explained))
            continue
        if connect is None:
            continue
        accepted += 1
        host, port = connect
        # Another parser, of another author, reads the same host and port.
        other = urllib3.util.parse_url(f"http://{text}/")
        theirs = authority(f"{(other.host or '').removesuffix('.')}:{other.port}")
        # A rule that is written like the request is for the same host.
        same = (theirs == connect, host_pattern(name) == host)
        # Allowlists, token and policy see it through one request, and agree on what it is.
        request = tunnel(host, port)
        asked = Outward(principal=WHO, tool="t", profile="p", peer_uid=1, request=request)
        _, _, place, context = seen(asked, SessionView())
        says = (
            allowlists.authorise(request).allowed,
            beyond(TOKEN, request) is None,
            decide(asked, {"egress": {}}, SessionView(), POLICIES).effect == "allow",
        )
        here = host == NAME
        wanted = (here, here, here and port != 8443)
        if not all(same) or says != wanted or place.id != f"{written(host)}:{port}" or context["host"] != host:
            disagreements.append((text, host, port, same, says))
        # The text as it came, brought past the parser, opens nothing unless it is canonical itself.
        if name != host and allowlists.authorise(tunnel(name, port)).allowed:
            disagreements.append((text, "the authoriser took what is not canonical"))
    assert disagreements == []
    assert 2000 < accepted < 9000  # both kinds were tried
