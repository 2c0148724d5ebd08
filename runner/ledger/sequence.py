"""The order that entries of one call must have, as a table; held by the recorder, checked again by verify.

Memory is bounded: open calls, and the newest `REMEMBERED` call ids. An id is known when it is open, remembered,
or not above the greatest id ever forgotten: so no id can come twice, whatever ids look like. Ids grow with time,
so an honest id is refused only when `REMEMBERED` greater ones came before it, or, after a restart, when it is not
above every id of the run before (whoever mints ids must keep them growing, also when the clock steps back).

What a call did with its network (`egress`, `egress_end`, `alert`) comes while it is open and names its task; an end
follows an allowed request of the same number, once. A request without an end when its call has one: nobody knows what
became of it. The daemon's own dials belong to no call: their id is `daemon:` and a part's name, their task "", and
their numbers begin anew with each start of egress, so their ends are held to no request.
"""

from __future__ import annotations

import heapq
import re
from typing import Final, Literal

import msgspec

from runner.errors import refuse
from runner.ledger.entry import Alert, AnyEntry, Call, Egress, EgressEnd, Outcome, Start, Stop

REMEMBERED = 4096  # far more than the calls that can be decided at one time (64 per task, 256 tasks)
MAX_ID = 128
DAEMON = "daemon:"  # how the ids of what no call did begin
OWN = re.compile(r"daemon:[a-z]{1,32}\Z")

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


def allowed(entry: Egress) -> bool:
    """Whether this request may go out: nothing but ALLOW lets it."""
    return entry.decision.effect == "allow"


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
        self._requests: dict[str, set[int]] = {}  # call -> its allowed requests that have no end
        self._earlier = frozenset(self.state.open)  # open where this began: what they had asked for is not known

    def check(self, entry: AnyEntry) -> None:
        """Raise `RunnerError` (ledger) when this entry may not come now."""
        if isinstance(entry, Call):
            event: Event = "decided"
            if entry.plan is not None:
                event = "planned" if entry.decision.effect in PERMITS else "unpermitted"
            if not 0 < len(entry.call) <= MAX_ID:
                raise refuse("ledger", f"a call id has 1 to {MAX_ID} characters", field=entry.call[:MAX_ID])
            if entry.call.startswith(DAEMON):
                raise refuse("ledger", f"a call id does not begin with {DAEMON}", field=f"call {entry.call}")
        elif isinstance(entry, Outcome):
            event = "outcome"
        else:
            if isinstance(entry, Egress | EgressEnd | Alert):
                self._check_network(entry)
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
        elif isinstance(entry, Outcome):
            self._requests.pop(entry.call, None)
        elif isinstance(entry, EgressEnd):
            self._requests.get(entry.call, set()).discard(entry.request)
        elif isinstance(entry, Egress) and allowed(entry) and not entry.call.startswith(DAEMON):
            self._requests.setdefault(entry.call, set()).add(entry.request)
        self.state.apply(position, entry)

    def _check_network(self, entry: Egress | EgressEnd | Alert) -> None:
        call, place = entry.call, f"call {entry.call[:MAX_ID]}"
        if call.startswith(DAEMON):
            if not OWN.match(call) or entry.task:
                raise refuse("ledger", "what the daemon itself did has a part's name and no task", field=place)
            return
        if call not in self.state.open:
            raise refuse("ledger", "something on the network of a call that is not open", field=place)
        if self.state.open[call][1] != entry.task:
            raise refuse("ledger", "it names another task than its call", field=place)
        if isinstance(entry, Alert):
            return
        begun = entry.request in self._requests.get(call, ())
        if isinstance(entry, EgressEnd) and not begun and call not in self._earlier:
            raise refuse("ledger", "the end of a request that was not allowed, or has its end already", field=place)
        if isinstance(entry, Egress) and begun and allowed(entry):
            raise refuse("ledger", "a request's number is in use", field=place)

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
