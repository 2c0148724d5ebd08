"""[[egress]], [[secrets]] and `delivery` of manifests and profiles, checked and put into canonical form.

A rule that could never match, or that promises what cannot be kept (a method inside an opaque tunnel, a credential for
a request that nobody can read), is an error of its file, not a surprise of its first call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from runner.address import closed, opening, parse
from runner.catalog.place import Place
from runner.config import RuleFile, size
from runner.destination import ANY, PORTS, host_pattern, method, path_pattern
from runner.errors import RunnerError
from runner.model import Allowlist, Delivery, EgressRule, Manifest, SecretRef, TaskProfile

T = TypeVar("T")

MAX_RULES = 256  # of one file; a list that long is read by nobody
MAX_VALUES = 64  # ports, methods, paths or ranges of one rule
MAX_SECRETS = 16
MAX_RATE = 1_000_000
MAX_BYTES = 1 << 46

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?::[A-Za-z0-9][A-Za-z0-9._/#-]{0,255})?\Z")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")  # RFC 9110 §5.6.2
_QUERY_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")

# What the sandbox's own environment says, or what would change how a program is loaded or whom it trusts.
RESERVED_VARIABLES = frozenset({
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "TERM", "LANG", "TZ", "IFS", "ENV", "BASH_ENV"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"),
    *("PIP_CERT", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "DENO_CERT", "PGSSLROOTCERT", "SSLKEYLOGFILE"),
    *("NODE_OPTIONS", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "GCONV_PATH"),
})  # fmt: skip
_RESERVED_BEGINNINGS = ("LD_", "PYTHON", "LC_", "RUNNER_", "GIT_CONFIG")
# Headers that frame a request or name its destination: whoever writes these writes another request.
_FRAMING = frozenset({
    *("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"),
    *("keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate"),
})  # fmt: skip


class SecretFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[secrets]] table of a manifest, as written."""

    name: str
    variable: str
    delivery: Delivery = "inject"
    destinations: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


class _Table:
    """One table of an array of tables: errors name it, its file and the line of the key."""

    def __init__(self, place: Place, array: tuple[str, ...], number: int, name: str) -> None:
        self._place = place
        self._path = (*array, str(number))
        self._shown = f"{'.'.join(array)} `{name[:64]}`" if name.isprintable() else ".".join(array)

    def wrong(self, key: str, reason: str, next_step: str = "") -> RunnerError:
        return self._place.wrong(f"{self._shown}: {key}: {reason}", *self._path, key, next_step=next_step)

    def read(self, key: str, value: str, parse_: Callable[[str], T]) -> T:
        """`value` parsed; whatever the parser says of it becomes the reason."""
        try:
            return parse_(value)
        except ValueError as error:
            shown = value[:80] if value.isprintable() else "?"
            raise self.wrong(key, f"`{shown}`: {error}") from None

    def name(self, name: str, pattern: re.Pattern[str], before: Sequence[str]) -> None:
        if not pattern.match(name):
            raise self.wrong("name", f"does not match {pattern.pattern[:-2]}")
        if name in before:
            raise self.wrong("name", f"`{name}` is the name of another one", "names are unique in a file")


# --- rules ----------------------------------------------------------------------------------------------------


def compile_rules(
    files: Sequence[RuleFile],
    place: Place,
    array: tuple[str, ...] = ("egress",),
    *,
    anywhere: bool = False,
    own: bool = False,
) -> tuple[EgressRule, ...]:
    """The rules of one file; `anywhere` lets `host` be `*`, as in a manifest and nowhere else; `own` are those of the
    daemon itself. Raises `RunnerError` of the place's code, naming file, line, rule and key."""
    if len(files) > MAX_RULES:
        raise place.wrong(f"{'.'.join(array)}: more than {MAX_RULES} rules", *array)
    found: list[EgressRule] = []
    for number, file in enumerate(files):
        table = _Table(place, array, number, file.name)
        table.name(file.name, _NAME, [rule.name for rule in found])
        if own:
            _check_own(file, table)
        found.append(_rule(file, table, anywhere=anywhere))
    return tuple(found)


