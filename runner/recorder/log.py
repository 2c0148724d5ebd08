"""The recorder: entries in, positions and signed checkpoints out.

One thread, blocking. A group is everything appended and stored between two commits. See `durability.py` for what
each write means when it fails; the comments there and here mark the points after which a crash is recoverable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.ledger import tail as tails
from runner.ledger.merkle import TILE_HEIGHT, TILE_WIDTH, Tile, Tree, leaf_hash, tile_root
from runner.ledger.note import Checkpoint, Signer
from runner.ledger.sequence import Sequence, State
from runner.ledger.tile import CHECKPOINT, LOCK, TAIL, TILES
from runner.recorder import durability as disk
from runner.recorder import tiles
from runner.recorder.content import ContentStore
from runner.recorder.readback import STATE_KINDS, select
from runner.recorder.recovery import Pending, Recovered, nothing, recover

PUBLISH_S = 1.0  # how often the checkpoint file is replaced at most; the tail holds every checkpoint anyway
UNKNOWN_END = (
    "the daemon died while this call was open: its tool may have run in part, in full, or not at all; nobody knows"
)


class OpenCall(NamedTuple):
    """A call with a plan and no outcome. `position` is its entry's."""

    call: str
    task: str
    position: int


class Recorder:
    """The one writer of a ledger and its content. Made by `open`; after any failure it does nothing more."""

    def __init__(
        self, folder: Path, signer: Signer, content: ContentStore, found: Recovered, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._tiles_folder = folder / TILES
        self._signer = signer
        self._content = content
        self._clock = clock
        self._settled: State = found.settled  # of the entries that are in bundles, as is the next
        self._settled_tree: Tree = found.settled_tree
        self._sequence: Sequence = found.sequence
        self._tree: Tree = found.tree
        self._pending: list[Pending] = found.entries  # every entry behind the bundles, written or not
        self._tiles: list[Tile] = found.tiles  # full, not yet files
        self._note = found.note
        self._durable = found.signed
        self._published = -1
        self._published_at = float("-inf")
        self._failed: RunnerError | None = None
        self._lock = -1
        self._file = -1
        life = self._sequence.state.life
        self.previous: Literal["none", "clean", "dead"] = (
            "none" if life == "none" else "clean" if life == "stopped" else "dead"
        )

    # --- life ------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        state_dir: Path,
        origin: str,
        key: Ed25519PrivateKey,
        now: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> Recorder:
        """Open the ledger under `state_dir`, made when there is none, and bring it in order.

        `origin` is `toolrunner/<instance>`, `now` gives RFC 3339 UTC times. Raises `RunnerError` (ledger) when another
        process writes it, when the disk fails, or when what was acknowledged is damaged."""
        folder, signer = state_dir / "ledger", Signer(origin, key)
        with disk.to_disk("opening the ledger"):
            disk.make_folder(folder)
            held = disk.lock(folder / LOCK)
            opened: Recorder | None = None
            try:
                found = recover(folder, signer.verifier)
                content = ContentStore(state_dir / "content")
                opened = cls(folder, signer, content, found or nothing(), clock)
                opened._begin(found, now)
            except BaseException:
                if opened:
                    opened._release()
                os.close(held)
                raise
        opened._lock = held
        return opened

    def _begin(self, found: Recovered | None, now: Callable[[], str]) -> None:
        """Create, or repair, or just go on; then the tail's file is open for appending."""
        if found is None:
            self._sign()
            self._publish()
            # A crash here leaves a checkpoint of size 0 and no tail: creation is done again.
            self._rewrite_tail()
            return
        if found.cut:
            self._admit(entries.Repair(time=now(), dropped=found.cut, size=self._tree.size))
        if found.cut or self._tree.size > found.signed:
            # The readable part, the note of the cut and a checkpoint over both replace the tail in one rename: a
            # crash before it repeats the repair, and after it nothing is left to repair.
            self._sign()
            self._durable = self._tree.size
            self._rewrite_tail()
        else:
            self._file = os.open(self._folder / TAIL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.tidy()

    def close(self) -> None:
        """Commit, leave a folder that other tlog readers can read, and let go. After a failure: only let go."""
        try:
            if self._failed is None:
                self.commit()
                self.tidy(stopping=True)
        finally:
            self._release()

    def _release(self) -> None:
        self._content.close()
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1
        self._failed = self._failed or refuse("ledger", "the recorder is closed")

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        """Every write goes through here: a failure of the disk is the end, and is never tried again."""
        if self._failed is not None:
            raise self._failed
        try:
            with disk.to_disk(what):
                yield
        except BaseException as error:
            self._failed = error if isinstance(error, RunnerError) else refuse("ledger", f"{what} was cut off")
            raise

    @property
    def _base(self) -> int:
        """The position of the tail's first entry."""
        return self._settled_tree.size

    # --- entries and content ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The position of the next entry."""
        return self._tree.size

    @property
    def durable(self) -> int:
        """Every entry below this is on disk, with its content and a signed checkpoint over it."""
        return self._durable

    @property
    def newest_call(self) -> str:
        """The greatest call id so far, "" for none. New ones must be greater (see `ledger/sequence.py`)."""
        return self._sequence.state.newest

    def append(self, entry_bytes: bytes) -> tuple[int, str]:
        """Take one entry into the current group: its position, and its digest.

        Raises `RunnerError` (ledger), and writes nothing, when the bytes are not canonical, of an unknown kind or
        version, or out of order. That refusal is not the end: the next entry may come."""
        if self._failed is not None:
            raise self._failed
        entry = entries.decode(entry_bytes)
        self._sequence.check(entry)
        return self._take(entry_bytes, entry), entries.digest(entry_bytes)

    def _admit(self, entry: entries.AnyEntry) -> int:
        self._sequence.check(entry)
        return self._take(entries.encode(entry), entry)

    def _take(self, data: bytes, entry: entries.AnyEntry) -> int:
        position = self._tree.size
        self._sequence.apply(position, entry)
        self._pending.append(Pending(data, entry))
        self._tiles += self._tree.add(leaf_hash(data))
        return position

    def store(self, data: bytes) -> str:
        """Keep content; it is durable before any entry of the same group. Returns its name."""
        with self._alive("storing content"):
            return self._content.store(data)

    def open_stream(self, stream: int, salt: bytes = b"") -> None:
        """Begin content that comes in pieces; `salt` is its first bytes."""
        with self._alive("storing content"):
            self._content.open_stream(stream, salt)

    def write_stream(self, stream: int, data: bytes) -> None:
        """The next piece of it."""
        with self._alive("storing content"):
            self._content.write_stream(stream, data)

    def close_stream(self, stream: int, digest: str = "", *, drop: bool = False) -> None:
        """The end of it. A name other than `digest` is the recorder's end too; `drop` forgets the content."""
        with self._alive("storing content"):
            self._content.close_stream(stream, digest, drop=drop)

    def commit(self) -> int:
        """Make the group durable: content, entries, and a signed checkpoint. Returns the size then on disk.

        Blocking. Raises `RunnerError` (ledger) when the disk fails: nothing of the group is acknowledged then."""
        self.tidy()
        with self._alive("writing the ledger"):
            self._content.commit()
            # A crash here leaves content that no entry names.
            if self._tree.size == self._durable:
                return self._durable
            group = self._pending[self._durable - self._base :]
            self._sign()
            written = [tails.record(tails.ENTRY, pending.data) for pending in group]
            disk.write_all(self._file, b"".join([*written, tails.record(tails.SIGNED, self._note)]))
            # A crash here leaves a torn group, which nobody was told of: it is cut and noted at the next start.
            os.fdatasync(self._file)
            # From here on the group is recoverable: acknowledge.
            self._durable = self._tree.size
        return self._durable

    def tidy(self, *, stopping: bool = False) -> None:
        """What is due after an acknowledgement: full bundles become files, the checkpoint file follows.

        Call it when the acknowledgement is sent; otherwise the next `commit` does it first."""
        with self._alive("writing tiles"):
            if self._durable - self._base >= TILE_WIDTH:
                self._settle()
            if self._published != self._durable and (stopping or self._clock() - self._published_at >= PUBLISH_S):
                if stopping:
                    held = [pending.data for pending in self._pending]
                    tiles.write_partials(self._tiles_folder, self._tree, held)
                self._publish()

    # --- reading back ----------------------------------------------------------------------------------

    def since(self, position: int, batch: int, kinds: frozenset[str] = STATE_KINDS) -> Iterator[tuple[int, bytes]]:
        """At most `batch` entries of `kinds` from `position` on, in order: (position, canonical bytes). Calls only
        when they were allowed. Fewer than `batch` means that the ledger's end (`size`) was reached."""
        return islice(select(self._read(position), kinds), batch)

    def _read(self, position: int) -> Iterator[tuple[int, bytes]]:
        base, pending = self._base, self._pending
        for number in range(position // TILE_WIDTH, base // TILE_WIDTH):
            with self._alive("reading the ledger"):
                bundle = tiles.read_bundle(self._tiles_folder, number)
            for place, data in enumerate(bundle, number * TILE_WIDTH):
                if place >= position:
                    yield place, data
        for place in range(max(position, base), base + len(pending)):
            yield place, pending[place - base].data

    def open_calls(self) -> list[OpenCall]:
        """Calls with a plan and no outcome, oldest first."""
        found = [OpenCall(call, task, position) for call, (position, task) in self._sequence.state.open.items()]
        return sorted(found, key=lambda opened: opened.position)

    def seal_interrupted(self, now: str) -> int:
        """Append an `interrupted` outcome for each open call: for the ones that a dead run left. Returns how many;
        they are durable after the next `commit`."""
        if self._failed is not None:
            raise self._failed
        sealed = self.open_calls()
        for opened in sealed:
            self._admit(
                entries.Outcome(time=now, call=opened.call, task=opened.task, outcome="interrupted", reason=UNKNOWN_END)
            )
        return len(sealed)

    # --- writes beside the tail's end ------------------------------------------------------------------

    def _sign(self) -> None:
        head = Checkpoint(self._signer.verifier.name, self._tree.size, self._tree.root())
        self._note = self._signer.sign(head.text())

    def _publish(self) -> None:
        disk.replace(self._folder / CHECKPOINT, self._note)
        self._published, self._published_at = self._durable, self._clock()

    def _settle(self) -> None:
        """Turn every full bundle of the tail into files, then begin a new tail after them."""
        base = self._base
        full = (self._durable - base) // TILE_WIDTH * TILE_WIDTH
        written = tiles.write_full(
            self._tiles_folder, base, [pending.data for pending in self._pending[:full]], self._tiles
        )
        # A crash here leaves tiles and a tail that hold the same entries: the next start does this again.
        for position, pending in enumerate(self._pending[:full], base):
            self._settled.apply(position, pending.entry)
        for tile in written:
            if tile.level == 0:
                self._settled_tree.add(tile_root(tile.data), TILE_HEIGHT)
        del self._pending[:full]
        self._tiles = [tile for tile in self._tiles if tile not in written]
        self._rewrite_tail()
        # A crash here leaves partial tiles beside the full ones.
        tiles.drop_outgrown(self._tiles_folder, written)

    def _rewrite_tail(self) -> None:
        """Replace the tail by one that begins after the bundles, ends at `_durable`, and is signed by `_note`."""
        head = tails.Head(self._base, self._durable, self._settled_tree.root(), self._settled)
        held = [pending.data for pending in self._pending[: self._durable - self._base]]
        disk.replace(self._folder / TAIL, tails.build(tails.sign_head(head, self._signer), held, self._note))
        # From here on the new tail is the ledger's end.
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._folder / TAIL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
