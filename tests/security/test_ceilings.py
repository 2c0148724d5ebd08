"""Each ceiling of a profile on a real daemon: a call that goes for it ends in the right outcome, another task's call
lives through it, and the kernel's own counters say that the ceiling held. Nothing here is measured in time."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker as sdk
import psutil
import pytest
from house import Daemon, _end, readable

from runner.cli.init import lay_out
from runner.engine.cgroup import ROOT, CgroupTree, parse_membership

pytestmark = pytest.mark.docker

MEMORY, WORKSPACE, TMP, SHM, PIDS, OUTPUT, FILES = 256 << 20, 48 << 20, 16 << 20, 16 << 20, 64, 4 << 20, 128
CEILINGS = {
    'memory = "512MiB"': 'memory = "256MiB"',
    "cpus = 1.0": "cpus = 0.5",
    "pids = 128": f"pids = {PIDS}",
    'workspace = "256MiB"': 'workspace = "48MiB"',
    "workspace_inodes = 65536": "workspace_inodes = 2000",
    'tmp = "32MiB"': 'tmp = "16MiB"',
    'shm = "0B"': 'shm = "16MiB"',
    'output = "8MiB"': 'output = "4MiB"',
    'file_size = "128MiB"': 'file_size = "24MiB"',
    "open_files = 256": f"open_files = {FILES}",
}


@pytest.fixture(scope="module")
def small(tool_image: str) -> Iterator[Daemon]:
    """A daemon whose default profile has low ceilings."""
    place = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
    place.chmod(0o711)
    lay_out(place / "catalogue")
    profile = place / "catalogue/profiles/default.toml"
    text = profile.read_text()
    for old, new in CEILINGS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    profile.write_text(text)
    daemon = Daemon(place, tool_image, catalogue=place / "catalogue")
    daemon.start()
    yield daemon
    assert daemon.verifies()
    _end(daemon)


class Sandbox:
    """One task's container, seen by the kernel's counters."""

    def __init__(self, daemon: Daemon, uid: int) -> None:
        (self.pid,) = [pid for pid in daemon.sandbox_pids() if f"\nUid:\t{uid}\t".encode() in readable(pid, "status")]
        self._tree = CgroupTree()
        self._membership = parse_membership(readable(self.pid, "cgroup").decode())

    def number(self, controller: str, *names: str) -> int:
        """The first of these files that there is (version 1 and 2 name them differently)."""
        return next(int(text) for name in names if (text := self._read(controller, name)))

    def counter(self, controller: str, name: str, key: str) -> int:
        """One line of a file of counters."""
        return int(dict(line.split() for line in self._read(controller, name).splitlines())[key])

    def idle(self) -> int:
        """How many processes stay when nothing runs and nothing is built ahead any more."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:
            if (now := self.number("pids", "pids.current")) != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.02)
        return seen

    def cpu_us(self) -> int:
        """CPU time it has used, microseconds."""
        if self._tree.version == 2:
            return self.counter("cpu", "cpu.stat", "usage_usec")
        return self.number("cpuacct", "cpuacct.usage") // 1000

    def _read(self, controller: str, name: str) -> str:
        key = "" if self._tree.version == 2 else controller
        path = ROOT / ("" if self._tree.version == 2 else controller) / self._membership[key].lstrip("/") / name
        return path.read_text().strip() if path.exists() else ""


class Beside:
    """A task under attack and another one with a call that runs all the time."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def __enter__(self) -> Beside:
        self._contexts = [self.daemon.connect(), self.daemon.connect()]
        self.agent, self._other = [context.__enter__() for context in self._contexts]
        uid = int(self.agent.call("shell_run", {"argv": ["id", "-u"]}).stdout)
        self.sandbox = Sandbox(self.daemon, uid)
        self._stream = self._other.stream(
            "shell_run", {"argv": ["sh", "-c", "echo $$; read line; echo alive"]}, stdin=True
        )
        self._neighbour = self._stream.__enter__()
        self.neighbour_said()
        return self

    def neighbour_said(self) -> bytes:
        return bytes(next(iter(self._neighbour)).data)

    def python(self, code: str, **options: Any) -> Any:
        return self.agent.call("python_run", {"code": code}, **options)

    def __exit__(self, *failure: object) -> None:
        """The neighbour still answers, in a call that began before, and in a new one; so does the task itself."""
        try:
            if not failure[0]:
                self._neighbour.write_stdin(b"go\n")
                self._neighbour.close_stdin()
                assert b"".join(chunk.data for chunk in self._neighbour) == b"alive\n"
                assert self._neighbour.result().ok
                assert self._other.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"
                assert self.agent.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"
        finally:
            self._stream.__exit__(None, None, None)
            for task in self.agent, self._other:
                task.end_task()
            for context in self._contexts:
                context.__exit__(None, None, None)


# --- memory, in all its forms -------------------------------------------------------------------------------

GROW = """
import ctypes, errno, fcntl, mmap, os, socket, sys
held = 0
def step(amount):
    global held
    held += amount
    if held // (8 << 20) != (held - amount) // (8 << 20):
        os.write(1, b"%d\\n" % held)
