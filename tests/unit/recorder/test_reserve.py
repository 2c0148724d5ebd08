"""The reserve of disk: what finds no room goes through once it is given up, and what can wait does."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError
from runner.evidence.verify import verify
from runner.ledger.tile import RESERVE
from runner.recorder import durability as disk
from runner.recorder.log import Recorder
from runner.recorder.reserve import Reserve

SIZE = 1 << 20


class Full:
    """A disk without room until somebody removes the reserve: what creates or grows a file fails."""

    def __init__(self, patch: pytest.MonkeyPatch, reserve: Path) -> None:
        self.on = False
        self.failed = 0
        self._reserve = reserve
        for name in ("open", "write", "mkdir", "posix_fallocate"):
            patch.setattr(os, name, self._limited(name, getattr(os, name)))

    def _limited(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            grows = name != "open" or args[1] & os.O_CREAT
            if self.on and grows and self._reserve.exists():
                self.failed += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch, tmp_path / "content" / RESERVE)


def opened(sample: ModuleType, state: Path) -> Recorder:
    return Recorder.open(state, sample.ORIGIN, sample.KEY, lambda: sample.NOW, reserve=SIZE)


def whole(sample: ModuleType, state: Path, least: int) -> None:
    report = verify(state / "ledger", sample.VKEY, state / "content")
    assert report.ok, report
    assert report.signed >= least


def test_what_finds_no_room_goes_through_once_the_reserve_is_given_up(
    sample: ModuleType, tmp_path: Path, full: Full
) -> None:
    recorder = opened(sample, tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(0, 10))
    recorder.commit()
    assert not recorder.full
    full.on = True
    sample.add(recorder, *sample.pairs(10, 300))  # over a bundle's end
    size = recorder.commit()
    assert full.failed == 1
    assert recorder.full
    recorder.tidy()
    assert not (tmp_path / "ledger/tile").exists()  # it can wait
    whole(sample, tmp_path, size)
    sample.add(recorder, sample.stop())
    recorder.close()
    whole(sample, tmp_path, size + 1)
    full.on = False
    again = opened(sample, tmp_path)
    assert not again.full
    assert again.previous == "clean"
    assert (tmp_path / "ledger/tile/0/000").exists()
    again.close()
    whole(sample, tmp_path, size + 1)


@pytest.mark.parametrize("site", ["settle", "publish", "write_partials"])
def test_what_can_wait_waits_when_it_finds_no_room(
    sample: ModuleType, tmp_path: Path, full: Full, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the steps behind an acknowledgement meets the full disk first, and the ledger goes on."""
    recorder = opened(sample, tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(0, 200))
    size = recorder.commit()
    real = getattr(recorder._journal, site)

    def meets(*args: Any) -> None:
        full.on = True
        real(*args)

    monkeypatch.setattr(recorder._journal, site, meets)
    if site == "write_partials":
        recorder.close()
        assert full.failed == 1
    else:
        monkeypatch.setattr(recorder, "_published_at", float("-inf"))
        recorder.tidy()
        assert full.failed == 1
        assert recorder.full
        sample.add(recorder, *sample.pairs(1000, 200))
        size = recorder.commit()
        recorder.close()
    whole(sample, tmp_path, size)
    full.on = False
    opened(sample, tmp_path).close()
    whole(sample, tmp_path, size)


@pytest.mark.parametrize("room_in", range(1, 7))
def test_a_bundle_that_finds_no_room_at_any_file_is_written_later(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_in: int
) -> None:
    """Also when its tiles are there and the new tail is not: the old one goes on."""
    recorder = opened(sample, tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(0, 200))
    recorder.commit()
    real, seen = disk.write_all, 0

    def sometimes(*args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == room_in:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_all", sometimes)
        recorder.tidy()
    assert recorder.full == (seen >= room_in)
    assert not list(tmp_path.rglob("*.new"))
    sample.add(recorder, *sample.pairs(1000, 200))
    size = recorder.commit()
    recorder.look_for_room()
    assert not recorder.full
    recorder.tidy()
    whole(sample, tmp_path, size)
    recorder.abandon()
    again = opened(sample, tmp_path)
    assert again.durable == size
    again.close()
    whole(sample, tmp_path, size)


def test_a_full_content_store_is_tried_again_with_the_reserves_room(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = opened(sample, tmp_path)
    content = recorder._content
    pages = content._database.execute("PRAGMA page_count").fetchone()[0]
    content._database.execute(f"PRAGMA max_page_count={pages}")
    given_up = content._more_room

    def more_room() -> bool:
        content._database.execute("PRAGMA max_page_count=1000000")
        return given_up()

    monkeypatch.setattr(content, "_more_room", more_room)
    name = recorder.store(b"x" * 60_000)
    recorder.commit()
    assert recorder.full
    recorder.close()
    with sqlite3.connect(tmp_path / "content/small.db") as database:
        assert database.execute("SELECT count(*) FROM blob WHERE hex(digest) = upper(?)", (name,)).fetchone() == (1,)
    database.close()


def test_without_a_reserve_to_give_up_it_is_the_end(sample: ModuleType, tmp_path: Path, full: Full) -> None:
    recorder = opened(sample, tmp_path)
    recorder._reserve.give_up()
    full._reserve = tmp_path  # a disk that gets no room
    full.on = True
    sample.add(recorder, sample.start())
    for _ in range(2):
        with pytest.raises(RunnerError, match="No space left"):
            recorder.commit()
    assert full.failed == 1
    recorder.close()


def test_a_failed_sync_for_lack_of_room_is_the_end(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of what is on disk; only a write that wrote nothing may be done again."""
    recorder = opened(sample, tmp_path)
    sample.add(recorder, sample.start())

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(RunnerError, match="No space left"):
        recorder.commit()
    assert (tmp_path / "content" / RESERVE).exists()
    recorder.close()


def test_scarce_begins_and_ends_with_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / RESERVE, {"free": 10 * SIZE, "inodes": 1000}

    def room(_path: object) -> Any:
        return SimpleNamespace(f_bavail=now["free"] // 512, f_frsize=512, f_files=5000, f_favail=now["inodes"])

    monkeypatch.setattr(os, "statvfs", room)
    reserve = Reserve(path, SIZE)
    steps = (
        (10 * SIZE, 1000, False, True),
        (SIZE - 512, 1000, True, True),  # less than its size is free: kept, and nobody else is let in
        (2 * SIZE - 512, 1000, True, True),  # it does not come and go
        (2 * SIZE, 1000, False, True),
        (10 * SIZE, 10, True, True),
        (10 * SIZE, 1000, False, True),
    )
    for free, inodes, scarce, held in steps:
        now.update(free=free, inodes=inodes)
        reserve.look()
        assert (reserve.scarce, path.exists()) == (scarce, held), (free, inodes)
    assert reserve.give_up()
    assert not reserve.give_up()
    for free, held in ((3 * SIZE - 512, False), (3 * SIZE, True)):
        now.update(free=free)
        reserve.look()
        assert (reserve.scarce, path.exists()) == (not held, held)
    path.unlink()
    path.write_bytes(b"")
    os.truncate(path, SIZE)  # a copy that holds nothing back
    reserve.look()
    assert path.stat().st_blocks * 512 >= SIZE
    none = Reserve(tmp_path / "none", 0)
    now.update(free=0)
    none.look()
    assert (none.scarce, none.give_up(), (tmp_path / "none").exists()) == (False, False, False)
