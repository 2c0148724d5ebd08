"""A warm call with a network, and with a credential

The same `echo` in the same tool profile (a fresh jail for each call): without a network, with one, and with a
credential too. What is added is a port, a listener in the sandbox's network namespace, egress and broker, once a call.
"""

from __future__ import annotations

import statistics

from common import ECHO, Block, cpu_ns, emit, in_turns, networked, options, pids, spawned, spread
from house import EVERY_TOOL
from load import Agent

TOOLS = {"without": "fresh_run", "network": "net_run", "credential": "key_run"}
PARTS = ("gate", "engine", "recorder", "egress", "broker")


def split(block: Block, running: dict[str, int], used: dict[str, list[float]]) -> Block:
    """The same block; microseconds of each part's CPU per call are added to `used`."""

    def run(count: int) -> list[float]:
        before = {name: cpu_ns(running[name]) for name in PARTS}
        times = block(count)
        for name in PARTS:
            used.setdefault(name, []).append((cpu_ns(running[name]) - before[name]) / count / 1000)
        return times

    return run


def main(*, quick: bool) -> None:
    """In turns, on one daemon and one task."""
    with networked() as (daemon, _):
        tools = {name: {} for name in (*EVERY_TOOL, *TOOLS.values(), "egress")}
        agent = Agent(daemon.credentials(profile="net", tools=tools, ttl_s=7200))
        used: dict[str, dict[str, list[float]]] = {name: {} for name in TOOLS}
        running = pids(daemon)
        try:
            blocks = {"posix_spawn": (spawned(ECHO), 10)}
            for name, tool in TOOLS.items():
                block = agent.calls(tool, argv=list(ECHO))
                block(20)
                blocks[name] = (split(block, running, used[name]), 10)
            found = in_turns(blocks, 3 if quick else 40)
        finally:
            agent.close()
    middle = {name: statistics.median(times) for name, times in found.items()}
    cpu = {
        f"{name}_{part}_cpu_us": statistics.median(times) for name, each in used.items() for part, times in each.items()
    }
    emit(
        "a warm call with a network, and with a credential",
        figures={
            "network_added_ms": middle["network"] - middle["without"],
            "credential_added_ms": middle["credential"] - middle["without"],
            **spread(found["network"], "network_"),
            **spread(found["credential"], "credential_"),
            **cpu,
        },
        baseline={"without_ms": middle["without"], "posix_spawn_ms": middle["posix_spawn"]},
        ratios={
            "network_over_without": middle["network"] / middle["without"],
            "credential_over_without": middle["credential"] / middle["without"],
        },
        goal={},
        floor={},
        guarantee=(
            "isolation = call in the profile `network`: a listener of the call's own, Landlock to that port alone, "
            "closed and its lease revoked before the outcome; the call asks for nothing"
        ),
        measured=(
            f"client to client, {len(found['network'])} calls of each kind in turns on one task; CPU by process from "
            "schedstat, medians of blocks of ten calls"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
