"""Sealed decisions per second, a proof verified for each

Denials, because they are decisions and nothing else. Several client processes whose proofs were signed before.
"""

from __future__ import annotations

import os
import statistics
import tempfile

from common import ECHO, Cpu, emit, options, percentile, repeat, serving, spawned
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from load import Job, clients, rate

from runner.ledger import entry as entries

CLIENTS, IN_FLIGHT = 4, 8
DENIED = {"argv": ["curl", "http://localhost"]}


def yardsticks() -> dict[str, float]:
    """What one core and this disk give: signatures checked per second, microseconds of an fdatasync."""
    key, message = Ed25519PrivateKey.generate(), bytes(1000)
    signature, public = key.sign(message), key.public_key()
    checks = repeat(lambda: public.verify(signature, message))(2000)
    with tempfile.TemporaryFile() as file:

        def sync() -> None:
            os.write(file.fileno(), message)
            os.fdatasync(file.fileno())

        syncs = repeat(sync)(50)
    return {
        "ed25519_verify_us": statistics.median(checks) * 1000,
        "fdatasync_us": statistics.median(syncs) * 1000,
        "posix_spawn_ms": statistics.median(spawned(ECHO)(100)),
    }


def main(*, quick: bool) -> None:
    """Rounds of the same load; the median round counts. Every decision is then looked for in the ledger."""
    each, rounds = (150, 1) if quick else (4000, 3)
    rates, times, split, client = [], [], [], []
    baseline = yardsticks()
    with serving() as daemon:
        for _ in range(rounds):
            jobs = [
                Job(daemon.credentials(), each, IN_FLIGHT, "shell_run", DENIED, "frames", "denied")
                for _ in range(CLIENTS)
            ]
            with clients(jobs) as ready:
                cpu = Cpu(daemon)
                done = ready.go()
                split.append(cpu.per_call(each * CLIENTS))
            rates.append(rate(done))
            times += [each_ms for found in done for each_ms in found.times]
            client.append(sum(found.cpu_s for found in done) / (each * CLIENTS) * 1e6)
        total = each * CLIENTS * rounds
        daemon.wait(lambda: _denied(daemon.entries(entries.Call)) == total)
        assert daemon.verifies()
    per_s = statistics.median(rates)
    emit(
        "sealed decisions per second",
        figures={
            "per_s": per_s,
            "best_per_s": max(rates),
            "median_ms": statistics.median(times),
            "p99_ms": percentile(times, 0.99),
            **{name: statistics.median(found[name] for found in split) for name in split[0] if name != "sandboxes"},
            "clients_cpu_us": statistics.median(client),
        },
        baseline=baseline,
        ratios={"of_one_core_verifying_only": per_s * baseline["ed25519_verify_us"] / 1e6},
        goal={"per_s": ">= 5000"},
        floor={"per_s": ">= 2000"},
        guarantee=(
            "each is a verified proof of possession, a policy decision and a ledger entry, written before the answer "
            "and on disk within 50 ms after it; all of them were found in the ledger, which then verified"
        ),
        measured=(
            f"{CLIENTS} client processes, {IN_FLIGHT} calls in flight each, {total} calls in {rounds} rounds; proofs "
            "signed before the clock started; clients, gate and recorder share the machine's cores"
        ),
        quick=quick,
    )


def _denied(calls: list[entries.Call]) -> int:
    return sum(1 for call in calls if call.decision.effect == "deny")


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
