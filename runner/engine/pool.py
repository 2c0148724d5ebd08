"""Containers made and measured ahead, so that a task's first call does not wait for Docker.

A pooled container belongs to no task until it is taken: the task is known to gate and the ledger, never to Docker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import select
from collections.abc import Mapping

from runner.engine.containers import Container, Workshop
from runner.engine.host import CompiledProfile
from runner.errors import RunnerError

log = logging.getLogger(__name__)

_BACKOFF_S = 5.0  # after a container could not be made: the reason is the host's and will not pass in a moment


class Pool:
    """Up to `size` ready containers per task profile."""

    def __init__(self, workshop: Workshop, size: int) -> None:
        self._workshop = workshop
        self._size = size
        self._wanted: Mapping[str, CompiledProfile] = {}
        self._ready: list[Container] = []
        self._task: asyncio.Task[None] | None = None
        self._dropping: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @property
    def ready(self) -> int:
        """How many containers wait to be taken."""
        return len(self._ready)

    def stock(self, wanted: Mapping[str, CompiledProfile]) -> None:
        """Fill up for these profiles in the background, and drop what was made for others."""
        self._wanted = wanted
        if self._size <= 0 or self._closing.is_set():
            return
        for container in [item for item in self._ready if item.compiled not in wanted.values()]:
            self._ready.remove(container)
            self._drop(container)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._fill())

    def take(self, compiled: CompiledProfile) -> Container | None:
        """A ready container of exactly this compiled profile that is still alive, None when there is none."""
        for container in tuple(self._ready):
            if container.compiled != compiled:
                continue
            self._ready.remove(container)
            if _alive(container):
                self.stock(self._wanted)
                return container
            self._drop(container)
        return None

    async def close(self) -> None:
        """Remove every ready container."""
        self._closing.set()
        if self._task is not None:
            # Waited for, never cancelled: a container that Docker is just making would be nobody's.
            await asyncio.gather(self._task, return_exceptions=True)
        for container in self._ready:
            self._drop(container)
        self._ready.clear()
        await asyncio.gather(*self._dropping, return_exceptions=True)

    async def _fill(self) -> None:
        while not self._closing.is_set():
            missing = next((item for item in self._wanted.values() if self._count(item) < self._size), None)
            if missing is None:
                return
            container = Container(self._workshop, f"pool-{secrets.token_hex(6)}", missing)
            try:
                await container.make()
            except RunnerError as error:
                log.warning("no container for the pool: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _BACKOFF_S)
                continue
            if missing in self._wanted.values():
                self._ready.append(container)
            else:  # the catalogue was swapped while it was made
                self._drop(container)

    def _count(self, compiled: CompiledProfile) -> int:
        return sum(1 for container in self._ready if container.compiled == compiled)

    def _drop(self, container: Container) -> None:
        task = asyncio.get_running_loop().create_task(container.unmake())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)


def _alive(container: Container) -> bool:
    poll = select.poll()
    poll.register(container.pidfd, select.POLLIN)
    return not poll.poll(0)
