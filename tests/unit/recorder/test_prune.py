"""Retention: what is pruned is gone everywhere, what is held or needed stays, and the ledger verifies whatever the
moment at which the writer dies."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from runner.errors import RunnerError
from runner.evidence.content import ContentReader
from runner.evidence.report import Report
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger import pruned as lists
from runner.ledger import tail as tails
from runner.ledger.tile import PRUNED
from runner.recorder import prune as pruning
from runner.recorder.content import ContentStore
from runner.recorder.log import Recorder
from runner.recorder.prune import Selection

FEW = 150  # one bundle in a pack, and a tail
CALLS = 400  # three bundles in packs, and a tail
OLD, NEW = "2026-01-01T00:00:00.000000Z", "2026-06-01T00:00:00.000000Z"
LARGE = 70_000


def carry(recorder: Recorder, job: Any) -> Selection | None:
    while True:
        done, found = recorder.work(job)
        if done:
            return found


def choose(recorder: Recorder, *, keep: bool = True, **of: Any) -> Selection:
    found = carry(recorder, recorder.retention.select(entries.Criteria(**of), keep=keep))
    assert found is not None
    return found


def tombstone(recorder: Recorder, found: Selection) -> None:
    entry = entries.Prune(
        time=NEW, of=entries.Criteria(), pruned=entries.Content(digest=found.pruned, size=32 * found.pieces),
        pieces=found.pieces, size=found.size, why="the plan says so", by=0,
    )  # fmt: skip
    recorder.append(entries.encode(entry))


def prune(recorder: Recorder, **of: Any) -> Selection:
    found = choose(recorder, **of)
    if found.pieces:
        tombstone(recorder, found)
        assert carry(recorder, recorder.retention.remove(found.pruned)) is None
    return found


def call(sample: ModuleType, number: int, **changes: Any) -> Any:
    """A call whose content is nobody else's; every fifth one's arguments are a file of their own."""
    data = arguments(number)
    named = entries.Content(digest=hashlib.sha256(sample.SALT + data).hexdigest(), size=len(data))
    time = OLD if number < CALLS // 2 else NEW
    return msgspec.structs.replace(
        sample.call(number, task=f"t{number % 4}", tool="fs_read" if number % 2 else "fs_list"),
        **({"time": time, "arguments": named} | changes),
    )


def arguments(number: int) -> bytes:
    return b"large %d" % number + bytes(LARGE) if number % 5 == 0 else b"own %d" % number


def fill(sample: ModuleType, state: Path, count: int = CALLS) -> Recorder:
    recorder: Recorder = sample.open_recorder(state)
    sample.add(recorder, sample.start())
    for number in range(count):
        contents = (sample.SALT + arguments(number), sample.SALT + b"plan")
        if number % 3 == 0:  # ahead of its entry: rows of SQLite, or files
            for each in contents:
                recorder.store(each)
            contents = ()
        recorder.append(entries.encode(call(sample, number)), contents)
        recorder.append(entries.encode(sample.outcome(number, task=f"t{number % 4}")), (sample.SALT + b"out",))
        if number % 50 == 49:
            recorder.commit()
    recorder.commit()
    recorder.tidy()
    return recorder


def checked(sample: ModuleType, state: Path) -> Report:
    report = verify(state / "ledger", sample.VKEY, state / "content")
    assert report.ok, report
    return report


def there(sample: ModuleType, state: Path, number: int) -> bool:
    reader = ContentReader(state / "content")
    try:
        return reader.get(call(sample, number).arguments.digest, 1 + 2 * number) is not None
    finally:
        reader.close()


def bytes_of(state: Path, needle: bytes) -> list[str]:
    """Files that hold these bytes anywhere."""
    return [path.name for path in state.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_by_age_it_is_gone_from_packs_rows_files_and_the_tail(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path)
    assert bytes_of(tmp_path, b"sown 7")
    assert bytes_of(tmp_path, b"slarge 10")
    dry = choose(recorder, keep=False, before=NEW)
    assert dry.pruned == ""
    found = prune(recorder, before=NEW)
    assert found[1:] == dry[1:]
    assert found.pieces == CALLS // 2  # the plan and the output are other calls' too
    assert found.size == sum(len(arguments(number)) for number in range(CALLS // 2))
    recorder.commit()
    for number in range(CALLS):
        assert there(sample, tmp_path, number) == (number >= CALLS // 2)
        assert bool(bytes_of(tmp_path, b"s" + arguments(number)[:20])) == (number >= CALLS // 2) or number % 50
    report = checked(sample, tmp_path)
    assert any("200 of them are gone" in note for note in report.notes), report.notes
    assert prune(recorder, before=NEW).pieces == 0  # once is enough
    recorder.close()
    assert checked(sample, tmp_path).entries == 2 + 2 * CALLS


def test_the_tail_is_pruned_too_and_nothing_comes_back_at_a_stop_or_with_a_bundle(
    sample: ModuleType, tmp_path: Path
) -> None:
    recorder = fill(sample, tmp_path, 20)
    assert prune(recorder, before=NEW).pieces == 22  # nobody else needs the plan and the output
    assert not bytes_of(tmp_path, b"own 7")
    recorder.close()
    assert not bytes_of(tmp_path, b"own 7")
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, *sample.pairs(1000, 300))
    recorder.commit()
    recorder.close()
    assert not bytes_of(tmp_path, b"own 7")
    # What later calls need came with them: the same plan, the same output.
    checked(sample, tmp_path)


@pytest.mark.parametrize(
    ("of", "fits"),
    [
        ({"larger": 1000}, lambda number: number % 5 == 0),
        ({"tasks": ("t1", "t3")}, lambda number: number % 4 in (1, 3)),
        ({"tools": ("fs_list",), "before": NEW}, lambda number: number % 2 == 0 and number < CALLS // 2),
        ({"agents": ("nobody",)}, lambda number: False),
        ({"agents": ("a",), "tasks": ("t0",), "larger": 1000}, lambda number: number % 20 == 0),
    ],
)
def test_by_size_and_label(sample: ModuleType, tmp_path: Path, of: dict[str, Any], fits: Callable[[int], bool]) -> None:
    recorder = fill(sample, tmp_path)
    found = prune(recorder, **of)
    assert found.pieces == sum(fits(number) for number in range(CALLS))
    assert [n for n in range(CALLS) if not there(sample, tmp_path, n)] == [n for n in range(CALLS) if fits(n)]
    recorder.close()
    checked(sample, tmp_path)


def test_what_is_held_stays_until_its_release(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path)
    hold = entries.Hold(time=NEW, name="case", of=entries.Criteria(tasks=("t1",)), why="counsel", by=0)
    recorder.append(entries.encode(hold))
    found = prune(recorder, before=NEW)
    assert found.pieces == 150
    assert found.held == 3 * 50  # arguments, plan and output of each
    assert [there(sample, tmp_path, number) for number in range(8)] == [False, True, False, False] * 2
    other = entries.Release(time=NEW, name="another", why="a mistake", by=0)
    recorder.append(entries.encode(other))
    assert prune(recorder, before=NEW).pieces == 0
    recorder.append(entries.encode(entries.Release(time=NEW, name="case", why="settled", by=0)))
    assert prune(recorder, before=NEW).pieces == 50
    assert not any(there(sample, tmp_path, number) for number in range(8))
    recorder.close()
    checked(sample, tmp_path)


def test_a_hold_knows_an_agent_by_every_name_and_a_prune_by_the_roots(sample: ModuleType, tmp_path: Path) -> None:
    """A name that an agent gives to one below it must not have evidence pruned; it may have it kept."""
    recorder = sample.open_recorder(tmp_path)
    for number, asserted in enumerate(((), ("helper", "helper's"))):
        begun = call(sample, number)
        who = msgspec.structs.replace(begun.who, asserted=asserted)
        kept = (sample.SALT + arguments(number), sample.SALT + b"plan")
        recorder.append(entries.encode(msgspec.structs.replace(begun, who=who)), kept)
        recorder.append(entries.encode(sample.outcome(number, task=f"t{number}")), (sample.SALT + b"out",))
    recorder.commit()
    assert choose(recorder, agents=("helper",)).pieces == 0
    recorder.append(
        entries.encode(
            entries.Hold(time=NEW, name="case", of=entries.Criteria(agents=("helper's",)), why="counsel", by=0)
        )
    )
    assert choose(recorder, agents=("a",))[1:4] == (1, len(arguments(0)), 3)
    recorder.close()


def test_a_hold_between_the_choice_and_its_tombstone_stops_it(sample: ModuleType, tmp_path: Path) -> None:
    """Gate does one after the other; the recorder takes nobody's word for that."""
    recorder = fill(sample, tmp_path, 20)
    found = choose(recorder, before=NEW)
    hold = entries.Hold(time=NEW, name="case", of=entries.Criteria(tasks=("t1",)), why="counsel", by=0)
    recorder.append(entries.encode(hold))
    for wrong in (found, found._replace(pruned="0" * 64)):
        with pytest.raises(RunnerError, match="selected since the newest hold"):
            tombstone(recorder, wrong)
    again = choose(recorder, before=NEW)
    assert 0 < again.pieces < found.pieces
    tombstone(recorder, again)
    with pytest.raises(RunnerError, match="selected since the newest hold"):
        tombstone(recorder, again)  # once
    recorder.append(entries.encode(hold))  # too late for it: the log says in which order
    assert carry(recorder, recorder.retention.remove(again.pruned)) is None
    assert not there(sample, tmp_path, 0)
    assert there(sample, tmp_path, 1)
    recorder.close()
    checked(sample, tmp_path)


