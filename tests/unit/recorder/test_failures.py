"""Every call into the operating system fails once, or is the last one before a crash: nothing acknowledged is lost.

A failed call may have done nothing, or all that was asked of it: both are tried, for each call site of each write in
the table of `runner/recorder/durability.py` (those of `rotate.py` in `test_rotate.py`). This reaches every call that
Python makes, not those that SQLite makes inside itself for the content store."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.errors import RunnerError
from runner.evidence.verify import verify
from runner.ledger import entry as entries

COMMITS = 2  # per run, of 130 entries each: the second fills a bundle
SITES = ("open", "write", "fsync", "fdatasync", "rename", "mkdir", "unlink", "rmdir", "fchmod")


REAL_OPEN = os.open


class Crash(BaseException):
    """The process ends here, as by kill -9: nothing after this instruction happens."""


class Faults:
    """Counts calls of one function of `os` and does something in place of the n-th, and of every later one."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, nth: int, act: Callable[..., Any]) -> None:
        self.hit = False
        self._seen = 0
        real = getattr(os, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            self._seen += 1
            if self._seen < nth:
                return real(*args, **kwargs)
            self.hit = True
            return act(real, *args, **kwargs)

        patch.setattr(os, name, replaced)


def fails(number: int) -> Callable[..., Any]:
    def act(_real: object, *_args: Any, **_kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return act


def fails_after(number: int) -> Callable[..., Any]:
    """It was done, and reported as failed: what an interrupted or a networked disk may answer."""

    def act(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        if real is REAL_OPEN:
            os.close(done)
        raise OSError(number, os.strerror(number))

    return act


def crashes(*_args: Any, **_kwargs: Any) -> Any:
    raise Crash


def half_written(real: Callable[..., int], descriptor: int, data: bytes) -> Any:
    real(descriptor, data[: len(data) // 2])
    raise Crash


def work(sample: ModuleType, state: Path, acknowledged: list[int]) -> None:
    """Two runs over a bundle's end, with large content and a stop; notes every acknowledged size."""
    for first in (0, 1000):
        recorder = sample.open_recorder(state)
        try:
            sample.add(recorder, sample.start())
            for number in range(first, first + COMMITS * 65, 65):
                recorder.store(b"x" * 70_000 + bytes([number % 251]))
                sample.add(recorder, *sample.pairs(number, 65))
                acknowledged.append(recorder.commit())
                recorder.tidy()
            sample.add(recorder, sample.stop())
            recorder.close()
        except Crash:
            die(recorder)
            raise
        except RunnerError:
            with pytest.raises(RunnerError):  # fail closed: nothing more is taken
                sample.add(recorder, sample.start())
            with pytest.raises(RunnerError):
                recorder.commit()
            recorder.close()
            raise
        acknowledged.append(recorder.size)


def die(recorder: Any) -> None:
    """What the kernel does for a dead process: descriptors and the lock go, nothing is written."""
    recorder._content._database.close()
    for descriptor in (recorder._journal._file, recorder._lock):
        if descriptor >= 0:
            os.close(descriptor)


def judged(sample: ModuleType, state: Path, acknowledged: list[int]) -> None:
    """As found, and after recovery: it verifies and holds everything that was acknowledged."""
    most = max(acknowledged, default=0)
    if (state / "ledger/tail").exists():
        found = verify(state / "ledger", sample.VKEY, state / "content")
        assert found.ok, found
        assert found.signed >= most
    recorder = sample.open_recorder(state)
    assert recorder.durable >= most
    recorder.seal_interrupted(sample.NOW)
    sample.add(recorder, *sample.pairs(5000, 130), sample.stop())  # more than a bundle
    recorder.close()
    report = verify(state / "ledger", sample.VKEY, state / "content")
    assert report.ok, report
    assert (report.unsigned, report.open_calls) == (0, 0)
    assert not any("is under way" in note for note in report.notes)


@pytest.mark.parametrize(
    ("act", "site"),
    [
        *(pytest.param(crashes, site, id=f"crash-{site}") for site in SITES),
        *(pytest.param(fails(errno.EIO), site, id=f"EIO-{site}") for site in SITES),
        *(pytest.param(fails_after(errno.EIO), site, id=f"EIO-but-done-{site}") for site in SITES),
        *(
            pytest.param(fails(number), site, id=f"{errno.errorcode[number]}-{site}")
            for number in (errno.ENOSPC, errno.EROFS)
            for site in ("open", "write", "mkdir", "rename")
        ),
    ],
)
def test_every_call_site(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, act: Callable[..., Any]
) -> None:
    assert every_fault(sample, tmp_path, monkeypatch, site, act) > 0


def every_fault(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, act: Callable[..., Any]
) -> int:
    """The work with its first, second, … call of `site` spoilt, until it gets through. How many calls there were."""
    for nth in range(1, 400):
        state, acknowledged = tmp_path / "state", list[int]()
        end: BaseException | None = None
        with monkeypatch.context() as patch:
            faults = Faults(patch, site, nth, act)
            try:
                work(sample, state, acknowledged)
            except (RunnerError, Crash) as error:
                end = error
        assert faults.hit == (end is not None)
        if end is None:
            return nth - 1
        if isinstance(end, RunnerError):
            assert end.refused.code == "ledger"
            assert end.refused.next_step
        if state.exists():
            judged(sample, state, acknowledged)
            shutil.rmtree(state)
    raise AssertionError("the work never got past its faults")


def test_torn_writes_are_repaired_and_noted(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repairs: list[entries.AnyEntry] = []
    real = judged

    def noting(sample: ModuleType, state: Path, acknowledged: list[int]) -> None:
        real(sample, state, acknowledged)
        reopened = sample.open_recorder(state)
        repairs.extend(entries.decode(data) for _, data in reopened.since(0, 99, frozenset({"repair"})))
        reopened.close()

    monkeypatch.setattr(sys.modules[__name__], "judged", noting)
    every_fault(sample, tmp_path, monkeypatch, "write", half_written)
    assert all(isinstance(repair, entries.Repair) and repair.dropped > 0 for repair in repairs)
    # One for each commit, the two at the stops among them: every other write is of a file that nobody reads before
    # it is whole.
    assert len(repairs) == 2 * (COMMITS + 1)


def test_a_failed_fsync_is_never_tried_again(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    synced: list[int] = []

    def broken(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    for _ in range(3):
        with pytest.raises(RunnerError, match="Input/output"):
            recorder.commit()
    recorder.close()
    assert len(synced) == 1
    assert recorder.durable == 0


def test_short_writes_are_carried_on(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:1000]))
    sample.write(tmp_path, 150)
    assert verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content").ok


def test_content_that_cannot_be_stored_is_the_end(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    recorder._content._database.execute("PRAGMA query_only=ON")
    sample.add(recorder, sample.call(3))  # whose content came ahead of it
    with pytest.raises(RunnerError, match="readonly"):
        recorder.commit()
    with pytest.raises(RunnerError):
        recorder.commit()
    recorder.close()
    assert verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content").entries == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ledger: (ledger / "tail").unlink(),
        lambda ledger: (ledger / "checkpoint").unlink(),
        lambda ledger: (ledger / "tile/0/000").unlink(),
        lambda ledger: (ledger / "tile/0/000").write_bytes(bytes(8192)),
        lambda ledger: (ledger / "tile/0/000").write_bytes(b""),
        lambda ledger: (ledger / "tail").write_bytes(b""),
        lambda ledger: (ledger / "tail").write_bytes((ledger / "tail").read_bytes()[:-1]),
        lambda ledger: (ledger / "tail").write_bytes((ledger / "tail").read_bytes()[:1500]),
        lambda ledger: (ledger / "checkpoint").write_bytes(b"noise"),
    ],
)
def test_what_no_crash_explains_is_refused_and_left_alone(
    sample: ModuleType, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    sample.write(tmp_path, 200)
    ledger = tmp_path / "ledger"
    spoil(ledger)
    before = {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()}
    with pytest.raises(RunnerError) as caught:
        sample.open_recorder(tmp_path)
    assert caught.value.refused.code == "ledger"
    assert "restore a backup" in caught.value.refused.next_step
    assert caught.value.refused.field
    assert {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()} == before


def test_every_flipped_byte_of_a_stopped_tail_is_refused(sample: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path, 2)
    path = tmp_path / "ledger/tail"
    whole = path.read_bytes()
    for place in range(len(whole)):
        bent = bytearray(whole)
        bent[place] ^= 1
        path.write_bytes(bent)
        with pytest.raises(RunnerError):
            sample.open_recorder(tmp_path)
    path.write_bytes(whole)
    sample.open_recorder(tmp_path).close()
