"""Resources (R01 to R08) in calls that have a network: what a call does to its ceilings, listener and egress ends
with it, and a neighbour's requests go on. Counts and the kernel's own numbers; nothing here is measured in time."""

from __future__ import annotations

import functools
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from house import Daemon, daemons, end_tasks, first_line
from outside import Echo
from reached import HOST, Reached, reaching
from soak.raw import Raw

from runner.client import Runner
from runner.ledger import entry as entries
from runner.wire import admin, agent

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

MIB = 1 << 20
GROWTH = 16 * MIB  # of egress's or gate's memory, whatever one call does
BUDGET = 256 << 10
CONNECTIONS = 8
TOOLS: dict[str, Any] = {"net_run": {}, "key_run": {}, "egress": {}}
GET = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    print(answer.status, answer.headers.get("Content-Encoding", "plain"), flush=True)
    size = 0
    while piece := answer.read(65536):
        size += len(piece)
    print(size, flush=True)
"""
# Opens a tunnel by hand and does with it what the rest says; `way()` is a connection to the listener.
BY_HAND = """
import os, socket, ssl, sys, time
url = sys.argv[1].removeprefix("https://")
where, _, path = url.partition("/")
def way():
    host, _, port = os.environ["https_proxy"].removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))
def tunnel():
    made = way()
    made.sendall(f"CONNECT {where} HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n".encode())
    assert made.recv(65536).startswith(b"HTTP/1.1 200 ")
    return ssl.create_default_context().wrap_socket(made, server_hostname=where.partition(":")[0])
"""

AGAIN = """
for _ in range(200):
    try:
        tunnel()
        break
    except AssertionError:
        time.sleep(0.05)
else:
    raise SystemExit("no place came free")
"""


def archive() -> bytes:
    """64 MiB of zeros as a compressed tar: 64 KiB."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 64 * MIB
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    return made.getvalue()


