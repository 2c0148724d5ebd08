"""A second person: another name, with the role, in time, and for the very same thing; everything else is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.admin.reload import ACT, Held, Reloads, Request, Standing, Swap, standing
from runner.admin.roster import ACTS, Asker, Roster, roster
from runner.admin.second import SecondPerson
from runner.config import Config, Escrow, Limits, Operator, Policy, Users
from runner.errors import RunnerError, refusal
from runner.ledger import entry as entries
from runner.recorder.readback import STATE_KINDS
from runner.state.store import Store
from runner.wire.parent import Bundle, Reread

AUTHOR: Any = ("policy-author",)
PEOPLE = (
    Operator(name="ann", uid=0, roles=AUTHOR),
    Operator(name="bob", uid=1, roles=AUTHOR),
    Operator(name="eve", uid=2, roles=("auditor",)),
)


def people(*operators: Operator) -> Roster:
    return roster(Config(operators=operators, users=Users(operators_group="g")))


class House:
    """Real state and rules; the clock and the ledger's positions are the test's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.roster = people(*PEOPLE)
        self.written: list[entries.AnyEntry] = []
        self.open()

    def open(self) -> None:
        self.store = Store(self.path)
        journal: Any = SimpleNamespace(stamp=lambda: f"2026-01-01T00:00:00.{len(self.written):06d}Z", write=self._write)
        limits = Limits(pending_act_s=60, pending_acts=3)
        self.second = SecondPerson(self.store, journal, limits, lambda: self.now, lambda: self.roster)

    async def _write(self, entry: entries.AnyEntry, *, sync: bool = False) -> Any:
        assert sync
        entries.decode(entries.encode(entry))
        self.store.apply(len(self.written), entry)
        self.written.append(entry)
        return SimpleNamespace(position=len(self.written) - 1)

    def who(self, uid: int) -> Asker:
        found = self.roster.asker(uid, "")
        assert found is not None
        return found

    def waits(self, subject: str = "s1", uid: int = 0) -> entries.Pending:
        work = self.second.wait(ACT, subject, self.who(uid), before="b", after="a", why="w", changes=["policies/x"])
        return asyncio.run(work)[0]

    def refused(self, id_: str, uid: int) -> str:
        with pytest.raises(RunnerError) as refused:
            self.second.confirmed(id_, self.who(uid))
        return refused.value.refused.line()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "state.db")
    yield made
    made.store.close()


def test_another_with_the_role_confirms(house: House) -> None:
    pending = house.waits()
    assert house.second.waiting() == [pending]
    assert house.second.who_can(pending) == ("bob",)
    assert house.second.confirmed(pending.id, house.who(1)) == pending


def test_who_may_not(house: House) -> None:
    pending = house.waits()
    assert "you are ann, who asked for it" in house.refused(pending.id, 0)
    assert "to bob" in house.refused(pending.id, 0)
    assert "role policy-author" in house.refused(pending.id, 2)
    assert "nothing waits as" in house.refused("none", 1)
    house.roster = people(Operator(name="ann", uid=0, roles=("auditor",)), *PEOPLE[1:])
    assert "may not any more" in house.refused(pending.id, 1)


def test_it_survives_a_restart_and_expires(house: House) -> None:
    pending = house.waits()
    house.store.close()
    house.open()
    assert house.second.confirmed(pending.id, house.who(1)) == pending
    house.now += 60
    assert "expired" in house.refused(pending.id, 1)
    assert house.second.waiting() == []
    house.store.forget("2020", int(house.now) + 1)
    assert house.store.pending() == []


def test_what_was_carried_out_waits_no_longer(house: House) -> None:
    pending = house.waits()
    request = Request(operator=house.who(1).entry, pending=pending)
    done = request.entry(time="t", before="b", after="a", policy="p", anchors=())
    assert (done.operator, done.confirmed, done.pending) == (house.who(0).entry, house.who(1).entry, pending.id)
    house.store.apply(1, done)
    assert "nothing waits as" in house.refused(pending.id, 1)
    alone = Request(operator=house.who(0).entry, why="w").entry(time="t", before="b", after="a", policy="p", anchors=())
    assert (alone.operator, alone.confirmed, alone.pending, alone.why) == (house.who(0).entry, None, "", "w")


def test_state_follows_what_waits_after_a_crash() -> None:
    """The recorder hands out only the kinds that state follows: both must be among them."""
    assert {"pending", "reload", "withdraw", "reopen"} <= STATE_KINDS


def test_the_same_waits_once_and_not_too_much_waits(house: House) -> None:
    first = house.waits()
    with pytest.raises(RunnerError) as refused:
        house.waits(uid=1)
    assert refused.value.refused.code == "conflict"
    assert first.id in refused.value.refused.next_step
    house.waits("s2")
    house.waits("s3")
    with pytest.raises(RunnerError) as refused:
        house.waits("s4")
    assert refused.value.refused.code == "busy"
    house.now += 60
    house.waits("s4")


def test_an_act_of_another_version_is_nobodys(house: House) -> None:
    pending = msgspec.structs.replace(house.waits(), id="other", act="launch")
    house.store.apply(1, pending)
    assert "knows no act" in house.refused("other", 1)


