"""What egress and broker did, as an operator reads it afterwards: nothing is asked but the daemon's own commands."""

from __future__ import annotations

import http.server
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reached
from reached import HOST, KEY, OTHER, Reached
from typer.testing import CliRunner

from runner.cli.commands import app
from runner.client.errors import CallError
from runner.errors import EXIT_REFUSED
from runner.evidence.content import SALT
from runner.ledger import entry as entries
from runner.wire import admin

OPAQUE = "opaque.example.test"
_GET = """
import json, os, sys, urllib.error, urllib.request
headers = {name: value.format(**os.environ) for name, value in json.loads(sys.argv[2]).items()}
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=20) as answer:
        print(answer.status, answer.read().decode())
except OSError as error:
    print(type(error).__name__, error)
"""


def get(url: str, **headers: str) -> dict[str, Any]:
    return {"argv": ["python3", "-c", _GET, url, json.dumps(headers)]}


def told(house: Reached, *command: str, status: int = 0) -> str:
    """A command of the command line, as an operator types it beside the daemon."""
    place = house.daemon.place
    words = [str(place / word) if word in (STATE[1], SOCKET[1]) else word for word in command]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def facts(house: Reached, *command: str, status: int = 0) -> Any:
    return json.loads(told(house, *command, "--json", status=status))


STATE = ("--state", "state")
SOCKET = ("--socket", "run/admin.sock")


def keeping(more: str, secret: str = "service-key") -> Callable[[Path], None]:
    """Tools whose responses are kept, with this beside it, and whose secret has this name."""

    def prepare(folder: Path) -> None:
        for path in (folder / f"tools/{tool}/tool.toml" for tool in ("net_run", "key_run")):
            text = path.read_text().replace(
                'methods = ["GET", "POST"]', f'methods = ["GET", "POST"]\nkeep = true\n{more}'
            )
            path.write_text(text.replace('"service-key"', f'"{secret}"'))

    return prepare


@pytest.fixture
def house(make_reached: Callable[..., Reached]) -> Reached:
    """Tools whose responses are kept, and whose paths are recorded as digests."""
    return make_reached(prepare=keeping('record = "digest"'))


def test_an_operator_reads_what_calls_did_with_their_network(house: Reached) -> None:
    port = house.web.port
    with house.connect(task="reader") as runner:
        url = f"https://{HOST}:{port}/accounts/4711"
        used = runner.call("key_run", get(f"{url}?x=1", Authorization="Bearer {SERVICE_KEY}"))
        assert used.text.startswith("200 "), used.text
        opaque = runner.call("net_run", get(f"https://{OPAQUE}:{port}/unseen"))
        assert opaque.text.startswith("200 "), opaque.text
        denied = runner.call("net_run", get(f"https://{OTHER}:{port}/elsewhere"))
        assert "403" in denied.text
        leaked = runner.call("key_run", get(url, Elsewhere="{SERVICE_KEY}"))
        assert "403" in leaked.text, leaked.text
        plain = runner.call("shell_run", {"argv": ["true"]})
        _live(house, runner, port)
    names = {
        "used": used.call,
        "opaque": opaque.call,
        "denied": denied.call,
        "leaked": leaked.call,
        "plain": plain.call,
    }
    _a_call(house, names, port)
    _all_calls(house, names, port)
    assert house.daemon.verifies()
    _pruned(house, names)


def _live(house: Reached, runner: Any, port: int) -> None:
    """While the task lives: `egress explain --task`, `status`."""
    found = facts(house, "egress", "explain", f"https://{HOST}:{port}/v1", *_TOOL, "--task", runner.task)
    assert found["allowed"]
    parts = {each["part"]: each for each in found["parts"]}
    assert set(parts) == {"profile net", "tool net_run", "token", "policy"}
    assert parts["token"]["asked"]
    found = facts(
        house, "egress", "explain", f"https://{OTHER}:{port}/", *_TOOL, "--task", runner.task, status=EXIT_REFUSED
    )
    assert found["decides"] == "profile net"
    with house.connect(
        task="narrow", tools={"net_run": {}, "egress": {"port": {"constraint_type": "exact", "value": 1}}}
    ):
        found = facts(
            house, "egress", "explain", f"https://{HOST}:{port}/", *_TOOL, "--task", "narrow", status=EXIT_REFUSED
        )
        assert found["decides"] == "token"
    said = facts(house, "status", *SOCKET)
    assert (said["egress"], said["broker"], said["alerts"]) == (True, True, 1)
    assert "call " in said["newest_alert"]
    assert "alerts: 1 critical since it started" in told(house, "status", *SOCKET)


