"""Hostile and broken clients of agent.sock on a real daemon: refused, bounded, and nobody else is held up."""

from __future__ import annotations

import array
import os
import pwd
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from house import Daemon, programs
from soak import flat as flats
from soak.cases import throw_frames
from soak.mutants import hostile, valid
from soak.raw import Raw

from runner.client import Runner
from runner.client.errors import CallError
from runner.ledger import entry as entries
from runner.wire import admin, agent
from runner.wire.frame import encode

pytestmark = pytest.mark.docker


@pytest.fixture
def raw(daemon: Daemon) -> Iterator[Callable[..., Raw]]:
    made: list[Raw] = []

    def make(handed: bytes | None = None) -> Raw:
        made.append(Raw(daemon, handed))
        return made[-1]

    yield make
    for client in made:
        client.sock.close()


def works(runner: Runner) -> bool:
    return runner.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"


def descriptors(daemon: Daemon) -> int:
    return daemon.child("gate").num_fds()


def flat(daemon: Daemon, before: int) -> None:
    daemon.wait(lambda: descriptors(daemon) <= before, 15)


HOSTILE = {
    "a length of 4 GiB": b"\xff\xff\xff\xff",
    "a length of 0": b"\0\0\0\0",
    "no map": b"\0\0\0\1\xc0",
    "bytes after the map": encode(agent.Bye())[:3] + b"\x0b\x81\xa4type\xa3bye\xc0",
    "a repeated key": b"\0\0\0\x13\x82\xa4type\xa3bye\xa4type\xa3bye",
    "an unknown type": b"\0\0\0\x10\x81\xa4type\xa9__class__",
    "a call before hello": encode(agent.Call(number=1, proof="x")),
    "a daemon's own message": encode(
        agent.Welcome(
            session="s", task="t", agent="a", tools_digest="", max_frame=1, call_window=1, calls=1, heartbeat_ms=1
        )
    ),
    "a hello of lies": encode(agent.Hello(version=1, chain=("a.b.c",), proof="a.b.c")),
    "another version": encode(agent.Hello(version=99, chain=("a",), proof="a")),
    "text that is not UTF-8": b"\0\0\0\x15\x82\xa4type\xa3bye\xa6reason\xa3\xed\xa0\x80",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_bytes_close_the_connection_and_say_why(name: str, daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw()
    client.until(agent.Challenge)
    client.sock.sendall(HOSTILE[name])
    closing = client.closed()
    assert closing is not None
    assert closing.refusal.code in ("protocol", "unauthenticated", "version")
    client = raw(daemon.credentials()).open()  # the twin: the same daemon takes an honest one
    client.send(client.call(["true"]))
    assert client.until(agent.Result).outcome.exit_code == 0


def test_identity_is_fixed_for_the_life_of_a_connection(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    assert client._identity is not None
    client.send(agent.Hello(version=1, chain=client._identity.chain, proof="x"))
    closing = client.closed()
    assert closing is not None
    assert closing.refusal.code == "protocol"


def test_a_number_is_used_once(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    client.send(agent.ListTools(number=7))
    client.until(agent.Tools)
    client.send(agent.ListTools(number=3))  # any order will do
    assert client.until(agent.Tools).number == 3
    client.send(agent.ListTools(number=7))
    closing = client.closed()
    assert closing is not None
    assert closing.refusal.code == "protocol"


def test_one_of_a_hundred_uses_of_a_proof_at_once_is_a_call(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    """T09: in one write on one connection, and on another that the same holder has open."""
    handed = daemon.credentials()
    client, other = raw(handed).open(), raw(handed).open()
    first = client.call(["true"])
    copies = [msgspec.structs.replace(first, number=number) for number in range(100, 200)]
    client.send(*copies)
    other.send(*copies[:5])
    answers: Counter[str] = Counter()
    while answers.total() < len(copies):
        message = client.next()
        assert message is not None
        if isinstance(message, agent.Result):
            answers["ran"] += 1
        elif isinstance(message, agent.Refused):
            answers[message.refusal.code] += 1
    assert answers["ran"] == 1
    assert answers["unauthenticated"] + answers["busy"] == 99  # busy: more at once than a connection may ask
    assert answers["unauthenticated"] > 50
    assert [other.until(agent.Refused).refusal.code for _ in range(5)] == ["unauthenticated"] * 5
    other.send(other.call(["true"]))  # the twin: a proof of its own
    assert other.until(agent.Result).outcome.exit_code == 0


def test_a_proof_is_worth_one_call(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    first = client.call(["true"])
    client.send(first)
    assert client.until(agent.Result).outcome.exit_code == 0
    client.send(msgspec.structs.replace(first, number=99))
    assert client.until(agent.Refused).refusal.code == "unauthenticated"


def test_silent_and_dribbling_clients_are_left(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[limits]\nhello_timeout_s = 1.0\n")
    before = descriptors(daemon)
    silent, dribbling = Raw(daemon), Raw(daemon)
    for client in (silent, dribbling):
        client.until(agent.Challenge)
    dribbling.sock.sendall(b"\0\0")
    for client in (silent, dribbling):
        closing = client.closed()
        assert closing is not None
        assert "within 1 s" in closing.refusal.reason or "longer than 1 s" in closing.refusal.reason
        client.sock.close()
    flat(daemon, before)


def test_a_byte_a_second_is_too_slow_at_any_time_and_holds_nobody_up(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[limits]\nhello_timeout_s = 2.0\n")
    before = descriptors(daemon)
    early, late = Raw(daemon), Raw(daemon, daemon.credentials()).open()
    early.until(agent.Challenge)
    frame = encode(late.call(["true"]))
    with daemon.connect() as neighbour:
        for client, limit in ((early, "no hello within"), (late, "a frame took longer")):
            sent = 0
            try:
                while client.quiet(0.2):
                    client.sock.sendall(frame[sent : sent + 1])
                    sent += 1
                    assert works(neighbour)
                    assert sent < len(frame)
            except OSError:
                pass  # it closed in the moment in which we wrote
            closing = client.closed()
            assert closing is not None
            assert limit in closing.refusal.reason
            client.sock.close()
    flat(daemon, before + 1)  # the neighbour's task keeps its sandbox


def test_hundreds_of_hostile_bodies_are_never_a_call_and_cost_no_memory(daemon: Daemon) -> None:
    bodies = list(hostile(random.Random(1)))
    assert len(bodies) >= 368
    calls, before, most = len(daemon.entries(entries.Call)), flats.memory(daemon), 0
    for body in bodies:
        client = Raw(daemon)
        client.until(agent.Challenge)
        client.sock.sendall(len(body).to_bytes(4, "big") + body)
        closing = client.closed()
        client.sock.close()
        assert closing is not None, body[:80]
        assert closing.refusal.code in ("protocol", "unauthenticated"), body[:80]
        most = max(most, flats.memory(daemon) - before)
    assert most < 16 << 20
    assert len(daemon.entries(entries.Call)) == calls
    assert flats.log_is_clean(daemon)
    with daemon.connect() as runner:
        assert works(runner)


def test_impossible_lengths_are_refused_before_a_byte_is_kept_for_them(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    for round_number in range(2):
        if round_number:
            before = flats.memory(daemon)
        for length in (0, (1 << 20) + 1, 1 << 31, (1 << 32) - 1) * 50:
            client = Raw(daemon)
            client.until(agent.Challenge)
            client.sock.sendall(length.to_bytes(4, "big") + b"x" * 1000)
            closing = client.closed()
            assert closing is not None
            assert "frame length" in closing.refusal.reason
            client.sock.close()
    assert flats.memory(daemon) - before < 1 << 20
    client = raw(daemon.credentials()).open()  # the twin: the longest frame there may be is waited for
    client.sock.sendall((1 << 20).to_bytes(4, "big") + b"\x81")
    assert client.quiet(0.5)


def test_frames_before_a_hello_and_a_second_hello_are_refused(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    for frame in valid("a.b.c"):
        client = raw()
        client.until(agent.Challenge)
        client.sock.sendall(frame)
        closing = client.closed()
        assert (closing is None) == (frame[4:] == encode(agent.Bye(reason="done"))[4:])  # to leave needs no name
    first, other = raw(daemon.credentials()), raw(daemon.credentials())
    for client in (first, other):
        client.challenge = client.until(agent.Challenge)  # type: ignore[attr-defined] # a note of this test's
    stolen = other._identity.prove_hello(other.challenge)  # type: ignore[union-attr,attr-defined]
    first.send(agent.Hello(version=1, chain=other._identity.chain, proof=stolen))  # type: ignore[union-attr]
    closing = first.closed()  # proven for another connection's nonce
    assert closing is not None
    assert closing.refusal.code == "unauthenticated"
    other.send(agent.Hello(version=1, chain=other._identity.chain, proof=stolen))  # type: ignore[union-attr]
    assert other.until(agent.Welcome).task
    other.send(agent.Hello(version=1, chain=other._identity.chain, proof=stolen))  # type: ignore[union-attr]
    closing = other.closed()
    assert closing is not None
    assert closing.refusal.code == "protocol"


def test_mutated_sessions_crash_nothing_and_hold_nobody_up(daemon: Daemon) -> None:
    seed = random.randrange(1 << 30)
    thrown = throw_frames(daemon, random.Random(seed), 5000)
    assert thrown["frames"] >= 5000
    assert thrown["growth MiB"] < 32, f"seed {seed}"
    assert flats.log_is_clean(daemon), f"seed {seed}"


def test_clients_that_never_read_cost_little_and_their_tools_stand_still(
    daemon: Daemon, raw: Callable[..., Raw]
) -> None:
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        assert works(runner)
        before = flats.memory(daemon)
        for _ in range(8):
            client = raw(daemon.credentials()).open()
            client.send(*(agent.ListTools(number=number) for number in range(100, 1100)))  # nor the answers
            client.send(client.call(["yes"]))
        assert works(runner)
        time.sleep(0.5)  # whatever grows, grows
        assert works(runner)
        assert flats.memory(daemon) - before < 8 * (4 << 20)


def test_a_client_that_goes_in_the_middle_leaves_no_process(daemon: Daemon) -> None:
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        assert works(runner)
        calls = []
        for _ in range(20):
            client = Raw(daemon, handed).open()
            client.send(client.call(["sh", "-c", "echo go; sleep 300 & setsid sleep 300 & sleep 300"]))
            calls.append(client.until(agent.Accepted).call)
            client.until(agent.Output)
            client.sock.close()

        daemon.wait(lambda: not any(map(programs, daemon.sandbox_pids())), 20)
        assert {daemon.outcome(call).outcome for call in calls} == {"cancelled"}
        assert works(runner)


def test_interleaved_calls_of_the_same_numbers_never_cross(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    one, two = raw(daemon.credentials()).open(), raw(daemon.credentials()).open()
    clients, said, ended = {"one": one, "two": two}, {}, Counter[str]()  # type: ignore[var-annotated] # by client and number
    for start in range(0, 300, 30):
        for number in range(30):
            for name, client in clients.items():
                client.send(client.call(["echo", f"{name} {start + number + 1}"]))
        for name, client in clients.items():
            left = 30
            while left:
                message = client.next()
                if isinstance(message, agent.Output):
                    said[name, message.number] = said.get((name, message.number), b"") + message.data
                elif isinstance(message, agent.Result):
                    left -= 1
                    ended[name] += 1
                else:
                    assert not isinstance(message, agent.Refused | agent.Closing | None), message
    assert ended == {"one": 300, "two": 300}
    assert said == {(name, number): f"{name} {number}\n".encode() for name in clients for number in range(1, 301)}


ELSEWHERE = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    sys.exit("no way in")
sock.recv(4)
sys.stdout.write(repr(sock.recv(4096)))
"""


def _as(user: str, groups: list[str], daemon: Daemon, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(daemon.place / "run" / name)],
        user=user, group=pwd.getpwnam(user).pw_gid, extra_groups=groups,
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip


def test_another_uid_is_refused_by_mode_and_by_its_name(daemon: Daemon) -> None:
    for name in ("agent.sock", "admin.sock"):
        assert "no way in" in _as("nobody", [], daemon, name).stderr
    inside = _as("nobody", ["runner-agents"], daemon, "agent.sock")  # past the mode: by SO_PEERCRED, before any frame
    assert "may not connect" in inside.stdout
    assert "unauthenticated" in inside.stdout
    welcome = _as("runner-demo", ["runner-agents"], daemon, "agent.sock")  # the twin, which [peers] names
    assert "challenge" in welcome.stdout
    assert "no way in" in _as("runner-demo", ["runner-agents"], daemon, "admin.sock").stderr


def test_a_thousand_connections_of_one_uid_leave_room(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[limits]\nconnections_per_uid = 8\n")
    before = descriptors(daemon)
    held = []
    answers = []
    for _ in range(1000):
        client = Raw(daemon)
        answers.append(client.next())
        if isinstance(answers[-1], agent.Challenge):
            held.append(client)
        else:
            client.sock.close()
    assert len(held) == 8
    others = [_as("runner-demo", ["runner-agents"], daemon, "agent.sock")]
    refused = [answer for answer in answers if isinstance(answer, agent.Closing)]
    assert len(refused) == 992
    assert {answer.refusal.code for answer in refused} == {"busy"}
    for client in held:
        client.sock.close()
    flat(daemon, before)
    assert "challenge" in others[0].stdout  # an honest one of another uid, while the flood stood
    with daemon.connect() as runner:
        assert runner.tools()

    def counted() -> list[int]:
        return [entry.count for entry in daemon.entries(entries.Refusals) if entry.code == "busy"]

    daemon.wait(lambda: sum(counted()) == 992, 5)
    assert len(counted()) < 60  # a flood costs an entry a second, not one each


@pytest.mark.parametrize("name", ["agent.sock", "admin.sock"])
def test_passed_descriptors_are_closed(name: str, daemon: Daemon) -> None:
    before = descriptors(daemon)
    with Path(os.devnull).open() as file, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.place / "run" / name))
        frame = encode(agent.Bye()) if name == "agent.sock" else encode(admin.Status())
        rights = array.array("i", [file.fileno()] * 250)
        for piece in (frame[:2], frame[2:]):
            sock.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert sock.recv(1 << 16)
        assert descriptors(daemon) <= before + 8
    flat(daemon, before)


def test_half_closed_and_cut_connections_leave_nothing(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    before = descriptors(daemon)
    for number in range(200):
        client = Raw(daemon)
        if number % 2:
            client.until(agent.Challenge)
            client.sock.sendall(b"\0\0\1\0\x82")  # the end comes in the middle of a frame
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed() is None
        client.sock.close()
    flat(daemon, before)


def test_a_client_that_never_reads_loses_its_call_and_not_its_sandbox(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    """The guest reports an end after the last byte of output, so a client without credit must not stand in its way."""
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        runner.call("fs_write", {"path": "kept", "content": "x"})
        client = raw(handed).open()
        client.send(client.call(["yes"], window=1000))
        call = client.until(agent.Accepted).call
        client.until(agent.Output)
        client.sock.close()
        daemon.wait(lambda: any(e.call == call for e in daemon.entries(entries.Outcome)), 3)
        assert daemon.outcome(call).outcome == "cancelled"
        assert runner.call("fs_read", {"path": "kept"}).value["content"] == "x"


def test_cancel_reaches_a_call_whose_client_gives_no_credit(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        runner.call("fs_write", {"path": "kept", "content": "x"})
        client = raw(handed).open()
        client.send(client.call(["yes"], window=0))
        client.until(agent.Accepted)
        time.sleep(0.2)
        client.send(agent.Cancel(number=1))
        ended = client.until(agent.Result)
        assert ended.outcome.kind == "cancelled"
        assert ended.outcome.reason == "the client cancelled it"
        assert runner.call("fs_read", {"path": "kept"}).value["content"] == "x"


def test_a_call_whose_client_does_not_read_is_sealed_at_its_deadline(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(config="[limits]\nkill_grace_s = 0.5\n")
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        runner.call("fs_write", {"path": "kept", "content": "x"})
        client = Raw(daemon, handed).open()
        client.send(
            client.call(["yes"], window=10, deadline_ms=500), client.call(["echo", "y"], window=0, deadline_ms=500)
        )
        ended = {}
        for _ in range(2):
            answer = client.until(agent.Result)
            ended[answer.number] = answer
        assert ended[1].outcome.kind == "timed_out"
        assert (ended[2].outcome.kind, ended[2].stdout_bytes) == ("exited", 2)
        assert daemon.outcome(ended[2].call).stdout.delivered == 0
        assert runner.call("fs_read", {"path": "kept"}).value["content"] == "x"
        client.sock.close()


def test_what_follows_a_call_in_the_same_bytes_is_not_lost(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    client.send(client.call(["cat"], stdin=True), agent.Stdin(number=1, eof=True))
    assert client.until(agent.Result).outcome.exit_code == 0
    client.send(client.call(["echo", "x"], window=0), agent.Credit(number=2, bytes=100))
    assert client.until(agent.Output).data == b"x\n"
    assert client.until(agent.Result).stdout_bytes == 2
    client.send(client.call(["sleep", "300"]), agent.Cancel(number=3))
    assert client.until(agent.Result).outcome.kind == "cancelled"


def test_a_call_that_waits_for_its_slot_can_be_cancelled(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    client.send(*(client.call(["sleep", "300"]) for _ in range(5)))
    for _ in range(5):
        client.until(agent.Accepted)
    time.sleep(1)  # four run, the fifth waits
    client.send(agent.Cancel(number=5))
    ended = client.until(agent.Result)
    assert (ended.number, ended.outcome.kind) == (5, "cancelled")
    assert "before its process existed" in ended.outcome.reason
    client.send(*(agent.Cancel(number=number) for number in range(1, 5)))
    assert {client.until(agent.Result).outcome.kind for _ in range(4)} == {"cancelled"}


def test_a_call_cancelled_while_its_sandbox_is_made_never_exists(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    client.send(client.call(["sh", "-c", "echo ran > ran"]))
    client.until(agent.Accepted)
    client.send(agent.Cancel(number=1))
    ended = client.until(agent.Result)
    assert ended.outcome.kind == "cancelled"
    assert "before its process existed" in ended.outcome.reason
    client.send(client.call(["ls"]))
    assert client.until(agent.Result).stdout_bytes == 0


def test_the_longest_words_are_recorded_or_refused_and_never_the_end(daemon: Daemon, raw: Callable[..., Raw]) -> None:
    client = raw(daemon.credentials()).open()
    words = {"intent": "\1" * 4096, "because": tuple("a" * 64 for _ in range(64)), "idempotency_key": "k" * 128}
    client.send(client.call(["true"], **words))
    answer = client.until(agent.Result | agent.Refused)  # type: ignore[arg-type] # isinstance takes a union
    assert isinstance(answer, agent.Result) or answer.refusal.code == "arguments"
    client.send(client.call(["true"], intent="x" * 4097))
    assert client.until(agent.Refused).refusal.field == "intent"
    client.send(client.call(["true"], deadline_ms=1))
    assert client.until(agent.Result).outcome.kind in ("exited", "timed_out")
    client.send(client.call(["true"]))
    assert client.until(agent.Result).outcome.exit_code == 0


def test_an_unknown_program_is_named(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        with pytest.raises(CallError) as refused:
            runner.call("shell_run", {"argv": ["no-such-program"]})
        assert (refused.value.code, refused.value.refused.field) == ("arguments", "argv")
        assert "no-such-program" in refused.value.reason
        assert daemon.outcome(refused.value.call).outcome == "unavailable"
        assert works(runner)


def test_a_detached_call_can_be_cancelled_by_whoever_follows_it(daemon: Daemon) -> None:
    with daemon.connect() as runner:
        call = runner.call("shell_run", {"argv": ["sleep", "300"]}, detach=True).call
        runner.cancel(call)
        assert daemon.outcome(call).outcome == "cancelled"


def test_a_hostile_result_is_the_tools_fault(daemon: Daemon) -> None:
    """An integer that msgpack cannot hold must cost the agent a value, not an answer."""
    with daemon.connect() as runner:
        done = runner.call("python_run", {"code": "result = 10 ** 30"})
        assert done.outcome.kind == "exited"
        assert works(runner)


def test_secrets_reach_no_log_no_command_line_and_no_environment(make_daemon: Callable[..., Daemon]) -> None:
    os.environ["CANARY_OF_THE_OPERATOR"] = "canary-environment"
    try:
        daemon = make_daemon()
    finally:
        del os.environ["CANARY_OF_THE_OPERATOR"]
    handed = daemon.credentials()
    tokens = msgspec.json.decode(handed)["chain"]
    with daemon.connect(handed) as runner:
        assert works(runner)
        runner.call("shell_run", {"argv": ["echo", "canary-argument"]}, intent="canary-intent")
        with pytest.raises(CallError):
            runner.call("shell_run", {"argv": "canary-argument"}, intent="canary-intent")
        with pytest.raises(CallError):
            runner.call("shell_run", {"argv": ["canary-argument"]})
    client = Raw(daemon)
    client.until(agent.Challenge)
    client.send(agent.Hello(version=1, chain=(*tokens, "canary-token"), proof="canary-proof"))
    client.closed()
    client.sock.close()
    family = [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]
    places = {"the log": daemon.said()}
    for process in family:
        for name in ("cmdline", "environ"):
            places[f"{name} of {process.name()}"] = Path(f"/proc/{process.pid}/{name}").read_text(errors="replace")
    own = Path(f"/proc/{daemon.pid}/environ").read_text()
    assert "canary-environment" in own  # the operator's own process had it
    for name, text in places.items():
        assert tokens[0][:40] not in text, name
        for canary in ("canary-argument", "canary-intent", "canary-token", "canary-proof"):
            assert canary not in text, name
    for process in family[1:]:
        assert "canary-environment" not in Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
