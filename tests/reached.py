"""One service on loopback, and what a daemon needs to let tools reach it: for soak runs, benches and tests of walls."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from house import EVERY_TOOL, Daemon
from outside import Echo, Web

from runner.catalog import shared
from runner.wire import admin

HOST = "api.example.test"
OTHER = "other.example.test"
_NAMES = (HOST, OTHER, "opaque.example.test")
KEY = "sk-live-3f9d1c7ab2e84d5590aa"  # what neither agent nor tool may ever hold

_PROFILE = """
[[egress]]
name = "service"
host = "{host}"
ports = [{port}]
tls = "inspect"
addresses = ["127.0.0.0/8"]

[[egress]]
name = "opaque"
host = "opaque.example.test"
ports = [{port}]
addresses = ["127.0.0.0/8"]
"""
_TOOL = """
id = "{id}"
description = "Runs a program that has a network."
consequence = "high"
profile = "network"
kind = "argv"
argv = ["{{argv}}"]
stdin = true

[parameters]
type = "object"
additionalProperties = false
required = ["argv"]
properties.argv = {{ type = "array", items = {{ type = "string" }}, minItems = 1, maxItems = 64 }}

[project]
argv = "Set<String>"

{rules}
"""
_RULES = """
[[egress]]
name = "service"
host = "{host}"
ports = [{port}]
tls = "inspect"
methods = ["GET", "POST"]
addresses = ["127.0.0.0/8"]

[[egress]]
name = "opaque"
host = "opaque.example.test"
ports = [{port}]
addresses = ["127.0.0.0/8"]
"""
_SECRET = """
[[secrets]]
name = "service-key"
variable = "SERVICE_KEY"
destinations = ["service"]
places = ["header:authorization"]
"""
_POLICY = """
@id("net-tools")
@reason("the tests' tools with a network run")
permit (principal, action in [Action::"net_run", Action::"key_run"], resource);
"""


def another(folder: Path, tool: str, like: str, *, profile: str = "network", network: bool = True) -> None:
    """One more argv tool, as `like` but in that tool profile; without its rules and credentials for a tool of none."""
    text = (folder / f"tools/{like}/tool.toml").read_text().replace(f'"{like}"', f'"{tool}"')
    text = text.replace('profile = "network"', f'profile = "{profile}"')
    (folder / "tools" / tool).mkdir()
    (folder / "tools" / tool / "tool.toml").write_text(text if network else text.partition("[[egress]]")[0])
    task = folder / "profiles/net.toml"
    task.write_text(task.read_text().replace('tools = ["', f'tools = ["{tool}", "', 1))
    with (folder / "policies/net.cedar").open("a") as file:
        file.write(
            f'@id("{tool}")\n@reason("it is a test\'s")\npermit (principal, action == Action::"{tool}", resource);\n'
        )


class Reached:
    """A service, and a daemon whose tools `net_run` (a network) and `key_run` (and a credential) reach it."""

    def __init__(self, daemon: Daemon, web: Web, authority: trustme.CA) -> None:
        self.daemon = daemon
        self.web = web
        self.authority = authority

    def connect(self, **wish: Any) -> Any:
        tools = {"net_run": {}, "key_run": {}, "shell_run": {}, "egress": {}}
        return self.daemon.connect(profile="net", tools=wish.pop("tools", tools), **wish)


def catalogue(folder: Path, port: int) -> Path:
    """Profiles, tools and policies of a network, beside the package's own."""
    for name in ("profiles", "tools", "policies"):
        shutil.copytree(shared(name), folder / name)
    base = (folder / "profiles/default.toml").read_text()
    before, after = base.split("tools = [", 1)
    own = before.replace('name = "default"', 'name = "net"') + 'tools = ["net_run", "key_run", ' + after
    (folder / "profiles/net.toml").write_text(own + _PROFILE.format(host=HOST, port=port))
    rules = _RULES.format(host=HOST, port=port)
    for tool, more in (("net_run", ""), ("key_run", _SECRET)):
        (folder / "tools" / tool).mkdir()
        (folder / "tools" / tool / "tool.toml").write_text(_TOOL.format(id=tool, rules=rules + more))
    with (folder / "policies/net.cedar").open("w") as file:
        file.write(_POLICY)
    return folder


class World:
    """A service on loopback, and what a daemon needs to let tools reach it: `folder` and `config`."""

    def __init__(self, place: Path, handler: type[http.server.BaseHTTPRequestHandler] = Echo) -> None:
        self.authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(*_NAMES).configure_cert(context)
        self.web = Web(context, handler).quiet()
        self.authority.cert_pem.write_to_path(str(place / "ca.pem"))
        self.folder = catalogue(place / "catalogue", self.web.port)
        hosts = ", ".join(f'"{name}" = ["127.0.0.1"]' for name in _NAMES)
        self.config = f'[egress]\ntrust = "{place / "ca.pem"}"\nhosts = {{ {hosts} }}\n'

    def open(self, daemon: Daemon) -> None:
        """Give a daemon that serves the credential."""
        key = [daemon.python, "-m", "runner", "secret", "init", "--config", "runner.toml"]
        subprocess.run(key, cwd=daemon.place, check=True, capture_output=True)
        daemon.ask(admin.SetSecret(name="service-key", value=KEY.encode()))


@pytest.fixture
def make_reached(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Callable[..., Reached]]:
    """Services and daemons of a test's own."""
    served: list[Web] = []

    def make(
        config: str = "",
        prepare: Callable[[Path], None] = lambda folder: None,
        handler: type[http.server.BaseHTTPRequestHandler] = Echo,
    ) -> Reached:
        world = World(tmp_path, handler)
        served.append(world.web)
        prepare(world.folder)
        daemon = make_daemon(start=False, catalogue=world.folder, config=f"{config}\n{world.config}")
        daemon.start()
        world.open(daemon)
        return Reached(daemon, world.web, world.authority)

    yield make
    for web in served:
        web.close()


__all__ = ["EVERY_TOOL", "HOST", "KEY", "OTHER", "Reached", "World", "another", "make_reached"]
