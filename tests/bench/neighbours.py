"""What one task's floods cost another task's calls

A warm `echo` of one task, idle and while another task floods what they share: processors, processes, memory, disk,
descriptors, output. Floods end by the ceilings of the profile they run in; one that ended is begun anew.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from common import ECHO, Block, emit, options, percentile, repeat, serving, spawned
from house import Daemon

from runner.client.errors import CallError

ARGUMENTS = {"argv": list(ECHO)}
FLOODS = {
    "spin": "import os\nfor _ in range(4): os.fork()\nwhile True: pass",
    "fork_bomb": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
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


@contextlib.contextmanager
def flooding(daemon: Daemon, code: str) -> Iterator[set[str]]:
    """A task that does nothing but this until the block ends; the ways in which its calls ended."""
    ended: set[str] = set()
    with daemon.connect() as attacker:
        begun, over = threading.Event(), threading.Event()

        def flood() -> None:
            while not over.is_set():
                with contextlib.suppress(CallError), attacker.stream("python_run", {"code": code}, deadline=10) as run:
                    begun.set()
                    ended.add(run.result().outcome.kind)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            assert begun.wait(30)
            yield ended
        finally:
            over.set()
            attacker.end_task()
            thread.join()


def times(block: Block, count: int) -> dict[str, float]:
    """Median and tail of so many calls."""
    found = block(count)
    return {"median": percentile(found, 0.5), "p99": percentile(found, 0.99)}


def main(*, quick: bool) -> None:
    """Each flood beside an idle round of its own, taken just before it."""
    count, rounds = (20, 1) if quick else (200, 3)
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    ends: dict[str, list[str]] = {}
    with serving() as daemon, daemon.connect() as neighbour:
        call = repeat(lambda: neighbour.call("shell_run", ARGUMENTS))
        call(50)
        for name, code in FLOODS.items():
            taken = []
            for _ in range(rounds):
                idle = times(call, count)
                with flooding(daemon, code) as ended:
                    under = times(call, count)
                taken.append({each: (under[each] / idle[each], under[each]) for each in idle})
                ends[name] = sorted({*ends.get(name, ()), *ended})
            for each in ("median", "p99"):
                ratio, figure = sorted(round_[each] for round_ in taken)[rounds // 2]
                figures[f"{name}_{each}_ms"], ratios[f"{name}_{each}"] = figure, ratio
        baseline = {"idle_median_ms": idle["median"], "posix_spawn_ms": percentile(spawned(ECHO)(count), 0.5)}
    for each in ("median", "p99"):
        ratios[f"worst_{each}"] = max(value for name, value in ratios.items() if name.endswith(each))
    emit(
        "neighbours' latency under a flood, over its idle value",
        figures=figures,
        baseline=baseline,
        ratios=ratios,
        goal={"worst_median": "<= 2", "worst_p99": "<= 2"},
        floor={},
        guarantee="isolation = launcher; each flood runs at full strength within its profile's ceilings",
        measured=(
            f"the client's clock around {count} warm calls of a neighbour, idle and then under the flood, the middle "
            f"of {rounds} rounds; everybody on this machine's processors"
        ),
        quick=quick,
        ended=ends,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
