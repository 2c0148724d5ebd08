"""Python tool in a launcher

`fs_list` of an empty workspace, a tool written in Python with a structured result, beside an interpreter's bare start.
"""

from __future__ import annotations

import statistics

from common import Cpu, emit, in_turns, options, serving, spawned, spread
from load import Agent

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c", "pass")


def main(*, quick: bool) -> None:
    """Measure in turns, print once."""
    with serving() as daemon:
        agent = Agent(daemon.credentials())
        try:
            listing, running = agent.calls("fs_list", path="."), agent.calls("python_run", code="pass")
            echo = agent.calls()
            for block in (listing, running, echo):
                block(10)
            (container,) = [item["Id"] for item in daemon.containers()]
            blocks = {
                "fs_list": (listing, 10),
                "python_run": (running, 5),
                "echo": (echo, 10),
                "interpreter": (spawned(PYTHON), 5),
                "docker_exec": (spawned(("docker", "exec", container, *PYTHON)), 1),
            }
            found = in_turns(blocks, 2 if quick else 30)
            count = 20 if quick else 200
            cpu = Cpu(daemon)
            listing(count)
            split = cpu.per_call(count)
        finally:
            agent.close()
    middle = {name: statistics.median(times) for name, times in found.items()}
    emit(
        "Python tool in a preloaded launcher",
        figures={
            **spread(found["fs_list"]),
            "python_run_median_ms": middle["python_run"],
            "echo_median_ms": middle["echo"],
            **split,
        },
        baseline={"interpreter_start_ms": middle["interpreter"], "docker_exec_python_ms": middle["docker_exec"]},
        ratios={
            "over_interpreter_start": middle["fs_list"] / middle["interpreter"],
            "over_echo": middle["fs_list"] / middle["echo"],
            "faster_than_docker_exec": middle["docker_exec"] / middle["fs_list"],
        },
        goal={"median_ms": "<= 2"},
        floor={"median_ms": "<= 4"},
        guarantee=(
            "isolation = launcher: a process of its own for each call, behind the walls of a jail that the task's "
            "calls of this tool profile share. interpreter start: python3 -I -S -c pass by posix_spawn, no isolation"
        ),
        measured=f"client to client with the async client; {len(found['fs_list'])} calls in turns with the baselines",
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
