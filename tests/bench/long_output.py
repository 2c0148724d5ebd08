"""Long output: MB/s from a tool to its client, memory flat

One call writes lines of text as fast as it may; the client takes them and throws them away; the ledger's store keeps
them. Memory of the daemon and of the sandbox is sampled meanwhile.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common import ceilings, emit, networked, options, pids, pss_mb
from house import Daemon
from load import Agent

LINE = "the quick brown fox jumps over the lazy dog, again and again, 0123456789"
PIECE = 1 << 16


def command(size: int) -> list[str]:
    """Writes `size` bytes of lines."""
    return ["sh", "-c", f"yes '{LINE}' | head -c {size}"]


async def streamed(agent: Agent, size: int) -> float:
    """MB/s of one call."""
    held, began = 0, time.perf_counter()
    async with agent.runner.stream("shell_run", {"argv": command(size)}) as stream:
        async for chunk in stream:
            held += len(chunk.data)
        done = await stream.result()
    assert done.ok, done.summary()
    assert held == size
    return size / 1e6 / (time.perf_counter() - began)


def piped(argv: list[str], size: int) -> float:
    """MB/s of a process of this host into a reader that does nothing with it."""
    held, began = 0, time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read1(PIECE):  # type: ignore[attr-defined]
            held += len(data)
    assert held == size
    return size / 1e6 / (time.perf_counter() - began)


@contextmanager
def watched(daemon: Daemon) -> Iterator[dict[str, list[float]]]:
    """Memory of each process in MB, twenty times a second, and once at the end."""
    (inside,) = daemon.sandbox_pids()
    targets = {**pids(daemon), "supervisor": inside}
    found: dict[str, list[float]] = {name: [] for name in targets}
    over = threading.Event()

    def sample() -> None:
        going = True
        while going:
            going = not over.wait(0.05)
            for name, pid in targets.items():
                found[name].append(pss_mb(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def main(*, quick: bool) -> None:
    """Calls and pipes in turns; growth is what the last call's samples have above the first's."""
    size, rounds = (16 << 20, 2) if quick else (256 << 20, 4)
    rates, plain, pipes, execs, memory = [], [], [], [], []
    most = {"output": '"4GiB"', "output_rate": '"4GiB"', "wall": '"10m"'}
    tools: dict[str, Any] = {"shell_run": {}, "key_run": {}, "egress": {}}
    with networked(prepare=lambda folder: ceilings(folder, "net", **most)) as (daemon, _):
        agent = Agent(daemon.credentials(profile="net", tools=tools))
        try:
            plain += [agent.run(streamed(agent, size)) for _ in range(rounds)]  # buffers grow to their bounds once
            (container,) = [item["Id"] for item in daemon.containers()]
            assert agent.run(agent.runner.call("key_run", {"argv": ["true"]})).ok  # the task has a secret from now on
            for _ in range(rounds):
                rates.append(agent.run(streamed(agent, size)))
                with watched(daemon) as found:  # by itself: looking costs half a core
                    agent.run(streamed(agent, size))
                memory.append(found)
                pipes.append(piped(command(size), size))
                execs.append(piped(["docker", "exec", container, *command(size)], size))
        finally:
            agent.close()
    peaks = [sum(max(samples) for samples in found.values()) for found in memory]
    emit(
        "long output, memory flat",
        figures={
            "mb_per_s": statistics.median(rates),
            "mb_per_s_without_secret": statistics.median(plain),
            "memory_growth_mb": peaks[-1] - peaks[0],
            "memory_peak_mb": max(peaks),
            "output_mb_per_call": size / 1e6,
        },
        baseline={"pipe_mb_per_s": statistics.median(pipes), "docker_exec_mb_per_s": statistics.median(execs)},
        ratios={
            "of_pipe": statistics.median(rates) / statistics.median(pipes),
            "of_docker_exec": statistics.median(rates) / statistics.median(execs),
        },
        goal={"mb_per_s": ">= 600", "memory_growth_mb": "<= 2"},
        floor={"mb_per_s": ">= 200", "memory_growth_mb": "<= 8"},
        guarantee=(
            "every byte is searched for an issued secret and a canary in all their forms and for the package's "
            "patterns, cleaned, digested and kept in the content store before it is delivered, under credit"
        ),
        measured=(
            f"{rounds} calls of {size >> 20} MiB of text, client to client, in turns with the same command into a pipe "
            "and under docker exec; MB = 10^6 bytes. Memory: PSS of the daemon's processes and the supervisor during "
            f"{rounds} calls more, the last one's peak less the first's; its bounds are this bench's own "
            "(PERFORMANCE.md says flat)"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
