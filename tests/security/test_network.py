"""A real daemon, real containers, a real service: what a call reaches, with which credential, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from networked import HOST, KEY, OTHER, Networked

from runner.ledger import entry as entries

_GET = """
import json, os, sys, urllib.request
headers = {name: value.format(**os.environ) for name, value in json.loads(sys.argv[2]).items()}
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=20) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(type(error).__name__, error)
"""


def get(url: str, **headers: str) -> dict[str, Any]:
    return {"argv": ["python3", "-c", _GET, url, json.dumps(headers)]}


def test_a_tool_reaches_what_its_rules_open_and_nothing_else(make_networked: Callable[..., Networked]) -> None:
    house = make_networked()
    port = house.web.port
    with house.connect() as runner:
        done = runner.call("net_run", get(f"https://{HOST}:{port}/v1/things?x=1"))
        assert done.text.startswith("200 "), done.text + done.stderr.decode()
        other = runner.call("net_run", get(f"https://{OTHER}:{port}/"))
        assert "403" in other.text, other.text
        assert runner.call("shell_run", {"argv": ["sh", "-c", "echo $https_proxy"]}).text == "\n"
    (sent,) = house.daemon.entries(entries.Egress)[:1]
    assert (sent.host, sent.port, sent.method, sent.path, sent.query) == (HOST, port, "GET", "/v1/things", True)


def test_a_credential_reaches_the_service_and_nobody_else(make_networked: Callable[..., Networked]) -> None:
    house = make_networked()
    with house.connect() as runner:
        done = runner.call(
            "key_run", get(f"https://{HOST}:{house.web.port}/v1/things", Authorization="Bearer {SERVICE_KEY}")
        )
        assert done.text.startswith("200 "), done.text + done.stderr.decode()
    assert [dict(seen["headers"])["authorization"] for seen in house.web.seen] == [f"Bearer {KEY}"]
