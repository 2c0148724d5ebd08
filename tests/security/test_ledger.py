"""Promises of the record (cases L01, L03, L04, L07, L08, L09, L13): a recorder killed at any moment, a second one, a
full or failing disk, another user, a replaced key. Reduced counts; `RUNNER_KILLS` raises the number of kills."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from soak import disk

from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Recorder
from runner.recorder.rotate import rotate_key

WRITER = Path(__file__).parents[1] / "vectors/ledger_sample.py"
ORIGIN = "toolrunner/test"
NOW = "2026-01-02T03:04:05.000006Z"
KILLS = int(os.environ.get("RUNNER_KILLS", "30"))
LIVES = 15  # of one ledger, so that verifying it stays quick
NOBODY = 65_534


def start_writer(state: Path, user: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # By its text: the user it runs as may not be able to read a private checkout.
        [sys.executable, "-c", WRITER.read_text(), str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def sizes(output: bytes) -> list[int]:
    """The durable sizes a writer told, the last line only if it came whole."""
    return [int(text) for text in output.decode().split("\n")[:-1]]


def verified(state: Path) -> tuple[int, int, tuple[str, ...]]:
    vkey = (state / "ledger/key.pub").read_text()
    report = verify(state / "ledger", vkey, state / "content")
    assert report.ok, report
    return report.signed, report.open_calls, report.notes


@pytest.mark.timeout(60 + 3 * KILLS)
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = random.Random(3)
    for number in range(0, KILLS, LIVES):
        state = tmp_path / str(number)
        torn = most = 0
        for _ in range(min(LIVES, KILLS - number)):
            told = one_life(state, rng.uniform(0, 0.08))
            signed, _, notes = verified(state)
            assert signed >= told
            assert signed >= most
            most, torn = signed, torn + any("no whole record" in note for note in notes)
        assert most > LIVES
        repaired_and_whole(state, most, torn)
        shutil.rmtree(state)


def one_life(state: Path, seconds: float) -> int:
    """A writer that is killed after `seconds` of work: the last size it told."""
    writer = start_writer(state)
    assert writer.stdout is not None
    first = os.read(writer.stdout.fileno(), 1)  # it is at work
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    output, errors = writer.communicate()
    assert errors == b""
    return max(sizes(first + output), default=0)


def repaired_and_whole(state: Path, most: int, torn: int) -> None:
    """After the last life: every torn end was noted, open calls can be sealed, and all of it verifies."""
    recorder = Recorder.open(state, ORIGIN, load_or_create_key(state / "ledger", ORIGIN), lambda: NOW)
    assert recorder.previous == "none"  # the writer writes no start entries
    recorder.seal_interrupted(NOW)
    recorder.append(entries.encode(entries.Stop(time=NOW, instance="i", reason="done", clean=True)))
    repairs = len(list(recorder.since(0, KILLS + 1, frozenset({"repair"}))))
    recorder.close()
    signed, open_calls, notes = verified(state)
    assert (open_calls, notes) == (0, ())
    assert repairs >= torn
    assert signed > most


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A recorder under load in `tmp_path/state`."""
    started = start_writer(tmp_path / "state")
    try:
        assert started.stdout is not None
        assert started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


