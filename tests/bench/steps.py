"""A warm call by step, from the daemon's own telemetry, and what telemetry costs

Spans say when a call reached each step of gate; the ledger says how long its process ran; the client says when it
asked and when it had its answer. All of them read the same clock. Prints a table on stderr beside the row.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import ECHO, emit, in_turns, metered, options, pids, serving
from load import Agent

from runner.ledger import entry as entries

ARGUMENTS = {"argv": list(ECHO)}
BEFORE, AFTER = "client to gate", "gate to client"


async def asked(agent: Agent, count: int) -> dict[str, tuple[int, int]]:
    """Calls one after the other: when each was asked and answered, in nanoseconds, by its id."""
    found = {}
    for _ in range(count):
        began = time.time_ns()
        done = await agent.runner.call("shell_run", ARGUMENTS)
        found[done.call] = (began, time.time_ns())
    return found


def spans(path: Path) -> dict[str, list[tuple[str, int]]]:
    """The times of each call by its id: the span's start, its events in order, its end."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    events = [(event["name"], int(event["timeUnixNano"])) for event in span.get("events", ())]
                    times = [("start", int(span["startTimeUnixNano"])), *sorted(events, key=lambda event: event[1])]
                    found[_call(span)] = [*times, ("end", int(span["endTimeUnixNano"]))]
    return found


def _call(span: dict[str, Any]) -> str:
    named = {each["key"]: each["value"] for each in span.get("attributes", ())}
    return str(named.get("gen_ai.tool.call.id", {}).get("stringValue", ""))


def steps(
    told: dict[str, tuple[int, int]], seen: dict[str, list[tuple[str, int]]], ran: dict[str, int]
) -> dict[str, list[float]]:
    """Microseconds of each step of each call, in the order of the steps. `ran` is how long each process ran."""
    found: dict[str, list[float]] = {}

    def add(name: str, nanoseconds: int) -> None:
        found.setdefault(name, []).append(nanoseconds / 1000)

    for call, (began, ended) in told.items():
        times = seen[call]
        add(BEFORE, times[0][1] - began)
        for (_, earlier), (name, later) in pairwise(times):
            add(f"until {name}", later - earlier)
        add(AFTER, ended - times[-1][1])
        add("of it the process", ran[call] * 1000)
        add("all", ended - began)
    return found


def main(*, quick: bool) -> None:
    """Two daemons in turns, with spans and without; then the spans of a run of calls."""
    used: dict[str, list[float]] = {"with": [], "without": []}
    with serving('[telemetry]\nexport = "file"\n') as on, serving() as off:
        agents = {"with": Agent(on.credentials()), "without": Agent(off.credentials())}
        try:
            for agent in agents.values():
                agent.calls(**ARGUMENTS)(60)
            blocks = {
                name: (metered(agents[name].calls(**ARGUMENTS), [pids(daemon)["gate"]], used[name]), 20)
                for name, daemon in (("with", on), ("without", off))
            }
            found = in_turns(blocks, 3 if quick else 40)
            told = agents["with"].run(asked(agents["with"], 30 if quick else 400))
        finally:
            for agent in agents.values():
                agent.close()
        on.stop()  # writes the last spans
        ran = {each.call: each.used.wall_us for each in on.entries(entries.Outcome) if each.used is not None}
        parts = steps(told, spans(on.state / "gate" / "spans.jsonl"), ran)
    middle = {name: statistics.median(values) for name, values in parts.items()}
    table(parts)
    with_, without = statistics.median(found["with"]), statistics.median(found["without"])
    cpu = {name: statistics.median(values) for name, values in used.items()}
    emit(
        "a warm call by step, and what telemetry costs",
        figures={
            **{f"{name.replace(' ', '_')}_us": value for name, value in middle.items()},
            "telemetry_added_ms": with_ - without,
            "telemetry_gate_added_cpu_us": cpu["with"] - cpu["without"],
            "gate_cpu_us": cpu["without"],
        },
        baseline={"without_telemetry_ms": without},
        ratios={
            **{f"{name.replace(' ', '_')}_share": value / middle["all"] for name, value in middle.items()},
            "with_over_without_telemetry": with_ / without,
        },
        goal={},
        floor={},
        guarantee="isolation = launcher, warm; everything on",
        measured=(
            f"medians of {len(told)} calls, one after the other: spans of gate by OTLP, the process's own time from "
            "the ledger (it lies within the step until ended; the rest of that step is sandbox, pipes, output), the "
            "client's clock around both (gate ends a span after it has answered: the last step may be below 0). "
            "Telemetry: two daemons in turns, with and without; gate's CPU from schedstat"
        ),
        quick=quick,
    )


def table(parts: dict[str, list[float]]) -> None:
    """For a person."""
    total = statistics.median(parts["all"])
    print(f"{'step':<24}{'median µs':>12}{'share':>8}", file=sys.stderr)
    for name, values in parts.items():
        middle = statistics.median(values)
        print(f"{name:<24}{middle:>12.0f}{middle / total:>8.0%}", file=sys.stderr)


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
