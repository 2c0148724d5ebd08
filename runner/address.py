"""Which IP addresses are somebody's on the internet, and what every other one is instead.

Only globally reachable unicast is free. Everything else has a kind, and is denied wherever a rule does not name it:
the IANA special-purpose registries (RFC 6890, as of 2025-10), what never got into them, and the well-known addresses
at which clouds hand out credentials. An address that carries another one (NAT64, 6to4, Teredo, …) is judged by both.

What this cannot know: a NAT64 prefix that an operator chose for themselves (RFC 6052 §2.2; of the local-use prefix only
the form with the IPv4 address in its last 32 bits is read), and routes of the host that lead a global address
somewhere private.
"""

from __future__ import annotations

import re
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    NetmaskValueError,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

GLOBAL = "global"
METADATA = "metadata"
MALFORMED = "malformed"

# Clouds' own: credentials without a password. One of them lies in public space (168.63.129.16, Azure).
_METADATA = (
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23", "169.254.169.253"),
    *("168.63.129.16", "100.100.100.200", "100.100.100.100", "192.0.0.192"),
    *("fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fd00:c1::a9fe:a9fe"),
)

# The first that contains an address tells its kind: narrower ones stand before wider ones.
_RANGES: tuple[tuple[str, str], ...] = (
    *((address, METADATA) for address in _METADATA),
    ("0.0.0.0/32", "unspecified"),
    ("0.0.0.0/8", "this network"),  # RFC 791: Linux takes 0.0.0.0 for the host itself
    ("10.0.0.0/8", "private"),  # RFC 1918
    ("100.64.0.0/10", "carrier-grade NAT"),  # RFC 6598
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),  # RFC 3927
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),  # RFC 6890
    ("192.0.2.0/24", "documentation"),  # RFC 5737
    ("192.88.99.0/24", "6to4 relay"),  # RFC 7526: deprecated
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),  # RFC 2544
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "v4-mapped"),  # RFC 4291
    ("::/96", "v4-compatible"),  # RFC 4291: deprecated
    ("::ffff:0:0:0/96", "v4-translated"),  # RFC 2765
    ("64:ff9b::/96", "NAT64"),  # RFC 6052
    ("64:ff9b:1::/48", "NAT64"),  # RFC 8215: local use
    ("100::/64", "discard"),  # RFC 6666
    ("100:0:0:1::/64", "dummy"),  # RFC 9780
    ("2001::/32", "Teredo"),  # RFC 4380
    ("2001:2::/48", "benchmarking"),  # RFC 5180
    ("2001:10::/28", "ORCHID"),  # RFC 4843
    ("2001:20::/28", "ORCHID"),  # RFC 7343
    ("2001:db8::/32", "documentation"),  # RFC 3849
    ("2001::/23", "protocol assignments"),
    ("2002::/16", "6to4"),  # RFC 3056
    ("3ffe::/16", "reserved"),  # RFC 3701: the 6bone, returned
    ("3fff::/20", "documentation"),  # RFC 9637
    ("5f00::/16", "segment routing"),  # RFC 9602
    ("fc00::/7", "unique local"),  # RFC 4193
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),  # RFC 3879: deprecated
    ("ff00::/8", "multicast"),
)

_TABLE: dict[int, tuple[tuple[int, int, str], ...]] = {
    version: tuple(
        (int(network.network_address), int(network.netmask), kind)
        for network, kind in ((ip_network(text), kind) for text, kind in _RANGES)
        if network.version == version
    )
    for version in (4, 6)
}
_UNICAST = int(IPv6Address("2000::")), int(IPv6Network("2000::/3").netmask)
# A v4 address in the last four bytes (bits 96 to 127) of these.
_AT_THE_END = tuple(
    (int(network.network_address), int(network.netmask))
    for network in map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
_6TO4, _TEREDO = 0x2002, 0x2001_0000
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214 §6.1: the first half of an interface identifier, under any prefix
_LITERAL = re.compile(r"[0-9A-Fa-f.:]{2,45}\Z")


def parse(text: str) -> Address | None:
    """The address that `text` writes in the one form that nobody reads otherwise; None for anything else: zone ids,
    octal, hexadecimal and short forms of IPv4, space."""
    if not _LITERAL.match(text):
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def classify(address: Address | str) -> str:
    """`global` for a globally reachable unicast address, else what it is. Text that is no address is `malformed`."""
    found = parse(address) if isinstance(address, str) else address
    if found is None:
        return MALFORMED
    value = int(found)
    for start, mask, kind in _TABLE[found.version]:
        if value & mask == start:
            return kind
    if found.version == 4:
        return GLOBAL
    if value & _UNICAST[1] != _UNICAST[0]:
        return "reserved"
    return "ISATAP" if value >> 32 & 0xFFFF_FFFF in _ISATAP else GLOBAL


def embedded(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address carries, and that its packets may end at."""
    if isinstance(address, IPv4Address):
        return ()
    value = int(address)
    if value >> 112 == _6TO4:
        return (IPv4Address(value >> 80 & 0xFFFF_FFFF),)
    if value >> 96 == _TEREDO:  # its server, and its client with every bit flipped
        return (IPv4Address(value >> 64 & 0xFFFF_FFFF), IPv4Address(~value & 0xFFFF_FFFF))
    # ::1 and :: are no v4-compatible addresses (RFC 4291 §2.5.5.1).
    inside = value > 1 and any(value & mask == start for start, mask in _AT_THE_END)
    if inside or value >> 32 & 0xFFFF_FFFF in _ISATAP:
        return (IPv4Address(value & 0xFFFF_FFFF),)
    return ()


def closed(address: Address, opened: tuple[Network, ...]) -> str:
    """Why this address may not be dialled where rules open `opened`; "" when it may.

    A metadata address is opened only by itself, never by a range around it. Of an address that carries another one,
    both must be free or opened."""
    for each in (address, *embedded(address)):
        kind = classify(each)
        if kind == GLOBAL:
            continue
        wide = 32 if each.version == 4 else 128
        if not any(
            each.version == network.version and each in network and (kind != METADATA or network.prefixlen == wide)
            for network in opened
        ):
            return f"{each} is {kind}" if each == address else f"{address} is {classify(address)} and leads to {each}"
    return ""


def opening(text: str) -> Network:
    """A range that a rule opens, canonical. Raises ValueError: not a range, free already, or wider than one kind."""
    try:
        network = ip_network(text)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ValueError("is not a range such as 10.0.0.0/8, with no bits set beyond its length") from None
    if isinstance(network, IPv6Network) and network.network_address.scope_id:
        raise ValueError("has a zone id")
    kind = classify(network.network_address)
    if kind == GLOBAL:
        raise ValueError("is free already; only what is always denied is opened by naming it")
    if not any(_within(network, ip_network(known)) for known, _ in _RANGES):
        raise ValueError("is wider than what it opens: name the private, loopback or other range itself, or a part")
    return network


def _within(network: Network, known: Network) -> bool:
    return (
        network.version == known.version and network.prefixlen >= known.prefixlen and network.network_address in known
    )
