"""Inspectors outside the daemon have their say on a whole text, at the end of the call: a classifier takes longer than
rules, and reads better what it has all of.

Where an action could keep text back, all of it waits here for that; otherwise it has gone on by then, and the verdict
comes with the result. Output that an inspector did not see, because it was not there, too slow, wrong, or the output
too long, has the label `uninspected`; profile and policy decide what becomes of it, as of any label: to require an
inspector is to block what has that label. Pure: who asks is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from runner.errors import RunnerError
from runner.model import Marked
from runner.stream.found import Found
from runner.stream.hygiene import Clean
from runner.stream.inspect import INJECTED
from runner.stream.stage import Name
from runner.stream.windows import UNTRUSTED, Act, put

UNINSPECTED = "uninspected"
MOST = 256 << 10  # bytes of one call's output that are sent to an inspector


class Verdict(Protocol):
    """What an inspector says: `runner.gate.inspectors.Verdict`."""

    @property
    def labels(self) -> frozenset[str]:
        """What the text is; none where nothing was found."""

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Which parts of it, in order; none where it is the whole."""


class Outside(Protocol):
    """An inspector that must be waited for: `runner.gate.inspectors.SocketInspector`."""

    name: str

    async def ask(self, data: bytes, where: str, labels: frozenset[str]) -> Verdict:
        """Its verdict on a whole text. Raises `RunnerError` when it has none."""


class Consultation:
    """Of one call."""

    def __init__(self, inspectors: Sequence[Outside], actions: Act) -> None:
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.marked: list[Marked] = []
        self.blocked = ""
        self.held = ""
        self.problem = ""  # why it is uninspected
        self._inspectors = tuple(inspectors)
        self._actions = actions
        strict = [actions.of(label) for label in (INJECTED, UNINSPECTED)]
        self._keeps_back = bool(inspectors) and any(action not in ("allow", "mark") for action in strict)
        self._texts: dict[tuple[Name, str], bytearray] = {}
        self._size = 0
        if not inspectors and actions.of(UNINSPECTED) in ("hold", "block"):
            self._uninspected("no inspector is configured, and one is required")

    def take(self, cleans: list[Clean]) -> list[Clean]:
        """What may go on before the inspectors have been asked."""
        if not self._inspectors or self.problem:
            return [] if self.blocked else cleans
        for stream, data, encoding in cleans:
            self._texts.setdefault((stream, encoding), bytearray()).extend(data)
            self._size += len(data)
        if self._size <= MOST:
            return [] if self._keeps_back else cleans
        self._uninspected(f"it is longer than the {MOST} bytes that inspectors are sent")
        kept = self._waiting() if self._keeps_back else cleans
        self._texts.clear()
        return [] if self.blocked else kept

    async def close(self) -> list[Clean]:
        """Everything has come: the inspectors' say, and what goes on after it."""
        if self.problem:
            return []
        for (stream, encoding), text in tuple(self._texts.items()):
            parts = await self._asked(bytes(text), stream)
            if not parts:
                continue
            if encoding or not self._keeps_back:
                self._told(stream, parts, bytes(text), replaced=False)
            else:
                self._texts[stream, encoding] = bytearray(self._told(stream, parts, bytes(text), replaced=True))
        kept = self._waiting() if self._keeps_back else []
        self._texts.clear()
        return [] if self.blocked else kept

    async def value(self, value: Any) -> None:
        """A structured result: as JSON, of which nothing is replaced. What would be is held."""
        if not self._inspectors or self.problem:
            return
        data = msgspec.json.encode(value)
        if len(data) > MOST:
            self._uninspected(f"it is longer than the {MOST} bytes that inspectors are sent")
        elif parts := await self._asked(data, "value"):
            self._told("value", parts, data, replaced=False)

    def _waiting(self) -> list[Clean]:
        return [Clean(stream, bytes(text), encoding) for (stream, encoding), text in self._texts.items() if text]

    async def _asked(self, data: bytes, where: str) -> list[Found]:
        """What all of them found, in order. A finding without a place is about the whole."""
        found: list[Found] = []
        for inspector in self._inspectors:
            try:
                verdict = await inspector.ask(data, where, frozenset({UNTRUSTED}))
            except RunnerError as error:
                self._uninspected(f"inspector {inspector.name} gave no verdict: {error.refused.reason}")
                continue
            rule = f"inspector:{inspector.name}"
            for label in sorted(verdict.labels):
                self.labels.add(label)
                self.counts[rule] += 1
                self._act(label, rule)
                found += [Found(start, end, rule, label) for start, end in verdict.parts or ((0, len(data)),)]
        return sorted(found)

    def _told(self, where: Any, found: list[Found], data: bytes, *, replaced: bool) -> bytes:
        """The text with what is to be replaced replaced, and its places as they are then."""
        parts: list[tuple[int, int, bytes]] = []
        moved = reached = 0
        for each in found:
            if each.start < reached:
                continue
            reached, size = each.end, each.end - each.start
            if self._actions.of(each.label) not in ("allow", "mark", "hold", "block"):
                if replaced:
                    instead = self._actions.replace(each, data)
                    parts.append((each.start, each.end, instead))
                    size = len(instead)
                else:
                    self.held = self.held or each.rule
            if each.label == INJECTED and len(self.marked) < 64:
                self.marked.append(Marked(stream=where, start=each.start + moved, end=each.start + moved + size))
            moved += size - (each.end - each.start)
        return put(data, parts)

    def _uninspected(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.labels.add(UNINSPECTED)
        self._act(UNINSPECTED, UNINSPECTED)

    def _act(self, label: str, rule: str) -> None:
        action = self._actions.of(label)
        if action == "block":
            self.blocked = self.blocked or rule
        elif action == "hold":
            self.held = self.held or rule
