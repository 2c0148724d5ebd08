"""SECURITY-CASES N15 and the issue's faults: a part is killed in the middle of a call that has a network.

Each time: the call ends and says which part, the service's connection is gone and no byte comes after, the part is
back, the next call works, and nothing of the first is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from credential_servers import Bao, private_folder
from house import alive, first_line
from networked import HOST, KEY, NAMED, OTHER, PLAIN, Networked, secret, until
from outside import Dns
from wishes import fetch, python, told

from runner.client.errors import CallError, Interrupted, Unavailable
from runner.errors import EXIT_UNAVAILABLE
from runner.ledger import entry as entries
from runner.wire import admin
from runner.wire import egress as egress_wire
from runner.wire.frame import encode

pytestmark = pytest.mark.docker
_PIDFD_GETFD = 438  # x86_64 and every other machine: pidfd_getfd(2)
# Sends for ever: whatever still passes is seen by the service.
SEND = """
import http.client, os, ssl, sys, time
proxy = os.environ["https_proxy"].removeprefix("http://")
connection = http.client.HTTPSConnection(proxy, context=ssl.create_default_context(), timeout=60)
connection.set_tunnel(sys.argv[1], int(sys.argv[2]))
connection.putrequest("POST", "/sink")
connection.putheader("Authorization", "Bearer " + os.environ["SERVICE_KEY"])
connection.putheader("Content-Length", "100000000")
connection.endheaders()
print("begun", flush=True)
try:
    while True:
        connection.send(b"x" * 1000)
        time.sleep(0.001)
except OSError:
    time.sleep(600)  # it does not end by itself: somebody must end it
"""


@contextmanager
def sending(house: Networked, runner: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A call in the middle of an upload, and what the service sees of it."""
    with runner.stream("key_run", python(SEND, HOST, str(house.web.port))) as running:
        assert first_line(running) == b"begun\n"
        house.daemon.wait(lambda: house.web.seen and house.web.seen[-1].get("received", 0) > 10_000)
        yield running, house.web.seen[-1]


def works(house: Networked, runner: Any) -> None:
    """A call with everything."""
    wish = {"url": house.url("/v1/x"), "headers": {"Authorization": "Bearer $SERVICE_KEY"}}
    done = runner.call("key_run", fetch(wish))
    assert told(done)[0]["status"] == 200, done.text
    assert dict(house.web.seen[-1]["headers"])["authorization"] == f"Bearer {KEY}"


def degraded(house: Networked) -> list[tuple[str, str]]:
    return [(each.part, each.state) for each in house.daemon.entries(entries.Degraded)]


@pytest.mark.parametrize("part", ["egress", "broker", "engine"])
def test_a_part_that_is_killed_ends_the_call_and_comes_back(
    part: str, make_networked: Callable[..., Networked]
) -> None:
    house = make_networked()
    with house.connect() as runner:
        with sending(house, runner) as (running, seen):
            victim = house.daemon.child(part)
            victim.kill()
            ended = running.result().outcome
            house.daemon.wait(lambda: seen["over"])
            received = seen["received"]
        if part == "engine":
            assert ended.kind == "interrupted"
        else:
            assert (ended.kind, ended.reason.split(" ")[0]) == ("killed", part)
        house.daemon.wait(lambda: f"{part} is back" in house.daemon.said())
        until(lambda: (part, "restored") in degraded(house))
        works(house, runner)
        assert seen["received"] == received
        assert degraded(house) == [(part, "lost"), (part, "restored")]
        outcome = house.outcome(running.call)
        assert outcome.outcome == ended.kind
        (used,) = outcome.secrets
        assert used.name == "service-key"
        (request,), (end,) = house.requests(running.call), house.ends(running.call)
        assert (request.decision.effect, end.request, end.code) == ("allow", request.request, "interrupted")
        if part == "egress":
            assert "before it told" in end.reason
        else:
            assert end.up >= received
            assert outcome.network.up == end.up
        assert len(house.daemon.containers()) == 1
    assert house.daemon.verifies()


