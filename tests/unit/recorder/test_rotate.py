"""One key follows another inside the log: from the first public key alone, at every crash, and for nobody else."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.evidence.export import export
from runner.evidence.read import Ledger, load_keys, load_verifier, read_rotations, rotation_files
from runner.evidence.report import KEY, SIGNED, Report
from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger.note import Checkpoint, Signer, Verifier
from runner.ledger.proof import Inclusion, read_inclusion
from runner.ledger.rotation import Keys, Rotation, read_rotation
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Recorder
from runner.recorder.rotate import rotate_key


def life(sample: ModuleType, state: Path, first: int, calls: int, *, stopped: bool = True) -> None:
    """One run of a daemon whose key is the one in the folder."""
    key = load_or_create_key(state / "ledger", sample.ORIGIN)
    recorder = sample.open_recorder(state, key)
    sample.add(recorder, sample.start(), *sample.pairs(first, calls), *([sample.stop()] if stopped else []))
    recorder.commit()
    if stopped:
        recorder.close()
    else:
        recorder._release()


def rotate(sample: ModuleType, state: Path) -> Any:
    return rotate_key(state, lambda: sample.NOW, by=0, why="drill")


def public(state: Path) -> str:
    return (state / "ledger/key.pub").read_text().strip()


def check(state: Path, vkey: str, **more: Any) -> Report:
    return verify(state / "ledger", vkey, state / "content", **more)


def failed(report: Report) -> set[int]:
    return {item.number for item in report.checks if not item.ok}


@pytest.fixture
def rotated(sample: ModuleType, tmp_path: Path) -> tuple[Path, list[str]]:
    """A ledger with two rotations, and its three keys."""
    state = tmp_path / "state"
    life(sample, state, 0, 20)
    texts = [public(state)]
    for first in (100, 400):
        rotate(sample, state)
        texts.append(public(state))
        life(sample, state, first, 140)
    return state, texts


def test_every_public_key_of_the_log_verifies_all_of_it(rotated: tuple[Path, list[str]], tmp_path: Path) -> None:
    state, texts = rotated
    assert len(set(texts)) == 3
    for text in texts:
        report = check(state, text)
        assert report.ok, report
        assert (report.entries, report.notes) == (42 + 1 + 282 + 1 + 282, ())
        assert load_verifier(text, state / "ledger").text == texts[-1]
    assert export(Ledger(state / "ledger", load_verifier(texts[0], state / "ledger")), tmp_path / "out") == 608
    for text in texts:
        assert verify(tmp_path / "out", text, None).ok
    stranger = Signer("toolrunner/test", Ed25519PrivateKey.generate()).verifier.text
    assert KEY in failed(check(state, stranger))
    with pytest.raises(RunnerError, match="no rotation of this ledger"):
        load_verifier(stranger, state / "ledger")


def test_it_is_an_entry_and_the_old_key_is_gone(sample: ModuleType, tmp_path: Path) -> None:
    life(sample, tmp_path, 0, 2)
    old = (tmp_path / "ledger/key").read_bytes()
    done = rotate(sample, tmp_path)
    assert (done.position, done.new) == (6, public(tmp_path))
    entry = entries.decode(Ledger(tmp_path / "ledger", load_verifier("", tmp_path / "ledger")).entry(6))
    assert entry == entries.Rotate(time=sample.NOW, old=done.old, new=done.new, by=0, why="drill")
    assert old not in [path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file()]
    assert not (tmp_path / "ledger/key.next").exists()
    assert stat.S_IMODE((tmp_path / "ledger/key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ledger/key.pub").stat().st_mode) == 0o644


@pytest.mark.parametrize("calls", [0, 126, 127, 128, 300])
@pytest.mark.parametrize("stopped", [True, False])
def test_wherever_the_bundles_end(sample: ModuleType, tmp_path: Path, calls: int, stopped: bool) -> None:
    life(sample, tmp_path, 0, calls, stopped=stopped)
    first = public(tmp_path)
    rotate(sample, tmp_path)
    assert check(tmp_path, first).ok
    rotate(sample, tmp_path)  # with nothing between the two
    assert check(tmp_path, first).ok
    life(sample, tmp_path, 1000, 3)
    report = check(tmp_path, first)
    assert report.ok, report


def test_the_old_key_signs_nothing_more(sample: ModuleType, tmp_path: Path) -> None:
    """A stolen old key: it goes on alone, or backdates, or is put back in its place."""
    state = tmp_path / "stolen"
    life(sample, state, 0, 3)
    first, private = public(state), (state / "ledger/key").read_bytes()
    shutil.copytree(state, tmp_path / "fork")
    rotate(sample, state)
    (state / "ledger/key").write_bytes(private)
    old = load_or_create_key(state / "ledger", sample.ORIGIN)
    with pytest.raises(RunnerError, match="not signed by"):
        Recorder.open(state, sample.ORIGIN, old, lambda: sample.NOW)
    with pytest.raises(RunnerError, match="not signed by"):
        rotate(sample, state)
    # As a crash between the replacement and its last step would leave it: all there is has both signatures.
    now = (state / "ledger/checkpoint").read_bytes()
    (state / "ledger/checkpoint").write_bytes(read_inclusion((state / "ledger/rotation.1").read_bytes()).note)
    with pytest.raises(RunnerError, match="replaced by another") as caught:
        Recorder.open(state, sample.ORIGIN, old, lambda: sample.NOW)
    assert caught.value.refused.code == "key"
    (state / "ledger/checkpoint").write_bytes(now)
    life(sample, tmp_path / "fork", 100, 30)
    anchor = (tmp_path / "fork/ledger/checkpoint").read_bytes()
    keys = load_keys(first, state / "ledger")
    with pytest.raises(RunnerError, match="from 0 to 9 only"):
        keys.read(anchor)
    # Its own ledger with the true handover beside it; and the true one with its checkpoint.
    shutil.copy(state / "ledger/rotation.1", tmp_path / "fork/ledger/rotation.1")
    assert not check(tmp_path / "fork", first).ok
    shutil.copy(tmp_path / "fork/ledger/checkpoint", state / "ledger/checkpoint")
    assert not check(state, first).ok


def test_anchors_of_every_key_are_good_for_their_part(sample: ModuleType, tmp_path: Path) -> None:
    anchors, firsts = [], []
    for number in range(3):
        life(sample, tmp_path, number * 100, 30)
        firsts.append(public(tmp_path))
        anchors.append((tmp_path / "ledger/checkpoint").read_bytes())
        rotate(sample, tmp_path)
    for text in (*firsts, public(tmp_path)):
        assert check(tmp_path, text, anchors=anchors).ok
    key = load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    early = Signer(sample.ORIGIN, key).sign(Checkpoint(sample.ORIGIN, 5, b"x" * 32).text())
    assert not check(tmp_path, firsts[0], anchors=[early]).ok


def test_one_key_alone_says_nothing_else_where_both_signed(sample: ModuleType, tmp_path: Path) -> None:
    """A stolen old key at the very size of the handover, which is the last that it may sign; or the new key alone."""
    life(sample, tmp_path, 0, 3)
    first, stolen = public(tmp_path), load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    rotate(sample, tmp_path)
    keys = load_keys(first, tmp_path / "ledger")
    (rotation,) = keys.rotations
    held = load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    for key in (stolen, held):
        signer = Signer(sample.ORIGIN, key)
        assert keys.read(signer.sign(rotation.checkpoint.text())) == rotation.checkpoint
        with pytest.raises(RunnerError, match="signs another root"):
            keys.read(signer.sign(rotation.checkpoint._replace(root=b"x" * 32).text()))
    early = Signer(sample.ORIGIN, held).sign(Checkpoint(sample.ORIGIN, 5, b"x" * 32).text())
    with pytest.raises(RunnerError, match="from 9 on only"):
        keys.read(early)
    assert [keys.retired(size) for size in (rotation.position, rotation.position + 1)] == [True, False]
    assert not Keys(rotation.old).retired(1)


@pytest.mark.parametrize("name", ["rotation.1", "rotation.2"])
def test_every_flip_of_a_handover_is_found(rotated: tuple[Path, list[str]], name: str) -> None:
    state, texts = rotated
    path = state / "ledger" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        bent = bytearray(whole)
        bent[place] ^= 1 << place % 8
        path.write_bytes(bent)
        with pytest.raises(RunnerError):
            load_keys(texts[0], state / "ledger")
        if place % 40 == 0:
            assert KEY in failed(check(state, texts[0]))
    path.unlink()
    assert not check(state, texts[-1]).ok
    assert not check(state, texts[0]).ok


def test_handovers_that_are_not_this_logs(sample: ModuleType, rotated: tuple[Path, list[str]], tmp_path: Path) -> None:
    state, texts = rotated
    life(sample, tmp_path / "other", 0, 2)
    rotate(sample, tmp_path / "other")
    ledger = state / "ledger"
    shutil.copy(tmp_path / "other/ledger/rotation.1", ledger / "rotation.3")
    assert KEY in failed(check(state, texts[0]))
    (ledger / "rotation.3").unlink()
    # A forger who holds the newest key invents one more, which no entry tells.
    key, new = load_or_create_key(ledger, sample.ORIGIN), Ed25519PrivateKey.generate()
    invented = handover(sample, key, new)
    (ledger / "rotation.3").write_bytes(invented)
    assert KEY in failed(check(state, texts[0]))
    (ledger / "rotation.3").rename(ledger / "rotation.4")
    assert not check(state, texts[0]).ok


def handover(sample: ModuleType, old: Ed25519PrivateKey, new: Ed25519PrivateKey, **change: Any) -> bytes:
    """A rotation as the first entry of a log, with `change` to what is true of it."""
    from runner.ledger.merkle import leaf_hash

    signers = [Signer(sample.ORIGIN, key) for key in (old, new)]
    names = [signer.verifier.text for signer in signers]
    entry = change.get("entry") or entries.Rotate(time=sample.NOW, old=names[0], new=names[1], by=0)
    data = entries.encode(entry)
    text = Checkpoint(sample.ORIGIN, change.get("size", 1), leaf_hash(data)).text()
    lines = "".join(signer.line(text) for signer in signers[: change.get("keys", 2)])
    return Inclusion(0, data, (), f"{text}\n{lines}".encode()).text()


def test_what_is_no_handover(sample: ModuleType) -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    good = read_rotation(handover(sample, old, new))
    assert (good.position, good.old.text) == (0, Signer(sample.ORIGIN, old).verifier.text)
    for change in ({"keys": 1}, {"size": 2}, {"entry": sample.start()}):
        with pytest.raises(RunnerError):
            read_rotation(handover(sample, old, new, **change))
    with pytest.raises(RunnerError):
        read_rotation(handover(sample, old, old))
    with pytest.raises(RunnerError, match="does not follow"):
        Keys(good.old, [good, good])


def test_handovers_that_are_no_chain(sample: ModuleType) -> None:
    first, second, third, fourth = (Signer(sample.ORIGIN, Ed25519PrivateKey.generate()).verifier for _ in range(4))

    def step(position: int, old: Verifier, new: Verifier) -> Rotation:
        return Rotation(position, old, new, Checkpoint(sample.ORIGIN, position + 1, b"r" * 32), b"")

    whole = [step(3, first, second), step(9, second, third)]
    assert Keys(first, reversed(whole)).texts == [first.text, second.text, third.text]
    for wrong in (
        [step(3, first, second), step(9, third, fourth)],
        [step(3, first, second), step(9, first, third)],
        [step(3, first, second), step(9, second, first)],
        [step(3, first, second), step(3, second, third)],
    ):
        with pytest.raises(RunnerError, match=r"does not follow|at one position"):
            Keys(first, wrong)
    with pytest.raises(RunnerError, match="leads to or from"):
        Keys(fourth, whole)


def test_a_handover_of_another_history_is_found(sample: ModuleType, tmp_path: Path) -> None:
    """The same entry at the same place, signed by both keys, over other entries before it."""
    from runner.ledger.merkle import leaf_hash, node_hash

    life(sample, tmp_path, 0, 3)
    first, old = public(tmp_path), load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    rotate(sample, tmp_path)
    new = load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    path = tmp_path / "ledger/rotation.1"
    honest = read_inclusion(path.read_bytes())
    hashes = (b"h" * 32,) * len(honest.hashes)
    root = leaf_hash(honest.entry)
    for step in hashes:
        root = node_hash(step, root)
    text = Checkpoint(sample.ORIGIN, honest.position + 1, root).text()
    note = f"{text}\n{''.join(Signer(sample.ORIGIN, key).line(text) for key in (old, new))}".encode()
    path.write_bytes(honest._replace(hashes=hashes, note=note).text())
    assert read_rotation(path.read_bytes()).entry == honest.entry
    assert SIGNED in failed(check(tmp_path, first))
    path.write_bytes(honest.text())
    assert check(tmp_path, first).ok


def test_a_handover_is_the_last_entry_of_what_both_signed(sample: ModuleType) -> None:
    from runner.ledger.merkle import leaf_hash, node_hash

    signers = [Signer(sample.ORIGIN, Ed25519PrivateKey.generate()) for _ in range(2)]
    names = [signer.verifier.text for signer in signers]
    data = entries.encode(entries.Rotate(time=sample.NOW, old=names[0], new=names[1], by=0))
    other = leaf_hash(b"another entry")
    for position, root in ((0, node_hash(leaf_hash(data), other)), (1, node_hash(other, leaf_hash(data)))):
        text = Checkpoint(sample.ORIGIN, 2, root).text()
        note = f"{text}\n{''.join(signer.line(text) for signer in signers)}".encode()
        made = Inclusion(position, data, (other,), note).text()
        if position:
            assert read_rotation(made).position == 1
        else:
            with pytest.raises(RunnerError, match="not the last entry"):
                read_rotation(made)


def test_gate_cannot_replace_the_key(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    taken = entries.Rotate(time=sample.NOW, old=sample.VKEY, new=sample.VKEY, by=0)
    with pytest.raises(RunnerError, match="recorder's own"):
        recorder.append(entries.encode(taken))
    sample.add(recorder, sample.start())
    recorder.close()


def test_not_while_a_daemon_writes(sample: ModuleType, tmp_path: Path) -> None:
    life(sample, tmp_path, 0, 1)
    recorder = sample.open_recorder(tmp_path, load_or_create_key(tmp_path / "ledger", sample.ORIGIN))
    with pytest.raises(RunnerError, match="another recorder"):
        rotate(sample, tmp_path)
    assert not (tmp_path / "ledger/key.next").exists()
    recorder.close()
    assert rotate(sample, tmp_path).new == public(tmp_path)


def test_a_public_key_of_another_is_left_alone(sample: ModuleType, tmp_path: Path) -> None:
    """And no replacement is begun that could not be finished."""
    life(sample, tmp_path, 0, 1)
    honest = (tmp_path / "ledger/key.pub").read_text()
    stranger = Signer(sample.ORIGIN, Ed25519PrivateKey.generate()).verifier.text
    (tmp_path / "ledger/key.pub").write_text(f"{stranger}\n")
    with pytest.raises(RunnerError, match="does not name the key beside it"):
        rotate(sample, tmp_path)
    assert not (tmp_path / "ledger/key.next").exists()
    (tmp_path / "ledger/key.pub").write_text(honest)
    life(sample, tmp_path, 10, 1)
    rotate(sample, tmp_path)


def test_no_ledger_no_key(sample: ModuleType, tmp_path: Path) -> None:
    for state in (tmp_path / "nowhere", tmp_path):
        (tmp_path / "ledger").mkdir(exist_ok=True)
        with pytest.raises(RunnerError):
            rotate(sample, state)


SITES = ("open", "write", "fsync", "fdatasync", "rename", "fchmod")


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("how", ["crash", "EIO"])
@pytest.mark.parametrize("calls", [3, 127])  # in the tail's middle, and as the last of a bundle
def test_cut_off_anywhere_it_can_be_finished(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, how: str, calls: int
) -> None:
    """Each call of a function of `os` in turn fails once or is the last: the ledger verifies with the first key as it
    lies, no daemon starts on half a replacement, and doing it again finishes it: one entry, one handover."""
    original = tmp_path / "original"
    life(sample, original, 0, calls)
    first = public(original)
    real: Callable[..., Any] = getattr(os, site)
    for nth in range(1, 200):
        state = tmp_path / str(nth)
        shutil.copytree(original, state)
        seen = 0

        def replaced(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == nth or (seen > nth and how == "crash"):
                raise Crash if how == "crash" else OSError(5, "Input/output error")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, site, replaced)
            try:
                rotate(sample, state)
            except (Crash, RunnerError):
                pass
            else:
                break
        found = check(state, first)
        assert found.ok, (nth, found)
        if (state / "ledger/key.next").exists():
            with pytest.raises(RunnerError, match="cut off"):
                load_or_create_key(state / "ledger", sample.ORIGIN)
            rotate(sample, state)
        life(sample, state, 500, 2)
        report = check(state, first)
        assert report.ok, (nth, report)
        handovers = read_rotations(rotation_files(state / "ledger"))
        assert len(handovers) <= 1
        assert public(state) == (handovers[-1].new.text if handovers else first)
        shutil.rmtree(state)
    else:
        raise AssertionError("it never got past its faults")
    assert nth > 1 or site == "fdatasync"


def test_the_proof_is_complete_in_itself(rotated: tuple[Path, list[str]]) -> None:
    state, texts = rotated
    for number, path in enumerate(rotation_files(state / "ledger")):
        inclusion = read_inclusion(path.read_bytes())
        entry = entries.decode(inclusion.entry)
        assert isinstance(entry, entries.Rotate)
        assert (entry.old, entry.new) == (texts[number], texts[number + 1])
        assert Verifier.parse(entry.old).name == "toolrunner/test"
