"""HTTP for providers: through the house's egress and nothing else, every request bounded in time and bytes.

The only importer of requests. A session per operation: no connection, cookie or credential of one is there for another.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from runner.broker.providers.provider import unavailable
from runner.errors import RunnerError, refuse

PROXY = "http://127.0.0.1:3128"  # where egress answers in the broker's network namespace
MAX_ANSWER = 1 << 20
_MAX_BRACKETS = 500  # [ and { of an answer: it nests no deeper, and JSON decoders recurse
_LATER = (429, 502, 503)  # the server says that it did nothing


class TooLarge(requests.exceptions.RequestException):
    """The answer is longer than `MAX_ANSWER`, or could nest deeper than a decoder takes."""


class _Deadline(threading.local):
    """The connections of the operation that this thread carries out, to be cut when its time is over."""

    watched: list[socket.socket] | None = None


_deadline = _Deadline()


def _watch(made: socket.socket) -> socket.socket:
    """Keep a second descriptor: TLS takes the first one over, and its handshake is a part of the time too."""
    if _deadline.watched is not None:
        _deadline.watched.append(socket.socket(fileno=os.dup(made.fileno())))
    return made


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _watch(super()._new_conn())


class _Tls(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _watch(super()._new_conn())


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class _Adapter(requests.adapters.HTTPAdapter):
    """One answer, read to its end here, within `MAX_ANSWER`; the house's own authorities, not a package's."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # by `ssl_context`; requests would add its own bundle of authorities

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        options["stream"] = True
        answer = super().send(request, *arguments, **options)
        try:
            body = _read(answer)
        except HTTPError as error:
            raise requests.exceptions.ConnectionError(error, request=request) from None
        finally:
            answer.close()
        if len(body) > MAX_ANSWER or body.count(b"[") + body.count(b"{") > _MAX_BRACKETS:
            raise TooLarge(request=request)
        answer._content, answer._content_consumed = body, True
        return answer


def _read(answer: Any) -> bytes:
    """The body, whole by its own account: one that ends where the connection does could have been cut."""
    heads = answer.headers
    if not ("content-length" in heads or heads.get("transfer-encoding", "").lower() == "chunked"):
        if answer.status_code == 204:
            return b""
        raise HTTPError("an answer of unknown length")
    body = bytearray()
    while len(body) <= MAX_ANSWER and (data := answer.raw.read(MAX_ANSWER + 1 - len(body), decode_content=False)):
        body += data
    return bytes(body)


class Network:
    """How providers reach their servers."""

    def __init__(self, *, trust: bytes = b"", proxy: str = PROXY) -> None:
        """`trust` are authorities (PEM) beside the host's own. Raises `RunnerError` (config)."""
        self._proxy = proxy
        self._context = ssl.create_default_context()
        if trust:
            try:
                self._context.load_verify_locations(cadata=trust.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise refuse("config", "no certificates in PEM", field="egress.trust") from None

    @contextmanager
    def within(self, seconds: float, whose: str) -> Iterator[None]:
        """The whole of one operation: cut off when its time is over. Raises `RunnerError` (unavailable) for every way
        to fail, in words that hold nothing of what a server said."""
        watched: list[socket.socket] = []
        over = threading.Event()

        def cut() -> None:
            over.set()
            for each in watched.copy():
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        _deadline.watched = watched
        timer.start()
        try:
            yield
        except requests.exceptions.RequestException as error:
            raise _said(error, whose, seconds, late=over.is_set()) from None
        finally:
            timer.cancel()
            _deadline.watched = None
            for each in watched:
                each.close()

    def prepare(self, session: requests.Session) -> requests.Session:
        """Let this session reach servers through egress only."""
        session.trust_env = False  # no proxy, netrc or authorities of an environment
        session.proxies = {"http": self._proxy, "https": self._proxy}
        session.max_redirects = 0
        session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self._context))
        return session


def _said(error: Exception, whose: str, seconds: float, *, late: bool) -> RunnerError:
    text = str(error)  # ours to look at, never shown: it may hold a URL
    if late or isinstance(error, requests.exceptions.Timeout):
        return unavailable(f"{whose}: no answer within {seconds:g} s", next_step="see that server", again=True)
    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return refused(error.response.status_code, whose)
    if isinstance(error, TooLarge):
        return unavailable(
            f"{whose}: an answer longer than {MAX_ANSWER} bytes, or nested too deep", next_step="see that server"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return unavailable(
            f"{whose}: its certificate is not accepted", next_step="see its name, and `trust` in [egress]"
        )
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return unavailable(f"{whose}: it redirects, which is not followed", next_step="configure where it leads")
    if "Tunnel connection failed: 403" in text:
        return unavailable(
            f"{whose}: egress does not let the daemon reach it",
            next_step="name it in [[daemon.destinations]]; the ledger's `egress` entry says which rule is missing",
        )
    return unavailable(f"{whose}: it cannot be reached", next_step="see that server, and egress", again=True)


def refused(status: int, whose: str) -> RunnerError:
    """What an HTTP status means; nothing of the answer itself."""
    if status in _LATER or status >= 500:
        return unavailable(f"{whose}: it answered {status}", next_step="see that server", again=True)
    if status in (401, 403):
        return unavailable(f"{whose}: it refused the broker ({status})", next_step="see the broker's credential there")
    if status == 404:
        return unavailable(f"{whose}: there is nothing at the configured path", next_step="see `path`")
    return unavailable(f"{whose}: it answered {status}", next_step="see its configuration")
