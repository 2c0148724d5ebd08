"""What a call with a network can hand to a call beside it, in profiles without any narrowing, and what that is worth:
a connection while its own call lives, on that call's account, and nothing afterwards (N18)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reached import Reached, another

from runner.ledger import entry as entries

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
SHOWN = "[REDACTED:service-key]"  # what a tool prints of the credential that it has

# Neither has `seccomp_deny`: what holds here is Landlock, the container's own filter, and egress.
_OPEN = """name = "{name}"
kind = "tool"
description = "For the tests of what can be handed on."
isolation = "{isolation}"
workspace = "write"
tmp = true
"""
_FILE = """
[[secrets]]
name = "service-key"
variable = "KEY_FILE"
delivery = "file"
"""
_TAKES = """
import json, os, socket, ssl, sys, time
host, port, path = sys.argv[1:4]
door = socket.socket(socket.AF_UNIX)
door.bind(path)
door.listen()
print("ready", flush=True)
asker, _ = door.accept()
_, (connected, unconnected), _, _ = socket.recv_fds(asker, 10, 2)
try:
    own = socket.socket(fileno=unconnected)
    own.connect(("127.0.0.1", 3128))
    print("unconnected: connected", flush=True)
except OSError as error:
    print("unconnected:", type(error).__name__, flush=True)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
tls = context.wrap_socket(socket.socket(fileno=connected), server_hostname=host)
ask = f"GET /lent HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n".encode()
tls.sendall(ask)
print("lent:", tls.recv(65536).split(b"\\r\\n")[0].decode(), flush=True)
asker.send(b"x")
try:
    while tls.recv(65536):
        pass
    tls.sendall(ask.replace(b"lent", b"late"))
    tls.sendall(ask.replace(b"lent", b"late"))
    print("later: sent", flush=True)
except OSError as error:
    print("later:", type(error).__name__, flush=True)
else:
    print("later:", "answered" if tls.recv(65536) else "closed", flush=True)
"""
_GIVES = """
import os, socket, sys, time
host, port, path = sys.argv[1:4]
proxy = os.environ["https_proxy"].removeprefix("http://").split(":")
way = socket.create_connection((proxy[0], int(proxy[1])))
way.sendall(f"CONNECT {host}:{port} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n".encode())
head = way.recv(65536)
assert head.startswith(b"HTTP/1.1 200 "), head
door = socket.socket(socket.AF_UNIX)
door.connect(path)
fresh = socket.socket()
socket.send_fds(door, [b"x"], [way.fileno(), fresh.fileno()])
assert door.recv(1) == b"x"
"""


def prepare(folder: Path) -> None:
    for name, isolation in (("open", "launcher"), ("wide", "call")):
        (folder / f"profiles/{name}.toml").write_text(_OPEN.format(name=name, isolation=isolation))
    another(folder, "wide_run", "net_run", profile="wide")
    another(folder, "open_run", "net_run", profile="open", network=False)
    another(folder, "file_run", "key_run")
    manifest = folder / "tools/file_run/tool.toml"
    rules, _, _ = manifest.read_text().partition("[[secrets]]")
    manifest.write_text(rules + _FILE)
    task = folder / "profiles/net.toml"
    task.write_text(task.read_text().replace("[ceilings]", 'delivery = ["inject", "file"]\n\n[ceilings]', 1))


@pytest.fixture
def house(make_reached: Callable[..., Reached]) -> Reached:
    return make_reached(prepare=prepare)


def test_a_connection_that_was_handed_on_is_its_giver_s_and_ends_with_it(house: Reached) -> None:
    host, port = "opaque.example.test", str(house.web.port)
    with house.connect(tools={"wide_run": {}, "open_run": {}, "egress": {}}) as runner:
        taker = {"argv": ["python3", "-c", _TAKES, host, port, "/workspace/door"]}
        with runner.stream("open_run", taker) as taking:
            pieces = iter(taking)
            said = b""
            while b"ready\n" not in said:
                said += next(pieces).data
            given = runner.call("wide_run", {"argv": ["python3", "-c", _GIVES, host, port, "/workspace/door"]})
            assert given.ok, given.stderr.decode()
            seen = len(house.web.seen)
            said += b"".join(piece.data for piece in pieces)
            assert taking.result().ok, said
    told = said.decode().splitlines()
    # The wall that judges connect() is the caller's, whoever made the socket.
    assert told[:2] == ["ready", "unconnected: PermissionError"]
    assert told[2] == "lent: HTTP/1.1 200 OK"
    assert told[3] != "later: answered"
    assert told[-1].startswith("later: ")
    assert [each["target"] for each in house.web.seen] == ["/lent"]
    assert len(house.web.seen) == seen == 1
    asked = house.daemon.entries(entries.Egress)
    assert {each.call for each in asked} == {given.call}  # on the account of the call whose listener it was
    outcome = house.daemon.outcome(given.call)
    assert outcome.network.requests == len(asked) == 1
    assert outcome.network.up > 0
    assert outcome.network.down > 0


def test_a_secret_file_cannot_be_kept_by_taking_its_rights_away(house: Reached) -> None:
    """Landlock does not see chmod, and the folders belong to the sandbox's uid: the guest takes them back."""
    read = {"argv": ["sh", "-c", "cat $KEY_FILE"]}
    spite = "cat $KEY_FILE; chmod 0 $KEY_FILE ${KEY_FILE%/*} /run/tools/secrets /run/tools && echo done"
    with house.connect(tools={"file_run": {}}) as runner:
        assert runner.call("file_run", read).text == SHOWN
        (pid,) = house.daemon.sandbox_pids()
        assert not placed(pid)
        with runner.stream("file_run", {"argv": ["sh", "-c", "echo; cat"]}, stdin=True) as running:
            next(iter(running))
            assert len(placed(pid)) == 1  # there while its call runs: what is looked for can be seen
            running.close_stdin()
            assert running.result().ok
        done = runner.call("file_run", {"argv": ["sh", "-c", spite]})
        assert (done.ok, done.text) == (True, SHOWN + "done\n")
        assert not placed(pid)
        assert runner.call("file_run", read).text == SHOWN
        assert house.daemon.sandbox_pids() == [pid]  # nobody had to go for it


def placed(pid: int) -> list[Path]:
    """Secret files in that sandbox now."""
    return [path for path in Path(f"/proc/{pid}/root/run/tools/secrets").rglob("*") if path.is_file()]
