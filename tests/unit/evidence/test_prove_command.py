"""`runner trace anchor|prove|consistency|check|rotate-key`: what one machine prints, another checks alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from runner.cli.trace import app
from runner.errors import EXIT_UNVERIFIED, RunnerError
from runner.ledger import entry as entries
from runner.ledger.merkle import leaf_hash
from runner.ledger.note import Checkpoint, Signer
from runner.ledger.proof import Inclusion
from runner.recorder.keys import load_or_create_key


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, RunnerError):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


class Place:
    """A state folder, what was printed from it, and another machine's folder that holds only such print."""

    def __init__(self, sample: ModuleType, folder: Path) -> None:
        self.sample = sample
        self.state = folder / "state"
        self.away = folder / "away"
        self.away.mkdir()
        self.key = load_or_create_key(self.state / "ledger", sample.ORIGIN)
        self.grow(0, 20)
        shutil.copy(self.state / "ledger/key.pub", self.away / "vkey")

    def grow(self, first: int, calls: int) -> None:
        key = load_or_create_key(self.state / "ledger", self.sample.ORIGIN)
        recorder = self.sample.open_recorder(self.state, key)
        self.sample.add(recorder, self.sample.start(), *self.sample.pairs(first, calls), self.sample.stop())
        recorder.close()

    def keep(self, name: str, *arguments: object) -> Path:
        path = self.away / name
        path.write_text(run(*arguments, "--state", self.state).stdout)
        return path

    def check(self, file: Path, *more: object, status: int = 0) -> dict[str, Any]:
        asked = ("check", file, "--key", self.away / "vkey", *more)
        told: dict[str, Any] = json.loads(run(*asked, "--json", status=status).stdout)
        assert told["ok"] == (status == 0)
        assert ("proven: " in run(*asked, status=status).stdout) == (status == 0)
        return told


@pytest.fixture
def place(sample: ModuleType, tmp_path: Path) -> Place:
    return Place(sample, tmp_path)


def test_anchor(place: Place) -> None:
    anchor = place.keep("anchor", "anchor")
    assert anchor.read_bytes() == (place.state / "ledger/checkpoint").read_bytes()
    assert place.check(anchor)["size"] == 42
    shown = json.loads(run("anchor", "--json", "--state", place.state).stdout)
    assert (shown["size"], shown["note"], shown["key"]) == (
        42,
        anchor.read_text(),
        (place.away / "vkey").read_text().strip(),
    )
    shown = run("verify", "--anchor", anchor, "--state", place.state)
    assert shown.exit_code == 0
    assert "it holds all that 1 checkpoint kept elsewhere signed" in shown.stdout
    bent = anchor.read_text().replace("\n42\n", "\n43\n")
    anchor.write_text(bent)
    assert "does not verify" in place.check(anchor, status=EXIT_UNVERIFIED)["reason"]


@pytest.mark.parametrize(
    ("arguments", "position", "kind"),
    [(("c00000007",), 16, "outcome"), (("c00000007", "--decision"), 15, "call"), (("0",), 0, "start")],
)
def test_prove(place: Place, arguments: tuple[str, ...], position: int, kind: str) -> None:
    place.grow(100, 130)  # so that the entry lies in a bundle
    receipt = place.keep("receipt", "prove", *arguments)
    told = place.check(receipt)
    assert (told["position"], json.loads(told["entry"])["kind"]) == (position, kind)
    assert kind in run("check", receipt, "--key", place.away / "vkey").stdout
    shown = json.loads(run("prove", *arguments, "--json", "--state", place.state).stdout)["proof"]
    assert (shown["format"], shown["index"]) == ("c2sp.org/tlog-proof@v1", position)
    assert entries.decode(shown["entry"].encode()).time == place.sample.NOW
    text = receipt.read_text()
    receipt.write_text(text.replace(f"index {position}", f"index {position + 1}"))
    assert "do not lead" in place.check(receipt, status=EXIT_UNVERIFIED)["reason"]


def test_what_cannot_be_proven(place: Place) -> None:
    with pytest.raises(RunnerError, match="no signed entry 42") as caught:
        run("prove", "42", "--state", place.state)
    assert "below" in caught.value.refused.next_step
    with pytest.raises(RunnerError, match="no such call"):
        run("prove", "nobody", "--state", place.state)
    for noise in ("", "noise", "old 3\n", "c2sp.org/tlog-proof@v1\n"):
        (place.away / "noise").write_text(noise)
        old = ("--old", place.keep("anchor", "anchor")) if noise.startswith("old") else ()
        place.check(place.away / "noise", *old, status=EXIT_UNVERIFIED)


def test_a_damaged_ledger_proves_nothing(place: Place) -> None:
    place.grow(100, 130)
    bundle = place.state / "ledger/tile/entries/000"
    data = bytearray(bundle.read_bytes())
    data[data.index(b"c00000007") + 8] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(RunnerError, match="does not lead") as caught:
        run("prove", "15", "--state", place.state)
    assert "trace verify" in caught.value.refused.next_step


