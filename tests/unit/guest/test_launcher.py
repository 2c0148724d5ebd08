"""What the supervisor makes of a launcher's report, and of each kernel's counters."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runner.guest.call import judge
from runner.guest.supervisor import Supervisor

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"
V2 = "low 0\nhigh 0\nmax 12\noom 4\noom_kill 7\noom_group_kill 0\n"


@pytest.mark.parametrize(("text", "expected"), [(V1, 7), (V2, 7), ("oom_kill_disable 0\nunder_oom 0\n", 0), ("", 0)])
def test_both_cgroup_versions_count_kills(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "counter").write_text(text)
    supervisor = object.__new__(Supervisor)
    supervisor._counter = os.open(tmp_path / "counter", os.O_RDONLY)
    try:
        assert supervisor._oom_kills() == expected
    finally:
        os.close(supervisor._counter)


START = {"cpu_s": 2, "result": 10}


@pytest.mark.parametrize(
    ("status", "cpu_us", "result", "oom", "kind", "how"),
    [
        (0, 0, 0, False, "exited", {"exit_code": 0}),
        (3 << 8, 0, 0, False, "exited", {"exit_code": 3}),
        (signal.SIGTERM, 0, 0, False, "exited", {"signal": 15}),
        (signal.SIGKILL, 0, 0, False, "exited", {"signal": 9}),
        (signal.SIGKILL, 2_000_000, 0, False, "timed_out", {"signal": 9}),
        (signal.SIGXCPU, 1_990_000, 0, False, "timed_out", {"signal": 24}),
        (signal.SIGKILL, 0, 0, True, "oom", {"signal": 9}),
        (137 << 8, 0, 0, True, "oom", {"exit_code": 137}),
        (0, 0, 11, False, "output_capped", {"exit_code": 0}),
        (0, 0, 10, False, "exited", {"exit_code": 0}),
    ],
)
def test_an_end_is_judged(status: int, cpu_us: int, result: int, oom: bool, kind: str, how: dict[str, int]) -> None:
    judged = judge(START, (status, cpu_us - cpu_us // 2, cpu_us // 2, 4, 5, 6), result, oom)
    assert judged["usage"] == {
        "cpu_user_us": cpu_us - cpu_us // 2,
        "cpu_system_us": cpu_us // 2,
        "max_rss_kib": 4,
        "wall_us": 5,
        "leftover": 6,
    }
    assert judged["kind"] == kind
    assert {key: judged[key] for key in ("exit_code", "signal") if key in judged} == how
