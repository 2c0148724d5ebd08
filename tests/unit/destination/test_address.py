"""Only globally reachable unicast is free: every registry range, each address inside another, against the stdlib."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.address import GLOBAL, classify, closed, embedded, opening, parse

KINDS = [
    ("8.8.8.8", GLOBAL),
    ("1.1.1.1", GLOBAL),
    ("172.15.255.255", GLOBAL),
    ("172.32.0.0", GLOBAL),
    ("100.63.255.255", GLOBAL),
    ("100.128.0.0", GLOBAL),
    ("2606:4700::1111", GLOBAL),
    ("2001:4860::8888", GLOBAL),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.168.1.1", "private"),
    ("100.64.0.0", "carrier-grade NAT"),
    ("100.127.255.255", "carrier-grade NAT"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("169.254.1.1", "link-local"),
    ("169.254.169.254", "metadata"),
    ("168.63.129.16", "metadata"),
    ("100.100.100.200", "metadata"),
    ("192.0.0.192", "metadata"),
    ("192.0.0.8", "protocol assignments"),
    ("192.0.2.9", "documentation"),
    ("198.51.100.1", "documentation"),
    ("203.0.113.1", "documentation"),
    ("192.88.99.1", "6to4 relay"),
    ("198.18.0.0", "benchmarking"),
    ("198.19.255.255", "benchmarking"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::2", "v4-compatible"),
    ("::7f00:1", "v4-compatible"),
    ("::ffff:8.8.8.8", "v4-mapped"),
    ("::ffff:0:808:808", "v4-translated"),
    ("64:ff9b::808:808", "NAT64"),
    ("64:ff9b:1::1", "NAT64"),
    ("100::1", "discard"),
    ("100:0:0:1::1", "dummy"),
    ("2001::1", "Teredo"),
    ("2001:2::1", "benchmarking"),
    ("2001:10::1", "ORCHID"),
    ("2001:20::1", "ORCHID"),
    ("2001:1ff::1", "protocol assignments"),
    ("2001:db8::1", "documentation"),
    ("3fff::1", "documentation"),
    ("2002:808:808::1", "6to4"),
    ("3ffe::1", "reserved"),
    ("5f00::1", "segment routing"),
    ("4000::1", "reserved"),
    ("1::1", "reserved"),
    ("fc00::1", "unique local"),
    ("fdff::1", "unique local"),
    ("fd00:ec2::254", "metadata"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("ff0e::1", "multicast"),
    ("2606:4700::5efe:a00:1", "ISATAP"),
    ("2606:4700::200:5efe:a00:1", "ISATAP"),
    ("fe80::1%eth0", "malformed"),
    ("01.2.3.4", "malformed"),
    ("127.1", "malformed"),
    ("0x7f.0.0.1", "malformed"),
    ("localhost", "malformed"),
    ("1.2.3.4 ", "malformed"),
    ("", "malformed"),
]


@pytest.mark.parametrize(("text", "kind"), KINDS)
def test_every_range_has_its_kind(text: str, kind: str) -> None:
    assert classify(text) == kind


v4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
# Random IPv6 is reserved nearly always: half of them lie near the beginning of a range.
STARTS = [
    "::",
    "::ffff:0:0",
    "64:ff9b::",
    "64:ff9b:1::",
    "100::",
    "2001::",
    "2002::",
    "2600::",
    "2a00::",
    "3fff::",
    "fc00::",
    "fe80::",
    "ff00::",
]
v6 = st.one_of(
    st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
    st.builds(
        lambda start, rest: ipaddress.IPv6Address(int(ipaddress.IPv6Address(start)) | rest),
        st.sampled_from(STARTS),
        st.one_of(st.integers(0, 2**32), st.integers(0, 2**112)),
    ),
)


@given(v4 | v6)
def test_what_is_free_here_is_global_to_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """One way only: later registries, metadata addresses and embedded addresses are denied here beyond it."""
    if classify(address) == GLOBAL:
        assert address.is_global
        assert not address.is_multicast
        assert not embedded(address)
        assert closed(address, ()) == ""
    else:
        assert closed(address, ())
    assert parse(str(address)) == address


@given(v4)
def test_what_the_standard_library_calls_global_is_free_but_for_a_known_few(address: ipaddress.IPv4Address) -> None:
    if address.is_global and not address.is_multicast:
        assert classify(address) in (GLOBAL, "metadata", "6to4 relay", "protocol assignments")


@given(v6)
def test_addresses_inside_addresses_as_the_standard_library_finds_them(address: ipaddress.IPv6Address) -> None:
    if address.sixtofour:
        assert embedded(address) == (address.sixtofour,)
    if address.teredo:
        assert embedded(address) == address.teredo
    if address.ipv4_mapped:
        assert embedded(address) == (address.ipv4_mapped,)


def test_a_range_opens_itself_and_nothing_inside_it() -> None:
    def why(address: str, *ranges: str) -> str:
        found = parse(address)
        assert found is not None
        return closed(found, tuple(map(opening, ranges)))

    assert why("10.1.2.3") == "10.1.2.3 is private"
    assert why("10.1.2.3", "10.1.0.0/16") == ""
    assert why("10.2.0.1", "10.1.0.0/16")
    assert why("::1", "127.0.0.0/8")
    assert why("127.0.0.1", "127.0.0.1/32") == ""
    # A metadata address is opened by itself only.
    assert why("169.254.169.254", "169.254.0.0/16") == "169.254.169.254 is metadata"
    assert why("169.254.169.254", "169.254.169.254/32") == ""
    assert why("fd00:ec2::254", "fd00::/8")
    # NAT64 and 6to4 are opened with what they lead to.
    assert why("64:ff9b::808:808", "64:ff9b::/96") == ""
    assert why("64:ff9b::a00:1", "64:ff9b::/96") == "64:ff9b::a00:1 is NAT64 and leads to 10.0.0.1"
    assert why("64:ff9b::a00:1", "64:ff9b::/96", "10.0.0.0/8") == ""
    assert why("64:ff9b::a00:1", "10.0.0.0/8")
    assert why("64:ff9b::a9fe:a9fe", "64:ff9b::/96", "169.254.0.0/16")
    assert why("2002:7f00:1::1", "2002::/16")
    assert why("2606:4700::5efe:a00:1", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.0.0.0/0", "wider"),
        ("::/0", "wider"),
        ("10.0.0.0/7", "wider"),
        ("8.0.0.0/8", "free already"),
        ("2600::/16", "free already"),
        ("10.0.0.1/8", "no bits set"),
        ("10.0.0.0/33", "not a range"),
        ("fe80::%eth0/64", "zone"),
        ("private", "not a range"),
        ("4000::/16", "wider"),
        ("", "not a range"),
    ],
)
def test_ranges_that_no_rule_may_open(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        opening(text)


def test_ranges_that_a_rule_may_open() -> None:
    for text in (
        "10.0.0.0/8",
        "127.0.0.1",
        "192.168.7.0/24",
        "fc00::/7",
        "64:ff9b::/96",
        "::1/128",
        "168.63.129.16/32",
    ):
        assert classify(opening(text).network_address) != GLOBAL
