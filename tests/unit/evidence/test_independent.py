"""Two verifiers that share no code agree: on every ledger that is whole, and on every one that was damaged.

`tests/vectors/verify_ledger.py` is the other one: a program of at most 300 lines for whoever does not trust this
project to judge itself. Neither looks at content here."""

from __future__ import annotations

import ast
import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.evidence.export import export
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger import tail as tails
from runner.ledger.note import Checkpoint, Signer
from runner.recorder.keys import load_or_create_key
from runner.recorder.rotate import rotate_key

PROGRAM = Path(__file__).parents[2] / "vectors/verify_ledger.py"


@pytest.fixture(scope="session")
def other() -> ModuleType:
    """The program, as a module: a process for each of thousands of damaged ledgers would take minutes."""
    spec = importlib.util.spec_from_file_location("verify_ledger", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pair:
    """Both verifiers on one ledger folder."""

    def __init__(self, other: ModuleType, folder: Path, vkey: str) -> None:
        self.other, self.folder, self.vkey = other, folder, vkey
        self.judged = 0

    def __call__(self, what: object = "", *, key: str = "", anchors: tuple[Path, ...] = ()) -> bool:
        """What both say. They must say the same, and neither may crash."""
        self.judged += 1
        ours = verify(self.folder, key or self.vkey, None, anchors=[anchor.read_bytes() for anchor in anchors])
        theirs = self.other.Ledger(self.folder, self.other.Key(key or self.vkey), list(anchors))
        assert ours.ok == (not theirs.wrong), (what, ours, theirs.wrong)
        return ours.ok

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name not in ("lock", "key"))


@pytest.fixture
def pair(sample: ModuleType, other: ModuleType, tmp_path: Path) -> Pair:
    """A small ledger: one call, one replaced key, one more call."""
    state = tmp_path / "state"
    grow(sample, state, 1, 1)
    first = (state / "ledger/key.pub").read_text()
    rotate_key(state, lambda: sample.NOW, by=0)
    grow(sample, state, 2, 1)
    return Pair(other, state / "ledger", first)


def grow(sample: ModuleType, state: Path, first: int, calls: int, *, stopped: bool = True) -> None:
    recorder = sample.open_recorder(state, load_or_create_key(state / "ledger", sample.ORIGIN))
    sample.add(recorder, sample.start(), *sample.pairs(first, calls), *([sample.stop()] if stopped else []))
    recorder.commit()
    if stopped:
        recorder.close()
    else:
        recorder._release()


def test_it_shares_no_code_and_is_small() -> None:
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}
    assert "importlib" not in imported
    assert "__import__" not in text


def test_it_knows_every_kind_of_entry(other: ModuleType) -> None:
    """A new kind goes into KINDS of tests/vectors/verify_ledger.py too: an unknown one is refused there as here."""
    assert sorted(other.KINDS) == sorted(kind.__struct_config__.tag for kind in get_args(entries.AnyEntry))


