"""The log of operators' acts is told from the ledger alone: whose, by which proof, and what was before."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runner.catalog.files import archive
from runner.cli import admin
from runner.evidence.acts import HOST, Act, Wanted, acts, split_archive
from runner.evidence.read import Ledger, load_verifier
from runner.ledger import entry as entries

ANN = entries.Operator(name="ann", uid=1000, key="thumb")
WHO = entries.Who(agent="a", owner="o", task="t", session="s")
OLD = archive({"runner.toml": b"x = 1\n", "policies/base.cedar": b"permit;\n"})
NEW = archive({"runner.toml": b"x = 1\n", "policies/base.cedar": b"forbid;\x1b[2J\n", "tools/t/tool.toml": b"\n"})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def at(second: int) -> str:
    return f"2026-01-02T03:04:{second:02d}.000000Z"


HOSTILE = "done\x1b[31m\u202e"
STORY: list[entries.AnyEntry] = [
    entries.Start(
        time=at(0), instance="i", version="0", host="h", boot="b", config=entries.Content(digest="c", size=1),
        catalogue=digest(OLD), policy="p1", previous="none",
    ),
    entries.Token(
        time=at(1), jti="j1", digest="d", issuer="i", who=WHO, profile="p", tools=("x",), issued=1, expires=100, by=0
    ),
    entries.Revoke(time=at(2), target="token", value="j1", why=HOSTILE, by=1000, operator=ANN),
    entries.Revoke(time=at(3), target="token", value="j1", by=0, operator=entries.Operator(name="root", uid=0)),
    entries.TaskEnd(time=at(4), task="t", reason="ended by its holder", by=500),
    entries.TaskEnd(time=at(5), task="u", reason="the token expired"),
    entries.TaskEnd(time=at(6), task="v", reason="ended by an operator: enough", by=1000, operator=ANN),
    entries.Refusals(time=at(7), uid=7, code="denied", detail="admin.sock: no", count=3),
    entries.Refusals(time=at(7), uid=7, code="busy", detail="agents", count=3),
    entries.Reload(time=at(8), before=digest(OLD), after=digest(NEW), policy="p2"),
    entries.Stop(time=at(9), instance="i", reason="SIGTERM", clean=True),
]  # fmt: skip


@pytest.fixture
def state(sample: ModuleType, tmp_path: Path) -> Path:
    recorder = sample.open_recorder(tmp_path)
    for each in (OLD, NEW):
        recorder.store(each)
    for entry in STORY:
        recorder.append(entries.encode(entry))
    recorder.append(entries.encode(sample.call(1, planned=False, intent='"kind":"token"')))
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    return tmp_path


def told(state: Path, **wanted: Any) -> list[Act]:
    ledger = state / "ledger"
    return list(acts(Ledger(ledger, load_verifier("", ledger)), Wanted(**wanted)))


def test_every_act_and_nothing_else(state: Path) -> None:
    found = told(state)
    assert [act.kind for act in found] == [
        "start", "token", "revoke", "revoke", "task_end", "refusals", "reload", "stop",
    ]  # fmt: skip
    assert [act.operator for act in found] == [HOST, "uid 0", "ann", "root", "ann", "uid 7", HOST, HOST]
    assert found[2].known == "key thumb"
    assert found[3].known == "uid 0"


def test_before_and_after(state: Path) -> None:
    start, token, first, second, ended, _, reload, _ = told(state)
    assert (start.before, start.after) == ("nothing", f"catalogue {digest(OLD)[:16]} policy p1")
    assert (token.before, token.after) == ("unknown", "good until 1970-01-01T00:01:40Z")
    assert (first.before, first.after) == ("not revoked", "revoked")
    assert second.before == f"revoked at {first.position}"
    assert (ended.before, ended.after) == ("live", "ended")
    assert reload.before == f"catalogue {digest(OLD)[:16]} policy p1"
    assert reload.after == f"catalogue {digest(NEW)[:16]} policy p2"


def test_filters(state: Path) -> None:
    assert [act.kind for act in told(state, operator="ann")] == ["revoke", "task_end"]
    assert [act.position for act in told(state, kind="revoke")] == [2, 3]
    assert [act.kind for act in told(state, since=at(8))] == ["reload", "stop"]
    (late,) = told(state, kind="revoke", operator="root")
    assert late.before == "revoked at 2"  # what was before is known whatever is shown


def run(state: Path, *arguments: str) -> str:
    done = CliRunner().invoke(admin.app, ["log", "--state", str(state), *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_shows_hostile_text_as_text(state: Path) -> None:
    said = run(state)
    assert "ann (key thumb): token j1" in said
    assert "not revoked -> revoked" in said
    assert "why: done\\x1b[31m\\u{202e}" in said
    assert "changed: policies/base.cedar, tools/t/tool.toml" in said
    assert "forbid" not in said
    diff = run(state, "--kind", "reload", "--diff")
    assert "    -permit;" in diff
    assert "    +forbid;\\x1b[2J" in diff
    for text in (said, diff):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_the_command_prints_json_and_the_newest(state: Path) -> None:
    reload, stop = json.loads(run(state, "--json", "--limit", "2"))
    assert stop["kind"] == "stop"
    assert reload["changed"] == ["policies/base.cedar", "tools/t/tool.toml"]
    assert reload["catalogues"] == [digest(OLD), digest(NEW)]
    assert run(state, "--json").isascii()
    done = CliRunner().invoke(admin.app, ["log", "--state", str(state), "--kind", "nonsense"])
    assert done.exit_code == 2


def test_without_the_content_the_log_is_told_all_the_same(state: Path) -> None:
    shutil.rmtree(state / "content")
    said = run(state, "--diff")
    assert "catalogue with its policy" in said
    assert "note: files are not compared" in said
    assert "changed:" not in run(state)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.binary(max_size=50)))
def test_an_archive_splits_into_what_it_was_made_of(files: dict[str, bytes]) -> None:
    assert split_archive(archive(files)) == files


@given(st.binary(max_size=200))
def test_other_bytes_are_no_archive(data: bytes) -> None:
    try:
        files = split_archive(data)
    except ValueError:
        return
    assert archive(files) == data


MORE: list[entries.AnyEntry] = [
    entries.Start(
        time=at(0), instance="i", version="0", host="h", boot="b", config=entries.Content(digest="c", size=1),
        catalogue=digest(OLD), policy="p1", previous="none", anchors=("key-1",),
    ),
    entries.Revoke(time=at(1), target="agent", value="a", until_released=True, why="w", by=1000, operator=ANN),
    entries.Revoke(time=at(2), target="agent", value="a", by=1000, operator=ANN),
    entries.Pending(
        time=at(3), id="p1", act="release", subject="s", target="agent", value="a", changes=("agent a",), by=1000,
        operator=ANN, expires=100,
    ),
    entries.Withdraw(time=at(4), id="p1", act="release", why="no", by=1000, operator=ANN),
    entries.Reopen(
        time=at(5), target="agent", value="a", why="mended", by=1000, operator=ANN, pending="p2",
        confirmed=entries.Operator(name="bob", uid=7),
    ),
    entries.Revoke(time=at(6), target="agent", value="a", by=1000, operator=ANN),
    entries.RefusedReload(time=at(7), offered="d" * 64, code="policy", field="policies/x:3", reason=HOSTILE),
    entries.Reload(time=at(8), before=digest(OLD), after=digest(OLD), policy="p1", anchors=("key-2",)),
]  # fmt: skip


def test_what_was_closed_released_and_refused(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    for entry in MORE:
        recorder.append(entries.encode(entry))
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    _, closed, again, waits, withdrawn, released, last, refused, reload = told(tmp_path)
    assert (closed.before, closed.after) == ("not revoked", "revoked, and closed until its release")
    assert (again.before, again.after) == ("closed at 1", "revoked, and closed until its release")
    assert (waits.before, waits.what) == ("closed", "release waits as p1 for another: agent a")
    assert (withdrawn.before, withdrawn.after, withdrawn.why) == ("waits", "withdrawn", "no")
    assert (released.before, released.why) == ("closed at 1", "mended")
    assert released.after == "open for new tokens; what was announced before stays revoked"
    assert released.what == "agent a, p2 confirmed by bob (uid 7)"
    assert (last.before, last.after) == ("released at 5", "revoked")
    assert (refused.operator, refused.after) == (HOST, "the same")
    assert refused.before == f"catalogue {digest(OLD)[:16]} policy p1"
    assert refused.what == f"catalogue {'d' * 16} refused, policy: policies/x:3: {HOSTILE}"
    assert reload.what == "the same catalogue, retires issuer's key key-1, adds issuer's key key-2"
    assert "\x1b" not in run(tmp_path, "--kind", "refused_reload")


def test_a_policy_that_is_put_back_is_said_to_be(sample: ModuleType, tmp_path: Path) -> None:
    def reload(number: int, before: str, after: str, policy: str) -> entries.Reload:
        return entries.Reload(time=at(number), before=before, after=after, policy=policy)

    recorder = sample.open_recorder(tmp_path)
    recorder.append(entries.encode(MORE[0]))
    for number, policy in enumerate(("p2", "p2", "p1", "p3", "p2"), 1):
        recorder.append(entries.encode(reload(number, f"c{number}", f"c{number + 1}", policy)))
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    assert [act.what.partition(", a policy put back ")[2] for act in told(tmp_path)] == [
        "", "", "", "that entry 1 replaced", "", "that entry 3 replaced",
    ]  # fmt: skip


def test_what_operators_did_to_secrets(sample: ModuleType, tmp_path: Path) -> None:
    recorder = sample.open_recorder(tmp_path)
    rows = [("set", 0, 1, ""), ("rotate", 1, 2, ""), ("rotate", 2, 2, "the disk is full"), ("remove", 2, 0, "")]
    for number, (act, before, after, problem) in enumerate(rows):
        recorder.append(
            entries.encode(
                entries.Secret(
                    time=at(number), act=act, name="api", before=before, after=after, by=1000, operator=ANN,  # type: ignore[arg-type]
                    why="a reason", problem=problem,
                )
            )
        )  # fmt: skip
    recorder.close()
    (tmp_path / "ledger/key.pub").write_text(sample.VKEY + "\n")
    found = told(tmp_path, kind="secret")
    assert [(act.what, act.before, act.after, act.why) for act in found] == [
        ("secret api, set", "not stored", "version 1", "a reason"),
        ("secret api, rotate", "version 1", "version 2", "a reason"),
        ("secret api, rotate", "version 2", "version 2", "not carried out: the disk is full"),
        ("secret api, remove", "version 2", "not stored", "a reason"),
    ]
    assert {act.operator for act in found} == {"ann"}
