"""Messages of the broker: no repr shows a value, every answer finds its caller, a refusal is raised."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from runner.errors import RunnerError, refusal
from runner.wire import broker as wire

CANARY = b"canary-on-the-wire"
LEASE = wire.Lease(
    id="l-1", name="api", accessor="a-1", fingerprint="f", value=CANARY, fields={"password": CANARY}, ttl_ms=5
)


class Channel:
    """Answers with what it was told to."""

    def __init__(self, *answers: Any) -> None:
        self.sent: list[Any] = []
        self._answers = [*answers]

    def number(self) -> int:
        return len(self.sent) + 1

    async def request(self, message: Any) -> tuple[Any, None]:
        self.sent.append(message)
        return self._answers.pop(0), None


def test_no_repr_shows_a_value() -> None:
    for message in (
        LEASE,
        wire.Issued(number=1, leases=(LEASE,)),
        wire.Store(number=1, name="api", value=CANARY, expect=0),
        wire.Store(number=1, name="api", fields={"password": CANARY}, expect=0),
    ):
        assert CANARY.decode() not in repr(message)
        assert CANARY.decode() not in f"{[message]}"
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        assert again == message  # it travels all the same


def test_the_caller_asks_and_is_answered() -> None:
    view = wire.SecretView(name="api", version=1, created="c", rotated="r")
    channel = Channel(
        wire.Issued(number=1, leases=(LEASE,)),
        wire.Renewed(number=2, ttl_ms={"l-1": 3}),
        *(wire.Revoked(number=number, leases=1) for number in (3, 4, 5)),
        wire.Listed(number=6, secrets=(view,)),
        wire.Stored(number=7, before=0, after=1),
        wire.Stored(number=8, before=1, after=0),
    )
    caller = wire.BrokerCaller(channel)

    async def run() -> list[Any]:
        return [
            await caller.issue(call="c", task="t", tool="x", names=("api",), ttl_ms=9, read=True),
            await caller.renew("c", 9),
            await caller.revoke_call("c"),
            await caller.revoke_task("t"),
            await caller.revoke_all(),
            await caller.secrets(),
            await caller.store("api", CANARY, {}, 0),
            await caller.remove("api", 1),
        ]

    leases, ttl, *revoked, views, version, nothing = asyncio.run(run())
    assert leases == (LEASE,)
    assert (ttl, views, version, nothing) == ({"l-1": 3}, (view,), 1, None)
    assert [each.leases for each in revoked] == [1, 1, 1]
    assert [(each.kind, each.value) for each in channel.sent[2:5]] == [("call", "c"), ("task", "t"), ("all", "")]
    assert [each.number for each in channel.sent] == [*range(1, 9)]


def test_a_refusal_is_raised() -> None:
    caller = wire.BrokerCaller(Channel(wire.Failed(number=1, refusal=refusal("unavailable", "it is down"))))
    with pytest.raises(RunnerError) as caught:
        asyncio.run(caller.secrets())
    assert caught.value.refused.reason == "it is down"
