"""Requests of calls and of the daemon itself, as gate records them: only what the ledger's order lets follow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runner.config import Limits
from runner.gate import requests as module
from runner.gate.requests import Requests
from runner.ledger import entry as entries
from runner.ledger.sequence import Sequence
from runner.model import Decision, SecretRef
from runner.stream.outgoing import Carries
from runner.wire import egress as wire
from runner.wire.recorder import StoreClose, StoreOpen, StoreWrite

OWN = "daemon:broker"


class Text:
    """Finds words: a label, a source, an issued secret, what it cannot look at."""

    def __init__(self, coding: str) -> None:
        self.seen = b""
        self.coding = coding

    def head(self, data: bytes) -> Carries:
        return self.look(b"\n" + data)

    def look(self, data: bytes) -> Carries:
        self.seen += data
        found = frozenset(each for each in ("customer", "pii.email", "secret") if each.encode() in self.seen)
        secrets = frozenset(each for each in ("key", "file", "stolen", "canary") if each.encode() in self.seen)
        return Carries(found, secrets, ("c0",) if found else (), "br" not in self.coding)


class House:
    """Gate's requests over a journal that holds entries to their order, as the recorder does."""

    def __init__(self) -> None:
        self.order = Sequence()
        self.written: list[entries.AnyEntry] = []
        self.contents: list[bytes] = []
        self.answers: list[wire.Answer] = []
        self.streams: list[StoreOpen | StoreWrite | StoreClose] = []
        self.recorder = SimpleNamespace(send=self._send)
        self.requests = Requests(self, Limits())  # type: ignore[arg-type]  # a journal's double
        plan = entries.Planned(
            sandbox="s", isolation="call", profile="net", plan=entries.Content(digest="0" * 64, size=1),
            wall_ms=1, output=1,
        )  # fmt: skip
        self._take(
            entries.Call(
                time=self.stamp(), call="c00000001", who=entries.Who(agent="a", owner="o", task="t", session="s"),
                peer=entries.PeerProcess(uid=1, pid=2), chain=("root",), leaf="l", proof="p", tool="net_run",
                decision=entries.Decided(effect="allow", reason="because"), plan=plan,
            )
        )  # fmt: skip
        context = SimpleNamespace(view=lambda *_: None)
        session = SimpleNamespace(
            facts=SimpleNamespace(original_request=""), task=SimpleNamespace(context=context),
            verified=SimpleNamespace(tools={}),
        )  # fmt: skip
        running = SimpleNamespace(call="c00000001", task="t")
        authenticated = SimpleNamespace(chain=("root",), tool="net_run")
        refs = (SecretRef(name="key", variable="KEY", destinations=("api",), places=("body",)),)
        refs += (SecretRef(name="file", variable="FILE", delivery="file"),)
        serving = SimpleNamespace(policies=None, tools={"net_run": SimpleNamespace(secrets=refs)})
        self.watched = self.requests.of(authenticated, running, session, serving, Text)  # type: ignore[arg-type]  # as much as is used
        self.watched.begin()

    async def _send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        self.streams.append(message)

    def salt(self) -> bytes:
        return b"s" * 16

    def stamp(self) -> str:
        return "2026-01-02T03:04:05.000006Z"

    def _take(self, entry: entries.AnyEntry) -> None:
        self.order.check(entry)
        self.order.apply(len(self.written), entry)
        self.written.append(entry)

    async def write(self, entry: entries.AnyEntry, *, sync: bool = False, contents: tuple[bytes, ...] = ()) -> None:
        self._take(entry)
        self.contents += contents

    async def hear(self, *messages: Any) -> None:
        for message in messages:
            self.requests.heard(message, self.answers.append)
        for account in self.requests.live.values():
            while account.pending:
                await asyncio.wait(account.pending)

    def of(self, kind: type) -> list[Any]:
        return [entry for entry in self.written if isinstance(entry, kind)]


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[House], Awaitable[None]]], House]:
    """Do this with a house in which every host but `no.test` is allowed by token and policy."""

    def decide(*asked: Any) -> Decision:
        request, carries = asked[-2:]
        if "customer" in carries.labels:
            return Decision(effect="deny", reason="a customer's", code="denied", rules=("customer-data",))
        if carries.secrets:
            return Decision(effect="deny", reason="not there", code="denied", rules=("home",))
        if request.host == "human.test":
            return Decision(effect="step_up", reason="ask", rules=("ask",))
        if request.host == "token.test":
            return Decision(effect="deny", reason="no", code="not_granted")
        if request.host == "no.test":
            return Decision(effect="deny", reason=f"not {request.path}", code="denied")
        return Decision(effect="allow", reason="out")

    monkeypatch.setattr(module, "authorize_egress", decide)

    def carry(work: Callable[[House], Awaitable[None]]) -> House:
        made: list[House] = []

        async def run() -> None:
            made.append(House())
            await asyncio.wait_for(work(made[0]), 20)

        asyncio.run(run())
        return made[0]

    return carry