def test_a_sandbox_that_is_killed_takes_its_way_out_along(networked: Networked) -> None:
    with networked.connect() as runner:
        with sending(networked, runner) as (running, seen):
            (first,) = networked.daemon.sandbox_pids()
            psutil.Process(first).kill()
            assert running.result().outcome.kind == "interrupted"
            until(lambda: seen["over"])
            received = seen["received"]
        (end,) = networked.ends(running.call)
        assert end.up >= received
        works(networked, runner)  # in another one, with an authority of its own
        assert seen["received"] == received


@pytest.mark.parametrize("part", ["egress", "broker"])
def test_a_part_that_hangs_is_killed_and_keeps_no_call_from_being_sealed(
    part: str, make_networked: Callable[..., Networked]
) -> None:
    """Stopped, it passes nothing and says nothing, for ever: the call ends all the same, and the part is replaced."""
    house = make_networked()
    with house.connect() as runner:
        with sending(house, runner) as (running, seen):
            stuck = house.daemon.child(part)
            stuck.suspend()
            running.cancel()
            assert running.result().outcome.kind == "cancelled"
            until(lambda: (part, "restored") in degraded(house))
            assert not psutil.pid_exists(stuck.pid), "killed, and reaped"
            until(lambda: seen["over"])
        works(house, runner)
        assert house.daemon.child(part).pid != stuck.pid
        assert degraded(house) == [(part, "lost"), (part, "restored")]
        (end,) = house.ends(running.call)
        assert ("before it told" in end.reason) == (part == "egress")
        assert house.outcome(running.call).outcome == "cancelled"
    assert f"gate has given up {part}: it is killed" in house.daemon.said()


def asked_by(house: Networked, call: str) -> list[entries.Egress]:
    """The requests of a call that may still run."""
    return [each for each in house.daemon.entries(entries.Egress) if each.call == call]


def say(part: psutil.Process, message: egress_wire.Message) -> None:
    """Say this to gate as if that part of the daemon had: by its own socket, taken from the process."""
    (_, gate), process = part.cmdline()[4:6], os.pidfd_open(part.pid)
    taken = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, int(gate), 0)
    os.close(process)
    assert taken >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=taken) as sock:
        sock.sendall(encode(message))


def test_an_egress_that_tells_what_no_entry_holds_is_replaced_and_the_daemon_serves_on(
    make_networked: Callable[..., Networked],
) -> None:
    house = make_networked()
    most = (1 << 53) - 2  # what an entry holds is told to it
    with house.connect() as runner:
        for up in (most, 1 << 53):
            with sending(house, runner) as (running, seen):
                broken = house.daemon.child("egress")
                (request,) = until(lambda call=running.call: asked_by(house, call))
                say(broken, egress_wire.Ended(call=running.call, id=request.request, up=up, code="told"))
                if up == most:
                    until(lambda: house.daemon.entries(entries.EgressEnd))
                    running.cancel()
                ended = running.result().outcome
                until(lambda seen=seen: seen["over"])
            (end,) = house.ends(running.call)
            if up == most:
                assert (ended.kind, end.code, end.up) == ("cancelled", "told", most)
                assert house.daemon.child("egress").pid == broken.pid
            else:
                assert end.code == "interrupted"
                assert ended.kind in ("killed", "exited")  # a client that sees its connection break may end first
                assert ended.reason.split(" ")[0] == ("egress" if ended.kind == "killed" else "")
                until(lambda: ("egress", "restored") in degraded(house))
                assert not psutil.pid_exists(broken.pid)
        works(house, runner)
    assert house.daemon.stop() == 0
    assert house.daemon.verifies()


