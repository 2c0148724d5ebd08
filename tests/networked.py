"""A daemon whose tools have a network, and services on loopback for them: loaded as a pytest plugin."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from house import EVERY_TOOL, Daemon, end_tasks
from outside import Echo, Origin, Web
from reached import HOST, KEY, OPEN, OTHER, laid_out, rule, secret, store_key

from runner.ledger import entry as entries

OPAQUE = "opaque.example.test"
PLAIN = "plain.example.test"
TCP = "tcp.example.test"
BUDGET = "budget.example.test"
NAMED = "named.example.test"  # allowed, and looked up
CLOSED = {  # names of rules that open no range, and what is no address of the internet's behind each
    "loopback.example.test": ("127.0.0.1",),
    "private.example.test": ("10.20.30.40",),
    "metadata.example.test": ("169.254.169.254",),
    "mapped.example.test": ("::ffff:127.0.0.1",),
    "nat64.example.test": ("64:ff9b::7f00:1",),
    "sixto4.example.test": ("2002:7f00:1::1",),
    "unspecified.example.test": ("0.0.0.0",),  # what a hostile zone could say
    "half.example.test": ("127.0.0.1", "10.20.30.40"),  # of which its rule opens the first
}
HANDED = ("file_run", "env_run")  # tools that are given a credential itself: in the profile `handed` alone
TOOLS = ("net_run", "key_run", "places_run", "ghost_run", *HANDED)

_POLICY = """
@id("not-this-path")
@reason("nobody reads what is forbidden")
forbid (principal, action == Action::"egress", resource) when { context has path && context.path like "/forbidden*" };

@id("not-this-task")
@reason("this task stays at home")
forbid (principal, action == Action::"egress", resource) when { principal.task like "t-home*" };

@id("ask-a-human")
@decision("step_up")
@reason("a human's word first")
permit (principal, action == Action::"egress", resource) when { context has path && context.path like "/asked*" };
"""

# --- services -----------------------------------------------------------------------------------------------


class Service(Echo):
    """What the web services do beside answering with what they were asked, less credentials unless told so."""

    def do_GET(self) -> None:  # noqa: N802  # the library asks for it
        path, _, query = self.path.partition("?")
        special = {"/to": self._to, "/size": self._size, "/hold": self._hold, "/shown": self._shown, "/ws": self._ws}
        if path == "/v1/page":
            self._page(query)
        elif path in special:
            special[path](query)
        else:
            self._answer()

    def do_POST(self) -> None:  # noqa: N802  # the library asks for it
        if self.path == "/sink":
            self._hold("")
        else:
            self._answer()

    def _note(self) -> None:
        headers = [[name.lower(), value] for name, value in self.headers.items()]
        self.server.seen.append({"method": self.command, "target": self.path, "headers": headers, "body": ""})  # type: ignore[attr-defined]

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self._note()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _to(self, query: str) -> None:
        self._say(302, b"", Location=query)

    def _size(self, query: str) -> None:
        self._say(200, b"x" * int(query))

    def _page(self, query: str) -> None:
        """The page that the query holds."""
        self._say(200, base64.urlsafe_b64decode(query))

    def _shown(self, query: str) -> None:
        """A service that repeats the credential it was given."""
        self._say(200, b"before " + self.headers.get("Authorization", "").encode() + b" after")

    def _hold(self, query: str) -> None:
        """Answer nothing, and count what comes until the other side is gone."""
        self._note()
        held = self.server.seen[-1]  # type: ignore[attr-defined]
        held["received"], held["over"] = 0, False
        with contextlib.suppress(OSError):
            while data := self.rfile.read1(65536):
                held["received"] += len(data)
        held["over"] = True
        self.close_connection = True

    def _ws(self, query: str) -> None:
        """Switch protocols as asked, then repeat every byte."""
        self._note()
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", self.headers.get("Upgrade", ""))
        self.end_headers()
        with contextlib.suppress(OSError):
            while data := self.rfile.read1(65536):
                self.wfile.write(data)
        self.close_connection = True


class Services:
    """An https service, a plain http one and one that repeats bytes, all on loopback."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(HOST, OTHER, OPAQUE, BUDGET, *CLOSED).configure_cert(context)
        self.web = Web(context, Service).quiet()
        self.plain = Web(None, Service).quiet()
        self.received = bytearray()  # by the last of them
        self.tcp = Origin(self._repeat)

    def _repeat(self, connection: Any) -> None:
        while data := connection.recv(65536):
            self.received += data
            connection.sendall(data)

    @property
    def dialled(self) -> int:
        """Connections that any of them ever got."""
        return self.web.dialled + self.plain.dialled + self.tcp.dialled

    def close(self) -> None:
        """Everything of them is gone when this returns."""
        for each in (self.web, self.plain, self.tcp):
            each.close()


