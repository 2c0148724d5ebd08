"""An image is an entry once; its archive goes only when nobody uses it, and never between two who disagree."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import RunnerError, refuse
from runner.gate import images as module
from runner.gate.images import Images
from runner.ledger import entry as entries
from runner.wire.engine import Archive, ImageArchived

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
GONE = Archive(A, "1" * 64, 7)


class House:
    """Engine, journal and state in one, with a log of what was done, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, wanted: bool = True) -> None:
        monkeypatch.setattr(module, "isolation", lambda measured: measured.image)
        self.log: list[Any] = []
        self.standing = [GONE, Archive(B, "2" * 64, 7), Archive("", "3" * 64, 7)]
        self.entry: dict[str, tuple[str, str]] = {}
        self.found = ImageArchived(number=1, digest="4" * 64, size=7, sbom=b"{}", packages=1)
        self.pruned = ["5" * 64, "6" * 64]
        self.stuck: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        house: Any = self
        self.images = Images(house, house, lambda: house, wanted=wanted)

    # the journal
    def stamp(self) -> str:
        return "now"

    async def keep(self, data: bytes) -> entries.Content:
        return entries.Content(digest="c" * 64, size=len(data))

    async def write(self, entry: Any, *, sync: bool = False) -> Any:
        self.log.append((type(entry).__name__, entry.image, sync))
        if isinstance(entry, entries.Image):
            self.entry[entry.image] = (entry.archive.digest if entry.archive else "", entry.problem)
        return SimpleNamespace(position=9)

    # what is known
    def archived(self, image: str) -> tuple[str, str] | None:
        return self.entry.get(image)

    def image_of(self, digest: str) -> str:
        return B if digest == "3" * 64 else ""

    def pruned_archives(self) -> list[str]:
        return list(self.pruned)

    def archive_gone(self, digest: str) -> None:
        self.log.append(("known to be gone", digest))

    # engine
    async def archive(self, image: str) -> ImageArchived:
        self.log.append(("archive", image))
        return self.found

    async def archives(self) -> tuple[Archive, ...]:
        return tuple(self.standing)

    async def remove_archive(self, digest: str) -> None:
        await self.hold.wait()
        if digest in self.stuck:
            raise refuse("unavailable", "the disk is read-only")
        self.log.append(("removed", digest))

    def used(self, image: str) -> None:
        self.images.describe(SimpleNamespace(image=image))  # type: ignore[arg-type]  # all that is looked at


async def settled() -> None:
    for _ in range(9):
        await asyncio.sleep(0)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


async def prune(house: House, archive: Archive = GONE) -> int:
    return await house.images.prune(archive, why="old", by=0, operator=None)


def test_an_image_is_an_entry_once_while_its_archive_stands(house: House) -> None:
    async def run() -> None:
        house.used(A)
        house.used(A)
        await settled()
        assert house.log == [("archive", A), ("Image", A, False)]
        again = Images(house, house, lambda: house, wanted=True)  # type: ignore[arg-type]  # the next run of the daemon
        again.describe(SimpleNamespace(image=A))  # type: ignore[arg-type]  # all that is looked at
        await settled()
        assert house.log[2:] == [("archive", A)]
        house.found = ImageArchived(number=1, digest="7" * 64, size=7)  # it had to be made anew
        third = Images(house, house, lambda: house, wanted=True)  # type: ignore[arg-type]  # and the one after it
        third.describe(SimpleNamespace(image=A))  # type: ignore[arg-type]  # all that is looked at
        await settled()
        assert house.log[3:] == [("archive", A), ("Image", A, False)]

    asyncio.run(run())


def test_a_tombstone_is_durable_before_the_archive_goes(house: House) -> None:
    assert asyncio.run(prune(house)) == 9
    assert house.log == [("PruneImage", A, True), ("removed", GONE.digest), ("known to be gone", GONE.digest)]


def test_what_a_sandbox_uses_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(house: House) -> None:
        assert [each.digest[0] for each in await house.images.idle()] == ["1", "2", "3"]
        house.used(A)
        await settled()
        assert [each.digest[0] for each in await house.images.idle()] == ["2", "3"]
        house.log.clear()
        assert await prune(house) == -1  # it was idle when it was asked, and is not any more
        assert house.log == []
        house.used(B)
        await settled()
        assert await house.images.idle() == []  # nor what only the ledger knows to be of that image

    asyncio.run(run(house))
    asyncio.run(run(House(monkeypatch, wanted=False)))  # also where none is made any more


def test_an_image_that_is_wanted_while_its_archive_goes_is_archived_after_that(house: House) -> None:
    async def run() -> None:
        house.hold.clear()
        pruning = asyncio.ensure_future(prune(house))
        await settled()
        house.used(A)
        await settled()
        assert house.log == [("PruneImage", A, True)]
        house.hold.set()
        await pruning
        await settled()
        assert [each[0] for each in house.log] == ["PruneImage", "removed", "known to be gone", "archive", "Image"]

    asyncio.run(run())


def test_the_next_start_finishes_what_it_can(house: House) -> None:
    house.stuck = {"5" * 64}
    asyncio.run(house.images.finish())
    assert house.log == [("removed", "6" * 64), ("known to be gone", "6" * 64)]
    house.stuck = {GONE.digest}
    with pytest.raises(RunnerError, match="read-only"):
        asyncio.run(prune(house))
    assert house.log[2:] == [("PruneImage", A, True)]
