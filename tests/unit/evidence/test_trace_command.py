"""`runner trace` on a real ledger: what it prints, its exit statuses, and that it survives hostile text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from typer.testing import CliRunner, Result

from runner.cli.trace import app
from runner.errors import EXIT_UNVERIFIED, RunnerError
from runner.ledger import entry as entries
from runner.ledger import tail as tails


@pytest.fixture
def state(sample: ModuleType, tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    recorder = sample.open_recorder(folder)
    sample.add(recorder, sample.start(), *sample.pairs(0, 140))
    hostile = msgspec.structs.replace(
        sample.call(200, effect="deny", planned=False),
        tool="[red]x[/red]",
        intent="two\nlines \x1b[2J \u202e",
        arguments=entries.Content(digest=recorder.store(sample.SALT + b"\x1b[31m\xff"), size=6),
    )
    recorder.append(entries.encode(hostile))
    recorder.close()
    (folder / "ledger/key.pub").write_text(sample.VKEY + "\n")
    return folder


def run(state: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--state", str(state)])
    if isinstance(result.exception, RunnerError):
        raise result.exception
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    return result


def test_list(state: Path) -> None:
    assert "c00000139" in run(state, "list").stdout
    assert "[red]x[/red]" in run(state, "list", "--effect", "deny").stdout
    shown = json.loads(run(state, "list", "--json", "--tool", "fs_read", "--limit", "3").stdout)
    assert [view["call"]["call"] for view in shown] == ["c00000139", "c00000138", "c00000137"]
    assert shown[0]["outcome"]["outcome"] == "exited"


def test_show_believes_no_list_without_its_tombstone(sample: ModuleType, tmp_path: Path) -> None:
    """With it: tests/security/test_retention.py."""
    recorder = sample.open_recorder(tmp_path)
    recorder.append(entries.encode(sample.call(1)))  # its content is not there
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    assert "not in the content store: " in run(tmp_path, "show", "c00000001").stdout
    listed = bytes.fromhex(sample.call(1).arguments.digest)
    name = hashlib.sha256(listed).hexdigest()
    (tmp_path / "content/pruned").mkdir()
    (tmp_path / "content/pruned" / name).write_bytes(listed)
    said = "not in the content store, and pruned by a list that no signed entry names"
    assert said in run(tmp_path, "show", "c00000001").stdout
    entry = entries.Prune(
        time=sample.NOW, of=entries.Criteria(), pruned=entries.Content(digest=name, size=32), pieces=1, size=1,
        why="x", by=0,
    )  # fmt: skip
    with (tmp_path / "ledger/tail").open("ab") as tail:
        tail.write(tails.record(tails.ENTRY, entries.encode(entry)))
    assert said in run(tmp_path, "show", "c00000001").stdout


def test_show(sample: ModuleType, state: Path) -> None:
    text = run(state, "show", "c00000007", "--content").stdout
    for part in ("arguments 7", "plan", "out", "position", "15, outcome 16", "hashes, checked"):
        assert part in text
    shown = json.loads(run(state, "show", "c00000007", "--json").stdout)
    assert shown["included"] is True
    assert shown["content"] == {"arguments": "arguments 7"}
    hostile = run(state, "show", "c00000200").stdout
    assert "two\\nlines \\x1b[2J \\u{202e}" in hostile
    assert "\\x1b[31m\\xff" in hostile
    with pytest.raises(RunnerError, match="no such call"):
        run(state, "show", "nobody")


def test_verify(sample: ModuleType, state: Path) -> None:
    result = run(state, "verify")
    assert result.exit_code == 0
    assert "✓ 9" in result.stdout
    assert "verified: toolrunner/test, 282 entries" in result.stdout
    assert "keep a copy elsewhere" in result.stdout
    assert "keep a copy elsewhere" not in run(state, "verify", "--key", sample.VKEY).stdout
    path = state / "ledger/tile/entries/000"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    result = run(state, "verify", "--no-content")
    assert result.exit_code == EXIT_UNVERIFIED
    assert "✗ 5" in result.stdout
    assert "- 8" in result.stdout
    assert "NOT VERIFIED" in result.stdout
    result = run(state, "verify", "--json")
    assert result.exit_code == EXIT_UNVERIFIED
    assert json.loads(result.stdout)["ok"] is False


def test_verify_with_an_anchor(state: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    anchor.write_bytes((state / "ledger/checkpoint").read_bytes())
    assert run(state, "verify", "--anchor", str(anchor)).exit_code == 0
    anchor.write_bytes(b"noise")
    assert run(state, "verify", "--anchor", str(anchor)).exit_code == EXIT_UNVERIFIED


def test_tail(state: Path) -> None:
    lines = run(state, "tail", "-n", "3").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [279, 280, 281]
    shown = [json.loads(line) for line in run(state, "tail", "-n", "2", "--json").stdout.splitlines()]
    assert [item["position"] for item in shown] == [280, 281]
    assert shown[1]["entry"]["kind"] == "call"


def test_export_and_verify_it(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert "282 entries" in run(state, "export", str(target)).stdout
    result = CliRunner().invoke(app, ["verify", "--ledger", str(target)])
    assert result.exit_code == 0
    assert "this is an export" in result.stdout


def test_no_ledger(tmp_path: Path) -> None:
    for command in (["list"], ["verify"], ["tail"], ["show", "x"]):
        with pytest.raises(RunnerError):
            run(tmp_path, *command)
