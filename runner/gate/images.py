"""An entry for each image that sandboxes are made of: its archive and its packages. Once per image and start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from runner.errors import RunnerError
from runner.gate.entries import Journal, isolation
from runner.ledger import entry as entries
from runner.model import Measured
from runner.wire.engine import ImageArchived


class Images:
    """Sees every sandbox that is measured. `archive` asks engine, and may take as long as an image is large."""

    def __init__(self, journal: Journal, archive: Callable[[str], Awaitable[ImageArchived]], *, wanted: bool) -> None:
        self._journal = journal
        self._archive = archive
        self._wanted = wanted
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def describe(self, measured: Measured) -> entries.Isolation:
        """What engine measured, as the sandbox's entry holds it; its image is archived in the background."""
        if self._wanted and measured.image not in self._seen:
            self._seen.add(measured.image)
            task = asyncio.get_running_loop().create_task(self._record(measured.image))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return isolation(measured)

    async def _record(self, image: str) -> None:
        try:
            found = await self._archive(image)
        except RunnerError:  # engine ended, which has an entry: the next sandbox asks again
            self._seen.discard(image)
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
