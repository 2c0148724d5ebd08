"""One run of the daemon as it stands in the ledger: its start, a beacon a minute, its stop; and its clock."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from runner import VERSION
from runner.gate.entries import Journal
from runner.gate.parts import Parts
from runner.gate.serving import Serving
from runner.ledger import entry as entries
from runner.serve.anchors import thumbprints
from runner.serve.environment import environment
from runner.state.store import Store
from runner.token.claims import Anchors
from runner.wire.engine import Described
from runner.wire.recorder import Opened

_KEEP_TOKENS_S = 86_400  # after expiry: longer than any task of theirs can take to end


def stamp() -> str:
    """Now, as entries write it."""
    second, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Life:
    """The entries of this run."""

    def __init__(self, journal: Journal, instance: str, boot: str) -> None:
        self._journal = journal
        self._instance = instance
        self._boot = boot

    async def begin(
        self, serving: Serving, anchors: Anchors, config: bytes, opened: Opened, described: Described
    ) -> None:
        """The start, with everything that it names; durable when this returns."""
        for content in serving.catalog.contents.values():
            await self._journal.recorder.store(content)
        await self._journal.write(
            entries.Start(
                time=stamp(),
                instance=self._instance,
                version=VERSION,
                host=os.uname().nodename[:64],
                boot=self._boot,
                config=await self._journal.keep(config),
                catalogue=serving.catalog.digest,
                policy=serving.policies.digest,
                previous=opened.previous,
                interrupted=opened.interrupted,
                environment=environment(described),
                anchors=thumbprints(anchors),
            ),
            sync=True,
        )

    async def beacon(self, parts: Parts, store: Store) -> None:
        """It lives; what state need not remember any more is forgotten."""
        kept_since = datetime.now(UTC) - timedelta(seconds=parts.limits.detached_s)
        store.flush()
        store.forget(kept_since.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), int(time.time()) - _KEEP_TOKENS_S)
        await self._journal.write(
            entries.Beacon(
                time=stamp(),
                instance=self._instance,
                calls=parts.calls.begun,
                running=len(parts.calls.running),
                tasks=len(parts.tasks.live),
            )
        )

    async def end(self, reason: str, *, clean: bool) -> None:
        """The stop; durable when this returns."""
        await self._journal.write(
            entries.Stop(time=stamp(), instance=self._instance, reason=reason, clean=clean), sync=True
        )
