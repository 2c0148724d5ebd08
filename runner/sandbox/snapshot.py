"""The workspace's content as the receipt of a call names it: engine reads the tree from the host, here it becomes a
manifest in the content store and a Merkle root in the outcome.

Calls are not held up by a snapshot. It is taken after its call has ended, one at a time for a sandbox, and names in
`beside` every other call that could write the workspace from the end of its own call to the end of the reading: with
nobody beside it, the root is of one state of the tree."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.ledger import tree
from runner.model import CallPlan, TaskProfile
from runner.sandbox.connection import Sandbox
from runner.sandbox.plan import WORKSPACE
from runner.wire.engine import Snapped


class Engine(Protocol):
    """What reads the tree."""

    async def snapshot(self, sandbox: str, *, full: bool) -> Snapped:
        """The lines of the workspace's manifest."""


class Store(Protocol):
    """Where the manifest goes."""

    async def keep(self, data: bytes, salt: bytes = b"") -> entries.Content:
        """Put content into the store ahead of the entry that names it."""


class _State:
    """What is known of one sandbox."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.writers: set[str] = set()  # calls that can write, until their own snapshot is taken
        self.salt = secrets.token_bytes(16)  # one for a sandbox: equal trees in it have equal roots


class Snapshots:
    """Takes snapshots. `engine` is asked for each time: it may be another one, or none."""

    def __init__(self, engine: Callable[[], Engine | None], store: Store, *, seconds: float) -> None:
        self._engine = engine
        self._store = store
        self._seconds = seconds
        self._states: WeakKeyDictionary[Sandbox, _State] = WeakKeyDictionary()

    def begin(self, plan: CallPlan, profile: TaskProfile, sandbox: Sandbox) -> Pending | None:
        """A call begins. None when its profile takes no snapshots or the call cannot write the workspace."""
        if profile.snapshot == "none":
            return None
        if not any(path == WORKSPACE or path.startswith(f"{WORKSPACE}/") for path in plan.jail.write):
            return None
        state = self._states.setdefault(sandbox, _State())
        state.writers.add(plan.call)
        return Pending(self, state, sandbox, plan.call, full=profile.snapshot == "full")

    async def now(self, sandbox: str, *, full: bool) -> Snapped:
        """The lines as they are now. Raises `RunnerError`."""
        engine = self._engine()
        if engine is None:
            raise refuse("unavailable", "the engine is being restarted", retry_after_ms=2000)
        try:
            async with asyncio.timeout(self._seconds):
                return await engine.snapshot(sandbox, full=full)
        except TimeoutError:
            raise refuse("unavailable", f"the workspace was not read within {self._seconds:g} s") from None

    async def keep(self, lines: bytes, salt: bytes) -> tuple[str, entries.Content]:
        """Root and manifest. The root of a large tree takes a while: not in the loop."""
        kept = tree.manifest(lines, salt)
        root = await asyncio.to_thread(tree.root, kept)
        return root, await self._store.keep(kept)


class Pending:
    """The snapshot that a call owes."""

    def __init__(self, snapshots: Snapshots, state: _State, sandbox: Sandbox, call: str, *, full: bool) -> None:
        self._snapshots = snapshots
        self._state = state
        self._sandbox = sandbox
        self._call = call
        self._full = full

    def drop(self) -> None:
        """No process of the call existed, or nobody will ask."""
        self._state.writers.discard(self._call)

    async def take(self) -> entries.Workspace:
        """Total: what cannot be taken says why, in place of a root."""
        hashed: Literal["full", "changed"] = "full" if self._full else "changed"
        beside = set(self._state.writers)
        try:
            async with self._state.turn:
                snapped = await self._snapshots.now(self._sandbox.id, full=self._full)
                beside |= self._state.writers
                root, manifest = await self._snapshots.keep(snapped.lines, self._state.salt)
        except RunnerError as error:
            return entries.Workspace(hashed=hashed, problem=error.refused.reason[:200])
        finally:
            self.drop()
        return entries.Workspace(
            root=root,
            manifest=manifest,
            files=snapped.files,
            size=snapped.size,
            read=snapped.read,
            hashed=hashed,
            beside=tuple(sorted(beside - {self._call})),
        )