def test_it_is_a_program_with_an_exit_status(pair: Pair, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-I", str(PROGRAM), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout

    anchor = tmp_path / "anchor"
    shutil.copy(pair.folder / "checkpoint", anchor)
    assert run(pair.folder, pair.vkey, anchor) == (0, "verified: toolrunner/test, 9 entries\n")
    (tmp_path / "vkey").write_text(pair.vkey)
    assert run(pair.folder, tmp_path / "vkey")[0] == 0
    anchor.write_bytes(b"noise")
    status, told = run(pair.folder, pair.vkey, anchor)
    assert status == 6
    assert "wrong: " in told
    assert "NOT VERIFIED" in told
    assert run(pair.folder)[0] == 1


@pytest.mark.parametrize("calls", [0, 1, 127, 128, 300])
@pytest.mark.parametrize("stopped", [True, False])
def test_whole_ledgers(sample: ModuleType, other: ModuleType, tmp_path: Path, calls: int, stopped: bool) -> None:
    state = tmp_path / "state"
    grow(sample, state, 0, calls, stopped=stopped)
    pair = Pair(other, state / "ledger", (state / "ledger/key.pub").read_text())
    assert pair()
    rotate_key(state, lambda: sample.NOW, by=0)
    assert pair()
    grow(sample, state, 1000, 3)
    assert pair()
    export(Ledger(state / "ledger", load_verifier("", state / "ledger")), tmp_path / "out")
    assert Pair(other, tmp_path / "out", pair.vkey)()


def test_both_hold_requests_to_their_calls(
    sample: ModuleType, other: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written past the recorder's own check, as whoever has its key could; the first is its control."""
    own = {"call": "daemon:broker", "task": ""}
    call = [sample.call(1), sample.egress(1), sample.egress(1, 2, effect="deny"), sample.alert(1)]
    over = [*call, sample.egress_end(1), sample.outcome(1)]
    cases: list[tuple[bool, list[entries.AnyEntry]]] = [
        (True, [*over, sample.egress(0, **own), sample.egress_end(0, **own), sample.egress(0, **own)]),
        (True, [*call, sample.egress(1, 3), sample.outcome(1)]),
        (True, [*call, sample.egress(1, effect="deny"), sample.egress_end(1)]),
        (False, [*over, sample.egress(1)]),
        (False, [*over, sample.alert(1)]),
        (False, [*over, sample.egress_end(1)]),
        (False, [*call, sample.egress(1)]),
        (False, [*call, sample.egress_end(1, 2)]),
        (False, [*call, sample.egress_end(1), sample.egress_end(1)]),
        (False, [*call, sample.egress_end(1, task="other")]),
        (False, [sample.call(1, effect="deny", planned=False), sample.egress(1)]),
        (False, [sample.egress(1)]),
        (False, [sample.egress(0, call="daemon:broker", task="t")]),
        (False, [sample.alert(0, call="daemon:a b", task="")]),
        (False, [msgspec.structs.replace(sample.call(1), call="daemon:broker")]),
    ]
    for number, (good, written) in enumerate(cases):
        state = tmp_path / str(number)
        recorder = sample.open_recorder(state)
        with monkeypatch.context() as patch:
            patch.setattr(recorder._sequence, "check", lambda _: None)
            for entry in written:
                recorder.append(entries.encode(entry))
            recorder.commit()
            recorder._release()
        assert Pair(other, state / "ledger", sample.VKEY)(number) == good, written


def test_two_levels_of_tiles(sample: ModuleType, other: ModuleType, tmp_path: Path) -> None:
    """66,000 entries: a full tile of the second level, and a partial one of the third."""
    recorder = sample.open_recorder(tmp_path)
    beacon = entries.encode(entries.Beacon(time=sample.NOW, instance="i", calls=0, running=0, tasks=0))
    for number in range(66_000):
        recorder.append(beacon)
        if number % 2000 == 1999:
            recorder.commit()
    recorder.close()
    pair = Pair(other, tmp_path / "ledger", sample.VKEY)
    assert pair()


@pytest.mark.timeout(400)  # thousands of files written and read twice
def test_every_flipped_byte(sample: ModuleType, other: ModuleType, tmp_path: Path) -> None:
    grow(sample, tmp_path, 3, 1)
    vkey = (tmp_path / "ledger/key.pub").read_text()
    flipped(Pair(other, tmp_path / "ledger", vkey), 1, 2500)


def test_flipped_bytes_around_a_rotation(pair: Pair) -> None:
    flipped(pair, 17, 400)


def flipped(pair: Pair, step: int, least: int) -> None:
    assert pair()
    for path in pair.files():
        whole = path.read_bytes()
        for place in range(0, len(whole), step):
            bent = bytearray(whole)
            bent[place] ^= 1 << random.Random(place).randrange(8)
            path.write_bytes(bent)
            assert not pair((path, place))
        path.write_bytes(whole)
    assert pair()
    assert pair.judged > least


def test_every_cut_and_every_lost_doubled_or_renamed_file(pair: Pair) -> None:
    for path in pair.files():
        whole = path.read_bytes()
        for size in sorted(random.Random(path.name).sample(range(len(whole)), min(len(whole), 40))):
            path.write_bytes(whole[:size])
            assert not pair((path, size))
        path.write_bytes(whole + b"\n")
        assert pair((path, "longer")) == (path.name == "tail")  # which is what a torn write looks like
        path.unlink()
        pair((path, "lost"))
        path.mkdir()
        # A partial tile is for other readers, its absence no damage, and an empty folder is no file.
        assert pair((path, "folder")) == (path.parent.suffix == ".p")
        path.rmdir()
        path.symlink_to("/dev/zero")
        assert not pair((path, "link"))
        path.unlink()
        path.write_bytes(whole)
        for name in ("000.p", "xyz", "001", "tail.bak", "tail.new", "9", path.name + "~", "rotation.7"):
            wrong = path.with_name(name)
            if not wrong.exists() and wrong.parent.exists():
                wrong.write_bytes(whole)
                pair((wrong, "doubled"))
                wrong.unlink()
    for first in pair.files():
        for second in pair.files():
            kept = second.read_bytes()
            second.write_bytes(first.read_bytes())
            pair((first, second))
            second.write_bytes(kept)
    assert pair()


def test_noise_in_a_larger_ledger(sample: ModuleType, other: ModuleType, tmp_path: Path) -> None:
    grow(sample, tmp_path, 0, 200, stopped=False)
    pair = Pair(other, tmp_path / "ledger", (tmp_path / "ledger/key.pub").read_text())
    rng = random.Random(17)
    for _ in range(120):
        path = rng.choice(pair.files())
        whole = path.read_bytes()
        start = rng.randrange(len(whole) + 1)
        path.write_bytes(whole[:start] + rng.randbytes(rng.randrange(1, 99)) + whole[start + rng.randrange(99) :])
        pair((path, start))
        path.write_bytes(whole)
    tail = pair.folder / "tail"
    whole = tail.read_bytes()
    for size in rng.sample(range(len(whole)), 100):
        tail.write_bytes(whole[:size])
        pair(("tail", size))


Damage = tuple[str, int, int, bytes]
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "flip",
                "cut",
                "insert",
                "remove",
                "swap_files",
                "lose",
                "copy",
                "drop_record",
                "double_record",
                "swap_records",
                "append_entry",
            ]
        ),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=40),
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def originals(sample: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str, Path]]:
    """Ledgers of several shapes, each with the first key and an anchor from its middle."""
    made = []
    for rotations, calls, stopped in ((0, 2, False), (1, 1, True), (2, 1, False), (1, 130, False), (0, 140, True)):
        state = tmp_path_factory.mktemp("original")
        grow(sample, state, 1, calls)
        first, anchor = (state / "ledger/key.pub").read_text(), state / "anchor"
        shutil.copy(state / "ledger/checkpoint", anchor)
        for number in range(rotations):
            rotate_key(state, lambda: sample.NOW, by=0)
            grow(sample, state, 1000 * (number + 1), 1)
        grow(sample, state, 5000, 2, stopped=stopped)
        made.append((state / "ledger", first, anchor))
    return made


