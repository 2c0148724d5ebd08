"""What every bench shares: a daemon of its own, clocks, baselines, facts of the machine, and the row it prints.

A bench prints one JSON object. `figures`, `baseline` and `ratios` are numbers whose names end in their unit; `goal` and
`floor` bound some of them (`"median_ms": "<= 1.0"`), and `met` says which of the two holds in full. Baselines run in
turns with what is measured, so that a noisy host slows both: ratios say more than times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import operator
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house import Daemon
from reached import another
from soak.service import Service

from runner.cli.init import lay_out
from runner.engine import image
from runner.engine.cgroup import CgroupTree, parse_membership
from runner.engine.docker import Docker
from runner.wire import admin

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ("gate", "engine", "recorder", "egress", "broker")
ECHO = ("/bin/echo", "x")
BWRAP = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", *ECHO)
LONG_S = 7200  # how long a bench's token is good for

Block = Callable[[int], list[float]]  # do something this often; the milliseconds of each time


# --- the row --------------------------------------------------------------------------------------------------


def options(text: str, arguments: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """The command line of a bench: `--quick` for a smoke run, and what `arguments` adds."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: seconds, and figures that prove nothing")
    if arguments is not None:
        arguments(parser)
    found = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that `finally` cleans up
    return found


def holds(value: float, bound: str) -> bool:
    """Whether `value` keeps a bound such as `<= 1.5`."""
    sign, number = bound.split()
    return {"<=": operator.le, ">=": operator.ge}[sign](value, float(number))


def met(found: Mapping[str, float], goal: Mapping[str, str], floor: Mapping[str, str]) -> str:
    """`goal`, `floor` or `no`: the better of the two whose every bound holds; "" where there is neither."""
    if not goal and not floor:
        return ""
    for name, bounds in (("goal", goal), ("floor", floor)):
        if bounds and all(holds(found[figure], bound) for figure, bound in bounds.items()):
            return name
    return "no"


