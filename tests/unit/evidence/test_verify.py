"""Verification finds every change of every file, says where, and never crashes."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.evidence import report as found
from runner.evidence.content import ContentReader
from runner.evidence.report import Report
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger.note import Checkpoint, Signer
from runner.ledger.tile import pack_bundle, split_bundle

CALLS = 140  # one full bundle, a tail, partial tiles of two levels


@pytest.fixture(scope="module")
def original(sample: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("ledger")
    sample.write(state, CALLS)
    return state


@pytest.fixture
def state(original: Path, tmp_path: Path) -> Path:
    """A stopped ledger to spoil."""
    return Path(shutil.copytree(original, tmp_path / "state"))


def check(sample: ModuleType, state: Path, *, content: bool = True, **more: object) -> Report:
    return verify(state / "ledger", sample.VKEY, state / "content" if content else None, **more)  # type: ignore[arg-type]  # more is anchors or progress


def failed(report: Report) -> set[int]:
    assert report.ok == all(item.ok for item in report.checks)
    return {item.number for item in report.checks if not item.ok}


def places(report: Report) -> str:
    return "\n".join(f"{item.place}: {item.problem}" for one in report.checks for item in one.findings)


def ledger_files(state: Path) -> list[Path]:
    """Every file of the ledger but the empty lock."""
    return sorted(path for path in (state / "ledger").rglob("*") if path.is_file() and path.name != "lock")


def test_an_untouched_ledger_verifies(sample: ModuleType, state: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check(sample, state, progress=lambda done, total: calls.append((done, total)))
    assert report.ok, report
    assert (report.entries, report.signed, report.unsigned, report.open_calls) == (282, 282, 0, 0)
    assert report.origin == sample.ORIGIN
    assert report.notes == ()
    assert calls == [(256, 256)]
    assert not any(item.skipped for item in report.checks)
    assert {item.number for item in check(sample, state, content=False).checks if item.skipped} == {8, 9}


def flips(path: Path, count: int) -> Iterator[int]:
    """All places of a small file, a sample of a large one, its two ends always."""
    size = path.stat().st_size
    if size <= count:
        yield from range(size)
    else:
        yield from {0, 1, size - 2, size - 1, *random.Random(path.name).sample(range(size), count)}


def test_every_flipped_byte_is_found_in_its_file(sample: ModuleType, state: Path) -> None:
    total = 0
    for path in ledger_files(state):
        whole = path.read_bytes()
        for place in flips(path, 70):
            bent = bytearray(whole)
            bent[place] ^= 1 << random.Random(place).randrange(8)
            path.write_bytes(bent)
            report = check(sample, state, content=False)
            assert not report.ok, (path, place)
            total += 1
        path.write_bytes(whole)
    assert total > 400
    assert check(sample, state).ok


def test_every_truncation_is_found(sample: ModuleType, state: Path) -> None:
    for path in ledger_files(state):
        whole = path.read_bytes()
        for size in flips(path, 40):
            path.write_bytes(whole[:size])
            assert not check(sample, state, content=False).ok, (path, size)
        path.write_bytes(whole)
    assert check(sample, state).ok


def test_every_file_is_missed_and_every_rename_seen(sample: ModuleType, state: Path) -> None:
    for path in ledger_files(state):
        if path.name == "key.pub":
            continue  # its loss takes nothing away: the key is given
        aside = state / "aside"
        path.rename(aside)
        report = check(sample, state, content=False)
        partial = path.parent.suffix == ".p"
        assert report.ok == partial, path  # partial tiles are there for other readers; a running ledger has none
        for name in ("000.p", "xyz", "001", "tail.bak", path.name + "~"):
            wrong = path.with_name(name)
            if not wrong.exists():
                shutil.copy(aside, wrong)
                assert not check(sample, state, content=False).ok, wrong
                wrong.unlink()
        aside.rename(path)
    assert check(sample, state).ok


def test_files_that_change_places_are_found(sample: ModuleType, state: Path) -> None:
    files = ledger_files(state)
    for first in files:
        for second in files:
            if first.read_bytes() == second.read_bytes():
                continue
            kept = second.read_bytes()
            shutil.copy(first, second)
            assert not check(sample, state, content=False).ok, (first, second)
            second.write_bytes(kept)


def swap(items: list[bytes]) -> list[bytes]:
    return [items[1], items[0], *items[2:]]


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda items: [items[0], *items],
        lambda items: items[1:],
        lambda items: items[:-1],
        lambda items: [items[0].replace(b'"clean"', b'"dirty"').replace(b'"h"', b'"i"'), *items[1:]],
        lambda items: [],
    ],
    ids=["swapped", "doubled", "dropped first", "dropped last", "changed", "emptied"],
)
def test_entries_that_change_are_found(
    sample: ModuleType, state: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = state / "ledger/tile/entries/000"
    items = split_bundle(path.read_bytes(), 256)
    path.write_bytes(pack_bundle(change(items)))
    report = check(sample, state, content=False)
    assert failed(report) & {found.ENTRIES, found.TILES}
    assert "position 0" in places(report) or "tile/entries/000" in places(report)


def test_whoever_rehashes_all_tiles_still_lacks_the_signature(sample: ModuleType, tmp_path: Path) -> None:
    forger = Ed25519PrivateKey.generate()
    recorder = sample.open_recorder(tmp_path, forger)
    sample.add(recorder, sample.start(), *sample.pairs(0, 140), sample.stop())
    recorder.close()
    report = check(sample, tmp_path)
    assert {found.TAIL, found.SIGNED} <= failed(report)
    assert verify(tmp_path / "ledger", Signer(sample.ORIGIN, forger).verifier.text, None).ok


def test_another_key_and_another_log(sample: ModuleType, state: Path) -> None:
    for signer in (Signer(sample.ORIGIN, Ed25519PrivateKey.generate()), Signer("toolrunner/other", sample.KEY)):
        report = verify(state / "ledger", signer.verifier.text, None)
        assert found.SIGNED in failed(report)
    with pytest.raises(RunnerError) as caught:
        verify(state / "ledger", "no key", None)
    assert caught.value.refused.code == "key"


def test_the_keys_file_is_compared(sample: ModuleType, state: Path) -> None:
    other = Signer(sample.ORIGIN, Ed25519PrivateKey.generate())
    (state / "ledger/key.pub").write_text(other.verifier.text + "\n")
    assert failed(check(sample, state)) == {found.KEY}


def test_a_checkpoint_of_another_ledger_of_the_same_key(sample: ModuleType, state: Path, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path / "other")
    sample.add(recorder, *sample.pairs(0, 141))
    recorder.close()
    shutil.copy(tmp_path / "other/ledger/checkpoint", state / "ledger/checkpoint")
    assert found.SIGNED in failed(check(sample, state))


def test_anchors_find_rollback_and_fork(sample: ModuleType, state: Path, tmp_path: Path) -> None:
    signer = Signer(sample.ORIGIN, sample.KEY)
    recorder = sample.open_recorder(state)
    old = (state / "ledger/checkpoint").read_bytes()
    shutil.copytree(state, tmp_path / "rolled back")
    sample.add(recorder, sample.start())
    recorder.close()
    new = (state / "ledger/checkpoint").read_bytes()
    inside = signer.sign(Checkpoint(sample.ORIGIN, 100, b"x" * 32).text())
    assert check(sample, state, anchors=[old, new]).ok
    assert not check(sample, state, anchors=[inside]).ok
    report = check(sample, tmp_path / "rolled back", anchors=[old, new])
    assert failed(report) == {found.SIGNED}
    assert "anchor 2: it signs 283 entries, and only 282 are here" in places(report)


def test_a_true_anchor_inside_a_bundle(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    anchors = []
    for number in range(200):
        sample.add(recorder, *sample.pairs(number, 1))
        recorder.commit()
        recorder.tidy()
        anchors.append((tmp_path / "ledger/checkpoint").read_bytes())
    recorder.close()
    assert len(set(anchors)) > 150
    assert check(sample, tmp_path, content=False, anchors=anchors).ok


def test_entries_that_are_not_signed_yet_are_no_error(sample: ModuleType, state: Path) -> None:
    from runner.ledger import tail as tails

    path = state / "ledger/tail"
    whole = path.read_bytes()
    more = tails.record(tails.ENTRY, entries.encode(sample.start()))
    path.write_bytes(whole + more)
    report = check(sample, state)
    assert report.ok
    assert (report.entries, report.signed, report.unsigned) == (283, 282, 1)
    assert "not signed yet" in report.notes[0]
    path.write_bytes(whole + more[:-1])
    report = check(sample, state)
    assert report.ok
    assert f"at byte {len(whole)}" in report.notes[0]


def test_order_of_calls_is_checked_even_when_it_is_signed(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    recorder._sequence.check = lambda entry: None  # type: ignore[method-assign]  # a recorder with a defect
    sample.add(recorder, *sample.pairs(0, 130), sample.outcome(3), sample.call(4), sample.call(900, effect="deny"))
    recorder.close()
    report = check(sample, tmp_path)
    assert found.ORDER in failed(report)
    for position in (260, 261, 262):
        assert f"position {position}: " in places(report)


def test_content_missing_and_wrong_are_told_apart(sample: ModuleType, state: Path) -> None:
    database = sqlite3.connect(state / "content/small.db")
    arguments = [bytes.fromhex(sample.call(number).arguments.digest) for number in (3, 6)]
    database.execute("DELETE FROM blob WHERE digest = ?", (arguments[0],))
    database.execute("UPDATE blob SET data = CAST('x' AS BLOB) WHERE digest = ?", (arguments[1],))
    database.commit()
    database.close()
    report = check(sample, state)
    assert failed(report) == {found.MISSING, found.WRONG}
    by_number = {item.number: item for item in report.checks}
    assert by_number[found.MISSING].findings[0].place == "position 7, arguments"
    assert by_number[found.WRONG].findings[0].place == "position 13, arguments"


def test_content_in_a_pack_is_hashed(sample: ModuleType, state: Path) -> None:
    (pack,) = (state / "content/pack").iterdir()
    data = pack.read_bytes()
    bent = bytearray(data)
    bent[data.index(b"arguments 5")] ^= 1
    pack.write_bytes(bent)
    report = check(sample, state)
    assert failed(report) == {found.MISSING}
    assert "position 11, arguments" in places(report)
    pack.write_bytes(data[: data.index(b"arguments 100")])
    assert failed(check(sample, state)) == {found.MISSING}
    pack.unlink()
    assert failed(check(sample, state)) == {found.MISSING}
    # Wherever it lies, what has the right name is the content: beside a pack of another ledger, too.
    (pack.parent / "000-of-another").write_bytes(b"\x00\x00\x00\x04noise")
    (pack.parent / "000-restored").write_bytes(data)
    assert check(sample, state).ok


def test_content_is_found_while_it_lies_in_the_tail_and_after_it_left(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start(), *sample.pairs(0, 20))
    recorder.commit()
    reader = ContentReader(tmp_path / "content")
    name = sample.call(1).arguments.digest
    assert not (tmp_path / "content/pack").exists()
    assert reader.get(name, 3) == sample.SALT + b"arguments 1"
    sample.add(recorder, *sample.pairs(20, 120))
    recorder.commit()
    recorder.tidy()
    assert reader.get(name, 3) == sample.SALT + b"arguments 1"  # from its pack, which was not there before
    assert reader.get(sample.call(139).arguments.digest, 279) == sample.SALT + b"arguments 139"
    assert reader.get("0" * 64, 3) is None
    recorder.close()
    # Stopped, the content folder is whole without the ledger beside it.
    (tmp_path / "ledger").rename(tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere", sample.VKEY, tmp_path / "content").ok
    reader.close()


def test_large_content_is_hashed(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    data = b"l" * 100_000
    name = recorder.store(data)
    sample.add(recorder, sample.call(1))
    recorder.append(
        entries.encode(
            entries.Outcome(
                time=sample.NOW,
                call="c00000001",
                task="t",
                outcome="exited",
                stdout=entries.Stream(digest=name, size=len(data), delivered=0),
            )
        )
    )
    recorder.close()
    assert check(sample, tmp_path).ok
    path = tmp_path / "content/sha256" / name[:2] / name[2:]
    path.write_bytes(data[:-1] + b"m")
    assert failed(check(sample, tmp_path)) == {found.WRONG}
    path.write_bytes(data[:-1])
    assert failed(check(sample, tmp_path)) == {found.WRONG}
    path.unlink()
    assert failed(check(sample, tmp_path)) == {found.MISSING}
    path.symlink_to("/dev/zero")
    assert failed(check(sample, tmp_path)) == {found.WRONG}


def test_a_size_that_does_not_fit_is_wrong(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    recorder.commit()
    recorder.store(b"12345678")
    entry = sample.start()
    lying = entries.Content(digest=recorder.store(b"12345678"), size=3)
    import msgspec

    recorder.append(entries.encode(msgspec.structs.replace(entry, config=lying)))
    recorder.close()
    assert failed(check(sample, tmp_path)) == {found.WRONG}


def test_a_spoilt_database_is_a_finding(sample: ModuleType, state: Path) -> None:
    path = state / "content/small.db"
    data = bytearray(path.read_bytes())
    for place in range(4096, len(data), 97):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert failed(check(sample, state)) & {found.MISSING, found.WRONG}
    path.unlink()
    with pytest.raises(RunnerError, match="content store"):
        check(sample, state)


@pytest.mark.parametrize("name", ["tail", "checkpoint", "tile/entries/000", "tile/0/000"])
def test_what_is_no_file_is_a_finding(sample: ModuleType, state: Path, name: str) -> None:
    path = state / "ledger" / name
    path.unlink()
    path.mkdir()
    assert not check(sample, state, content=False).ok
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert not check(sample, state, content=False).ok
    path.unlink()
    import os

    os.mkfifo(path)
    assert not check(sample, state, content=False).ok


def test_noise_never_makes_it_crash(sample: ModuleType, state: Path) -> None:
    rng = random.Random(7)
    files = ledger_files(state)
    for _ in range(150):
        path = rng.choice(files)
        whole = path.read_bytes()
        start = rng.randrange(len(whole) + 1)
        path.write_bytes(whole[:start] + rng.randbytes(rng.randrange(1, 300)) + whole[start + rng.randrange(300) :])
        report = check(sample, state, content=False)
        torn_end = path.name == "tail" and start == len(whole)
        assert not report.ok or (torn_end and report.notes), (path, start)
        path.write_bytes(whole)


def test_findings_are_counted_beyond_those_listed(sample: ModuleType, state: Path) -> None:
    path = state / "ledger/tile/0/000"
    path.write_bytes(bytes(8192))
    tiles = {item.number: item for item in check(sample, state).checks}[found.TILES]
    assert (tiles.count, len(tiles.findings)) == (256 + 0, found.MAX_FINDINGS)


def test_no_ledger_at_all(sample: ModuleType, tmp_path: Path) -> None:
    assert not verify(tmp_path / "nowhere", sample.VKEY, None).ok
