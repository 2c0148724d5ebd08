"""Raw output is opened by an entry that is on disk before a byte is handed over, to whoever that entry names."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from runner.admin.opening import Opening
from runner.admin.roster import NEEDS, Asker, Operator, roster
from runner.config import Config, Role
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.wire import admin
from runner.wire.recorder import FoundRaw

NOW = "2026-01-01T00:00:00.000000Z"
DIGEST = hashlib.sha256(b"kept").hexdigest()
RAW = entries.Raw(
    content=entries.Content(digest=DIGEST, size=84), segments=1, kept="held", recipients=("r1", "r2"), stdout=4, lost=3
)
ANN = Asker(operator=Operator(name="ann", roles=frozenset(("forensics",))), uid=7)
BOB = Asker(operator=Operator(name="bob", roles=frozenset(("forensics",))), uid=8)


class House:
    """The recorder, and the journal before it: `log` is the order in which things happened."""

    def __init__(self, raw: entries.Raw | None = RAW) -> None:
        self.log: list[Any] = []
        self.raw = raw
        self.gone: set[str] = set()
        journal: Any = SimpleNamespace(stamp=lambda: NOW, write=self._write, recorder=self)
        self.opening = Opening(journal)

    async def _write(self, entry: Any, *, sync: bool) -> Any:
        assert sync  # on disk before anything is handed over
        assert entries.decode(entries.encode(entry)) == entry
        self.log.append(entry)
        return SimpleNamespace(position=40 + len(self.log))

    async def find_raw(self, call: str) -> FoundRaw:
        if call != "c1":
            return FoundRaw(number=1, position=-1)
        outcome = entries.Outcome(time=NOW, call="c1", task="t", outcome="exited", raw=self.raw)
        return FoundRaw(number=1, position=9, outcome=entries.encode(outcome))

    async def pruned(self, digests: tuple[str, ...]) -> set[str]:
        return self.gone & {*digests}

    async def read_raw(self, digest: str, offset: int) -> bytes:
        self.log.append(("read", digest, offset))
        return b"kept"[offset:]

    def does(self, message: Any, asker: Asker = ANN) -> Any:
        return asyncio.run(self.opening.carry_out(message, asker))

    def refused(self, message: Any, asker: Asker = ANN) -> str:
        with pytest.raises(RunnerError) as caught:
            self.does(message, asker)
        return caught.value.refused.code


def test_the_entry_comes_first_and_names_who_which_and_why() -> None:
    house = House()
    assert house.does(admin.OpenRaw(call="c1", why="case 7")) == admin.RawOpened(
        position=41, outcome=9, digest=DIGEST, size=100, recipients=("r1", "r2"), stdout=4, lost=3
    )
    assert house.does(admin.ReadRaw(digest=DIGEST, offset=1)) == admin.RawPiece(data=b"ept")
    entry = entries.RawOpen(
        time=NOW, call="c1", raw=DIGEST, why="case 7", by=7, operator=entries.Operator(name="ann", uid=7)
    )
    assert house.log == [entry, ("read", DIGEST, 1)]


def test_nobody_reads_what_another_opened() -> None:
    house = House()
    assert house.refused(admin.ReadRaw(digest=DIGEST)) == "arguments"
    house.does(admin.OpenRaw(call="c1", why="case 7"))
    assert house.refused(admin.ReadRaw(digest=DIGEST), BOB) == "arguments"
    assert house.refused(admin.ReadRaw(digest="0" * 64)) == "arguments"
    assert house.refused(admin.ReadRaw(digest=DIGEST, offset=-1)) == "arguments"
    assert [type(each) for each in house.log] == [entries.RawOpen]
    house.does(admin.OpenRaw(call="c1", why="case 7"), BOB)
    assert house.does(admin.ReadRaw(digest=DIGEST), BOB).data == b"kept"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (admin.OpenRaw(call="c1", why=""), "arguments"),
        (admin.OpenRaw(call="c1", why="x" * 501), "arguments"),
        (admin.OpenRaw(call="", why="x"), "arguments"),
        (admin.OpenRaw(call='c1"', why="x"), "arguments"),
        (admin.OpenRaw(call="c2", why="x"), "unknown_call"),
    ],
)
def test_what_cannot_be_opened_leaves_no_entry(message: admin.OpenRaw, code: str) -> None:
    house = House()
    assert house.refused(message) == code
    assert house.log == []


def test_what_was_not_kept_or_is_pruned_is_said_to_be() -> None:
    assert House(raw=None).refused(admin.OpenRaw(call="c1", why="x")) == "unknown_call"
    house = House()
    house.gone = {DIGEST}
    assert house.refused(admin.OpenRaw(call="c1", why="x")) == "unknown_call"
    assert house.log == []
    house.gone = {"0" * 64}
    assert house.does(admin.OpenRaw(call="c1", why="x")).position == 41


def test_only_forensics_may() -> None:
    found = roster(Config())
    roles: tuple[Role, ...] = ("policy-author", "approver", "containment", "secrets", "auditor")
    for message in (admin.OpenRaw(call="c1", why="x"), admin.ReadRaw(digest=DIGEST)):
        assert NEEDS[type(message)] == ("forensics",)
        with pytest.raises(RunnerError) as caught:
            found.check(Asker(operator=Operator(name="eve", roles=frozenset(roles)), uid=9), message)
        assert caught.value.refused.code == "denied"
        found.check(ANN, message)
