"""What one task's flood costs another task: the latency of a neighbour's calls, idle and under each flood. Prints JSON.

    python tests/bench/neighbours.py [CALLS]

Every figure is the client's own clock around a warm `echo` of another task, so it holds whatever the neighbour meets:
gate's queue, the container's start of a process, the host's processors. `ratio` is against the idle round measured just
before that flood. Floods end by the ceilings of the profile they run in; a round whose flood ended begins it anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house import Daemon

from runner.client import Runner
from runner.client.errors import CallError
from runner.engine import image
from runner.engine.docker import Docker

ECHO = {"argv": ["/bin/echo", "x"]}
FLOODS = {
    "spin": "import os\nfor _ in range(4): os.fork()\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "memory": "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    "disk": "import os\nwhile True:\n with open('/workspace/f', 'wb') as file:\n"
    "  try:\n   while True: file.write(bytes(1 << 20))\n  except OSError: pass",
    "inodes": "import os\nwhile True:\n try:\n  for n in range(100000): open(f'/workspace/{n}', 'w').close()\n"
    " except OSError: pass\n for name in os.listdir('/workspace'): os.unlink('/workspace/' + name)",
    "descriptors": "import os\nwhile True:\n kept = []\n try:\n  while True: kept += os.pipe()\n except OSError: pass\n"
    " for number in kept: os.close(number)",
    "output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "lines": "import os\nwhile True: os.write(1, b'a\\n')",
    "stops": "import os, signal\nfor _ in range(20): os.fork()\nos.killpg(0, signal.SIGSTOP)",
}


def latencies(runner: Runner, count: int) -> dict[str, float]:
    """Milliseconds of `count` calls one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        runner.call("shell_run", ECHO)
        found.append((time.perf_counter() - began) * 1000)
    found.sort()
    return {"p50_ms": round(found[count // 2], 3), "p99_ms": round(found[min(count - 1, int(count * 0.99))], 3)}


@contextlib.contextmanager
def flooding(daemon: Daemon, code: str) -> Iterator[list[str]]:
    """A task that does nothing but this, until the block ends; how each of its calls ended."""
    ended: list[str] = []
    over = threading.Event()
    with daemon.connect() as attacker:
        attacker.call("shell_run", ECHO)

        def flood() -> None:
            while not over.is_set():
                with contextlib.suppress(CallError):
                    done = attacker.call("python_run", {"code": code}, deadline=10)
                    ended.append(done.outcome.kind)

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(0.5)  # it has begun
        try:
            yield ended
        finally:
            over.set()
            attacker.end_task()
            thread.join()


def main() -> None:
    """Measure in turn, print once."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    place = Path(tempfile.mkdtemp(prefix="toolrunner-bench-"))
    place.chmod(0o711)
    daemon = Daemon(place, image.build(Docker(), image.BASE))
    daemon.start()
    found = {}
    try:
        with daemon.connect() as neighbour:
            latencies(neighbour, max(10, count // 5))
            for name, code in FLOODS.items():
                idle = latencies(neighbour, count)
                with flooding(daemon, code) as ended:
                    under = latencies(neighbour, count)
                ratios = {key: round(under[f"{key}_ms"] / idle[f"{key}_ms"], 2) for key in ("p50", "p99")}
                found[name] = {"idle": idle, "under": under, "ratio": ratios, "ended": sorted(set(ended))}
    finally:
        daemon.stop()
        shutil.rmtree(place)
    machine = {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    print(json.dumps({"figures": found, "calls": count, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
