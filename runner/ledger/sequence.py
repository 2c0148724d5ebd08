"""The order that entries of one call must have, as a table; held by the recorder, checked again by verify.

Memory is bounded: open calls, and the newest `REMEMBERED` call ids. An id is known when it is open, remembered,
or not above the greatest id ever forgotten: so no id can come twice, whatever ids look like. Ids grow with time,
so an honest id is refused only when `REMEMBERED` greater ones came before it, or, after a restart, when it is not
above every id of the run before (whoever mints ids must keep them growing, also when the clock steps back).
"""

from __future__ import annotations

import heapq
from typing import Final, Literal

import msgspec

from runner.errors import refuse
from runner.ledger.entry import AnyEntry, Call, Outcome, Start, Stop

REMEMBERED = 4096  # far more than the calls that can be decided at one time (64 per task, 256 tasks)
MAX_ID = 128

Stage = Literal["new", "open", "closed"]
Event = Literal["planned", "decided", "unpermitted", "outcome"]

ADVANCE: Final[dict[tuple[Stage, Event], Stage]] = {
    ("new", "planned"): "open",
    ("new", "decided"): "closed",  # denied, or allowed but nothing was planned: no outcome may follow
    ("open", "outcome"): "closed",
}
REFUSED: Final[dict[tuple[Stage, Event], str]] = {
    ("new", "unpermitted"): "a plan without a decision that allows it",
    ("open", "unpermitted"): "a plan without a decision that allows it",
    ("closed", "unpermitted"): "a plan without a decision that allows it",
    ("open", "planned"): "a call id that is already in use",
    ("open", "decided"): "a call id that is already in use",
    ("closed", "planned"): "a call id that was used before, or is older than every one remembered",
    ("closed", "decided"): "a call id that was used before, or is older than every one remembered",
    ("new", "outcome"): "an outcome for a call that was never planned",
    ("closed", "outcome"): "an outcome for a call that has no plan, or has its outcome already",
}
PERMITS = frozenset({"allow", "modify"})


class State(msgspec.Struct, forbid_unknown_fields=True):
    """What all entries up to some position add up to: enough to go on from there without reading them."""

    life: Literal["none", "running", "stopped"] = "none"
    newest: str = ""  # the greatest call id
    open: dict[str, tuple[int, str]] = {}  # call -> position of its entry, task

    def apply(self, position: int, entry: AnyEntry) -> None:
        """Follow one accepted entry."""
        if isinstance(entry, Call):
            self.newest = max(self.newest, entry.call)
            if entry.plan is not None:
                self.open[entry.call] = (position, entry.who.task)
        elif isinstance(entry, Outcome):
            self.open.pop(entry.call, None)
        elif isinstance(entry, Start):
            self.life = "running"
        elif isinstance(entry, Stop):
            self.life = "stopped"

    def copy(self) -> State:
        """An independent copy."""
        return State(life=self.life, newest=self.newest, open=dict(self.open))


class Sequence:
    """Holds the table over a run of entries. `check` refuses, `apply` follows what was accepted."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state.copy() if state else State()
        self._forgotten = self.state.newest
        self._order: list[str] = []  # a heap of the remembered ids
        self._remembered: set[str] = set()

    def check(self, entry: AnyEntry) -> None:
        """Raise `RunnerError` (ledger) when this entry may not come now."""
        if isinstance(entry, Call):
            event: Event = "decided"
            if entry.plan is not None:
                event = "planned" if entry.decision.effect in PERMITS else "unpermitted"
            if not 0 < len(entry.call) <= MAX_ID:
                raise refuse("ledger", f"a call id has 1 to {MAX_ID} characters", field=entry.call[:MAX_ID])
        elif isinstance(entry, Outcome):
            event = "outcome"
        else:
            return
        stage = self._stage(entry.call)
        if (stage, event) not in ADVANCE:
            raise refuse("ledger", REFUSED[stage, event], field=f"call {entry.call}")
        if isinstance(entry, Outcome) and self.state.open[entry.call][1] != entry.task:
            raise refuse("ledger", "the outcome names another task than its call", field=f"call {entry.call}")

    def apply(self, position: int, entry: AnyEntry) -> None:
        """Follow an entry that `check` let pass."""
        if isinstance(entry, Call):
            self._remember(entry.call)
        self.state.apply(position, entry)

    def _stage(self, call: str) -> Stage:
        if call in self.state.open:
            return "open"
        return "closed" if call in self._remembered or call <= self._forgotten else "new"

    def _remember(self, call: str) -> None:
        self._remembered.add(call)
        if len(self._order) < REMEMBERED:
            heapq.heappush(self._order, call)
            return
        oldest = heapq.heappushpop(self._order, call)
        self._remembered.discard(oldest)
        self._forgotten = max(self._forgotten, oldest)