def test_a_call_that_runs_keeps_what_it_has(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path)
    recorder.append(
        entries.encode(call(sample, 1001, time=OLD)), (sample.SALT + arguments(1001), sample.SALT + b"plan")
    )
    recorder.commit()
    assert prune(recorder, before=NEW).pieces == CALLS // 2
    recorder.append(entries.encode(sample.outcome(1001, task="t1")), (sample.SALT + b"out",))
    recorder.commit()
    assert prune(recorder, before=NEW).pieces == 1
    recorder.close()
    checked(sample, tmp_path)


def test_nothing_goes_without_a_tombstone(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 20)
    found = choose(recorder, before=NEW)
    for name in (found.pruned, "0" * 64, "../x"):
        with pytest.raises(RunnerError):
            recorder.retention.remove(name)
    recorder.close()
    recorder = sample.open_recorder(tmp_path)
    assert list((tmp_path / "content" / PRUNED).iterdir()) == []  # nobody will ask for it any more
    assert all(there(sample, tmp_path, number) for number in range(20))
    done = prune(recorder, before=NEW)
    with pytest.raises(RunnerError, match="carried out before"):
        recorder.retention.remove(done.pruned)
    recorder.close()
    checked(sample, tmp_path)


def test_a_list_without_a_tombstone_excuses_nothing(sample: ModuleType, tmp_path: Path) -> None:
    """Whoever can write the content folder, but has no ledger key, cannot remove content unseen."""
    recorder = fill(sample, tmp_path)
    honest = prune(recorder, before=NEW)
    recorder.close()
    digest = bytes.fromhex(call(sample, 250).arguments.digest)
    (tmp_path / "content/sha256" / digest.hex()[:2] / digest.hex()[2:]).unlink()
    folder = tmp_path / "content" / PRUNED
    for name, listed in (
        (hashlib.sha256(digest).hexdigest(), digest),
        (honest.pruned, b"".join(sorted([digest, *[b"\0" * 32] * (honest.pieces - 1)]))),
        (honest.pruned, b"".join(sorted([digest, *lists.split((folder / honest.pruned).read_bytes())]))),
    ):
        kept = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).write_bytes(listed)
        report = verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content")
        assert not report.checks[7].ok, name
        (folder / name).write_bytes(kept) if kept else (folder / name).unlink()
    (folder / honest.pruned).unlink()
    assert not verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content").checks[7].ok