@pytest.mark.parametrize("part", ["gate", "parent", "recorder"])
def test_when_the_daemon_dies_nothing_passes_any_more(part: str, make_networked: Callable[..., Networked]) -> None:
    house = make_networked()
    family = house.family()
    handed = house.credentials()
    with house.daemon.connect(handed) as runner, sending(house, runner) as (running, seen):
        house.daemon.wait(lambda: house.daemon.entries(entries.Egress))  # a moment later: the call is not `sync`
        victim = family[0] if part == "parent" else house.daemon.child(part)
        victim.kill()
        with pytest.raises((Interrupted, Unavailable)):
            running.result()
        house.daemon.wait(lambda: seen["over"])
    house.daemon.wait(lambda: not any(alive(each.pid) for each in family), 30)
    assert house.daemon.ended() == (-signal.SIGKILL if part == "parent" else EXIT_UNAVAILABLE)
    received = seen["received"]
    house.daemon.start()
    assert house.outcome(running.call).outcome == "interrupted"
    assert house.requests(running.call)[0].decision.effect == "allow"
    with house.daemon.connect(handed) as runner:
        works(house, runner)
    assert seen["received"] == received
    assert house.daemon.verifies()


@pytest.mark.parametrize("part", ["egress", "broker"])
def test_a_part_that_ends_before_the_call_exists_makes_it_unavailable(
    part: str, make_networked: Callable[..., Networked]
) -> None:
    """Stopped, so that it cannot answer; killed, while the call waits for it: no process, and a retry is safe."""
    house = make_networked()
    with house.connect() as runner:
        works(house, runner)
        before = len(house.web.seen)
        victim = house.daemon.child(part)
        victim.send_signal(signal.SIGSTOP)
        found: list[CallError] = []

        def attempt() -> None:
            try:
                runner.call("key_run", python("open('/workspace/ran', 'w')"))
            except CallError as error:
                found.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        until(lambda: len(house.daemon.entries(entries.Call)) == 2)
        victim.kill()
        thread.join(60)
        (refused,) = found
        assert isinstance(refused, Unavailable)
        outcome = house.outcome(refused.call)
        assert (outcome.outcome, outcome.exit_code) == ("unavailable", None)
        house.daemon.wait(lambda: f"{part} is back" in house.daemon.said())
        until(lambda: (part, "restored") in degraded(house))
        assert runner.call("shell_run", {"argv": ["ls", "/workspace"]}).text == ""
        works(house, runner)
    assert len(house.web.seen) == before + 1


def test_while_a_part_is_away_calls_that_need_it_are_refused_and_others_run(
    make_networked: Callable[..., Networked],
) -> None:
    house = make_networked()
    with house.connect() as runner:
        works(house, runner)
        parent = house.family()[0]
        for part in ("egress", "broker"):
            parent.suspend()  # or else it would be back at once
            try:
                house.daemon.child(part).kill()
                until(lambda part=part: (part, "lost") in degraded(house))
                with pytest.raises(Unavailable) as refused:
                    runner.call("key_run", python("open('/workspace/ran', 'w')"))
                assert refused.value.reason == f"{'the ' * (part == 'broker')}{part} is being restarted"
                assert refused.value.retryable
                assert house.outcome(refused.value.call).outcome == "unavailable"
                assert runner.call("shell_run", {"argv": ["ls", "/workspace"]}).text == ""
            finally:
                parent.resume()
            until(lambda part=part: (part, "restored") in degraded(house))
            works(house, runner)


def test_an_end_by_the_agent_or_the_clock_closes_what_was_open(networked: Networked) -> None:
    with networked.connect() as runner:
        with sending(networked, runner) as (running, seen):
            running.cancel()
            assert running.result().outcome.kind == "cancelled"
            until(lambda: seen["over"])
        slow = runner.call("key_run", python(SEND, HOST, str(networked.web.port)), deadline=2.0)
        assert slow.outcome.kind == "timed_out"
        until(lambda: networked.web.seen[-1]["over"])
        for call in (running.call, slow.call):
            (end,) = networked.ends(call)
            assert end.code in ("interrupted", "syntax"), "it ended in the middle of its body"
            assert end.secrets == ("service-key",)
            assert networked.outcome(call).network.up == end.up > 0


