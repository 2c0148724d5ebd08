"""Leases: all or none, dead when revoked, undone where they were made, whatever comes when."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.broker import lease as module
from runner.broker import master
from runner.broker.keeper import Keeper
from runner.broker.lease import Leases
from runner.broker.providers.compile import Compiled
from runner.broker.providers.provider import Issued, Wish, unavailable
from runner.broker.secret import Secret
from runner.config import Secrets
from runner.errors import RunnerError
from runner.wire import broker as wire

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
CANARY = b"canary-of-the-lease"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Made:
    """A provider in memory. `living` is what a server of it would still accept."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.living: set[str] = set()
        self.made = 0
        self.ttl: float | None = 100.0
        self.renewable = True
        self.fails = 0  # so many revocations
        self.down = False
        self.hold: threading.Event | None = None
        self.entered = threading.Event()
        self.last = Secret(bytearray())

    def issue(self, name: str, wish: Wish) -> Issued:
        self.entered.set()
        if self.hold:
            assert self.hold.wait(30)
        if self.down:
            raise unavailable("made: it is down", again=True)
        if name == "broken":
            raise ValueError(CANARY)
        with self.turn:
            self.made += 1
            handle = f"handle-{self.made}"
            self.living.add(handle)
        self.last = secret = Secret(bytearray(CANARY))
        return Issued(secret, ttl_s=self.ttl, handle=handle, renewable=self.renewable)

    def renew(self, handle: str, ttl_s: float) -> float:
        with self.turn:
            if handle not in self.living:
                raise unavailable("made: it has ended")
        return min(ttl_s, 50.0)

    def revoke(self, handle: str) -> None:
        with self.turn:
            if self.fails:
                self.fails -= 1
                raise unavailable("made: it is down", again=True)
            self.living.discard(handle)


class House:
    def __init__(self, folder: Path, provider: Made, **settings: float) -> None:
        self.keeper = Keeper(folder, KEY)
        self.expired: list[tuple[str, str]] = []
        self.leases = Leases(self.keeper, lambda call, lease: self.expired.append((call, lease)))
        compiled = Compiled({"made": provider}, {"made": frozenset(("db", "broken"))})
        self.leases.use(Secrets(**settings), compiled)
        self.number = 0

    def ask(self, call: str = "c1", *names: str, ttl_ms: int = 60_000, task: str = "t", read: bool = False) -> Any:
        self.number += 1
        return self.leases.issue(
            wire.Issue(
                number=self.number,
                call=call,
                task=task,
                tool="x",
                names=names or ("made:db",),
                ttl_ms=ttl_ms,
                read=read,
            )
        )


@asynccontextmanager
async def house(folder: Path, provider: Made, **settings: float) -> AsyncIterator[House]:
    made = House(folder, provider, **settings)
    try:
        yield made
    finally:
        await made.leases.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def outstanding(folder: Path) -> int:
    keeper = Keeper(folder, KEY)
    journal = keeper.open().journal
    count = len(journal.outstanding)
    journal.close()
    return count


async def test_a_lease_lives_until_its_call_is_over(tmp_path: Path) -> None:
    provider = Made()
    async with house(tmp_path, provider) as home:
        (lease,) = await home.ask()
        assert lease.value == CANARY
        assert provider.last.value == bytes(len(CANARY))  # the broker has it no more
        assert (lease.name, lease.dynamic, lease.ttl_ms) == ("made:db", True, 60_000)
        assert provider.living
        assert home.leases.living == 1
        assert home.leases.revoke("call", "c1")[0] == 1
        assert home.leases.living == 0
        await until(lambda: not provider.living)
        with pytest.raises(RunnerError):
            home.ask()  # the call is over: no lease could end with it
        await home.ask("c2")
    assert not provider.living
    assert outstanding(tmp_path) == 0