_TOOL = ("--tool", "net_run", *SOCKET)


def _a_call(house: Reached, names: dict[str, str], port: int) -> None:
    """`trace show`."""
    (lease,) = house.daemon.outcome(names["used"]).secrets
    text = told(house, "trace", "show", names["used"], *STATE, "--content")
    for said in (
        f"GET https://{HOST}:{port}/accounts/4711?…",
        "allow by profile net/service, tool key_run/service",
        "status 200",
        "credentials that went with it: service-key",
        f"service-key: inject, went with 1 requests; lease {lease.lease}",
        f"fingerprint {lease.fingerprint}",
        "response 1\n  HTTP/1.1 200 OK",
    ):
        assert said in text, said
    found = facts(house, "trace", "show", names["used"], *STATE, "--content")
    (asked,) = found["requests"]
    assert (asked["state"], asked["end"]["status"], asked["request"].get("path", "")) == ("over", 200, "")
    assert found["content"]["response 1"].endswith('{"ok": true}')
    assert "opaque: its destination and bytes are known" in told(house, "trace", "show", names["opaque"], *STATE)
    text = told(house, "trace", "show", names["denied"], *STATE)
    assert "deny by profile net" in text
    assert f'lacks: host = "{OTHER}"' in text
    text = told(house, "trace", "show", names["leaked"], *STATE)
    assert text.startswith("CRITICAL "), text[:200]
    assert "credential service-key appeared where it must not" in text.splitlines()[0]
    assert "requests" not in told(house, "trace", "show", names["plain"], *STATE)


def _all_calls(house: Reached, names: dict[str, str], port: int) -> None:
    """`trace list`, `trace requests`, `trace tail`: and no trace of the key in any of them, or in the state folder."""

    def listed(*filters: str) -> set[str]:
        return {each["call"]["call"] for each in facts(house, "trace", "list", *STATE, *filters)}

    (lease,) = house.daemon.outcome(names["used"]).secrets
    assert listed() == set(names.values())
    assert listed("--alerts") == {names["leaked"]}
    assert listed("--host", HOST) == {names["used"], names["leaked"]}
    assert listed("--host", OTHER.upper()) == {names["denied"]}
    assert listed("--secret", "service-key") == {names["used"], names["leaked"]}
    assert listed("--fingerprint", lease.fingerprint, "--host", HOST) == {names["used"], names["leaked"]}
    assert listed("--fingerprint", lease.fingerprint, "--host", OTHER) == set()
    asked = facts(house, "trace", "requests", *STATE, "--task", "reader")
    assert {each["request"]["call"] for each in asked} == set(names.values()) - {names["plain"]}
    assert [each["request"]["host"] for each in facts(house, "trace", "requests", *STATE, "--host", OTHER)] == [OTHER]
    assert {each["state"] for each in facts(house, "trace", "requests", *STATE, "--denied")} == {"denied"}
    (went,) = facts(house, "trace", "requests", *STATE, "--secret", "service-key")
    assert went["request"]["call"] == names["used"]
    lines = told(house, "trace", "requests", *STATE, "--host", OPAQUE).splitlines()
    assert "(opaque)" in lines[1]
    tail = told(house, "trace", "tail", *STATE, "-n", "100")
    assert f"{names['opaque']} #1 https://{OPAQUE}:{port} opaque allow" in tail
    assert f"{names['leaked']} CRITICAL credential service-key" in tail
    assert not _holding(house, KEY)
    assert _holding(house, "accounts/4711")  # its control


def _pruned(house: Reached, names: dict[str, str]) -> None:
    """`trace prune` takes paths and kept responses with the rest of a call."""
    (ended,) = [each for each in house.daemon.entries(entries.EgressEnd) if each.call == names["used"]]
    assert ended.response is not None
    prune = ("trace", "prune", "--task", "reader", "--why", "over", "--yes", *SOCKET)
    told(house, *prune)
    assert not _holding(house, "accounts/4711")
    assert house.daemon.verifies()
    text = told(house, "trace", "show", names["used"], *STATE, "--content")
    assert "pruned, as entry" in text


def _holding(house: Reached, text: str) -> list[Path]:
    """Files of the ledger and its content, and logs, that hold this text."""
    places = [
        *(house.daemon.state / "ledger").rglob("*"),
        *(house.daemon.state / "content").rglob("*"),
        house.daemon.log,
    ]
    return [path for path in places if path.is_file() and text.encode() in path.read_bytes()]


