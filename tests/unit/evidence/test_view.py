"""A search finds what a plain join of every call with its outcome finds, wherever in the bundles the two lie."""

from __future__ import annotations

import random
from itertools import product
from types import ModuleType

import pytest

from runner.evidence.read import Ledger, load_verifier
from runner.evidence.view import Filter, calls, find
from runner.ledger import entry as entries

TASKS, TOOLS, KINDS = ("t1", "t2"), ("fs_read", "shell_run"), ("exited", "killed")


@pytest.fixture(scope="module")
def held(sample: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, list[entries.AnyEntry]]:
    """A ledger of several bundles whose calls overlap: an outcome lies up to 600 entries after its call, or nowhere."""
    chance, state = random.Random(7), tmp_path_factory.mktemp("view")
    written: list[entries.AnyEntry] = [sample.start()]
    due: list[tuple[int, entries.AnyEntry]] = []
    for number in range(800):
        task, planned = chance.choice(TASKS), chance.random() < 0.8
        effect = "allow" if planned else "deny"
        written.append(sample.call(number, task=task, tool=chance.choice(TOOLS), planned=planned, effect=effect))
        if planned and chance.random() < 0.9:
            at = len(written) + chance.choice((0, 0, 3, 300, 600))
            due.append((at, sample.outcome(number, task=task, kind=chance.choice(KINDS))))
        for ready in [pair for pair in due if pair[0] <= len(written)]:
            written.append(ready[1])
            due.remove(ready)
    recorder = sample.open_recorder(state)
    sample.add(recorder, *written)
    recorder.close()
    return Ledger(state / "ledger", load_verifier(sample.VKEY, state / "ledger")), written


def joined(written: list[entries.AnyEntry]) -> list[tuple[entries.Call, entries.Outcome | None]]:
    ends = {entry.call: entry for entry in written if isinstance(entry, entries.Outcome)}
    return [(entry, ends.get(entry.call)) for entry in reversed(written) if isinstance(entry, entries.Call)]


def test_every_filter_finds_what_a_plain_join_finds(held: tuple[Ledger, list[entries.AnyEntry]]) -> None:
    ledger, written = held
    everything = joined(written)
    assert ledger.size > 4 * 256
    for task, tool, effect, outcome in product(
        ("", "t1", "none"), ("", "shell_run"), ("", "deny"), ("", *KINDS, "running", "-", "none")
    ):
        expected = [
            (call.call, end.outcome if end else None)
            for call, end in everything
            if task in ("", call.who.task)
            and tool in ("", call.tool)
            and effect in ("", call.decision.effect)
            and outcome in ("", end.outcome if end else "running" if call.plan else "-")
        ]
        wanted = Filter(task=task, tool=tool, effect=effect, outcome=outcome)
        found = [(view.call.call, view.outcome and view.outcome.outcome) for view in calls(ledger, wanted)]
        assert found == expected, wanted


def test_positions_are_those_of_the_entries(held: tuple[Ledger, list[entries.AnyEntry]]) -> None:
    ledger, written = held
    for view in (*calls(ledger, Filter()), *calls(ledger, Filter(task="t1"))):
        assert written[view.position] == view.call
        assert view.outcome is None or written[view.outcome_position] == view.outcome


def test_one_call_is_found_by_its_id(held: tuple[Ledger, list[entries.AnyEntry]]) -> None:
    ledger, written = held
    for call, end in joined(written)[::37]:
        view = find(ledger, call.call)
        assert view is not None
        assert (view.call, view.outcome) == (call, end)
    assert find(ledger, "c99999999") is None
