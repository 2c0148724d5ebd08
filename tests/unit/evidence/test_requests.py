"""Requests as a person asks for them: joined with their ends, found by what they say, in tail and in full bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from runner.cli.commands import app
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.requests import RequestView, Wanted, of_call, requests
from runner.evidence.view import Filter, calls, find, line
from runner.ledger import entry as entries

OWN = {"call": "daemon:broker", "task": ""}


@pytest.fixture(params=[0, 300])  # further calls behind: the others lie in the tail, or in full bundles
def ledger(sample: ModuleType, tmp_path: Path, request: pytest.FixtureRequest) -> Ledger:
    used = entries.SecretUse(name="key", delivery="inject", lease="l1", fingerprint="f1", used=1)
    sealed = msgspec.structs.replace(sample.outcome(1), secrets=(used,))
    recorder = sample.open_recorder(tmp_path)
    written = [
        sample.start(),
        sample.egress(0, 1, **OWN),
        sample.call(1),
        sample.egress(1, 1, method="GET", path="/a"),
        sample.call(2, task="u"),
        sample.egress(1, 2, host="other.test", effect="deny", part="tool x", missing='host = "other.test"'),
        sample.egress(2, 1, task="u", visibility="opaque", protocol="tcp", port=5432),
        sample.egress_end(1, 1, status=200, up=10, down=20, secrets=("key",)),
        sample.alert(1),
        sealed,
        sample.egress(2, 2, task="u"),
        sample.egress_end(2, 2, task="u", code="upstream", reason="broke", unkept="it was cut"),
        sample.outcome(2, task="u", kind="interrupted"),
        sample.egress(0, 1, **OWN),
        sample.egress_end(0, 1, **OWN),
        sample.call(3),
        sample.egress(3, 1),
    ]
    for entry in written:
        recorder.append(entries.encode(entry))
    for entry in sample.pairs(1000, request.param):
        recorder.append(entries.encode(entry))
    recorder.commit()
    recorder.tidy()
    recorder._release()
    return Ledger(tmp_path / "ledger", load_verifier(sample.VKEY, tmp_path / "ledger"))


def told(found: Iterator[RequestView]) -> list[tuple[str, int, str]]:
    return [(view.request.call[-4:], view.request.request, view.state) for view in found]


def test_every_request_and_what_became_of_it(ledger: Ledger) -> None:
    assert told(requests(ledger, Wanted())) == [
        ("0003", 1, "open"),
        ("oker", 1, "over"),
        ("0002", 2, "cut"),
        ("0002", 1, "unknown"),
        ("0001", 2, "denied"),
        ("0001", 1, "over"),
        ("oker", 1, "unknown"),  # egress began anew, and its number came again
    ]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(call="c00000001"), 2),
        (Wanted(call="daemon:broker"), 2),
        (Wanted(task="u"), 2),
        (Wanted(task="u", host="api.test"), 2),
        (Wanted(host="other.test"), 1),
        (Wanted(host="other"), 0),
        (Wanted(denied=True), 1),
        (Wanted(denied=True, host="api.test"), 0),
        (Wanted(secret="key"), 1),
        (Wanted(secret="other"), 0),
        (Wanted(since="2026-01-01T00:00:00Z"), 7),
        (Wanted(since="2027-01-01T00:00:00Z"), 0),
    ],
)
def test_filters(ledger: Ledger, wanted: Wanted, count: int) -> None:
    assert len(list(requests(ledger, wanted))) == count


def test_of_one_call(ledger: Ledger) -> None:
    view = find(ledger, "c00000001")
    assert view is not None
    asked, alerts = of_call(ledger, view)
    assert told(iter(asked)) == [("0001", 1, "over"), ("0001", 2, "denied")]
    assert [each.alert.where for each in alerts] == ["body"]
    other = find(ledger, "c00000002")
    assert other is not None
    assert [each.state for each in of_call(ledger, other)[0]] == ["unknown", "cut"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(host="api.test"), ["c00000003", "c00000002", "c00000001"]),
        (Filter(host="other.test"), ["c00000001"]),
        (Filter(host="other.test", alerts=True), ["c00000001"]),
        (Filter(host="api.test", task="u"), ["c00000002"]),
        (Filter(alerts=True), ["c00000001"]),
        (Filter(alerts=True, task="u"), []),
        (Filter(secret="key"), ["c00000001"]),
        (Filter(secret="key", host="nowhere.test"), []),
        (Filter(fingerprint="f1"), ["c00000001"]),
        (Filter(fingerprint="f2"), []),
        (Filter(secret="key", fingerprint="f1", alerts=True, host="api.test"), ["c00000001"]),
    ],
)
def test_calls_by_what_they_did(ledger: Ledger, wanted: Filter, found: list[str]) -> None:
    assert [view.call.call for view in calls(ledger, wanted)] == found


def test_bundles_without_requests_are_not_parsed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = entries.decode
    monkeypatch.setattr("runner.ledger.entry.decode", lambda data: decoded.append(1) or decode(data))
    assert list(requests(ledger, Wanted(host="other.test")))
    assert 0 < len(decoded) < 10
    assert list(calls(ledger, Filter(alerts=True)))
    assert len(decoded) < 20


def test_lines(sample: ModuleType) -> None:
    def shown(entry: Any) -> str:
        return line(7, entries.encode(entry), 1000).split(maxsplit=3)[3]

    asked = sample.egress(1, 3, method="GET", path="/a\x1b[31m", effect="deny", part="tool x")
    assert shown(asked) == "c00000001 #3 GET https://api.test:443/a\\x1b[31m deny tool x because"
    opaque = sample.egress(1, visibility="opaque")
    assert shown(opaque) == "c00000001 #1 https://api.test:443 opaque allow because"
    ended = sample.egress_end(1, status=200, up=1, down=2, secrets=("key",), response=sample.kept(b"x"))
    assert shown(ended) == "c00000001 #1 198.51.100.9 200 up=1 down=2 with key kept"
    assert shown(sample.alert(1)) == "c00000001 CRITICAL credential key body"


def test_the_commands_escape_what_tools_wrote(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start(), sample.call(1))
    hostile = sample.egress(1, path="/\x1b]0;owned\x07‮", host="a.test", effect="deny", part="tool x")
    recorder.append(entries.encode(hostile))
    sample.add(recorder, sample.alert(1, where="body\x1b[2J"), sample.outcome(1))
    recorder.close()
    state = ("--state", str(tmp_path), "--key", sample.VKEY)
    for command in (
        ("requests",),
        ("show", "c00000001"),
        ("tail",),
        ("requests", "--json"),
        ("show", "c00000001", "--json"),
    ):
        done = CliRunner().invoke(app, ["trace", *command, *state], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert not {"\x1b", "\x07", "‮"} & set(done.stdout), command
        assert "owned" in done.stdout
    done = CliRunner().invoke(app, ["trace", "show", "c00000001", *state, "--json"])
    assert [each["state"] for each in json.loads(done.stdout)["requests"]] == ["denied"]
    assert len(json.loads(done.stdout)["alerts"]) == 1