def _check_own(file: RuleFile, table: _Table) -> None:
    """What belongs to a call, and is pruned with it: the daemon's own dials have none, and bring credentials."""
    if file.keep:
        raise table.wrong(
            "keep", "what answers the daemon itself may be a credential, and is never kept", "leave it out"
        )
    if file.record != "path":
        raise table.wrong("record", "a digest would name content that belongs to no call", "leave it out")


def _rule(file: RuleFile, table: _Table, *, anywhere: bool) -> EgressRule:
    _check_readable(file, table)
    rule = EgressRule(
        name=file.name,
        host=table.read("host", file.host, lambda text: host_pattern(text, anywhere=anywhere)),
        ports=_ports(file, table),
        protocol=file.protocol,
        inspect=file.tls == "inspect",
        methods=_unique(table, "methods", [table.read("methods", each, method) for each in file.methods]),
        paths=_unique(table, "paths", [table.read("paths", each, _pattern) for each in file.paths]),
        addresses=_unique(table, "addresses", [table.read("addresses", each, _range) for each in file.addresses]),
        up=_bytes(table, "up", file.up),
        down=_bytes(table, "down", file.down),
        rate=file.rate,
        record=file.record,
        keep=file.keep,
    )
    if not 0 <= file.rate <= MAX_RATE:
        raise table.wrong("rate", f"is not from 0 (no bound) to {MAX_RATE} requests a minute")
    literal = parse(rule.host)
    why = closed(literal, tuple(map(opening, rule.addresses))) if literal else ""
    if why:
        step = f'where that is meant, say so: addresses = ["{literal}"]'
        raise table.wrong("host", f"{why}: always denied, so this rule would never match", step)
    return rule


def _check_readable(file: RuleFile, table: _Table) -> None:
    """What a rule says of requests needs requests that can be read."""
    if file.protocol != "https" and file.tls == "inspect":
        raise table.wrong("tls", f"{file.protocol} has no TLS that egress could end", "leave it out")
    if file.protocol == "tcp" and not file.ports:
        raise table.wrong("ports", "a tcp rule has no port by default", "name them: ports = [5432]")
    if file.protocol == "http" or file.tls == "inspect":
        return
    for key in ("methods", "paths", "keep"):
        if getattr(file, key):
            what = "tcp carries no requests" if file.protocol == "tcp" else "the tunnel stays opaque"
            step = "leave it out" if file.protocol == "tcp" else 'add tls = "inspect"'
            raise table.wrong(key, f"{what}, so nobody can tell", step)


def _ports(file: RuleFile, table: _Table) -> tuple[int, ...]:
    for each in file.ports:
        if not 1 <= each <= 65535:
            raise table.wrong("ports", f"{each} is not from 1 to 65535")
    return _unique(table, "ports", list(file.ports)) or (PORTS[file.protocol],)


def _pattern(text: str) -> str:
    path_pattern(text)
    return text


def _range(text: str) -> str:
    return str(opening(text))


def _bytes(table: _Table, key: str, value: str | int) -> int:
    found = table.read(key, str(value), size)
    if not 0 <= found <= MAX_BYTES:
        raise table.wrong(key, "is negative or absurdly large")
    return found


