"""SECURITY-CASES N14 and N18: two tasks, and two calls of one task, at once; neither is the other's way out.

One call waits with everything it holds, another tries to use it: port, placeholder, environment, files, budget. What
the first has must serve it still when the second has tried.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from house import first_line
from networked import BUDGET, HOST, KEY, OPAQUE, Networked
from wishes import fetch, python, reach, talk, told

pytestmark = pytest.mark.docker
# Says what it holds, waits for a line, then uses it.
HOLD = """
import json, os, sys, urllib.request
own = {name: os.environ.get(name, "") for name in ("http_proxy", "SERVICE_KEY", "RUNNER_CANARY_TOKEN")}
print(json.dumps(own | {"pid": os.getpid()}), flush=True)
sys.stdin.readline()
headers = {"Authorization": "Bearer " + own["SERVICE_KEY"]} if own["SERVICE_KEY"] else {}
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=30) as answer:
        answer.read()
        print(answer.status)
except OSError as error:
    print(error)
"""


class Neighbour:
    """A call that waits."""

    def __init__(self, running: Any) -> None:
        self._chunks = iter(running)
        self._running = running
        self.call = running.call
        self.holds: dict[str, Any] = json.loads(first_line(self._chunks))
        self.port = int(self.holds["http_proxy"].rpartition(":")[2])

    def goes_on(self) -> str:
        """Let it use what it has; what that gave."""
        self._running.write_stdin(b"\n")
        self._running.close_stdin()
        said = b"".join(chunk.data for chunk in self._chunks)
        assert self._running.result().ok
        return said.decode().strip()


@contextmanager
def waiting(runner: Any, tool: str, url: str) -> Iterator[Neighbour]:
    with runner.stream(tool, python(HOLD, url), stdin=True) as running:
        yield Neighbour(running)


def through(port: int, networked: Networked, header: str = "") -> dict[str, Any]:
    """Ask for a tunnel at this port of the sandbox."""
    where = f"{HOST}:{networked.web.port}"
    return {"port": port, "send": f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{header}\r\n"}


def test_calls_of_one_task_cannot_use_each_others_port_placeholder_environment_or_files(networked: Networked) -> None:
    with networked.connect() as runner, waiting(runner, "key_run", networked.url("/v1/mine")) as one:
        with waiting(runner, "key_run", networked.url("/v1/other")) as two:
            assert {one.port, two.port} == {3128, 3129}
            assert one.holds["SERVICE_KEY"] != two.holds["SERVICE_KEY"]
            # The port: Landlock, before any packet. By a tool that has a network and by one that has none.
            third = runner.call("net_run", talk(through(one.port, networked), through(two.port, networked)))
            assert all(each.startswith("!PermissionError") for each in told(third)), third.text
            assert not networked.requests(third.call)
            bare = runner.call("shell_run", reach(("tcp", "127.0.0.1", one.port), ("tcp", "127.0.0.1", two.port)))
            assert set(told(bare)) <= {"EPERM", "EACCES"}
            # The placeholder: worth nothing in another call's hands.
            stolen = {"url": networked.url("/v1/x"), "headers": {"Authorization": f"Bearer {one.holds['SERVICE_KEY']}"}}
            used = runner.call("key_run", fetch(stolen))
            assert told(used)[0]["status"] == 200
            assert dict(networked.web.seen[-1]["headers"])["authorization"] == f"Bearer {one.holds['SERVICE_KEY']}"
            # Environment, memory and files of the other's processes.
            spy = python("""
