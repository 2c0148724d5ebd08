"""Throughput with 32 calls in flight, one task and four tasks

Four client processes with eight calls in flight each: all of one task, or each of a task of its own.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from common import BWRAP, ECHO, Cpu, ceilings, emit, end_tasks, options, percentile, serving
from house import Daemon
from load import Job, clients, rate

CLIENTS, IN_FLIGHT = 4, 8


def room(folder: Path) -> None:
    """One task shall have all 32 calls at once, on both cores."""
    ceilings(folder, concurrent_calls="32", cpus="2.0", pids="256")


def run(daemon: Daemon, tasks: int, each: int, many: int) -> tuple[float, float, dict[str, float]]:
    """Calls per second, their p99 in ms, and CPU per call by process."""
    handed = [daemon.credentials() for _ in range(tasks)]
    jobs = [Job(handed[number % tasks], each, IN_FLIGHT) for number in range(many)]
    with clients(jobs) as ready:
        cpu = Cpu(daemon)
        done = ready.go()
        split = cpu.per_call(each * many)
    end_tasks(daemon)
    split["clients_cpu_us"] = sum(found.cpu_s for found in done) / (each * many) * 1e6
    return rate(done), percentile([took for found in done for took in found.times], 0.99), split


def commands(argv: tuple[str, ...], each: int, many: int) -> float:
    """The same load as processes of this host: starts per second of as many processes as there are clients."""
    with clients([Job(b"", each, 1, arguments={"argv": argv}, kind="command")] * many) as ready:
        return rate(ready.go())


def main(*, quick: bool) -> None:
    """Rounds in turns; the median of each counts."""
    each, rounds, many = (60, 1, 2) if quick else (1000, 3, CLIENTS)
    found: dict[str, list[tuple[float, float, dict[str, float]]]] = {"one_task": [], "four_tasks": [], "default": []}
    spawns, jails = [], []
    with serving(prepare=room) as raised, serving() as plain:
        for _ in range(rounds):
            found["one_task"].append(run(raised, 1, each, many))
            found["four_tasks"].append(run(raised, many, each, many))
            found["default"].append(run(plain, 1, each // 2, many))
            spawns.append(commands(ECHO, each, many))
            if shutil.which("bwrap"):
                jails.append(commands(BWRAP, max(10, each // 10), many))
    middle = {name: statistics.median(one[0] for one in all_) for name, all_ in found.items()}
    figures: dict[str, float] = {}
    for name in ("one_task", "four_tasks"):
        figures[f"{name}_per_s"] = middle[name]
        figures[f"{name}_p99_ms"] = statistics.median(one[1] for one in found[name])
    figures["one_task_as_shipped_per_s"] = middle["default"]
    split = [one[2] for one in found["one_task"]]
    figures |= {name: statistics.median(each_[name] for each_ in split) for name in split[0]}
    baseline = {"posix_spawn_per_s": statistics.median(spawns)}
    ratios = {f"{name}_over_posix_spawn": middle[name] / baseline["posix_spawn_per_s"] for name in found}
    if jails:
        baseline["bwrap_per_s"] = statistics.median(jails)
        ratios |= {f"{name}_over_bwrap": middle[name] / baseline["bwrap_per_s"] for name in found}
    emit(
        "throughput, 32 in flight, one task / four tasks",
        figures=figures,
        baseline=baseline,
        ratios=ratios,
        goal={"one_task_per_s": ">= 2000", "four_tasks_per_s": ">= 2000"},
        floor={"one_task_per_s": ">= 800", "four_tasks_per_s": ">= 1200"},
        guarantee=(
            "isolation = launcher: one jail per call at a time, cleared after it; every call with its decision, plan "
            "and outcome in the ledger. posix_spawn isolates nothing; bwrap makes fresh namespaces"
        ),
        measured=(
            f"{many} client processes (the package's async client, signing as it goes), {IN_FLIGHT} in flight each, "
            f"{each * many} calls a round; clients and daemon share the machine's cores. The task profile is the "
            "default with concurrent_calls 32, cpus 2.0, pids 256; as_shipped is the default itself (4 at once, 1 core)"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
