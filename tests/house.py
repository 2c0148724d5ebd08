"""A whole daemon on real parts, with a state directory of its own. Loaded as a pytest plugin (see pyproject.toml)."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import docker as sdk
import psutil
import pytest

from runner.cli.credentials import Wish, announce, ask, mint
from runner.client import Runner, connect
from runner.engine.docker import INSTANCE_LABEL
from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.token import credentials
from runner.token.keys import SigningKey, generate, private_file, public_file
from runner.wire import admin

ISSUER = "https://issuer.test"
EVERY_TOOL = (
    "fs_list",
    "fs_read",
    "fs_search",
    "fs_write",
    "python_run",
    "shell_run",
    "workspace_diff",
    "workspace_get",
    "workspace_put",
)
START_S = 60.0


class Daemon:
    """What an operator starts as `runner serve`: a process tree, sockets, a ledger."""

    def __init__(
        self, place: Path, image: str, *, config: str = "", catalogue: Path | None = None, python: str = sys.executable
    ) -> None:
        self.place = place
        self.python = python
        self.issuer = SigningKey(generate())
        self.log = place / "log"
        self.docker_host = ""  # "" = the engine that every test shares
        self._process: subprocess.Popen[bytes] | None = None
        (place / "issuer.pub").write_bytes(public_file(self.issuer.public, ISSUER))
        (place / "issuer.key").write_bytes(private_file(self.issuer, ISSUER))
        (place / "issuer.key").chmod(0o600)
        folders = (
            "".join(f'{name} = "{catalogue / name}"\n' for name in ("profiles", "tools", "policies"))
            if catalogue
            else ""
        )
        # Each worker has its own range, so that a leaked lease of one test cannot hide in another's.
        (place / "runner.toml").write_text(
            f'state = "state"\nrun = "run"\n{folders}'
            f'[peers]\nagents = [0, "runner-demo"]\n[[issuers]]\nuri = "{ISSUER}"\npublic_key = "issuer.pub"\n'
            f'[sandboxes]\nimage = "{image}"\n{"" if "pool" in config else "pool = 0"}\n'
            f"{'' if 'archive' in config else 'archive = false'}\n{config}"
        )

    # --- life ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        seen = self.said()
        # What `runner serve` becomes, without reading every command first; another interpreter is asked the whole way.
        plain = self.python == sys.executable
        serve = ["-I", "-m", "runner.serve.parent"] if plain else ["-m", "runner", "serve", "--config"]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                # Named from its own folder, as people do; the children work elsewhere and must find the same files.
                [self.python, *serve, "runner.toml"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.place,
            )
        self.wait(lambda: "serving: instance" in self.said()[len(seen) :] or self._process.poll() is not None)
        assert self._process.poll() is None, self.said()[len(seen) :]

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def child(self, name: str) -> psutil.Process:
        (found,) = [p for p in psutil.Process(self.pid).children() if f"runner.serve.{name}" in p.cmdline()]
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(90)

    def ended(self) -> int:
        """The exit status of a daemon that ends by itself: a signal now could overtake it."""
        assert self._process is not None
        return self._process.wait(60)

    def wait(self, condition: Callable[[], Any], seconds: float = START_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"it did not happen within {seconds:g} s; the log says:\n{self.said()[-4000:]}"
            )
            time.sleep(0.02)

    # --- what an operator and an agent do --------------------------------------------------------------------

    def ask(self, message: admin.FromOperator) -> Any:
        return ask(self.place / "run" / "admin.sock", message)

    def credentials(
        self, *, task: str = "", tools: dict[str, Any] | None = None, say: bool = True, **wish: Any
    ) -> bytes:
        """A root token, announced, and its holder's key: what `runner exec` hands to an agent."""
        holder = SigningKey(generate())
        wanted: dict[str, Any] = {
            "agent": "tester",
            "owner": "owner",
            "session": f"s-{secrets.token_hex(4)}",
            "profile": "default",
            "ttl_s": 600,
        } | wish
        token, message = mint(
            Wish(
                task=task or f"t-{secrets.token_hex(4)}",
                tools={name: {} for name in EVERY_TOOL} if tools is None else tools,
                **wanted,
            ),
            self.issuer,
            ISSUER,
            holder.public,
        )
        if say:
            announce(self.place / "run" / "admin.sock", message)
        return credentials.encode(credentials.credentials((token,), holder, str(self.place / "run" / "agent.sock")))

    def connect(self, handed: bytes | None = None, **wish: Any) -> Runner:
        return connect(credentials=handed if handed is not None else self.credentials(**wish))

    # --- what an auditor sees ---------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        return self.place / "state"

    def entries(self, kind: type | None = None) -> list[Any]:
        """Every entry in the ledger, or those of one kind, in order."""
        ledger = Ledger(self.state / "ledger", load_verifier("", self.state / "ledger"))
        found = [entries.decode(data) for _, data in ledger.entries()]
        return [entry for entry in found if kind is None or isinstance(entry, kind)]

    def entry(self, kind: type, call: str) -> Any:
        """The entry of this kind of a call; waits for the group it is written with."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [entry for entry in self.entries(kind) if entry.call == call]
            return bool(found)

        self.wait(look, 5)
        (only,) = found
        return only

    def call(self, call: str) -> Any:
        return self.entry(entries.Call, call)

    def outcome(self, call: str) -> Any:
        return self.entry(entries.Outcome, call)

    def content(self, entry: Any, digest: str) -> bytes:
        """The stored bytes of this digest that the entry names, with their salt; waits for them."""
        found: list[bytes] = []

        def look() -> bool:
            reader = ContentReader(self.state / "content")
            try:
                kept = reader.get(digest, self.entries().index(entry))
            finally:
                reader.close()
            found[:] = [] if kept is None else [kept]
            return bool(found)

        self.wait(look, 10)
        return found[0]

    def verifies(self) -> bool:
        folder = self.state / "ledger"
        return verify(folder, (folder / "key.pub").read_text().strip(), self.state / "content").ok

    @property
    def instance(self) -> str:
        return (self.state / "instance").read_text().strip()

    def docker(self) -> sdk.APIClient:
        return sdk.APIClient(base_url=self.docker_host or None, version="auto")

    def containers(self) -> list[dict[str, Any]]:
        api = self.docker()
        try:
            return list(api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={self.instance}"}))
        finally:
            api.close()

    def sandbox_pids(self) -> list[int]:
        """PID 1 of each sandbox that runs, on the host."""
        api, found = self.docker(), []
        try:
            for container in self.containers():
                with contextlib.suppress(sdk.errors.NotFound):  # removed since it was listed
                    found.append(api.inspect_container(container["Id"])["State"]["Pid"])
        finally:
            api.close()
        return found


def _below(pid: int, *, own: bool) -> list[psutil.Process]:
    """Processes below PID 1 of a sandbox, by whether they run its own program or another. One that ended is neither."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for each in first.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                line = each.cmdline()
                if line and (line == first.cmdline()) == own:
                    found.append(each)
    return found


