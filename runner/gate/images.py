"""An entry for each image that sandboxes are made of: its archive and its packages. Once, while its archive stands.

An archive that no kept call names goes with `runner trace prune`: a tombstone first, and when that is durable the
archive. What a crash cuts off there is done at the next start (`finish`). An image of which a sandbox was made since
gate's start stays: its next call may begin at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from runner.errors import RunnerError
from runner.gate.entries import Journal, isolation
from runner.ledger import entry as entries
from runner.model import Measured
from runner.wire.engine import Archive, ImageArchived

_log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Engine, which has the archives. Each method raises `RunnerError`; `archive` may take as long as an image is
    large."""

    async def archive(self, image: str) -> ImageArchived:
        """The image's archive, made when there is none."""

    async def archives(self) -> tuple[Archive, ...]:
        """Those that stand."""

    async def remove_archive(self, digest: str) -> None:
        """Remove one; one that is not there is no error."""


class Known(Protocol):
    """What the ledger says of archives (`runner/state/store.py`)."""

    def archived(self, image: str) -> tuple[str, str] | None:
        """(digest, problem) of the newest entry of an image whose archive was not pruned."""

    def image_of(self, digest: str) -> str:
        """The image of an archive, "" for one that no entry names."""

    def pruned_archives(self) -> list[str]:
        """Those whose tombstone may not be carried out yet."""

    def archive_gone(self, digest: str) -> None:
        """It is carried out."""


class Images:
    """Sees every sandbox that is measured."""

    def __init__(self, journal: Journal, known: Known, engine: Callable[[], Keeper], *, wanted: bool) -> None:
        self._journal = journal
        self._known = known
        self._engine = engine
        self._wanted = wanted
        self._seen: set[str] = set()
        self._going: dict[str, asyncio.Event] = {}  # images whose archive is being removed
        self._tasks: set[asyncio.Task[None]] = set()

    # --- kept ----------------------------------------------------------------------------------------------

    def describe(self, measured: Measured) -> entries.Isolation:
        """What engine measured, as the sandbox's entry holds it; its image is archived in the background."""
        if measured.image not in self._seen:
            self._seen.add(measured.image)
            if self._wanted:
                task = asyncio.get_running_loop().create_task(self._record(measured.image))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return isolation(measured)

    async def _record(self, image: str) -> None:
        while image in self._going:
            await self._going[image].wait()
        try:
            found = await self._engine().archive(image)
        except RunnerError:  # engine ended, which has an entry: the next sandbox asks again
            self._seen.discard(image)
            return
        if self._known.archived(image) == (found.digest, found.problem):
            return
        sbom = await self._journal.keep(found.sbom) if found.sbom else None
        archive = entries.Content(digest=found.digest, size=found.size) if found.digest else None
        await self._journal.write(
            entries.Image(
                time=self._journal.stamp(),
                image=image,
                archive=archive,
                sbom=sbom,
                packages=found.packages,
                problem=found.problem,
            )
        )

    # --- pruned --------------------------------------------------------------------------------------------

    async def idle(self) -> list[Archive]:
        """Archives of images that no sandbox was made of since gate's start, each with its image as far as it is known.
        Whether a kept call names one is the ledger's to say. Raises `RunnerError` (unavailable)."""
        found = [
            Archive(each.image or self._known.image_of(each.digest), each.digest, each.size)
            for each in await self._engine().archives()
        ]
        return [each for each in found if each.image not in self._seen]

    async def prune(self, archive: Archive, *, why: str, by: int, operator: entries.Operator | None) -> int:
        """Record that an archive goes, and remove it: the tombstone's position, -1 when a sandbox of its image was made
        meanwhile and it stays. Raises `RunnerError`."""
        if archive.image in self._seen:
            return -1
        self._going[archive.image] = gone = asyncio.Event()
        try:
            tombstone = entries.PruneImage(
                time=self._journal.stamp(),
                image=archive.image,
                archive=entries.Content(digest=archive.digest, size=archive.size),
                why=why,
                by=by,
                operator=operator,
            )
            position = (await self._journal.write(tombstone, sync=True)).position
            # From here on a crash only delays the removal: the next start goes on with it.
            await self._remove(archive.digest)
        finally:
            del self._going[archive.image]
            gone.set()
        return position

    async def finish(self) -> None:
        """At start: remove what a tombstone says and a crash cut off. What cannot be removed now stays for the next."""
        for digest in self._known.pruned_archives():
            try:
                await self._remove(digest)
            except RunnerError as error:
                _log.error("the archive %s was not removed: %s", digest, error.refused.line())

    async def _remove(self, digest: str) -> None:
        await self._engine().remove_archive(digest)
        self._known.archive_gone(digest)