_TUNNEL = """
import os, socket, ssl, sys, time
proxy = socket.create_connection(("127.0.0.1", int(os.environ["https_proxy"].rsplit(":", 1)[1])))
where = f"{sys.argv[1]}:{sys.argv[2]}"
proxy.sendall(f"CONNECT {where} HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n".encode())
proxy.recv(4096)
inside = ssl.create_default_context().wrap_socket(proxy, server_hostname=sys.argv[1])
time.sleep(600)
"""


def test_what_egress_dies_amid_is_said_to_be_unknown(house: Reached) -> None:
    with house.connect(task="cut") as runner:
        tunnel = {"argv": ["python3", "-c", _TUNNEL, OPAQUE, str(house.web.port)]}
        call = runner.call("net_run", tunnel, detach=True).call
        house.daemon.wait(lambda: house.daemon.entries(entries.Egress))
        assert "it has no end yet" in told(house, "trace", "show", call, *STATE)
        house.daemon.child("egress").kill()
        assert runner.result(call).outcome.kind == "killed"
        house.daemon.wait(lambda: facts(house, "status", *SOCKET)["egress"])
    assert "egress ended before it told how much of this had passed" in told(house, "trace", "show", call, *STATE)
    (asked,) = facts(house, "trace", "requests", *STATE)
    assert (asked["end"]["code"], asked["request"]["call"]) == ("interrupted", call)
    assert house.daemon.verifies()


class _Tokens(http.server.BaseHTTPRequestHandler):
    """An authorization server that gives everybody a token, and a service."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 600}
        body = json.dumps(given if self.path == "/token" else {"ok": True}).encode()
        body = LARGE if self.path == "/large" else body
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815  # the library asks for it

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


TOKEN = "token-5b1e0c6d9a7f4e32"
LARGE = bytes(range(256)) * 12_000  # 3 MB: kept in pieces
_FETCH = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1], timeout=20).read()))"
_PROVIDER = """
[secrets.providers.idp]
kind = "oauth"
token_endpoint = "https://{host}:{port}/token"
client_id = "broker"
client_secret = "client-secret"
secrets.token = {{}}
"""
_DESTINATION = """
[[daemon.destinations]]
name = "idp"
host = "{host}"
ports = [{port}]
addresses = ["127.0.0.0/8"]
"""


def _kept_whole(house: Reached, call: str) -> None:
    """The response of a call's one request is in the store, every byte."""
    ended = house.daemon.entry(entries.EgressEnd, call)
    assert (ended.unkept, ended.response.size > len(LARGE)) == ("", True)
    head, _, body = house.daemon.content(ended, ended.response.digest)[SALT:].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == LARGE


@pytest.mark.parametrize("named", [True, False])
def test_what_the_daemon_itself_dials_is_recorded(
    make_reached: Callable[..., Reached], monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    ports: list[int] = []

    class Late:
        """A configuration that names the service's port, once that is known."""

        def __format__(self, _: str) -> str:
            text = (_DESTINATION if named else "") + _PROVIDER
            return text.format(host=HOST, port=ports[0])

    made = reached.catalogue
    monkeypatch.setattr(reached, "catalogue", lambda folder, port: ports.append(port) or made(folder, port))
    house = make_reached(Late(), prepare=keeping("", "idp:token"), handler=_Tokens)
    house.daemon.ask(admin.SetSecret(name="client-secret", value=b"of the broker"))
    with house.connect() as runner:
        ask = get(f"https://{HOST}:{ports[0]}/v1", Authorization="Bearer {SERVICE_KEY}")
        if named:
            assert runner.call("key_run", ask).text.startswith("200 ")
            large = {"argv": ["python3", "-c", _FETCH, f"https://{HOST}:{ports[0]}/large"]}
            call = runner.call("net_run", large)
            assert call.text == f"{len(LARGE)}\n", call
            _kept_whole(house, call.call)
        else:
            with pytest.raises(CallError, match="egress does not let the daemon reach it"):
                runner.call("key_run", ask)
    found = facts(house, "trace", "requests", *STATE, "--call", "daemon:broker")
    (first, *_) = [each for each in found if each["request"]["host"] == HOST]
    assert first["request"]["task"] == ""
    assert first["state"] == ("over" if named else "denied")
    if named:
        assert first["end"]["address"] == "127.0.0.1"
        assert first["request"]["allowed_by"] == ["daemon/idp"]
    assert house.daemon.verifies()
    assert not _holding(house, TOKEN)
