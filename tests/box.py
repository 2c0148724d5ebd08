"""A sandbox made by engine, spoken to as gate speaks to it. Loaded as a pytest plugin (see conftest.py)."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker as sdk
import msgspec
import psutil
import pytest
from anyio.from_thread import start_blocking_portal

from runner.catalog import compile_tool
from runner.wire import guest

ROOT = Path(__file__).parents[1]
SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/usr")
READ = (*SYSTEM, "/dev/null", "/dev/zero", "/dev/urandom", "/proc", "/workspace", "/tmp", "/run/tools")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/workspace"}
TIMEOUT_S = 30
READONLY = {"write": ("/dev/null",)}


def jail(**changes: Any) -> guest.JailSpec:
    """The walls of an ordinary tool that may write in the workspace."""
    fields: dict[str, Any] = {
        "read": READ,
        "write": ("/dev/null", "/workspace", "/tmp"),
        "execute": (*SYSTEM, "/workspace"),
        "seccomp": "",
        "open_files": 256,
        "file_size": 64 << 20,
        **changes,
    }
    return guest.JailSpec(key=str(sorted(fields.items())), **fields)


class Done(msgspec.Struct):
    """Everything the guest said of one call, in order of types."""

    stdout: bytes = b""
    stderr: bytes = b""
    walls: dict[str, bool] = {}
    result: Any = None
    ended: guest.Ended | None = None
    fault: guest.Fault | None = None
    kinds: list[int] = []

    def take(self, kind: int, payload: bytes) -> None:
        """One frame of the call."""
        if kind == guest.STDOUT:
            self.stdout += payload
        elif kind == guest.STDERR:
            self.stderr += payload
        elif kind == guest.STARTED:
            self.walls = guest.read_json(payload, guest.Started).walls
        elif kind == guest.RESULT:
            self.result = json.loads(payload)
        elif kind == guest.ENDED:
            self.ended = guest.read_json(payload, guest.Ended)
        elif kind == guest.FAULT:
            self.fault = guest.read_json(payload, guest.Fault)

    @property
    def how(self) -> guest.Ended:
        assert self.ended is not None, self.fault
        return self.ended


class Box:
    """Gate's end of one sandbox's control connection, blocking."""

    def __init__(self, descriptor: int, pid: int) -> None:
        self.connection = socket.socket(fileno=descriptor)
        self.connection.settimeout(TIMEOUT_S)
        self.pid = pid
        self._reader = guest.GuestReader()
        self._frames: list[tuple[int, int, bytes]] = []
        self._last = 0
        self.ready = guest.read_json(self.frame(0)[1], guest.Ready)

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        self.connection.sendall(guest.pack(kind, number, payload))

    def frame(self, number: int) -> tuple[int, bytes]:
        """The next frame of a call; EOFError when the sandbox ends."""
        while True:
            for at, (kind, call, payload) in enumerate(self._frames):
                if call == number:
                    del self._frames[at]
                    return kind, payload
            data = self.connection.recv(1 << 18)
            if not data:
                raise EOFError
            self._frames += self._reader.feed(data)

    def until(self, number: int, wanted: int) -> bytes:
        """The payload of the first frame of that type; of those before it only credit for stdin is kept."""
        kept = []
        while True:
            kind, payload = self.frame(number)
            if kind == wanted:
                self._frames[:0] = kept
                return payload
            if kind == guest.STDIN_CREDIT:
                kept.append((kind, number, payload))

    def start(self, *argv: str, **changes: Any) -> int:
        """Begin a call of `argv`."""
        self._last += 1
        fields: dict[str, Any] = {
            "tool": "shell_run",
            "kind": "argv",
            "isolation": "launcher",
            "jail": jail(),
            "argv": argv,
            "environment": ENVIRONMENT,
            "credit": 1 << 20,
            "wall_ms": 20_000,
            "cpu_s": 20,
            "result": 256 << 10,
            **changes,
        }
        self.connection.sendall(guest.pack_json(guest.START, self._last, guest.Start(**fields)))
        return self._last

    def tool(self, name: str, arguments: dict[str, Any], **changes: Any) -> int:
        """Begin a call of one of the package's python tools."""
        folder = ROOT / "tools" / name
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        manifest = compile_tool(name, files)
        self.code(name, manifest.code_digest, dict(manifest.files))
        return self.start(tool=name, kind="python", arguments=arguments, code_digest=manifest.code_digest, **changes)

    def code(self, tool: str, digest: str, files: dict[str, bytes]) -> None:
        """Send code and wait until it is in place."""
        encoded = {path: base64.b64encode(data).decode() for path, data in files.items()}
        self.connection.sendall(guest.pack_json(guest.CODE, 0, guest.Code(tool=tool, digest=digest, files=encoded)))
        assert guest.read_json(self.until(0, guest.CODE_READY), guest.CodeReady).digest == digest

    def python(self, source: str, arguments: dict[str, Any] | None = None, **changes: Any) -> int:
        """Begin a call of a python tool with this main.py."""
        files = {"main.py": source.encode()}
        digest = guest.code_digest(files)
        self.code("made", digest, files)
        return self.start(tool="made", kind="python", arguments=arguments or {}, code_digest=digest, **changes)

    def finish(self, number: int, *, credit: bool = True, stdin: bytes | None = None) -> Done:
        """Everything up to the call's end, giving credit for what arrives; `stdin` goes in against credit."""
        done, given, left = Done(), 0, stdin or b""
        while done.ended is None and done.fault is None:
            kind, payload = self.frame(number)
            done.kinds.append(kind)
            if kind in (guest.STDOUT, guest.STDERR) and credit:
                self.send(guest.CREDIT, number, len(payload).to_bytes(4, "big"))
            if kind == guest.STDIN_CREDIT and stdin is not None:
                given += int.from_bytes(payload, "big")
                while given and left:
                    piece = left[: min(given, guest.MAX_DATA)]
                    left, given = left[len(piece) :], given - len(piece)
                    self.send(guest.STDIN, number, piece)
                if not left:
                    self.send(guest.STDIN, number)
                    stdin = None
            done.take(kind, payload)
        return done

    def run(self, *argv: str, **changes: Any) -> Done:
        return self.finish(self.start(*argv, **changes))

    def ends(self) -> bool:
        """Wait until the connection ends."""
        try:
            while self.connection.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


