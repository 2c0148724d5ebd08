"""The demo's agent and a service that needs a key: what it gets with a tool that holds none, and what it does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Protocol

SERVICE = "RUNNER_DEMO_SERVICE"  # names and port, as JSON
TOOL = "orders_run"


class Agent(Protocol):
    """Who plays it: `runner.cli.demo_agent.Agent`."""

    runner: Any

    def run(self, what: str, code: str, *expect: str, tool: str = TOOL) -> Any:
        """Run a program, and give what came of it; its answer must hold all of `expect`."""

    def told(self, what: str, answer: str, *expect: str) -> None:
        """Say what was heard; it must hold all of `expect`."""


_ASK = """
import json, os, urllib.error, urllib.request
key = os.environ["ORDERS_KEY"]
request = urllib.request.Request({url!r}, headers={headers})
try:
    with urllib.request.urlopen(request, timeout=50) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    told = json.loads(error.read())
    print(error.code, told.get("detail") or told)
except OSError as error:
    print(error)
"""
_WITH_KEY = '{"Authorization": "Bearer " + key}'
_DIRECT = """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5)
    print("connected")
except OSError as error:
    print(error)
"""
_LOOK_UP = """
import socket
try:
    print(socket.getaddrinfo({host!r}, 443))
except OSError as error:
    print(error)
"""
_NEIGHBOUR = """
import os, time
print(os.environ["https_proxy"].rpartition(":")[2], flush=True)
end = time.monotonic() + 20
while not os.path.exists("neighbour-was-here") and time.monotonic() < end:
    time.sleep(0.01)
"""
_INTRUDE = """
import os, pathlib, socket
def way(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return "connected"
    except OSError as error:
        return str(error)
print("its own port:", way(int(os.environ["https_proxy"].rpartition(":")[2])), "· its neighbour's:", way({port}))
pathlib.Path("neighbour-was-here").touch()
"""


def service(agent: Agent, say: Callable[[str], None]) -> None:
    """Work with a credential, and every way around it."""
    where = json.loads(os.environ[SERVICE])
    port = where["port"]
    orders, status, elsewhere = (f"https://{where[name]}:{port}" for name in ("orders", "status", "elsewhere"))
    say("the agent writes the program and may see its whole environment")
    agent.run("without the key", _ask(f"{orders}/v1/orders", "{}"), "401")
    seen = 'print("ORDERS_KEY is", os.environ["ORDERS_KEY"])\n'
    agent.run("with what it has", _ask(f"{orders}/v1/orders") + seen, "200 ", "ORDERS_KEY is rnr-")
    say("and every way around that:")
    agent.run("directly, past egress", _DIRECT.format(port=port), "Permission denied")
    agent.run("a name of the resolver", _LOOK_UP.format(host=where["orders"]), "Errno -")
    agent.run("another host", _ask(f"{elsewhere}/"), "Tunnel connection failed: 403")
    agent.run("a path that no rule opens", _ask(f"{orders}/admin", "{}"), "403 ", "does not allow this path")
    agent.run("where the service redirects to", _ask(f"{orders}/v1/moved"), "Tunnel connection failed: 403")
    agent.run("what it has, at another host", _ask(f"{status}/v1/up"), "403 ", "placeholder stands where it may not")
    agent.run("the same without it", _ask(f"{status}/v1/up", "{}"), "200 ", "up")
    with agent.runner.stream(TOOL, {"code": _NEIGHBOUR}) as neighbour:
        its = b""
        while not its.endswith(b"\n"):
            its += next(iter(neighbour)).data
        agent.run(
            "a neighbour call's way out",
            _INTRUDE.format(port=its.decode().strip()),
            "own port: connected",
            "Permission denied",
        )
        neighbour.result()


def _ask(url: str, headers: str = _WITH_KEY) -> str:
    return _ASK.format(url=url, headers=headers)
