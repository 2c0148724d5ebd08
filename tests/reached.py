"""One service on loopback, and what a daemon needs to let tools reach it: for soak runs, benches and tests of walls.
`networked` has more services, tools and rules, made of the same parts."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from house import EVERY_TOOL, Daemon
from outside import Echo, Web
from typer.testing import CliRunner

from runner.catalog import shared
from runner.cli.commands import app
from runner.wire import admin

HOST = "api.example.test"
OTHER = "other.example.test"
_NAMES = (HOST, OTHER, "opaque.example.test")
KEY = "sk-live-3f9d1c7ab2e84d5590aa"  # what neither agent nor tool may ever hold

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
_RULE = """
[[egress]]
name = "{name}"
host = "{host}"
ports = [{port}]
{more}
"""
OPEN = 'addresses = ["127.0.0.0/8"]\n'
_SECRET = """
[[secrets]]
name = "{name}"
variable = "{variable}"
{more}
"""
_POLICY = """
@id("net-tools")
@reason("the tests' tools with a network run")
permit (principal, action in [{tools}], resource);
"""


def rule(name: str, host: str, port: int, more: str = OPEN) -> str:
    """A destination of a profile or a tool, as TOML."""
    return _RULE.format(name=name, host=host, port=port, more=more)


def secret(name: str, variable: str, *rules: str, places: tuple[str, ...] = (), delivery: str = "") -> str:
    """A tool's secret: bound to these rules and, by default, the header Authorization; or delivered as it is."""
    bound = f"destinations = {list(rules)}\nplaces = {list(places or ('header:authorization',))}"
    return _SECRET.format(name=name, variable=variable, more=f'delivery = "{delivery}"' if delivery else bound)


def laid_out(folder: Path, profiles: dict[str, tuple[str, ...]], rules: str, tools: dict[str, str]) -> Path:
    """The package's own profiles, tools and policies, and beside them: task profiles with these tools and rules, and
    argv tools with these rules and secrets, which may run."""
    for name in ("profiles", "tools", "policies"):
        shutil.copytree(shared(name), folder / name)
    before, after = (folder / "profiles/default.toml").read_text().split("tools = [", 1)
    for name, held in profiles.items():
        named = "".join(f'"{tool}", ' for tool in held)
        own = before.replace('name = "default"', f'name = "{name}"') + "tools = [" + named + after
        (folder / f"profiles/{name}.toml").write_text(own + rules)
    for tool, more in tools.items():
        (folder / "tools" / tool).mkdir()
        (folder / "tools" / tool / "tool.toml").write_text(_TOOL.format(id=tool, rules=more))
    may = ", ".join(f'Action::"{tool}"' for tool in tools)
    (folder / "policies/net.cedar").write_text(_POLICY.format(tools=may))
    return folder


def store_key(daemon: Daemon) -> None:
    """Give a daemon that serves a broker's key, and the one secret."""
    made = CliRunner().invoke(app, ["secret", "init", "--config", str(daemon.place / "runner.toml")])
    assert made.exit_code == 0, made.output
    daemon.ask(admin.SetSecret(name="service-key", value=KEY.encode()))


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
    opaque = rule("opaque", "opaque.example.test", port)
    profile = rule("service", HOST, port, 'tls = "inspect"\n' + OPEN) + opaque
    judged = rule("service", HOST, port, 'tls = "inspect"\nmethods = ["GET", "POST"]\n' + OPEN) + opaque
    tools = {"net_run": judged, "key_run": judged + secret("service-key", "SERVICE_KEY", "service")}
    return laid_out(folder, {"net": tuple(tools)}, profile, tools)


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
        store_key(daemon)


@contextlib.contextmanager
def reaching(make_daemon: Callable[..., Daemon], place: Path) -> Iterator[Callable[..., Reached]]:
    """Makes a service below `place` and a daemon that reaches it."""
    served: list[Web] = []

    def make(
        config: str = "",
        prepare: Callable[[Path], None] = lambda folder: None,
        handler: type[http.server.BaseHTTPRequestHandler] = Echo,
    ) -> Reached:
        world = World(place, handler)
        served.append(world.web)
        prepare(world.folder)
        daemon = make_daemon(start=False, catalogue=world.folder, config=f"{config}\n{world.config}")
        daemon.start()
        world.open(daemon)
        return Reached(daemon, world.web, world.authority)

    yield make
    for web in served:
        web.close()


@pytest.fixture
def make_reached(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Callable[..., Reached]]:
    """Services and daemons of a test's own."""
    with reaching(make_daemon, tmp_path) as make:
        yield make


__all__ = ["EVERY_TOOL", "HOST", "KEY", "OTHER", "Reached", "World", "another", "make_reached", "reaching"]
