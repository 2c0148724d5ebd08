"""Secrets of operators: an entry before each act, a second one where the act did not follow, and never a value."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runner.admin.operations import Operations
from runner.admin.reload import Reloads
from runner.admin.roster import NEEDS, Asker, Operator, roster
from runner.admin.secrets import Secrets
from runner.config import Config
from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.wire import admin
from runner.wire.broker import SecretView

CANARY = b"canary-of-an-operator"
_ROOT = roster(Config()).asker(0, "")
assert _ROOT is not None
ROOT = _ROOT


class Keeper:
    """The broker, and the journal before it: `log` is the order in which things happened."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.held: dict[str, tuple[int, bytes]] = {}
        self.broken = False
        journal: Any = SimpleNamespace(stamp=lambda: "2026-01-01T00:00:00.000000Z", write=self._write)
        self.broker = self
        self.secrets_ = Secrets(journal, self)

    async def _write(self, entry: Any, *, sync: bool) -> Any:
        assert sync  # on disk before the act
        data = entries.encode(entry)
        assert CANARY not in data
        assert entries.decode(data) == entry
        self.log.append(entry)
        return SimpleNamespace(position=len(self.log))

    async def secrets(self) -> tuple[SecretView, ...]:
        await asyncio.sleep(0)
        return tuple(
            SecretView(name=name, version=held[0], created="c", rotated="r") for name, held in self.held.items()
        )

    async def store(self, name: str, value: bytes, fields: dict[str, bytes], expect: int) -> int:
        await asyncio.sleep(0)
        if self.broken:
            raise refuse("unavailable", "the disk is full")
        assert self.held.get(name, (0, b""))[0] == expect
        self.held[name] = (expect + 1, value or fields["password"])
        self.log.append(("stored", name, expect + 1))
        return expect + 1

    async def remove(self, name: str, expect: int) -> None:
        if self.broken:
            raise refuse("unavailable", "the disk is full")
        assert self.held.pop(name)[0] == expect
        self.log.append(("removed", name))

    def does(self, *messages: Any) -> Any:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(
                *(self.secrets_.carry_out(message, ROOT) for message in messages), return_exceptions=True
            )

        answers = asyncio.run(all_at_once())
        if len(messages) > 1:
            return answers
        if isinstance(answers[0], BaseException):
            raise answers[0]
        return answers[0]


def entry(act: Any, before: int, after: int, **rest: Any) -> entries.Secret:
    time = "2026-01-01T00:00:00.000000Z"
    return entries.Secret(time=time, act=act, name="api", before=before, after=after, by=0, operator=ROOT.entry, **rest)


SET = admin.SetSecret(name="api", value=CANARY, why="for http_request")
ROTATE = admin.SetSecret(name="api", fields={"username": b"me", "password": CANARY}, rotate=True)
REMOVE = admin.RemoveSecret(name="api")


def test_each_act_is_an_entry_first() -> None:
    keeper = Keeper()
    assert keeper.does(SET) == admin.Done(position=1)
    keeper.does(ROTATE)
    assert [view.version for view in keeper.does(admin.ListSecrets()).secrets] == [2]
    keeper.does(REMOVE)
    assert keeper.log == [
        entry("set", 0, 1, why="for http_request"),
        ("stored", "api", 1),
        entry("rotate", 1, 2),
        ("stored", "api", 2),
        entry("remove", 2, 0),
        ("removed", "api"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        ROTATE,
        REMOVE,
        admin.SetSecret(name="api", value=b"short"),
        admin.SetSecret(name="a:b", value=CANARY),
        admin.SetSecret(name="api"),
        admin.RemoveSecret(name="../x"),
    ],
)
def test_what_cannot_be_done_writes_nothing(message: Any) -> None:
    keeper = Keeper()
    with pytest.raises(RunnerError) as caught:
        keeper.does(message)
    assert caught.value.refused.code == "arguments"
    assert keeper.log == []
    keeper.does(SET)
    with pytest.raises(RunnerError) as again:  # it is there now
        keeper.does(SET)
    assert "runner secret rotate" in again.value.refused.next_step
    assert len(keeper.log) == 2


def test_an_act_that_did_not_follow_its_entry_is_told_by_another() -> None:
    keeper = Keeper()
    keeper.does(SET)
    keeper.log.clear()
    keeper.broken = True
    for message in (ROTATE, REMOVE):
        with pytest.raises(RunnerError):
            keeper.does(message)
    problem = "the disk is full"
    assert keeper.log == [
        entry("rotate", 1, 2),
        entry("rotate", 1, 1, problem=problem),
        entry("remove", 1, 0),
        entry("remove", 1, 1, problem=problem),
    ]


def test_two_at_once_are_one_after_the_other() -> None:
    keeper = Keeper()
    first, second = keeper.does(SET, SET)
    assert isinstance(first, admin.Done)
    assert isinstance(second, RunnerError)
    assert keeper.held["api"][0] == 1
    keeper = Keeper()
    keeper.held["api"] = (1, CANARY)
    keeper.does(*[ROTATE] * 8)
    assert keeper.held["api"][0] == 9
    assert [each.after for each in keeper.log if isinstance(each, entries.Secret)] == [*range(2, 10)]


def test_a_value_is_in_no_repr() -> None:
    for message in (SET, ROTATE):
        assert CANARY.decode() not in repr(message)
        assert "api" in repr(message)


def test_the_role_that_each_needs() -> None:
    able = {"secrets": {admin.SetSecret, admin.RemoveSecret, admin.ListSecrets}, "auditor": {admin.ListSecrets}}
    for role in ("secrets", "auditor", "approver"):
        asker = Asker(operator=Operator(name="x", roles=frozenset((role,))), uid=1)
        for kind in (admin.SetSecret, admin.RemoveSecret, admin.ListSecrets):
            assert asker.may(NEEDS[kind]) is (kind in able.get(role, ()))


def test_while_the_broker_is_away_it_is_said_so() -> None:
    nothing: Any = None
    parts: Any = SimpleNamespace(journal=None)
    away: Any = SimpleNamespace(broker=None)
    operations = Operations(
        parts, nothing, nothing, nothing, nothing, nothing, Reloads(lambda message: None), nothing, nothing, away
    )
    for message in (SET, REMOVE, admin.ListSecrets()):
        with pytest.raises(RunnerError) as caught:
            asyncio.run(operations.carry_out(message, ROOT))
        assert caught.value.refused.code == "unavailable"
