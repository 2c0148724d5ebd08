"""Memory: the whole daemon idle, and each idle sandbox

PSS: what processes share is divided among them, so that the sum is what the host really gives.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import psutil
from common import emit, options, pids, pss_mb, quiet, serving, tool_image
from house import Daemon
from load import Agent

from runner.engine.cgroup import CgroupTree, parse_membership


def tree_mb(pid: int) -> float:
    """A process and all below it."""
    process = psutil.Process(pid)
    return sum(pss_mb(each.pid) for each in (process, *process.children(recursive=True)))


def shim_mb(pid: int) -> float:
    """The container runtime's own process beside a container."""
    parent = psutil.Process(pid).parent()
    return pss_mb(parent.pid) if parent is not None else 0.0


def charged_mb(pid: int) -> float:
    """What the kernel charges to the container: its processes, tmpfs, page tables."""
    groups = parse_membership(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
    if CgroupTree().version == 1:
        path = Path("/sys/fs/cgroup/memory") / groups["memory"].lstrip("/") / "memory.usage_in_bytes"
    else:
        path = Path("/sys/fs/cgroup") / groups[""].lstrip("/") / "memory.current"
    return int(path.read_text()) / 1e6


def daemon_mb(daemon: Daemon) -> dict[str, float]:
    """Each process of the daemon."""
    return {f"{name}_mb": pss_mb(pid) for name, pid in pids(daemon).items()}


def sleeper() -> tuple[float, float, float]:
    """The same image kept alive by docker run with a sleeping interpreter: its process, its shim, what is charged."""
    command = ["docker", "run", "-d", "--rm", "--network", "none", "--entrypoint", "python3", tool_image()]
    started = subprocess.run(
        [*command, "-c", "import json, signal; signal.pause()"], capture_output=True, text=True, check=True
    )
    container = started.stdout.strip()
    try:
        look = ["docker", "inspect", "-f", "{{.State.Pid}}", container]
        pid = int(subprocess.run(look, capture_output=True, text=True, check=True).stdout)
        time.sleep(1)
        return pss_mb(pid), shim_mb(pid), charged_mb(pid)
    finally:
        subprocess.run(["docker", "kill", container], check=True, stdout=subprocess.DEVNULL)


def main(*, quick: bool) -> None:
    """Idle daemon; then tasks whose sandboxes have served a call and wait; then a pool that has served none."""
    count = 2 if quick else 12
    with serving() as daemon:
        quiet(daemon)
        idle = daemon_mb(daemon)
        agents = [Agent(daemon.credentials()) for _ in range(count)]
        try:
            for agent in agents:
                agent.calls()(2)
            quiet(daemon)
            inside = daemon.sandbox_pids()
            served = statistics.median(map(tree_mb, inside))
            charged, shim = statistics.median(map(charged_mb, inside)), statistics.median(map(shim_mb, inside))
            busy = daemon_mb(daemon)
        finally:
            for agent in agents:
                agent.close()
    with serving(config=f"pool = {count}\n") as daemon:
        daemon.wait(lambda: len([pid for pid in daemon.sandbox_pids() if pid]) == count)
        quiet(daemon)
        pooled = statistics.median(map(tree_mb, daemon.sandbox_pids()))
    plain, plain_shim, plain_charged = sleeper()
    emit(
        "memory: whole daemon idle / per idle sandbox",
        figures={
            "daemon_idle_mb": sum(idle.values()),
            "sandbox_idle_mb": served,
            "sandbox_pooled_mb": pooled,
            "sandbox_charged_mb": charged,
            "shim_mb": shim,
            "daemon_per_task_mb": (sum(busy.values()) - sum(idle.values())) / count,
            **idle,
        },
        baseline={
            "sleeping_python_mb": plain,
            "sleeping_python_shim_mb": plain_shim,
            "sleeping_python_charged_mb": plain_charged,
        },
        ratios={"sandbox_over_sleeping_python": served / plain},
        goal={"daemon_idle_mb": "<= 200", "sandbox_idle_mb": "<= 13"},
        floor={"daemon_idle_mb": "<= 300", "sandbox_idle_mb": "<= 16"},
        guarantee=(
            "a sandbox that waits with one proven launcher after its first calls; pooled: none yet. sleeping python: "
            "the same image under docker run, an interpreter that waits"
        ),
        measured=(
            f"PSS from smaps_rollup, MB = 10^6 bytes, median of {count} sandboxes (more of them share more). charged: "
            "the container's own cgroup, with tmpfs and page tables. shim: the container runtime's process beside each "
            "container, the same for every container and not in the sandbox's figure"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
