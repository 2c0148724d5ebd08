"""SECURITY-CASES N02, N03, N06, N12 in a real daemon: what a call reaches by its rules, and that nothing else is there.

Every refusal stands beside its allowed twin. What counts is what the services saw, and what the ledger says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from networked import HOST, KEY, OPAQUE, OTHER, PLAIN, TCP, Networked
from wishes import fetch, python, reach, talk, told

pytestmark = pytest.mark.docker


def problem(answer: str) -> dict[str, Any]:
    """What a refusal of the proxy says."""
    head, _, body = answer.partition("\r\n\r\n")
    assert "X-Runner-Refused: " in head, answer[:300]
    found: dict[str, Any] = json.loads(body)
    return found


def connect(where: str) -> dict[str, str]:
    """Ask for a tunnel."""
    return {"send": f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n"}


# --- the allowed twins of everything below ------------------------------------------------------------------


def test_each_way_out_that_rules_open_is_open_and_recorded(networked: Networked) -> None:
    port, plain, tcp = networked.web.port, networked.plain.port, networked.tcp.port
    with networked.connect() as runner:
        done = runner.call(
            "net_run",
            fetch(
                networked.url("/v1/things?x=1"),
                {"url": networked.url("/v1/things"), "method": "POST", "body": "some words"},
                networked.url("/x", OPAQUE),
                networked.url("/plain", PLAIN),
            ),
        )
        assert [each["status"] for each in told(done)] == [200] * 4, done.text
        tunnel = runner.call("net_run", talk(connect(f"{TCP}:{tcp}") | {"then": "over and out", "half": True}))
        assert told(tunnel)[0].endswith("\r\n\r\nover and out")
    sent = networked.requests(done.call)
    assert [(each.protocol, each.host, each.port, each.visibility, each.method, each.path) for each in sent] == [
        ("https", HOST, port, "full", "GET", "/v1/things"),
        ("https", HOST, port, "full", "POST", "/v1/things"),
        ("https", OPAQUE, port, "opaque", "", ""),
        ("http", PLAIN, plain, "full", "GET", "/plain"),
    ]
    assert [each.query for each in sent] == [True, False, False, False]
    assert {each.decision.effect for each in sent} == {"allow"}
    assert sent[0].allowed_by == ("profile net/service", "tool net_run/service")
    ends = networked.ends(done.call)
    assert [each.request for each in ends] == [each.request for each in sent]
    assert [each.status for each in ends] == [200, 200, 0, 200]
    assert {each.address for each in ends} == {"127.0.0.1"}
    assert all(each.up and each.down and each.duration_us and not each.code for each in ends)
    (alone,) = networked.requests(tunnel.call)
    assert (alone.protocol, alone.visibility, alone.host, alone.port) == ("tcp", "opaque", TCP, tcp)
    (ended,) = networked.ends(tunnel.call)
    assert (ended.up, ended.down) == (12, 12)  # the tunnel's own bytes: what CONNECT said is not the destination's


def test_the_receipt_holds_the_sums_of_what_is_recorded(networked: Networked) -> None:
    with networked.connect() as runner:
        done = runner.call(
            "net_run",
            fetch(
                networked.url("/v1/a"), networked.url("/v1/b", OPAQUE), networked.url("/", OTHER), networked.url("/no")
            ),
        )
    network = networked.outcome(done.call).network
    sent, ends = networked.requests(done.call), networked.ends(done.call)
    allowed = [each for each in sent if each.decision.effect == "allow"]
    assert (network.requests, network.refused, network.opaque) == (2, 2, 1)
    assert (len(allowed), len(sent) - len(allowed)) == (2, 2)
    assert (network.up, network.down) == (sum(each.up for each in ends), sum(each.down for each in ends))
    assert network.up > 0
    assert network.down > 0


# --- N02, N06: wrong host, port, method, path, address --------------------------------------------------------


def test_what_no_rule_names_is_refused_with_the_rule_that_is_missing(networked: Networked) -> None:
    port, before = networked.web.port, networked.services.dialled
    wrong = [
        connect(f"{OTHER}:{port}"),
        connect(f"{HOST}:{networked.plain.port}"),
        connect(f"127.0.0.1:{port}"),
        connect(f"[::1]:{port}"),
        connect(f"sub.{HOST}:{port}"),
        {"send": f"GET http://{HOST}:{port}/v1/x HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n"},
        {"send": f"GET http://{OPAQUE}:{port}/ HTTP/1.1\r\nHost: {OPAQUE}:{port}\r\n\r\n"},
    ]
    with networked.connect() as runner:
        done = runner.call("net_run", talk(*wrong))
        said = [problem(each) for each in told(done)]
        assert [(each["status"], each["code"], each["part"]) for each in said] == [(403, "egress", "profile net")] * 7
        assert f'host = "{OTHER}"' in said[0]["missing"]
        assert f"ports = [{networked.plain.port}]" in said[1]["missing"]
        assert 'protocol = "http"' in said[5]["missing"]
    refused = networked.requests(done.call)
    # Some rule of the profile has paths recorded by digest: a request that no rule is of may be one of those.
    hidden = [each.get("missing", "").replace('"/v1/x"', '"/(its path)"') for each in said]
    assert [each.missing for each in refused] == hidden
    assert {(each.decision.effect, each.part) for each in refused} == {("deny", "profile net")}
    assert not networked.ends(done.call)
    assert networked.services.dialled == before


def test_a_wrong_method_or_path_is_refused_inside_the_tunnel(networked: Networked) -> None:
    with networked.connect() as runner:
        done = runner.call(
            "net_run",
            fetch(
                {"url": networked.url("/v1/x"), "method": "DELETE"},
                networked.url("/v2/x"),
                networked.url("/v1"),
                networked.url("/v1/%2e%2e/v2"),
                networked.url("/v1/x"),
            ),
        )
        answers = told(done)
    assert [each["status"] for each in answers] == [403, 403, 403, 400, 200]
    missing = json.loads(answers[0]["body"])["missing"]
    assert 'methods = ["DELETE"]' in missing
    assert 'paths = ["/v1/x"]' in missing
    assert [each.part for each in networked.requests(done.call)] == [*["profile net"] * 3, "syntax", ""]
    assert [seen["target"] for seen in networked.web.seen] == ["/v1/x"]


def test_a_tool_without_rules_has_no_way_out_at_all(networked: Networked) -> None:
    before = networked.services.dialled
    ports = [("tcp", "127.0.0.1", port) for port in (3128, 3129, networked.web.port)]
    with networked.connect() as runner:
        assert runner.call("shell_run", {"argv": ["sh", "-c", "env | grep -ic -e proxy -e ca_bundle"]}).text == "0\n"
        done = runner.call("shell_run", reach(*ports, ("name", HOST, 443)))
        assert set(told(done)) <= {"EPERM", "EACCES", "gaierror"}, done.text
        assert networked.outcome(done.call).network is None
        open_ = runner.call("net_run", fetch(networked.url("/v1/x")))
        assert told(open_)[0]["status"] == 200
    assert networked.services.dialled == before + 1


def test_nothing_but_the_proxy_answers_a_call_that_has_one(networked: Networked) -> None:
    """Other ports of loopback, raw sockets, names, and proxies not asked for. That nothing leads beyond loopback is
    read in the kernel's tables: nothing is sent there, since a missing wall must not be found by what leaves."""
    before = networked.services.dialled
    names = [("name", name, 443) for name in (HOST, "example.test", "localhost.example.test")]
    ports = (53, 80, 443, 3129, 3130, networked.web.port)
    local = [("tcp", address, port) for address in ("127.0.0.1", "127.0.0.2", "::1") for port in ports]
    with networked.connect() as runner:
        done = runner.call("net_run", reach(*names, *local, ("raw", "", 0)))
        answers = dict(zip((*names, *local, ("raw", "", 0)), told(done), strict=True))
        assert all(answers[each] == "gaierror" for each in names), answers
        # Landlock goes by the port, wherever it is; where loopback has no IPv6, there is no address before that.
        assert all(answers[each] in {"EACCES", *(["EADDRNOTAVAIL"] * (":" in each[1]))} for each in local), answers
        assert answers["raw", "", 0] in ("EPERM", "EACCES")
        (first,) = networked.daemon.sandbox_pids()
        # Not by the tool's word: root looks into the network namespace. No interface but lo, and no route to anywhere.
        tables = Path(f"/proc/{first}/net")
        devices = [line.partition(":")[0].strip() for line in (tables / "dev").read_text().splitlines()[2:]]
        assert devices == ["lo"]
        assert len((tables / "route").read_text().splitlines()) == 1  # a heading
        assert {line.split()[-1] for line in (tables / "ipv6_route").read_text().splitlines()} <= {"lo"}
        # The control: the same tables of the host, which has a network, hold more.
        assert len(Path("/proc/1/net/dev").read_text().splitlines()) > 3
        assert told(runner.call("net_run", fetch(networked.url("/v1/x"))))[0]["status"] == 200
    assert networked.services.dialled == before + 1