async def test_stored_secrets_are_leased_too_and_all_or_none(tmp_path: Path) -> None:
    provider = Made()
    async with house(tmp_path, provider) as home:
        store = home.leases.opened().store
        store.put("login", b"", {"username": b"me", "password": b"pass-word"}, expect=0, now="now")
        login, other = await home.ask("c1", "login", "made:db")
        assert (login.value, login.fields) == (b"pass-word", {"username": b"me", "password": b"pass-word"})
        assert (login.version, login.dynamic, other.dynamic) == ("1", False, True)
        again, _ = await home.ask("c2", "login", "made:db")
        assert again.fingerprint == login.fingerprint != other.fingerprint
        assert again.accessor != login.accessor
        assert again.id != login.id
        assert CANARY.decode() not in repr((login, other, wire.Issued(number=1, leases=(other,))))
        before = set(provider.living)
        for bad in ("missing", "made:missing", "nobody:db", "made:broken", ":db"):
            with pytest.raises(RunnerError) as caught:
                await home.ask("c3", "login", "made:db", bad)
            assert caught.value.refused.code == "unavailable"
            assert not caught.value.refused.retryable
        await until(lambda: provider.living == before)
        assert home.leases.living == 4


async def test_a_fingerprint_is_the_same_after_a_restart_and_another_elsewhere(tmp_path: Path) -> None:
    seen = []
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        folder.mkdir(exist_ok=True)
        async with house(folder, Made()) as home:
            (lease,) = await home.ask()
            seen.append(lease.fingerprint)
    assert seen[0] == seen[1] != seen[2]


async def test_a_defect_of_a_provider_is_logged_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with house(tmp_path, Made()) as home:
        with pytest.raises(RunnerError) as caught:
            await home.ask("c1", "made:broken")
        await home.ask("c2")
    assert "ValueError" in caplog.text
    assert CANARY.decode() not in caplog.text + str(caught.value)
    assert "lease l-" in caplog.text  # what may be said is


async def test_a_revocation_while_a_provider_works_lets_nothing_out(tmp_path: Path) -> None:
    for kind, value in (("call", "c1"), ("task", "t"), ("all", "")):
        provider = Made()
        provider.hold = threading.Event()
        folder = tmp_path / kind
        folder.mkdir()
        async with house(folder, provider) as home:
            asked = asyncio.ensure_future(home.ask())
            await until(provider.entered.is_set)
            assert home.leases.revoke(kind, value) == (0, 0)
            provider.hold.set()
            with pytest.raises(RunnerError) as caught:
                await asked
            assert "over" in caught.value.refused.reason
            assert home.leases.living == 0
            await until(lambda made=provider: made.made == 1 and not made.living)
        assert outstanding(folder) == 0


async def test_a_revocation_right_behind_a_request_finds_it(tmp_path: Path) -> None:
    """In one turn of the loop: the request has not even begun."""
    for kind, value in (("call", "c1"), ("task", "t"), ("all", "")):
        folder = tmp_path / kind
        folder.mkdir()
        provider = Made()
        async with house(folder, provider) as home:
            asked = home.ask()
            home.leases.revoke(kind, value)
            with pytest.raises(RunnerError):
                await asked
        assert not provider.living


async def test_ten_thousand_races_of_revocation(tmp_path: Path) -> None:
    """0 uses after a revocation was answered: no lease is delivered or renewed, and none is left anywhere."""
    provider, chance = Made(), random.Random(7)
    count, delivered, refused, late = 10_000, 0, 0, 0
    made_static = Made()
    made_static.issue = lambda name, wish: Issued(Secret(bytearray(CANARY)))  # type: ignore[method-assign]
    async with house(tmp_path, provider, ttl_s=3600.0) as home:
        home.leases.use(
            Secrets(ttl_s=3600.0),
            Compiled({"made": provider, "free": made_static}, {"made": frozenset(("db",)), "free": frozenset(("x",))}),
        )

        async def one(number: int) -> None:
            nonlocal delivered, refused, late
            call, over = f"c{number}", False
            names = ("made:db",) if number % 20 == 0 else ("free:x",)

            async def use() -> None:
                nonlocal delivered, refused, late
                try:
                    await home.ask(call, *names)
                    delivered += 1
                    late += over
                    for _ in range(2):
                        await asyncio.sleep(0)
                        await home.leases.renew(call, 60.0)
                        late += over
                except RunnerError:
                    refused += 1

            using = asyncio.ensure_future(use())
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() / 500)
            home.leases.revoke("call", call)
            over = True
            await using

        for start in range(0, count, 100):
            await asyncio.gather(*(one(number) for number in range(start, start + 100)))
        assert late == 0
        assert home.leases.living == 0
        assert delivered > count / 100  # both ends of the race were run
        assert refused > count / 100
    assert not provider.living
    assert outstanding(tmp_path) == 0


