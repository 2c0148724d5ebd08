"""One canonical form of where a request goes: the only parser of hosts, ports, targets, paths and methods.

Rules, tokens, policies and the proxy all read these forms and no others, and what is sent on is the canonical form, so
that what was judged is what arrives. Whatever two parsers could read in two ways is refused, never interpreted:

    host     ASCII letters, digits, hyphens; lower-cased; labels of 1 to 63, at most 253 in all. One trailing dot is
             dropped (it is the same name); two are refused. No underscore: no certificate can name it. `xn--` must be
             valid IDNA 2008. In a rule other scripts may be written out, and become `xn--`.
    IPv4     four decimal numbers without leading zeros. A name that ends in a number otherwise (0177.1, 0x7f000001,
             2130706433, 127.1, 1.2.3.4.) is refused: resolvers take it for an address.
    IPv6     in brackets, without zone; `[::ffff:1.2.3.4]` is 1.2.3.4
    port     decimal without leading zeros, 1 to 65535
    userinfo refused, also an empty one
    path     RFC 3986 characters; percent-encoding in upper case, and none of unreserved characters (`%41` is `A`);
             refused: dot segments (encoded, too), empty segments, encoded NUL and controls, backslashes, a percent
             sign that hides one of these, what does not decode to UTF-8. An encoded slash stays `%2F`, part of its
             segment, and no placeholder of a rule stands for it.
    query    printable ASCII without `#`, untouched
    method   upper case; CONNECT, TRACE and TRACK are refused: a trace shows the sandbox what egress put into a request
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import idna

from runner.address import parse

MAX_HOST = 253  # RFC 1035 §2.3.4, without the root's dot
MAX_PATH = 4096  # half of what servers commonly take (8 KiB a request line); policies read it
MAX_QUERY = 16384  # signed requests of object stores reach 4 KiB
PORTS = {"http": 80, "https": 443}
ANY = "*"  # the host of a manifest's rule: any name, so that the task profile alone says which

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z")  # WHATWG URL, "ends in a number"
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}\Z")
_REFUSED_METHODS = frozenset({"CONNECT", "TRACE", "TRACK"})
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*\Z")
_QUERY = re.compile(r"(?:\?[!-\"$-~]*)?\Z")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?\Z", re.DOTALL)
_TRIPLET = re.compile(r"%([0-9A-Fa-f]{2})")
_BARE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# A segment that is `.` or `..`, also one that becomes so where `%2F` separates or `;` begins parameters.
_DOTS = re.compile(r"(?:/|%2F)\.\.?(?=[/;]|%2F|\Z)")
_HIDDEN = re.compile(r"%(?:[01][0-9A-F]|7F|5C|25(?:2[EeFf5]|5[Cc]|[01][0-9A-Fa-f]|7[Ff]))")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_TEMPLATE = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]{0,31}\}\Z")


class Malformed(ValueError):
    """Not a destination. The text says what was expected, and holds nothing of what came."""


class Destination(NamedTuple):
    """A canonical host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{written(self.host)}:{self.port}"


class Target(NamedTuple):
    """An absolute-form request target. `query` with its `?`, "" when there is none."""

    scheme: str
    host: str
    port: int
    path: str
    query: str


# --- hosts and ports ------------------------------------------------------------------------------------------


def host(text: str) -> str:
    """The canonical host of `text`: a name, an IPv4 address, or an IPv6 address without brackets. Raises Malformed."""
    if text.startswith("["):
        return _v6(text)
    name = _plain(text).lower()
    if _NUMBER.match(name):
        if ":" in name or parse(name) is None:
            raise Malformed("the host ends in a number and is no dotted IPv4 address")
        return name
    name = name.removesuffix(".")
    if not _NAME.match(name) or len(name) > MAX_HOST or _NUMBER.match(name):
        raise Malformed("the host is no name of letters, digits and hyphens, and no IP address")
    if "xn--" in name:
        _check_idna(name)
    return name


def is_literal(canonical: str) -> bool:
    """Whether a canonical host is an IP address: no canonical name ends in a digit-only label or has a colon."""
    return parse(canonical) is not None


def written(canonical: str) -> str:
    """A canonical host as it stands before a port."""
    return f"[{canonical}]" if ":" in canonical else canonical


def port(text: str) -> int:
    """A port number. Raises Malformed."""
    if not _PORT.match(text) or int(text) > 65535:
        raise Malformed("the port is no decimal number from 1 to 65535")
    return int(text)


def authority(text: str, default: int = 0) -> Destination:
    """`host:port`, as CONNECT and Host carry it; without a port `default`, which 0 makes required. Raises Malformed."""
    if "@" in text:
        raise Malformed("credentials before the host are refused")
    name, colon, number = text.rpartition(":")
    if text.endswith("]") or not colon:
        name, number = text, ""
        if not default:
            raise Malformed("the port is missing")
    elif ":" in name and not name.startswith("["):
        raise Malformed("an IPv6 address stands in brackets")
    return Destination(host(name), port(number) if colon and name != text else default)


def _plain(text: str) -> str:
    if not text or len(text) > MAX_HOST + 1 or not text.isascii():
        raise Malformed("the host is empty, too long or not ASCII")
    return text