# --- the daemon ---------------------------------------------------------------------------------------------


class Networked:
    """Services, and a daemon whose tools reach them: see `TOOLS`."""

    def __init__(self, daemon: Daemon, services: Services) -> None:
        self.daemon = daemon
        self.services = services
        self.web, self.plain, self.tcp = services.web, services.plain, services.tcp
        self.authority = services.authority

    def start(self) -> Networked:
        """Start the daemon, make the broker's key, store the one secret."""
        self.daemon.start()
        store_key(self.daemon)
        return self

    def credentials(self, **wish: Any) -> bytes:
        """Of a task with every tool of the tests, `shell_run` and the capability `egress`."""
        tools: dict[str, Any] = {name: {} for name in (*TOOLS, "shell_run", "egress")}
        return self.daemon.credentials(**{"profile": "net", "tools": tools} | wish)

    def connect(self, **wish: Any) -> Any:
        """An agent with those."""
        return self.daemon.connect(self.credentials(**wish))

    def url(self, path: str = "/", host: str = HOST) -> str:
        """Of a service."""
        if host == PLAIN:
            return f"http://{host}:{self.plain.port}{path}"
        return f"https://{host}:{self.web.port}{path}"

    # --- what is recorded -----------------------------------------------------------------------------------

    def outcome(self, call: str) -> Any:
        """The call's outcome entry."""
        return self.daemon.outcome(call)

    def of(self, kind: type, call: str) -> list[Any]:
        """The call's entries of this kind: they stand before its outcome."""
        self.outcome(call)
        return [entry for entry in self.daemon.entries(kind) if entry.call == call]

    def requests(self, call: str) -> list[entries.Egress]:
        """Its requests, decided."""
        return self.of(entries.Egress, call)

    def ends(self, call: str) -> list[entries.EgressEnd]:
        """And ended."""
        return self.of(entries.EgressEnd, call)

    def alerts(self, call: str) -> list[entries.Alert]:
        """And what should never have happened."""
        return self.of(entries.Alert, call)

    # --- what there is --------------------------------------------------------------------------------------

    def descriptors(self, name: str) -> int:
        """Open ones of a part."""
        return self.daemon.child(name).num_fds()

    def family(self) -> list[psutil.Process]:
        """Every process of the daemon."""
        parent = psutil.Process(self.daemon.pid)
        return [parent, *parent.children()]


def rules(services: Services) -> str:
    """The same for profile and tools."""
    web = services.web.port
    opened = 'tls = "inspect"\nmethods = ["GET", "POST"]\n' + OPEN
    found = [
        ("service", HOST, web, opened + 'paths = ["/v1/*", "/forbidden", "/asked", "/to", "/size", "/hold", "/sink"]'),
        ("shown", HOST, web, opened + 'paths = ["/shown", "/ws"]'),
        ("opaque", OPAQUE, web, OPEN),
        ("plain", PLAIN, services.plain.port, 'protocol = "http"\n' + OPEN),
        ("tcp", TCP, services.tcp.port, 'protocol = "tcp"\n' + OPEN),
        ("named", NAMED, services.plain.port, 'protocol = "http"\n' + OPEN),
        (
            "budget",
            BUDGET,
            web,
            'tls = "inspect"\nup = "64KiB"\ndown = "256KiB"\nrate = 6\nrecord = "digest"\n' + OPEN,
        ),
        *(
            (name.partition(".")[0], name, web, 'tls = "inspect"\n' + (OPEN if name.startswith("half") else ""))
            for name in CLOSED
        ),
    ]
    return "".join(rule(*each) for each in found)