def test_neither_environment_nor_files_of_its_own_lead_a_tool_out(networked: Networked) -> None:
    """N12: without proxy variables, with NO_PROXY, with its own resolv.conf and hosts, by an address and a Host."""
    before, port = networked.services.dialled, networked.web.port
    own = """
import json, os, subprocess, sys, urllib.request
url, program, found = sys.argv[1], sys.argv[2], []
open("/workspace/hosts", "w").write("127.0.0.1 " + url.split("/")[2].split(":")[0])
for changes in ({}, {"NO_PROXY": "*", "no_proxy": "*"}, {"HOSTALIASES": "/workspace/hosts", "no_proxy": "*"}, "clear"):
    environment = dict(os.environ)
    if changes == "clear":
        environment = {name: value for name, value in environment.items() if "proxy" not in name.lower()}
    else:
        environment |= changes
    done = subprocess.run([sys.executable, "-c", program, json.dumps([{"url": url}])], env=environment,
                          capture_output=True, text=True)
    found.append(json.loads(done.stdout)[0])
for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"):
    try:
        open(path, "a")
        found.append("written")
    except OSError as error:
        found.append(error.errno)
print(json.dumps(found))
"""
    program = fetch("")["argv"][2]
    with networked.connect() as runner:
        done = runner.call("net_run", python(own, networked.url("/v1/x"), program))
        proxied, *direct = told(done)
        assert proxied["status"] == 200
        assert [each["status"] for each in direct[:3]] == [0, 0, 0], direct
        assert all("Permission denied" in each["body"] or "name resolution" in each["body"] for each in direct[:3])
        assert set(direct[3:]) <= {1, 13, 30}, "it could change how names are found"
        forged = runner.call(
            "net_run",
            fetch(
                {"url": f"https://127.0.0.1:{port}/v1/x", "headers": {"Host": HOST}},
                {"url": f"http://{PLAIN}:{networked.plain.port}/x", "headers": {"Host": HOST}},
            ),
        )
        assert [each["status"] for each in told(forged)] == [0, 400], forged.text
    assert networked.services.dialled == before + 1


