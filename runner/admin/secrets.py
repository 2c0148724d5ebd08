"""Secrets that operators keep: each act an entry before the broker carries it out; values pass through to it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from runner.admin.roster import Asker
from runner.errors import RunnerError, refuse
from runner.gate.entries import Journal
from runner.ledger import entry as entries
from runner.wire import admin
from runner.wire.broker import SecretView, check_name, check_secret


class SecretKeeper(Protocol):
    """The broker, as far as operators use it (`runner/wire/broker.py` has the caller)."""

    async def secrets(self) -> tuple[SecretView, ...]:
        """What is stored, without values."""

    async def store(self, name: str, value: bytes, fields: dict[str, bytes], expect: int) -> int:
        """Keep a value in place of version `expect`, 0 for a new name. Returns its version."""

    async def remove(self, name: str, expect: int) -> None:
        """Forget version `expect`."""


class HasBroker(Protocol):
    """Where the broker is found: `runner.serve.outward.Outward`."""

    @property
    def broker(self) -> SecretKeeper | None:
        """None while it is being restarted."""


class Secrets:
    """The operations, one at a time, so that the versions in an entry are those of its act."""

    def __init__(self, journal: Journal, parts: HasBroker) -> None:
        self._journal = journal
        self._parts = parts
        self._turn = asyncio.Lock()

    async def carry_out(
        self, message: admin.SetSecret | admin.RemoveSecret | admin.ListSecrets, asker: Asker
    ) -> admin.ToOperator:
        """Carry out one of them. Raises `RunnerError`; nothing is half done then."""
        async with self._turn:
            broker = self._parts.broker
            if broker is None:
                raise refuse("unavailable", "the broker is being restarted", retry_after_ms=2000)
            match message:
                case admin.ListSecrets():
                    return admin.SecretsView(secrets=await broker.secrets())
                case admin.SetSecret():
                    return await self._set(broker, message, asker)
                case admin.RemoveSecret():
                    return await self._remove(broker, message, asker)

    async def _set(self, broker: SecretKeeper, message: admin.SetSecret, asker: Asker) -> admin.Done:
        check_secret(message.name, message.value, message.fields)
        before = await self._version(broker, message.name)
        if before and not message.rotate:
            raise refuse(
                "arguments",
                f"it is stored already, version {before}",
                field=message.name,
                next_step=f"replace it with `runner secret rotate {message.name}`",
            )
        if message.rotate and not before:
            raise _unknown(message.name)
        entry = entries.Secret(
            time=self._journal.stamp(),
            act="rotate" if message.rotate else "set",
            name=message.name,
            before=before,
            after=before + 1,
            why=message.why[:500],
            by=asker.uid,
            operator=asker.entry,
        )
        position = (await self._journal.write(entry, sync=True)).position
        try:
            await broker.store(message.name, message.value, message.fields, before)
        except RunnerError as error:
            await self._undone(entry, error)
            raise
        return admin.Done(position=position)

    async def _remove(self, broker: SecretKeeper, message: admin.RemoveSecret, asker: Asker) -> admin.Done:
        check_name(message.name)
        before = await self._version(broker, message.name)
        if not before:
            raise _unknown(message.name)
        entry = entries.Secret(
            time=self._journal.stamp(),
            act="remove",
            name=message.name,
            before=before,
            after=0,
            why=message.why[:500],
            by=asker.uid,
            operator=asker.entry,
        )
        position = (await self._journal.write(entry, sync=True)).position
        try:
            await broker.remove(message.name, before)
        except RunnerError as error:
            await self._undone(entry, error)
            raise
        return admin.Done(position=position)

    async def _undone(self, entry: entries.Secret, error: RunnerError) -> None:
        """The entry came first, and its act did not follow: another one says so."""
        await self._journal.write(
            entries.Secret(
                time=self._journal.stamp(),
                act=entry.act,
                name=entry.name,
                before=entry.before,
                after=entry.before,
                why=entry.why,
                by=entry.by,
                operator=entry.operator,
                problem=error.refused.reason[:500],
            ),
            sync=True,
        )

    async def _version(self, broker: SecretKeeper, name: str) -> int:
        return next((each.version for each in await broker.secrets() if each.name == name), 0)


def _unknown(name: str) -> RunnerError:
    return refuse("arguments", "no secret of this name is stored", field=name, next_step="see `runner secret list`")
