"""Reading while the recorder writes, joining calls, following, exporting."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from runner.errors import RunnerError
from runner.evidence.export import export
from runner.evidence.read import Ledger, follow, load_verifier
from runner.evidence.verify import verify
from runner.evidence.view import Filter, calls, find, line, proven, visible
from runner.ledger import entry as entries
from runner.ledger.merkle import leaf_hash, root_of
from runner.ledger.note import Verifier


def ledger(sample: ModuleType, state: Path) -> Ledger:
    return Ledger(state / "ledger", Verifier.parse(sample.VKEY))


@pytest.mark.parametrize("count", [0, 1, 127, 128, 300])
def test_every_entry_is_read_in_both_directions(sample: ModuleType, tmp_path: Path, count: int) -> None:
    size = sample.write(tmp_path, count)
    view = ledger(sample, tmp_path)
    forward = list(view.entries())
    assert view.size == view.signed == len(forward) == size
    assert [position for position, _ in forward] == list(range(size))
    backward = [
        (start + place, data) for start, run in view.backwards() for place, data in reversed(list(enumerate(run)))
    ]
    assert backward == forward[::-1]
    for start in (0, 1, 255, 256, 257, size):
        assert list(view.entries(start)) == forward[start:]
    assert all(view.entry(position) == data for position, data in forward)


def test_subtrees_and_proofs(sample: ModuleType, tmp_path: Path) -> None:
    size = sample.write(tmp_path, 390)
    view = ledger(sample, tmp_path)
    hashes = [leaf_hash(data) for _, data in view.entries()]
    for low, high in ((0, size), (0, 256), (0, 512), (256, 512), (512, size), (512, 640), (768, size), (5, 6)):
        assert view.subtree(low, high) == root_of(hashes[low:high])
    assert all(proven(view, position) is not None for position in range(0, size, 37))
    view.checkpoint = view.checkpoint._replace(root=b"x" * 32)
    assert proven(view, 5) is None
    assert proven(view, size) is None


def test_a_reader_beside_the_writer_sees_one_consistent_state(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    stop, problems, looks = threading.Event(), list[str](), [0]

    def look() -> None:
        while not stop.is_set():
            view = ledger(sample, tmp_path)
            if len(list(view.entries())) != view.size or view.size < view.signed:
                problems.append("entries are missing")
            report = verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content")
            if not report.ok:
                problems.append(str(report))
            looks[0] += 1

    reader = threading.Thread(target=look)
    reader.start()
    number = 0
    while (looks[0] < 12 or number < 1500) and not problems:
        sample.add(recorder, *sample.pairs(number, 15))
        recorder.commit()
        recorder.tidy()
        number += 15
    stop.set()
    reader.join()
    recorder.close()
    assert problems == []
    assert verify(tmp_path / "ledger", sample.VKEY, tmp_path / "content").ok


def test_following_gives_every_signed_entry_once(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    recorder.commit()
    steps = iter(range(0, 600, 20))

    def pause(_seconds: float) -> None:
        first = next(steps)
        sample.add(recorder, *sample.pairs(first, 20))
        recorder.commit()
        recorder.tidy()

    seen = list(islice(follow(ledger(sample, tmp_path), 0, pause=pause), 1201))
    assert next(steps, None) is None
    recorder.close()
    assert seen == list(ledger(sample, tmp_path).entries())


def test_calls_are_joined_and_filtered(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start())
    for number in range(0, 300, 3):
        sample.add(recorder, sample.call(number, task=f"t{number % 2}", tool=f"tool_{number % 5}"))
        sample.add(recorder, sample.call(number + 1, effect="deny", planned=False))
        kind = "oom" if number % 4 == 0 else "exited"
        sample.add(recorder, sample.outcome(number, task=f"t{number % 2}", kind=kind))
    sample.add(recorder, sample.call(999))
    recorder.close()
    view = ledger(sample, tmp_path)
    everything = list(calls(view, Filter()))
    assert len(everything) == 201
    assert [seen.position for seen in everything] == sorted((seen.position for seen in everything), reverse=True)
    assert [seen.call.call for seen in everything if seen.state == "running"] == ["c00000999"]
    for wanted in (
        Filter(task="t1"),
        Filter(tool="tool_3"),
        Filter(effect="deny"),
        Filter(outcome="oom"),
        Filter(agent="a"),
        Filter(task="t0", outcome="oom", tool="tool_4"),
        Filter(task="nobody"),
        Filter(since=sample.NOW),
        Filter(since="2027"),
    ):
        assert list(calls(view, wanted)) == [seen for seen in everything if wanted.passes(seen)]
    shown = find(view, "c00000003")
    assert shown is not None
    assert shown.outcome is not None
    assert shown.outcome.call == shown.call.call == "c00000003"
    assert shown.receipt == entries.digest(view.entry(shown.outcome_position))
    assert find(view, "c0000000") is None
    assert find(view, '"') is None


def test_an_export_is_whole_and_verifies_alone(sample: ModuleType, tmp_path: Path) -> None:
    size = sample.write(tmp_path / "state", 300)
    view = ledger(sample, tmp_path / "state")
    target = tmp_path / "out"
    assert export(view, target) == size
    assert (target / "vkey").read_text() == sample.VKEY + "\n"
    report = verify(target, sample.VKEY, None)
    assert report.ok, report
    assert (report.entries, report.signed) == (size, size)
    assert list(Ledger(target, load_verifier("", target)).entries()) == list(view.entries())
    with pytest.raises(RunnerError, match="not empty"):
        export(view, target)
    for path in [path for path in target.rglob("*") if path.is_file() and path.name != "vkey"]:
        data = path.read_bytes()
        path.unlink()
        assert not verify(target, sample.VKEY, None).ok, path
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert not verify(target, sample.VKEY, None).ok, path
        path.write_bytes(data)
    assert verify(target, sample.VKEY, None).ok


def test_a_spoilt_ledger_is_not_exported(sample: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path / "state", 300)
    path = tmp_path / "state/ledger/tile/entries/001"
    path.write_bytes(path.read_bytes().replace(b"fs_read", b"fs_read"[::-1], 1))
    with pytest.raises(RunnerError, match="do not add up"):
        export(ledger(sample, tmp_path / "state"), tmp_path / "out")
    assert not (tmp_path / "out/checkpoint").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 漢 🦀", "é 漢 🦀"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("user\u202etxt.exe", "user\\u{202e}txt.exe"),
        ("a\u2066b\u200bc\ufeff\u2028", "a\\u{2066}b\\u{200b}c\\u{feff}\\u{2028}"),
        ("\U000e0041", "\\u{e0041}"),
    ],
)
def test_nothing_hidden_reaches_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible("a\tb\n", lines=True) == "a\tb\n"


def test_an_entry_is_one_line(sample: ModuleType) -> None:
    entry = msgspec.structs.replace(sample.call(1), tool="x\x1b]0;title\x07", intent="line\nbreak\u202e")
    shown = line(7, entries.encode(entry), 400)
    assert shown.isprintable()
    assert "call" in shown
    assert "line\\nbreak\\u{202e}" in shown
    assert len(line(7, entries.encode(entry), 40)) == 40


def test_the_key_may_be_a_text_a_file_or_the_folders_own(sample: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(sample.VKEY + "\n")
    for given in (sample.VKEY, str(tmp_path / "key.pub"), ""):
        assert load_verifier(given, tmp_path).text == sample.VKEY
    for given, folder in (("", tmp_path / "none"), ("nonsense", tmp_path), (str(tmp_path), tmp_path)):
        with pytest.raises(RunnerError) as caught:
            load_verifier(given, folder)
        assert caught.value.refused.code == "key"
