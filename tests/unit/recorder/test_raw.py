"""Raw output is read back from wherever it lies, and only after an entry on disk says that it was opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.ledger.tile import PACKED, SMALL
from runner.recorder import raw as reading
from runner.recorder.log import Recorder
from runner.recorder.raw import Found

NOW = "2026-06-01T00:00:00.000000Z"
SIZES = {0: 300, 1: PACKED + 1, 2: SMALL + 1, 3: 3 << 20}  # with its entry; a row; a file; a file of several pieces


def kept(sample: ModuleType, number: int) -> bytes:
    return bytes(sample.SALT) + b"%d" % number * SIZES[number % 4]


def outcome(sample: ModuleType, number: int) -> Any:
    data = kept(sample, number)
    raw = entries.Raw(
        content=entries.Content(digest=hashlib.sha256(data).hexdigest(), size=len(data) - 16),
        segments=1, kept="always", recipients=("r",),
    )  # fmt: skip
    return msgspec.structs.replace(sample.outcome(number), raw=raw)


def fill(sample: ModuleType, state: Path, count: int) -> Recorder:
    """Calls with raw output, and the last without."""
    recorder: Recorder = sample.open_recorder(state)
    sample.add(recorder, sample.start())
    for number in range(count):
        recorder.append(entries.encode(sample.call(number)))
        if number % 4 < 2:
            recorder.append(entries.encode(outcome(sample, number)), (kept(sample, number),))
        else:
            recorder.store(kept(sample, number))
            recorder.append(entries.encode(outcome(sample, number)))
        recorder.commit()
    recorder.append(entries.encode(sample.call(count)))
    recorder.append(entries.encode(sample.outcome(count)))
    recorder.append(entries.encode(sample.call(count + 1)))
    recorder.commit()
    recorder.tidy()
    return recorder


def find(recorder: Recorder, call: str) -> Found:
    job: Any = recorder.raw.find(call)
    while True:
        done, found = recorder.work(job)
        if done:
            assert isinstance(found, Found)
            return found


def opening(sample: ModuleType, number: int, **changes: Any) -> bytes:
    fields = {"call": sample.call(number).call, "raw": outcome(sample, number).raw.content.digest} | changes
    return entries.encode(entries.RawOpen(time=NOW, why="case 7", by=0, **fields))


def read(recorder: Recorder, digest: str) -> bytes:
    whole = b""
    while piece := recorder.read_raw(digest, len(whole)):
        assert len(piece) <= reading.PIECE
        whole += piece
    return whole


def test_each_is_found_opened_and_read_whole(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 140)  # bundles with packs, and a tail
    try:
        for number in (*range(4), *range(136, 140)):
            call, digest = sample.call(number).call, outcome(sample, number).raw.content.digest
            found = find(recorder, call)
            assert found == Found(2 + 2 * number, entries.encode(outcome(sample, number)))
            recorder.append(opening(sample, number))
            recorder.commit()
            assert read(recorder, digest) == kept(sample, number)
    finally:
        recorder.close()


def test_what_has_no_outcome_or_no_raw_output_is_not_there_to_open(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 4)
    try:
        without = find(recorder, sample.call(4).call)
        assert without == Found(10, entries.encode(sample.outcome(4)))
        for call in (sample.call(5).call, "c-unknown", "", "*", '"', "x" * 200):
            assert find(recorder, call) == Found()
        assert find(recorder, sample.call(0).call).position == 2
    finally:
        recorder.close()


def test_nothing_is_read_before_the_entry_that_says_so_is_on_disk(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 4)
    digest = outcome(sample, 0).raw.content.digest

    def refused(act: Any) -> str:
        with pytest.raises(RunnerError) as caught:
            act()
        return str(caught.value.refused.reason)

    try:
        assert "no entry says" in refused(lambda: recorder.read_raw(digest, 0))
        assert "no raw output that was found" in refused(lambda: recorder.append(opening(sample, 0)))
        find(recorder, sample.call(0).call)
        assert "no entry says" in refused(lambda: recorder.read_raw(digest, 0))
        assert "no raw output" in refused(lambda: recorder.append(opening(sample, 0, call=sample.call(1).call)))
        size = recorder.size
        recorder.append(opening(sample, 0))
        assert recorder.size == size + 1
        assert "no entry says" in refused(lambda: recorder.read_raw(digest, 0))  # it is not on disk yet
        recorder.commit()
        assert read(recorder, digest) == kept(sample, 0)
        other = outcome(sample, 1).raw.content.digest
        assert "no entry says" in refused(lambda: recorder.read_raw(other, 0))
        plain = hashlib.sha256(b"x").hexdigest()
        assert "no entry says" in refused(lambda: recorder.read_raw(plain, 0))
    finally:
        recorder.close()


def test_what_was_pruned_since_is_not_given(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 4)
    try:
        for number in range(4):
            find(recorder, sample.call(number).call)
            recorder.append(opening(sample, number))
        recorder.commit()
        job: Any = recorder.retention.select(entries.Criteria(raw=True), keep=True)
        while not (step := recorder.work(job))[0]:
            pass
        chosen: Any = step[1]
        assert chosen.pieces == 4  # raw output alone, not what else these calls kept
        entry = entries.Prune(
            time=NOW, of=entries.Criteria(raw=True), pruned=entries.Content(digest=chosen.pruned, size=32 * 4),
            pieces=4, size=chosen.size, why="sooner", by=0,
        )  # fmt: skip
        recorder.append(entries.encode(entry))
        job = recorder.retention.remove(chosen.pruned)
        while not recorder.work(job)[0]:
            pass
        for number in range(4):
            with pytest.raises(RunnerError, match="not kept any more"):
                recorder.read_raw(outcome(sample, number).raw.content.digest, 0)
    finally:
        recorder.close()
