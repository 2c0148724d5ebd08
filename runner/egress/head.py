"""Heads of requests and responses: screened byte by byte, then read by h11, and only where both agree. Pure.

h11 is lenient where the standard lets a recipient be (a bare LF, folded lines, twins of one length). A proxy that is
lenient reads one request where its peer reads two, so here everything that two parsers could read in two ways is an
error: nothing is repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import h11

Headers = tuple[tuple[bytes, bytes], ...]  # names in lower case

# How a body's end is known: a count of bytes, or one of these.
CHUNKED, UNTIL_CLOSE = -1, -2

_END = b"\r\n\r\n"
_BREAK = re.compile(rb"\n\r?\n")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST = re.compile(rb"([A-Za-z!#$%&'*+.^_`|~0-9-]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])\Z")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_TOKENS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*\Z")
REFUSED = b"X-Runner-Refused"  # of an answer by egress itself: which code; a destination's is not passed on
# What concerns one connection only (RFC 9110 §7.6.1), and what was meant for us.
_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"expect", b"upgrade"})
_NEEDED = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"authorization"})


class Syntax(Exception):
    """Not a head that has one reading. The text says what is wrong and holds nothing of what came."""


class Request(NamedTuple):
    """A request's head. `target` is as it came."""

    method: str
    target: str
    headers: Headers
    length: int  # of the body: a count or CHUNKED
    keep: bool  # whether the client wants the connection to go on
    upgrade: str  # what it wants to change to, "" for nothing
    expect: bool  # it waits for `100 Continue`
    old: bool  # it speaks HTTP/1.0: no chunks, no informational responses

    def header(self, name: bytes) -> bytes | None:
        """The first value of this name."""
        return next((value for each, value in self.headers if each == name), None)


class Response(NamedTuple):
    """A response's head."""

    status: int
    reason: bytes
    headers: Headers
    length: int  # of the body: a count, CHUNKED or UNTIL_CLOSE
    keep: bool


def end_of(data: bytes | bytearray, start: int = 0) -> int:
    """Where the head in `data` ends, 0 while it does not. Raises `Syntax` for one that ends otherwise than by CRLF."""
    found = _BREAK.search(data, max(0, start - 3))
    if found is None:
        return 0
    if data[max(0, found.start() - 1) : found.end()] != _END:
        raise Syntax("a line ends without CR")
    return found.end()


def parse_request(raw: bytes, maximum: int) -> Request:
    """A whole head, with its empty line and at most `maximum` fields. Raises `Syntax`."""
    first, headers = _screen(raw, maximum)
    line = _REQUEST.match(first)
    if line is None:
        raise Syntax("the request line is not `METHOD target HTTP/1.1`")
    old = line[3] == b"0"
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw) + 1)
    event = _event(reader, raw)
    if not isinstance(event, h11.Request) or (event.method, event.target) != (line[1], line[2]):
        raise Syntax("this is no request")
    _same(event.headers, headers)
    fields = dict(headers)
    if b"host" not in fields and not old:
        raise Syntax("Host is missing")
    length = _length(headers, old=old)
    options = _options(headers)
    upgrade = fields.get(b"upgrade", b"")
    if upgrade and (b"upgrade" not in options or old):
        raise Syntax("Upgrade is not named by Connection")
    expect = fields.get(b"expect")
    if expect is not None and (old or expect.lower() != b"100-continue"):
        raise Syntax("Expect asks for something else than 100-continue")
    return Request(
        method=line[1].decode(),
        target=line[2].decode(),
        headers=headers,
        length=0 if length is None else length,
        keep=not old and b"close" not in options,
        upgrade=upgrade.decode("latin-1").lower(),
        expect=expect is not None,
        old=old,
    )