async def test_an_expired_lease_is_dead_undone_and_told(tmp_path: Path) -> None:
    provider = Made()
    async with house(tmp_path, provider) as home:
        (lease,) = await home.ask(ttl_ms=20)
        await until(lambda: home.expired)
        assert home.expired == [("c1", lease.id)]
        await until(lambda: not provider.living)
        with pytest.raises(RunnerError):
            await home.leases.renew("c1", 60.0)
        assert home.leases.revoke("call", "c1")[0] == 0


async def test_a_renewed_lease_outlives_its_first_time(tmp_path: Path) -> None:
    provider = Made()
    async with house(tmp_path, provider) as home:
        (lease,) = await home.ask(ttl_ms=300)
        ttl = await home.leases.renew("c1", 60.0)
        assert 49_000 < ttl[lease.id] <= 50_000  # what the provider gave, not what was asked
        await asyncio.sleep(0.4)
        assert home.leases.living == 1
        assert not home.expired


async def test_no_lease_lives_longer_than_configured(tmp_path: Path) -> None:
    provider = Made()
    async with house(tmp_path, provider, ttl_s=2.0, max_ttl_s=4.0) as home:
        (lease,) = await home.ask(ttl_ms=60_000)
        assert lease.ttl_ms == 2000
        assert (await home.leases.renew("c1", 60.0))[lease.id] <= 2000
        provider.ttl = 1.0
        (shorter,) = await home.ask("c2", ttl_ms=60_000)
        assert shorter.ttl_ms == 1000
        provider.renewable = False
        (fixed,) = await home.ask("c3", ttl_ms=60_000)
        assert (await home.leases.renew("c3", 60.0))[fixed.id] <= 1000


async def test_a_revocation_that_a_provider_misses_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", (0.01,))
    provider = Made()
    provider.fails = 5
    async with house(tmp_path, provider) as home:
        await home.ask()
        ended, pending = home.leases.revoke("call", "c1")
        assert (ended, pending) == (1, 1)
        await until(lambda: not provider.living)
    assert "not revoked yet" in caplog.text
    assert outstanding(tmp_path) == 0


