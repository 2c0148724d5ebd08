"""What filters know of each live task: its secrets, the key of its hashes, and the filter of each of its calls.

What later filters need is given here, once: they are asked for each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from runner.ledger.escrow import Recipients
from runner.model import Action, Authenticated, CallPlan, Manifest, TaskProfile
from runner.stream import windows
from runner.stream.actions import Actions, chosen, combined
from runner.stream.consult import UNINSPECTED, Consultation, Outside
from runner.stream.escrow import Escrows
from runner.stream.exact import find
from runner.stream.filters import CallFilter, Listener
from runner.stream.found import Found
from runner.stream.inspect import Inspector
from runner.stream.outgoing import Carries, Outgoing
from runner.stream.patterns import Patterns
from runner.stream.reading import Heard, Reading
from runner.stream.secrets import Secrets
from runner.stream.texts import Memo, Texts
from runner.stream.windows import Inspection

NOTHING = Carries()
Listening = Callable[[str, str], Listener]  # task and call → who hears what is delivered of it


class Origin(windows.Origin, Protocol):
    """Where a call's output may come from: `runner.gate.origin.Origin`."""

    @property
    def untrusted(self) -> bool:
        """Whether some of it may come from where nobody vouches for it."""


class Served(Protocol):
    """Who looks at untrusted output, and for whom raw output is kept: `runner.gate.serving.Serving`."""

    @property
    def inspector(self) -> Inspector | None:
        """The built-in one."""

    @property
    def outside(self) -> Sequence[Outside]:
        """Those that are asked."""

    @property
    def required(self) -> bool:
        """Whether output that any of those did not see is withheld, whatever the profile says."""

    @property
    def recipients(self) -> Recipients | None:
        """Who can open raw output, where it may be kept."""


class Looked(NamedTuple):
    """How closely one call's output is looked at. `obligations` are policy's, such as "injected=block": they can only
    be stricter than the profile."""

    origin: Origin
    by: Served
    obligations: tuple[str, ...] = ()

    def obliged(self) -> dict[str, Action]:
        """What policy makes of labels: of two words on one, the stricter."""
        tables: list[dict[str, Action]] = [{UNINSPECTED: "block"}] if self.by.required else []
        tables += [{label: cast("Action", action)} for label, _, action in (o.partition("=") for o in self.obligations)]
        return combined(*tables)

    def inspection(self) -> Callable[[Actions], Inspection] | None:
        """What inspects it, once it is known what becomes of labels."""
        if not self.origin.untrusted:
            return None
        return lambda actions: Inspection(self.by.inspector, actions, self.origin)

    def consultation(self) -> Callable[[Actions], Consultation] | None:
        """And who is asked about it."""
        return (lambda actions: Consultation(self.by.outside, actions)) if self.origin.untrusted else None


class _Task:
    """One task."""

    def __init__(self, key: bytes) -> None:
        self.secrets = Secrets()
        self.key = key
        self.memo = Memo()
        self.reading = Reading(key)
        self._profile: TaskProfile | None = None
        self._actions = Actions(chosen({}), key)

    def actions(self, profile: TaskProfile | None, obliged: Mapping[str, Action] | None = None) -> Actions:
        """What this profile does about labels, or policy where that is stricter; the same object while the profile is
        the same."""
        if obliged:
            return Actions(combined(chosen(profile.labels if profile is not None else {}), obliged), self.key)
        if profile is not self._profile:
            self._profile = profile
            self._actions = Actions(chosen(profile.labels if profile is not None else {}), self.key)
        return self._actions


class Filters:
    """The filters of every live task. `key` gives 32 random bytes: hashes of what was found join within a task only."""

    def __init__(
        self,
        key: Callable[[], bytes],
        *,
        listening: Sequence[Listening] = (),
        escrows: Escrows | None = None,
    ) -> None:
        self._key = key
        self._tasks: dict[str, _Task] = {}
        self.listening = tuple(listening)
        self.escrows = escrows  # None: nothing is kept as it came

    def secrets(self, task: str) -> Secrets:
        """What the task was given."""
        return self._of(task).secrets

    def texts(self, task: str, patterns: Patterns, profile: TaskProfile | None) -> Texts:
        """For what is no output of a call: what it was asked with, a list of tools."""
        known = self._tasks.get(task) or _Task(self._key())  # a task that never begins leaves nothing here
        return Texts(lambda: known.secrets.needles, (patterns,), known.actions(profile), known.memo)

    def call(
        self,
        plan: CallPlan,
        task: str,
        patterns: Patterns,
        profile: TaskProfile,
        manifest: Manifest,
        given: frozenset[str] = frozenset(),
        looked: Looked | None = None,
    ) -> CallFilter:
        """The filter of one call's output, all of which carries the labels `given`. Raises `RunnerError` (unavailable)
        where raw output cannot be kept although the profile says so."""
        known = self._of(task)
        heard = Heard(known.reading, plan.call, given)
        recipients = looked.by.recipients if looked is not None else None
        made = CallFilter(
            known.secrets,
            patterns,
            known.actions(profile, looked.obliged() if looked is not None else None),
            limit=plan.output,
            data=manifest.stdout == "bytes",
            inspection=looked.inspection() if looked is not None else None,
            consultation=looked.consultation() if looked is not None else None,
            listeners=[heard, *(each(task, plan.call) for each in self.listening)],
            raw=self.escrows.of(plan, profile, manifest, recipients) if self.escrows is not None else None,
            memo=known.memo,
        )
        made.labels |= given
        return made

    def reading(self, task: str) -> Reading:
        """What the task has read."""
        return self._of(task).reading

    def outgoing(self, task: str, patterns: Patterns, coding: str = "") -> Outgoing:
        """Looks at one text that goes out of the task."""
        known = self._tasks.get(task) or _Task(self._key())

        def found(data: bytes) -> tuple[Found, ...]:
            # With a byte behind it: a text that only ends as a secret begins ("postgresql") holds none.
            return (*find(known.secrets.needles, data + b"\0"), *patterns.find(data))

        return Outgoing(found, known.reading, coding)

    def carried(self, call: Authenticated, patterns: Patterns, *, asked: Callable[[str], bool]) -> Carries:
        """What a call's arguments carry. Nobody looks where no policy asks and nothing labelled was read."""
        known = self._tasks.get(call.principal.task)
        if (known is None or not known.reading) and not asked(call.tool):
            return NOTHING
        return self.outgoing(call.principal.task, patterns).value(call.arguments)

    async def remembered(self, task: str, call: str) -> None:
        """Remember what was delivered of a call that is over, without holding up anybody."""
        known = self._tasks.get(task)
        for _ in known.reading.remembering(call) if known is not None else ():
            await asyncio.sleep(0)

    async def task_ended(self, task: str, reason: str) -> None:
        """The task is over: nothing that was issued to it is known any more."""
        known = self._tasks.pop(task, None)
        if known is not None:
            known.secrets.wipe()

    def _of(self, task: str) -> _Task:
        known = self._tasks.get(task)
        if known is None:
            known = self._tasks[task] = _Task(self._key())
        return known
