"""Releasing what was revoked until released: by one operator, or by two where `two_person` says so.

A confirmation is bound to the very closing that was to be released: what was closed again since is asked for anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from runner.admin.roster import Asker
from runner.admin.second import SecondPerson
from runner.errors import refuse
from runner.gate.entries import Journal
from runner.ledger import entry as entries
from runner.wire import admin

ACT = "release"


class Closings(Protocol):
    """What is closed."""

    def closed_at(self, target: str, value: str) -> int:
        """Where in the ledger it was closed until its release; -1 when it is open."""

    def closed(self) -> tuple[tuple[str, str], ...]:
        """What is closed now, as (target, value)."""

    def being_revoked(self, target: str, value: str) -> bool:
        """Whether an entry that revokes it is being written."""


class Releases:
    """Asks for a release, or carries it out. Its caller lets one at a time in."""

    def __init__(
        self, journal: Journal, closings: Closings, second: SecondPerson, two_person: Callable[[], tuple[str, ...]]
    ) -> None:
        self._journal = journal
        self._closings = closings
        self._second = second
        self._two_person = two_person  # of the configuration in force

    async def ask(self, message: admin.Reopen, asker: Asker) -> tuple[int, entries.Pending | None]:
        """Release it, or have it wait for a second person. The entry's position, and what waits.

        Raises `RunnerError`."""
        if not 0 < len(message.why) <= 500:
            raise refuse("arguments", "say why, in at most 500 characters: it is recorded with the act", field="why")
        at = self._closed_at(message.kind, message.value)
        if ACT not in self._two_person():
            return await self._write(message.kind, message.value, message.why, asker.entry), None
        pending, position = await self._second.wait(
            ACT,
            _subject(message.kind, message.value, at),
            asker,
            why=message.why,
            changes=(f"{named(message.kind, message.value)}, which entry {at} revoked until its release",),
            target=message.kind,
            value=message.value,
        )
        return position, pending

    async def confirmed(self, pending: entries.Pending, asker: Asker) -> int:
        """Carry out what `asker` confirms. Returns the entry's position. Raises `RunnerError` (conflict, arguments)."""
        at = self._closed_at(pending.target, pending.value)
        if pending.subject != _subject(pending.target, pending.value, at):
            raise refuse(
                "conflict",
                f"entry {at} has revoked it again since {pending.operator.name} asked for its release",
                next_step="find out why (`runner admin log --kind revoke`), then ask for the release anew",
            )
        return await self._write(pending.target, pending.value, pending.why, pending.operator, pending, asker.entry)

    async def _write(
        self,
        target: str,
        value: str,
        why: str,
        operator: entries.Operator,
        pending: entries.Pending | None = None,
        confirmed: entries.Operator | None = None,
    ) -> int:
        written = await self._journal.write(
            entries.Reopen(
                time=self._journal.stamp(),
                target=target,
                value=value,
                why=why,
                by=operator.uid,
                operator=operator,
                confirmed=confirmed,
                pending=pending.id if pending else "",
            ),
            sync=True,
        )
        return written.position

    def _closed_at(self, target: str, value: str) -> int:
        at = self._closings.closed_at(target, value)
        if self._closings.being_revoked(target, value):
            raise refuse("conflict", "it is being revoked right now", next_step="see `runner admin log --kind revoke`")
        if at < 0:
            closed = [named(*each) for each in self._closings.closed()]
            more = f", and {len(closed) - _SHOWN} more" if len(closed) > _SHOWN else ""
            raise refuse(
                "arguments",
                f"{named(target, value[:128])} is not closed, so nothing keeps it from new tokens",
                field="value",
                allowed=", ".join(closed[:_SHOWN]) + more or "nothing is closed now",
                next_step="what was revoked otherwise is not released: mint a new token, with a new task",
            )
        return at


_SHOWN = 16


def named(target: str, value: str) -> str:
    """What a revocation names, in words."""
    return f"{target} {value}".strip()


def _subject(target: str, value: str, at: int) -> str:
    return hashlib.sha256(f"{ACT} {target} {value} {at}".encode()).hexdigest()