import os
found = []
for name in os.listdir("/proc"):
    for file in ("environ", "mem", "maps", "fd", "root", "cwd"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                path = f"/proc/{name}/{file}"
                found.append(os.listdir(path) if file in ("fd", "root", "cwd") else open(path, "rb").read(64))
            except OSError:
                pass
print(found, os.path.exists("/run/tools/secrets/3128"))
""")
            seen = runner.call("net_run", spy)
            assert seen.ok, seen.stderr
            for value in (one.holds["SERVICE_KEY"], KEY):
                assert value not in seen.text
            kill = runner.call("net_run", python("import os; os.kill(int(os.sys.argv[1]), 9)", str(one.holds["pid"])))
            assert not kill.ok
            # Unharmed: each goes on with what is its own.
            assert two.goes_on() == "200"
        assert one.goes_on() == "200"
    told_ = [dict(seen["headers"])["authorization"] for seen in networked.web.seen if seen["target"] != "/v1/x"]
    assert told_ == [f"Bearer {KEY}"] * 2
    for call in (one.call, two.call):
        assert networked.outcome(call).network.requests == 1
        assert networked.outcome(call).secrets[0].used == 1
        assert not networked.alerts(call)


def test_tasks_cannot_reach_each_others_proxy_at_all(networked: Networked) -> None:
    """Each has a loopback of its own: the same port leads to its own listener, or nowhere."""
    with (
        networked.connect() as first,
        networked.connect() as second,
        waiting(first, "key_run", networked.url("/v1/mine")) as one,
    ):
        assert one.port == 3128
        bare = second.call("shell_run", reach(("tcp", "127.0.0.1", 3128)))
        assert set(told(bare)) <= {"EPERM", "EACCES"}
        header = f"Authorization: Bearer {one.holds['SERVICE_KEY']}\r\n"
        used = second.call("net_run", talk(through(3128, networked, header), through(3129, networked)))
        own, closed = told(used)
        assert " 200 " in own, "its own listener, which knows nothing of the other's placeholder"
        assert closed.startswith("!PermissionError")
        assert [each.task for each in networked.requests(used.call)] == [networked.outcome(used.call).task] * len(
            networked.requests(used.call)
        )
        assert one.goes_on() == "200"
    assert networked.outcome(one.call).task != networked.outcome(used.call).task
    assert networked.outcome(one.call).network.requests == 1


def test_a_call_spends_its_own_budget_and_no_other(networked: Networked) -> None:
    with networked.connect() as runner, waiting(runner, "net_run", networked.url("/size?200000", BUDGET)) as one:
        greedy = runner.call("net_run", fetch(*(networked.url("/size?200000", BUDGET) for _ in range(3))))
        assert [each["status"] for each in told(greedy)] == [200, 0, 403], greedy.text
        assert one.goes_on() == "200"
    assert networked.ends(one.call)[0].down > 200_000
    assert networked.ends(greedy.call)[-1].code == "budget"


def test_nobody_can_stand_where_a_neighbours_listener_will_be(networked: Networked) -> None:
    """An impostor at the next port would be handed what the next call believes to be its proxy."""
    squat = python("""
import socket, sys
found = []
for port in (3128, 3129, 3130):
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        try:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen()
            found.append(sock)
        except OSError as error:
            pass
print(len(found), flush=True)
sys.stdin.read()
""")
    with networked.connect() as runner:
        for tool in ("net_run", "shell_run"):
            with runner.stream(tool, squat, stdin=True) as running:
                assert first_line(running) == b"0\n", f"{tool} offers a service"
                done = runner.call("net_run", fetch(networked.url("/v1/x")))
                assert told(done)[0]["status"] == 200
                running.close_stdin()
                assert running.result().ok


def test_calls_at_once_each_go_out_with_what_is_theirs(networked: Networked) -> None:
    """Two tasks, three calls of each at a time, for a while: no request goes with another's, and none is lost."""
    found: list[tuple[str, list[int]]] = []

    def work(runner: Any, name: str) -> None:
        for number in range(6):
            header = {"Authorization": "Bearer $SERVICE_KEY"}
            wish = {"url": networked.url(f"/v1/{name}-{number}"), "headers": header}
            done = runner.call("key_run", fetch(wish, networked.url("/v2/none")))
            found.append((done.call, [each["status"] for each in told(done)]))

    with networked.connect() as first, networked.connect() as second:
        threads = [
            threading.Thread(target=work, args=(runner, f"{task}{lane}"))
            for task, runner in (("a", first), ("b", second))
            for lane in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [statuses for _, statuses in found] == [[200, 403]] * 36
    assert sorted(seen["target"] for seen in networked.web.seen) == sorted(
        f"/v1/{task}{lane}-{number}" for task in "ab" for lane in range(3) for number in range(6)
    )
    assert {dict(seen["headers"])["authorization"] for seen in networked.web.seen} == {f"Bearer {KEY}"}
    for call, _ in found:
        assert [each.decision.effect for each in networked.requests(call)] == ["allow", "deny"]


def test_fifty_calls_leave_no_listener_descriptor_or_process(networked: Networked) -> None:
    with networked.connect() as runner:
        wish = fetch({"url": networked.url("/v1/x"), "headers": {"Authorization": "Bearer $SERVICE_KEY"}},
                     networked.url("/x", OPAQUE))  # fmt: skip
        for _ in range(3):
            assert runner.call("key_run", wish).ok
        before = {name: networked.descriptors(name) for name in ("gate", "egress", "broker", "engine")}
        threads = networked.daemon.child("engine").num_threads()
        for _ in range(50):
            assert [each["status"] for each in told(runner.call("key_run", wish))] == [200, 200]
        networked.daemon.wait(lambda: all(networked.descriptors(name) <= count for name, count in before.items()), 20)
        assert networked.daemon.child("engine").num_threads() <= threads + 2
        last = runner.call("net_run", python("import os; print(os.environ['http_proxy'])"))
        assert last.text == "http://127.0.0.1:3128\n", "a port was not given back"