def _v6(text: str) -> str:
    address = parse(text[1:-1]) if text.endswith("]") else None
    if address is None or address.version != 6:
        raise Malformed("there is no IPv6 address without zone between the brackets")
    return str(address.ipv4_mapped or address)


def _check_idna(name: str) -> None:
    for label in name.split("."):
        if label.startswith("xn--"):
            try:
                valid = idna.alabel(idna.ulabel(label)).decode("ascii") == label
            except (idna.IDNAError, UnicodeError):
                valid = False
            if not valid:
                raise Malformed("a label that begins with xn-- is not valid IDNA")


# --- requests -------------------------------------------------------------------------------------------------


def method(text: str) -> str:
    """A request method that egress passes on. Raises Malformed."""
    if not _METHOD.match(text):
        raise Malformed("the method is no word in upper case")
    if text in _REFUSED_METHODS:
        raise Malformed(f"{text} is refused here")
    return text


def path(text: str) -> str:
    """The canonical form of an absolute path without query. Raises Malformed."""
    if len(text) > MAX_PATH or not _PATH.match(text):
        raise Malformed(f"the path has characters to be percent-encoded, no / first, or more than {MAX_PATH} bytes")
    if "%" in text:
        if _BARE.search(text):
            raise Malformed("a percent sign in the path is not followed by two hexadecimal digits")
        text = _TRIPLET.sub(_triplet, text)
        if _HIDDEN.search(text):
            raise Malformed("the path encodes a control, a backslash or an encoding of one")
        try:
            unquote_to_bytes(text).decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("the path does not decode to UTF-8") from None
    if "//" in text:
        raise Malformed("the path has an empty segment (//)")
    if "." in text and _DOTS.search(text):
        raise Malformed("the path has a dot segment (. or ..): resolve it first")
    return text


def origin(text: str) -> tuple[str, str]:
    """Canonical path and query of an origin-form target; the query with its `?`, "" when there is none. Raises
    Malformed."""
    before, mark, after = text.partition("?")
    query = mark + after
    if len(query) > MAX_QUERY or not _QUERY.match(query):
        raise Malformed(f"the query has a #, other than printable ASCII, or more than {MAX_QUERY} bytes")
    return path(before), query


def absolute(text: str, schemes: frozenset[str] = frozenset({"http"})) -> Target:
    """An absolute-form target. Raises Malformed; a scheme that is not one of `schemes` is refused, too."""
    found = _ABSOLUTE.match(text)
    if found is None:
        raise Malformed("the target is no absolute URL such as http://host/path, without fragment")
    scheme = found[1].lower()
    if scheme not in schemes:
        raise Malformed(f"the scheme is not {' or '.join(sorted(schemes))}; https goes through CONNECT")
    where = authority(found[2], PORTS.get(scheme, 0))
    asked, query = origin((found[3] or "/") + (found[4] or ""))
    return Target(scheme, where.host, where.port, asked, query)


def _triplet(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return char if char in _UNRESERVED else found[0].upper()


# --- rules ----------------------------------------------------------------------------------------------------


def host_pattern(text: str, *, anywhere: bool = False) -> str:
    """The host of a rule, canonical: a name (of any script), `*.` and a name, or an IP literal; where `anywhere`, also
    `ANY`. Raises Malformed."""
    if text == ANY:
        if anywhere:
            return ANY
        raise Malformed("a rule here names its host; only a tool's manifest may leave that to the task profile")
    wildcard, name = (True, text[2:]) if text.startswith("*.") else (False, text)
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise Malformed("the host is not a valid internationalised name") from None
    found = host(f"[{name}]" if parse(name) and ":" in name else name)
    if wildcard and is_literal(found):
        raise Malformed("a wildcard stands before a name, not before an address")
    if wildcard and "." not in found:
        raise Malformed("a wildcard over a whole top-level domain opens too much; name a domain below it")
    return f"*.{found}" if wildcard else found


class PathPattern(NamedTuple):
    """A path of a rule: its segments, None for a placeholder; `prefix` when anything may follow them."""

    segments: tuple[str | None, ...]
    prefix: bool

    def matches(self, segments: list[str]) -> bool:
        """Whether a canonical path, split at its slashes, fits. Time is linear in its length."""
        own, prefix = self
        if len(segments) < len(own) + prefix or (len(segments) > len(own) and not prefix):
            return False
        for wanted, found in zip(own, segments, strict=False):
            if wanted is None:
                if not found or "%2F" in found:
                    return False
            elif wanted != found:
                return False
        return not any("%2F" in each for each in segments[len(own) :])


def path_pattern(text: str) -> PathPattern:
    """A path of a rule: literal, `{name}` for exactly one segment, `/*` at its end for anything below. Raises
    Malformed, also where the text is not in canonical form."""
    prefix = text.endswith("/*")
    segments: list[str | None] = []
    literal: list[str] = []
    for segment in text.removesuffix("/*").split("/"):
        placeholder = _TEMPLATE.match(segment)
        if "*" in segment:
            raise Malformed("`*` stands only at the end, for everything below; one segment is `{name}`")
        segments.append(None if placeholder else segment)
        literal.append("x" if placeholder else segment)
    plain = "/".join(literal) or text[:1]
    if path(plain) != plain or (prefix and len(literal) > 1 and not literal[-1]):
        raise Malformed("the path is not in canonical form: percent-encode in upper case and only what needs it")
    return PathPattern(tuple(segments), prefix)