def test_a_tombstone_without_its_list_is_found(sample: ModuleType, tmp_path: Path) -> None:
    """Even while all that it says is gone is still there."""
    recorder = fill(sample, tmp_path, 20)
    found = choose(recorder, before=NEW)
    tombstone(recorder, found)
    recorder.commit()
    recorder._release()
    checked(sample, tmp_path)
    (tmp_path / "content" / PRUNED / f"{found.pruned}.due").unlink()
    report = verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content")
    assert [check.number for check in report.checks if not check.ok] == [8]


def test_a_tombstone_that_nobody_signed_excuses_nothing(sample: ModuleType, tmp_path: Path) -> None:
    """Nor does whoever can write the files, but has no key, get it signed by the next start."""
    recorder = fill(sample, tmp_path)
    recorder.close()
    digest = bytes.fromhex(call(sample, 250).arguments.digest)
    (tmp_path / "content/sha256" / digest.hex()[:2] / digest.hex()[2:]).unlink()
    name = hashlib.sha256(digest).hexdigest()
    (tmp_path / "content" / PRUNED).mkdir()
    (tmp_path / "content" / PRUNED / name).write_bytes(digest)
    entry = entries.Prune(
        time=NEW, of=entries.Criteria(), pruned=entries.Content(digest=name, size=32), pieces=1, size=1, why="x", by=0
    )
    with (tmp_path / "ledger/tail").open("ab") as tail:
        tail.write(tails.record(tails.ENTRY, entries.encode(entry)))
    for _ in range(2):
        report = verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content")
        assert [check.number for check in report.checks if not check.ok] == [8], report
        recorder = sample.open_recorder(tmp_path)
        assert not any(b'"kind":"prune"' in data for _, data in recorder._journal.entries(0))
        recorder.close()


