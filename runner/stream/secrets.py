"""The secrets that a task's calls were given, known until the task ends: a tool can keep what it got.

Those of the calls that live are all known, whatever there is of them. Of calls that are over, one that its provider
revoked with the call's lease is worth nothing any more: the newest few are known, the others forgotten. Python cannot
overwrite bytes; forgetting drops every reference that gate has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from runner.errors import refuse
from runner.stream.exact import Needles

CANARY = "canary"
MAX_VALUES = 256  # different values at a time: with all their forms as many needles as a search may have
KEPT_DEAD = 32  # values of revoked leases

Values = frozenset[tuple[str, bytes]]  # pairs of a secret's name and a value of it


class Secrets:
    """What one task was given. `needles` finds all of it; a new object whenever there is more to find."""

    def __init__(self) -> None:
        self.needles = needles(())
        self._known: dict[tuple[str, bytes], set[str]] = {}  # a value, and the calls that live and hold it
        self._dead: dict[tuple[str, bytes], None] = {}  # revoked with the call's end; oldest first
        self._lasting: set[tuple[str, bytes]] = set()

    def hold(self, call: str, name: str, values: tuple[bytes, ...], *, lasting: bool) -> None:
        """A call will hold these from now on. Not `lasting`: they are revoked when it ends.

        Raises `RunnerError` (unavailable) for one too short, or too many, to be found: nothing of them is known then,
        and nothing may be delivered."""
        fresh = {(name, value) for value in values} - self._known.keys()
        if len(self._known) + len(fresh) > MAX_VALUES:
            reason = f"this task holds {MAX_VALUES} different secrets, the most that its output is searched for"
            raise refuse("unavailable", reason, field=name, next_step="end the task and go on in another")
        if fresh:
            try:
                self.needles = needles({*self._known, *fresh})
            except ValueError as error:  # its text shows no value
                raise refuse("unavailable", f"it could not be found in output: {error}", field=name) from None
        for value in values:
            key = name, value
            self._known.setdefault(key, set()).add(call)
            self._dead.pop(key, None)
            if lasting:
                self._lasting.add(key)

    def canary(self, fresh: Callable[[], str]) -> str:
        """The task's own canary: one, however many calls it has."""
        found = next((value for name, value in self._known if name == CANARY), None)
        if found is None:
            found = fresh().encode()
            self._known[CANARY, found] = set()
            self._lasting.add((CANARY, found))
            self.needles = needles(self._known)
        return found.decode()

    def over(self, call: str) -> None:
        """The call has ended."""
        for key, calls in self._known.items():
            if call in calls:
                calls.discard(call)
                if not calls and key not in self._lasting:
                    self._dead[key] = None
        if len(self._dead) > KEPT_DEAD:
            while len(self._dead) > KEPT_DEAD:
                key = next(iter(self._dead))
                del self._dead[key], self._known[key]
            self.needles = needles(self._known)

    def values(self) -> Values:
        """All that is known."""
        return frozenset(self._known)

    def wipe(self) -> None:
        """The task is over."""
        self._known.clear()
        self._dead.clear()
        self._lasting.clear()
        self.needles = needles(())


def needles(values: Iterable[tuple[str, bytes]]) -> Needles:
    """What finds these (name, value) pairs."""
    named: dict[str, list[bytes]] = {}
    for name, value in values:
        named.setdefault(name, []).append(value)
    return Needles.of({name: tuple(found) for name, found in named.items()})
