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
from runner.evidence.view import line
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


def test_an_export_is_read_like_the_ledger(sample: ModuleType, state: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere/out"
    target.parent.mkdir()
    run(state, "export", str(target))
    for words in (["list", "--limit", "2"], ["tree", "t", "--calls", "1"]):
        there = CliRunner().invoke(app, [*words, "--ledger", str(target), "--key", sample.VKEY]).stdout
        assert there.splitlines()[-2:] == run(state, *words).stdout.splitlines()[-2:]
    shown = CliRunner().invoke(app, ["show", "c00000007", "--ledger", str(target), "--key", sample.VKEY]).stdout
    assert "hashes, checked" in shown
    assert "arguments 7" not in shown  # content stayed behind
    assert "arguments 7" in run(state, "show", "c00000007").stdout


def test_a_line_names_who_acted_and_the_content_that_an_entry_names(sample: ModuleType) -> None:
    act = entries.PruneImage(
        time=sample.NOW, image="sha256:x", archive=entries.Content(digest="d" * 64, size=7), why="old", by=0,
        operator=entries.Operator(name="ann", uid=0),
    )  # fmt: skip
    said = line(3, entries.encode(act))
    assert f"archive={'d' * 16}…(7 bytes)" in said
    assert "by=ann" in said
    derived = msgspec.structs.replace(
        sample.call(1), who=entries.Who(agent="a", owner="o", task="t", session="s", asserted=("b", "c"))
    )
    assert "a>b>c/t" in line(3, entries.encode(derived), 400)


def test_show_has_what_was_measured_of_the_sandbox(sample: ModuleType, tmp_path: Path) -> None:
    isolation = entries.Isolation(
        image="sha256:made-of-this", runtime="runc", uid=1, seccomp=2, seccomp_filters=1, no_new_privs=True,
        capabilities="none", namespaces=(), interfaces=(), read_only_root=True, memory_limit=1, swap_limit=1,
        pids_limit=1, cpu_quota_milli=1, cgroup_version=1,
    )  # fmt: skip
    begun = [
        entries.SandboxBegin(
            time=sample.NOW, sandbox=name, task="t", profile="p", profile_digest="",
            isolation=msgspec.structs.replace(isolation, uid=uid),
        )
        for name, uid in (("other", 5), ("s", 6))
    ]  # fmt: skip
    recorder = sample.open_recorder(tmp_path)
    sample.add(recorder, sample.start(), begun[0], sample.call(1), begun[1], sample.outcome(1))
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    shown = run(tmp_path, "show", "c00000001").stdout
    assert "sandbox (measured, entry 3)" in shown
    assert "sha256:made-of-this" in shown
    assert json.loads(run(tmp_path, "show", "c00000001", "--json").stdout)["sandbox"]["isolation"]["uid"] == 6
