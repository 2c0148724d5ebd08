"""100,000 calls in one run: descriptors, memory, threads flat

Warm calls of two tasks; everything that could pile up is sampled as they go.
"""

from __future__ import annotations

import argparse
import statistics

import psutil
from common import ECHO, emit, options, percentile, pids, pss_mb, serving, slope, spawned
from house import Daemon
from load import Job, clients, rate

SAMPLES = 20


def sample(daemon: Daemon) -> dict[str, float]:
    """What the daemon and its sandboxes hold now."""
    own = [psutil.Process(pid) for pid in pids(daemon).values()]
    inside = [psutil.Process(pid) for pid in daemon.sandbox_pids()]
    inside += [child for process in inside for child in process.children(recursive=True)]
    return {
        "descriptors": sum(process.num_fds() for process in own),
        "threads": sum(process.num_threads() for process in own),
        "memory_mb": sum(pss_mb(process.pid) for process in own),
        "sandbox_descriptors": sum(process.num_fds() for process in inside),
        "sandbox_processes": len(inside),
        "sandbox_memory_mb": sum(pss_mb(process.pid) for process in inside),
        "files": sum(1 for path in daemon.place.rglob("*") if path.is_file() and "tile" not in path.parts),
        **{f"{name}_mb": pss_mb(pid) for name, pid in pids(daemon).items()},
    }


def main(*, quick: bool, calls: int) -> None:
    """Run in slices, sample after each."""
    samples = 4 if quick else SAMPLES
    each = max(1, calls // samples // 2)
    points: list[tuple[float, dict[str, float]]] = []
    rates, times = [], []
    spawns = statistics.median(spawned(ECHO)(200))
    with serving() as daemon:
        handed = [daemon.credentials(ttl_s=40_000) for _ in range(2)]
        for number in range(samples):
            with clients([Job(one, each, 4) for one in handed]) as ready:
                done = ready.go()
            rates.append(rate(done))
            times.append(percentile([one for found in done for one in found.times], 0.5))
            points.append(((number + 1) * each * 2, sample(daemon)))
    settled = points[len(points) // 2 :]
    first, last = settled[0][1], settled[-1][1]
    slopes = {
        f"{name}_per_1000_calls": slope([(at / 1000, held[name]) for at, held in settled])
        for name in ("descriptors", "threads", "memory_mb", "sandbox_memory_mb", "files", "gate_mb", "recorder_mb")
    }
    emit(
        "100,000 calls in one run: descriptors, memory, threads flat",
        figures={
            "calls": points[-1][0],
            "per_s": statistics.median(rates),
            "slowdown": statistics.median(times[len(times) // 2 :]) / statistics.median(times[: len(times) // 2]),
            **{f"{name}_growth": last[name] - first[name] for name in ("descriptors", "threads", "sandbox_processes")},
            "memory_growth_percent": (last["memory_mb"] / first["memory_mb"] - 1) * 100,
            "sandbox_memory_growth_percent": (last["sandbox_memory_mb"] / first["sandbox_memory_mb"] - 1) * 100,
            **slopes,
        },
        baseline={"posix_spawn_ms": spawns},
        ratios={},
        goal={"descriptors_growth": "<= 0", "threads_growth": "<= 0", "memory_growth_percent": "<= 2"},
        floor={"descriptors_growth": "<= 2", "threads_growth": "<= 1", "memory_growth_percent": "<= 5"},
        guarantee=(
            "the ledger grows by design, by two entries a call; what is remembered to refuse a repeated proof has a "
            "bound in time and in number. isolation = launcher"
        ),
        measured=(
            f"two client processes, 4 calls in flight each, {samples} slices with new connections; growth and slopes "
            "over the second half (before it caches fill). Files outside the ledger's tiles. The bounds are this "
            "bench's own: PERFORMANCE.md says flat"
        ),
        quick=quick,
        points=[{"calls": at, **{name: round(value, 3) for name, value in held.items()}} for at, held in points],
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, help="how many; 100,000, or 400 with --quick")


if __name__ == "__main__":
    found = options(__doc__ or "", _arguments)
    main(quick=found.quick, calls=found.calls or (400 if found.quick else 100_000))
