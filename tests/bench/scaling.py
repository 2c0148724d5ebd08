"""Cost per call at 1, 10 and 100 times the live tasks, rules outside the slice, and ledger entries

Three daemons side by side for each of the three, and the same warm call in turns: what it costs must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Callable, Iterator

from common import ECHO, add_rules, emit, in_turns, metered, options, pids, quiet, serving
from house import Daemon
from ledgers import extend
from load import Agent

from runner.recorder.keys import load_or_create_key

FACTORS = (1, 10, 100)
QUICK = (1, 100)
ROOM = "maximum = 128\nper_owner = 128\n[limits]\nconnections_per_uid = 256\n"


@contextlib.contextmanager
def with_tasks(count: int) -> Iterator[Daemon]:
    """`count` tasks that live, each with its sandbox and connection, besides the one that is measured."""
    with serving(ROOM) as daemon, contextlib.ExitStack() as stack:
        for _ in range(count):
            agent = Agent(daemon.credentials())
            stack.callback(agent.close)
            agent.calls()(1)
        yield daemon


@contextlib.contextmanager
def with_rules(count: int) -> Iterator[Daemon]:
    """`count` rules about a tool that is not called."""
    with serving(prepare=lambda folder: add_rules(folder, count, 'action == Action::"fs_write"')) as daemon:
        yield daemon


@contextlib.contextmanager
def with_entries(count: int) -> Iterator[Daemon]:
    """A ledger that holds `count` entries already."""
    with serving() as daemon:
        daemon.stop()
        folder = daemon.state / "ledger"
        owner = folder.stat()
        origin = (folder / "key.pub").read_text(encoding="ascii").split("+")[0]
        # Denials: gate has nothing to apply of them when it starts.
        extend(daemon.state, origin, load_or_create_key(folder, origin), count, planned=False)
        for path in (*folder.rglob("*"), *(daemon.state / "content").rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        daemon.start()
        yield daemon


# What grows, from how many on, and the same for a smoke run.
GROWING: dict[str, tuple[Callable[[int], contextlib.AbstractContextManager[Daemon]], int, int]] = {
    "tasks": (with_tasks, 1, 0),
    "rules": (with_rules, 20, 2),
    "entries": (with_entries, 10_000, 100),
}


def grow(what: str, *, quick: bool) -> dict[str, float]:
    """Median and CPU of gate and recorder per call, at each factor."""
    make, base, small = GROWING[what]
    counts = {factor: base * factor for factor in FACTORS}
    if quick:
        counts = {factor: small * factor if small else factor.bit_length() for factor in QUICK}
    used: dict[str, list[float]] = {str(factor): [] for factor in counts}
    blocks = {}
    with contextlib.ExitStack() as stack:
        daemons = {factor: stack.enter_context(make(count)) for factor, count in counts.items()}
        for factor, daemon in daemons.items():
            agent = Agent(daemon.credentials())
            stack.callback(agent.close)
            call = agent.calls(argv=list(ECHO))
            call(60)
            found = pids(daemon)
            blocks[str(factor)] = (metered(call, [found["gate"], found["recorder"]], used[str(factor)]), 20)
        for daemon in daemons.values():
            quiet(daemon)
        times = in_turns(blocks, 3 if quick else 40)
    figures: dict[str, float] = {}
    for factor, count in counts.items():
        figures[f"{what}_{factor}x"] = count
        figures[f"{what}_{factor}x_median_ms"] = statistics.median(times[str(factor)])
        figures[f"{what}_{factor}x_cpu_us"] = statistics.median(used[str(factor)])
    return figures


def main(*, quick: bool, only: list[str]) -> None:
    """Each in turn, then the ratios."""
    figures: dict[str, float] = {}
    for what in only or GROWING:
        figures |= grow(what, quick=quick)
    ratios = {
        f"{what}_{factor}x_{unit}": figures[f"{what}_{factor}x_{name}"] / figures[f"{what}_1x_{name}"]
        for what in only or GROWING
        for factor in (QUICK if quick else FACTORS)[1:]
        for unit, name in (("cpu", "cpu_us"), ("time", "median_ms"))
    }
    judged = [f"{what}_100x_cpu" for what in only or GROWING]
    emit(
        "cost per call at 1×, 10×, 100× tasks, rules outside the slice, ledger entries",
        figures=figures,
        baseline={},
        ratios=ratios,
        goal=dict.fromkeys(judged, "<= 1.1"),
        floor=dict.fromkeys(judged, "<= 1.25"),
        guarantee="isolation = launcher, warm, in a task of its own; everything on",
        measured=(
            "three daemons side by side, the same call in turns, one at a time; cpu: gate and recorder per call, from "
            "schedstat, which a noisy host moves less than time. Every live task has a sandbox and a connection. The "
            "bounds are this bench's own: PERFORMANCE.md says that cost must not grow"
        ),
        quick=quick,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", choices=tuple(GROWING), help="only this one; repeatable")


if __name__ == "__main__":
    given = options(__doc__ or "", _arguments)
    main(quick=given.quick, only=given.only or [])
