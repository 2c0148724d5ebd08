"""Operators' words are checked for their form, and each act is an entry before it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runner.admin.operations import Operations
from runner.admin.reload import Reloads
from runner.admin.roster import roster
from runner.config import Config
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.model import Principal
from runner.wire import admin

TOKEN = admin.Announce(
    jti="root", digest="a" * 64, issuer="i", agent="a", owner="o", task="t", session="s", profile="p",
    tools=("shell_run",), issued=10, expires=2000,
)  # fmt: skip

_ROOT = roster(Config()).asker(0, "")
assert _ROOT is not None
ROOT = _ROOT


class House:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.known: dict[str, str] = {}
        self.running: dict[str, Any] = {}
        self.live: dict[str, Any] = {}
        state: Any = SimpleNamespace(
            position=1,
            announced=self.known.get,
            task=lambda task: None,
            tasks=lambda ended: [],
            tokens_of=lambda target, value, now: 3,
        )
        parts: Any = SimpleNamespace(
            serving=SimpleNamespace(task_profiles={"p": None}),
            clock=SimpleNamespace(now=lambda: 1000.0),
            journal=SimpleNamespace(stamp=lambda: "now", write=self._write),
            calls=SimpleNamespace(running=self.running, of_task=lambda task: []),
            tasks=SimpleNamespace(live=self.live, end=self._end),
        )
        self.gone: set[str] = set()
        self.closed: dict[tuple[str, str], int] = {}
        self.revoking: set[tuple[str, str]] = set()
        authority: Any = SimpleNamespace(
            taken=lambda who, chain: "gone" if self.gone & {*chain, *who.asserted, who.agent} else "",
            for_ever=lambda target, value: value in self.gone,
            closed_at=lambda target, value: self.closed.get((target, value), -1),
            closed=lambda: tuple(self.closed),
            being_revoked=lambda target, value: (target, value) in self.revoking,
            revoking=self._revoking,
        )
        status: Any = None
        images: Any = None
        self.parts = parts
        self.second = SimpleNamespace(waiting=None)
        second: Any = SimpleNamespace(
            confirmed=lambda id_, asker: self.second.waiting.confirmed(id_, asker),
            withdraw=lambda id_, asker, why: self.second.waiting.withdraw(id_, asker, why),
        )
        self.operations = Operations(
            parts,
            state,
            authority,
            status,
            lambda: self.log.append("connections"),
            self._read,
            Reloads(lambda message: None),
            second,
            images,
            SimpleNamespace(broker=None),
        )

    @contextlib.contextmanager
    def _revoking(self, target: str, value: str) -> Iterator[None]:
        self.log.append("nothing begins")
        yield

    async def _read(self, task: str) -> bytes:
        return f"lines of {task}".encode()

    async def _write(self, entry: Any, *, sync: bool = False) -> Any:
        assert sync
        assert (entry.by, entry.operator) == (0, ROOT.entry)
        self.log.append(type(entry).__name__)
        if isinstance(entry, entries.Revoke):  # state follows before the answer comes
            self.gone.add(entry.value)
        entries.decode(entries.encode(entry))  # the recorder would take it
        return SimpleNamespace(position=5)

    async def _end(self, task: str, reason: str, *, by: int, operator: entries.Operator) -> int:
        assert (by, operator) == (0, ROOT.entry)
        self.log.append(("ended", task))
        return 1

    def does(self, message: Any) -> Any:
        return asyncio.run(self.operations.carry_out(message, ROOT))


def test_an_announcement_becomes_an_entry() -> None:
    house = House()
    assert house.does(TOKEN) == admin.Done(position=5)
    assert house.log == ["Token"]


@pytest.mark.parametrize(
    "change",
    [
        {"agent": ""}, {"task": "a b"}, {"jti": "x" * 129}, {"digest": "A" * 64}, {"digest": "a" * 63},
        {"tools": ("Shell",)}, {"tools": ("x" * 65,)}, {"profile": "other"}, {"issued": -1}, {"issued": 2000},
        {"expires": 999}, {"expires": 1 << 60},
    ],
)  # fmt: skip
def test_an_announcement_of_the_wrong_form_writes_nothing(change: dict[str, Any]) -> None:
    house = House()
    with pytest.raises(RunnerError):
        house.does(msgspec.structs.replace(TOKEN, **change))
    assert house.log == []


def test_an_id_names_one_token_for_ever() -> None:
    house = House()
    house.known["root"] = "b" * 64
    with pytest.raises(RunnerError) as refused:
        house.does(TOKEN)
    assert refused.value.refused.field == "jti"


@pytest.mark.parametrize("named", [("agent", "a"), ("owner", "o"), ("everything", "")])
def test_nothing_is_announced_for_what_is_closed(named: tuple[str, str]) -> None:
    house = House()
    house.closed[named] = 7
    with pytest.raises(RunnerError) as refused:
        house.does(TOKEN)
    told = refused.value.refused
    assert (told.code, told.field) == ("revoked", named[0])
    assert f"runner token release --{' '.join(named).strip()} --why" in told.next_step
    assert house.log == []
    house.closed = {("agent", "b"): 7, ("owner", "p"): 8}  # the twin
    assert house.does(TOKEN).position == 5


def test_a_release_names_what_is_closed_and_says_why() -> None:
    house = House()
    house.closed[("agent", "a")] = 7
    wrong = (admin.Reopen(kind="owner", value="a", why="w"), admin.Reopen(kind="agent", value="b", why="w"))
    for message in wrong:
        with pytest.raises(RunnerError) as refused:
            house.does(message)
        assert refused.value.refused.allowed == "agent a"
    for why in ("", "w" * 501):
        with pytest.raises(RunnerError) as refused:
            house.does(admin.Reopen(kind="agent", value="a", why=why))
        assert refused.value.refused.field == "why"
    house.revoking.add(("agent", "a"))  # what is being closed again is not opened by who has not seen that
    with pytest.raises(RunnerError) as refused:
        house.does(admin.Reopen(kind="agent", value="a", why="w"))
    assert refused.value.refused.code == "conflict"
    assert house.log == []
    house.revoking.clear()
    assert house.does(admin.Reopen(kind="agent", value="a", why="w")) == admin.Done(position=5)
    assert house.log == ["Reopen"]


class Waiting:
    """What waits, as `SecondPerson` holds it."""

    def __init__(self) -> None:
        self.ids = {"p1", "p2"}

    def confirmed(self, id_: str, asker: Any) -> Any:
        assert id_ in self.ids
        subject = hashlib.sha256(b"release agent a 7").hexdigest()
        return SimpleNamespace(
            id=id_, act="release", target="agent", value="a", why="w", operator=ROOT.entry, subject=subject
        )

    async def withdraw(self, id_: str, asker: Any, why: str) -> int:
        self.ids.remove(id_)
        return 6


def test_what_waits_is_settled_once() -> None:
    """While one is being confirmed, nobody withdraws it or confirms it again; another is not held up."""
    house = House()
    house.closed[("agent", "a")] = 7
    house.second.waiting = Waiting()
    write = house.parts.journal.write

    async def story() -> list[Any]:
        written = asyncio.Event()

        async def slowly(entry: Any, *, sync: bool = False) -> Any:
            await written.wait()
            return await write(entry, sync=sync)

        house.parts.journal.write = slowly
        first = asyncio.ensure_future(house.operations.carry_out(admin.Confirm(id="p1"), ROOT))
        await asyncio.sleep(0)
        told: list[Any] = []
        for message in (admin.Confirm(id="p1"), admin.Withdraw(id="p1"), admin.Withdraw(id="p2")):
            try:
                told.append(await house.operations.carry_out(message, ROOT))
            except RunnerError as error:
                told.append(error.refused.code)
        assert house.log == []
        written.set()
        return [*told, await first]

    assert asyncio.run(story()) == ["busy", "busy", admin.Done(position=6), admin.Done(position=5)]
    assert house.log == ["Reopen"]


class Call:
    """A running call, killed in time."""

    def __init__(self, house: House, name: str, task: str, chain: tuple[str, ...], asserted: tuple[str, ...]) -> None:
        self.task, self.chain, self.asserted = task, chain, asserted
        self.name, self.house = name, house
        house.running[name] = self

    def cancel(self, kind: str, why: str) -> None:
        assert kind == "killed"
        self.finished = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, self._dead)

    def _dead(self) -> None:
        self.house.log.append(f"{self.name} is dead")
        self.finished.set_result(None)


def two_tasks() -> House:
    house = House()
    for task, root in (("t", "root"), ("u", "other")):
        # As tasks hold it: the principal of whoever joined first, here a sub-agent.
        principal = Principal(agent=f"a-{task}", owner="o", task=task, session="s", asserted=("low",))
        house.live[task] = SimpleNamespace(id=task, token=root, principal=principal)
        Call(house, f"{task}1", task, (root, f"mid-{task}", f"leaf-{task}"), ("mid", "low"))
        Call(house, f"{task}2", task, (root,), ())
    return house


@pytest.mark.parametrize(
    ("kind", "value", "log"),
    [
        ("token", "mid-t", ["t1 is dead"]),
        ("token", "leaf-t", ["t1 is dead"]),
        ("agent", "mid", ["t1 is dead", "u1 is dead"]),
        ("agent", "low", ["t1 is dead", "u1 is dead"]),  # and the tasks go on, though a `low` joined them first
        ("token", "root", [("ended", "t")]),
        ("agent", "a-u", [("ended", "u")]),
        ("owner", "nobody", []),
    ],
)
def test_revoking_stops_what_stood_on_it_and_no_more(kind: Any, value: str, log: list[Any]) -> None:
    """The entry first; then what ran is dead; then connections are closed, and the operator is answered."""
    house = two_tasks()
    assert house.does(admin.Revoke(kind=kind, value=value)) == admin.Done(position=5, affected=len(log), tokens=3)
    assert house.log == ["nothing begins", "Revoke", *log, "connections"]


def test_nothing_is_announced_for_what_is_revoked_for_ever() -> None:
    house = House()
    house.gone.add("t")
    with pytest.raises(RunnerError) as refused:
        house.does(TOKEN)
    assert refused.value.refused.code == "revoked"
    assert house.log == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("token", ""),
        ("token", "a b"),
        ("token", "ä"),
        ("task", "a\n"),
        ("agent", ""),
        ("owner", "*"),
        ("everything", "x"),
    ],
)
def test_a_revocation_that_can_name_nothing_is_refused_with_the_way_to_find_out(kind: Any, value: str) -> None:
    house = House()
    with pytest.raises(RunnerError) as refused:
        house.does(admin.Revoke(kind=kind, value=value))
    assert refused.value.refused.next_step
    assert house.log == []


@pytest.mark.parametrize("value", ["", "x" * 129])
def test_a_revocation_names_something(value: str) -> None:
    house = House()
    with pytest.raises(RunnerError):
        house.does(admin.Revoke(kind="task", value=value))
    with pytest.raises(RunnerError):
        house.does(admin.EndTask(task="unknown"))
    assert house.log == []
