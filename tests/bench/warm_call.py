"""A warm jailed `echo`, client to client, against the floors and peers measured in the same run. Prints JSON.

    python tests/bench/warm_call.py [CALLS]

Guarantees differ: `launcher` is one jail per (task, tool profile) cleared between calls; `call` would be a fresh one;
docker exec enters a container without a jail; bwrap makes fresh namespaces; posix_spawn isolates nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house import Daemon

from runner.engine import image
from runner.engine.docker import Docker

ECHO = ["/bin/echo", "x"]
BWRAP = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", *ECHO]


def timed(act: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of `count` runs, after a tenth of them as warm-up."""
    for _ in range(max(1, count // 10)):
        act()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1000)
    return found


def spawn(command: list[str]) -> Callable[[], object]:
    """Run a command and wait, by posix_spawn, with its output thrown away."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    program = shutil.which(command[0]) or command[0]
    actions = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    return lambda: os.waitpid(os.posix_spawn(program, command, os.environ, file_actions=actions), 0)


def row(times: list[float]) -> dict[str, float]:
    """Median and tail."""
    ordered = sorted(times)
    return {"median_ms": round(statistics.median(ordered), 3), "p95_ms": round(ordered[int(len(ordered) * 0.95)], 3)}


def main() -> None:
    """Measure in turn, print once."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    place = Path(tempfile.mkdtemp(prefix="toolrunner-bench-"))
    place.chmod(0o711)
    daemon = Daemon(place, image.build(Docker(), image.BASE))
    daemon.start()
    try:
        found: dict[str, dict[str, float]] = {"posix_spawn": row(timed(spawn(ECHO), count))}
        with daemon.connect() as runner:
            began = time.perf_counter()
            runner.call("shell_run", {"argv": ECHO})
            found["first call of a task, no pool"] = row([(time.perf_counter() - began) * 1000] * 20)
            found["warm call"] = row(timed(lambda: runner.call("shell_run", {"argv": ECHO}), count))
            (container,) = [item["Id"] for item in daemon.containers()]
            if shutil.which("docker"):
                found["docker exec"] = row(timed(spawn(["docker", "exec", container, *ECHO]), max(10, count // 20)))
            found["python tool"] = row(timed(lambda: runner.call("fs_list", {"path": "."}), max(20, count // 5)))
        if shutil.which("bwrap"):
            found["bwrap"] = row(timed(spawn(BWRAP), max(20, count // 5)))
    finally:
        daemon.stop()
        shutil.rmtree(place)
    warm = found["warm call"]["median_ms"]
    ratios = {f"warm call / {name}": round(warm / figure["median_ms"], 3) for name, figure in found.items()}
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    print(json.dumps({"figures": found, "ratios": ratios, "calls": count, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