@given(st.integers(0, 4), DAMAGES, st.booleans())
def test_any_damage_is_judged_alike(
    sample: ModuleType,
    other: ModuleType,
    originals: list[tuple[Path, str, Path]],
    number: int,
    damages: list[Damage],
    anchored: bool,
) -> None:
    """Also what is signed, or well formed, and does not belong where it is: records and files that changed places."""
    original, vkey, anchor = originals[number]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "ledger"
        shutil.copytree(original, folder)
        pair = Pair(other, folder, vkey)
        before = {path: path.read_bytes() for path in pair.files()}
        for damage in damages:
            inflict(sample, pair, *damage)
        whole = pair((number, damages), anchors=(anchor,) if anchored else ())
        if {path: path.read_bytes() for path in pair.files()} == before:
            assert whole


def inflict(sample: ModuleType, pair: Pair, kind: str, first: int, second: int, noise: bytes) -> None:
    files = pair.files()
    path, another = files[first % len(files)], files[second % len(files)]
    data = path.read_bytes()
    place = second % (len(data) + 1)
    tail = pair.folder / "tail"
    match kind:
        case "flip" if place < len(data):
            path.write_bytes(data[:place] + bytes([data[place] ^ (noise[0] or 1)]) + data[place + 1 :])
        case "cut":
            path.write_bytes(data[:place])
        case "insert":
            path.write_bytes(data[:place] + noise + data[place:])
        case "remove":
            path.write_bytes(data[:place] + data[place + len(noise) :])
        case "swap_files":
            path.write_bytes(another.read_bytes())
            another.write_bytes(data)
        case "lose":
            path.unlink()
        case "copy" if path.parent == pair.folder:
            names = (
                "rotation.1",
                "rotation.2",
                "rotation.3",
                "checkpoint",
                "tail",
                "vkey",
                "key.next",
                "tail.new",
                "x",
            )
            (pair.folder / names[second % len(names)]).write_bytes(data)
        case "append_entry" if tail.exists():
            told = [sample.start(), sample.stop(), sample.outcome(1), sample.call(9000), sample.call(1)][first % 5]
            tail.write_bytes(tail.read_bytes() + tails.record(tails.ENTRY, entries.encode(told)))
        case "drop_record" | "double_record" | "swap_records" if tail.exists():
            records = split(tail.read_bytes())
            one, two = first % len(records), second % len(records)
            if kind == "drop_record":
                del records[one]
            elif kind == "double_record":
                records.insert(two, records[one])
            else:
                records[one], records[two] = records[two], records[one]
            tail.write_bytes(b"".join(records))
        case _:
            pass