def test_no_list_is_longer_than_its_bound(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "MAX_PIECES", 30)
    recorder = fill(sample, tmp_path, 60)
    found, rounds = prune(recorder, before=NEW), 1
    while found.more:
        assert found.pieces <= 30 + 6  # what one call may add to the last place
        found, rounds = prune(recorder, before=NEW), rounds + 1
    assert rounds > 1
    assert not any(there(sample, tmp_path, number) for number in range(60))
    recorder.close()
    checked(sample, tmp_path)


def test_a_damaged_pack_is_left_as_it_is(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path)
    packs = sorted((tmp_path / "content/pack").iterdir())
    damaged = packs[0].read_bytes()[:-3]
    packs[0].write_bytes(damaged)
    prune(recorder, before=NEW)
    assert packs[0].read_bytes() == damaged
    assert not packs[1].exists()  # the twin
    recorder.close()


class Crash(BaseException):
    """The process ends here, as by kill -9."""


def dying(real: Any, nth: int, how: str) -> Any:
    """`real`, whose `nth` call is the last ("after"), or never happens ("before"), or fails once without ("fails") or
    after ("fails after") having done what it should."""
    seen = iter(range(1, 1 << 30))

    def dies(*args: Any, **kwargs: Any) -> Any:
        now = next(seen)
        if now < nth or (now > nth and how.startswith("fails")):
            return real(*args, **kwargs)
        if how.endswith("after") and now == nth:
            done = real(*args, **kwargs)
            if real.__name__ == "open":
                os.close(done)
        raise OSError(5, "Input/output error") if how.startswith("fails") else Crash

    return dies


@pytest.mark.parametrize("how", ["before", "after", "fails", "fails after"])
@pytest.mark.parametrize("site", ["open", "write", "fsync", "fdatasync", "rename", "unlink", "mkdir"])
def test_dead_at_any_moment_it_verifies_and_the_next_start_goes_on(
    sample: ModuleType, tmp_path: Path, site: str, how: str
) -> None:
    whole = tmp_path / "whole"
    recorder = fill(sample, whole, FEW)
    recorder._release()
    for nth in range(1, 200):
        state = tmp_path / f"{site}{nth}"
        shutil.copytree(whole, state)
        with pytest.MonkeyPatch.context() as patch:
            recorder = sample.open_recorder(state)
            patch.setattr(os, site, dying(getattr(os, site), nth, how))
            try:
                prune(recorder, before=NEW)
                died = False
            except (Crash, RunnerError):
                died = True
        recorder._release()
        if not died:
            break
        checked(sample, state)  # as it lies there
        recorder = sample.open_recorder(state)
        report = checked(sample, state)
        recorded = any("were pruned" in note for note in report.notes)
        assert [there(sample, state, number) for number in (7, 10)] == [not recorded, not recorded]
        assert not list((state / "content").glob(f"{PRUNED}/*.*")), "nothing is due, nothing unfinished"
        prune(recorder, before=NEW)
        assert not there(sample, state, 7)
        recorder.close()
        checked(sample, state)
        shutil.rmtree(state)
    else:
        pytest.fail("it never came to its end")
    assert nth > 1, "it was reached"