@functools.cache  # and not when this file is read, by every worker
def bombs() -> dict[str, tuple[str, bytes]]:
    """By path: how each says it is coded, and its bytes."""
    return {
        "/gzip": ("gzip", gzip.compress(gzip.compress(bytes(256 * MIB)))),  # a bomb in a bomb: a few hundred bytes
        "/brotli": ("br", bytes.fromhex("ff") * 1000),  # nobody here may look into it
        "/tar": ("", archive()),
        "/large": ("gzip", bytes(range(256)) * (4 * BUDGET // 256)),
    }


class Service(Echo):
    """Bombs, and an answer without an end."""

    def do_GET(self) -> None:  # noqa: N802 - the library asks for it
        if self.path == "/endless":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            while True:
                self.wfile.write(bytes(65536))
        elif self.path in bombs():
            coding, body = bombs()[self.path]
            self.send_response(200)
            if coding:
                self.send_header("Content-Encoding", coding)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self._answer()


def bounded(folder: Path) -> None:
    """`key_run` may take so many bytes from the service; it keeps its rule and needs no credential here."""
    manifest = folder / "tools/key_run/tool.toml"
    rules, _, _ = manifest.read_text().partition("[[secrets]]")
    manifest.write_text(rules.replace('tls = "inspect"', f'tls = "inspect"\ndown = "{BUDGET >> 10}KiB"', 1))


@pytest.fixture(scope="module")
def shared_house(tool_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    with daemons(tool_image) as make, reaching(make, tmp_path_factory.mktemp("reached")) as reach:
        made = reach(prepare=bounded, handler=Service)
        with connected(made) as warm:
            assert fetched(warm, made, "/").startswith("200 ")
        yield made


@pytest.fixture
def house(shared_house: Reached) -> Iterator[Reached]:
    """One daemon for all, each of which leaves it as it found it."""
    yield shared_house
    end_tasks(shared_house.daemon)


def connected(house: Reached, **wish: Any) -> Runner:
    runner: Runner = house.connect(tools=TOOLS, **wish)
    return runner


def url(house: Reached, path: str) -> str:
    return f"https://{HOST}:{house.web.port}{path}"


def last_end(house: Reached, bytes_down: int) -> entries.EgressEnd:
    """The end of the last call's request, which brought at least so many bytes; it may come after the result."""
    (*_, last) = house.daemon.entries(entries.Call)
    found: entries.EgressEnd = house.daemon.entry(entries.EgressEnd, last.call)
    assert found.down >= bytes_down
    return found


def fetched(runner: Runner, house: Reached, path: str, tool: str = "net_run") -> str:
    """What a tool says that fetches this."""
    done = runner.call(tool, {"argv": ["python3", "-c", GET, url(house, path)]})
    return str(done.text) if done.ok else done.text + done.stderr.decode()


def memory(daemon: Daemon) -> dict[str, int]:
    return {name: int(daemon.child(name).memory_info().rss) for name in ("egress", "gate")}


def nothing_left(house: Reached) -> None:
    """No listener in a sandbox, no connection of egress to the service, no call."""

    def left() -> list[str]:
        daemon, found = house.daemon, []
        found += ["a call"] * daemon.ask(admin.Status()).running
        for pid in daemon.sandbox_pids():
            lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
            found += [f"a listener in {pid}" for line in lines if line.split()[3] == "0A"]
        for each in daemon.child("egress").net_connections("tcp"):
            found += ["a connection"] if each.raddr and each.raddr.port == house.web.port else []
        return found

    house.daemon.wait(lambda: not left(), 30)


@pytest.mark.parametrize("path", ["/gzip", "/brotli", "/tar"])
def test_a_bomb_passes_as_the_bytes_it_is_and_is_not_looked_into(house: Reached, path: str) -> None:
    before = memory(house.daemon)
    coding, body = bombs()[path]
    with connected(house) as runner:
        assert fetched(runner, house, path) == f"200 {coding or 'plain'}\n{len(body)}\n"
        last = last_end(house, len(body))
    assert len(body) < last.down < len(body) + 1000  # what came, and its head
    assert all(memory(house.daemon)[name] < before[name] + GROWTH for name in before)


def test_a_bomb_beyond_the_budget_is_cut_there(house: Reached) -> None:
    with connected(house) as runner:
        assert fetched(runner, house, "/tar", "key_run").startswith("200 plain\n")  # within it
        said = fetched(runner, house, "/large", "key_run")
        assert 0 < int(said.split()[-1]) < BUDGET, said
        last = last_end(house, BUDGET)
        assert (last.code, last.down) == ("budget", BUDGET)
        assert fetched(runner, house, "/large").endswith(f"\n{4 * BUDGET}\n")  # where no rule bounds it


def test_a_tool_that_never_reads_costs_egress_no_memory_and_its_neighbours_nothing(house: Reached) -> None:
    before = memory(house.daemon)
    never = BY_HAND + (
        "held = [tunnel() for _ in range(6)]\n"
        "for each in held:\n"
        "    each.sendall(f'GET /endless HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n'.encode())\n"
        "print('asked', flush=True)\n"
        "time.sleep(600)\n"
    )
    with connected(house) as greedy, connected(house) as other:
        with greedy.stream("net_run", {"argv": ["python3", "-c", never, url(house, "/endless")]}) as running:
            assert first_line(running) == b"asked\n"
            for runner in (greedy, other, greedy, other):  # a call of the same task, and of another
                assert fetched(runner, house, "/").startswith("200 ")
            after = memory(house.daemon)
            running.cancel()
            assert running.result().outcome.kind == "cancelled"
        nothing_left(house)
    assert all(after[name] < before[name] + GROWTH for name in before)


@pytest.fixture
def narrow(make_reached: Callable[..., Reached]) -> Reached:
    """Few connections a call, and little patience for heads."""
    made = make_reached(handler=Service)
    made.daemon.stop()
    config = made.daemon.place / "runner.toml"
    config.write_text(
        config.read_text().replace("[egress]", f"[egress]\nconnections_per_call = {CONNECTIONS}\nhead_s = 1.0")
    )
    made.daemon.start()
    with connected(made) as warm:  # whatever egress opens once, it has opened
        assert fetched(warm, made, "/").startswith("200 ")
    nothing_left(made)
    return made


def test_a_flood_of_connections_fills_its_own_call_s_share_and_no_other(narrow: Reached) -> None:
    flood = BY_HAND + (
        "said = []\n"
        "held = [tunnel() for _ in range(8)]\n"  # idle tunnels: there is no head to wait for
        "for _ in range(300):\n"
        "    each = way()\n"
        "    said.append(each.recv(65536).split(b'\\r\\n')[0].decode())\n"
        "print(sorted(set(said)), len(said), flush=True)\n"
        "sys.stdin.readline()\n"
        "held[0].close()\n"
        "held[0] = None\n"
        f"{AGAIN}"
    )
    counts = narrow.daemon.child("egress").num_fds()
    with connected(narrow) as greedy, connected(narrow) as other:
        argv = {"argv": ["python3", "-c", flood, url(narrow, "/")]}
        with greedy.stream("net_run", argv, stdin=True) as running:
            assert first_line(running) == b"['HTTP/1.1 429 Too Many Requests'] 300\n"
            for runner in (greedy, other):
                assert fetched(runner, narrow, "/").startswith("200 ")
            running.close_stdin()
            result = running.result()
            assert result.ok, result.stderr
        nothing_left(narrow)
    narrow.daemon.wait(lambda: narrow.daemon.child("egress").num_fds() <= counts + 1, 30)


def test_heads_that_dribble_from_inside_are_given_up_and_their_places_are_free_again(narrow: Reached) -> None:
    slow = BY_HAND + (
        "held = [way() for _ in range(8)]\n"
        "for each in held:\n"
        "    each.sendall(b'G')\n"
        "print('begun', flush=True)\n"
        "for each in held:\n"
        "    each.settimeout(60)\n"
        "    print(each.recv(65536).split(b'\\r\\n')[0].decode(), flush=True)\n"
        "    each.close()\n"
        f"{AGAIN}"
    )
    with connected(narrow) as greedy, connected(narrow) as other:
        with greedy.stream("net_run", {"argv": ["python3", "-c", slow, url(narrow, "/")]}) as running:
            chunks = iter(running)
            assert next(chunks).data == b"begun\n"
            assert fetched(other, narrow, "/").startswith("200 ")
            said = b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout")
            assert running.result().ok, said
        assert said.splitlines() == [b"HTTP/1.1 504 Gateway Timeout"] * CONNECTIONS
        nothing_left(narrow)


THROUGH = """
kept = tunnel()
kept.sendall(f"GET / HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n".encode())
assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
print("through", flush=True)
"""
FORKS = """
import os
while True:
    try:
        os.fork()
    except OSError:
        os._exit(3)
"""
STUBBORN = """
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if not os.fork():
    os.setsid()
    os.fork()
time.sleep(600)
"""
HOGS = {
    "processes": ("exited", FORKS),
    "memory": ("oom", "held = []\nwhile True:\n    held.append(bytearray(8 << 20))\n"),
    "output": ("output_capped", "while True:\n    print('x' * 65000)\n"),
    "time": ("timed_out", STUBBORN),
}


@pytest.mark.parametrize("what", list(HOGS))
def test_a_call_that_goes_for_a_ceiling_ends_with_its_connections(house: Reached, what: str) -> None:
    kind, hog = HOGS[what]
    argv = ["python3", "-c", f"{BY_HAND}{THROUGH}{hog}", url(house, "/")]
    with connected(house) as greedy, connected(house) as other:
        assert fetched(other, house, "/").startswith("200 ")
        done = greedy.call("net_run", {"argv": argv}, deadline=8.0)
        assert done.text.startswith("through\n"), done.stderr
        assert done.outcome.kind == kind, done.outcome
        nothing_left(house)
        for runner in (greedy, other):
            assert fetched(runner, house, "/").startswith("200 ")
    outcome = house.daemon.outcome(done.call)
    assert outcome.network.requests == 1


def test_five_hundred_calls_with_a_network_are_bounded_and_others_are_served(house: Reached) -> None:
    handed = house.daemon.credentials(profile="net", tools=TOOLS)
    greedy = [Raw(house.daemon, handed).open() for _ in range(16)]
    refused: list[Any] = []
    with connected(house) as other:
        for client in greedy:
            client.send(*(client.ask("net_run", {"argv": ["sleep", "300"]}) for _ in range(32)))
        for client in greedy[2:]:
            refused.append(client.until(agent.Refused).refusal)
        assert house.daemon.ask(admin.Status()).running == 64
        for _ in range(3):
            assert fetched(other, house, "/").startswith("200 ")
        assert house.daemon.ask(admin.Status()).running == 64
        egress = house.daemon.child("egress")
        listening = [each for each in egress.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        assert len(listening) <= 4 + 1  # of the calls that run (concurrent_calls), and broker's
    assert {refusal.code for refusal in refused} == {"busy"}
    for client in greedy:
        client.sock.close()
    nothing_left(house)
