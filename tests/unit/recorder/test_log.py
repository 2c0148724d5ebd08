"""The recorder's promises to gate, on a healthy disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger.note import Verifier, read_checkpoint
from runner.ledger.tile import partial_places, tile_path
from runner.recorder.log import UNKNOWN_END, Recorder


def clean(sample: ModuleType, state: Path) -> int:
    """Verify everything, content too; the size."""
    report = verify(state / "ledger", sample.VKEY, state / "content")
    assert report.ok, report
    assert report.unsigned == 0
    return report.entries


def test_positions_digests_and_what_is_durable(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    data = entries.encode(sample.call(1, planned=False))
    assert (recorder.size, recorder.durable, recorder.commit()) == (0, 0, 0)
    sample.add(recorder, sample.start())
    assert recorder.append(data) == (1, entries.digest(data))
    assert (recorder.size, recorder.durable) == (2, 0)
    assert recorder.commit() == recorder.durable == 2
    recorder.store(sample.SALT + b"arguments 1")
    recorder.close()
    assert clean(sample, tmp_path) == 2


@pytest.mark.parametrize(
    ("calls", "group"), [(0, 1), (1, 1), (127, 127), (128, 1), (128, 50), (300, 7), (300, 400), (600, 400)]
)
def test_every_size_verifies_stopped_and_killed(sample: ModuleType, tmp_path: Path, calls: int, group: int) -> None:
    killed, stopped = tmp_path / "killed", tmp_path / "stopped"
    assert sample.write(killed, calls, group, stopped=False) == clean(sample, killed) == 1 + 2 * calls
    assert sample.write(stopped, calls, group) == clean(sample, stopped) == 2 + 2 * calls
    for state, before in ((killed, 1 + 2 * calls), (stopped, 2 + 2 * calls)):
        recorder = sample.open_recorder(state)
        assert recorder.size == before
        assert recorder.previous == ("dead" if state == killed else "clean")
        sample.add(recorder, sample.start(), *sample.pairs(calls + 1, 3), sample.stop())
        recorder.close()
        assert clean(sample, state) == before + 8


def test_a_stopped_ledger_is_a_whole_tlog(sample: ModuleType, tmp_path: Path) -> None:
    size = sample.write(tmp_path, 300)
    note = (tmp_path / "ledger/checkpoint").read_bytes()
    found = read_checkpoint(note, Verifier.parse(sample.VKEY))
    assert found.size == size
    places = partial_places(size)
    assert len(places) == 3
    assert all((tmp_path / "ledger/tile" / tile_path(place)).is_file() for place in places)


def test_a_ledger_stopped_without_a_last_word_is_a_whole_tlog_too(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    recorder.commit()
    recorder.tidy()
    recorder.close()
    assert (tmp_path / "ledger/tile/entries/000.p/1").is_file()


def test_partial_tiles_go_when_their_tile_is_full(sample: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path, 10)
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(20, 300))
    recorder.commit()
    recorder.close()
    tiles = tmp_path / "ledger/tile"
    assert not (tiles / "0/000.p").exists()
    assert not (tiles / "entries/000.p").exists()
    assert clean(sample, tmp_path) == 22 + 601


def test_the_checkpoint_file_follows_at_most_once_a_second(sample: ModuleType, tmp_path: Path) -> None:
    now = [100.0]
    recorder = Recorder.open(tmp_path, sample.ORIGIN, sample.KEY, lambda: sample.NOW, lambda: now[0])
    path = tmp_path / "ledger/checkpoint"

    def published() -> int:
        recorder.tidy()
        return int(path.read_text().split("\n")[1])

    sample.add(recorder, sample.start())
    recorder.commit()
    assert published() == 0
    now[0] += 1.0
    assert published() == 1
    sample.add(recorder, *sample.pairs(1, 1))
    recorder.commit()
    now[0] += 0.9
    assert published() == 1
    sample.add(recorder, sample.stop())
    recorder.close()
    assert int(path.read_text().split("\n")[1]) == 4


def test_refused_entries_leave_nothing_and_are_not_the_end(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    good = entries.encode(sample.call(1))
    for bad in (
        entries.encode(sample.outcome(1)),
        entries.encode(sample.call(2, effect="deny")),
        good + b" ",
        good.replace(b'"v":1', b'"v":2'),
    ):
        with pytest.raises(RunnerError) as caught:
            recorder.append(bad)
        assert caught.value.refused.code == "ledger"
    assert recorder.size == 0
    sample.add(recorder, sample.call(1))
    with pytest.raises(RunnerError, match="in use"):
        recorder.append(good)
    sample.add(recorder, sample.outcome(1))
    with pytest.raises(RunnerError, match="outcome already"):
        recorder.append(entries.encode(sample.outcome(1)))
    recorder.close()
    assert clean(sample, tmp_path) == 2


def test_calls_that_a_dead_run_left_are_sealed(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(1, 200), sample.call(500), sample.call(501, task="u"))
    sample.add(recorder, *sample.pairs(600, 200))
    recorder.commit()
    recorder.tidy()  # the open calls now lie in a bundle, and only the tail's head still names them
    recorder._release()

    recorder = sample.open_recorder(tmp_path)
    assert recorder.previous == "dead"
    assert recorder.newest_call == "c00000799"
    assert [(opened.call, opened.task) for opened in recorder.open_calls()] == [("c00000500", "t"), ("c00000501", "u")]
    assert recorder.seal_interrupted(sample.NOW) == 2
    assert recorder.seal_interrupted(sample.NOW) == 0
    recorder.commit()
    sealed = [entries.decode(data) for _, data in recorder.since(recorder.size - 2, 10)]
    assert [(end.call, end.task, end.outcome, end.reason) for end in sealed if isinstance(end, entries.Outcome)] == [
        ("c00000500", "t", "interrupted", UNKNOWN_END),
        ("c00000501", "u", "interrupted", UNKNOWN_END),
    ]
    recorder.close()
    assert clean(sample, tmp_path) == 805


def test_since_gives_what_changes_state(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    for number in range(0, 400, 2):
        sample.add(recorder, *sample.pairs(number, 1), sample.call(number + 1, effect="deny", planned=False))
        recorder.commit()
    sample.add(recorder, sample.call(1000))  # not committed yet, but taken
    everything = list(recorder.since(0, 10**6))
    assert len(everything) == 401
    positions = [position for position, _ in everything]
    assert positions == sorted(positions)
    assert positions[-1] == recorder.size - 1
    kinds = {type(entries.decode(data)).__name__ for _, data in everything}
    assert kinds == {"Call", "Outcome"}
    paged, place = [], 0
    while page := list(recorder.since(place, 7)):
        paged += page
        place = page[-1][0] + 1
    assert paged == everything
    assert list(recorder.since(300, 10**6)) == [item for item in everything if item[0] >= 300]
    assert next(recorder.since(0, 5))[0] == 1  # an iterator that is dropped half-way is not a failure
    assert [data for _, data in recorder.since(0, 5, frozenset({"start"}))] == [entries.encode(sample.start())]
    recorder.close()


def test_a_second_writer_is_refused(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    with pytest.raises(RunnerError, match="another recorder"):
        sample.open_recorder(tmp_path)
    sample.add(recorder, *sample.pairs(1, 1))
    recorder.close()
    assert clean(sample, tmp_path) == 2
    sample.open_recorder(tmp_path).close()


def test_nobody_else_may_read(sample: ModuleType, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        sample.write(tmp_path / "state", 200)
        recorder = sample.open_recorder(tmp_path / "state")
        recorder.store(os.urandom(100_000))
        recorder.open_stream(1)
        recorder.write_stream(1, os.urandom(100_000))
        sample.add(recorder, sample.call(900))
        recorder.commit()
        modes = {
            path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").rglob("*") if not path.is_symlink()
        }
        recorder.close()
    finally:
        os.umask(before)
    assert {path.name for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == set()
    assert {"small.db", "small.db-wal", "tail", "checkpoint", "lock"} <= {path.name for path in modes}


def test_another_key_or_name_does_not_go_on(sample: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path, 3)
    with pytest.raises(RunnerError, match="not signed by"):
        sample.open_recorder(tmp_path, Ed25519PrivateKey.generate())
    with pytest.raises(RunnerError, match="not signed by"):
        Recorder.open(tmp_path, "toolrunner/other", sample.KEY, lambda: sample.NOW)
    assert clean(sample, tmp_path) == 8


def test_a_closed_recorder_does_nothing(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    recorder.close()
    for attempt in (recorder.commit, lambda: recorder.store(b"x"), lambda: sample.add(recorder, sample.start())):
        with pytest.raises(RunnerError, match="closed"):
            attempt()
    recorder.close()