block = b"x" * (1 << 20)
def write(file, data=block):
    at = 0
    while at < len(data): at += os.write(file, data[at:])
def spread(act, count):
    for number in range(count):
        if not os.fork():
            try: act()
            except OSError: pass
            import time; time.sleep(60)
    act()
    while True: os.wait()
"""
FORMS = {
    "anonymous": "kept = []\nwhile True: kept.append(bytearray(block)); step(1 << 20)",
    "memfd": "file = os.memfd_create('m')\nwhile held < 24 << 20: write(file); step(1 << 20)\n"
    "kept = [file]\nwhile True:\n file = os.memfd_create('m'); kept.append(file)\n"
    " for _ in range(20): write(file); step(1 << 20)",
    "shared mapping": "kept = []\nwhile True:\n kept.append(mmap.mmap(-1, 1 << 20))\n"
    " kept[-1].write(block); step(1 << 20)",
    "page tables": "room = mmap.mmap(-1, 1 << 40, flags=0x4022, prot=1)\nroom.madvise(15)\n"
    "for at in range(0, 1 << 40, 2 << 20): room[at]; step(4096)",
    "pipes": """
def fill():
    kept = []
    while True:
        ends = os.pipe(); kept.append(ends)
        os.set_blocking(ends[1], False)
        try:
            while True: step(os.write(ends[1], block))
        except BlockingIOError: pass
spread(fill, 40)
""",
    "local sockets": """
def fill():
    kept = []
    while True:
        ours, theirs = socket.socketpair(); kept.append((ours, theirs))
        for end in ours, theirs:
            end.setblocking(False); end.setsockopt(1, 7, 1 << 20)
            try:
                while True: step(end.send(block[:65536]))
            except BlockingIOError: pass
spread(fill, 40)
""",
    "attributes": """
number = 0
while True:
    path = f"/workspace/f{number}"; number += 1
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    for name in range(16): os.setxattr(path, f"user.{name}", block[:60000]); step(60000)
""",
    "folders": """
depth = 0
while True: os.mkdir(f"/workspace/d{depth}"); depth += 1; step(4096)
""",
    "workspace": """
while True:
    if held % (20 << 20) == 0: file = os.open(f"/workspace/{held}", os.O_CREAT | os.O_WRONLY)
    write(file); step(1 << 20)
""",
}
KILLED = ("anonymous", "memfd", "shared mapping", "page tables")  # nothing but the memory ceiling stops these


@pytest.mark.parametrize("form", FORMS)
def test_memory_of_every_kind_stops_at_the_ceiling(small: Daemon, form: str) -> None:
    with Beside(small) as beside:
        idle = beside.sandbox.number("memory", "memory.usage_in_bytes", "memory.current")
        assert idle < MEMORY // 4
        done = beside.python(GROW + FORMS[form], deadline=20)
        held = [int(line) for line in done.stdout.split()]
        assert done.outcome.kind in (("oom",) if form in KILLED else ("oom", "exited", "timed_out"))
        assert not done.ok
        assert max(held, default=0) <= MEMORY
        assert beside.sandbox.number("memory", "memory.max_usage_in_bytes", "memory.peak") <= MEMORY
        assert beside.sandbox.counter("memory", "memory.oom_control", "oom_kill") >= (form in KILLED)


# --- processors ---------------------------------------------------------------------------------------------

PERIODS = 40  # of 100 ms each, by the kernel's count


def test_spinning_on_every_core_uses_no_more_than_the_quota(small: Daemon) -> None:
    """Used CPU against what the kernel's own periods allow: a ratio of two counters, whatever the machine does."""
    spin = {"argv": ["sh", "-c", "for i in 1 2 3 4; do (while :; do :; done) & done; echo go; wait"]}
    with Beside(small) as beside, beside.agent.stream("shell_run", spin) as running:
        next(iter(running))
        sandbox = beside.sandbox
        began, used = sandbox.counter("cpu", "cpu.stat", "nr_periods"), sandbox.cpu_us()
        throttled = sandbox.counter("cpu", "cpu.stat", "nr_throttled")
        small.wait(lambda: sandbox.counter("cpu", "cpu.stat", "nr_periods") >= began + PERIODS)
        periods = sandbox.counter("cpu", "cpu.stat", "nr_periods") - began
        share = (sandbox.cpu_us() - used) / (periods * 100_000)
        assert share <= 0.5 * 1.1
        # It wanted more and was held back; or the machine was so busy that not even the quota was to be had.
        assert sandbox.counter("cpu", "cpu.stat", "nr_throttled") > throttled or share < 0.5 * 0.9
        running.cancel()
        assert running.result().outcome.kind == "cancelled"


