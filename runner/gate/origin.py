"""Where what a call gives back may come from: provenance of its output.

Nobody vouches for what the network gave. It reaches the agent in the output of the call that fetched it, and in that of
any later call that could read a file which such a call may have written: nothing outside the sandbox sees which files
those are, so from then on all that has the workspace carries it. What a profile labels `untrusted` does too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from runner.gate.context import Context

UNTRUSTED = "untrusted"
WORKSPACE = "workspace"  # a file that the profile labels, or of a time that this process does not remember
MAX_SOURCES = 16  # told of one call: the first


class Origin:
    """Of one call. `network`: it may reach hosts. `labels`: those that its output carries whatever is in it."""

    def __init__(
        self,
        context: Context,
        workspace: Literal["none", "read", "write"],
        *,
        network: bool,
        outside: bool,
        labels: Collection[str] = (),
    ) -> None:
        """`outside`: the task's profile opens a way out, so what it did before a restart may have brought something."""
        self._context = context
        self._writes = workspace == "write"
        known = list(context.brought) if workspace != "none" else []
        if UNTRUSTED in labels or (workspace != "none" and context.resumed and outside):
            known.append(WORKSPACE)
        self._known = tuple(known)
        self.untrusted = network or bool(known)  # perhaps: whether it reached a host shows at its end

    def sources(self, reached: Sequence[str]) -> tuple[str, ...]:
        """The call is over and has reached these hosts: all who may have had a part in what it gave back."""
        found = tuple(dict.fromkeys((*reached, *self._known)))[:MAX_SOURCES]
        if reached and self._writes:
            self._context.brought = tuple(dict.fromkeys((*self._context.brought, *reached)))[:MAX_SOURCES]
        return found
