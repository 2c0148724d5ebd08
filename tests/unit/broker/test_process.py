"""The broker as a process: what it gives up, what it leaves behind, and where a secret is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from credential_servers import NOBODY, Bao, Relay, private_folder
from typer.testing import CliRunner

from runner.broker import master
from runner.cli import commands
from runner.errors import RunnerError
from runner.serve.channel import Channel
from runner.wire import broker as wire
from runner.wire import parent

pytestmark = [pytest.mark.anyio, pytest.mark.root]
CANARY = b"canary-5f1d7e3a9c"
USER = "nobody"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("the broker's walls are made by root: run scripts/test as root", pytrace=False)


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder with the broker's own in it, as parent makes it."""
    with private_folder() as made:
        os.chown(made, 0, 0)
        made.chmod(0o711)
        (made / "broker").mkdir(mode=0o700)
        os.chown(made / "broker", NOBODY, NOBODY)
        (made / "runner.toml").write_text(f'state = "."\n[users]\nbroker = "{USER}"\n')
        yield made


class Broker:
    """The process, between a parent and a gate that are this test."""

    def __init__(self, state: Path, credentials: str = "") -> None:
        self.state = state
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.told: list[Any] = []
        upward, gate = (socket.socketpair() for _ in range(2))
        self.log = (state / "log").open("ab")
        theirs = [pair[1] for pair in (upward, gate)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "runner.serve.broker", *(str(end.fileno()) for end in theirs)),
                *(str(state / "broker"), USER),
            ],
            pass_fds=[end.fileno() for end in theirs],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": credentials, "OTHER": "x"},
        )
        for end in theirs:
            end.close()
        self.dials: list[int] = []
        self.parent = Channel(upward[0], parent.FromChild, self._heard, carriers=(parent.Dials,))
        self.gate = Channel(gate[0], wire.FromBroker, lambda message, _: self.told.append(message))
        self.caller = wire.BrokerCaller(self.gate)
        self._generation = 0

    def _heard(self, message: Any, descriptor: int | None) -> None:
        if descriptor is None:
            self.answers.put_nowait(message)
        else:
            self.dials.append(descriptor)

    @property
    def said(self) -> str:
        return (self.state / "log").read_text()

    def proc(self, name: str) -> bytes:
        return Path(f"/proc/{self.process.pid}/{name}").read_bytes()

    async def offer(self, secrets: str = "", trust: bytes = b"") -> Any:
        """Configure it. Returns its word."""
        self._generation += 1
        path = str(self.state / "runner.toml")
        bundle = parent.Bundle(
            config=(("[egress]\ntrust = \"ca.pem\"\n" if trust else "") + secrets).encode(),
            config_path=path, profiles={}, tools={}, policies={}, digest="",
            keys={str(self.state / "ca.pem"): trust},
        )  # fmt: skip
        self.parent.post(parent.Offer(generation=self._generation, bundle=bundle))
        async with asyncio.timeout(30):
            answer = await self.answers.get()
        if isinstance(answer, parent.Compiled):
            self.parent.post(parent.Commit(generation=self._generation))
        return answer

    async def lease(self, *names: str, call: str = "c1") -> tuple[wire.Lease, ...]:
        async with asyncio.timeout(30):
            return await self.caller.issue(call=call, task="t", tool="x", names=names, ttl_ms=60_000, read=False)

    def listener(self) -> socket.socket:
        """What parent is given, once, before it answers anything."""
        return socket.socket(fileno=self.dials.pop())

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)

    async def close(self) -> None:
        self.gate.close()
        self.parent.close()
        for descriptor in self.dials:
            os.close(descriptor)
        try:
            await self.ended()
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()


@contextlib.asynccontextmanager
async def broker(state: Path, **options: str) -> AsyncIterator[Broker]:
    made = Broker(state, **options)
    try:
        yield made
    finally:
        await made.close()


def key(state: Path) -> None:
    (state / "broker" / master.FILE).write_bytes(master.fresh())
    (state / "broker" / master.FILE).chmod(0o600)
    os.chown(state / "broker" / master.FILE, NOBODY, NOBODY)