def test_a_reader_that_holds_on_delays_it_and_blocks_nobody(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was removed is still in the database while a reader looks at it: the list stays due, and is not done."""
    monkeypatch.setattr(pruning, "_FLUSHES", 3)
    recorder = fill(sample, tmp_path, 60)
    reader = sqlite3.connect(tmp_path / "content/small.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM blob").fetchone()
    found = prune(recorder, before=NEW)
    lists = tmp_path / "content" / PRUNED
    assert [path.name for path in lists.iterdir()] == [f"{found.pruned}.due"]
    assert bytes_of(tmp_path, b"sown 3")
    checked(sample, tmp_path)
    digest = call(sample, 3).arguments.digest
    assert recorder.retention.gone(["0" * 64, digest]) == (digest,)
    assert prune(recorder, before=NEW).pieces == 0
    recorder._release()
    recorder = sample.open_recorder(tmp_path)  # which goes on with it, and cannot either
    assert [path.suffix for path in lists.iterdir()] == [".due"]
    assert recorder.retention.gone([digest]) == (digest,)
    recorder._release()
    reader.close()
    recorder = sample.open_recorder(tmp_path)
    assert [path.name for path in lists.iterdir()] == [found.pruned]
    assert not bytes_of(tmp_path, b"sown 3")
    recorder.close()


def test_the_database_never_waits_for_a_reader(tmp_path: Path) -> None:
    """A lock that is waited for would stop every entry of every task meanwhile."""
    store = ContentStore(tmp_path)
    asked: list[str] = []
    store._database.set_trace_callback(asked.append)
    assert store.flush()
    assert asked.index("PRAGMA busy_timeout=0") < asked.index("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store._database.execute("PRAGMA busy_timeout").fetchone()[0] > 0
    store.close()


def test_sqlite_keeps_no_copy(sample: ModuleType, tmp_path: Path) -> None:
    recorder = fill(sample, tmp_path, 60)
    assert bytes_of(tmp_path, b"sown 3")
    prune(recorder, before=NEW)
    recorder.close()
    assert not bytes_of(tmp_path, b"sown 3")
    with sqlite3.connect(tmp_path / "content/small.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_what_a_call_reached_goes_with_it_and_nothing_else_does(sample: ModuleType, tmp_path: Path) -> None:
    """Paths under a digest, and kept responses: small ones beside their entries, a large one in pieces."""
    recorder: Recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    large = b"answer of 2" + bytes(LARGE)
    for number in (1, 2, 3):
        body = large if number == 2 else b"answer of %d" % number
        path = b"/accounts/%d" % number
        recorder.append(
            entries.encode(call(sample, number, time=OLD)), (sample.SALT + arguments(number), sample.SALT + b"plan")
        )
        asked = sample.egress(number, task=f"t{number}", path_content=sample.kept(path))
        recorder.append(entries.encode(asked), (sample.SALT + path,))
        if number == 2:
            recorder.open_stream(-1, sample.SALT)
            recorder.write_stream(-1, body)
            recorder.close_stream(-1, sample.kept(body).digest)
        ended = sample.egress_end(number, task=f"t{number}", response=sample.kept(body))
        recorder.append(entries.encode(ended), () if number == 2 else (sample.SALT + body,))
        if number != 3:  # the third still runs
            recorder.append(entries.encode(sample.outcome(number, task=f"t{number}")), (sample.SALT + b"out",))
    recorder.commit()
    checked(sample, tmp_path)
    assert prune(recorder, before=NEW, tasks=("t2", "t3")).size == len(arguments(2)) + len(b"/accounts/2") + len(large)
    recorder.commit()
    assert not bytes_of(tmp_path, b"/accounts/2")
    assert not bytes_of(tmp_path, b"answer of 2")
    for kept in (b"/accounts/1", b"answer of 1", b"/accounts/3", b"answer of 3"):
        assert bytes_of(tmp_path, kept), kept
    report = checked(sample, tmp_path)
    assert any("3 of them are gone" in note for note in report.notes), report.notes
    recorder.close()


def test_a_hold_keeps_what_a_call_reached(sample: ModuleType, tmp_path: Path) -> None:
    recorder: Recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    contents = (sample.SALT + arguments(1), sample.SALT + b"plan")
    recorder.append(entries.encode(call(sample, 1, time=OLD)), contents)
    recorder.append(
        entries.encode(sample.egress(1, task="t1", path_content=sample.kept(b"/p"))), (sample.SALT + b"/p",)
    )
    recorder.append(entries.encode(sample.egress_end(1, task="t1")))
    recorder.append(entries.encode(sample.outcome(1, task="t1")), (sample.SALT + b"out",))
    hold = entries.Hold(time=NEW, name="case", of=entries.Criteria(tasks=("t1",)), why="asked", by=0)
    recorder.append(entries.encode(hold))
    found = choose(recorder, keep=False, before=NEW)
    assert (found.pieces, found.held) == (0, 4)
    recorder.append(entries.encode(entries.Release(time=NEW, name="case", why="over", by=0)))
    assert choose(recorder, keep=False, before=NEW).pieces == 4
    recorder.close()