def test_requests_that_parsers_could_read_differently_reach_nobody(networked: Networked) -> None:
    """A sample of N01, N09 and N10 through the real walls; the whole table stands in test_egress.py."""
    before, where = networked.services.dialled, f"{PLAIN}:{networked.plain.port}"
    get = f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\n"
    hostile = [
        f"{get}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"{get}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        f"{get} folded: line\r\n\r\n",
        f"{get}Name: a\rb\r\n\r\n",
        f"{get}Host: {OTHER}\r\n\r\n",
        f"GET http://user@{where}/ HTTP/1.1\r\nHost: {where}\r\n\r\n",
        f"GET http://{PLAIN}\0.{OTHER}/ HTTP/1.1\r\nHost: {where}\r\n\r\n",
        f"GET http://{where}/a b HTTP/1.1\r\nHost: {where}\r\n\r\n",
        f"GET /origin-form HTTP/1.1\r\nHost: {where}\r\n\r\n",
        f"CONNECT {where}@{OTHER}:443 HTTP/1.1\r\nHost: {where}\r\n\r\n",
        "\x05\x01\x00",  # SOCKS5
        f"CONNECT {OTHER}:443 HTTP/1.1\r\nHost: {OTHER}:443\r\n\r\n{get}\r\n",  # a second one behind a refused one
    ]
    with networked.connect() as runner:
        done = runner.call("net_run", talk(*({"send": each} for each in hostile)))
        answers = told(done)
        assert all(each.split(" ")[1] in ("400", "403") for each in answers), answers
        good = runner.call("net_run", talk({"send": f"{get}Connection: close\r\n\r\n"}))
        assert told(good)[0].startswith("HTTP/1.1 200 ")
    assert networked.services.dialled == before + 1
    parts = [each.part for each in networked.requests(done.call)]
    assert parts == [*["syntax"] * (len(hostile) - 1), "profile net"]


