"""SECURITY-CASES N05, N07, N08, N11, N13, N16: what names lead to, what services answer, and how much of it.

The services stand on loopback, which rules of these tests open; a closed range is closed whatever stands there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from networked import BUDGET, CLOSED, HOST, OPAQUE, OTHER, PLAIN, Networked
from outside import Origin
from wishes import fetch, python, talk, told

pytestmark = pytest.mark.docker


def inside(host: str, port: int, request: str, **more: Any) -> dict[str, Any]:
    """A tunnel, TLS for `sni`, and what is said inside."""
    return {"send": f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n", "then": request, **more}


def get(path: str, host: str, *lines: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *lines, "", ""))


# --- N05 ----------------------------------------------------------------------------------------------------


def test_a_name_that_leads_to_what_is_no_internet_address_is_not_dialled(networked: Networked) -> None:
    before = networked.services.dialled
    with networked.connect() as runner:
        done = runner.call("net_run", fetch(*(networked.url("/", name) for name in CLOSED)))
        answers = told(done)
        assert [each["status"] for each in answers] == [403] * len(CLOSED), done.text
        assert all("no rule of profile net names that range" in each["body"] for each in answers)
        assert networked.services.dialled == before
        twin = runner.call("net_run", fetch(networked.url("/v1/x")))  # the same address, by a rule that names it
        assert told(twin)[0]["status"] == 200
    # Allowed by name, then denied by its address: nothing was dialled, and the entry says what was missing.
    decisions = networked.requests(done.call)
    denied = [each for each in decisions if each.decision.effect == "deny"]
    assert [(each.host, each.part) for each in denied] == [(name, "address") for name in CLOSED]
    assert all("addresses = [" in each.missing for each in denied if not each.host.startswith("half")), denied
    ends = networked.ends(done.call)
    assert [(each.address, each.up, each.down, each.code) for each in ends] == [("", 0, 0, "egress")] * len(CLOSED)


# --- N07 ----------------------------------------------------------------------------------------------------


def test_tls_and_host_name_what_connect_named(networked: Networked) -> None:
    port = networked.web.port
    tunnels = [
        inside(OPAQUE, port, get("/", OPAQUE), sni=OTHER),
        inside(OPAQUE, port, get("/", OPAQUE), sni=""),
        inside(OPAQUE, port, "SSH-2.0-not-tls\r\n"),
        inside(HOST, port, get("/v1/x", f"{HOST}:{port}"), sni=OTHER),
        inside(HOST, port, get("/v1/x", f"{OTHER}:{port}"), sni=HOST),
        inside(HOST, port, get("/v1/x", f"{HOST}:1"), sni=HOST),
        inside(HOST, port, get("/v1/x", f"{HOST}:{port}", f"Host: {OTHER}"), sni=HOST),
    ]
    with networked.connect() as runner:
        done = runner.call("net_run", talk(*tunnels))
        answers = told(done)
        assert not any("ok" in each for each in answers), answers
        assert all(" 400 Bad Request" in each for each in answers[4:]), answers
        assert not networked.web.seen
        good = runner.call(
            "net_run",
            talk(
                inside(OPAQUE, port, get("/", f"{OPAQUE}:{port}"), sni=OPAQUE),
                inside(HOST, port, get("/v1/x", f"{HOST}:{port}"), sni=HOST),
            ),
        )
        assert all("HTTP/1.1 200 OK" in each for each in told(good)), good.text
    assert len(networked.web.seen) == 2
    # An opaque tunnel is allowed before its first bytes are there to be compared: its end says why it was cut.
    assert [each.code for each in networked.ends(done.call)] == ["name"] * 3
    denied = [each.part for each in networked.requests(done.call) if each.decision.effect == "deny"]
    assert denied == ["tls", "syntax", "syntax", "syntax"]


# --- N08 ----------------------------------------------------------------------------------------------------


def test_a_redirect_is_an_answer_and_what_follows_it_is_judged_anew(networked: Networked) -> None:
    targets = [
        networked.url("/", OTHER),
        networked.url("/v2/elsewhere"),
        networked.url("/", "metadata.example.test"),
        f"http://127.0.0.1:{networked.plain.port}/",
        "http://169.254.169.254/latest/meta-data/",
        networked.url("/v1/allowed"),
    ]
    with networked.connect() as runner:
        done = runner.call("net_run", fetch(*(networked.url(f"/to?{target}") for target in targets)))
        found = [each["status"] for each in told(done)]
    assert found == [0, 403, 403, 403, 403, 200], done.text  # 0: urllib says only that the tunnel was refused
    assert [seen["target"].partition("?")[0] for seen in networked.web.seen] == [*["/to"] * 6, "/v1/allowed"]
    assert not networked.plain.seen
    decided = [(each.host, each.decision.effect) for each in networked.requests(done.call)]
    assert decided.count((HOST, "allow")) == 7
    assert [each.status for each in networked.ends(done.call)].count(302) == 6


# --- N11 ----------------------------------------------------------------------------------------------------


def test_an_upgrade_is_asked_for_allowed_and_counted_or_refused(networked: Networked) -> None:
    port = networked.web.port

    def upgrade(to: str, path: str = "/ws") -> dict[str, Any]:
        head = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n\r\n"
        return inside(HOST, port, head + "frames-frames-frames", sni=HOST)

    more = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
    h2c = upgrade("h2c") | {"then": f"GET /ws HTTP/1.1\r\nHost: {HOST}:{port}\r\n{more}Upgrade: h2c\r\n\r\n"}
    with networked.connect() as runner:
        done = runner.call("net_run", talk(h2c, upgrade("foo"), upgrade("websocket", "/elsewhere")))
        assert not any(" 101 " in each for each in told(done)), done.text
        assert not networked.web.seen
        speaks = f"""