def test_consistency(place: Place) -> None:
    old = place.keep("old", "anchor")
    place.grow(100, 200)
    middle = place.keep("middle", "anchor")
    place.grow(400, 5)
    for arguments, first, sizes in (
        ((old,), old, (42, 456)),
        ((old, middle), old, (42, 444)),
        ((middle,), middle, (444, 456)),
        ((middle, middle), middle, (444, 444)),
    ):
        grown = place.keep("grown", "consistency", *arguments)
        told = place.check(grown, "--old", first)
        assert (told["old"]["size"], told["size"]) == sizes
        shown = json.loads(run("consistency", *arguments, "--json", "--state", place.state).stdout)
        assert (shown["proof"]["old"], shown["size"]) == sizes
    place.check(grown, "--old", old, status=EXIT_UNVERIFIED)
    for wrong, reason in ((place.away / "nowhere", "missing"), (place.away, "regular file"), (grown, "a proof")):
        for command in (
            ("check", grown, "--key", place.away / "vkey", "--old", wrong),
            ("consistency", wrong, "--state", place.state),
            ("verify", "--anchor", wrong, "--state", place.state),
        ):
            with pytest.raises(RunnerError, match=reason) as caught:
                run(*command)
            assert caught.value.refused.code == "arguments"  # what was named is wrong, not the ledger
    with pytest.raises(RunnerError, match="nothing for --old"):
        run("check", middle, "--key", place.away / "vkey", "--old", old)
    with pytest.raises(RunnerError, match="that you kept") as caught:
        run("check", grown, "--key", place.away / "vkey")
    assert "--old" in caught.value.refused.next_step
    assert run("consistency", middle, old, "--state", place.state, status=EXIT_UNVERIFIED)


def test_rollback_and_fork_have_no_proof(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.state, tmp_path / "before")
    first = place.keep("first", "anchor")
    place.grow(100, 3)
    anchor = place.keep("anchor", "anchor")
    place.grow(200, 3)
    assert run("consistency", anchor, "--state", place.state)
    shutil.rmtree(place.state)
    shutil.copytree(tmp_path / "before", place.state)
    told = run("consistency", anchor, "--state", place.state, "--json", status=EXIT_UNVERIFIED).stdout
    assert "only 42" in json.loads(told)["reason"]
    assert place.check(anchor)["size"] == 50
    told = run("consistency", first, anchor, "--state", place.state, status=EXIT_UNVERIFIED).stdout
    assert "signs 50 entries, and only 42 are here" in told
    assert run("verify", "--anchor", anchor, "--state", place.state, status=EXIT_UNVERIFIED)
    place.grow(500, 9)
    told = run("consistency", anchor, "--state", place.state, status=EXIT_UNVERIFIED).stdout
    assert "NOT PROVEN: the ledger does not lead" in told
    assert run("verify", "--anchor", anchor, "--state", place.state, status=EXIT_UNVERIFIED)


def test_what_is_signed_and_no_entry_proves_nothing(place: Place, sample: ModuleType) -> None:
    signer = Signer(sample.ORIGIN, sample.KEY)
    (place.away / "vkey").write_text(signer.verifier.text)
    for data in (b"noise", entries.encode(sample.start()) + b" ", entries.encode(sample.start())):
        note = signer.sign(Checkpoint(sample.ORIGIN, 1, leaf_hash(data)).text())
        (place.away / "proof").write_bytes(Inclusion(0, data, (), note).text())
        whole = data == entries.encode(sample.start())
        assert place.check(place.away / "proof", status=0 if whole else EXIT_UNVERIFIED)["ok"] == whole


def test_another_key_proves_nothing(place: Place, sample: ModuleType) -> None:
    receipt = place.keep("receipt", "prove", "3")
    (place.away / "vkey").write_text(sample.VKEY + "\n")  # same name, another key
    assert "not signed by" in place.check(receipt, status=EXIT_UNVERIFIED)["reason"]


def test_from_the_first_key_alone_after_a_rotation(place: Place) -> None:
    before = place.keep("before", "anchor")
    done = json.loads(run("rotate-key", "--why", "drill", "--json", "--state", place.state).stdout)
    assert done["old"] == (place.away / "vkey").read_text().strip()
    assert run("rotate-key", "--state", place.state).stdout.startswith("replaced at position 43")
    place.grow(100, 3)
    rotations = []
    for number in (1, 2):
        shutil.copy(place.state / f"ledger/rotation.{number}", place.away)
        rotations += ["--rotation", place.away / f"rotation.{number}"]
    receipt, grown = place.keep("receipt", "prove", "c00000101"), place.keep("grown", "consistency", before)
    assert place.check(receipt, *rotations)["position"] == 48
    assert place.check(grown, "--old", before, *rotations)["old"]["size"] == 42
    told = place.check(before, *rotations)
    assert (told["size"], told["retired_key"]) == (42, True)
    assert "was replaced since" in run("check", before, "--key", place.away / "vkey", *rotations).stdout
    assert not place.check(receipt, *rotations)["retired_key"]
    assert "replaced" not in run("check", receipt, "--key", place.away / "vkey", *rotations).stdout
    place.check(receipt, status=EXIT_UNVERIFIED)
    place.check(receipt, *rotations[:2], status=EXIT_UNVERIFIED)
    shown = run("verify", "--key", place.away / "vkey", "--anchor", before, "--state", place.state).stdout
    assert "verified" in shown
    assert "rotate" in run("tail", "--state", place.state, "--key", place.away / "vkey").stdout


@pytest.mark.parametrize("command", ["anchor", "prove", "consistency", "check", "rotate-key"])
def test_help_teaches(command: str) -> None:
    text = run(command, "--help").stdout
    assert "Example: runner trace " + command in text
    assert "--json" in text
