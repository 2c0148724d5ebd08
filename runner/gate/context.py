"""What a session has done so far: counted by gate, visible to policy, never told by the agent."""

from __future__ import annotations

from collections import deque

from runner.gate.authorize import SessionView

TOOLS = 256  # tool ids remembered for policy: more than any catalogue a model can use
_UNTRUSTED = 32  # calls listed in one entry as "delivered since"


class Context:
    """The accumulated context of one task (AARM R2). Grows by bounded amounts only."""

    def __init__(self) -> None:
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
