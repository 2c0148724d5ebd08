"""What belongs to this instance and to no sandbox: left by an earlier run, or by a Docker engine that went away in the
middle. Removed at start, and again and again after a removal failed, until nothing of it is left."""

from __future__ import annotations

import asyncio
import logging

from runner.engine.containers import Workshop
from runner.engine.control import remove_folder
from runner.errors import RunnerError

log = logging.getLogger(__name__)

_PAUSES_S = (0.5, 1.0, 2.0, 5.0)  # between tries; the last one repeats: a Docker engine may stay away for long


class Orphans:
    """Removes containers and folders of this instance that no `Container` of ours accounts for (`Workshop.known`)."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._task: asyncio.Task[None] | None = None
        workshop.on_left = self.noticed

    def remove(self) -> None:
        """Remove them now. Blocks. Raises `RunnerError` when Docker does not answer, or will not remove one."""
        shop = self._workshop
        # Folders first: one of a container that is begun after this look is not on the list.
        folders = [folder for folder in shop.folder.iterdir() if folder.name not in shop.known]
        for container, sandbox in shop.docker.owned(shop.instance).items():
            if sandbox not in shop.known:
                log.warning("removing the orphan sandbox %s", sandbox)
                shop.docker.remove(container)
        for folder in folders:
            remove_folder(folder)

    def noticed(self) -> None:
        """Something was left behind: try until it is gone, in the background."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._until_clean())

    async def close(self) -> None:
        """Try no more: the next start of this instance does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _until_clean(self) -> None:
        tries = 0
        while True:
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1
            try:
                return await self._workshop.blocking(self.remove)
            except RunnerError as error:
                log.warning("an orphan is still there: %s", error)