import os, socket, ssl
sock = socket.create_connection(("127.0.0.1", int(os.environ["http_proxy"].rpartition(":")[2])), timeout=30)
sock.sendall(b"CONNECT {HOST}:{port} HTTP/1.1\\r\\nHost: {HOST}:{port}\\r\\n\\r\\n")
while not sock.recv(4096).endswith(b"\\r\\n\\r\\n"):
    pass
tls = ssl.create_default_context().wrap_socket(sock, server_hostname="{HOST}")
tls.sendall(b"GET /ws HTTP/1.1\\r\\nHost: {HOST}:{port}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
said = b""
while not said.endswith(b"\\r\\n\\r\\n"):
    said += tls.recv(1)
tls.sendall(b"f" * 5000)
size = 0
while size < 5000:
    size += len(tls.recv(5000))
print(said.split()[1].decode(), size)
"""
        spoken = runner.call("net_run", python(speaks))
        assert spoken.text == "101 5000\n", spoken.text + spoken.stderr.decode()
    assert {each.decision.effect for each in networked.requests(done.call)} == {"deny"}
    (asked,) = networked.requests(spoken.call)
    assert (asked.upgrade, asked.visibility) == ("websocket", "head")
    (ended,) = networked.ends(spoken.call)
    assert ended.status == 101
    assert ended.up > 5000
    assert ended.down > 5000


# --- N13 ----------------------------------------------------------------------------------------------------

_HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
_MANY = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n"


def _hostile(connection: socket.socket) -> None:
    """A service that misbehaves as it is asked to."""
    asked = connection.recv(65536)
    path = asked.split(b" ")[1].rpartition(b"/")[2]
    if path == b"half":
        connection.sendall(_HALF)
    elif path == b"many":
        connection.sendall(_MANY)
    elif path == b"drip":
        for byte in b"HTTP/1.1 200 OK\r\n" * 100_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)  # a service that has time
    elif path == b"garbage":
        connection.sendall(b"\0\xff no answer at all\r\n\r\n")
    elif path == b"closed":
        return
    elif path == b"both":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    else:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return
    while connection.recv(65536):
        pass


def test_a_service_that_dribbles_or_lies_holds_up_nobody(make_networked: Callable[..., Networked]) -> None:
    house = make_networked(egress="head_s = 1.0\nidle_s = 2.0\nconnect_s = 2.0\n")
    house.plain.close()  # a hostile one takes its place and port
    hostile = Origin(_hostile, port=house.plain.port)
    try:
        with house.connect() as runner:
            kinds = ("half", "many", "drip", "garbage", "closed", "both", "fine")
            done = runner.call("net_run", fetch(*(house.url(f"/{kind}", PLAIN) for kind in kinds)))
            found = {kind: each["status"] for kind, each in zip(kinds, told(done), strict=True)}
        assert found == {
            "half": 0, "many": 502, "drip": 504, "garbage": 502, "closed": 502, "both": 502, "fine": 200,
        }, done.text  # fmt: skip
        codes = [each.code for each in house.ends(done.call)]
        assert codes == ["timeout", "upstream", "timeout", "upstream", "upstream", "upstream", ""]
    finally:
        hostile.close()
    with house.connect() as runner:  # nobody is there any more
        gone = runner.call("net_run", fetch(house.url("/", PLAIN), house.url("/v1/x")))
        assert [each["status"] for each in told(gone)] == [502, 200]
        slow = runner.call("net_run", talk({"send": f"GET http://{PLAIN}/ HT"}))  # and a tool that dribbles
        assert " 504 " in told(slow)[0]
    assert house.ends(gone.call)[0].code == "upstream"


def test_a_certificate_that_nobody_vouches_for_is_refused(make_networked: Callable[..., Networked]) -> None:
    """Wrong CA: the service's certificate is not by one that egress trusts; or is, for another name."""
    house = make_networked()
    with house.connect() as runner:
        twin = runner.call("net_run", fetch(house.url("/v1/x")))
        assert told(twin)[0]["status"] == 200
    other = make_networked()
    (house.daemon.place / "runner.toml").write_text(
        (house.daemon.place / "runner.toml").read_text().replace("/1/ca.pem", "/2/ca.pem")
    )
    house.daemon.stop()
    house.daemon.start()
    with house.connect() as runner:
        done = runner.call("net_run", fetch(house.url("/v1/x")))
        (answer,) = told(done)
        assert answer["status"] == 502
        assert "certificate" in answer["body"]
    (ended,) = house.ends(done.call)
    assert (ended.code, ended.up, ended.down) == ("upstream", 0, 0)
    assert len(house.web.seen) == 1
    assert other.services.dialled == 0


# --- N16 ----------------------------------------------------------------------------------------------------


def test_budgets_of_bytes_and_requests_cut_and_are_recorded(networked: Networked) -> None:
    with networked.connect() as runner:
        down = runner.call(
            "net_run", fetch(networked.url("/size?100000", BUDGET), networked.url("/size?9000000", BUDGET))
        )
        first, second = told(down)
        assert (first["status"], len(first["body"])) == (200, 100_000)
        assert second["status"] == 0, "it was not cut"
        again = runner.call("net_run", fetch(networked.url("/size?100000", BUDGET)))
        assert told(again)[0]["status"] == 200, "a budget is a call's, and this is another"
        up = runner.call(
            "net_run", fetch({"url": networked.url("/", BUDGET), "method": "POST", "body": "x", "times": 200_000})
        )
        assert told(up)[0]["status"] in (0, 403)
        rate = runner.call("net_run", fetch(*(networked.url("/", BUDGET) for _ in range(8))))
        assert [each["status"] for each in told(rate)] == [200] * 6 + [429] * 2
    ends = networked.ends(down.call)
    assert [each.code for each in ends] == ["", "budget"]
    assert 256 << 10 >= sum(each.down for each in ends) > (256 - 64) << 10
    assert networked.outcome(down.call).network.down == sum(each.down for each in ends)
    (ended,) = networked.ends(up.call)
    assert ended.code == "budget"
    assert ended.up <= 64 << 10
    assert [each.part for each in networked.requests(rate.call)][6:] == ["profile net/budget"] * 2


def test_connections_of_a_call_are_bounded_and_one_too_many_is_recorded(networked: Networked) -> None:
    """32 that are open are served still; what comes beside them is told so."""
    where = f"{PLAIN}:{networked.plain.port}"
    crowd = f"""
import os, socket
port = int(os.environ["http_proxy"].rpartition(":")[2])
kept = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(32)]
for sock in kept:
    sock.sendall(b"GET http://{where}/ HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n")
print([sock.recv(12).decode()[9:] for sock in kept].count("200"))
more = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
print([sock.recv(12).decode()[9:] for sock in more])
"""
    with networked.connect() as runner:
        done = runner.call("net_run", python(crowd))
        assert done.text == "32\n['429', '429', '429']\n", done.text + done.stderr.decode()
    denied = [each for each in networked.requests(done.call) if each.decision.effect == "deny"]
    assert [(each.part, each.decision.code) for each in denied] == [("connections", "busy")] * 3
    network = networked.outcome(done.call).network
    assert (network.requests, network.refused) == (32, 3)
