"""Large ledgers, written by the recorder's own code without a daemon: what calls would have left, only faster."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.ledger import entry as entries
from runner.recorder.log import Recorder

TIME = "2026-01-02T03:04:05.000006Z"
GROUP = 2000  # entries a commit
TASKS = 200


def call_id(number: int) -> str:
    """Ids as gate makes them, from a time long past: those of a later daemon are greater."""
    return f"{0x018000000000 + number:012x}-0000-{number & 0xFFFFFFFF:08x}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pair(number: int, *, planned: bool) -> list[entries.AnyEntry]:
    """A call and its outcome; or, not planned, a denial. Sizes are those of real ones."""
    name, task = call_id(number), f"task-{number % TASKS:04d}"
    plan = entries.Planned(
        sandbox=f"s-{number % TASKS:04d}",
        isolation="launcher",
        profile="compute",
        plan=entries.Content(digest=_digest(f"plan {number}"), size=400),
        wall_ms=60_000,
        output=8 << 20,
    )
    call = entries.Call(
        time=TIME,
        call=name,
        who=entries.Who(agent=f"agent-{number % 7}", owner="owner", task=task, session=f"session-{number % TASKS}"),
        peer=entries.PeerProcess(uid=1000, pid=4711),
        chain=("0197f0c2-a1b3-7cc2-8000-000000000001",),
        leaf=_digest("leaf"),
        proof=f"proof-{number:016x}",
        tool="shell_run",
        arguments=entries.Content(digest=_digest(f"arguments {number}"), size=40),
        decision=entries.Decided(
            effect="allow" if planned else "deny", reason="programs may run inside the sandbox", rules=("run-programs",)
        ),
        plan=plan if planned else None,
    )
    if not planned:
        return [call]
    outcome = entries.Outcome(
        time=TIME,
        call=name,
        task=task,
        outcome="exited",
        exit_code=0,
        used=entries.Used(wall_us=1500),
        stdout=entries.Stream(digest=_digest(f"out {number}"), size=2, delivered=2),
    )
    return [call, outcome]


def extend(state: Path, origin: str, key: Ed25519PrivateKey, count: int, *, planned: bool = True) -> int:
    """Append about `count` entries to the ledger under `state`; its size then. The daemon must not run."""
    recorder = Recorder.open(state, origin, key, lambda: TIME)
    end, number = recorder.size + count, 0
    try:
        while recorder.size < end:
            for _ in range(GROUP // 2):
                for entry in pair(number, planned=planned):
                    recorder.append(entries.encode(entry))
                number += 1
                if recorder.size >= end:
                    break
            recorder.commit()
    finally:
        recorder.close()
    return recorder.size