def runner(*words: str) -> Any:
    return CliRunner().invoke(commands.app, [*words])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_it_gives_up_all_that_it_can(state: Path) -> None:
    key(state)
    async with broker(state) as made:
        await made.offer()
        status = dict(line.split(":", 1) for line in made.proc("status").decode().splitlines())
        assert set(status["Uid"].split()) == {str(NOBODY)}
        assert status["Groups"].split() == []
        assert (status["NoNewPrivs"].strip(), int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("1", 0, 0)
        locked = int(status["VmLck"].split()[0]) > 1000  # not where root may not raise RLIMIT_MEMLOCK: then it says so
        if not locked:
            await until(lambda: "memory cannot be locked" in made.said)
        assert locked is not ("memory cannot be locked" in made.said)
        limits = made.proc("limits").decode()
        assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{made.process.pid}/environ").stat().st_uid == 0  # not dumpable
        interfaces = [line.split(":")[0].strip() for line in made.proc("net/dev").decode().splitlines()[2:]]
        assert interfaces == ["lo"]
        assert len(made.proc("net/route").splitlines()) == 1  # a heading
        assert Path(f"/proc/{made.process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        assert b"OTHER" in made.proc("environ")  # what it was started with; parent gives it nothing but paths
        spy = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "cat"]
        for name in ("environ", "mem", "maps"):
            done = subprocess.run([*spy, f"/proc/{made.process.pid}/{name}"], capture_output=True, check=False)
            assert done.returncode != 0, name
        assert subprocess.run([*spy, f"/proc/{made.process.pid}/cmdline"], capture_output=True, check=True).stdout


async def test_a_secret_is_in_no_file_log_argument_or_environment(state: Path) -> None:
    key(state)
    async with broker(state) as made:
        await made.offer()
        assert await made.caller.store("api", CANARY, {}, 0) == 1
        (lease,) = await made.lease("api")
        assert lease.value == CANARY
        with pytest.raises(RunnerError):
            await made.lease("api", "missing", call="c2")
        assert await made.caller.store("api", CANARY + b"2", {}, 1) == 2
        await made.caller.revoke_call("c1")
        for name in ("environ", "cmdline", "status", "limits", "maps"):
            assert CANARY not in made.proc(name)
        files = [path for path in state.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"secrets", "leases", "log", master.FILE}
        for path in files:
            assert CANARY not in path.read_bytes(), path
        assert f"lease {lease.id}" in made.said  # the log is there
        assert lease.accessor in made.said
    for path in state.rglob("core*"):
        raise AssertionError(path)


async def test_operations_and_their_refusals(state: Path) -> None:
    key(state)
    async with broker(state) as made:
        await made.offer()
        assert await made.caller.secrets() == ()
        await made.caller.store("b", b"12345678", {}, 0)
        await made.caller.store("a", b"", {"username": b"me", "password": b"12345678"}, 0)
        assert [(view.name, view.version, view.fields) for view in await made.caller.secrets()] == [
            ("a", 1, ("username", "password")),
            ("b", 1, ()),
        ]
        for work in (
            made.caller.store("b", b"12345678", {}, 0),
            made.caller.store("b", b"short", {}, 1),
            made.caller.remove("b", 2),
            made.lease("c"),
            made.caller.renew("c9", 1000),
        ):
            with pytest.raises(RunnerError):
                await work
        await made.caller.remove("b", 1)
        leases = await made.lease("a", "a")
        assert len({lease.id for lease in leases}) == 2
        renewed = await made.caller.renew("c1", 30_000)
        assert renewed.keys() == {lease.id for lease in leases}
        assert (await made.caller.revoke_task("t")).leases == 2
        await made.lease("a", call="c2")
        assert (await made.caller.revoke_all()).leases == 1


async def test_a_configuration_that_is_wrong_changes_nothing(state: Path) -> None:
    key(state)
    async with broker(state) as made:
        good = '[secrets.providers.p]\nkind = "command"\n[secrets.providers.p.secrets.x]\nargv = ["/bin/echo", "%s"]\n'
        assert isinstance(await made.offer(good % "12345678"), parent.Compiled)
        for bad in (
            "[secrets]\nttl_s = -1",
            good % "x" + 'read_argv = ["echo"]',
            "a b\n",
            "[secrets.providers.p]\nkind = 1",
        ):
            answer = await made.offer(bad)
            assert isinstance(answer, parent.Rejected)
            assert answer.refusal.code == "config"
            assert "runner.toml:" in answer.refusal.field
        assert (await made.lease("p:x"))[0].value == b"12345678"
        assert isinstance(await made.offer(good % "abcdefgh"), parent.Compiled)
        assert (await made.lease("p:x", call="c2"))[0].value == b"abcdefgh"


async def test_a_program_of_its_user_runs_confined_in_it(state: Path) -> None:
    """Also with egress's listener in the same network namespace."""
    key(state)
    code = (
        "import os, socket\n"
        'try: socket.create_connection((\\"127.0.0.1\\", 3128), 5); said = \\"connected\\"\n'
        "except OSError as error: said = error.errno\n"
        'print(os.getuid(), said, \\"enough\\")'
    ).replace("\n", "\\n")
    async with broker(state) as made:
        await made.offer(
            '[secrets.providers.p]\nkind = "command"\n[secrets.providers.p.secrets.x]\n'
            f'argv = ["{os.path.realpath(sys.executable)}", "-I", "-c", "{code}"]\n'
        )
        with made.listener():
            assert (await made.lease("p:x"))[0].value == f"{NOBODY} 13 enough".encode()


async def test_without_a_key_it_says_what_to_do_and_takes_one_up(state: Path) -> None:
    async with broker(state) as made:
        await made.offer()
        with pytest.raises(RunnerError) as caught:
            await made.caller.store("api", CANARY, {}, 0)
        assert "runner secret init" in caught.value.refused.next_step
        config = str(state / "runner.toml")
        done = runner("secret", "init", "--config", config)
        assert done.exit_code == 0, done.output
        assert (state / "broker" / master.FILE).stat().st_uid == NOBODY
        await made.caller.store("api", CANARY, {}, 0)
        again = runner("secret", "init", "--config", config)
        assert isinstance(again.exception, RunnerError)
    async with broker(state) as made:
        await made.offer()
        assert (await made.lease("api"))[0].value == CANARY


async def test_a_key_that_systemd_gives_is_read_before_the_drop(state: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / master.CREDENTIAL).write_bytes(master.fresh())
    (tmp_path / master.CREDENTIAL).chmod(0o400)
    async with broker(state, credentials=str(tmp_path)) as made:
        await made.offer()
        await made.caller.store("api", CANARY, {}, 0)
        assert not (state / "broker" / master.FILE).exists()
    key(state)  # a file is no stand-in for it
    async with broker(state) as made:
        await made.offer()
        with pytest.raises(RunnerError) as caught:
            await made.lease("api")
        assert "master key does not open" in caught.value.refused.reason
    (tmp_path / master.CREDENTIAL).write_bytes(b"nonsense")
    made = Broker(state, credentials=str(tmp_path))
    assert await made.ended() == 1
    assert "not a master key" in made.said
    await made.close()


async def test_the_master_key_is_replaced_while_it_is_stopped(state: Path) -> None:
    key(state)
    (state / "lock").touch()
    async with broker(state) as made:
        await made.offer()
        await made.caller.store("api", CANARY, {}, 0)
        before = (await made.lease("api"))[0].fingerprint
    old = (state / "broker" / master.FILE).read_bytes()
    words = [sys.executable, "-m", "runner", "secret", "rekey", "--config", str(state / "runner.toml"), "--json"]
    with (state / "lock").open("r+") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        assert subprocess.run(words, capture_output=True, check=False).returncode == 4  # it runs
    subprocess.run(words, capture_output=True, check=True)
    new = (state / "broker" / master.FILE).read_bytes()
    assert new != old
    async with broker(state) as made:
        await made.offer()
        (lease,) = await made.lease("api")
        assert (lease.value, lease.fingerprint) == (CANARY, before)
    (state / "broker" / master.FILE).write_bytes(old)
    async with broker(state) as made:
        await made.offer()
        with pytest.raises(RunnerError):
            await made.lease("api")


@contextlib.contextmanager
def house(listener: socket.socket) -> Iterator[Relay]:
    """The relay behind the broker's own listener, as egress is."""
    server = Relay()
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def vault(bao: Bao, ttl: str) -> str:
    with contextlib.suppress(AssertionError):  # mounted by another test of this session
        bao.api("POST", "sys/mounts/ssh", type="ssh")
    bao.api("POST", "ssh/roles/process", key_type="otp", default_user="somebody", cidr_list="127.0.0.0/8")
    return (
        f'[secrets]\nttl_s = {ttl}\n[secrets.providers.vault]\nkind = "vault"\naddress = "{bao.address}"\n'
        'token = "vault-token"\n[secrets.providers.vault.secrets.otp]\npath = "ssh/creds/process"\nfield = "key"\n'
        'data = {ip = "127.0.0.1"}\n'
    )


async def test_a_broker_that_is_killed_leaves_no_lease(state: Path, bao: Bao) -> None:
    """Real leases of a real server, through the broker's own listener; then kill -9, and another broker."""
    key(state)
    settings = vault(bao, "600.0")
    async with broker(state) as made:
        assert isinstance(await made.offer(settings, bao.authority), parent.Compiled)
        with house(made.listener()) as relay:
            await made.caller.store("vault-token", bao.token.encode(), {}, 0)
            first, second = await made.lease("vault:otp", "vault:otp")
            assert first.dynamic
            assert first.value != second.value
            assert len(bao.leases("ssh/creds/process")) == 2
            await made.lease("vault:otp", call="c2")
            assert (await made.caller.revoke_call("c2")).leases == 1
            await until(lambda: len(bao.leases("ssh/creds/process")) == 2)
            made.process.send_signal(signal.SIGKILL)
            await made.ended()
            assert relay.asked
        assert len(bao.leases("ssh/creds/process")) == 2
    async with broker(state) as made:
        await made.offer(settings, bao.authority)
        with house(made.listener()):
            await until(lambda: not bao.leases("ssh/creds/process"))
            await made.lease("vault:otp", call="c3")
            assert bao.token not in made.said
            made.gate.close()  # gate has ended: so does the broker, and what it leased
            assert await made.ended() == 0
    assert bao.leases("ssh/creds/process") == []


async def test_a_lease_that_is_not_renewed_ends_by_itself(state: Path, bao: Bao) -> None:
    key(state)
    async with broker(state) as made:
        await made.offer(vault(bao, "0.5"), bao.authority)
        with house(made.listener()):
            await made.caller.store("vault-token", bao.token.encode(), {}, 0)
            (lease,) = await made.lease("vault:otp", call="c4")
            assert lease.ttl_ms == 500
            await until(lambda: made.told)
            assert made.told == [wire.Expired(call="c4", lease=lease.id)]
            await until(lambda: not bao.leases("ssh/creds/process"))


async def test_without_egress_a_provider_is_refused_at_once(state: Path, bao: Bao) -> None:
    key(state)
    async with broker(state) as made:
        await made.offer(vault(bao, "600.0"), bao.authority)
        made.listener().close()
        await made.caller.store("vault-token", bao.token.encode(), {}, 0)
        with pytest.raises(RunnerError) as caught:
            await made.lease("vault:otp")
        assert "cannot be reached" in caught.value.refused.reason
        assert (await made.lease("vault-token", call="c2"))[0].value  # what is stored is there all the same


async def test_parents_end_is_its_end(state: Path) -> None:
    key(state)
    made = Broker(state)
    await made.offer()
    for number in (signal.SIGINT, signal.SIGTERM):
        made.process.send_signal(number)
    time.sleep(0.2)
    assert made.process.poll() is None
    made.parent.close()
    assert await made.ended() == 0
    await made.close()