def test_two_persons_need_two() -> None:
    def found(operators: tuple[Operator, ...], *acts: Any) -> Roster:
        return roster(Config(operators=operators, two_person=acts, users=Users(operators_group="g")))

    both = tuple(msgspec.structs.replace(each, roles=("policy-author", "containment")) for each in PEOPLE[:2])
    found(both, *ACTS)
    found(PEOPLE[:2], ACT)
    found(both, "release")
    for operators, act in (
        ((), ACT), (PEOPLE[:1], ACT), ((PEOPLE[0], PEOPLE[2]), ACT), (PEOPLE[:2], "release"),
        # Two who contain, and one alone who could say that it takes one.
        ((both[0], msgspec.structs.replace(PEOPLE[1], roles=("containment",))), "release"),
    ):  # fmt: skip
        with pytest.raises(RunnerError) as refused:
            found(operators, act)
        assert refused.value.refused.field == "two_person"


def test_a_new_name_for_the_same_uid_or_key_is_no_second_person(house: House) -> None:
    """A reload, or a start with another file, may call ann something else: she asked all the same."""
    pending = house.waits()
    house.roster = people(
        msgspec.structs.replace(PEOPLE[0], name="anna"), PEOPLE[1], Operator(name="ann", uid=3, roles=AUTHOR)
    )
    assert "you are anna, who asked for it" in house.refused(pending.id, 0)
    assert "you are ann, who asked for it" in house.refused(pending.id, 3)  # and whoever took her name is not another
    assert house.second.who_can(pending) == ("bob",)
    assert house.second.confirmed(pending.id, house.who(1)) == pending


def test_withdrawn_by_who_asked_or_by_who_could_have(house: House) -> None:
    first, second, third = house.waits(), house.waits("s2"), house.waits("s3")
    with pytest.raises(RunnerError) as refused:
        asyncio.run(house.second.withdraw(first.id, house.who(2), "no"))
    assert "may not `withdraw activate-policy`" in refused.value.refused.reason
    assert house.second.waiting() == [first, second, third]
    asyncio.run(house.second.withdraw(first.id, house.who(0), "mine"))
    asyncio.run(house.second.withdraw(second.id, house.who(1), "no"))
    house.roster = people(msgspec.structs.replace(PEOPLE[0], roles=("auditor",)), PEOPLE[1])
    asyncio.run(house.second.withdraw(third.id, house.who(0), "it was mine, though I could not ask for it any more"))
    assert house.second.waiting() == []
    told = [each for each in house.written if isinstance(each, entries.Withdraw)]
    assert [(each.id, each.operator.name) for each in told] == [
        (first.id, "ann"),
        (second.id, "bob"),
        (third.id, "ann"),
    ]
    assert "nothing waits" in house.refused(first.id, 1)
    house.store.close()
    house.open()
    assert house.second.waiting() == []
    house.store.reset()
    house.store.follow([(i, entries.encode(each)) for i, each in enumerate(house.written)], len(house.written))
    assert house.second.waiting() == []


# --- reloads ------------------------------------------------------------------------------------------------

TWO: Any = (ACT,)
OLD = Standing(catalogue="c1", policy="p1", authority="a1", files={"policies/x": "1"}, two_person=TWO)
NEW = msgspec.structs.replace(OLD, catalogue="c2", policy="p2", files={"policies/x": "2"})
ANN = entries.Operator(name="ann", uid=0)


def pending_for(what: Standing) -> entries.Pending:
    return entries.Pending(
        time="t",
        id="i",
        act=ACT,
        subject=what.subject,
        before="c1",
        after=what.catalogue,
        by=0,
        operator=ANN,
        expires=9,
    )


class Parent:
    """Offers what the test says, and answers as parent does."""

    def __init__(self, offered: Standing, *, swap: bool = True) -> None:
        self.offered = offered
        self.swap = swap
        self.reloads = Reloads(self._posted)
        self.reloads.in_force = OLD

    def _posted(self, message: Reread) -> None:
        asyncio.get_running_loop().call_soon(self._serve, message.asked)

    def _serve(self, asked: int) -> None:
        try:
            self.reloads.judge(asked, self.offered, {"d": b"content"})
        except RunnerError as error:
            self.reloads.answered(asked, error.refused)
            return
        if not self.swap:
            self.reloads.answered(asked, refusal("policy", "engine says no"))
            return
        self.reloads.swap = asyncio.get_running_loop().create_future()
        self.reloads.swap.set_result(Swap(7))
        self.reloads.answered(asked, None)

    def ask(self, request: Request) -> Swap | Held:
        async def work() -> Swap | Held:
            return await self.reloads.ask(request)

        return asyncio.run(work())


