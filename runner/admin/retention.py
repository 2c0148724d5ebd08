"""Retention: holds, releases and prunes, each an entry; one at a time, so that a hold and a prune never cross.

A prune takes content first, and then the archives of images that no kept call names any more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from runner import config
from runner.admin.roster import Asker
from runner.errors import refuse
from runner.gate.entries import Journal
from runner.ledger import entry as entries
from runner.wire import admin
from runner.wire.engine import Archive
from runner.wire.recorder import Selected

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_LABELS = 64  # names in one criterion
_HASH = 32
_LARGEST = (1 << 53) - 1


class Images(Protocol):
    """The archives of images (`runner/gate/images.py`)."""

    async def idle(self) -> list[Archive]:
        """Those that no sandbox needs. Raises `RunnerError` (unavailable)."""

    async def prune(self, archive: Archive, *, why: str, by: int, operator: entries.Operator | None) -> int:
        """Remove one: its tombstone's position, -1 when it is needed again."""


class Retention:
    """The three operations."""

    def __init__(self, journal: Journal, images: Images, let_go: Callable[[], Awaitable[None]]) -> None:
        self._journal = journal
        self._images = images
        self._let_go = let_go  # gate's own copies of what is pruned
        self._turn = asyncio.Lock()

    async def carry_out(self, message: admin.Prune | admin.Hold | admin.Release, asker: Asker) -> admin.ToOperator:
        """Carry out one of them. Raises `RunnerError`; nothing is half done then."""
        async with self._turn:
            match message:
                case admin.Prune():
                    return await self._prune(message, asker)
                case admin.Hold():
                    return await self._hold(message, asker)
                case admin.Release():
                    return await self._release(message, asker)

    async def _prune(self, message: admin.Prune, asker: Asker) -> admin.Pruned:
        of = _criteria(message, message.larger, raw=message.raw)
        if of == entries.Criteria():
            raise refuse(
                "arguments", "nothing says what to prune", next_step="name an age, a size, a task, an agent or a tool"
            )
        if not message.dry:
            _why(message.why)
        idle = await self._images.idle()
        # The recorder judges holds by its own ledger; nothing changes until the entry below is on disk.
        found = await self._journal.recorder.select(
            before=of.before, larger=of.larger, raw=of.raw, tasks=of.tasks, agents=of.agents, tools=of.tools,
            keep=not message.dry,
            images=tuple({each.image for each in idle if each.image}),
        )  # fmt: skip
        unnamed = [each for each in idle if not each.image or each.image in found.images]
        position = -1 if message.dry or not found.pieces else await self._remove(found, of, message.why, asker)
        removed = []
        for each in unnamed:
            at = (
                -1
                if message.dry
                else await self._images.prune(each, why=message.why, by=asker.uid, operator=asker.entry)
            )
            if message.dry or at >= 0:
                removed.append(admin.PrunedImage(image=each.image, archive=each.digest, size=each.size, position=at))
        return admin.Pruned(
            pieces=found.pieces, size=found.size, held=found.held, more=found.more, position=position,
            images=tuple(removed),
        )  # fmt: skip

    async def _remove(self, found: Selected, of: entries.Criteria, why: str, asker: Asker) -> int:
        """The tombstone of what was selected, and its removal: the tombstone's position."""
        written = await self._journal.write(
            entries.Prune(
                time=self._journal.stamp(),
                of=of,
                pruned=entries.Content(digest=found.pruned, size=found.pieces * _HASH),
                pieces=found.pieces,
                size=found.size,
                held=found.held,
                why=why,
                by=asker.uid,
                operator=asker.entry,
            ),
            sync=True,
        )
        # From here on a crash only delays the removal: the next start goes on with it.
        await self._journal.recorder.remove(found.pruned)
        await self._let_go()
        return written.position

    async def _hold(self, message: admin.Hold, asker: Asker) -> admin.Done:
        _name(message.name)
        _why(message.why)
        entry = entries.Hold(
            time=self._journal.stamp(),
            name=message.name,
            of=_criteria(message),
            why=message.why,
            by=asker.uid,
            operator=asker.entry,
        )
        return admin.Done(position=(await self._journal.write(entry, sync=True)).position)

    async def _release(self, message: admin.Release, asker: Asker) -> admin.Done:
        _name(message.name)
        _why(message.why)
        entry = entries.Release(
            time=self._journal.stamp(), name=message.name, why=message.why, by=asker.uid, operator=asker.entry
        )
        return admin.Done(position=(await self._journal.write(entry, sync=True)).position)


def _criteria(message: admin.Prune | admin.Hold, larger: int = 0, *, raw: bool = False) -> entries.Criteria:
    if message.before and not _TIME.fullmatch(message.before):
        raise refuse(
            "arguments", "not a time as entries have it", field="before", allowed="2026-01-31T00:00:00.000000Z"
        )
    if not 0 <= larger <= _LARGEST:
        raise refuse("arguments", "not a size", field="larger")
    for field in ("tasks", "agents", "tools"):
        names = getattr(message, field)
        form = config.TOOL_ID if field == "tools" else config.NAME
        if len(names) > _LABELS or not all(form.match(name) for name in names):
            raise refuse("arguments", f"not a name, or more than {_LABELS}", field=field)
    return entries.Criteria(
        before=message.before, larger=larger, raw=raw,
        tasks=message.tasks, agents=message.agents, tools=message.tools,
    )  # fmt: skip


def _name(name: str) -> None:
    if not config.NAME.match(name):
        raise refuse("arguments", "not a name: letters, digits and ._:@/-, at most 128", field="name")


def _why(why: str) -> None:
    if not 0 < len(why) <= 500:
        raise refuse("arguments", "say why, in at most 500 characters: it is recorded with the act", field="why")
