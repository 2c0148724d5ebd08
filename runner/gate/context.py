"""What a session has done so far: counted by gate, visible to policy, never told by the agent."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from runner.gate.authorize import SessionView
from runner.gate.labels import widened

TOOLS = 256  # tool ids remembered for policy: more than any catalogue a model can use
_UNTRUSTED = 32  # calls listed in one entry as "delivered since"


class Reading(Protocol):
    """What a task has read: `runner.stream.reading.Reading`."""

    labels: set[str]

    @property
    def forgotten(self) -> int:
        """Pieces of labelled text that are not known again."""


class Context:
    """The accumulated context of one task (AARM R2). Grows by bounded amounts only.

    A task that is `resumed` has done things before this process: nobody knows which labels it has read, so it is taken
    to have read them all (`presumed`, once a profile says which there are)."""

    def __init__(self, *, resumed: bool = False) -> None:
        self.resumed = resumed
        self.presumed: frozenset[str] = frozenset()
        self.mixed = resumed  # a program ran that could copy any file into any other
        self.reading: Reading | None = None
        self.brought: tuple[str, ...] = ()  # hosts whose text may lie in the workspace
        self._calls = 0
        self._denied = 0
        self._untrusted = 0
        self._tools: set[str] = set()
        self._since: deque[str] = deque(maxlen=_UNTRUSTED)

    def view(self, original_request: str, depth: int) -> SessionView:
        """What policy sees; the request is the agent's claim, the depth its place in the delegation chain."""
        return SessionView(
            calls=self._calls,
            denied=self._denied,
            tools=tuple(sorted(self._tools)),
            untrusted=self._untrusted,
            original_request=original_request,
            depth=depth,
            labels=widened(self.presumed.union(self.reading.labels if self.reading is not None else ())),
            forgotten=int(self.resumed) + (self.reading.forgotten if self.reading is not None else 0),
        )

    def decided(self, tool: str, *, allowed: bool) -> tuple[str, ...]:
        """A call was decided. Returns the calls whose output reached the agent since the decision before it."""
        since = tuple(self._since)
        self._since.clear()
        if allowed:
            self._calls += 1
            if len(self._tools) < TOOLS:
                self._tools.add(tool)
        else:
            self._denied += 1
        return since

    def delivered(self, call: str) -> None:
        """Output of this call reached the agent. All tool output is untrusted until something vouches for it."""
        if call not in self._since:
            self._untrusted += 1
            self._since.append(call)