def emit(
    row: str,
    *,
    figures: Mapping[str, float],
    baseline: Mapping[str, float],
    ratios: Mapping[str, float],
    goal: Mapping[str, str],
    floor: Mapping[str, str],
    guarantee: str,
    measured: str,
    quick: bool,
    **more: Any,
) -> None:
    """Print the row. `guarantee` is what the measured thing promises, `measured` how the figure was taken."""
    rounded = [{name: _short(value) for name, value in part.items()} for part in (figures, baseline, ratios)]
    found = {
        "row": row,
        "figures": rounded[0],
        "baseline": rounded[1],
        "ratios": rounded[2],
        "goal": dict(goal),
        "floor": dict(floor),
        "met": met({**rounded[0], **rounded[2]}, goal, floor),
        "guarantee": guarantee,
        "measured": measured,
        "quick": quick,
        "machine": machine(),
        **more,
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _short(value: float) -> float:
    """Four digits that count."""
    if not value or not math.isfinite(value):
        return value
    digits = 3 - math.floor(math.log10(abs(value)))
    rounded = round(value, max(digits, 0))
    return int(rounded) if digits <= 0 else rounded


def machine() -> dict[str, Any]:
    """Where the figures come from: they mean nothing elsewhere."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    docker = Docker()
    try:
        facts = docker.facts()
    finally:
        docker.close()
    commit = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu,
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "docker": facts.docker,
        "runtime": f"{facts.default_runtime} {facts.runc}",
        "cgroup": CgroupTree().version,
        "load": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


# --- numbers --------------------------------------------------------------------------------------------------


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which this share of them lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def spread(values: Sequence[float], prefix: str = "", unit: str = "_ms") -> dict[str, float]:
    """Median and tail, named for a row; and the tenth percentile, which a noisy host moves least."""
    parts = {"median": statistics.median(values)}
    parts |= {f"p{round(share * 100)}": percentile(values, share) for share in (0.1, 0.95, 0.99)}
    return {f"{prefix}{name}{unit}": value for name, value in parts.items()}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much the second grows while the first grows by one: least squares."""
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope


# --- time -----------------------------------------------------------------------------------------------------


def clock() -> float:
    """Milliseconds."""
    return time.perf_counter() * 1000


def repeat(act: Callable[[], object]) -> Block:
    """A block that times each run of `act`."""

    def block(count: int) -> list[float]:
        found = []
        for _ in range(count):
            began = clock()
            act()
            found.append(clock() - began)
        return found

    return block


def in_turns(blocks: Mapping[str, tuple[Block, int]], rounds: int) -> dict[str, list[float]]:
    """Each round runs every block its number of times, in an order that rotates; one round before is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            block, count = blocks[name]
            times = block(count)
            if number >= 0:
                found[name] += times
    return found


def spawned(command: Sequence[str]) -> Block:
    """A block that runs a command by posix_spawn and waits, output thrown away: nothing starts a process for less."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    program = shutil.which(command[0]) or command[0]
    actions = [(os.POSIX_SPAWN_DUP2, null, target) for target in (0, 1, 2)]

    def act() -> None:
        status = os.waitpid(os.posix_spawn(program, command, os.environ, file_actions=actions), 0)[1]
        assert status == 0, f"{' '.join(command)}: status {status}"

    return repeat(act)


def peers(container: str, *, each: int) -> dict[str, tuple[Block, int]]:
    """The baselines of a small jailed command, for `in_turns`: process start alone, bwrap, docker exec."""
    found = {"posix_spawn": (spawned(ECHO), each)}
    if shutil.which("bwrap"):
        found["bwrap"] = (spawned(BWRAP), max(1, each // 4))
    if shutil.which("docker"):
        found["docker_exec"] = (spawned(("docker", "exec", container, *ECHO)), 1)
    return found


# --- what processes use ---------------------------------------------------------------------------------------


def pids(daemon: Daemon) -> dict[str, int]:
    """The daemon's processes by name."""
    return {"parent": daemon.pid, **{name: daemon.child(name).pid for name in PROCESSES}}


def cpu_ns(pid: int) -> int:
    """CPU time of a process's living threads: to the nanosecond, where /proc/PID/stat counts ticks."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def sandbox_cpu_ns(pid: int) -> int:
    """CPU time of everything that ever ran in the container of this PID 1."""
    groups = parse_membership(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
    root = Path("/sys/fs/cgroup")
    if CgroupTree().version == 1:
        return int((root / "cpuacct" / groups["cpuacct"].lstrip("/") / "cpuacct.usage").read_text())
    words = (root / groups[""].lstrip("/") / "cpu.stat").read_text().split()
    return int(words[words.index("usage_usec") + 1]) * 1000


class Cpu:
    """CPU of the daemon's processes and its sandboxes since this was made, per call."""

    def __init__(self, daemon: Daemon) -> None:
        self._pids, self._inside = pids(daemon), daemon.sandbox_pids()
        self._before = self._read()

    def _read(self) -> dict[str, int]:
        found = {name: cpu_ns(pid) for name, pid in self._pids.items()}
        return {**found, "sandboxes": sum(map(sandbox_cpu_ns, self._inside))}

    def per_call(self, calls: int) -> dict[str, float]:
        """Microseconds of each."""
        after = self._read()
        return {f"{name}_cpu_us": (after[name] - self._before[name]) / calls / 1000 for name in after}


def metered(block: Block, processes: list[int], used: list[float]) -> Block:
    """The same block; microseconds of these processes' CPU per call are added to `used`."""

    def run(count: int) -> list[float]:
        before = sum(map(cpu_ns, processes))
        times = block(count)
        used.append((sum(map(cpu_ns, processes)) - before) / count / 1000)
        return times

    return run


def pss_mb(pid: int) -> float:
    """Memory of a process, what it shares divided by who shares it, in MB (10^6)."""
    for line in _lines(f"/proc/{pid}/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


# --- the daemon -----------------------------------------------------------------------------------------------


def tool_image() -> str:
    """The id of this checkout's tool image, built if it is not there."""
    docker = Docker()
    try:
        return image.build(docker, os.environ.get("TOOLRUNNER_BASE", image.BASE))
    finally:
        docker.close()


@contextlib.contextmanager
def serving(config: str = "", prepare: Callable[[Path], None] | None = None) -> Iterator[Daemon]:
    """A daemon of this bench alone; nothing of it is left. `config` continues [sandboxes]; `prepare` edits a copy of
    the package's catalogue."""
    place = Path(tempfile.mkdtemp(prefix="toolrunner-bench-"))
    place.chmod(0o711)
    try:
        catalogue = place / "catalogue" if prepare else None
        if catalogue is not None and prepare is not None:
            lay_out(catalogue)
            prepare(catalogue)
        daemon = Daemon(place, tool_image(), config=config, catalogue=catalogue)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()
            if (daemon.state / "instance").exists():  # it got as far as having containers
                daemon.wait(lambda: not daemon.containers())
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def networked(config: str = "", prepare: Callable[[Path], None] | None = None) -> Iterator[tuple[Daemon, Service]]:
    """The same with tools that reach a service on loopback, which is a thread of this process (`tests/reached.py`):
    `net_run` has a network, `key_run` a credential too, and `fresh_run` is the same tool without either."""
    with tempfile.TemporaryDirectory(prefix="toolrunner-bench-") as folder:
        Path(folder).chmod(0o711)
        service = Service(Path(folder))
        another(service.folder, "fresh_run", "net_run", network=False)
        if prepare is not None:
            prepare(service.folder)
        place = Path(tempfile.mkdtemp(prefix="toolrunner-bench-"))
        place.chmod(0o711)
        daemon = Daemon(place, tool_image(), config=f"{config}\n{service.config}", catalogue=service.folder)
        try:
            daemon.start()
            service.open(daemon)
            yield daemon, service
        finally:
            daemon.stop()
            if (daemon.state / "instance").exists():
                daemon.wait(lambda: not daemon.containers())
            service.close()
            shutil.rmtree(place)


def end_tasks(daemon: Daemon) -> None:
    """End every task and wait until no sandbox is left but those of the pool."""
    for task in daemon.ask(admin.ListTasks()).tasks:
        daemon.ask(admin.EndTask(task=task.task, why="the bench goes on"))
    daemon.wait(lambda: daemon.ask(admin.Status()).sandboxes == 0)


def quiet(daemon: Daemon) -> None:
    """Wait until the daemon does nothing any more: pools are filled, sandboxes are gone."""
    watched = [pid for name, pid in pids(daemon).items() if name != "parent"]
    calm = 0
    while calm < 5:
        before = sum(map(cpu_ns, watched))
        time.sleep(0.1)
        calm = calm + 1 if sum(map(cpu_ns, watched)) - before < 2_000_000 else 0


# --- catalogues -----------------------------------------------------------------------------------------------


def ceilings(folder: Path, profile: str = "default", **values: str) -> None:
    """Change ceilings of a task profile; `"64"` for numbers, `'"1GiB"'` for texts."""
    path = folder / "profiles" / f"{profile}.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    for name, value in values.items():
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[at] = f"{name} = {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fresh_jail_tool(folder: Path) -> None:
    """Add `shell_fresh`: shell_run, but each call behind a new jail that is thrown away after it."""
    profile = (folder / "profiles" / "compute.toml").read_text(encoding="utf-8")
    profile = profile.replace('name = "compute"', 'name = "fresh"').replace('= "launcher"', '= "call"')
    (folder / "profiles" / "fresh.toml").write_text(profile, encoding="utf-8")
    manifest = (folder / "tools" / "shell_run" / "tool.toml").read_text(encoding="utf-8")
    manifest = manifest.replace('"shell_run"', '"shell_fresh"').replace('"compute"', '"fresh"')
    (folder / "tools" / "shell_fresh").mkdir()
    (folder / "tools" / "shell_fresh" / "tool.toml").write_text(manifest, encoding="utf-8")
    task = folder / "profiles" / "default.toml"
    task.write_text(task.read_text(encoding="utf-8").replace('tools = ["', 'tools = ["shell_fresh", "', 1))
    permit = '\n@id("run-fresh")\npermit (principal, action == Action::"shell_fresh", resource);\n'
    (folder / "policies" / "bench.cedar").write_text(permit, encoding="utf-8")


def add_rules(folder: Path, count: int, action: str) -> None:
    """`count` forbids that never match, over an action scope such as `action == Action::"fs_write"`."""
    rules = [
        f'@id("bench-{count}-{number}")\nforbid (principal == Agent::"nobody-{number}", {action}, resource)\n'
        f'when {{ context.session.denied > {number} && principal.owner == "o{number}" }};\n'
        for number in range(count)
    ]
    (folder / "policies" / f"bench_{len(rules)}.cedar").write_text("".join(rules), encoding="utf-8")