def test_a_scan_is_counted_and_told_as_far_as_anybody_reads_it(networked: Networked) -> None:
    """A tool that knocks everywhere fills neither ledger nor memory: entries stop, the sums go on."""
    knocks = [connect(f"{OTHER}:{port}") for port in range(1, 301)]
    with networked.connect() as runner:
        done = runner.call("net_run", talk(*knocks))
    outcome = networked.outcome(done.call)
    assert len(networked.requests(done.call)) == 128
    assert outcome.network.refused == 300


def test_a_credential_reaches_the_service_and_nobody_else(networked: Networked) -> None:
    with networked.connect() as runner:
        done = runner.call(
            "key_run", fetch({"url": networked.url("/v1/x"), "headers": {"Authorization": "Bearer $SERVICE_KEY"}})
        )
        assert told(done)[0]["status"] == 200, done.text
    assert [dict(seen["headers"])["authorization"] for seen in networked.web.seen] == [f"Bearer {KEY}"]


def test_the_clients_of_the_image_find_the_proxy_and_whom_to_trust(networked: Networked) -> None:
    """The other clients are tried against the proxy by itself, in test_egress_clients.py: the image has only Python."""
    program = """
import http.client, json, os, ssl, sys
proxy = os.environ["https_proxy"].removeprefix("http://")
connection = http.client.HTTPSConnection(proxy, context=ssl.create_default_context(), timeout=30)
connection.set_tunnel(sys.argv[1], int(sys.argv[2]))
connection.request("GET", "/v1/x")
found = [connection.getresponse().status]
names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
found.append([os.path.isfile(os.environ[name]) for name in names])
found.append(sorted({os.environ[name] for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY")}))
print(json.dumps(found))
"""
    with networked.connect() as runner:
        status, files, proxies = told(runner.call("net_run", python(program, HOST, str(networked.web.port))))
    assert status == 200
    assert files == [True] * 5
    assert proxies == ["http://127.0.0.1:3128"]


def test_whom_a_sandbox_trusts_is_its_own_and_cannot_be_changed(networked: Networked) -> None:
    """An authority per sandbox, whose key is in no file; another sandbox does not believe it."""
    look = python("""
import os, sys
path = os.environ["SSL_CERT_FILE"]
for way in (lambda: open(path, "a"), lambda: os.unlink(path), lambda: os.rename("/tmp/x", path)):
    try:
        open("/tmp/x", "w").close()
        way()
        sys.exit("it changed whom it trusts")
    except OSError:
        pass
print(open(path).read())
""")
    with networked.connect() as first, networked.connect() as second:
        one, two, again = (runner.call("net_run", look) for runner in (first, second, first))
        assert one.ok, one.stderr
        assert "PRIVATE" not in one.text
        assert one.text == again.text
        own = [set(done.text.split("-----BEGIN CERTIFICATE-----")) for done in (one, two)]
        assert len(own[0] - own[1]) == len(own[1] - own[0]) == 1
        assert len(own[0] & own[1]) > 1, "the authorities of the host and of egress.trust are the same for both"
        assert told(second.call("net_run", fetch(networked.url("/v1/x"))))[0]["status"] == 200
