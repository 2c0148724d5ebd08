"""The tree of tokens: whose word each call came by, whatever ids and names holders choose."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from runner.cli.trace import app
from runner.errors import RunnerError
from runner.evidence import delegation
from runner.evidence.delegation import Token, tree
from runner.evidence.read import Ledger
from runner.evidence.view import Filter, calls
from runner.ledger import entry as entries
from runner.ledger.note import Verifier

A, B, C = "a" * 64, "b" * 64, "c" * 64


def link(token: str, digest: str, name: str) -> entries.Delegated:
    return entries.Delegated(token=token, digest=digest, issued=1, expires=2_000_000_000, name=name)


def call(sample: ModuleType, number: int, *links: entries.Delegated, root: str = "root", **changes: Any) -> Any:
    made = sample.call(number, **changes)
    return msgspec.structs.replace(made, chain=(root, *(each.token for each in links)), delegation=links)


def announced(sample: ModuleType, jti: str = "root") -> entries.Token:
    who = entries.Who(agent="a", owner="o", task="t", session="s")
    return entries.Token(
        time=sample.NOW, jti=jti, digest=A, issuer="i", who=who, profile="p", tools=(), issued=1, expires=9, by=0
    )


def revoke(sample: ModuleType, target: str, value: str) -> entries.Revoke:
    return entries.Revoke(time=sample.NOW, target=target, value=value, why="gone bad", by=7)


def written(sample: ModuleType, place: Path, *found: Any) -> Path:
    recorder = sample.open_recorder(place / "state")
    sample.add(recorder, sample.start(), *found)
    recorder.close()
    (place / "state/ledger/key.pub").write_text(sample.VKEY + "\n")
    return place / "state"


def grown(sample: ModuleType, place: Path, *found: Any, keep: int = 5) -> list[Token]:
    ledger = Ledger(written(sample, place, *found) / "ledger", Verifier.parse(sample.VKEY))
    return tree(ledger, calls(ledger, Filter(task="t")), keep=keep)


def names(root: Token) -> list[str]:
    return [token.name for token in root.walk()]


def test_calls_hang_at_the_token_they_came_with(sample: ModuleType, tmp_path: Path) -> None:
    lead, sub = link("l", A, "lead"), link("s", B, "sub")
    found = [
        call(sample, 1),
        sample.outcome(1),
        call(sample, 2, lead),
        sample.outcome(2, kind="killed"),
        call(sample, 3, lead, sub),
        sample.outcome(3),
        call(sample, 4, lead, sub, effect="deny", planned=False),
        call(sample, 5, lead, sub),
        call(sample, 6, task="another"),
    ]
    (root,) = grown(sample, tmp_path, *found)
    assert names(root) == ["a", "lead", "sub"]
    assert [(token.calls, token.refused) for token in root.walk()] == [(1, 0), (1, 0), (3, 1)]
    leaf = root.below[0].below[0]
    assert [(made.call, made.outcome) for made in leaf.made] == [
        ("c00000003", "exited 0"), ("c00000004", "-"), ("c00000005", "running"),
    ]  # fmt: skip
    assert leaf.made[1].why == "because"
    assert (leaf.expires, leaf.grants, root.announced) == (2_000_000_000, None, -1)


def test_only_the_newest_calls_are_told_and_all_are_counted(sample: ModuleType, tmp_path: Path) -> None:
    (root,) = grown(sample, tmp_path, *sample.pairs(0, 30), keep=3)
    assert (root.calls, [made.call for made in root.made]) == (30, ["c00000027", "c00000028", "c00000029"])


def test_a_token_is_not_its_id(sample: ModuleType, tmp_path: Path) -> None:
    """A holder may give two tokens one id, and one name: they stay two."""
    twins = [call(sample, number, link("same", digest, "sub")) for number, digest in enumerate((A, B, A))]
    (root,) = grown(sample, tmp_path, *twins)
    assert [(token.token, token.calls) for token in root.below] == [("same", 2), ("same", 1)]


@pytest.mark.parametrize(
    ("target", "value", "marked"),
    [
        ("token", "l", ["lead"]),
        ("token", "root", ["a"]),
        ("task", "t", ["a"]),
        ("task", "u", []),
        ("agent", "a", ["a"]),
        ("agent", "sub", ["sub"]),
        ("owner", "o", ["a"]),
        ("everything", "", ["a"]),
    ],
)
def test_a_revocation_stands_where_it_meets(
    sample: ModuleType, tmp_path: Path, target: str, value: str, marked: list[str]
) -> None:
    chain = (link("l", A, "lead"), link("s", B, "sub"))
    (root,) = grown(sample, tmp_path, announced(sample), call(sample, 1, *chain), revoke(sample, target, value))
    assert [token.name for token in root.walk() if token.revoked] == marked
    told = [(each.by, each.target, each.value, each.why) for token in root.walk() for each in token.revoked]
    assert told == [("uid 7", target, value, "gone bad")] * len(marked)
    assert root.announced == 1


@pytest.mark.parametrize(("target", "value", "marked"), [("agent", "a", []), ("owner", "o", []), ("everything", "", []),
                                                         ("token", "root", ["a"]), ("task", "t", ["a"])])  # fmt: skip
def test_what_was_announced_later_is_not_revoked_by_what_came_before(
    sample: ModuleType, tmp_path: Path, target: str, value: str, marked: list[str]
) -> None:
    (root,) = grown(sample, tmp_path, revoke(sample, target, value), announced(sample), call(sample, 1))
    assert [token.name for token in root.walk() if token.revoked] == marked


def test_a_tree_that_no_daemon_could_have_grown_is_refused(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [call(sample, number, link(f"t{number}", f"{number:064d}", "sub")) for number in range(9)]
    monkeypatch.setattr(delegation, "_TREE", 10)
    assert len(grown(sample, tmp_path, *found)[0].below) == 9
    monkeypatch.setattr(delegation, "_TREE", 9)
    with pytest.raises(RunnerError, match="more than 9 tokens"):
        grown(sample, tmp_path / "again", *found)


def test_the_drawing_acts_on_nothing_that_it_shows(sample: ModuleType, tmp_path: Path) -> None:
    hostile = link("[red]x[/red]\x1b[2J", A, "lead\u202e\n└── forged")
    state = written(sample, tmp_path, call(sample, 1, hostile), revoke(sample, "token", "[red]x[/red]\x1b[2J"))
    for words in (["tree", "t"], ["show", "c00000001"]):
        shown = CliRunner().invoke(app, [*words, "--state", str(state)]).stdout
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "└── lead\\u{202e}\\n└── forged  [red]x[/red]\\x1b[2J" in shown
        assert "revoked" in shown
    told = json.loads(CliRunner().invoke(app, ["tree", "t", "--json", "--state", str(state)]).stdout)
    assert told[0]["below"][0]["token"] == "[red]x[/red]\x1b[2J"
    with pytest.raises(RunnerError, match="no call of this task"):
        CliRunner().invoke(app, ["tree", "nobody", "--state", str(state)], catch_exceptions=False)


def test_a_list_finds_a_sub_agent_by_the_name_that_its_parent_gave(sample: ModuleType, tmp_path: Path) -> None:
    who = entries.Who(agent="boss", owner="o", task="t", session="s", asserted=("lead", "sub"))
    other = msgspec.structs.replace(call(sample, 2), intent='not "sub"', tool="sub")
    state = written(sample, tmp_path, msgspec.structs.replace(call(sample, 1), who=who), other)

    def found(agent: str) -> list[str]:
        shown = CliRunner().invoke(app, ["list", "--agent", agent, "--json", "--state", str(state)])
        return [view["call"]["call"] for view in json.loads(shown.stdout)]

    assert [found(name) for name in ("sub", "lead", "boss", "a", "nobody")] == [
        ["c00000001"], ["c00000001"], ["c00000001"], ["c00000002"], [],
    ]  # fmt: skip
