"""Who was given the raw output of a call, told from the ledger alone."""

from __future__ import annotations

import msgspec

from runner.evidence.acts import operator_of
from runner.evidence.read import Ledger
from runner.evidence.view import CallView, member
from runner.ledger import entry as entries

_OPENED = b'"kind":"raw_open"'  # a quote inside a JSON string is escaped, so these bytes are never part of a text


class OpeningView(msgspec.Struct, frozen=True, kw_only=True):
    """One opening. `operator` is a name, `known` the key or uid that it was known by."""

    position: int
    time: str
    operator: str
    known: str
    why: str


def openings(ledger: Ledger, view: CallView) -> list[OpeningView]:
    """Each of this call, oldest first. Nothing is looked for where nothing was kept."""
    if view.outcome is None or view.outcome.raw is None:
        return []
    found = []
    for position, data in ledger.all_with([_OPENED, member(b"call", view.call.call)], view.outcome_position):
        entry = entries.decode(data)
        if isinstance(entry, entries.RawOpen) and entry.call == view.call.call:
            operator, known = operator_of(entry)
            found.append(OpeningView(position=position, time=entry.time, operator=operator, known=known, why=entry.why))
    return found