@pytest.mark.parametrize("act", ["end", "revoke", "delay"])
def test_an_operators_word_closes_what_was_open(act: str, networked: Networked) -> None:
    """The end of a task, and the revocation of what it was given; without either it goes on (`delay`)."""
    with networked.connect(task=f"t-word-{act}") as runner, sending(networked, runner) as (running, seen):
        if act == "end":
            networked.daemon.ask(admin.EndTask(task="t-word-end", why="a test"))
        elif act == "revoke":
            networked.daemon.ask(admin.Revoke(kind="task", value="t-word-revoke", why="a test"))
        else:
            had = seen["received"]
            until(lambda: seen["received"] > had + 50_000)
            running.cancel()
        with contextlib.suppress(CallError):
            running.result()
        until(lambda: seen["over"])
    outcome = networked.outcome(running.call)
    assert outcome.outcome == ("cancelled" if act == "delay" else "killed"), outcome
    (end,) = networked.ends(running.call)
    assert end.up >= seen["received"]
    assert outcome.secrets[0].used == 1


# --- names --------------------------------------------------------------------------------------------------


def test_a_name_is_looked_up_by_egress_once_it_is_allowed_and_once(
    make_networked: Callable[..., Networked], dns: Callable[..., Dns]
) -> None:
    """N03, N04: the only packets for a name are egress's own, after the allow; what it judged is what it dials."""
    answers = [["127.0.0.1"], ["10.20.30.40"], ["127.0.0.1", "10.20.30.40"], []]
    server = dns(lambda number: answers[min(number, 3)])
    house = make_networked(nameserver=f"127.0.0.1:{server.port}")
    with house.connect() as runner:
        denied = runner.call("net_run", fetch(house.url("/", OTHER), f"http://{OTHER}:{house.plain.port}/"))
        assert [each["status"] for each in told(denied)] == [0, 403]
        assert server.asked == 0
        url = f"http://{NAMED}:{house.plain.port}/"
        done = runner.call("net_run", fetch(url, url, url, url))
        assert [each["status"] for each in told(done)] == [200, 403, 403, 502], done.text
    assert server.asked == 4
    assert len(house.plain.seen) == 1
    assert [each.address for each in house.ends(done.call)] == ["127.0.0.1", "", "", ""]


# --- credentials of a provider ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bao() -> Iterator[Bao]:
    """A real OpenBao server that makes one-time passwords."""
    with private_folder() as folder:
        server = Bao(folder)
        server.api("POST", "sys/mounts/ssh", type="ssh")
        server.api("POST", "ssh/roles/otp", key_type="otp", default_user="somebody", cidr_list="127.0.0.0/8")
        yield server
        server.close()


def _with_vault(make: Callable[..., Networked], bao: Bao, *, listed: bool = True) -> Networked:
    port = bao.port if listed else 1
    house = make(
        sections=f"""
[[daemon.destinations]]
name = "vault"
host = "127.0.0.1"
ports = [{port}]
addresses = ["127.0.0.1/32"]
[secrets.providers.vault]
kind = "vault"
address = "{bao.address}"
token = "vault-token"
timeout_s = 5.0
[secrets.providers.vault.secrets.otp]
path = "ssh/creds/otp"
field = "key"
username = "username"
data = {{ ip = "127.0.0.1" }}
""",
        trust=bao.authority,
        tools={"vault_run": secret("vault:otp", "OTP", "plain")},
    )

    house.daemon.ask(admin.SetSecret(name="vault-token", value=bao.token.encode()))
    return house


def _connect(house: Networked) -> Any:
    return house.connect(tools={"vault_run": {}, "net_run": {}, "egress": {}})