def test_what_changes_the_policy_waits_and_what_does_not_is_done() -> None:
    held = Parent(NEW).ask(Request(operator=ANN))
    assert isinstance(held, Held)
    assert (held.offered, held.before, held.contents) == (NEW, OLD, (b"content",))
    assert NEW.changes(OLD) == ["policies/x"]
    assert Parent(msgspec.structs.replace(OLD, catalogue="c2")).ask(Request(operator=ANN)) == Swap(7)
    other = msgspec.structs.replace(OLD, authority="a2", rules="r2", keys={"i.pub": "2"}, anchors=("t2",))
    held = Parent(other).ask(Request(operator=ANN))
    assert isinstance(held, Held)
    assert held.offered.changes(msgspec.structs.replace(OLD, keys={"i.pub": "1"}, anchors=("t1",))) == [
        "runner.toml: operators, two_person, issuers, who signs policies, or who opens raw output",
        "i.pub, a key file",
        "an issuer's key that it retires: t1",
        "an issuer's key that it adds: t2",
    ]


def test_what_is_in_force_says_whether_it_takes_two() -> None:
    assert Parent(msgspec.structs.replace(NEW, two_person=())).reloads.in_force == OLD
    assert isinstance(Parent(msgspec.structs.replace(NEW, two_person=())).ask(Request(operator=ANN)), Held)
    parent = Parent(NEW)
    parent.reloads.in_force = msgspec.structs.replace(OLD, two_person=())
    assert parent.ask(Request(operator=ANN)) == Swap(7)
    # Where only releases take two, the policy is one operator's; who the two are, and that it takes two, is not.
    parent.reloads.in_force = msgspec.structs.replace(OLD, two_person=("release",))
    assert parent.ask(Request(operator=ANN)) == Swap(7)
    parent.offered = msgspec.structs.replace(OLD, authority="a2")
    assert isinstance(parent.ask(Request(operator=ANN)), Held)
    parent.offered = NEW
    parent.reloads.in_force = None  # the daemon starts
    parent.reloads.judge(0, NEW, {})


def test_a_signal_is_nobodys_word() -> None:
    reloads = Parent(NEW).reloads
    with pytest.raises(RunnerError) as refused:
        reloads.judge(0, NEW, {})
    assert "takes two operators" in refused.value.refused.reason
    assert "runner admin reload" in refused.value.refused.next_step
    reloads.judge(0, msgspec.structs.replace(OLD, catalogue="c2"), {})
    assert reloads.request(0) is None


def test_a_confirmation_is_for_the_very_same() -> None:
    bob = entries.Operator(name="bob", uid=1)
    assert Parent(NEW).ask(Request(operator=bob, pending=pending_for(NEW))) == Swap(7)
    for offered in (OLD, *(msgspec.structs.replace(NEW, **{name: "x"}) for name in ("catalogue", "authority"))):
        with pytest.raises(RunnerError) as refused:
            Parent(offered).ask(Request(operator=bob, pending=pending_for(NEW)))
        assert refused.value.refused.code == "conflict"
        assert "altered" in refused.value.refused.reason
    parent = Parent(NEW)
    parent.reloads.in_force = msgspec.structs.replace(OLD, catalogue="c9")
    with pytest.raises(RunnerError) as refused:
        parent.ask(Request(operator=bob, pending=pending_for(NEW)))
    assert "another catalogue has come into force" in refused.value.refused.reason


def test_a_refusal_of_the_files_is_the_operators_to_read() -> None:
    parent = Parent(OLD, swap=False)
    with pytest.raises(RunnerError) as refused:
        parent.ask(Request(operator=ANN))
    assert refused.value.refused.reason == "engine says no"
    parent.swap = True
    assert parent.ask(Request(operator=ANN)) == Swap(7)  # and the next one is served


def bundle(**change: Any) -> Bundle:
    whole: dict[str, Any] = {
        "config": b"", "config_path": "c", "profiles": {}, "tools": {}, "policies": {"x": b"1"}, "digest": "c1",
        "keys": {"i.pub": b"k"},
    }  # fmt: skip
    return Bundle(**{**whole, **change})


FIELDS = st.sampled_from(["uid", "name", "two_person", "signed", "escrow", "none"])


@given(st.binary(max_size=8), st.binary(max_size=8), FIELDS)
def test_authority_is_who_decides_and_every_issuers_key(key: bytes, policy: bytes, field: str) -> None:
    config = Config(operators=PEOPLE, two_person=TWO)
    base = standing(bundle(), config, "p")
    other = config
    if field == "two_person":
        other = msgspec.structs.replace(config, two_person=())
    elif field == "signed":
        other = msgspec.structs.replace(config, policy=Policy(require_signature=True))
    elif field == "escrow":  # one operator alone does not become a recipient
        other = msgspec.structs.replace(config, escrow=Escrow(recipients=("age1",)))
    elif field != "none":
        changed = msgspec.structs.replace(PEOPLE[0], **{field: 77 if field == "uid" else "zoe"})
        other = msgspec.structs.replace(config, operators=(changed, *PEOPLE[1:]))
    made = standing(bundle(keys={"i.pub": key}, policies={"x": policy}), other, "p")
    assert (made.authority == base.authority) == (key == b"k" and field == "none")
    assert (made.files == base.files) == (policy == b"1")
    assert (made.subject == base.subject) == (made.authority == base.authority)