async def test_what_a_broker_left_is_revoked_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died: nothing of its memory is left, only the journal. And then with a provider that was down at its end."""
    provider = Made()
    home = House(tmp_path, provider)
    await home.ask()
    home.leases.use(Secrets(), Compiled({"made": provider}, {"made": frozenset(("db",))}))  # a reload revokes nothing
    assert provider.living
    await home.ask("c2")
    home.keeper.open().journal.close()  # as a kill closes it
    assert len(provider.living) == 2
    assert outstanding(tmp_path) == 2
    monkeypatch.setattr(module, "_GRACE_S", 0.05)
    provider.fails = 1_000_000
    async with house(tmp_path, provider) as second:
        second.leases.opened()
    assert len(provider.living) == 2
    assert outstanding(tmp_path) == 2
    provider.fails = 0
    async with house(tmp_path, provider) as third:
        third.leases.opened()
        await until(lambda: not provider.living)
        (lease,) = await third.ask("c3")  # and it serves
        assert lease.dynamic
    assert outstanding(tmp_path) == 0


async def test_a_broker_that_ends_while_a_provider_works_undoes_what_comes(tmp_path: Path) -> None:
    provider = Made()
    provider.hold = threading.Event()
    home = House(tmp_path, provider)
    asked = asyncio.ensure_future(home.ask())
    await until(provider.entered.is_set)
    closing = asyncio.ensure_future(home.leases.close())
    await asyncio.sleep(0.02)
    provider.hold.set()
    with pytest.raises(RunnerError):
        await asked
    await closing
    assert (provider.made, provider.living) == (1, set())
    assert outstanding(tmp_path) == 0


async def test_what_is_left_waits_for_its_provider_to_be_configured(tmp_path: Path) -> None:
    provider = Made()
    home = House(tmp_path, provider)
    await home.ask()
    home.keeper.open().journal.close()
    compiled = Compiled({"made": provider}, {"made": frozenset(("db",))})
    leases = Leases(Keeper(tmp_path, KEY), lambda call, lease: None)
    leases.opened()  # before it is configured, and with another provider only
    leases.use(Secrets(), Compiled({}, {}))
    await asyncio.sleep(0.05)
    assert provider.living
    leases.use(Secrets(), compiled)
    await until(lambda: not provider.living)
    await leases.close()
    assert outstanding(tmp_path) == 0


async def test_a_lease_that_is_not_in_the_journal_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Made()
    async with house(tmp_path, provider) as home:
        journal = home.leases.opened().journal

        def fail(lease: object) -> None:
            raise unavailable("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(journal, "made", fail)
            with pytest.raises(RunnerError):
                await home.ask()
        assert provider.made == 1
        assert not provider.living  # undone at once
        await home.ask("c2")


async def test_a_provider_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    slow, fast = Made(), Made()
    slow.hold = threading.Event()
    async with house(tmp_path, slow) as home:
        home.leases.use(
            Secrets(),
            Compiled({"made": slow, "fast": fast}, {"made": frozenset(("db",)), "fast": frozenset(("db",))}),
        )
        waiting = [asyncio.ensure_future(home.ask(f"s{number}")) for number in range(40)]
        await until(slow.entered.is_set)
        (lease,) = await home.ask("c1", "fast:db")
        assert lease.value == CANARY
        slow.hold.set()
        assert len(await asyncio.gather(*waiting)) == 40


async def test_a_down_provider_is_a_refusal_that_says_a_retry_may_help(tmp_path: Path) -> None:
    provider = Made()
    provider.down = True
    async with house(tmp_path, provider) as home:
        with pytest.raises(RunnerError) as caught:
            await home.ask()
        assert caught.value.refused.retryable
        provider.down = False
        await home.ask("c2")


async def test_without_a_master_key_nothing_is_leased_until_there_is_one(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, None)
    leases = Leases(keeper, lambda call, lease: None)
    leases.use(Secrets(), Compiled({}, {}))
    asked = wire.Issue(number=1, call="c", task="t", tool="x", names=("a",), ttl_ms=1000)
    with pytest.raises(RunnerError) as caught:
        leases.issue(asked)
    assert "runner secret init" in caught.value.refused.next_step
    (tmp_path / master.FILE).write_bytes(master.fresh())
    (tmp_path / master.FILE).chmod(0o600)
    leases.opened().store.put("a", b"12345678", {}, expect=0, now="now")
    (lease,) = await leases.issue(asked)
    assert lease.value == b"12345678"
    await leases.close()


async def test_no_more_names_than_a_call_can_need(tmp_path: Path) -> None:
    async with house(tmp_path, Made()) as home:
        for count in (0, 33):
            with pytest.raises(RunnerError) as caught:
                home.leases.issue(
                    wire.Issue(number=1, call="c", task="t", tool="x", names=("made:db",) * count, ttl_ms=1000)
                )
            assert caught.value.refused.code == "busy"
        assert len(await home.ask("c1", *("made:db",) * 32)) == 32


async def test_the_journal_gives_up_only_what_has_expired_there(tmp_path: Path) -> None:
    """A renewed lease may live as long as any lease may: no earlier is it given up."""
    async with house(tmp_path, Made(), max_ttl_s=5000.0) as home:
        await home.ask()
        (made,) = home.leases.opened().journal.outstanding.values()
        assert time.time() + 4000 < made.expires <= time.time() + 5000
