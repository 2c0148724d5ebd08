"""Each operation on its own: what it changes, and the entry that says so before it is answered."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from runner import config
from runner.errors import refuse
from runner.gate.parts import Parts
from runner.ledger import entry as entries
from runner.state.store import Store, TaskRow
from runner.wire import admin

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LATEST = (1 << 53) - 1  # what an entry holds exactly


class Authority(Protocol):
    """What gate asks when it must know whether something is revoked."""

    def revoke(self, target: str, value: str) -> None:
        """From now on it is."""


class Operations:
    """The operations. `uid` is always the asking operator's."""

    def __init__(
        self,
        parts: Parts,
        state: Store,
        authority: Authority,
        status: Callable[[], admin.StatusView],
        on_revoked: Callable[[], None],
        workspace: Callable[[str], Awaitable[bytes]],
    ) -> None:
        self._parts = parts
        self._state = state
        self._authority = authority
        self._status = status
        self._on_revoked = on_revoked  # connections that stood on it are closed
        self._workspace = workspace  # lines of the manifest of a task's workspace

    async def carry_out(self, message: admin.FromOperator, uid: int) -> admin.ToOperator:
        """Carry out one message. Raises `RunnerError`; nothing is half done then."""
        match message:
            case admin.Announce():
                return await self._announce(message, uid)
            case admin.Revoke():
                return await self._revoke(message, uid)
            case admin.ListTasks():
                return admin.Tasks(tasks=tuple(self._view(row) for row in self._state.tasks(ended=message.all)))
            case admin.ShowTask():
                return admin.Tasks(tasks=(self._view(self._known(message.task)),))
            case admin.EndTask():
                self._known(message.task)
                reason = f"ended by an operator: {message.why}" if message.why else "ended by an operator"
                stopped = await self._parts.tasks.end(message.task, reason[:500], by=uid)
                return admin.Done(position=self._state.position, affected=stopped)
            case admin.ReadWorkspace():
                self._known(message.task)
                return admin.WorkspaceView(task=message.task, lines=await self._workspace(message.task))
            case admin.Status():
                return self._status()

    async def _announce(self, token: admin.Announce, uid: int) -> admin.Done:
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
        if token.expires <= self._parts.clock.now():
            raise refuse("token", "it expired before it was announced", field="expires")
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
                by=uid,
            ),
            sync=True,
        )
        return admin.Done(position=written.position)

    async def _revoke(self, message: admin.Revoke, uid: int) -> admin.Done:
        if not message.value or len(message.value) > 128:
            raise refuse("arguments", "name what to revoke", field="value")
        written = await self._parts.journal.write(
            entries.Revoke(
                time=self._parts.journal.stamp(),
                target=message.kind,
                value=message.value,
                why=message.why[:500],
                by=uid,
            ),
            sync=True,
        )
        # After the entry, before the answer: no call begins from here on, and running ones are killed.
        self._authority.revoke(message.kind, message.value)
        affected = 0
        if message.kind == "token":  # a derived token's calls, also detached ones; a root's end with its task below
            for running in [each for each in self._parts.calls.running.values() if message.value in each.chain]:
                running.cancel("killed", f"token {message.value} was revoked")
                affected += running.chain[0] != message.value
        for task in [task for task in self._parts.tasks.live.values() if self._touches(message, task.id)]:
            affected += await self._parts.tasks.end(task.id, f"{message.kind} {message.value} was revoked", by=uid)
        self._on_revoked()
        return admin.Done(position=written.position, affected=affected)

    def _touches(self, message: admin.Revoke, task: str) -> bool:
        live = self._parts.tasks.live[task]
        value = {
            "token": live.token,
            "task": live.id,
            "agent": live.principal.agent,
            "owner": live.principal.owner,
        }[message.kind]
        return value == message.value

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