def test_a_providers_lease_lives_with_its_call_and_the_dial_is_recorded(
    make_networked: Callable[..., Networked], bao: Bao
) -> None:
    house = _with_vault(make_networked, bao)
    sent = {"url": house.url("/x", PLAIN), "headers": {"Authorization": "Bearer $OTP"}}
    with _connect(house) as runner:
        done = runner.call("vault_run", fetch(sent))
        assert told(done)[0]["status"] == 200, done.text
        value = dict(house.plain.seen[0]["headers"])["authorization"].removeprefix("Bearer ")
        assert len(value) > 20
        assert value not in done.text
        until(lambda: not bao.leases("ssh/creds/otp"))
        house.daemon.child("egress").kill()  # and whoever comes after it serves the broker too
        until(lambda: ("egress", "restored") in degraded(house))
        assert runner.call("vault_run", python("print('ran')")).text == "ran\n"
    until(lambda: not bao.leases("ssh/creds/otp"))
    (used,) = house.outcome(done.call).secrets
    assert (used.name, used.used) == ("vault:otp", 1)
    own = [each for each in house.daemon.entries(entries.Egress) if each.call == "daemon:broker"]
    assert {(each.host, each.port, each.allowed_by) for each in own} == {("127.0.0.1", bao.port, ("daemon/vault",))}
    assert {each.decision.effect for each in own} == {"allow"}
    house.daemon.stop()
    assert house.daemon.verifies()
    assert value.encode() not in house.daemon.log.read_bytes()


def test_a_provider_that_is_not_among_the_daemons_destinations_is_not_dialled(
    make_networked: Callable[..., Networked], bao: Bao
) -> None:
    house = _with_vault(make_networked, bao, listed=False)
    with _connect(house) as runner:
        with pytest.raises(Unavailable) as refused:
            runner.call("vault_run", python("print('ran')"))
        assert house.outcome(refused.value.call).outcome == "unavailable"
    denied = [each for each in house.daemon.entries(entries.Egress) if each.call == "daemon:broker"]
    assert denied
    assert {(each.decision.effect, each.part) for each in denied} == {("deny", "daemon")}
    assert not bao.leases("ssh/creds/otp")


def test_what_a_killed_broker_had_leased_is_revoked_by_the_next_one(
    make_networked: Callable[..., Networked], bao: Bao
) -> None:
    house = _with_vault(make_networked, bao)
    hold = python("import time; print('go', flush=True); time.sleep(300)")
    with _connect(house) as runner:
        with runner.stream("vault_run", hold) as running:
            next(iter(running))
            assert len(bao.leases("ssh/creds/otp")) == 1
            house.daemon.child("broker").kill()
            ended = running.result().outcome
            assert (ended.kind, ended.reason.split(" ")[0]) == ("killed", "broker")
        until(lambda: not bao.leases("ssh/creds/otp"), 60)
        until(lambda: ("broker", "restored") in degraded(house))
        assert runner.call("vault_run", python("print('ran')")).text == "ran\n"
    until(lambda: not bao.leases("ssh/creds/otp"))


def test_a_provider_that_is_down_is_a_refusal_before_the_process_exists(
    make_networked: Callable[..., Networked], bao: Bao
) -> None:
    house = _with_vault(make_networked, bao)
    bao.process.send_signal(signal.SIGSTOP)  # it accepts, and says nothing
    try:
        with _connect(house) as runner, pytest.raises(Unavailable) as refused:
            runner.call("vault_run", python("open('/workspace/ran', 'w')"))
        assert house.outcome(refused.value.call).outcome == "unavailable"
        with _connect(house) as runner:
            assert told(runner.call("net_run", fetch(house.url("/v1/x"))))[0]["status"] == 200
    finally:
        bao.process.send_signal(signal.SIGCONT)
    with _connect(house) as runner:
        assert runner.call("vault_run", python("print('ran')")).text == "ran\n"
