"""Both isolations side by side: one warm task, the same `echo`, in turns with each other and with the baselines."""

from __future__ import annotations

import statistics
from typing import Any

from common import ECHO, Cpu, emit, fresh_jail_tool, peers, repeat, serving, spread
from common import in_turns as measured_in_turns
from house import EVERY_TOOL
from load import Agent

GUARANTEES = {
    "launcher": (
        "launcher: Landlock, seccomp, limits and a signal scope that the calls of one task and tool profile share, one "
        "after the other; everything a call started is killed before the next begins. Not a fresh jail"
    ),
    "call": (
        "call: the same walls built anew for each call and thrown away after it, inside the task's warm container. "
        "Not a fresh container"
    ),
}
PEERS = "posix_spawn isolates nothing; bwrap makes fresh namespaces; docker exec enters a container without a jail"


def run(row: str, judged: str, goal: dict[str, str], floor: dict[str, str], *, quick: bool) -> None:
    """Measure both and print the row of the one that is judged."""
    rounds = 3 if quick else 30
    with serving(prepare=fresh_jail_tool) as daemon:
        handed = daemon.credentials(tools={name: {} for name in (*EVERY_TOOL, "shell_fresh")})
        agent = Agent(handed)
        try:
            launcher, call = agent.calls("shell_run", argv=list(ECHO)), agent.calls("shell_fresh", argv=list(ECHO))
            launcher(50)
            call(10)
            (container,) = [item["Id"] for item in daemon.containers()]
            with daemon.connect(handed) as plain:
                blocks = {
                    "launcher": (launcher, 20),
                    "call": (call, 10),
                    "sync_client": (repeat(lambda: plain.call("shell_run", {"argv": list(ECHO)})), 10),
                    **peers(container, each=10),
                }
                found = measured_in_turns(blocks, rounds)
            cpu = Cpu(daemon)
            count = 50 if quick else 500
            {"launcher": launcher, "call": call}[judged](count)
            split = cpu.per_call(count)
        finally:
            agent.close()
    _print(row, judged, found, split, goal=goal, floor=floor, quick=quick)


def _print(row: str, judged: str, found: dict[str, list[float]], split: dict[str, float], **bounds: Any) -> None:
    middle = {name: statistics.median(times) for name, times in found.items()}
    other = "call" if judged == "launcher" else "launcher"
    figures = {**spread(found[judged]), **split}
    if judged == "launcher":
        figures["sync_client_median_ms"] = middle["sync_client"]
    figures[f"{other}_isolation_median_ms"] = middle[other]
    names = [name for name in ("posix_spawn", "bwrap", "docker_exec") if name in middle]
    ratios = {f"over_{name}": middle[judged] / middle[name] for name in names}
    if "docker_exec" in middle:
        ratios["faster_than_docker_exec"] = middle["docker_exec"] / middle[judged]
    ratios[f"over_{other}_isolation"] = middle[judged] / middle[other]
    emit(
        row,
        figures=figures,
        baseline={f"{name}_ms": middle[name] for name in names},
        ratios=ratios,
        guarantee=f"{GUARANTEES[judged]}. {PEERS}",
        measured=(
            "client to client with the async client, one call at a time: token, proof, policy, ledger and output all "
            f"on; {len(found[judged])} calls in turns with the baselines; CPU by process from schedstat"
        ),
        **bounds,
    )
