"""Floods and hostile words of strangers become few entries, and entries that can be written."""

from __future__ import annotations

import asyncio
from typing import Any

from runner.gate.strangers import Strangers
from runner.ledger import entry as entries


class Journal:
    def __init__(self) -> None:
        self.written: list[Any] = []

    def stamp(self) -> str:
        return "2026-01-01T00:00:00.000000Z"

    async def write(self, entry: Any) -> None:
        self.written.append(entries.decode(entries.encode(entry)))


def flushed(strangers: Any) -> list[Any]:
    asyncio.run(strangers.flush())
    return [(e.uid, e.code, e.count, e.detail) for e in strangers._journal.written]


def make() -> Any:
    journal: Any = Journal()
    return Strangers(journal)


def test_a_flood_is_one_entry_per_uid_and_code_with_its_first_detail() -> None:
    strangers = make()
    for number in range(1000):
        strangers.count(1, "busy", f"n{number}")
        strangers.count(2, "busy", "other")
    assert flushed(strangers) == [(1, "busy", 1000, "n0"), (2, "busy", 1000, "other")]
    assert len(flushed(strangers)) == 2  # nothing new: nothing written


def test_more_kinds_than_are_told_apart_are_still_counted() -> None:
    strangers = make()
    for uid in range(1000):
        strangers.count(uid, "busy", "d")
    found = flushed(strangers)
    assert len(found) == 256
    assert sum(count for _, _, count, _ in found) == 1000


def test_hostile_words_can_be_written() -> None:
    strangers = make()
    strangers.count(1, "protocol", "\ud800\x1b[2J\n" + "x" * 10_000)
    ((_, _, _, detail),) = flushed(strangers)
    assert detail.startswith("\\ud800\\u001b[2J\\u000a")
    assert len(detail) < 4000
