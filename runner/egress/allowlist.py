"""The one authoriser of egress: may this call reach this destination, and on what terms?

Pure and total: the same request against the same rules has the same verdict; whatever is not in canonical form, not
understood or not named is denied. A request goes out only where a rule of every part (task profile, tool) allows it:
an intersection without any algebra, which can say which part denies and what rule it lacks.

`*` is the host of rules of generic tools: any name, and of addresses written out only those in ranges that the rule
opens. The catalogue lets manifests say it and nobody else, so it never is all that stands before a destination.

Of the rules of one part that match, the most specific is named and counted: an exact host before a wildcard, and that
before `*`, then one that names paths, then methods, then the first in its file. Inspection and address ranges are those
of all that match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from runner.address import Address, Network, closed, opening, parse
from runner.destination import ANY, Malformed, PathPattern, host, method, path, path_pattern, written
from runner.egress.missing import lacking_rule, opening_rule
from runner.model import Allowlist, EgressRule, Protocol, Value
from runner.wire.egress import Requested

UPGRADES = frozenset({"", "websocket"})  # whatever else a connection may turn into, nobody here reads


class Limit(Value, frozen=True):
    """What one rule lets one call spend: bytes each way, requests a minute; 0 is no bound."""

    rule: str
    up: int = 0
    down: int = 0
    rate: int = 0


class Verdict(Value, frozen=True):
    """The answer to one request. `part` is the first that denies; `missing` the rule that it lacks."""

    allowed: bool
    reason: str = ""
    code: str = ""  # of `runner.errors.CODES`; "" when allowed
    part: str = ""
    missing: str = ""  # TOML; "" where no rule can allow it
    rules: tuple[str, ...] = ()  # `part/name`, one of each part
    protocol: Protocol = "https"
    inspect: bool = False
    limits: tuple[Limit, ...] = ()  # of these rules, where they set any
    up: int = 0  # the least of the limits
    down: int = 0
    rate: int = 0
    record: Literal["path", "digest"] = "path"
    keep: bool = False
    opened: tuple[tuple[str, ...], ...] = ()  # of each part: ranges that its rules open for this request


class PartVerdict(Value, frozen=True):
    """What one part says of a request: every rule of it that matches, or why none does."""

    part: str
    allowed: bool
    rules: tuple[str, ...] = ()
    reason: str = ""
    missing: str = ""


class _Rule(NamedTuple):
    id: str
    rule: EgressRule
    paths: tuple[PathPattern, ...]
    addresses: tuple[Network, ...]


class _Part(NamedTuple):
    name: str
    exact: dict[str, tuple[_Rule, ...]]
    below: dict[str, tuple[_Rule, ...]]  # `*.example.com` under "example.com"
    anywhere: tuple[_Rule, ...]  # `*`
    names: frozenset[str]
    opens: bool  # whether any rule opens a range

    def of(self, host_: str) -> tuple[_Rule, ...]:
        """The rules for a host, most specific first."""
        found = self.exact.get(host_, ())
        if not self.below and not self.anywhere:
            return found
        literal = parse(host_)
        if literal is None:
            return found + self.below.get(host_.partition(".")[2], ()) + self.anywhere
        return found + tuple(each for each in self.anywhere if _named(literal, each.addresses))


class Allowlists:
    """The parts of one call, compiled: a decision costs what the rules of one host cost, however many others are.

    Raises ValueError for rules that are not in canonical form: the catalogue makes none."""

    def __init__(self, allowlists: Sequence[Allowlist]) -> None:
        self._parts = tuple(map(_compiled, allowlists))

    def authorise(self, request: Requested) -> Verdict:
        """The verdict on one request as it can be read: a tunnel by its destination, anything else by its head.

        A tunnel to https is asked about as opaque only where `connect` says that it stays so."""
        wrong = _not_canonical(request)
        if wrong:
            return _denied("syntax", wrong, protocol=request.protocol)
        matching: list[Sequence[_Rule]] = []
        for part in self._parts:
            rules = [each for each in part.of(request.host) if not _unfit(each, request)]
            if not rules:
                return _lacking(part, request)
            matching.append(rules)
        return self._allowed(request.host, request.protocol, matching)

    def leading_to(self, host_: str) -> tuple[str, ...]:
        """`part/name` of every rule for this host, whatever else it asks of a request."""
        return tuple(each.id for part in self._parts for each in part.of(host_))

    def connect(self, host_: str, port: int) -> Verdict:
        """Whether any request through a tunnel to this place could be allowed: by which protocol, and whether the
        tunnel must be opened to judge each of them. An allowed tunnel that stays opaque is a request of its own."""
        asked = Requested(id=0, protocol="https", host=host_, port=port, visibility="opaque")
        wrong = _not_canonical(asked)
        if wrong:
            return _denied("syntax", wrong)
        tunnels: tuple[Protocol, ...] = ("https", "tcp")
        for protocol in tunnels:
            matching = [
                [each for each in part.of(host_) if each.rule.protocol == protocol and port in each.rule.ports]
                for part in self._parts
            ]
            if matching and all(matching):
                return self._allowed(host_, protocol, matching)
        lacking = (
            part
            for part in self._parts
            if not any(each.rule.protocol in tunnels and port in each.rule.ports for each in part.of(host_))
        )
        part = next(lacking, None)
        if part is None and self._parts:
            reason = "one part takes it for https and another for tcp"
            return _denied(self._parts[-1].name, f"{self._parts[-1].name}: {reason}")
        return _lacking(part, asked)

    def inspected(self, host_: str, port: int) -> bool:
        """Whether a tunnel to this place, once every part lets it be, is opened because one of them says so now."""
        return any(each.rule.inspect and port in each.rule.ports for part in self._parts for each in part.of(host_))

    def addresses(self, verdict: Verdict, host_: str, addresses: Sequence[str]) -> Verdict:
        """An allowed verdict once the host's addresses are known: denied when one of them is none that may be dialled.

        A name is refused whole: whoever serves one good address beside one bad one tries something."""
        if not verdict.allowed:
            return verdict
        if not addresses:
            return _denied("address", "the name has no address", protocol=verdict.protocol)
        for text in addresses:
            address = parse(text)
            if address is None:
                return _denied("address", "the resolver gave what is no address", protocol=verdict.protocol)
            for part, opened in zip(self._parts, verdict.opened, strict=True):
                why = closed(address, tuple(map(opening, opened)))
                if why:
                    reason = f"{host_}: {why}, and no rule of {part.name} names that range"
                    rule = next(each for each in part.of(host_) if each.id in verdict.rules)
                    return _denied(
                        "address",
                        reason,
                        protocol=verdict.protocol,
                        missing=opening_rule(part.name, rule.rule, address),
                    )
        return verdict

    def explain(self, request: Requested) -> list[PartVerdict]:
        """What each part says of a request, for people."""
        found = []
        for part in self._parts:
            rules = tuple(each.id for each in part.of(request.host) if not _unfit(each, request))
            lacks = None if rules else _lacking(part, request)
            found.append(
                PartVerdict(
                    part=part.name,
                    allowed=bool(rules),
                    rules=rules,
                    reason=lacks.reason if lacks else "",
                    missing=lacks.missing if lacks else "",
                )
            )
        return found

    def _allowed(self, host_: str, protocol: Protocol, matching: Sequence[Sequence[_Rule]]) -> Verdict:
        if not matching:  # a conjunction over nothing would allow everything
            return _denied("profile", "nothing is allowed: the call has no allowlist", protocol=protocol)
        chosen = [rules[0] for rules in matching]
        limits = tuple(
            Limit(rule=each.id, up=each.rule.up, down=each.rule.down, rate=each.rule.rate)
            for each in chosen
            if each.rule.up or each.rule.down or each.rule.rate
        )
        verdict = Verdict(
            allowed=True,
            rules=tuple(each.id for each in chosen),
            protocol=protocol,
            inspect=protocol == "https" and any(each.rule.inspect for rules in matching for each in rules),
            limits=limits,
            up=_least(each.up for each in limits),
            down=_least(each.down for each in limits),
            rate=_least(each.rate for each in limits),
            record="digest" if any(each.rule.record == "digest" for each in chosen) else "path",
            keep=any(each.rule.keep for each in chosen),
            opened=tuple(
                tuple(str(network) for each in rules for network in each.addresses) if part.opens else ()
                for part, rules in zip(self._parts, matching, strict=True)
            ),
        )
        return self.addresses(verdict, host_, (host_,)) if parse(host_) else verdict


def authorise(allowlists: Allowlists, request: Requested) -> Verdict:
    """`Allowlists.authorise`: the question that every request of every protocol passes."""
    return allowlists.authorise(request)


def address_verdict(allowlists: Allowlists, verdict: Verdict, host_: str, addresses: Sequence[str]) -> Verdict:
    """`Allowlists.addresses`: the same, once addresses are known and before one of them is dialled."""
    return allowlists.addresses(verdict, host_, addresses)


# --- compiling ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=128)  # the same few come with every call, and nothing changes what they became
def _compiled(allowlist: Allowlist) -> _Part:
    exact: dict[str, list[_Rule]] = {}
    below: dict[str, list[_Rule]] = {}
    anywhere: list[_Rule] = []
    for rule in allowlist.rules:
        where, name = (below, rule.host[2:]) if rule.host.startswith("*.") else (exact, rule.host)
        made = _Rule(
            f"{allowlist.part}/{rule.name}",
            rule,
            tuple(map(path_pattern, rule.paths)),
            tuple(map(opening, rule.addresses)),
        )
        (anywhere if rule.host == ANY else where.setdefault(name, [])).append(made)
    return _Part(
        allowlist.part,
        {name: _sorted(rules) for name, rules in exact.items()},
        {name: _sorted(rules) for name, rules in below.items()},
        _sorted(anywhere),
        frozenset(rule.name for rule in allowlist.rules),
        any(rule.addresses for rule in allowlist.rules),
    )


def _named(literal: Address, opened: tuple[Network, ...]) -> bool:
    return any(literal.version == network.version and literal in network for network in opened)


def _sorted(rules: Sequence[_Rule]) -> tuple[_Rule, ...]:
    return tuple(sorted(rules, key=lambda each: (not each.rule.paths, not each.rule.methods)))


# --- deciding -------------------------------------------------------------------------------------------------


def _not_canonical(request: Requested) -> str:
    """Why a request is none that this can judge; "" when it is. Egress has read it with the same parser before: this
    holds whoever calls."""
    try:
        if host(written(request.host)) != request.host:
            return "the host is not in canonical form"
        if not 1 <= request.port <= 65535:
            return "the port is not from 1 to 65535"
        if request.visibility == "opaque":
            return "an opaque request has neither method nor path" if request.method or request.path else ""
        if path(request.path) != request.path:
            return "the path is not in canonical form"
        method(request.method)
    except Malformed as error:
        return str(error)
    if request.upgrade not in UPGRADES:
        return "an upgrade to anything but websocket is refused: what follows it could not be read"
    return ""


# How far a rule is from a request, in the order in which a denial tells of it.
_PROTOCOL, _PORT, _OPAQUE, _METHOD, _PATH = range(1, 6)


def _unfit(candidate: _Rule, request: Requested) -> int:
    """The first thing about a rule of the right host that does not fit; 0 when it allows the request."""
    rule = candidate.rule
    if rule.protocol != request.protocol:
        return _PROTOCOL
    if request.port not in rule.ports:
        return _PORT
    if request.visibility == "opaque":
        return _OPAQUE if rule.inspect or rule.methods or rule.paths else 0
    if rule.methods and request.method not in rule.methods:
        return _METHOD
    if candidate.paths:
        segments = request.path.split("/")
        if not any(each.matches(segments) for each in candidate.paths):
            return _PATH
    return 0


def _least(values: Iterable[int]) -> int:
    return min((value for value in values if value), default=0)


# --- denying --------------------------------------------------------------------------------------------------


def _denied(part: str, reason: str, *, protocol: Protocol = "https", missing: str = "") -> Verdict:
    code = "protocol" if part == "syntax" else "egress"
    return Verdict(allowed=False, reason=reason, code=code, part=part, missing=missing, protocol=protocol)


def _lacking(part: _Part | None, request: Requested) -> Verdict:
    """The denial by a part of which no rule matches: how near it came, and the rule it lacks."""
    if part is None:
        return _denied("profile", "nothing is allowed: the call has no allowlist", protocol=request.protocol)
    near = part.of(request.host)
    reason = f"{part.name} has no rule for host {request.host}"
    if near:
        best = max(near, key=lambda each: _unfit(each, request))
        reason = {
            _PROTOCOL: f"{best.id} is for {best.rule.protocol}, not for {request.protocol}",
            _PORT: f"{best.id} is not for port {request.port}",
            _OPAQUE: f"{best.id} judges requests, which an opaque tunnel hides",
            _METHOD: f"{best.id} does not allow {request.method}",
            _PATH: f"{best.id} does not allow this path",
        }[_unfit(best, request)]
    return _denied(part.name, reason, protocol=request.protocol, missing=lacking_rule(part.name, part.names, request))
