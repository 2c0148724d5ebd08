"""Operators' words are checked for their form, and each act is an entry before it is answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runner.admin.operations import Operations
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.wire import admin

TOKEN = admin.Announce(
    jti="root", digest="a" * 64, issuer="i", agent="a", owner="o", task="t", session="s", profile="p",
    tools=("shell_run",), issued=10, expires=2000,
)  # fmt: skip


class House:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.known: dict[str, str] = {}
        self.running: dict[str, Any] = {}
        self.live: dict[str, Any] = {}
        state: Any = SimpleNamespace(
            position=1, announced=self.known.get, task=lambda task: None, tasks=lambda ended: []
        )
        parts: Any = SimpleNamespace(
            serving=SimpleNamespace(task_profiles={"p": None}),
            clock=SimpleNamespace(now=lambda: 1000.0),
            journal=SimpleNamespace(stamp=lambda: "now", write=self._write),
            calls=SimpleNamespace(running=self.running, of_task=lambda task: []),
            tasks=SimpleNamespace(live=self.live, end=self._end),
        )
        authority: Any = SimpleNamespace(revoke=lambda target, value: self.log.append(("revoked", target, value)))
        status: Any = None
        self.operations = Operations(
            parts, state, authority, status, lambda: self.log.append("connections"), self._read
        )

    async def _read(self, task: str) -> bytes:
        return f"lines of {task}".encode()

    async def _write(self, entry: Any, *, sync: bool = False) -> Any:
        assert sync
        self.log.append(type(entry).__name__)
        entries.decode(entries.encode(entry))  # the recorder would take it
        return SimpleNamespace(position=5)

    async def _end(self, task: str, reason: str, *, by: int) -> int:
        self.log.append(("ended", task))
        return 1

    def does(self, message: Any) -> Any:
        return asyncio.run(self.operations.carry_out(message, 0))


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


def test_revoking_a_derived_token_kills_its_calls_and_no_others() -> None:
    house = House()
    cancelled = []
    for call, chain in (("c1", ("root", "leaf")), ("c2", ("root",))):
        house.running[call] = SimpleNamespace(chain=chain, cancel=lambda kind, why, call=call: cancelled.append(call))
    principal = SimpleNamespace(agent="a", owner="o")
    house.live["t"] = SimpleNamespace(id="t", token="root", principal=principal)
    assert house.does(admin.Revoke(kind="token", value="leaf")) == admin.Done(position=5, affected=1)
    assert cancelled == ["c1"]
    assert house.log == ["Revoke", ("revoked", "token", "leaf"), "connections"]
    house.log.clear()
    assert house.does(admin.Revoke(kind="token", value="root")).affected == 1
    assert ("ended", "t") in house.log


@pytest.mark.parametrize("value", ["", "x" * 129])
def test_a_revocation_names_something(value: str) -> None:
    house = House()
    with pytest.raises(RunnerError):
        house.does(admin.Revoke(kind="task", value=value))
    with pytest.raises(RunnerError):
        house.does(admin.EndTask(task="unknown"))
    assert house.log == []
