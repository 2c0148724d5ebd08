"""Acts that wait for a second person: asked for by one operator, carried out on the word of another.

What waits is an entry, so it survives a restart; it names what it is about by a digest, expires, and is confirmed by an
operator of another name who has the role. The one who asked must still have it too. Operators are told apart as the
configuration tells them apart: by name, each with a uid and a key of its own. That two of them are two people, and that
root does not read another's key, is the host's to see to.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from runner.admin.roster import ACTS, Asker, Roster
from runner.config import Limits, Role
from runner.errors import refuse
from runner.gate.entries import Journal
from runner.ledger import entry as entries
from runner.state.store import Store

_MOST_CHANGES = 64


class SecondPerson:
    """The acts that wait, and the rules of confirming one."""

    def __init__(
        self, state: Store, journal: Journal, limits: Limits, now: Callable[[], float], roster: Callable[[], Roster]
    ) -> None:
        self._state = state
        self._journal = journal
        self._limits = limits
        self._now = now
        self._roster = roster

    def waiting(self) -> list[entries.Pending]:
        """What waits and has not expired, oldest first."""
        return [each for each in self._state.pending() if each.expires > self._now()]

    def who_can(self, pending: entries.Pending) -> tuple[str, ...]:
        """The operators who can confirm it."""
        return tuple(name for name in self._roster().holders(_needs(pending.act)) if name not in self._askers(pending))

    def _askers(self, pending: entries.Pending) -> set[str]:
        """Who asked for it: by the name of then, and by the name that the same key or uid has now."""
        now = self._roster().asker(pending.operator.uid, pending.operator.key)
        return {pending.operator.name} | ({now.operator.name} if now is not None else set())

    def refuse_twin(self, act: str, subject: str) -> None:
        """Raises `RunnerError` (conflict) when the very same waits already, (busy) when too much does."""
        waiting = self.waiting()
        for each in waiting:
            if (each.act, each.subject) == (act, subject):
                raise refuse(
                    "conflict",
                    f"this waits already, asked for by {each.operator.name}",
                    next_step=f"another operator runs `runner admin confirm {each.id}`",
                )
        if len(waiting) >= self._limits.pending_acts:
            raise refuse("busy", f"{len(waiting)} acts wait for a second person", next_step="confirm or wait for them")

    async def wait(
        self,
        act: str,
        subject: str,
        asker: Asker,
        *,
        why: str,
        changes: Iterable[str],
        before: str = "",
        after: str = "",
        target: str = "",
        value: str = "",
    ) -> tuple[entries.Pending, int]:
        """Record that `asker` wants this. Returns what waits now, and its position. Raises as `refuse_twin` does."""
        self.refuse_twin(act, subject)
        pending = entries.Pending(
            time=self._journal.stamp(),
            id=secrets.token_hex(4),
            act=act,
            subject=subject,
            before=before,
            after=after,
            target=target,
            value=value,
            changes=tuple(each[:200] for each in changes)[:_MOST_CHANGES],
            why=why[:500],
            by=asker.uid,
            operator=asker.entry,
            expires=int(self._now()) + self._limits.pending_act_s,
        )
        written = await self._journal.write(pending, sync=True)
        return pending, written.position

    def confirmed(self, id_: str, asker: Asker) -> entries.Pending:
        """What waits under `id_`, if `asker` may be its second person. Raises `RunnerError`, saying why not."""
        found = self._known(id_)
        needs = _needs(found.act)
        self._roster().demand(asker, needs, f"confirm {found.act}")
        if found.expires <= self._now():
            raise refuse("denied", f"`{id_}` has expired", next_step=f"ask for {found.act} anew")
        if asker.operator.name in self._askers(found):
            raise refuse(
                "denied",
                f"you are {asker.operator.name}, who asked for it: it takes another operator",
                allowed=f"to {', '.join(self.who_can(found)) or 'nobody'}",
                next_step="ask one of them",
            )
        if found.operator.name not in self._roster().holders(needs):
            raise refuse(
                "denied", f"{found.operator.name}, who asked for it, may not any more", next_step="ask for it anew"
            )
        return found

    async def withdraw(self, id_: str, asker: Asker, why: str) -> int:
        """Record that nobody is to confirm it any more. Whoever asked may, in any role, and whoever could ask for such
        an act: it only ever leaves things as they are, and an asker who is away must not keep others from saying no.
        Returns the entry's position. Raises `RunnerError`."""
        found = self._known(id_)
        if asker.operator.name not in self._askers(found):
            # What no role can confirm (an act of another version) is anybody's to take away.
            self._roster().demand(asker, _needs(found.act) if found.act in ACTS else (), f"withdraw {found.act}")
        written = await self._journal.write(
            entries.Withdraw(
                time=self._journal.stamp(),
                id=found.id,
                act=found.act,
                why=why[:500],
                by=asker.uid,
                operator=asker.entry,
            ),
            sync=True,
        )
        return written.position

    def _known(self, id_: str) -> entries.Pending:
        found = next((each for each in self._state.pending() if each.id == id_), None)
        if found is None:
            raise refuse(
                "arguments",
                f"nothing waits as `{id_[:64]}`",
                field="id",
                next_step="see `runner admin pending`; of what was confirmed or withdrawn, `runner admin log` tells",
            )
        return found


def _needs(act: str) -> tuple[Role, ...]:
    # An act of another version has no role here: nobody may confirm it.
    if act not in ACTS:
        raise refuse("denied", f"this version knows no act `{act}`", next_step="confirm it with the version that does")
    return (ACTS[act],)
