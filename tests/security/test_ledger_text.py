"""Hostile text in every field of an entry (case L10), and clocks that step (L09): one record, one reading of it."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import unicodedata
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from runner.errors import RunnerError
from runner.evidence.read import Ledger
from runner.evidence.verify import verify
from runner.evidence.view import Filter, calls, line
from runner.ledger import entry as entries
from runner.ledger.note import Signer

VECTORS = Path(__file__).parents[1] / "vectors"
COUNT = int(os.environ.get("RUNNER_TEXTS", "100000"))
PIECES = (
    "\n", "\r\n", "\0", "\x1b[2J", "\x7f", '"', "\\", "\\u0000", "\\ud800", "\u2028", "\u202e", "\ufeff", "\U0010ffff",
    "é", "e\u0301", "NaN", "null", "-0", "1e999", "</script>", "{", "}", "[",
    '","kind":"outcome","call":"c1', "— x AAAA",
    '"}\n{"kind":"start","v":1}', "\n\ntoolrunner/test\n1\n", "A" * 900,
)  # fmt: skip
BROKEN = ("\ud800", "\udfff\ud800", "a\udc80")  # no Unicode text: what a decoder of bad UTF-8 may leave


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, VECTORS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE, OTHER = load("ledger_sample"), load("verify_ledger")


def anything(rng: random.Random) -> str:
    return chr(rng.choice((rng.randrange(256), rng.randrange(0xE000, 0xFFFF))))


def hostile(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) if rng.random() < 0.6 else anything(rng) for _ in range(rng.randrange(6)))


@pytest.mark.timeout(60 + COUNT // 500)
def test_two_readers_of_hostile_text_agree() -> None:
    """Whatever a text holds, the entry is one record, in the one encoding, and a second JSON reader reads the same."""
    seed = int(os.environ.get("RUNNER_SEED", "0")) or random.randrange(1 << 32)
    print(f"RUNNER_SEED={seed}")
    rng = random.Random(seed)
    call, outcome = SAMPLE.call(1), SAMPLE.outcome(1)
    for number in range(COUNT):
        texts = [hostile(rng) for _ in range(3)]
        if number % 2:
            who = msgspec.structs.replace(call.who, agent=texts[1], asserted=(texts[2],))
            made: entries.AnyEntry = msgspec.structs.replace(call, intent=texts[0], who=who, because=tuple(texts))
        else:
            made = msgspec.structs.replace(outcome, reason=texts[0], outcome=texts[1], walls=tuple(texts))
        data = entries.encode(made)
        assert b"\n" not in data, (seed, number)
        assert entries.decode(data) == made, (seed, number)
        told = OTHER.canonical(data)  # raises when the bytes are not their one encoding
        assert told["kind"] in ("call", "outcome")
        assert texts[0] in (told.get("intent", ""), told.get("reason", "")), (seed, number)
        if number % 20 == 0:
            shown = line(0, data, 10**6)
            assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}, (
                number
            )


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_text_is_no_entry(text: str) -> None:
    with pytest.raises(RunnerError, match="Unicode"):
        entries.encode(msgspec.structs.replace(SAMPLE.call(1), intent=text))


def test_ten_megabytes_are_no_entry() -> None:
    with pytest.raises(RunnerError, match="longer"):
        entries.encode(msgspec.structs.replace(SAMPLE.call(1), intent="x" * (10 << 20)))
    assert entries.encode(msgspec.structs.replace(SAMPLE.call(1), intent="x" * 50_000))


def test_a_ledger_of_hostile_text_verifies_and_reads_back(tmp_path: Path) -> None:
    rng = random.Random(5)
    recorder = SAMPLE.open_recorder(tmp_path)
    written = []
    for number in range(400):
        made = msgspec.structs.replace(SAMPLE.call(number, planned=False, effect="deny"), intent=hostile(rng))
        for data in (SAMPLE.SALT + f"arguments {number}".encode(),):
            recorder.store(data)
        recorder.append(entries.encode(made))
        written.append(made)
    recorder.close()
    assert verify(tmp_path / "ledger", SAMPLE.VKEY, tmp_path / "content").ok
    assert not OTHER.Ledger(tmp_path / "ledger", OTHER.Key(SAMPLE.VKEY), []).wrong
    ledger = Ledger(tmp_path / "ledger", Signer(SAMPLE.ORIGIN, SAMPLE.KEY).verifier)
    assert [view.call for view in calls(ledger, Filter())] == written[::-1]
    assert [json.loads(data)["call"] for _, data in ledger.entries()] == [made.call for made in written]


def test_order_is_the_positions_whatever_the_clock_says(tmp_path: Path) -> None:
    """Times that repeat, step back an hour, or jump: positions order the entries, and all of it verifies."""
    times = ["2026-01-02T03:04:05.000006Z"] * 3 + ["2026-01-02T02:04:05.000000Z", "2031-01-01T00:00:00.000000Z"] * 60
    clock = iter([5.0, 1.0, 1.0, 900.0, 2.0] * 10_000)
    recorder = SAMPLE.open_recorder(tmp_path, clock=lambda: next(clock))
    for number, time in enumerate(times):
        recorder.append(entries.encode(msgspec.structs.replace(SAMPLE.start(), time=time, host=str(number))))
        if number == 0:
            recorder.store(b"[daemon]")
        recorder.commit()
        recorder.tidy()
    recorder.close()
    report = verify(tmp_path / "ledger", SAMPLE.VKEY, tmp_path / "content")
    assert report.ok, report
    ledger = Ledger(tmp_path / "ledger", Signer(SAMPLE.ORIGIN, SAMPLE.KEY).verifier)
    told = [json.loads(data) for _, data in ledger.entries()]
    assert [(one["host"], one["time"]) for one in told] == [(str(n), time) for n, time in enumerate(times)]
