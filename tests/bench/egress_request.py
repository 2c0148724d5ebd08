"""An allowed GET on a kept connection; the decision alone

What the proxy adds to a small request over plain HTTP and in an inspected tunnel (with and without a credential put
in), both sides kept open, beside the same request without a proxy. Gate's answer is immediate: its own work is not in.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import time

from common import emit, options, spread
from outlet import Client, cpu_us, server
from outside import NAME, Outside, rule, tunnel

from runner.egress.allowlist import Allowlists
from runner.model import Allowlist
from runner.wire.egress import Injection, Requested

KEY = "rnr-" + "k" * 32
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"
RULES = 200


def answers(connection: socket.socket) -> None:
    """The same answer to every head."""
    while data := connection.recv(65536):
        if data.endswith(b"\r\n\r\n"):
            connection.sendall(ANSWER)


def secured(context: ssl.SSLContext) -> object:
    """The same over TLS."""

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            answers(tls)

    return serve


def requests(port: int, through: int, trust: bytes, count: int, extra: str) -> list[float]:
    """Milliseconds of each request on one connection: direct, or through the proxy; over TLS where there is trust."""
    where = f"{NAME}:{port}"
    target = "/v1/things?limit=5" if trust or not through else f"http://{where}/v1/things?limit=5"
    inner = bool(trust and through)
    sock = tunnel(through, where) if inner else socket.create_connection(("127.0.0.1", through or port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if trust:
        sock = ssl.create_default_context(cadata=trust.decode()).wrap_socket(sock, server_hostname=NAME)
    lines = ("User-Agent: bench/1", "Accept: */*", "Accept-Encoding: gzip", *((extra,) if extra else ()))
    text = "\r\n".join((f"GET {target} HTTP/1.1", f"Host: {where}", *lines, "", "")).encode()
    found = []
    with sock:
        for _ in range(count):
            began = time.perf_counter()
            sock.sendall(text)
            data = sock.recv(4096)
            while not data.endswith(b"world\n"):
                part = sock.recv(4096)
                assert part, data
                data += part
            found.append((time.perf_counter() - began) * 1000)
            assert data.startswith(b"HTTP/1.1 200 ")
    return found


def decision_us(count: int) -> float:
    """Microseconds of one decision against two parts of many rules each."""
    rules = tuple(
        rule(f"r{number}", f"h{number}.example.test", paths=("/v1/*",), inspect=True) for number in range(RULES)
    )
    lists = Allowlists((Allowlist(part="profile default", rules=rules), Allowlist(part="tool fetch", rules=rules)))
    asked = Requested(
        id=1, protocol="https", host="h7.example.test", port=443, visibility="full", method="GET", path="/v1/things"
    )
    assert lists.authorise(asked).allowed
    times = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(count):
            lists.authorise(asked)
        times.append((time.perf_counter() - began) / count * 1e6)
    return statistics.median(times)


def main(*, quick: bool) -> None:
    """Direct and through the proxy in turns."""
    each, rounds = (50, 2) if quick else (400, 12)
    certificates = Outside()
    context, believed = certificates.tls(), certificates.authority
    certificates.close()
    times: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    with server(answers) as plain, server(secured(context)) as tls:  # type: ignore[arg-type]
        client = Client({"requests": requests})
        outside = Outside(authority=believed)
        try:
            held = Injection(name="key", placeholder=KEY, value=b"v" * 40, rules=("tls",), places=("header:x-key",))
            rules = (rule("plain", port=plain, protocol="http"), rule("tls", port=tls, inspect=True))
            through = outside.open(*rules, injections=(held,), canary="rnr-" + "c" * 32)
            theirs, ours = believed.cert_pem.bytes(), outside.bundle()
            kinds = {
                "direct": (plain, 0, b"", ""),
                "proxied": (plain, through, b"", ""),
                "tls_direct": (tls, 0, theirs, ""),
                "inspected": (tls, through, ours, ""),
                "injected": (tls, through, ours, f"X-Key: {KEY}"),
            }
            for number in range(-1, rounds):
                for name, (port, place, trust, extra) in kinds.items():
                    before = cpu_us()
                    took = client.ask("requests", port, place, trust, each, extra)
                    if number >= 0:
                        times.setdefault(name, []).extend(took[2:])  # the first ones dial and shake hands
                        used.setdefault(name, []).append((cpu_us() - before) / each)
        finally:
            outside.close()
            client.close()
    middle = {name: statistics.median(found) for name, found in times.items()}
    added = {
        "added_ms": middle["proxied"] - middle["direct"],
        "inspected_added_ms": middle["inspected"] - middle["tls_direct"],
        "injected_added_ms": middle["injected"] - middle["tls_direct"],
    }
    emit(
        "egress: an allowed GET on a kept connection; the decision alone",
        figures={
            **added,
            "decision_us": decision_us(200 if quick else 2000),
            **{f"{name}_cpu_us": statistics.median(used[name]) for name in ("proxied", "inspected", "injected")},
            **spread(times["proxied"], "proxied_"),
            **spread(times["inspected"], "inspected_"),
        },
        baseline={"direct_median_ms": middle["direct"], "tls_direct_median_ms": middle["tls_direct"]},
        ratios={"inspected_over_proxied": middle["inspected"] / middle["proxied"]},
        goal={"added_ms": "<= 1", "inspected_added_ms": "<= 1", "decision_us": "<= 40"},
        floor={"added_ms": "<= 2", "inspected_added_ms": "<= 2", "decision_us": "<= 100"},
        guarantee=(
            "each request is judged by two allowlists, asked for, framed anew and told; inspected ones are decrypted "
            "and encrypted twice. Token, policy and the entry are gate's, and not in it"
        ),
        measured=(
            f"medians of {rounds} connections of {each} requests, in turns; decision: one of {RULES} rules in each of "
            "two parts, path judged; server, proxy and client a process each"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
