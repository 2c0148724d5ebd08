"""What every test that needs real containers asks for. Absent Docker is a failure with its remedy, never a skip: a
promise that was not tested is not kept."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker as sdk
import hypothesis
import pytest

from runner.config import Config, Sandboxes
from runner.engine import image
from runner.engine.docker import INSTANCE_LABEL, Docker
from runner.engine.sandboxes import Engine
from runner.errors import RunnerError
from runner.model import Ceilings, SandboxPlan, TaskProfile

pytest_plugins = ["house", "box", "outside", "reached", "networked"]

hypothesis.settings.register_profile("house", deadline=None)  # no test is timed: these machines are shared
hypothesis.settings.load_profile("house")

ROOT = Path(__file__).parents[1]
FILTER = ROOT / "profiles/seccomp/default.json"
DIGEST = "d" * 64
_LOCK = Path("/tmp/toolrunner-test-image.lock")
_NEWNET, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 0x8914, 1  # linux/sched.h, linux/sockios.h, linux/if.h
_NETWORK = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Tests, and every daemon of theirs, live in a network of their own that has loopback and no other way: what must
    not be sent goes nowhere, also where the wall that should stop it is broken."""
    shared_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")  # this one runs no test
    if shared_out or os.geteuid() != 0:  # whatever starts a daemon says that it needs root
        return
    config.stash[_NETWORK] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET) != 0:
        raise pytest.UsageError(f"tests need a network namespace of their own: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


@pytest.fixture
def hosts_network(request: pytest.FixtureRequest) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with hosts_network():` this thread is where the host's own processes are. Nothing may be sent there."""

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        mine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None).setns(request.config.stash[_NETWORK], _NEWNET) == 0
            yield
        finally:
            assert ctypes.CDLL(None).setns(mine, _NEWNET) == 0
            os.close(mine)

    return entered


@pytest.fixture(scope="session")
def docker_engine_available() -> Iterator[Docker]:
    """A connection to the Docker engine. Fails, saying what to do, when there is none or when we are not root."""
    if os.geteuid() != 0:
        pytest.fail(
            "these tests make containers and read /proc of other users: run scripts/test as root", pytrace=False
        )
    try:
        docker = Docker()
    except RunnerError as error:
        pytest.fail(f"{error}; run scripts/setup first", pytrace=False)
    yield docker
    docker.close()


@pytest.fixture(scope="session")
def tool_image(docker_engine_available: Docker) -> str:
    """The id of the real tool image of this checkout, built once on the base image that scripts/setup made."""
    with _LOCK.open("w") as lock:  # workers of one run, and runs side by side, build it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return image.build(docker_engine_available, os.environ.get("TOOLRUNNER_BASE", image.BASE))
        except RunnerError as error:
            pytest.fail(f"{error}; run scripts/setup first, or set TOOLRUNNER_BASE", pytrace=False)


@pytest.fixture(scope="session")
def web_image(docker_engine_available: Docker) -> str:
    """The id of the real image of tools with a network, built once on the base image that scripts/setup made."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = os.environ.get("TOOLRUNNER_WEB_BASE", image.WEB.base)
        try:
            return image.build(docker_engine_available, base, kind=image.WEB)
        except RunnerError as error:
            pytest.fail(f"{error}; run scripts/setup --dev first, or set TOOLRUNNER_WEB_BASE", pytrace=False)


class Bench:
    """An engine with a private instance, what ended in it, and the SDK to look at its containers from outside."""

    def __init__(self, engine: Engine, instance: str, folder: Path) -> None:
        self.engine, self.instance, self.folder = engine, instance, folder
        self.ended: list[tuple[str, str, bool]] = []
        self.api = sdk.APIClient(version="auto")

    async def create(self, sandbox: str = "s1", digest: str = DIGEST) -> Any:
        """`Engine.create` for the profile this bench serves: what was measured, and the control descriptor."""
        return await self.engine.create(
            SandboxPlan(sandbox=sandbox, task="t", profile="default", profile_digest=digest)
        )

    def containers(self) -> list[str]:
        """Ids of every container of this instance, stopped ones too."""
        found = self.api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={self.instance}"})
        return [item["Id"] for item in found]

    def name(self, sandbox: str = "s1") -> str:
        """The container's name."""
        return f"toolrunner-{self.instance}-{sandbox}"

    def execute(self, *argv: str, sandbox: str = "s1") -> tuple[int, str]:
        """Run a program inside, behind the container's own walls only (no launcher, no Landlock)."""
        started = self.api.exec_create(self.name(sandbox), list(argv))
        text = self.api.exec_start(started["Id"]).decode(errors="replace")
        return self.api.exec_inspect(started["Id"])["ExitCode"], text

    def python(self, code: str, *arguments: str, sandbox: str = "s1") -> Any:
        """Run Python inside; what it printed, as JSON."""
        status, text = self.execute("python3", "-I", "-c", code, *arguments, sandbox=sandbox)
        assert status == 0, text
        return json.loads(text)


class Benches:
    """Makes benches. Everything of one is gone when it closes, and that is asserted."""

    def __init__(self, image_id: str) -> None:
        self.image = image_id

    def profile(self, **ceilings: int) -> TaskProfile:
        """The default task profile with some ceilings changed."""
        return TaskProfile(
            name="default",
            description="for tests",
            digest=DIGEST,
            image="",
            seccomp="default",
            ceilings=Ceilings(**ceilings),
            tools=("shell_run",),
        )

    @contextlib.asynccontextmanager
    async def open(
        self, folder: Path, profile: TaskProfile | None = None, *, instance: str = ""
    ) -> AsyncIterator[Bench]:
        """An engine that serves one profile named `default`."""
        ended: list[tuple[str, str, bool]] = []
        instance = instance or f"t{secrets.token_hex(5)}"
        engine = Engine(
            instance=instance,
            config=Config(sandboxes=Sandboxes(image=self.image, uid_first=260_000, uid_count=512)),
            run_dir=folder / "run",
            state_dir=folder / "state",
            on_end=lambda sandbox, reason, oom: ended.append((sandbox, reason, oom)),
        )
        bench = Bench(engine, instance, folder)
        bench.ended = ended
        try:
            await engine.start()
            engine.use({"default": profile or self.profile()}, {"default": FILTER.read_bytes()})
            yield bench
        finally:
            await engine.close()
            left = bench.containers()
            bench.api.close()
            assert left == []


@pytest.fixture
def benches(tool_image: str) -> Benches:
    """Engines on real containers: `async with benches.open(tmp_path) as bench`."""
    return Benches(tool_image)
