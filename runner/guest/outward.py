"""A tool's way out: one request, or one tunnel, through the call's own listener, the only place it can connect to.

What egress refuses comes back as a `ToolError` with its words: which part denied, and which rule would have allowed it.
Nothing here decides anything; a tool without this module reaches exactly as much.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import zlib
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from runner.guest.beneath import ToolError

REFUSED = "X-Runner-Refused"  # egress's own header: it passes on no destination's
SILENCE_S = 30.0  # without a byte; the call's own deadline may come first
_REFUSAL = 64 << 10
_PIECE = 64 << 10
# One form, which no two parsers read differently; `runner/destination.py` judges it again, on the other side.
_URL = re.compile(
    r"(https?)://((?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::([1-9][0-9]{0,4}))?(/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*)?(\?[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]|{}-]*)?\Z"
)
_DOTS = re.compile(r"/(?:\.|%2[eE]){1,2}(?:/|\Z)")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
# What frames a request, names its destination, or is for a proxy.
_FRAMING = frozenset({
    *("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"),
    *("keep-alive", "accept-encoding"),
})  # fmt: skip


class Url(NamedTuple):
    """A URL in the one form that is taken. `target` is path and query, as sent."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, without the port that goes without saying."""
        usual = self.port == (443 if self.scheme == "https" else 80)
        return f"{self.scheme}://{self.host}" + ("" if usual else f":{self.port}")


class Reply(NamedTuple):
    """An answer. `body` has its content coding undone; `cut` says that there was more."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    cut: bool

    def header(self, name: str) -> str:
        """The first field of that name (lower case), "" without one."""
        return next((value for each, value in self.headers if each == name), "")


def parse_url(text: str, schemes: tuple[str, ...] = ("https", "http")) -> Url:
    """The URL of an argument. Raises `ToolError` saying what is expected."""
    found = _URL.match(text)
    if found is None or len(text) > 4096:
        raise ToolError(
            "url: not in the one form that is taken: http(s)://host[:port][/path][?query], scheme and host in lower "
            "case, other characters percent-encoded, no user, no fragment",
            "url",
        )
    scheme, host, port, path, query = found.groups()
    if scheme not in schemes:
        raise ToolError(f"url: the scheme is not {' or '.join(schemes)}", "url")
    if path and (_DOTS.search(path) or "//" in path):
        raise ToolError("url: the path has a dot segment or an empty one: resolve it first", "url")
    if port and int(port) > 65535:
        raise ToolError("url: the port is larger than 65535", "url")
    return Url(scheme, host, int(port or (443 if scheme == "https" else 80)), (path or "/") + (query or ""))


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """The headers of an argument. Raises `ToolError` for one that is none, or that is not the caller's to set."""
    for name, value in headers.items():
        if not _NAME.match(name) or not _VALUE.match(value):
            raise ToolError(f"headers: `{name[:64]}` is not a name and one line of latin-1", "headers")
        if name.lower() in _FRAMING or name.lower().startswith("proxy-"):
            raise ToolError(f"headers: `{name}` frames the request, and is not a caller's to set", "headers")
    return dict(headers)


def listener() -> tuple[str, int]:
    """Where the call's own listener is. Raises `ToolError` in a call that has none."""
    found = urlsplit(os.environ.get("https_proxy", ""))
    if not found.hostname or not found.port:
        raise ToolError("this call has no network: its tool's manifest names no destination ([[egress]])", "no_network")
    return found.hostname, found.port


def tunnel(host: str, port: int) -> socket.socket:
    """A connection to the destination, as bytes. Raises `ToolError`, in egress's words where it refuses."""
    where = f"{host}:{port}"
    try:
        sock = socket.create_connection(listener(), timeout=SILENCE_S)
        try:
            sock.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
            with closing(http.client.HTTPResponse(sock, method="CONNECT")) as answer:  # its own file, not the socket
                answer.begin()
                if answer.status == 200:
                    return sock
                raise refusal(answer.status, answer.getheader(REFUSED) or "", answer.read(_REFUSAL))
        except BaseException:
            sock.close()
            raise
    except (OSError, http.client.HTTPException) as error:
        raise failed(where, error) from None


