"""The rule that a denial names: the smallest that would have allowed the request, as its file would write it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from runner.address import Address, closed, embedded, opening, parse
from runner.destination import PORTS
from runner.model import EgressRule
from runner.wire.egress import Requested


def lacking_rule(part: str, names: Collection[str], request: Requested) -> str:
    """A new rule of `part`, whose rules have these names, for exactly this request; "" where none can allow it."""
    readable = request.visibility != "opaque"
    literal = parse(request.host)
    rule = EgressRule(
        name=_fresh_name(names, request.host),
        host=request.host,
        ports=(request.port,),
        protocol=request.protocol,
        inspect=readable and request.protocol == "https",
        methods=(request.method,) if readable else (),
        paths=(_as_pattern(request.path),) if readable else (),
        addresses=_openings(literal) if literal else (),
    )
    unsayable = any("*" in segment and "%2F" in segment for segment in request.path.split("/"))
    return "" if unsayable or (literal and _closed(literal, rule)) else rule_text(part, rule)


def opening_rule(part: str, rule: EgressRule, address: Address) -> str:
    """The matching rule with the ranges added that it lacks for an address; "" when no range can open it."""
    added = tuple(each for each in _openings(address) if each not in rule.addresses)
    wider = msgspec.structs.replace(rule, addresses=(*rule.addresses, *added))
    return "" if _closed(address, wider) else rule_text(part, wider)


def rule_text(part: str, rule: EgressRule) -> str:
    """A rule as TOML, beneath the file that it belongs to; what is as by default is left out."""
    kind, _, name = part.partition(" ")
    file, table = {
        "profile": (f"profiles/{name}.toml", "[[egress]]"),
        "tool": (f"tools/{name}/tool.toml", "[[egress]]"),
    }.get(kind, ("runner.toml", "[[daemon.destinations]]"))
    lines = [f"# {file}", table, f'name = "{rule.name}"', f'host = "{rule.host}"']
    if rule.ports != (PORTS.get(rule.protocol, 0),):
        lines.append(f"ports = [{', '.join(map(str, rule.ports))}]")
    if rule.protocol != "https":
        lines.append(f'protocol = "{rule.protocol}"')
    if rule.inspect:
        lines.append('tls = "inspect"')
    for key, values in (("methods", rule.methods), ("paths", rule.paths), ("addresses", rule.addresses)):
        if values:
            quoted = ", ".join(f'"{value}"' for value in values)
            lines.append(f"{key} = [{quoted}]")
    for key, amount in (("up", rule.up), ("down", rule.down), ("rate", rule.rate)):
        if amount:
            lines.append(f"{key} = {amount}")
    if rule.record != "path":
        lines.append(f'record = "{rule.record}"')
    if rule.keep:
        lines.append("keep = true")
    return "\n".join(lines)


def _closed(address: Address, rule: EgressRule) -> str:
    return closed(address, tuple(map(opening, rule.addresses)))


def _openings(address: Address) -> tuple[str, ...]:
    """The narrowest ranges that open an address, and the one that it carries."""
    found = []
    for each in (address, *embedded(address)):
        try:
            found.append(str(opening(str(each))))
        except ValueError:  # free already, or nothing that can be opened
            continue
    return tuple(found)


def _as_pattern(canonical: str) -> str:
    """A path as a rule writes it: a segment with the sign of patterns becomes a placeholder."""
    return "/".join("{any}" if "*" in segment else segment for segment in canonical.split("/"))


def _fresh_name(names: Collection[str], host: str) -> str:
    name = "".join(char if char.isalnum() else "-" for char in host).strip("-")[:60]
    taken = (f"{name}-{number}" if number else name for number in range(len(names) + 1))
    return next(each for each in taken if each not in names)
