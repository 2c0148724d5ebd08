"""What a revocation takes, from the operator's word to the last process

A call runs on a token three levels below the root; its middle one is revoked. Then four tasks of an owner with a call
each. Measured is when the kernel says that the call's process is gone, and when the operator is answered.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import statistics
import threading

from common import clock, emit, options, percentile, serving, spawned, spread
from house import Daemon, programs

from runner.client import Credentials, Runner, attenuate, connect
from runner.token import credentials
from runner.token.issue import own_claims
from runner.wire import admin

WAITS = {"argv": ["sh", "-c", "echo go; exec sleep 300"]}
TASKS = 4


def dead_after(daemon: Daemon, message: admin.Revoke, processes: list[int]) -> tuple[float, float]:
    """Milliseconds until the last of these host processes was gone, and until the operator was answered."""
    pidfds = [os.pidfd_open(pid) for pid in processes]
    gone: list[float] = []

    def watch() -> None:
        waiting = set(pidfds)
        while waiting:
            ready, _, _ = select.select(waiting, [], [])
            waiting -= set(ready)
        gone.append(clock())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = clock()
    daemon.ask(message)
    answered = clock()
    watcher.join()
    for pidfd in pidfds:
        os.close(pidfd)
    return gone[0] - began, answered - began


def begin(stack: contextlib.ExitStack, runner: Runner) -> None:
    """A call whose process exists."""
    next(iter(stack.enter_context(runner.stream("shell_run", WAITS))))


def middle(daemon: Daemon, lead: Credentials) -> tuple[float, float]:
    """One round: a fresh middle token, a call on a leaf below it, the middle one revoked."""
    editor = attenuate(["shell_run"], credentials=lead, depth=1)
    reader = attenuate(["shell_run"], credentials=editor)
    with connect(credentials=reader) as runner, contextlib.ExitStack() as stack:
        begin(stack, runner)
        processes = [program.pid for pid in daemon.sandbox_pids() for program in programs(pid)]
        assert len(processes) == 1
        return dead_after(daemon, admin.Revoke(kind="token", value=own_claims(editor.leaf).jti, why="bench"), processes)


def owner(daemon: Daemon) -> tuple[float, float]:
    """One round: four tasks of one owner, a call in each, the owner revoked."""
    name = f"o-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        for _ in range(TASKS):
            begin(stack, stack.enter_context(daemon.connect(owner=name)))
        processes = [program.pid for pid in daemon.sandbox_pids() for program in programs(pid)]
        assert len(processes) == TASKS
        return dead_after(daemon, admin.Revoke(kind="owner", value=name, why="bench"), processes)


def main(*, quick: bool) -> None:
    """Measure, then print once."""
    spawn = spawned(("/bin/true",))
    with serving(config=f"pool = {TASKS}\n") as daemon:
        root = credentials.parse(daemon.credentials(depth=3, ttl_s=7200))
        lead = attenuate(["shell_run"], credentials=root, depth=2)
        with daemon.connect(credentials.encode(root)) as boss:  # its task lives on
            boss.call("shell_run", {"argv": ["true"]})
            rounds = [middle(daemon, lead) for _ in range(3 if quick else 200)]
            boss.end_task()
        owners = [owner(daemon) for _ in range(1 if quick else 25)]
    dead, answered = ([pair[which] for pair in rounds] for which in (0, 1))
    together = [pair[0] for pair in owners]
    emit(
        "revocation of a running call",
        figures={
            **spread(dead, "dead_"),
            "dead_max_ms": max(dead),
            "answered_p99_ms": percentile(answered, 0.99),
            "owner_of_four_dead_median_ms": statistics.median(together),
            "owner_of_four_dead_max_ms": max(together),
        },
        baseline={"posix_spawn_ms": statistics.median(spawn(3 if quick else 30))},
        ratios={},
        goal={"dead_p99_ms": "<= 1000", "owner_of_four_dead_max_ms": "<= 1000"},
        floor={"dead_p99_ms": "<= 1000"},
        guarantee="the entry is on disk before anything is stopped; no call begins on the token from then on",
        measured=f"{len(dead)} revocations of a middle token, {len(together)} of an owner with {TASKS} tasks",
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
