"""The egress process itself: what it gives up, how calls come and go, and that it ends with whoever it serves."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from outside import NAME, Dns, Outside, drained, refused, rule, talk

from runner.catalog import read_bundle
from runner.config import parse_config
from runner.model import Allowlist, EgressRule
from runner.wire import egress as wire
from runner.wire import parent
from runner.wire.frame import FrameReader, encode

pytestmark = pytest.mark.root
USER = "nobody"


class End:
    """Our end of a socket to the process: blocking, one message after the other."""

    def __init__(self, union: Any) -> None:
        self.sock, self.its = socket.socketpair()
        self.sock.settimeout(20)
        self._frames = FrameReader(1 << 26)
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._ready: list[Any] = []

    def send(self, message: Any, descriptor: int | None = None) -> None:
        if descriptor is None:
            self.sock.sendall(encode(message))
        else:
            socket.send_fds(self.sock, [encode(message)], [descriptor])

    def next(self) -> Any:
        while not self._ready:
            data = self.sock.recv(1 << 16)
            assert data, "the process has ended"
            self._ready += [self._decode(body) for body in self._frames.feed(data)]
        return self._ready.pop(0)

    def until(self, kind: type) -> Any:
        """The next message of this kind."""
        while not isinstance(found := self.next(), kind):
            pass
        return found


class Process:
    """An egress process and everyone it talks to."""

    def __init__(self, folder: Path, authority: bytes, more: str = "") -> None:
        self.parent, self.gate = End(parent.FromChild), End(wire.FromEgress)
        ends = (self.parent, self.gate)
        for end in ends:
            end.its.set_inheritable(True)
        self.run = subprocess.Popen(
            [sys.executable, "-I", "-m", "runner.serve.egress", *(str(end.its.fileno()) for end in ends), USER],
            pass_fds=[end.its.fileno() for end in ends],
            stderr=subprocess.PIPE,
        )
        for end in ends:
            end.its.close()
        self.path = folder / "runner.toml"
        self.trust = str(folder / "trust.pem")
        self.config = f'[egress]\ntrust = "trust.pem"\nhosts = {{ "{NAME}" = ["127.0.0.1"] }}\n{more}'.encode()
        self.authority = authority
        self.number = 0

    def offer(self, authority: bytes | None = None, config: bytes = b"") -> Any:
        """A catalogue; what the process says of it."""
        text = config or self.config
        bundle = read_bundle(parse_config(text, self.path), self.path, text)
        keys = {} if authority == b"" else {self.trust: authority or self.authority}
        self.number += 1
        self.parent.send(parent.Offer(generation=self.number, bundle=msgspec.structs.replace(bundle, keys=keys)))
        return self.parent.next()

    def start(self) -> Process:
        """Offer, commit, ready."""
        assert isinstance(self.offer(), parent.Compiled)
        self.parent.send(parent.Commit(generation=self.number))
        assert isinstance(self.parent.next(), parent.Ready)
        return self

    def open(self, *rules: EgressRule, call: str = "c1") -> int:
        """A call; its port."""
        listener = socket.create_server(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        allowlists = (Allowlist(part="tool fetch", rules=rules),)
        with listener:
            message = wire.Open(number=7, call=call, sandbox="s1", allowlists=allowlists)
            self.gate.send(message, listener.fileno())
        assert self.gate.next() == wire.Done(number=7)
        return port

    def close(self) -> None:
        """Let go of it; it ends."""
        for end in (self.parent, self.gate):
            end.sock.close()
        with self.run:
            self.run.wait(20)

    def status(self, name: str) -> str:
        """A line of /proc/PID/status."""
        lines = Path(f"/proc/{self.run.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


@pytest.fixture
def authority() -> trustme.CA:
    """Whom the process believes."""
    return trustme.CA()


@pytest.fixture
def make_process(tmp_path: Path, authority: trustme.CA) -> Iterator[Callable[..., Process]]:
    """Processes: `make_process(more="[daemon]…")`."""
    with contextlib.ExitStack() as stack:

        def make(more: str = "") -> Process:
            made = Process(tmp_path, authority.cert_pem.bytes(), more)
            stack.callback(made.close)
            return made

        yield make


def ask(port: int, where: str) -> bytes:
    return f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode()


def test_it_gives_up_everything_but_the_network(make_process: Callable[..., Process]) -> None:
    process = make_process().start()
    assert set(process.status("Uid").split()) != {"0"}
    assert "0" not in process.status("Uid").split()
    assert process.status("Groups") == ""
    assert int(process.status("CapEff"), 16) == int(process.status("CapPrm"), 16) == 0
    assert process.status("NoNewPrivs") == "1"
    assert process.status("Seccomp") == "2"
    mine, its = (Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in (os.getpid(), process.run.pid))
    assert mine == its
    assert int(process.status("Threads")) <= 4  # the resolver's own; nothing forks


def test_the_calls_it_gave_up_are_refused_and_threads_are_not() -> None:
    """The filter alone, in a process of its own: each of these works without it."""
    code = (
        "import os, socket, threading, ctypes\n"
        "from runner.serve import confine\n"
        "def tries():\n"
        "    found = []\n"
        "    for name, act in (('fork', lambda: os.fork() or os._exit(0)),\n"
        "                      ('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {})),\n"
        "                      ('listen', lambda: socket.socket().listen())):\n"
        "        try: act(); found.append(name)\n"
        "        except OSError as error: assert error.errno == 1, error\n"
        "    thread = threading.Thread(target=lambda: found.append('thread')); thread.start(); thread.join()\n"
        "    return found\n"
        "print(*tries())\n"
        "assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0\n"
        "confine.no_programs()\n"
        "print(*tries(), flush=True)\n"
        "try: os.execv('/bin/echo', ['echo', 'out'])\n"
        "except OSError as error: print('kept', error.errno)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split("\n") == ["fork spawn listen thread", "thread", "kept 1", ""]


def test_a_call_comes_asks_and_goes(make_process: Callable[..., Process], outside: Outside) -> None:
    process = make_process().start()
    web = outside.web()
    where = f"{NAME}:{web.port}"
    port = process.open(rule(port=web.port, protocol="http"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(ask(port, where))
        question = process.gate.until(wire.Ask)
        assert question.number < 0  # never taken for an answer to one of gate's own requests
        assert (question.call, question.request.host, question.request.path) == ("c1", NAME, "/")
        assert web.dialled == 0
        process.gate.send(wire.Answer(number=question.number, allowed=True))
        assert drained(sock).startswith(b"HTTP/1.1 200 ")
    ended = process.gate.until(wire.Ended)
    assert (ended.status, ended.address) == (200, "127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(ask(port, where))
        question = process.gate.until(wire.Ask)
        process.gate.send(wire.Answer(number=question.number, allowed=False, rule="no", reason="policy says no"))
        assert refused(drained(sock))["detail"] == "policy says no"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as waiting:
        waiting.sendall(ask(port, where))
        process.gate.until(wire.Ask)  # which is never answered
        process.gate.send(wire.Close(number=8, call="c1"))
        closed = process.gate.until(wire.Closed)
        assert (closed.number, closed.requests) == (8, 3)
        assert b"200" not in drained(waiting)
    with pytest.raises(ConnectionRefusedError):
        talk(port, b"")
    assert web.dialled == 1
    process.gate.send(wire.Close(number=9, call="c1"))
    assert process.gate.next() == wire.Closed(number=9)  # of a call that is gone there is nothing to tell


def test_names_are_looked_up_behind_the_filter(
    make_process: Callable[..., Process], outside: Outside, dns: Callable[..., Dns]
) -> None:
    web, server = outside.web(), dns(lambda _: ["127.0.0.1"])
    process = make_process(f'nameservers = ["127.0.0.1:{server.port}"]\n').start()
    port = process.open(rule(host="looked.example.test", port=web.port, protocol="http"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(ask(port, f"looked.example.test:{web.port}"))
        question = process.gate.until(wire.Ask)
        process.gate.send(wire.Answer(number=question.number, allowed=True))
        assert drained(sock).startswith(b"HTTP/1.1 200 ")
    assert server.asked == 1


def test_a_sandbox_has_its_own_authority_until_it_is_forgotten(make_process: Callable[..., Process]) -> None:
    process = make_process().start()

    def bundle(sandbox: str) -> bytes:
        process.gate.send(wire.Trust(number=3, sandbox=sandbox))
        found: bytes = process.gate.next().bundle
        return found

    first, second = bundle("s1"), bundle("s2")
    assert first == bundle("s1") != second
    assert process.authority.strip() in first
    assert b"PRIVATE" not in first
    process.gate.send(wire.Forget(sandbox="s1"))
    assert bundle("s1") != first


def test_bad_opens_fail_and_leave_nothing(make_process: Callable[..., Process]) -> None:
    process = make_process().start()
    bad = EgressRule(name="x", host=NAME, ports=(80,), addresses=("not a range",))
    for rules, descriptor in (((bad,), True), ((rule(),), False)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            allowlists = (Allowlist(part="tool fetch", rules=rules),)
            message = wire.Open(number=4, call="c9", sandbox="s1", allowlists=allowlists)
            process.gate.send(message, listener.fileno() if descriptor else None)
            port = listener.getsockname()[1]
        failed = process.gate.next()
        assert isinstance(failed, wire.Failed)
        assert failed.number == 4
        with pytest.raises(ConnectionRefusedError):
            talk(port, b"")
    process.open(rule(), call="c9")


@pytest.mark.parametrize("lost", ["gate", "parent"])
def test_it_ends_with_gate_and_with_parent(make_process: Callable[..., Process], outside: Outside, lost: str) -> None:
    """N15: everything that passed is cut."""
    process = make_process().start()
    web = outside.web()
    port = process.open(rule(port=web.port, protocol="tcp"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(
            f"CONNECT {NAME}:{web.port} HTTP/1.1\r\n\r\n".replace(
                "\r\n\r\n", f"\r\nHost: {NAME}:{web.port}\r\n\r\n"
            ).encode()
        )
        question = process.gate.until(wire.Ask)
        process.gate.send(wire.Answer(number=question.number, allowed=True))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        (process.gate if lost == "gate" else process.parent).sock.close()
        assert drained(sock) == b""
    assert process.run.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        talk(port, b"")


def test_a_bad_trust_file_is_rejected_and_the_old_one_stays(make_process: Callable[..., Process]) -> None:
    process = make_process().start()
    for wrong in (b"", b" \n", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        rejected = process.offer(wrong)
        assert isinstance(rejected, parent.Rejected)
        assert rejected.refusal.code == "config"
        assert rejected.refusal.field == process.trust
    other = trustme.CA().cert_pem.bytes()
    assert isinstance(process.offer(other), parent.Compiled)
    process.parent.send(parent.Commit(generation=process.number))
    process.gate.send(wire.Trust(number=3, sandbox="s1"))
    bundle = process.gate.next().bundle
    assert other.strip() in bundle
    assert process.authority.strip() not in bundle


DESTINATIONS = """
[[daemon.destinations]]
name = "vault"
host = "api.example.test"
ports = [{port}]
protocol = "http"
addresses = ["127.0.0.0/8"]
"""


def test_brokers_own_dials_pass_the_same_authoriser(make_process: Callable[..., Process], outside: Outside) -> None:
    web = outside.web()
    process = make_process(DESTINATIONS.format(port=web.port)).start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process.parent.send(parent.Dials(), listener.fileno())
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(ask(port, f"{NAME}:{web.port}"))
        question = process.gate.until(wire.Ask)
        assert (question.call, question.request.rules) == ("daemon:broker", ("daemon/vault",))
        process.gate.send(wire.Answer(number=question.number, allowed=True))
        assert drained(sock).startswith(b"HTTP/1.1 200 ")
    assert refused(talk(port, ask(port, f"{NAME}:1")))["part"] == "daemon"
    assert isinstance(process.offer(config=process.config.replace(b"vault", b"renamed")), parent.Compiled)
    process.parent.send(parent.Commit(generation=process.number))

    def rules() -> tuple[str, ...]:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(ask(port, f"{NAME}:{web.port}"))
            question = process.gate.until(wire.Ask)
            process.gate.send(wire.Answer(number=question.number, allowed=True))
            drained(sock)
            found: tuple[str, ...] = question.request.rules
            return found

    outside.wait(lambda: rules() == ("daemon/renamed",))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a new broker's: the old one is not served any more
        process.parent.send(parent.Dials(), listener.fileno())
    outside.wait(lambda: _refuses(port))


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    return False