def ask(request: int = 1, call: str = "c00000001", number: int = -1, **more: Any) -> wire.Ask:
    return wire.Ask(number=number, call=call, request=asked(request, **more))


def asked(request: int = 1, **more: Any) -> wire.Requested:
    fields = {"protocol": "https", "host": "api.test", "port": 443, "visibility": "full", "path": "/a", **more}
    return wire.Requested(id=request, **fields)


def ended(request: int = 1, call: str = "c00000001", **more: Any) -> wire.Ended:
    return wire.Ended(call=call, id=request, **more)


def keep(data: bytes, request: int = 1, call: str = "c00000001") -> wire.Keep:
    return wire.Keep(number=-9, call=call, id=request, data=data)


def leaked() -> wire.Leaked:
    return wire.Leaked(call="c00000001", id=1, name="key", where="body")


def test_a_request_is_recorded_answered_and_ended(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(ask(), ended(status=200, up=3, down=4, secrets=("key",)))
        sums, used = await house.watched.end(None)
        assert (sums.requests, sums.up, sums.down, used) == (1, 3, 4, {"key": 1})

    house = carried(work)
    assert [type(entry) for entry in house.written[1:]] == [entries.Egress, entries.EgressEnd]
    assert [answer.allowed for answer in house.answers] == [True]


def test_sums_of_what_egress_tells_are_what_an_entry_holds(carried: Any) -> None:
    most = (1 << 53) - 2

    async def work(house: House) -> None:
        await house.hear(ask(1), ask(2, number=-2), ended(1, up=most, down=5), ended(2, up=most, down=6))
        sums, _ = await house.watched.end(None)
        assert (sums.requests, sums.up, sums.down) == (2, most + 1, 11)
        entry = entries.Outcome(time=house.stamp(), call="c00000001", task="t", outcome="killed", network=sums)
        assert entries.decode(entries.encode(entry)) == entry

    carried(work)


def test_what_was_not_allowed_or_is_over_has_no_end(carried: Any) -> None:
    """Egress may be wrong, or hostile: the daemon must not end over what it says."""

    async def work(house: House) -> None:
        await house.hear(ask(1, host="no.test"), ended(1), ended(2), ask(3), ended(3), ended(3))
        await house.hear(ask(4), ask(4, number=-5), ended(4))
        await house.watched.end(None)
        await house.hear(
            ask(5, number=-6), ended(5), keep(b"x"), wire.Leaked(call="c00000001", id=1, name="k", where="w")
        )

    house = carried(work)
    assert [each.request for each in house.of(entries.EgressEnd)] == [3, 4]
    assert [each.request for each in house.of(entries.Egress)] == [1, 3, 4]
    assert [answer.allowed for answer in house.answers] == [False, True, True, False, False, False]
    assert house.of(entries.Alert) == []


def test_an_end_that_overtakes_nothing(carried: Any) -> None:
    """The call ended while gate was asked: the request's entry is first all the same."""

    async def work(house: House) -> None:
        house.requests.heard(ask(), house.answers.append)
        house.requests.heard(ended(code="interrupted"), house.answers.append)
        await house.hear()

    house = carried(work)
    assert [type(entry) for entry in house.written[1:]] == [entries.Egress, entries.EgressEnd]


def test_the_daemon_s_own_dials_are_recorded_and_let_out(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(ask(1, OWN), ended(1, OWN, address="198.51.100.1"), ask(1, OWN, host="no.test"))
        await house.requests.lost()
        await house.hear(ask(1, OWN))  # egress began anew, and counts from 1
        await house.hear(wire.Refused(call=OWN, request=asked(2), code="egress", part="daemon", reason="no"))
        await house.hear(ask(1, "daemon:other", number=-3), keep(b"a token", call=OWN))

    house = carried(work)
    assert {(each.call, each.task) for each in house.of(entries.Egress)} == {(OWN, "")}
    assert [each.decision.effect for each in house.of(entries.Egress)] == ["allow", "allow", "allow", "deny"]
    assert [answer.allowed for answer in house.answers] == [True, True, True, False, False]
    assert [each.code for each in house.of(entries.EgressEnd)] == ["", "interrupted"]
    assert house.contents == []  # what answers it may be a credential


def test_a_kept_response_is_named_in_the_end(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(ask(1), keep(b"HTTP/1.1 200 OK\r\n\r\n"), keep(b"body"), ended(1, whole=True))
        await house.hear(ask(2), keep(b"half", 2), ended(2, code="upstream"))
        await house.hear(ask(3), ended(3, unkept="it is compressed"), keep(b"late", 3))
        await house.hear(ask(4), keep(bytes(50_000), 4))  # egress ended before it was over
        await house.watched.end(None)

    house = carried(work)
    first, second, third, cut = house.of(entries.EgressEnd)
    assert (cut.code, cut.response) == ("interrupted", None)
    assert house.contents == [b"s" * 16 + b"HTTP/1.1 200 OK\r\n\r\nbody"]
    assert first.response.size == len(b"HTTP/1.1 200 OK\r\n\r\nbody")
    assert (second.response, second.unkept) == (None, "it was cut")
    assert (third.response, third.unkept) == (None, "it is compressed")
    assert [type(message) for message in house.streams] == [StoreOpen, StoreWrite, StoreClose]
    assert house.streams[-1].drop  # type: ignore[union-attr]  # the line above


def test_a_path_under_a_digest_is_nowhere_in_the_entry(carried: Any) -> None:
    secret = "/accounts/4711"

    async def work(house: House) -> None:
        await house.hear(ask(1, path=secret, record="digest"), ask(2, path=secret, record="digest", host="no.test"))
        refused = asked(3, path=secret, record="digest")
        missing = f'paths = ["{secret}"]'
        await house.hear(
            wire.Refused(
                call="c00000001", request=refused, code="egress", part="tool x", reason=f"no {secret}", missing=missing
            )
        )
        await house.hear(ask(4, path=secret))

    house = carried(work)
    *hidden, plain = house.of(entries.Egress)
    for each in hidden:
        assert secret.encode() not in entries.encode(each)
        assert each.path_content.size == len(secret)
    assert house.contents == [b"s" * 16 + secret.encode()] * 3
    assert plain.path == secret  # its twin


def test_the_part_that_decided_is_named(carried: Any) -> None:
    async def work(house: House) -> None:
        for number, host in enumerate(("api.test", "no.test", "human.test", "token.test"), 1):
            await house.hear(ask(number, host=host))

    assert [each.part for each in carried(work).of(entries.Egress)] == ["", "policy", "policy", "token"]


def test_alerts_are_counted(carried: Any) -> None:
    async def work(house: House) -> None:
        assert house.requests.alerts == 0
        await house.hear(ask(1), leaked())

    house = carried(work)
    assert house.requests.alerts == 1
    assert house.requests.newest.endswith("call c00000001")
    (alert,) = house.of(entries.Alert)
    assert msgspec.to_builtins(alert)["what"] == "credential key"


# --- what requests carry ---------------------------------------------------------------------------------------


def shown(body: bytes = b"", *, head: bytes = b"POST api.test/a\nhost: api.test", **more: Any) -> wire.Ask:
    last = more.pop("last", True)
    return wire.Ask(number=-1, call="c00000001", request=asked(**more), head=head, body=body, last=last)


def look(data: bytes, request: int = 1, *, last: bool = True) -> wire.Look:
    return wire.Look(number=-2, call="c00000001", id=request, data=data, last=last)


def test_what_a_request_carries_decides_and_is_recorded(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(
            shown(b"a customer"), shown(b"nobody", request=2), shown(b"x", head=b"GET x pii.email", request=3)
        )

    house = carried(work)
    assert [each.allowed for each in house.answers] == [False, True, True]
    one, two, three = house.of(entries.Egress)
    assert (one.decision.rules, one.carries, one.copies) == (("customer-data",), ("customer",), ("c0",))
    assert (two.carries, two.copies, two.unseen) == ((), (), False)
    assert three.carries == ("pii", "pii.email")


def test_what_follows_is_decided_again_and_ends_it(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(shown(b"nobody", last=False), look(b"more", last=False), look(b"a customer"), look(b"on"))
        await house.hear(ended(code="denied", reason="a customer's"))

    house = carried(work)
    assert [each.allowed for each in house.answers] == [True, True, False, False]
    assert house.answers[2].rule == "customer-data"
    (request,), (end,) = house.of(entries.Egress), house.of(entries.EgressEnd)
    assert request.carries == ()
    assert (end.rules, end.carries, end.copies) == (("customer-data",), ("customer",), ("c0",))


def test_nothing_more_is_taken_of_what_was_not_allowed_or_shown_whole(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(
            look(b"x"), shown(b"nobody"), look(b"x"), shown(b"a customer", request=2, last=False), look(b"x", 2)
        )

    assert [each.allowed for each in carried(work).answers] == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("body", "rules", "misplaced"),
    [
        (b"secret key", ("profile p/any", "tool net_run/api"), ()),
        (b"secret key", ("profile p/any", "tool net_run/other"), ("key",)),
        (b"secret file", ("profile p/any", "tool net_run/other"), ()),
        (b"secret file", ("profile p/any",), ("file",)),
        (b"secret stolen", ("profile p/any", "tool net_run/api"), ("stolen",)),
    ],
)
def test_a_credential_belongs_where_its_tool_binds_it(
    carried: Any, body: bytes, rules: tuple[str, ...], misplaced: tuple[str, ...]
) -> None:
    async def work(house: House) -> None:
        await house.hear(shown(body, rules=rules))

    house = carried(work)
    (request,) = house.of(entries.Egress)
    assert (request.misplaced, house.answers[0].allowed) == (misplaced, not misplaced)
    assert request.carries == (("secret",) if misplaced else ())


def test_the_coding_of_a_body_is_its_own_field(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(
            shown(b"x", head=b"POST x\ncontent-encoding: br"), shown(b"x", head=b"POST x\nx-note: br", request=2)
        )

    assert [each.unseen for each in carried(work).of(entries.Egress)] == [True, False]


def test_a_canary_in_any_form_is_an_alarm_once(carried: Any) -> None:
    async def work(house: House) -> None:
        await house.hear(shown(b"nobody", last=False), look(b"canary", last=False), look(b"canary again"))
        await house.hear(shown(b"x", head=b"GET x?canary", request=2))

    found = carried(work).of(entries.Alert)
    assert [(each.what, each.where) for each in found] == [("credential canary", "body"), ("credential canary", "head")]
