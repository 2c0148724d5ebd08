"""A lease beside parts that end, hang, or let leases expire: the call is sealed, and nothing of it goes on."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.model import EgressRule, Manifest, SecretRef
from runner.sandbox.connection import Sandbox
from runner.sandbox.lease import CANARY, Leases, NetworkLease
from runner.stream.secrets import MAX_VALUES, Secrets
from runner.wire.broker import Lease as Issued
from runner.wire.egress import Closed

MANIFEST = Manifest(
    id="tool",
    description="",
    consequence="high",
    profile="network",
    kind="argv",
    digest="d",
    code_digest="",
    parameters={},
    egress=(EgressRule(name="api", host="api.test", ports=(443,), inspect=True),),
    secrets=(SecretRef(name="key", variable="KEY", destinations=("api",), places=("basic",)),),
)
PROFILE: Any = SimpleNamespace(name="net", egress=MANIFEST.egress, delivery=("inject",))


class Parts:
    """Engine, egress and broker as gate sees them, and what became of the call."""

    def __init__(self, ttl_ms: int = 60_000) -> None:
        self.ttl_ms = ttl_ms
        self.renewals: list[int] = []
        self.said: list[str] = []
        self.hung: set[str] = set()
        self.go = asyncio.Event()
        self.broken: set[str] = set()
        self.abandoned: list[str] = []
        self.killed: list[str] = []
        self.ended: Closed | None = None
        self.secrets = Secrets()

    async def _does(self, what: str) -> None:
        self.said.append(what)
        if what in self.broken:
            raise refuse("unavailable", "a part of the daemon has ended")
        if what in self.hung:
            await self.go.wait()

    async def listen(self, sandbox: str, port: int) -> int:
        await self._does("listen")
        return os.open("/dev/null", os.O_RDONLY)

    async def open(self, listener: int, **given: Any) -> None:
        os.close(listener)
        (self.injection,) = given["injections"]
        await self._does("open")

    async def close(self, call: str) -> Closed:
        await self._does("close")
        return Closed(number=1, requests=3, refused=2, up=10, down=20)

    async def trust(self, sandbox: str) -> bytes:
        await self._does("trust")
        return b"pem"

    def forget(self, sandbox: str) -> None:
        self.said.append(f"forget {sandbox}")

    async def issue(self, **asked: Any) -> tuple[Issued, ...]:
        await self._does("issue")
        return (Issued(id="l-1", name="key", accessor="a-1", fingerprint="f", value=b"a-value-1", ttl_ms=self.ttl_ms),)

    async def renew(self, call: str, ttl_ms: int) -> dict[str, int]:
        await self._does("renew")
        return {"l-1": self.renewals.pop(0) if self.renewals else 0}

    async def revoke_call(self, call: str) -> None:
        await self._does("revoke")

    def begin(self) -> None:
        self.said.append("begin")

    async def end(self, closed: Closed | None) -> tuple[entries.Network, dict[str, int]]:
        self.ended = closed
        return entries.Network(), {"key": 1}

    def cancel(self, kind: str, reason: str) -> None:
        self.killed.append(reason)

    def lease(self, **bounds: float) -> NetworkLease:
        every: Any = self
        self.leases = Leases(lambda: every, lambda: every, lambda: every, self.abandoned.append, **bounds)
        running: Any = SimpleNamespace(task="t", cancel=self.cancel)
        plan: Any = SimpleNamespace(call="c", tool="tool", wall_ms=30_000)
        return NetworkLease(self.leases, plan, 3128, running, MANIFEST, PROFILE, every, self.secrets)


def sandbox() -> Any:
    made: Any = SimpleNamespace(id="s", trusted_by=None)
    made.trust = lambda bundle, by: setattr(made, "trusted_by", by)
    return made


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_lease_is_opened_in_order_and_closed_in_order() -> None:
    async def run() -> None:
        parts = Parts()
        async with parts.lease() as lease:
            given = await lease.deliver(sandbox())
        assert parts.said == ["issue", "listen", "begin", "open", "trust", "close", "revoke"]
        assert given.environment["KEY"] == parts.injection.placeholder != ""
        assert given.environment[CANARY].startswith("rnr-")
        assert parts.ended is not None
        assert parts.ended.refused == 2
        assert [(each.lease, each.used) for each in lease.secrets] == [("l-1", 1)]
        assert not parts.leases.open
        assert not parts.killed

    asyncio.run(run())


def test_what_a_call_is_given_is_known_to_its_filters_before_it_can_be_given_away() -> None:
    async def run() -> None:
        parts = Parts()
        parts.hung.add("open")
        async with parts.lease() as lease:
            opening = asyncio.ensure_future(lease.deliver(sandbox()))
            await until(lambda: "open" in parts.said)
            known = dict(parts.secrets.values())
            assert known["key"] == parts.injection.value
            parts.go.set()
            given = await opening
            assert known["canary"].decode() == given.environment[CANARY]
        assert dict(parts.secrets.values()) == known, "a tool can keep what it got"

    asyncio.run(run())


def test_what_the_filters_could_not_find_is_given_to_nobody() -> None:
    async def run() -> None:
        parts = Parts()
        values = tuple(f"value-number-{number}".encode() for number in range(MAX_VALUES))
        parts.secrets.hold("other", "many", values, lasting=True)
        async with parts.lease() as lease:
            with pytest.raises(RunnerError, match="different secrets"):
                await lease.deliver(sandbox())
        assert "open" not in parts.said
        assert "revoke" in parts.said

    asyncio.run(run())


@pytest.mark.parametrize("step", ["issue", "listen", "open", "trust"])
@pytest.mark.parametrize("how", ["hung", "broken"])
def test_a_part_that_fails_before_the_call_exists_makes_it_unavailable(step: str, how: str) -> None:
    async def run() -> None:
        parts = Parts()
        getattr(parts, how).add(step)
        async with parts.lease(ready_s=0.05) as lease:
            with pytest.raises(RunnerError) as refused:
                await lease.deliver(sandbox())
        assert refused.value.refused.code == "unavailable"
        assert ("close" in parts.said) == (step in ("open", "trust"))
        assert "revoke" in parts.said
        assert not parts.killed

    asyncio.run(run())


@pytest.mark.parametrize(("step", "part"), [("close", "egress"), ("revoke", "broker")])
def test_a_part_that_hangs_at_the_end_keeps_no_call_from_being_sealed(step: str, part: str) -> None:
    async def run() -> None:
        parts = Parts()
        async with parts.lease(answer_s=0.05) as lease:
            await lease.deliver(sandbox())
            parts.hung.add(step)
        assert parts.abandoned == [part]
        assert (parts.ended is None) == (part == "egress")
        assert lease.secrets[0].lease == "l-1"

    asyncio.run(run())


def test_leases_are_renewed_while_their_provider_lets_them_live() -> None:
    async def run() -> None:
        parts = Parts(ttl_ms=100)
        parts.renewals = [100, 100, 100]
        async with parts.lease() as lease:
            await lease.deliver(sandbox())
            await until(lambda: parts.said.count("renew") == 4)
            assert not parts.killed
            parts.leases.expired("another", "l-1")
            assert not parts.killed
            parts.leases.expired("c", "l-1")
            assert parts.killed == ["the lease of key expired before the call ended"]
            await until(lambda: "close" in parts.said)  # at once: the call's process may take its time to die
        assert parts.said.count("close") == 1
        assert parts.ended is not None
        count = len(parts.said)
        await asyncio.sleep(0.1)
        assert len(parts.said) == count, "it is renewed after its end"

    asyncio.run(run())


def test_a_lease_that_lasts_as_long_as_the_call_is_not_renewed() -> None:
    async def run() -> None:
        parts = Parts(ttl_ms=40_000)
        async with parts.lease() as lease:
            await lease.deliver(sandbox())
            await asyncio.sleep(0.05)
        assert "renew" not in parts.said

    asyncio.run(run())


@pytest.mark.parametrize("part", ["egress", "broker"])
def test_a_part_that_ends_takes_the_calls_along_that_it_held_something_for(part: Any) -> None:
    async def run() -> None:
        parts = Parts()
        async with parts.lease() as lease:
            parts.leases.lost(part)
            assert not parts.killed, "it holds nothing yet"
            await lease.deliver(sandbox())
            parts.leases.lost(part)
            assert parts.killed == [f"{part} ended, and with it what it held for this call"]

    asyncio.run(run())


def test_a_part_that_ends_while_the_call_waits_for_the_other_makes_it_unavailable() -> None:
    async def run() -> None:
        parts = Parts()
        parts.hung.add("trust")
        async with parts.lease() as lease:
            opening = asyncio.ensure_future(lease.deliver(sandbox()))
            await until(lambda: "trust" in parts.said)
            parts.leases.lost("broker")
            parts.go.set()
            with pytest.raises(RunnerError, match="broker ended"):
                await opening
        assert not parts.killed

    asyncio.run(run())


def test_a_sandbox_that_is_gone_takes_its_authority_along() -> None:
    async def run() -> None:
        parts, gone = Parts(), []
        made = Sandbox("s-1", gone.append)
        made.trust(b"pem", parts)
        made.close("a test")
        made.close("again")
        assert parts.said == ["forget s-1"]
        assert gone == ["a test"]

    asyncio.run(run())
