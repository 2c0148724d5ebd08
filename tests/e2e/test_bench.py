"""`runner bench` on a real daemon: smoke runs, for the shape of what it says and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.cli.bench import benches
from runner.cli.bench_row import verdict

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the bench's own daemon lies: a short path, since sockets lie in it. Whatever is left in it is a failure."""
    folder = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    folder.rmdir()


def test_a_quick_run_measures_both_isolations(runner: Any, tool_image: str, tmp_path: Path, place: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(place)}
    done = runner("bench", "warm_call", "--quick", "--json", "--plot", tmp_path / "speed.png", env=environment)
    (row,) = json.loads(done.stdout)["rows"]
    figures = row["figures"]
    assert {*row["goal"], *row["floor"]} <= {*figures, *row["ratios"]}
    assert 0 < figures["median_ms"] <= figures["p99_ms"]
    assert figures["call_isolation_median_ms"] > 0
    assert figures["gate_cpu_us"] > 0
    assert figures["sandboxes_cpu_us"] > 0
    assert row["baseline"]["posix_spawn_ms"] > 0
    assert {verdict(row, figure) for figure in row["goal"]} <= {"goal", "floor", "no", "not goal"}
    assert "launcher" in row["guarantee"]
    assert row["machine"]["kernel"]
    assert row["quick"] is True
    assert (tmp_path / "speed.png").stat().st_size > 10_000


# warm_call runs above.
@pytest.mark.timeout(300)  # a busy machine takes several times as long, and is not what is tested
@pytest.mark.parametrize("row", sorted({each.name for each in benches(ROOT / "tests" / "bench")} - {"warm_call"}))
def test_every_row_runs(row: str, runner: Any, tool_image: str, place: Path) -> None:
    done = runner("bench", row, "--quick", "--json", env={**os.environ, "TMPDIR": str(place)}, timeout=240)
    (said,) = json.loads(done.stdout)["rows"]
    assert said["figures"]
    assert said["guarantee"]
    assert {*said["goal"], *said["floor"]} <= {*said["figures"], *said["ratios"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_it_finds_nothing_left(number: int, tool_image: str, place: Path) -> None:
    command = [sys.executable, "-m", "runner", "bench", "warm_call"]
    environment = {**os.environ, "TMPDIR": str(place)}
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever started the tests may ignore it: that is inherited
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as process:
        deadline = time.monotonic() + 60
        while not any("serving: instance" in log.read_text() for log in place.glob("*/log")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) > 4  # the bench, parent, gate, engine, recorder
        process.send_signal(number)
        process.communicate(timeout=90)
    assert process.returncode == 130
    assert not any(each.is_running() for each in below)