def context() -> ssl.SSLContext:
    """Whom this call trusts: the file that its environment names."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))


def request(method: str, url: Url, *, headers: dict[str, str], body: bytes = b"", most: int) -> Reply:
    """One request and its answer, of whose body at most `most` bytes are read. Redirects are not followed.

    Raises `ToolError`: what egress refuses, in its words, and a destination that does not answer."""
    given = {"User-Agent": "toolrunner", "Accept": "*/*", **headers, "Accept-Encoding": "identity"}
    connection = http.client.HTTPConnection(*listener(), timeout=SILENCE_S)
    ours = True
    try:
        if url.scheme == "https":
            held = context().wrap_socket(tunnel(url.host, url.port), server_hostname=url.host.strip("[]"))
            connection.sock = held
            ours = _inspected(held)
            given["Host"] = url.origin.partition("://")[2]
        target = url.target if url.scheme == "https" else str(url)
        connection.request(method, target, body=body or None, headers=given)
        with closing(connection.getresponse()) as answer:
            refused = answer.getheader(REFUSED)
            if refused is not None and ours:  # from an opaque tunnel it would be the destination's word
                raise refusal(answer.status, refused, answer.read(_REFUSAL))
            content, cut = _read(answer, most, url)
            fields = [(name.lower(), value) for name, value in answer.getheaders()]
            return Reply(answer.status, answer.reason, fields, content, cut)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise failed(url.origin, error) from None
    finally:
        connection.close()


def _inspected(held: ssl.SSLSocket) -> bool:
    """Whether egress reads this: then its own authority has signed the certificate, which no other can do."""
    told: dict[str, Any] = dict(held.getpeercert() or {})
    issuer = {key: value for part in told.get("issuer", ()) for key, value in part}
    return issuer.get("organizationName") == "toolrunner" and "egress of" in issuer.get("commonName", "")


def _read(answer: http.client.HTTPResponse, most: int, url: Url) -> tuple[bytes, bool]:
    """At most `most` bytes of a body, its coding undone: a few bytes can be megabytes."""
    coding = (answer.getheader("Content-Encoding") or "identity").lower()
    if coding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise ToolError(f"{url.origin}: the body is coded as `{coding[:32]}`, which was not asked for", "coding")
    undo: Any = None if coding == "identity" else zlib.decompressobj(47 if "gzip" in coding else zlib.MAX_WBITS)
    found = bytearray()
    try:
        while len(found) <= most:
            piece = answer.read(_PIECE)
            if not piece:
                break
            while piece and len(found) <= most:
                room = most + 1 - len(found)
                found += piece[:room] if undo is None else undo.decompress(piece, room)
                piece = b"" if undo is None else undo.unconsumed_tail
    except zlib.error:
        raise ToolError(f"{url.origin}: the body is not {coding}, as its header says", "coding") from None
    return bytes(found[:most]), len(found) > most


def refusal(status: int, code: str, body: bytes) -> ToolError:
    """What egress said, for a reader: the part that denied, what to do, and the rule that is missing."""
    if not code:
        return ToolError(f"the way out answered {status}, which is no answer of egress", "egress")
    try:
        told = json.loads(body)
        words = {key: str(told[key])[:2000] for key in ("title", "detail", "part", "next", "missing") if told.get(key)}
    except (ValueError, AttributeError, TypeError):
        words = {}
    text = f"{words.get('title', 'refused by egress')}: {words.get('detail', code)}"
    if "part" in words:
        text += f" (decided by {words['part']})"
    if "next" in words:
        text += f"; {words['next']}"
    if "missing" in words:
        text += f"\nthe rule that would allow it:\n{words['missing']}"
    return ToolError(text, code)


def failed(where: str, error: Exception) -> ToolError:
    """A destination that could not be spoken with, without anything of what it sent."""
    if isinstance(error, ToolError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return ToolError(f"{where}: its certificate is not trusted: {error.verify_message}", "tls")
    if isinstance(error, TimeoutError):
        return ToolError(f"{where}: no byte for {SILENCE_S:g} s", "timeout")
    if isinstance(error, ssl.SSLError):
        return ToolError(f"{where}: TLS failed: {error.reason or 'the connection was closed'}", "tls")
    return ToolError(f"{where}: the connection broke ({type(error).__name__})", "connection")
