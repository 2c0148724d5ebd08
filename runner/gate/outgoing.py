"""What one request of a call carries, from its head to the last piece of its body: looked at as egress shows it.

A credential that is bound to go where the request goes is in its place; any other that the task was issued is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from runner.gate.egress import Carried
from runner.gate.labels import widened
from runner.model import Decision, Manifest
from runner.wire.egress import Ask, Requested

NOTHING: Final = Carried()
CANARY: Final = "canary"
_ISSUED = frozenset({"secret"})  # the label of what was issued
_CODING = b"content-encoding: "


class Carries(Protocol):
    """What was found so far: `runner.stream.outgoing.Carries`."""

    @property
    def labels(self) -> frozenset[str]:
        """Labels."""

    @property
    def secrets(self) -> frozenset[str]:
        """Names of issued secrets."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Calls whose results it copies."""

    @property
    def whole(self) -> bool:
        """Whether all of it was looked at."""


class Outgoing(Protocol):
    """Looks at one text: `runner.stream.outgoing.Outgoing`."""

    def head(self, data: bytes) -> Carries:
        """What stands before it."""

    def look(self, data: bytes) -> Carries:
        """The next piece of it."""


Looks = Callable[[str], Outgoing]  # a content coding → what looks at one text


class Placed:
    """How the requests of one call are looked at. `manifest` says where its credentials belong."""

    def __init__(self, looks: Looks, manifest: Manifest | None) -> None:
        self._looks = looks
        self._refs = manifest.secrets if manifest is not None else ()

    def begin(self, asked: Ask) -> Look | None:
        """A request that is asked about; None when nothing of it can be read."""
        if not asked.head:
            return None
        lines = asked.head.split(b"\n")
        codings = [line[len(_CODING) :] for line in lines[1:] if line.startswith(_CODING)]
        text = self._looks(b", ".join(codings).decode("latin-1"))
        where = "head" if CANARY in text.head(asked.head).secrets else "body"
        return Look(self, asked.request, text, asked.body, where)

    def carried(self, request: Requested, found: Carries) -> Carried:
        """What was found, as policy sees it."""
        misplaced = tuple(sorted(name for name in found.secrets if not self._belongs(name, request)))
        labels = found.labels if misplaced else found.labels - _ISSUED
        return Carried(labels=widened(labels), secrets=misplaced, whole=found.whole, sources=found.sources)

    def _belongs(self, name: str, request: Requested) -> bool:
        """Whether this tool's credential may go by one of the rules that allow the request. One that the tool holds
        itself (a file, a variable) is bound to none of them: it may go wherever the tool's own rules lead."""
        rules = {rule.partition("/")[2] for rule in request.rules if rule.startswith("tool ")}
        return any(
            ref.name == name and bool(rules) and (ref.delivery != "inject" or not rules.isdisjoint(ref.destinations))
            for ref in self._refs
        )


class Look:
    """One request, as far as it was shown."""

    def __init__(self, placed: Placed, request: Requested, text: Outgoing, body: bytes, where: str) -> None:
        self._placed = placed
        self._text = text
        self.request = request
        self.where = where  # a canary is, if there is one
        self.denied: Decision | None = None
        self._alarmed = False
        self.carries = self.at_first = placed.carried(request, text.look(body))

    def more(self, data: bytes) -> bool:
        """The next piece of the body. Whether it carries anything that was not known."""
        before, self.carries = self.carries, self._placed.carried(self.request, self._text.look(data))
        return self.carries != before

    def alarm(self) -> bool:
        """Whether a canary was found: told once. Egress sees one that is sent as it is, here any form counts."""
        found = CANARY in self.carries.secrets and not self._alarmed
        self._alarmed = self._alarmed or found
        return found