@pytest.fixture
def ceilings() -> dict[str, int]:
    """Of the sandbox; a test that needs others parametrises this."""
    return {}


@pytest.fixture
def box(benches: Any, tmp_path: Path, ceilings: dict[str, int]) -> Iterator[Box]:
    """A sandbox of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(benches.open(tmp_path, benches.profile(**ceilings))) as bench,
    ):
        measured, descriptor = portal.call(bench.create)
        made = Box(descriptor, measured.pid)
        yield made
        made.connection.close()


def strangers(box: Box) -> list[str]:
    """What runs in the sandbox and is not the guest's own, seen from the host: a fork of PID 1 keeps its command line.
    Nothing of a call that was reported as ended is among them."""
    found = []
    for process in psutil.Process(box.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return [line for line in found if line and "supervisor" not in line]  # without one, it is ending


OLD = """
import sys
sys.path.append("/usr/lib")
from runner.guest import walls
known = walls.landlock_abi()
walls.landlock_abi = lambda: min(known, int(sys.argv[1]))
from runner.guest.supervisor import main
main("/run/runner/control.sock")
"""


@pytest.fixture
def abi() -> int:
    """The Landlock ABI of the kernel that `old_box` pretends to be on; 5 is the last without a signal scope."""
    return 5


@pytest.fixture
def old_box(tool_image: str, tmp_path: Path, abi: int) -> Iterator[Box]:
    """A sandbox whose guest takes the kernel for an older one, behind the container walls that the guest relies on."""
    rules = json.loads((ROOT / "profiles/seccomp/default.json").read_text())
    rules.pop("groups", None)
    for rule in rules["syscalls"]:
        rule.pop("group", None)
    place = {"/workspace": "exec", "/tmp": "", "/run/tools": "exec"}
    body = {
        "Image": tool_image,
        "Entrypoint": ["/usr/bin/python3", "-I", "-S", "-B", "-c", OLD, str(abi)],
        "User": "260999:260999",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/workspace"],
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(rules)}"],
            "CapDrop": ["ALL"],
            "PidsLimit": 128,
            "OomScoreAdj": 500,
            "Tmpfs": {path: f"{flags},uid=260999,mode=700".lstrip(",") for path, flags in place.items()},
            "Binds": [f"{tmp_path}:/run/runner"],
        },
    }
    with socket.socket(socket.AF_UNIX) as listener, contextlib.closing(sdk.APIClient(version="auto")) as api:
        tmp_path.chmod(0o711)
        listener.bind(str(tmp_path / "control.sock"))
        (tmp_path / "control.sock").chmod(0o666)
        listener.listen()
        listener.settimeout(TIMEOUT_S)
        made = api.create_container_from_config(body)["Id"]
        try:
            api.start(made)
            connection, _ = listener.accept()
            box = Box(connection.detach(), api.inspect_container(made)["State"]["Pid"])
            yield box
            box.connection.close()
        finally:
            api.remove_container(made, force=True)