def programs(pid: int) -> list[psutil.Process]:
    """What tools run in the sandbox whose PID 1 this is."""
    return _below(pid, own=False)


def first_line(chunks: Iterable[Any]) -> bytes:
    """The first line that a call writes: its end may wait for a moment, since it could be the beginning of a secret."""
    said = b""
    for chunk in chunks:
        said += chunk.data
        if b"\n" in said:
            break
    return said


def forks(pid: int) -> list[psutil.Process]:
    """The forks of this PID 1 that run no other program: the seed, then launchers, and python tools' processes."""
    return _below(pid, own=True)


@contextlib.contextmanager
def daemons(tool_image: str) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons, started. Stopped at the end; nothing of them may be left."""
    made: list[Daemon] = []

    def make(*, start: bool = True, **options: Any) -> Daemon:
        place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
        place.chmod(0o711)
        daemon = Daemon(place, tool_image, **options)
        made.append(daemon)
        if start:
            daemon.start()
        return daemon

    yield make
    for daemon in made:
        _end(daemon)


@pytest.fixture
def make_daemon(tool_image: str) -> Iterator[Callable[..., Daemon]]:
    """Daemons of a test's own."""
    with daemons(tool_image) as make:
        yield make


def end_tasks(daemon: Daemon) -> None:
    """End every task that lives, and so its sandbox: what a test leaves of a daemon that it shares."""
    for task in daemon.ask(admin.ListTasks()).tasks:
        daemon.ask(admin.EndTask(task=task.task, why="the test is over"))


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """One daemon for every test that leaves it as it found it. A test's tasks end with it, and their sandboxes."""
    yield shared_daemon
    end_tasks(shared_daemon)


@pytest.fixture(scope="session")
def shared_daemon(tool_image: str) -> Iterator[Daemon]:
    """The daemon behind `daemon`."""
    place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
    place.chmod(0o711)
    shared = Daemon(place, tool_image, config="maximum = 24\n")
    shared.start()
    yield shared
    assert shared.verifies()
    _end(shared)


def _end(daemon: Daemon) -> None:
    try:
        if daemon._process is not None:
            daemon.stop()
            if (daemon.state / "instance").exists():
                daemon.wait(lambda: not daemon.containers(), 20)
    finally:
        shutil.rmtree(daemon.place)


def readable(pid: int, name: str) -> bytes:
    """A file of /proc/PID, b"" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """Whether a process still runs (a zombie does not)."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


__all__ = [
    "EVERY_TOOL",
    "ISSUER",
    "Daemon",
    "alive",
    "daemon",
    "daemons",
    "end_tasks",
    "forks",
    "make_daemon",
    "programs",
    "readable",
    "shared_daemon",
]
