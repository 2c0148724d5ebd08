"""What calls did with their network: requests joined with their ends, and alerts, told from the ledger alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from runner.evidence.read import Ledger
from runner.evidence.view import CallView, member
from runner.ledger import entry as entries
from runner.ledger.sequence import DAEMON, allowed

# A quote inside a JSON string is escaped, so these bytes are never part of a text.
_REQUEST, _ENDED, _OUTCOME = b'"kind":"egress"', b'"kind":"egress_end"', b'"kind":"outcome"'
_NOT_ALLOWED = tuple(member(b"effect", effect) for effect in ("deny", "step_up", "defer", "modify"))

State = Literal["denied", "over", "cut", "open", "unknown"]
UNKNOWN = "it has no end: it may have happened, in part or in full, or not at all"


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """One request and, when it has one, its end. `state` is unknown for an allowed one whose call ended without saying
    what became of it: the daemon, or its egress, died meanwhile."""

    position: int
    request: entries.Egress
    state: State
    end: entries.EgressEnd | None = None
    end_position: int = -1


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """One alert."""

    position: int
    alert: entries.Alert


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests to show; an empty field lets all pass. `since` is an RFC 3339 time, `secret` the name of a
    credential that went with it."""

    call: str = ""
    task: str = ""
    host: str = ""
    secret: str = ""
    since: str = ""
    denied: bool = False

    def needles(self) -> list[bytes]:
        """What the bytes of a wanted request hold."""
        named = ((b"call", self.call), (b"task", self.task), (b"host", self.host))
        return [*(member(name, text) for name, text in named if text), _REQUEST]

    def passes(self, view: RequestView) -> bool:
        """Whether this request is one of them."""
        asked = view.request
        named = ((self.call, asked.call), (self.task, asked.task), (self.host, asked.host))
        if any(want not in ("", has) for want, has in named) or asked.time < self.since:
            return False
        went = view.end.secrets if view.end else ()
        return (view.state == "denied" or not self.denied) and (not self.secret or self.secret in went)


def requests(ledger: Ledger, wanted: Wanted) -> Iterator[RequestView]:
    """Requests that `wanted` lets pass, newest first, those of the daemon itself too. Bundles that hold none are passed
    over unparsed."""
    for view in _went_with(ledger, wanted.secret) if wanted.secret else _asked(ledger, wanted):
        if wanted.since and view.request.time < wanted.since:
            return  # older ones follow; clocks that stepped back are not searched through
        if wanted.passes(view):
            yield view


def _asked(ledger: Ledger, wanted: Wanted) -> Iterator[RequestView]:
    """Requests whose entries hold what is wanted, newest first. Each end is looked for from its request on: it is
    near."""
    needles = wanted.needles()
    effects = _NOT_ALLOWED if wanted.denied else (b"",)

    def relevant(holds: Callable[[bytes], bool]) -> bool:
        return all(map(holds, needles)) and any(map(holds, effects))

    for start, run in ledger.backwards(relevant):
        for place in range(len(run) - 1, -1, -1):
            if not relevant(run[place].__contains__):
                continue
            data = run[place]
            asked = entries.decode(data)
            if isinstance(asked, entries.Egress):
                yield _joined(ledger, start + place, asked)


def _went_with(ledger: Ledger, secret: str) -> Iterator[RequestView]:
    """Requests that a credential went with, newest first: their ends say so, which a walk backwards meets first."""
    named = msgspec.json.encode(secret)
    ends: dict[tuple[str, int], tuple[int, entries.EgressEnd]] = {}

    def relevant(holds: Callable[[bytes], bool]) -> bool:
        return (holds(_ENDED) and holds(named)) or any(holds(member(b"call", call)) for call, _ in ends)

    for start, run in ledger.backwards(relevant):
        for place in range(len(run) - 1, -1, -1):
            data = run[place]
            if not ((_ENDED in data and named in data) or (ends and _REQUEST in data)):
                continue
            entry = entries.decode(data)
            if isinstance(entry, entries.EgressEnd) and secret in entry.secrets:
                ends[entry.call, entry.request] = start + place, entry
            elif isinstance(entry, entries.Egress) and allowed(entry):
                end = ends.pop((entry.call, entry.request), None)
                if end is not None:
                    yield _ended(start + place, entry, *end)


def _joined(ledger: Ledger, position: int, asked: entries.Egress) -> RequestView:
    """The request with its end, looked for up to its call's."""
    if not allowed(asked):
        return RequestView(position=position, request=asked, state="denied")
    for place, data in ledger.all_with([member(b"call", asked.call)], position + 1):
        entry = entries.decode(data)
        if isinstance(entry, entries.EgressEnd) and (entry.call, entry.request) == (asked.call, asked.request):
            return _ended(position, asked, place, entry)
        if isinstance(entry, entries.Outcome) and entry.call == asked.call:
            return RequestView(position=position, request=asked, state="unknown")
        begun_anew = asked.call.startswith(DAEMON) and isinstance(entry, entries.Egress)
        if begun_anew and isinstance(entry, entries.Egress) and entry.request == asked.request and allowed(entry):
            return RequestView(position=position, request=asked, state="unknown")
    return RequestView(position=position, request=asked, state="open")


def _ended(position: int, asked: entries.Egress, place: int, end: entries.EgressEnd) -> RequestView:
    state: State = "cut" if end.code else "over"
    return RequestView(position=position, request=asked, state=state, end=end, end_position=place)


def of_call(ledger: Ledger, view: CallView) -> tuple[list[RequestView], list[AlertView]]:
    """Everything that a call did with its network, in the order of the ledger."""
    asked: list[tuple[int, entries.Egress]] = []
    ends: dict[int, tuple[int, entries.EgressEnd]] = {}
    alerts: list[AlertView] = []
    if view.call.plan is None:
        return [], []
    for position, data in ledger.all_with([member(b"call", view.call.call)], view.position + 1):
        if _OUTCOME in data and position == view.outcome_position:
            break
        entry = entries.decode(data)
        if isinstance(entry, entries.Egress) and entry.call == view.call.call:
            asked.append((position, entry))
        elif isinstance(entry, entries.EgressEnd) and entry.call == view.call.call:
            ends[entry.request] = position, entry
        elif isinstance(entry, entries.Alert) and entry.call == view.call.call:
            alerts.append(AlertView(position=position, alert=entry))
    found = []
    for position, each in asked:
        if not allowed(each):
            found.append(RequestView(position=position, request=each, state="denied"))
        elif each.request in ends:
            found.append(_ended(position, each, *ends[each.request]))
        else:
            state: State = "open" if view.outcome is None else "unknown"
            found.append(RequestView(position=position, request=each, state=state))
    return found, alerts