def test_a_second_writer_exits(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    second = start_writer(tmp_path / "state")
    output, errors = second.communicate(timeout=60)
    assert second.returncode != 0
    assert output == b""
    assert b"another recorder writes this ledger" in errors
    assert writer.poll() is None


def test_a_lock_of_the_dead_is_no_lock(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    writer.kill()
    writer.wait()
    state = tmp_path / "state"
    Recorder.open(state, ORIGIN, load_or_create_key(state / "ledger", ORIGIN), lambda: NOW).close()
    verified(state)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user and mount")
class TestAsRoot:
    def test_another_user_reads_nothing(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            state = Path(name) / "state"
            writer = start_writer(state)
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline()
                for folder in (state.parent, state):
                    folder.chmod(0o755)  # even where the folders above are open
                open_file = state / "open"
                open_file.write_text("read me")
                open_file.chmod(0o644)
                tried = {path for path in state.rglob("*") if path != open_file}
                assert {"ledger", "content", "tail", "key", "small.db"} <= {path.name for path in tried}
                code = "import os,sys\nfor path in sys.argv[1:]: print(os.access(path, os.R_OK), path)"
                looked = subprocess.run(
                    [sys.executable, "-I", "-c", code, *map(str, tried), str(open_file)],
                    user=NOBODY,
                    group=NOBODY,
                    extra_groups=[],
                    capture_output=True,
                    text=True,
                    check=True,
                )
            finally:
                writer.kill()
                writer.communicate()
            assert [line for line in looked.stdout.splitlines() if line.startswith("True")] == [f"True {open_file}"]

    def test_root_reads_beside_the_recorder_and_leaves_nothing_of_its_own(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.chown(folder, NOBODY, NOBODY)
            for _ in range(2):  # the second life proves that the first reading took nothing from the recorder
                writer = start_writer(folder / "state", NOBODY)
                try:
                    assert writer.stdout is not None
                    for _ in range(20):
                        assert writer.stdout.readline()
                    assert verified(folder / "state")[0] > 20
                finally:
                    writer.kill()
                    _, errors = writer.communicate()
                assert errors == b""
                assert verified(folder / "state")[0] > 20
                assert {path.stat().st_uid for path in folder.rglob("*")} == {NOBODY}

    def test_root_replaces_the_key_for_its_user(self) -> None:
        """What root writes belongs to the recorder's user, who goes on with it; the first public key verifies all."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.chown(folder, NOBODY, NOBODY)
            for _ in range(2):
                writer = start_writer(folder / "state", NOBODY)
                assert writer.stdout is not None
                assert writer.stdout.readline()
                writer.kill()
                assert writer.communicate()[1] == b""
                first = (folder / "state/ledger/key.pub").read_text()
                rotate_key(folder / "state", lambda: NOW, by=0)
                assert {path.stat().st_uid for path in folder.rglob("*")} == {NOBODY}
                assert os.geteuid() == 0
            assert (folder / "state/ledger/rotation.2").exists()
            report = verify(folder / "state/ledger", first, folder / "state/content")
            assert report.ok, report

    @pytest.mark.parametrize("options", ["size=3m", "nr_inodes=60"])
    def test_a_full_disk_ends_the_recorder_and_loses_nothing(self, tmp_path: Path, options: str) -> None:
        """No bytes left, and no inodes: the recorder ends, and with it the daemon; freed, it goes on."""
        # The mount lies in a namespace of its own: it goes with the process, and nobody else sees it.
        run = on_a_disk(
            tmp_path,
            """
            mount -t tmpfs -o "$5" none "$1" || exit 99
            "$2" "$3" "$1/state"
            status=$?
            cp -a "$1/state" "$4"
            exit $status
            """,
            options,
        )
        assert run.returncode == 1
        assert b"No space left on device" in run.stderr or b"disk is full" in run.stderr
        told = sizes(run.stdout)
        assert len(told) > 5
        state = tmp_path / "state"
        signed, _, _ = verified(state)
        assert signed >= told[-1]
        Recorder.open(state, ORIGIN, load_or_create_key(state / "ledger", ORIGIN), lambda: NOW).close()
        assert verified(state)[0] >= signed

    def test_a_disk_gone_read_only_takes_no_recorder(self, tmp_path: Path) -> None:
        """As a disk with errors goes: nothing is recorded, so nothing may run; what was there verifies and is kept.
        Writable again, the recorder goes on. (EROFS at each write of a running one: test_failures.py.)"""
        run = on_a_disk(
            tmp_path,
            """
            mount -t tmpfs -o size=30m none "$1" || exit 99
            "$2" "$3" "$1/state" > "$1/told" &
            writer=$!
            until [ "$(wc -l < "$1/told")" -gt 20 ]; do sleep 0.05; done
            kill -9 $writer; wait $writer
            cp "$1/told" /dev/stdout
            cp -a "$1/state" "$4"
            mount -o remount,ro "$1" || exit 99
            "$2" "$3" "$1/state" && exit 98
            cmp "$1/state/ledger/tail" "$4/ledger/tail" || exit 97
            mount -o remount,rw "$1" || exit 99
            "$2" "$3" "$1/state" > "$1/more" &
            writer=$!
            until [ "$(wc -l < "$1/more")" -gt 3 ]; do sleep 0.05; done
            kill -9 $writer; wait $writer
            exit 42
            """,
        )
        assert run.returncode == 42, run.stderr
        assert b"Read-only file system" in run.stderr
        assert verified(tmp_path / "state")[0] >= sizes(run.stdout)[-1]


def on_a_disk(folder: Path, script: str, *more: str) -> subprocess.CompletedProcess[bytes]:
    """A shell script on a mount of its own: $1 the mount point, $2 $3 the writer, $4 where to copy the state to."""
    (folder / "disk").mkdir()
    arguments = [folder / "disk", sys.executable, WRITER, folder / "state", *more]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *map(str, arguments)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=90,
    )


@pytest.fixture(scope="module")
def sweep() -> Iterator[disk.Sweep]:
    """Faults below Python, tried where thousands of ledgers can be made (see `tests/soak/disk.py`)."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    assert shutil.which("strace"), "these tests need strace: run scripts/setup --dev"
    with tempfile.TemporaryDirectory(dir=memory) as place, disk.Workers() as workers:
        yield disk.Sweep(workers, Path(place))


@pytest.mark.parametrize("call", disk.CHANGES)
def test_system_calls_fail_where_python_does_not_see_them(sweep: disk.Sweep, call: str) -> None:
    """Case L04, a sample: `scripts/soak disk` lets every call of a run fail in turn. The recorder ends, always when a
    sync failed; nothing acknowledged is lost, and the next start is clean."""
    most, before = sweep.counts()[call], sweep.ended[disk.REFUSED]
    for fault in disk.sites(call):
        for nth in {1, most, random.randint(1, most)}:
            assert sweep.fault(call, fault, nth), (call, fault, nth)
            assert sweep.wrong == []
    if call == "fchown":  # SQLite's own, which gives its files to their owner where it can, and goes on where not
        assert sweep.ended[disk.REFUSED] == before
    else:
        assert sweep.ended[disk.REFUSED] > before


def test_a_write_that_the_kernel_cuts_short_ends_the_recorder(sweep: disk.Sweep) -> None:
    """The control is a limit that no file reaches: the same work comes through."""
    assert sweep.cut(1 << 30) == disk.DONE
    for size in random.Random().sample(range(1, 60_000), 12):
        assert sweep.cut(size) == disk.REFUSED
    assert sweep.wrong == []


def test_power_loss_leaves_what_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written to the tail after the last fdatasync may be on disk in part, in any order, or not at all."""
    state = tmp_path / "state"
    recorder = Recorder.open(state, ORIGIN, load_or_create_key(state / "ledger", ORIGIN), lambda: NOW)
    for number in range(20):
        recorder.append(entries.encode(entries.Beacon(time=NOW, instance="i", calls=number, running=0, tasks=0)))
    size = recorder.commit()
    synced = (state / "ledger/tail").stat().st_size

    def lost(_descriptor: int) -> None:
        raise OSError(5, "power is gone")

    monkeypatch.setattr(os, "fdatasync", lost)
    for number in range(40):
        recorder.append(entries.encode(entries.Beacon(time=NOW, instance="i", calls=number, running=0, tasks=0)))
    with pytest.raises(Exception, match="power is gone"):
        recorder.commit()
    recorder.close()
    monkeypatch.undo()
    whole = (state / "ledger/tail").read_bytes()
    assert len(whole) > synced + 4096
    rng = random.Random(11)
    for round_number in range(60):
        after = bytearray(whole[synced:])
        for start in range(0, len(after), 512):  # sectors that did not make it: zeros, or what lay there before
            if rng.random() < 0.3:
                sector = after[start : start + 512]
                after[start : start + 512] = bytes(len(sector)) if rng.random() < 0.5 else rng.randbytes(len(sector))
        del after[rng.randrange(len(after) + 1) :]
        copy = tmp_path / f"copy {round_number}"
        shutil.copytree(state, copy)
        (copy / "ledger/tail").write_bytes(whole[:synced] + after)
        assert verified(copy)[0] >= size
        again = Recorder.open(copy, ORIGIN, load_or_create_key(copy / "ledger", ORIGIN), lambda: NOW)
        assert again.durable >= size
        again.close()
        assert verified(copy)[2] == ()
        shutil.rmtree(copy)