_PLACES = ("header:x-api-key", "query:key", "basic", "body")
_SECRETS = {
    "net_run": "",
    "key_run": secret("service-key", "SERVICE_KEY", "service", "shown"),
    "places_run": secret("service-key", "SERVICE_KEY", "service", "plain", places=_PLACES),
    "file_run": secret("service-key", "SERVICE_KEY", delivery="file"),
    "env_run": secret("service-key", "SERVICE_KEY", delivery="env"),
    "ghost_run": secret("nobody-has-it", "GHOST", "service", places=("basic",)),
}


def catalogue(folder: Path, services: Services, more: dict[str, str]) -> Path:
    """Profiles, tools and policies of a network, beside the package's own; and `more` tools with these secrets."""
    allowed = rules(services)
    tools = {tool: allowed + secrets for tool, secrets in (_SECRETS | more).items()}
    laid_out(folder, {"net": (*TOOLS[:-2], *more), "handed": TOOLS}, allowed, tools)
    handed = folder / "profiles/handed.toml"
    handed.write_text(handed.read_text().replace("\n", '\ndelivery = ["inject", "file", "env"]\n', 1))
    with (folder / "policies/net.cedar").open("a") as file:
        file.write(_POLICY)
    return folder


def _config(folder: Path, services: Services, nameserver: str = "127.0.0.1", trust: bytes = b"") -> str:
    (folder / "ca.pem").write_bytes(services.authority.cert_pem.bytes() + trust)
    hosts = dict.fromkeys((HOST, OTHER, OPAQUE, PLAIN, TCP, BUDGET), ("127.0.0.1",)) | CLOSED
    listed = ", ".join(f'"{name}" = {json.dumps(addresses)}' for name, addresses in hosts.items())
    return f'[egress]\ntrust = "{folder / "ca.pem"}"\nnameservers = ["{nameserver}"]\nhosts = {{ {listed} }}\n'


@pytest.fixture
def make_networked(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Callable[..., Networked]]:
    """Services and daemons of a test's own; `egress` are more lines of that section, `sections` whole others, `tools`
    more tools with their secrets, `trust` more authorities."""
    served: list[Services] = []

    def make(
        config: str = "",
        *,
        egress: str = "",
        sections: str = "",
        nameserver: str = "127.0.0.1",
        trust: bytes = b"",
        tools: dict[str, str] | None = None,
    ) -> Networked:
        services = Services()
        served.append(services)
        folder = tmp_path / str(len(served))
        folder.mkdir()
        text = f"{config}\n{_config(folder, services, nameserver, trust)}{egress}\n{sections}"
        daemon = make_daemon(start=False, catalogue=catalogue(folder / "catalogue", services, tools or {}), config=text)
        return Networked(daemon, services).start()

    yield make
    for services in served:
        services.close()


@pytest.fixture(scope="session")
def shared_networked(tool_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    """The daemon behind `networked`."""
    place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
    place.chmod(0o711)
    folder = tmp_path_factory.mktemp("networked")
    services = Services()
    daemon = Daemon(
        place, tool_image, catalogue=catalogue(folder / "catalogue", services, {}), config=_config(folder, services)
    )
    try:
        yield Networked(daemon, services).start()
        assert daemon.verifies()
        daemon.stop()
        daemon.wait(lambda: not daemon.containers(), 20)
    finally:
        services.close()
        with contextlib.suppress(AssertionError):
            daemon.stop()
        shutil.rmtree(place)


@pytest.fixture
def networked(shared_networked: Networked) -> Iterator[Networked]:
    """One daemon with a network for every test that leaves it as it found it."""
    for each in (shared_networked.web, shared_networked.plain):
        each.seen.clear()
    yield shared_networked
    end_tasks(shared_networked.daemon)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until it is so."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.02)
    return found


__all__ = ["EVERY_TOOL", "HOST", "KEY", "OTHER", "make_networked", "networked", "secret", "shared_networked"]