# --- processes ----------------------------------------------------------------------------------------------

BOMBS = {
    "processes": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "daemons": "import os\nwhile True:\n try:\n  if not os.fork(): os.setsid()\n except OSError: pass",
    "threads": "import threading, time\nwhile True:\n"
    " try: threading.Thread(target=time.sleep, args=(60,)).start()\n except RuntimeError: time.sleep(0.01)",
    "programs": "import subprocess\nkept = []\nwhile True:\n"
    " try: kept.append(subprocess.Popen(['sleep', '60']))\n except OSError: pass",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_of_any_kind_stops_at_the_ceiling_and_leaves_nothing(small: Daemon, bomb: str) -> None:
    with Beside(small) as beside:
        sandbox = beside.sandbox
        beside.python("print()")  # its launcher stays
        idle = sandbox.idle()
        done = beside.python(BOMBS[bomb], deadline=2)
        assert done.outcome.kind == "timed_out"
        assert sandbox.counter("pids", "pids.events", "max") > 0  # the ceiling was reached
        small.wait(lambda: sandbox.number("pids", "pids.current") <= idle, 10)


# --- files: size, number, descriptors; the host's disk ------------------------------------------------------

FILL = """
import json, os
def full(act):
    count = 0
    try:
        while True: act(count); count += 1
    except OSError as error: return [count, error.strerror]
found = {}
for place in "/workspace", "/tmp", "/dev/shm":
    def grow(number):
        with open(f"{place}/big{number}", "wb") as file:
            for _ in range(4): file.write(bytes(1 << 20)); file.flush()
    size = full(grow)
    for name in os.listdir(place): os.unlink(f"{place}/{name}")
    number = full(lambda number: open(f"{place}/f{number}", "w").close())
    for name in os.listdir(place): os.unlink(f"{place}/{name}")
    found[place] = [size[1], number[1]]
print(json.dumps(found))
"""


def written_by_docker(daemon: Daemon, sandbox: Sandbox) -> list[tuple[str, int]]:
    """Every file in the container's own layer on the host's disk."""
    api = sdk.APIClient(version="auto")
    try:
        for container in daemon.containers():
            found = api.inspect_container(container["Id"])
            if found["State"]["Pid"] == sandbox.pid:
                upper = found["GraphDriver"]["Data"]["UpperDir"]
                assert not found["LogPath"]
                return sorted((str(path), path.lstat().st_size) for path in Path(upper).rglob("*") if not path.is_dir())
    finally:
        api.close()
    raise AssertionError("no container has this PID 1")


def test_every_writable_place_fills_up_and_the_host_s_disk_does_not(small: Daemon) -> None:
    with Beside(small) as beside:
        before = written_by_docker(small, beside.sandbox)
        done = beside.python(FILL)
        full = "No space left on device"
        assert done.ok, (done.outcome, done.stderr)
        found = json.loads(done.stdout)
        assert found == {place: [full, full] for place in ("/workspace", "/tmp", "/dev/shm")}
        assert written_by_docker(small, beside.sandbox) == before
        beside.agent.call("fs_write", {"path": "after", "content": "fits"}, check=True)


def test_shared_memory_that_a_profile_gives_can_be_used(small: Daemon, daemon: Daemon) -> None:
    code = {"code": "import multiprocessing\nwith multiprocessing.Lock(): print('locked')"}
    with small.connect() as sized, daemon.connect() as without:
        done = sized.call("python_run", code)
        assert done.stdout == b"locked\n", (done.outcome, done.stderr)
        assert not without.call("python_run", code).ok


def test_open_files_and_file_size_stop_at_their_ceilings(small: Daemon) -> None:
    code = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept = []
try:
    while True: kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error: print(error.strerror, max(kept) + 1)
for number in kept: os.close(number)
file = os.open("/workspace/big", os.O_CREAT | os.O_WRONLY)
size = 0
try:
    while True: size += os.write(file, bytes(1 << 20))
except OSError as error: print(error.strerror, size)
try: os.truncate("/workspace/big", 1 << 40)
except OSError as error: print(error.strerror)
"""
    with Beside(small) as beside:
        said = beside.python(code).stdout.decode().splitlines()
        assert said == [f"Too many open files {FILES}", f"File too large {24 << 20}", "File too large"]


# --- output -------------------------------------------------------------------------------------------------

FLOODS = {
    "one endless line": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "both streams": "import os\nwhile True: os.write(1, b'o' * 4096); os.write(2, b'e' * 4096)",
    "many writers": "import os\nfor _ in range(3): os.fork()\nwhile True: os.write(1, b'line\\n' * 100)",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_output_is_cut_at_the_cap_and_costs_the_daemon_no_memory(small: Daemon, flood: str) -> None:
    gate, recorder = (small.child(name) for name in ("gate", "recorder"))
    with Beside(small) as beside:
        beside.python(FLOODS["both streams"])  # buffers and arenas have grown before what is compared
        before = gate.memory_info().rss + recorder.memory_info().rss
        beside.agent.call("fs_write", {"path": "kept", "content": "x"}, check=True)
        for _ in range(3):  # whether bytes wait in the pipes when the call is killed is a race
            done = beside.python(FLOODS[flood])
            assert done.outcome.kind == "output_capped"
            assert len(done.stdout) + len(done.stderr) == OUTPUT
            assert done.outcome.usage.wall_us > 0  # the guest's own word: the sandbox did not have to go
        assert beside.agent.call("fs_read", {"path": "kept"}).value["content"] == "x"
        assert gate.memory_info().rss + recorder.memory_info().rss - before < 8 << 20


def test_a_million_tiny_lines_below_the_cap_all_arrive(small: Daemon) -> None:
    with Beside(small) as beside:
        code = "import os\nfor _ in range(1_000_000): os.write(1, b'a\\n')"
        done = beside.python(code)
        assert (done.outcome.kind, done.outcome.exit_code) == ("exited", 0)
        assert done.stdout == b"a\n" * 1_000_000


# --- what does not want to end ------------------------------------------------------------------------------

STUBBORN = {
    "ignores every signal": "import signal, time\nfor number in signal.valid_signals() - {9, 19}:\n"
    " signal.signal(number, signal.SIG_IGN)\nprint(1, flush=True)\nwhile True: time.sleep(60)",
    "stops itself": "import os, signal\nprint(1, flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)",
    "stops its group": "import os, signal, time\nfor _ in range(3): os.fork()\nprint(1, flush=True)\n"
    "time.sleep(0.2)\nos.killpg(0, signal.SIGSTOP)",
    "double fork": "import os, signal, time\nif os.fork(): print(1, flush=True); time.sleep(60)\n"
    "os.setsid()\nif os.fork(): os._exit(0)\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(60)",
    "uninterruptible": "import ctypes, time\nprint(1, flush=True)\n"
    "child = ctypes.CDLL(None).syscall(56, 0x4000 | 17, 0, 0, 0, 0)\nwhile True: time.sleep(60)",  # a vfork that waits
}


@pytest.mark.parametrize("how", STUBBORN)
def test_what_does_not_want_to_end_ends_at_its_deadline_and_leaves_nothing(small: Daemon, how: str) -> None:
    with Beside(small) as beside:
        sandbox = beside.sandbox
        beside.python("print()")  # its launcher stays
        idle = sandbox.idle()
        done = beside.python(STUBBORN[how], deadline=1.5)
        assert done.stdout.startswith(b"1\n")  # it got as far as being stubborn
        assert (done.outcome.kind, done.outcome.signal) == ("timed_out", 9)
        small.wait(lambda: sandbox.number("pids", "pids.current") <= idle, 10)
        assert psutil.Process(sandbox.pid).status() in ("sleeping", "idle", "running")


def test_a_process_that_waits_uninterruptibly_really_does(small: Daemon) -> None:
    """The positive control of the last one: the kernel shows it in state D."""
    with Beside(small) as beside, beside.agent.stream("python_run", {"code": STUBBORN["uninterruptible"]}) as running:
        next(iter(running))

        def states() -> set[str]:
            found = set()
            for process in psutil.Process(beside.sandbox.pid).children(recursive=True):
                state = readable(process.pid, "stat").rpartition(b")")[2].split()
                found |= {state[0].decode()} if state else set()
            return found

        small.wait(lambda: "D" in states())
        running.cancel()
        assert running.result().outcome.kind == "cancelled"
        assert "D" not in states()
