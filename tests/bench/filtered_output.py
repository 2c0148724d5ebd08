"""10 KB of output fully filtered, and how late its first byte comes

What 10 KB add to a call that writes 10 bytes, and the time from a tool's write to its client's hands.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from common import Cpu, emit, in_turns, options, percentile, serving, spawned, spread
from load import Agent

from runner.stream.pump import Pump

SIZE = 10 << 10
EACH = 10  # calls of each kind a round
# The tool says when it wrote, by the clock that containers share with their host, and goes on for a while.
STAMP = ["sh", "-c", "date +%s%N; sleep 0.02"]
STAMP_LONG = ["sh", "-c", f"date +%s%N; head -c {SIZE} /dev/zero; sleep 0.02"]


class Nowhere:
    """A recorder that keeps nothing: what is left is the filter's own work."""

    async def send(self, message: object) -> None:
        """Take it."""


def pumped(count: int) -> float:
    """Microseconds that gate's filter alone needs for 10 KB: cap, digest, framing for the content store."""
    data, salt = bytes(range(256)) * (SIZE // 256), bytes(16)

    async def run() -> list[float]:
        found = []
        for _ in range(count):
            began = time.perf_counter()
            pump = Pump(Nowhere(), limit=1 << 20, numbers=(1, 2), salt=lambda: salt)
            await pump.take("stdout", data)
            await pump.close()
            found.append((time.perf_counter() - began) * 1e6)
        return found

    return statistics.median(asyncio.run(run()))


async def delay(agent: Agent, argv: list[str]) -> float:
    """Milliseconds from the tool's first write to the client's first chunk."""
    async with agent.runner.stream("shell_run", {"argv": argv}) as stream:
        chunk = await stream.next()
        arrived = time.time_ns()
        assert chunk is not None
        await stream.result()
    return (arrived - int(chunk.data.split()[0])) / 1e6


def main(*, quick: bool) -> None:
    """Short and long output in turns; then first bytes."""
    small, large = ["head", "-c", "10", "/dev/zero"], ["head", "-c", str(SIZE), "/dev/zero"]
    with serving() as daemon:
        agent = Agent(daemon.credentials())
        try:
            brief, full = agent.calls(argv=small), agent.calls(argv=large)
            brief(30)
            full(30)
            blocks = {
                "small": (brief, EACH),
                "large": (full, EACH),
                "spawn_small": (spawned(small), 10),
                "spawn_large": (spawned(large), 10),
            }
            found = in_turns(blocks, 3 if quick else 60)
            count = 50 if quick else 400
            gate = {}
            for name, block in (("small", brief), ("large", full)):
                cpu = Cpu(daemon)
                block(count)
                gate[name] = cpu.per_call(count)
            waits = [agent.run(delay(agent, argv)) for _ in range(10 if quick else 150) for argv in (STAMP, STAMP_LONG)]
        finally:
            agent.close()
    middle = {name: statistics.median(times) for name, times in found.items()}
    added = statistics.median(
        statistics.median(found["large"][at : at + EACH]) - statistics.median(found["small"][at : at + EACH])
        for at in range(0, len(found["small"]), EACH)
    )
    emit(
        "10 KB of output fully filtered; first byte delayed",
        figures={
            "added_ms": added,
            "first_byte_p99_ms": percentile(waits, 0.99),
            "first_byte_median_ms": statistics.median(waits),
            "filter_alone_ms": pumped(2000) / 1000,
            **spread(found["large"]),
            **{
                f"{part}_added_cpu_us": gate["large"][f"{part}_cpu_us"] - gate["small"][f"{part}_cpu_us"]
                for part in ("gate", "recorder", "sandboxes")
            },
        },
        baseline={"posix_spawn_added_ms": middle["spawn_large"] - middle["spawn_small"]},
        ratios={"large_over_small": middle["large"] / middle["small"]},
        goal={"added_ms": "<= 0.1", "first_byte_p99_ms": "<= 5"},
        floor={"added_ms": "<= 0.5", "first_byte_p99_ms": "<= 20"},
        guarantee=(
            "output is capped, digested and kept before it is delivered; no secrets are registered and no patterns "
            "searched for, because there is no broker yet"
        ),
        measured=(
            "added: calls that write 10 KB less calls that write 10 bytes, median of rounds in turns, client to "
            "client: pipe, supervisor, gate, content store and client are in it, not only the filter. First byte: "
            f"from the clock that the tool prints to the client's first chunk, while the tool runs on; {len(waits)}"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
