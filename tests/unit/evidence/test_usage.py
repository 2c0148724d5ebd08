"""A guest that claims more than the kernel counted is contradicted; what nobody counted is not judged."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from runner.evidence.read import Ledger
from runner.evidence.usage import SandboxUse, sandboxes
from runner.ledger import entry as entries
from runner.ledger.note import Verifier

CLAIMED = 10_000  # microseconds of each call


def begin(sample: ModuleType, name: str, task: str = "t") -> entries.SandboxBegin:
    isolation = entries.Isolation(
        image="sha256:" + "a" * 64, runtime="runc", uid=1, seccomp=2, seccomp_filters=1, no_new_privs=True,
        capabilities="0", namespaces=(), interfaces=(), read_only_root=True, memory_limit=1, swap_limit=1,
        pids_limit=1, cpu_quota_milli=1, cgroup_version=1,
    )  # fmt: skip
    return entries.SandboxBegin(
        time=sample.NOW, sandbox=name, task=task, profile="p", profile_digest="", isolation=isolation
    )


def end(sample: ModuleType, name: str, cpu_us: int | None, task: str = "t") -> entries.SandboxEnd:
    used = None if cpu_us is None else entries.SandboxUsed(cpu_us=cpu_us, memory_peak=1 << 20, oom_kills=1)
    return entries.SandboxEnd(time=sample.NOW, sandbox=name, task=task, reason="over", used=used)


def call(sample: ModuleType, number: int, sandbox: str, *, ends: bool = True) -> list[Any]:
    made = sample.call(number)
    made = msgspec.structs.replace(made, plan=msgspec.structs.replace(made.plan, sandbox=sandbox))
    used = entries.Used(cpu_user_us=CLAIMED - 1000, cpu_system_us=1000, max_rss_kib=512)
    return [made, msgspec.structs.replace(sample.outcome(number), used=used)] if ends else [made]


def told(sample: ModuleType, place: Path, *found: Any) -> list[SandboxUse]:
    recorder = sample.open_recorder(place)
    sample.add(recorder, sample.start(), *found)
    recorder.close()
    return sandboxes(Ledger(place / "ledger", Verifier.parse(sample.VKEY)), "t")


@pytest.mark.parametrize(
    ("counted", "verdict"),
    [
        (3 * CLAIMED, "consistent"),
        (2 * CLAIMED, "consistent"),
        (2 * CLAIMED - 2000, "consistent"),  # rounding, of two calls
        (2 * CLAIMED - 2001, "contradicted"),
        (0, "contradicted"),
        (-1, "unknown"),
        (None, "unknown"),
    ],
)
def test_a_sum_above_what_was_counted_is_contradicted(
    sample: ModuleType, tmp_path: Path, counted: int | None, verdict: str
) -> None:
    calls = [*call(sample, 1, "s1"), *call(sample, 2, "s1")]
    (use,) = told(sample, tmp_path, begin(sample, "s1"), *calls, end(sample, "s1", counted))
    assert (use.calls, use.guest_cpu_us, use.guest_peak, use.verdict) == (2, 2 * CLAIMED, 512 << 10, verdict)
    assert use.cgroup_cpu_us == (-1 if counted is None else counted)


def test_each_sandbox_has_its_own_calls(sample: ModuleType, tmp_path: Path) -> None:
    first, second = told(
        sample, tmp_path, begin(sample, "s1"), *call(sample, 1, "s1"), end(sample, "s1", 5 * CLAIMED),
        begin(sample, "other", task="u"), end(sample, "other", 1, task="u"),
        begin(sample, "s2"), *call(sample, 2, "s2"), *call(sample, 3, "s2", ends=False),
    )  # fmt: skip
    assert (first.sandbox, first.calls, first.unsaid, first.verdict, first.oom_kills) == ("s1", 1, 0, "consistent", 1)
    assert (second.sandbox, second.calls, second.unsaid, second.verdict) == ("s2", 2, 1, "running")
    assert first.position < second.position
