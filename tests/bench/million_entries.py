"""Verify a ledger; open, list, search it at a million entries

Half a million calls with their outcomes, written by the recorder's own code, read as `runner trace` reads them.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from common import ECHO, emit, options, spawned
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ledgers import call_id, extend

from runner.evidence.read import Ledger, load_verifier
from runner.evidence.verify import verify
from runner.evidence.view import Filter, calls, find
from runner.ledger.note import Signer
from runner.recorder.log import Recorder

ORIGIN = "toolrunner/bench"


def timed(act: Callable[[], object], times: int) -> float:
    """The median of some runs, in seconds."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main(*, quick: bool) -> None:
    """Write, then read in every way."""
    count = 10_000 if quick else 1_000_000
    state = Path(tempfile.mkdtemp(prefix="toolrunner-bench-"))
    try:
        key = Ed25519PrivateKey.generate()
        vkey = Signer(ORIGIN, key).verifier.text
        began = time.perf_counter()
        size = extend(state, ORIGIN, key, count)
        written_s = time.perf_counter() - began
        folder = state / "ledger"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = verify(folder, vkey)
        assert report.ok, report
        assert report.entries == size
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        verifier = load_verifier(vkey, folder)
        ledger = Ledger(folder, verifier)
        oldest, newest = call_id(0), call_id(count // 2 - 1)
        found = find(ledger, oldest)
        assert found is not None
        assert found.call.call == oldest
        absent = Filter(task="no-such-task")
        assert len(list(islice(calls(ledger, Filter()), 50))) == 50
        assert not list(calls(ledger, absent))

        def command(*words: str) -> Callable[[], object]:
            line = [sys.executable, "-m", "runner", "trace", *words, "--state", str(state), "--key", vkey]
            return lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL)

        def reopen() -> None:
            Recorder.open(state, ORIGIN, key, lambda: "2026-01-02T03:04:06.000006Z")._release()

        figures = {
            "verify_entries_per_s": size / report.seconds,
            "verify_s": report.seconds,
            "verify_memory_growth_mb": grown * 1024 / 1e6,
            "open_s": timed(lambda: Ledger(folder, verifier), 5),
            "list_50_s": timed(lambda: list(islice(calls(ledger, Filter()), 50)), 5),
            "list_50_of_a_task_s": timed(lambda: list(islice(calls(ledger, Filter(task="task-0007")), 50)), 5),
            "find_newest_s": timed(lambda: find(ledger, newest), 5),
            "find_oldest_s": timed(lambda: find(ledger, oldest), 3),
            "search_absent_s": timed(lambda: list(calls(ledger, absent)), 3),
            "trace_list_command_s": timed(command("list"), 3),
            "trace_show_oldest_command_s": timed(command("show", oldest), 3),
            "recorder_open_s": timed(reopen, 3),
            "entries": size,
            "entry_bytes": sum(
                path.stat().st_size for path in (folder / "tile" / "entries").rglob("*") if path.is_file()
            )
            / size,
            "written_entries_per_s": size / written_s,
        }
        baseline = {
            "read_all_bytes_s": timed(lambda: read_all(folder), 3),
            "posix_spawn_ms": statistics.median(spawned(ECHO)(100)),
        }
    finally:
        shutil.rmtree(state)
    emit(
        "verify a ledger; open, list, search at 1 million entries",
        figures=figures,
        baseline=baseline,
        ratios={
            "search_over_reading_bytes": figures["search_absent_s"] / baseline["read_all_bytes_s"],
            "verify_over_reading_bytes": figures["verify_s"] / baseline["read_all_bytes_s"],
        },
        goal={
            "verify_entries_per_s": ">= 100000",
            "open_s": "<= 0.3",
            "list_50_s": "<= 0.3",
            "search_absent_s": "<= 0.3",
        },
        floor={"verify_entries_per_s": ">= 20000", "open_s": "<= 1", "list_50_s": "<= 1", "search_absent_s": "<= 1"},
        guarantee=(
            "verify checks every entry, every tile, every checkpoint and the order of calls with the public key alone; "
            "the content store is left out. Open, list and search trust the folder, and verify the checkpoint they show"
        ),
        measured=(
            f"{size} entries in files that the page cache holds; search is for what is not there, which reads all of "
            "them. Commands include the interpreter's start. reading bytes: every file of entries, read and dropped"
        ),
        quick=quick,
    )


def read_all(folder: Path) -> int:
    """The size of all entries, read."""
    return sum(len(path.read_bytes()) for path in (folder / "tile" / "entries").rglob("*") if path.is_file())


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