def _unique(table: _Table, key: str, values: list[T]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise table.wrong(key, "says the same twice")
    if len(values) > MAX_VALUES:
        raise table.wrong(key, f"has more than {MAX_VALUES} values", "write another rule")
    return tuple(values)


def overlap(rule: EgressRule, other: EgressRule) -> bool:
    """Whether some request could match both: their hosts, ports, protocol and methods have one in common. Paths are
    not compared."""
    return (
        rule.protocol == other.protocol
        and bool({*rule.ports} & {*other.ports})
        and (not rule.methods or not other.methods or bool({*rule.methods} & {*other.methods}))
        and (rule.host == other.host or _below(rule.host, other.host) or _below(other.host, rule.host))
    )


def _below(wildcard: str, host: str) -> bool:
    if wildcard == ANY:  # what its addresses leave of literals is the authoriser's to say
        return True
    return wildcard.startswith("*.") and parse(host) is None and host.partition(".")[2] == wildcard[2:]


# --- secrets --------------------------------------------------------------------------------------------------


def compile_secrets(files: Sequence[SecretFile], rules: Sequence[EgressRule], place: Place) -> tuple[SecretRef, ...]:
    """The secrets of one manifest with these rules. Raises `RunnerError`, naming file, line, secret and key."""
    if len(files) > MAX_SECRETS:
        raise place.wrong(f"secrets: more than {MAX_SECRETS}", "secrets")
    found: list[SecretRef] = []
    for number, file in enumerate(files):
        table = _Table(place, ("secrets",), number, file.name)
        table.name(file.name, _SECRET, [each.name for each in found])
        _check_variable(file, table, [each.variable for each in found])
        _check_bound(file, table, {rule.name: rule for rule in rules})
        found.append(
            SecretRef(
                name=file.name,
                variable=file.variable,
                delivery=file.delivery,
                destinations=_unique(table, "destinations", list(file.destinations)),
                places=_unique(table, "places", [_place(each, table) for each in file.places]),
            )
        )
    return tuple(found)


def _check_variable(file: SecretFile, table: _Table, before: Sequence[str]) -> None:
    if not _VARIABLE.match(file.variable):
        raise table.wrong("variable", f"does not match {_VARIABLE.pattern[:-2]}")
    if file.variable in RESERVED_VARIABLES or file.variable.startswith(_RESERVED_BEGINNINGS):
        raise table.wrong("variable", f"`{file.variable}` is the sandbox's own, or changes how programs run")
    if file.variable in before:
        raise table.wrong("variable", f"`{file.variable}` is the variable of another secret")


def _check_bound(file: SecretFile, table: _Table, rules: dict[str, EgressRule]) -> None:
    """An injected secret is bound to rules and places; one that is handed over cannot be."""
    if file.delivery != "inject":
        for key in ("destinations", "places"):
            if getattr(file, key):
                reason = f"a tool that holds the value (delivery {file.delivery}) can send it anywhere it may reach"
                raise table.wrong(key, reason, 'use delivery = "inject", or leave it out')
        return
    if not file.destinations:
        raise table.wrong("destinations", "an injected secret needs the names of rules of this file's [[egress]]")
    if not file.places:
        step = 'such as places = ["header:Authorization"]; also query:NAME, basic, body'
        raise table.wrong("places", "an injected secret needs the places of a request where it may stand", step)
    for name in file.destinations:
        rule = rules.get(name)
        if rule is None:
            known = f"rules of this file: {', '.join(rules) or 'none'}"
            raise table.wrong("destinations", f"no [[egress]] rule `{name[:64]}` in this file", known)
        if rule.host == ANY:
            reason = f"rule `{name}` names no host, so the credential would go wherever the profile leads"
            raise table.wrong("destinations", reason, "copy the tool, and name the credential's host in a rule of it")
        if rule.protocol != "http" and not rule.inspect:
            step = f'add tls = "inspect" to rule {name}' if rule.protocol == "https" else "use delivery file or env"
            raise table.wrong("destinations", f"requests by rule `{name}` cannot be read, so nothing goes in", step)


def _place(text: str, table: _Table) -> str:
    kind, colon, name = text.partition(":")
    if kind == "header" and _TOKEN.match(name):
        if name.lower() in _FRAMING:
            raise table.wrong("places", f"header `{name}` frames a request, and is egress's own")
        return f"header:{name.lower()}"
    if (kind == "query" and _QUERY_NAME.match(name)) or (kind in ("basic", "body") and not colon):
        return text
    shown = text[:80] if text.isprintable() else "?"
    raise table.wrong("places", f"`{shown}` is not header:NAME, query:NAME, basic or body")


def check_delivery(delivery: Sequence[Delivery], place: Place) -> tuple[Delivery, ...]:
    """How a task profile lets secrets reach its tools; () = not at all. Raises `RunnerError`."""
    if len(set(delivery)) != len(delivery):
        raise place.wrong("delivery: says the same twice", "delivery")
    return tuple(delivery)


def allowlists(profile: TaskProfile, manifest: Manifest) -> tuple[Allowlist, ...]:
    """What the files let a call of this tool reach in a task of this profile: egress allows what every part does."""
    return (
        Allowlist(part=f"profile {profile.name}", rules=profile.egress),
        Allowlist(part=f"tool {manifest.id}", rules=manifest.egress),
    )
