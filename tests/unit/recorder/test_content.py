"""Content: every digest resolves, once, whatever its size and however it came."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType

import pytest

from runner.errors import RunnerError
from runner.evidence.content import ContentReader
from runner.ledger import entry as entries
from runner.ledger.tile import SMALL
from runner.recorder.content import ContentStore

SIZES = [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("small.db")]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_stored_whole_or_in_pieces_it_comes_back(tmp_path: Path, size: int, announced: bool) -> None:
    whole, pieces = os.urandom(size), os.urandom(size)
    store = ContentStore(tmp_path)
    assert store.store(whole) == digest(whole)
    store.open_stream(7, b"salt")
    for start in range(0, size, 10_000):
        store.write_stream(7, pieces[start : start + 10_000])
    if announced:
        store.close_stream(7, digest(b"salt" + pieces))
    else:
        assert store.end_stream(7) == digest(b"salt" + pieces)
    store.commit()
    reader = ContentReader(tmp_path)
    assert reader.get(digest(whole)) == whole
    assert reader.get(digest(b"salt" + pieces)) == b"salt" + pieces
    assert reader.get("0" * 64) is None
    assert reader.get("../../etc/passwd") is None
    reader.close()
    store.close()
    assert len(files(tmp_path)) == (size > SMALL) + (size + 4 > SMALL)


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    small, large = b"s" * 100, b"l" * (SMALL + 1)
    for _ in range(3):
        store = ContentStore(tmp_path)
        for _ in range(3):
            store.store(small)
            store.store(large)
            store.open_stream(1)
            store.write_stream(1, large)
            store.close_stream(1, digest(large))
            store.commit()
        store.close()
    assert [path.relative_to(tmp_path).parts[0] for path in files(tmp_path)] == ["sha256"]


def test_what_is_not_committed_is_not_kept(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    store.store(b"first")
    store.commit()
    store.store(b"second")
    store.close()
    reader = ContentReader(tmp_path)
    assert reader.get(digest(b"first")) == b"first"
    assert reader.get(digest(b"second")) is None
    reader.close()


@pytest.mark.parametrize("size", [10, SMALL + 1])
def test_dropped_and_mismatched_streams_leave_nothing(tmp_path: Path, size: int) -> None:
    store = ContentStore(tmp_path)
    store.open_stream(1)
    store.write_stream(1, b"x" * size)
    store.close_stream(1, drop=True)
    store.open_stream(1)
    store.write_stream(1, b"x" * size)
    with pytest.raises(RunnerError, match="announced"):
        store.close_stream(1, digest(b"y"))
    store.commit()
    reader = ContentReader(tmp_path)
    assert reader.get(digest(b"x" * size)) is None
    reader.close()
    store.close()
    assert files(tmp_path) == []


def test_streams_are_numbered_once(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    store.open_stream(1)
    with pytest.raises(RunnerError, match="open already"):
        store.open_stream(1)
    with pytest.raises(RunnerError, match="not open"):
        store.write_stream(2, b"")
    store.close_stream(1, drop=True)
    with pytest.raises(RunnerError, match="not open"):
        store.close_stream(1)
    store.close()


def test_what_a_dead_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    store.open_stream(1)
    store.write_stream(1, b"x" * (SMALL + 1))
    assert len(files(tmp_path)) == 1
    store._database.close()
    os.close(store._streams[1].descriptor)
    ContentStore(tmp_path).close()
    assert files(tmp_path) == []


def test_a_wrong_name_is_the_recorders_end(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    recorder.open_stream(1)
    with pytest.raises(RunnerError, match="announced"):
        recorder.close_stream(1, "0" * 64)
    with pytest.raises(RunnerError, match="announced"):
        sample.add(recorder, sample.start())
    recorder.close()


def test_content_comes_with_its_entry_and_is_durable_with_it(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    arguments, large = os.urandom(100), os.urandom(SMALL + 1)
    recorder.append(entries.encode(sample.call(1)), (arguments, large))
    recorder.commit()
    reader = ContentReader(tmp_path / "content")
    assert reader.get(digest(arguments)) == arguments
    assert reader.get(digest(large)) == large
    reader.close()
    recorder.close()


def test_content_of_a_refused_entry_is_not_kept(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    with pytest.raises(RunnerError, match="never planned"):
        recorder.append(entries.encode(sample.outcome(1)), (b"of an outcome", b"x" * (SMALL + 1)))
    sample.add(recorder, sample.start())
    recorder.commit()
    reader = ContentReader(tmp_path / "content")
    assert reader.get(digest(b"of an outcome")) is None
    reader.close()
    recorder.close()
    assert files(tmp_path / "content") == []