def parse_response(raw: bytes, method: str, maximum: int) -> Response:
    """A whole head that answers a request of `method`. Raises `Syntax`."""
    first, headers = _screen(raw, maximum)
    line = _STATUS.match(first)
    if line is None:
        raise Syntax("the status line is not one of HTTP/1.1")
    old, status = line[1] == b"0", int(line[2])
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(raw) + 1)
    reader.send(h11.Request(method=method, target="/", headers=_asked(status)))
    event = _event(reader, raw)
    if not isinstance(event, h11.Response | h11.InformationalResponse) or event.status_code != status:
        raise Syntax("this is no response")
    _same(event.headers, headers)
    length = _length(headers, old=old)
    options = _options(headers)
    keep = b"close" not in options and (not old or b"keep-alive" in options)
    if status < 200 or status in (204, 304) or method == "HEAD":
        length = 0
    elif length is None:
        length, keep = UNTIL_CLOSE, False
    return Response(status, first[13:], headers, length, keep)


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields that are for the other end: no hop-by-hop ones, none meant for a proxy, no framing but a count, and no
    refusal, which is this proxy's alone to say."""
    dropped = _HOP | set(_options(headers)) | {b"expect", REFUSED.lower()}
    return [(name, value) for name, value in headers if name not in dropped and not name.startswith(b"proxy-")]


def render(first: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A head as bytes. Raises `Syntax` when a part of it would be more than its line."""
    for name, value in headers:
        if not _NAME.match(name) or _CONTROL.search(value):
            raise Syntax("a header would not be one line")
    if _CONTROL.search(first):
        raise Syntax("the first line would not be one line")
    return b"\r\n".join((first, *(name + b": " + value for name, value in headers), b"", b""))


def _screen(raw: bytes, maximum: int) -> tuple[bytes, Headers]:
    """First line and fields, where no byte is out of place."""
    lines = raw[: -len(_END)].split(b"\r\n")
    if len(lines) - 1 > maximum:
        raise Syntax(f"there are more than {maximum} header fields")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.match(name):
            raise Syntax("a header field is folded, or its name is not a token that a colon follows at once")
        if _CONTROL.search(value):
            raise Syntax("a header field has a control character")
        headers.append((name.lower(), value.strip(b" \t")))
    seen = set()
    for name, _ in headers:
        if name in _ONCE:
            if name in seen:
                raise Syntax(f"{name.decode().title()} comes twice")
            seen.add(name)
    return lines[0], tuple(headers)


def _event(reader: h11.Connection, raw: bytes) -> object:
    try:
        reader.receive_data(raw)
        return reader.next_event()
    except h11.ProtocolError as error:
        raise Syntax(str(error)[:200]) from None


def _same(theirs: Iterable[tuple[bytes, bytes]], ours: Headers) -> None:
    """Two readers, one reading. h11 writes the value of Transfer-Encoding in lower case."""
    found = list(theirs)
    if len(found) != len(ours) or any(
        name != own or (value != held and value != held.lower())
        for (name, value), (own, held) in zip(found, ours, strict=True)
    ):
        raise Syntax("the header fields have two readings")


def _asked(status: int) -> list[tuple[str, str]]:
    """The request that h11 must think was sent."""
    switch = [("Connection", "upgrade"), ("Upgrade", "any")] if status == 101 else []
    return [("Host", "x"), *switch]


def _length(headers: Headers, *, old: bool) -> int | None:
    """How the body is framed; None when nothing says so."""
    fields = dict(headers)
    count, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if count is not None:
            raise Syntax("Content-Length and Transfer-Encoding come together")
        if coding.lower() != b"chunked" or old:
            raise Syntax("Transfer-Encoding is not `chunked` alone, or not of HTTP/1.1")
        return CHUNKED
    if count is None:
        return None
    if not _LENGTH.match(count):
        raise Syntax("Content-Length is not one decimal number")
    return int(count)


def _options(headers: Headers) -> frozenset[bytes]:
    """What Connection names, in lower case."""
    text = b",".join(value for name, value in headers if name == b"connection").lower()
    if not text:
        return frozenset()
    if not _TOKENS.match(text):
        raise Syntax("Connection is no list of names")
    found = frozenset(option.strip(b" \t") for option in text.split(b","))
    if found & _NEEDED:
        raise Syntax("Connection names a field that is not its own")
    return found
