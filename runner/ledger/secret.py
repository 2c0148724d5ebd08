"""Secrets as entries: what operators did to the broker's store. Never a value, nor a digest of one."""

from __future__ import annotations

from typing import Literal

from runner.ledger.part import Entry, Int, Operator


class Secret(Entry, frozen=True, tag="secret"):
    """An operator keeps, replaces or forgets a secret; written before the broker carries it out. Versions, 0 = none.

    When it could not, a second entry says why in `problem`, with the version that is still there as `after`."""

    act: Literal["set", "rotate", "remove"]
    name: str
    before: Int
    after: Int
    by: Int
    operator: Operator | None = None
    why: str = ""
    problem: str = ""
