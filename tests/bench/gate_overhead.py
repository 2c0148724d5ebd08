"""Gate overhead per call, 200 rules, tool excluded

Denied calls run no tool, so what their client waits for is gate and recorder alone. Calls are sent at a fixed pace.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ECHO, Cpu, add_rules, emit, options, percentile, serving
from house import EVERY_TOOL
from load import Agent, Frames

RULES = 200
TOOLS = sorted(set(EVERY_TOOL) - {"shell_run"})
DENIED = {"argv": ["curl", "http://localhost"]}
SIZE = 1200  # bytes of a call's frame


def rules(folder: Path) -> None:
    """200 in all: the package's own, 32 forbids over every action, and the rest over the other tools."""
    own = (folder / "policies" / "base.cedar").read_text(encoding="utf-8").count("\n@id(")
    add_rules(folder, 32, "action")
    others = ", ".join(f'Action::"{tool}"' for tool in TOOLS)
    add_rules(folder, RULES - 32 - own, f"action in [{others}]")


def _echo(source: int, target: int) -> None:
    while data := os.read(source, SIZE):
        os.write(target, data)


@contextmanager
def relay() -> Iterator[socket.socket]:
    """Two processes that pass bytes on and back: the hops of a denied call (client, gate, recorder, gate, client)
    without any work. What the host's scheduler adds shows here too."""
    ours, near = socket.socketpair()
    middle, far = socket.socketpair()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_pass_both, args=(near.fileno(), middle.fileno()), daemon=True),
        context.Process(target=_echo, args=(far.fileno(), far.fileno()), daemon=True),
    ]
    for process in processes:
        process.start()
    try:
        yield ours
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in (ours, near, middle, far):
            end.close()


def _pass_both(near: int, middle: int) -> None:
    while data := os.read(near, SIZE):
        os.write(middle, data)
        os.write(near, os.read(middle, SIZE))


def relayed(end: socket.socket, count: int, per_s: float) -> list[float]:
    """Milliseconds of each round trip, at this pace."""
    found, start, data = [], time.perf_counter(), bytes(SIZE)
    for number in range(count):
        time.sleep(max(0.0, start + number / per_s - time.perf_counter()))
        began = time.perf_counter()
        end.sendall(data)
        left = SIZE
        while left:
            left -= len(end.recv(left))
        found.append((time.perf_counter() - began) * 1000)
    return found


def main(*, quick: bool) -> None:
    """Both paces and the relay in turns; then CPU per call, denied and allowed."""
    rounds, seconds = (2, 0.3) if quick else (6, 2.0)
    times: dict[str, list[float]] = {"1000": [], "300": [], "relay": []}
    rates: dict[str, list[float]] = {"1000": [], "300": []}
    with relay() as end, serving(prepare=rules) as daemon:
        frames = Frames(daemon.credentials())
        frames.prepare("shell_run", DENIED, 200)
        frames.run("denied", in_flight=1)
        for _ in range(rounds):
            for pace in (1000, 300):
                count = int(pace * seconds)
                frames.prepare("shell_run", DENIED, count)
                began = time.perf_counter()
                times[str(pace)] += frames.run("denied", in_flight=32, per_s=pace)
                rates[str(pace)].append(count / (time.perf_counter() - began))
            times["relay"] += relayed(end, int(1000 * seconds), 1000)
        count = 200 if quick else 3000
        frames.prepare("shell_run", DENIED, count)
        cpu = Cpu(daemon)
        frames.run("denied", in_flight=1)
        denied = cpu.per_call(count)
        frames.close()
        agent = Agent(daemon.credentials())
        call = agent.calls(argv=list(ECHO))
        call(30)
        cpu, count = Cpu(daemon), 30 if quick else 300
        call(count)
        allowed = cpu.per_call(count)
        agent.close()
    figures = {}
    for pace in ("1000", "300"):
        figures |= {
            f"p50_at_{pace}_per_s_ms": statistics.median(times[pace]),
            f"p99_at_{pace}_per_s_ms": percentile(times[pace], 0.99),
            f"offered_at_{pace}_per_s": statistics.median(rates[pace]),
        }
    figures |= {f"{part}_denied_cpu_us": denied[f"{part}_cpu_us"] for part in ("gate", "recorder")}
    figures |= {f"{part}_allowed_cpu_us": allowed[f"{part}_cpu_us"] for part in ("gate", "recorder")}
    hops = {"relay_p50_ms": statistics.median(times["relay"]), "relay_p99_ms": percentile(times["relay"], 0.99)}
    emit(
        "gate overhead per call, 200 rules, tool excluded",
        figures=figures,
        baseline=hops,
        ratios={
            "p50_over_relay": figures["p50_at_1000_per_s_ms"] / hops["relay_p50_ms"],
            "p99_over_relay": figures["p99_at_1000_per_s_ms"] / hops["relay_p99_ms"],
        },
        goal={"p50_at_1000_per_s_ms": "<= 0.25", "p99_at_1000_per_s_ms": "<= 0.5"},
        floor={"p50_at_300_per_s_ms": "<= 0.4", "p99_at_300_per_s_ms": "<= 1"},
        guarantee=(
            "each call is a decision over a verified proof, written to the ledger before the answer; the group is on "
            "disk within 50 ms after it. relay: the same four hops between three processes, and nothing done"
        ),
        measured=(
            f"client to client, from send to answer, of calls that policy denies: nothing is taken off, only signing "
            f"the proof was done before. {RULES} rules: 32 forbids over every action, the package's own, the rest "
            "over other tools. An allowed call has a plan and an outcome besides: its CPU is given, from schedstat"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
