"""Each operation on its own: what it changes, and the entry that says so before it is answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec.structs import replace

from runner import config
from runner.admin.explain import explain
from runner.admin.opening import Opening
from runner.admin.release import Releases, named
from runner.admin.reload import ACT, Reloads, Request, Swap
from runner.admin.retention import Images, Retention
from runner.admin.roster import Asker
from runner.admin.second import SecondPerson
from runner.admin.secrets import HasBroker, Secrets
from runner.errors import refuse
from runner.gate import pruned
from runner.gate.authenticate import RETIRED
from runner.gate.parts import Parts
from runner.gate.tasks import Task
from runner.ledger import entry as entries
from runner.model import Principal
from runner.state.store import Store, TaskRow
from runner.wire import admin

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAMED = {  # what a revocation of each kind may name
    "token": re.compile(r"[\x21-\x7e]{1,128}"),
    "task": config.NAME,
    "agent": config.NAME,
    "owner": config.NAME,
    "everything": re.compile(""),
}
_NAMES = {
    "token": "give the token's jti: `runner token inspect FILE` and `runner trace show CALL` name it",
    "task": "see `runner task list --all`",
    "agent": "see `runner task list --all`; a sub-agent's name is what its parent called it",
    "owner": "see `runner task list --all`",
    "everything": "everything has no name: leave the value out",
}
_LATEST = (1 << 53) - 1  # what an entry holds exactly


class Authority(Protocol):
    """What gate asks when it must know whether something is revoked."""

    def taken(self, who: Principal, chain: tuple[str, ...]) -> str:
        """Why `who` may not act by `chain` any more, "" when nothing was taken back."""

    def revoking(self, target: str, value: str) -> AbstractContextManager[None]:
        """Let nothing new begin on it while its entry is being written."""

    def for_ever(self, target: str, value: str) -> bool:
        """Whether a token or task of this name was revoked."""

    def closed_at(self, target: str, value: str) -> int:
        """Where in the ledger it was closed until its release; -1 when it is open."""

    def closed(self) -> tuple[tuple[str, str], ...]:
        """What is closed now, as (target, value)."""

    def being_revoked(self, target: str, value: str) -> bool:
        """Whether an entry that revokes it is being written."""


class Operations:
    """The operations. Whoever asks has been found to have the role (`runner/admin/roster.py`)."""

    def __init__(
        self,
        parts: Parts,
        state: Store,
        authority: Authority,
        status: Callable[[], admin.StatusView],
        on_revoked: Callable[[], None],
        workspace: Callable[[str], Awaitable[bytes]],
        reloads: Reloads,
        second: SecondPerson,
        images: Images,
        broker: HasBroker,
    ) -> None:
        self._parts = parts
        self._state = state
        self._authority = authority
        self._status = status
        self._on_revoked = on_revoked  # connections that stood on it are closed
        self._retention = Retention(
            parts.journal, images, lambda: pruned.let_go(parts.journal.recorder, self._state, parts.calls)
        )
        self._workspace = workspace  # lines of the manifest of a task's workspace
        self._reloads = reloads
        self._second = second
        self._releases = Releases(parts.journal, authority, second, self._two_person)
        self._releasing = asyncio.Lock()
        self._settling: set[str] = set()  # what is being confirmed or withdrawn: once, and nobody waits for a reload
        self._secrets = Secrets(parts.journal, broker)
        self._opening = Opening(parts.journal)

    async def carry_out(self, message: admin.FromOperator, asker: Asker) -> admin.ToOperator:
        """Carry out one message. Raises `RunnerError`; nothing is half done then."""
        match message:
            case admin.Announce():
                return await self._announce(message, asker)
            case admin.Revoke():
                return await self._revoke(message, asker.uid, asker.entry)
            case admin.ListTasks() | admin.ShowTask() | admin.EndTask() | admin.ReadWorkspace():
                return await self._of_tasks(message, asker)
            case admin.Reload():
                return await self._reload(message, asker)
            case admin.ListPending():
                return admin.PendingActs(acts=tuple(map(self._pending, self._second.waiting())))
            case admin.Reopen():
                return await self._reopen(message, asker)
            case admin.Confirm() | admin.Withdraw():
                return await self._settle(message, asker)
            case admin.Status():
                return self._status()
            case _:
                return await self._kept(message, asker)

    async def _of_tasks(
        self, message: admin.ListTasks | admin.ShowTask | admin.EndTask | admin.ReadWorkspace, asker: Asker
    ) -> admin.ToOperator:
        match message:
            case admin.ListTasks():
                return admin.Tasks(tasks=tuple(self._view(row) for row in self._state.tasks(ended=message.all)))
            case admin.ShowTask():
                return admin.Tasks(tasks=(self._view(self._known(message.task)),))
            case admin.EndTask():
                self._known(message.task)
                reason = f"ended by an operator: {message.why}" if message.why else "ended by an operator"
                stopped = await self._parts.tasks.end(message.task, reason[:500], by=asker.uid, operator=asker.entry)
                return admin.Done(position=self._state.position, affected=stopped)
            case admin.ReadWorkspace():
                self._known(message.task)
                return admin.WorkspaceView(task=message.task, lines=await self._workspace(message.task))

    async def _reopen(self, message: admin.Reopen, asker: Asker) -> admin.ToOperator:
        async with self._releasing:
            position, waits = await self._releases.ask(message, asker)
        return admin.Waits(position=position, act=self._pending(waits)) if waits else admin.Done(position=position)

    async def _settle(self, message: admin.Confirm | admin.Withdraw, asker: Asker) -> admin.Done:
        if message.id in self._settling:
            raise refuse("busy", f"`{message.id[:64]}` is being confirmed or withdrawn right now", retry_after_ms=1000)
        self._settling.add(message.id)
        try:
            if isinstance(message, admin.Withdraw):
                return admin.Done(position=await self._second.withdraw(message.id, asker, message.why))
            return await self._confirm(message, asker)
        finally:
            self._settling.discard(message.id)

    async def _confirm(self, message: admin.Confirm, asker: Asker) -> admin.Done:
        pending = self._second.confirmed(message.id, asker)
        if pending.act != ACT:
            async with self._releasing:
                return admin.Done(position=await self._releases.confirmed(pending, asker))
        done = await self._reloads.ask(Request(operator=asker.entry, pending=pending))
        assert isinstance(done, Swap)  # what is confirmed waits for nobody
        return admin.Done(position=done.position, affected=done.stopped)

    def _two_person(self) -> tuple[str, ...]:
        return self._reloads.in_force.two_person if self._reloads.in_force else ()

    async def _kept(self, message: admin.FromOperator, asker: Asker) -> admin.ToOperator:
        """What concerns content and secrets."""
        match message:
            case admin.Prune() | admin.Hold() | admin.Release():
                return await self._retention.carry_out(message, asker)
            case admin.SetSecret() | admin.RemoveSecret() | admin.ListSecrets():
                return await self._secrets.carry_out(message, asker)
            case admin.OpenRaw() | admin.ReadRaw():
                return await self._opening.carry_out(message, asker)
            case admin.ExplainEgress():
                return explain(self._parts, message)
            case _:
                raise refuse("denied", "no operation of this daemon", next_step="it is answered before it comes here")

    async def _reload(self, message: admin.Reload, asker: Asker) -> admin.ToOperator:
        done = await self._reloads.ask(Request(operator=asker.entry, why=message.why[:500]))
        if isinstance(done, Swap):
            return admin.Done(position=done.position, affected=done.stopped)
        self._second.refuse_twin(ACT, done.offered.subject)
        for content in done.contents:  # what the entry names can be looked at before it is confirmed
            await self._parts.journal.recorder.store(content)
        pending, position = await self._second.wait(
            ACT,
            done.offered.subject,
            asker,
            before=done.before.catalogue,
            after=done.offered.catalogue,
            why=message.why,
            changes=done.offered.changes(done.before),
        )
        return admin.Waits(position=position, act=self._pending(pending))

    def _pending(self, pending: entries.Pending) -> admin.PendingView:
        return admin.PendingView(
            id=pending.id,
            act=pending.act,
            subject=pending.subject,
            operator=pending.operator.name,
            asked=pending.time,
            expires=pending.expires,
            before=pending.before,
            after=pending.after,
            changes=pending.changes,
            why=pending.why,
            can=self._second.who_can(pending),
        )

    async def _announce(self, token: admin.Announce, asker: Asker) -> admin.Done:
        for name in ("agent", "owner", "task", "session", "profile", "jti"):
            if not config.NAME.match(getattr(token, name)):
                raise refuse("token", "not a name: letters, digits and ._:@/-, at most 128", field=name)
        if not _DIGEST.fullmatch(token.digest) or not all(config.TOOL_ID.match(name) for name in token.tools):
            raise refuse("token", "a digest is hex SHA-256, a tool is named as its manifest is", field="digest, tools")
        if not 0 <= token.issued < token.expires <= _LATEST:
            raise refuse("token", "times are seconds since the epoch, the issue before the end", field="expires")
        known = self._state.announced(token.jti)
        if known is not None and known != token.digest:
            raise refuse("token", "another token of this id was announced before", field="jti")
        if token.profile not in self._parts.serving.task_profiles:
            raise refuse("profile", f"there is no task profile `{token.profile}`", field="profile")
        if self._authority.for_ever("token", token.jti) or self._authority.for_ever("task", token.task):
            raise refuse("revoked", "this token or its task was revoked, for ever", field="jti, task")
        if token.expires <= self._parts.clock.now():
            raise refuse("token", "it expired before it was announced", field="expires")
        for target, value in (("agent", token.agent), ("owner", token.owner), ("everything", "")):
            if (at := self._authority.closed_at(target, value)) >= 0:
                raise refuse(
                    "revoked",
                    f"entry {at} has revoked {named(target, value)} until it is released",
                    field=target,
                    next_step="find out why; then an operator with the role containment can run "
                    f"`runner token release --{named(target, value)} --why …`",
                )
        begun = self._state.task(token.task)
        if begun is not None and begun.token != token.jti:
            raise refuse(
                "token",
                f"task `{token.task}` has begun under another root token" + (" and has ended" if begun.ended else ""),
                field="task",
                next_step="choose a new task name: a task has one root token, for ever",
            )
        written = await self._parts.journal.write(
            entries.Token(
                time=self._parts.journal.stamp(),
                jti=token.jti,
                digest=token.digest,
                issuer=token.issuer[:500],
                who=entries.Who(agent=token.agent, owner=token.owner, task=token.task, session=token.session),
                profile=token.profile,
                tools=token.tools[:256],
                issued=token.issued,
                expires=token.expires,
                by=asker.uid,
                operator=asker.entry,
            ),
            sync=True,
        )
        return admin.Done(position=written.position)

    async def _revoke(self, message: admin.Revoke, uid: int, operator: entries.Operator) -> admin.Done:
        if not _NAMED[message.kind].fullmatch(message.value):
            raise refuse("arguments", f"this can name no {message.kind}", field="value", next_step=_NAMES[message.kind])
        if message.until_released and message.kind in ("token", "task"):
            raise refuse(
                "arguments", f"a {message.kind} is revoked for ever", field="until_released", next_step="leave it out"
            )
        tokens = self._state.tokens_of(message.kind, message.value, int(self._parts.clock.now()))
        with self._authority.revoking(message.kind, message.value):
            written = await self._parts.journal.write(
                entries.Revoke(
                    time=self._parts.journal.stamp(),
                    target=message.kind,
                    value=message.value,
                    until_released=message.until_released,
                    why=message.why[:500],
                    by=uid,
                    operator=operator,
                ),
                sync=True,
            )
        # State followed the entry before this line: no call begins on it any more. What runs is killed, then answered.
        reason = f"{named(message.kind, message.value)} was revoked"
        stopped = await self.stop_revoked(reason, by=uid, operator=operator)
        return admin.Done(position=written.position, affected=stopped, tokens=tokens)

    async def stop_revoked(self, reason: str, *, by: int = -1, operator: entries.Operator | None = None) -> int:
        """End every task whose root token is revoked, and elsewhere every call whose chain is; then close connections
        that stood on it. Returns how many calls were stopped; none of their processes is left."""
        calls, tasks = self._parts.calls, self._parts.tasks
        over = [task for task in tasks.live.values() if self._taken(task, (), (task.token,))]
        ended = {task.id for task in over}
        stopped = [
            running
            for running in calls.running.values()
            if running.task in tasks.live
            and running.task not in ended
            and self._taken(tasks.live[running.task], running.asserted, running.chain)
        ]
        for running in stopped:
            running.cancel("killed", reason)
        # All at once: the last task's calls do not wait for the first one's sandbox to be gone.
        counts = await asyncio.gather(*(tasks.end(task.id, reason, by=by, operator=operator) for task in over))
        if stopped:
            await asyncio.wait([running.finished for running in stopped])
        self._on_revoked()
        return len(stopped) + sum(counts)

    async def stop_retired(self, by: int, operator: entries.Operator | None) -> int:
        """End every task whose root token was signed by a key that is in force no more, with what runs detached in it.
        Returns how many calls were stopped; none of their processes is left."""
        parts = self._parts
        over = [
            task for task in parts.tasks.live.values() if task.anchor and not parts.authenticator.trusts(*task.anchor)
        ]
        ends = [parts.tasks.end(task.id, RETIRED, by=by, operator=operator) for task in over]
        return sum(await asyncio.gather(*ends))

    def _taken(self, task: Task, asserted: tuple[str, ...], chain: tuple[str, ...]) -> str:
        return self._authority.taken(replace(task.principal, asserted=asserted), chain)

    def _known(self, task: str) -> TaskRow:
        row = self._state.task(task)
        if row is None:
            raise refuse(
                "arguments", f"there is no task `{task[:64]}`", field="task", next_step="see `runner task list --all`"
            )
        return row

    def _view(self, row: TaskRow) -> admin.TaskView:
        running = self._parts.calls.of_task(row.task)
        return admin.TaskView(
            task=row.task,
            agent=row.agent,
            owner=row.owner,
            session=row.session,
            profile=row.profile,
            state="ended" if row.ended else "live",
            began=row.began,
            ended=row.ended,
            reason=row.reason,
            calls=row.calls,
            running=tuple(f"{call.call} {call.tool}" for call in running),
        )