def split(data: bytes) -> list[bytes]:
    """A tail's records, as far as their lengths make sense; the rest as the last one."""
    found, place = [], 0
    while place + 9 <= len(data) and (end := place + 9 + int.from_bytes(data[place + 1 : place + 5], "big")) <= len(
        data
    ):
        found.append(data[place:end])
        place = end
    return [*found, data[place:]]


def test_cut_tails_rollbacks_forks_and_other_logs(
    sample: ModuleType, other: ModuleType, pair: Pair, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(pair.folder.parent, old)
    grow(sample, pair.folder.parent, 10, 3)
    anchor = tmp_path / "anchor"
    shutil.copy(pair.folder / "checkpoint", anchor)
    grow(sample, pair.folder.parent, 20, 3)
    assert pair(anchors=(anchor,))
    rolled = Pair(other, old / "ledger", pair.vkey)
    assert rolled()
    assert not rolled(anchors=(anchor,))
    grow(sample, old, 30, 9)
    assert rolled()
    assert not rolled(anchors=(anchor,))
    signer = Signer(sample.ORIGIN, load_or_create_key(pair.folder, sample.ORIGIN))
    anchor.write_bytes(signer.sign(Checkpoint(sample.ORIGIN, 3, b"x" * 32).text()))
    assert not pair(anchors=(anchor,))
    for stranger in (Signer(sample.ORIGIN, Ed25519PrivateKey.generate()), Signer("toolrunner/other", sample.KEY)):
        assert not pair(key=stranger.verifier.text)
    sample.write(tmp_path / "another", 4)
    for name in ("checkpoint", "tail"):
        kept = (pair.folder / name).read_bytes()
        for source in (old / "ledger", tmp_path / "another/ledger"):
            shutil.copy(source / name, pair.folder / name)
            assert not pair(name)
        (pair.folder / name).write_bytes(kept)
    assert pair()


def defective(sample: ModuleType, state: Path, *data: bytes) -> None:
    """A ledger whose recorder takes anything, and signs it."""
    recorder = sample.open_recorder(state)
    recorder.append(entries.encode(sample.call(1)))
    for entry in data:
        recorder._journal.take(entry, (), recorder._sequence.state)
    recorder.commit()
    recorder._release()


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (lambda sample: entries.encode(sample.outcome(1)) + b" ", False),
        (lambda sample: entries.encode(sample.outcome(2)), False),
        (lambda sample: entries.encode(sample.outcome(1, task="u")), False),
        (lambda sample: entries.encode(sample.call(1)), False),
        (lambda sample: entries.encode(sample.call(2, effect="deny")), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"start"', b'"begin"'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"v":1', b'"v":2'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"v":1', b'"v":1.0'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"v":1', b'"v":true'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"size":8', b'"size":9007199254740992'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"host":"h"', b'"host":null'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"host":"h"', b'"host":"\\u0068"'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"host":"h"', b'"host":"\\ud800"'), False),
        (lambda sample: entries.encode(sample.start()).replace(b'"host":"h"', b'"host":"h","host":"h"'), False),
        (lambda sample: b"NaN", False),
        (lambda sample: b"[]", False),
        (lambda sample: b"\xff", False),
        (lambda sample: b"[" * 5000, False),
    ],
)
def test_entries_that_are_signed_and_wrong(
    sample: ModuleType, other: ModuleType, tmp_path: Path, bad: Callable[[ModuleType], bytes], good: bool
) -> None:
    defective(sample, tmp_path, bad(sample))
    assert Pair(other, tmp_path / "ledger", sample.VKEY)() is good


def test_heads_that_are_signed_and_wrong(sample: ModuleType, other: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path, 200, stopped=False)
    pair = Pair(other, tmp_path / "ledger", sample.VKEY)
    path = pair.folder / "tail"
    signer = Signer(sample.ORIGIN, sample.KEY)
    found = tails.read_tail(path.read_bytes(), signer.verifier)
    rest = path.read_bytes()[found.records[0].offset :]
    state = found.head.state.copy()
    state.newest = "c99999999"
    changes: list[dict[str, Any]] = [{}, {"state": state}, {"root": b"x" * 32}, {"size": 10**6}, {"base": 0, "size": 0}]
    for change in changes:
        head = tails.sign_head(found.head._replace(**change), signer)
        path.write_bytes(tails.record(tails.HEAD, head) + rest)
        assert pair(change) == (not change)
    with pytest.raises(RunnerError):
        tails.read_tail(tails.record(tails.HEAD, b"noise") + rest, signer.verifier)
