"""Inspectors outside: what waits for them, what becomes of their word, and of their silence."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest

from runner.errors import refuse
from runner.model import Action
from runner.stream.actions import Actions
from runner.stream.consult import MOST, UNINSPECTED, Consultation
from runner.stream.hygiene import Clean

TEXT = b"some words and a spell and more"


class Says(NamedTuple):
    labels: frozenset[str] = frozenset()
    parts: tuple[tuple[int, int], ...] = ()


class Word:
    """Finds one word; silent when told so."""

    def __init__(self, name: str = "words", label: str = "injected", *, silent: bool = False) -> None:
        self.name, self.label, self.silent = name, label, silent
        self.asked: list[tuple[bytes, str]] = []

    async def ask(self, data: bytes, where: str, labels: frozenset[str]) -> Says:
        self.asked.append((data, where))
        if self.silent:
            raise refuse("unavailable", "it sleeps")
        at = data.find(b"spell")
        return Says(frozenset({self.label}), ((at, at + 5),)) if at >= 0 else Says()


def run(
    inspectors: list[Word], table: dict[str, Action], *pieces: Clean
) -> tuple[Consultation, list[Clean], list[Clean]]:
    """The consultation, what went on before, and what after."""
    made = Consultation(inspectors, Actions(table, bytes(32)))
    before = [clean for piece in pieces for clean in made.take([piece])]
    return made, before, asyncio.run(made.close())


def test_where_nothing_could_be_done_text_goes_on_at_once_and_the_verdict_follows() -> None:
    made, before, after = run([word := Word()], {"injected": "mark"}, Clean("stdout", TEXT), Clean("stdout", b"!"))
    assert (before, after) == ([Clean("stdout", TEXT), Clean("stdout", b"!")], [])
    assert word.asked == [(TEXT + b"!", "stdout")]
    assert made.labels == {"injected"}
    assert [(each.start, each.end) for each in made.marked] == [(17, 22)]


def test_where_it_could_all_waits_and_what_is_found_is_replaced() -> None:
    made, before, after = run([Word()], {"injected": "strip"}, Clean("stdout", TEXT), Clean("stderr", b"fine"))
    assert before == []
    assert after == [Clean("stdout", TEXT.replace(b"spell", b"[removed: injected]")), Clean("stderr", b"fine")]
    assert [(each.start, each.end) for each in made.marked] == [(17, 36)]


@pytest.mark.parametrize("action", ["block", "hold"])
def test_a_blocked_text_is_gone_and_a_held_one_is_kept_and_said_to_be(action: Action) -> None:
    made, before, after = run([Word()], {"injected": action}, Clean("stdout", TEXT))
    assert before == []
    assert after == ([] if action == "block" else [Clean("stdout", TEXT)])
    assert (made.blocked, made.held)[action == "hold"] == "inspector:words"


def test_labels_of_its_own_have_their_own_actions() -> None:
    made, _, after = run([Word(label="toxic")], {"injected": "strip", "toxic": "redact"}, Clean("stdout", TEXT))
    assert b"spell" not in after[0].data
    assert made.labels == {"toxic"}
    assert not made.marked


@pytest.mark.parametrize(("action", "told"), [("allow", True), ("mark", True), ("hold", True), ("block", False)])
def test_a_silent_inspector_leaves_a_label_that_has_an_action(action: Action, told: bool) -> None:
    table: dict[str, Action] = {"injected": "strip", UNINSPECTED: action}
    made, before, after = run([Word(silent=True)], table, Clean("stdout", TEXT))
    assert made.labels == {UNINSPECTED}
    assert "it sleeps" in made.problem
    assert b"".join(each.data for each in before + after) == (TEXT if told else b"")
    assert bool(made.blocked) == (action == "block")
    assert bool(made.held) == (action == "hold")


def test_one_that_speaks_does_not_speak_for_one_that_is_silent() -> None:
    made, _, after = run([Word("a"), Word("b", silent=True)], {UNINSPECTED: "block"}, Clean("stdout", b"clean"))
    assert made.blocked == UNINSPECTED
    assert after == []


def test_more_than_is_sent_is_uninspected_from_there_on() -> None:
    piece = Clean("stdout", b"x" * (MOST // 2 + 1))
    made, before, after = run([word := Word()], {"injected": "strip"}, piece, piece, piece)
    assert b"".join(each.data for each in before + after) == piece.data * 3
    assert made.labels == {UNINSPECTED}
    assert not word.asked
    blocked, before, after = run([Word()], {UNINSPECTED: "block"}, piece, piece, piece)
    assert (before, after) == ([], [])
    assert blocked.blocked


def test_none_where_one_is_required_withholds() -> None:
    made, before, after = run([], {UNINSPECTED: "block"}, Clean("stdout", TEXT))
    assert (before, after) == ([], [])
    assert made.blocked
    free, before, _ = run([], {"injected": "strip"}, Clean("stdout", TEXT))
    assert before == [Clean("stdout", TEXT)]
    assert not free.labels


def test_encoded_output_and_values_are_held_where_they_would_be_changed() -> None:
    made, _, after = run([Word()], {"injected": "strip"}, Clean("stdout", TEXT, "base64"))
    assert after == [Clean("stdout", TEXT, "base64")]
    assert made.held
    value = Consultation([Word()], Actions({"injected": "strip"}, bytes(32)))
    asyncio.run(value.value({"a": "spell"}))
    assert value.held
    clean: Any = Consultation([Word()], Actions({"injected": "strip"}, bytes(32)))
    asyncio.run(clean.value({"a": "word"}))
    assert not clean.held
