"""The files of one ledger: the tail that grows, and the tiles, bundles and checkpoint that settle out of it.

Every method that writes may raise OSError; the caller then never calls again (see `durability.py`). The comments
mark the points between which a crash may fall, and what the next start finds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runner.ledger import tail as tails
from runner.ledger.entry import AnyEntry
from runner.ledger.merkle import TILE_HEIGHT, TILE_WIDTH, Tile, Tree, leaf_hash, tile_root
from runner.ledger.note import Checkpoint, Signer
from runner.ledger.sequence import State
from runner.ledger.tile import CHECKPOINT, TAIL, TILES
from runner.recorder import durability as disk
from runner.recorder import tiles
from runner.recorder.recovery import Pending, Recovered


class Journal:
    """Entries on their way to disk. `durable` is the number of those that are there, signed."""

    def __init__(self, folder: Path, signer: Signer, found: Recovered) -> None:
        self._folder = folder
        self._tiles_folder = folder / TILES
        self._signer = signer
        self._settled: State = found.settled  # of the entries that are in bundles, as is the next
        self._settled_tree: Tree = found.settled_tree
        self._tree: Tree = found.tree
        self._pending: list[Pending] = found.entries  # every entry behind the bundles, written or not
        self._full: list[Tile] = found.tiles  # not yet files
        self._note = found.note
        self._file = -1
        self.durable = found.signed
        self.published = -1

    @property
    def size(self) -> int:
        """The position of the next entry."""
        return self._tree.size

    @property
    def base(self) -> int:
        """The position of the tail's first entry."""
        return self._settled_tree.size

    def create(self) -> None:
        """Begin a ledger."""
        self._sign()
        self.publish()
        # A crash here leaves a checkpoint of size 0 and no tail: creation is done again.
        self._rewrite_tail()

    def go_on(self) -> None:
        """Append to the tail that is there."""
        self._file = os.open(self._folder / TAIL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)

    def repair(self) -> None:
        """Go on in a new tail of what was readable and taken since, signed: one rename, so a crash before it repeats
        the repair, and after it nothing is left to repair."""
        self._sign()
        self.durable = self._tree.size
        self._rewrite_tail()

    def take(self, data: bytes, entry: AnyEntry) -> int:
        """Add an entry to the group. Returns its position."""
        self._pending.append(Pending(data, entry))
        self._full += self._tree.add(leaf_hash(data))
        return self._tree.size - 1

    def write_group(self) -> None:
        """Make the group durable, with a signed checkpoint over it."""
        group = self._pending[self.durable - self.base :]
        self._sign()
        written = [tails.record(tails.ENTRY, pending.data) for pending in group]
        disk.write_all(self._file, b"".join([*written, tails.record(tails.SIGNED, self._note)]))
        # A crash here leaves a torn group, which nobody was told of: it is cut and noted at the next start.
        os.fdatasync(self._file)
        # From here on the group is recoverable.
        self.durable = self._tree.size

    def settle(self) -> None:
        """Turn every full bundle of the tail into files, then begin a new tail after them."""
        base = self.base
        full = (self.durable - base) // TILE_WIDTH * TILE_WIDTH
        if not full:
            return
        bundled = [pending.data for pending in self._pending[:full]]
        written = tiles.write_full(self._tiles_folder, base, bundled, self._full)
        # A crash here leaves tiles and a tail that hold the same entries: the next start does this again.
        for position, pending in enumerate(self._pending[:full], base):
            self._settled.apply(position, pending.entry)
        for tile in written:
            if tile.level == 0:
                self._settled_tree.add(tile_root(tile.data), TILE_HEIGHT)
        del self._pending[:full]
        self._full = [tile for tile in self._full if tile not in written]
        self._rewrite_tail()
        # A crash here leaves partial tiles beside the full ones.
        tiles.drop_outgrown(self._tiles_folder, written)

    def publish(self) -> None:
        """Replace the checkpoint file by the newest signed note."""
        disk.replace(self._folder / CHECKPOINT, self._note)
        self.published = self.durable

    def write_partials(self) -> None:
        """Write the partial tiles of the current size, so that any tlog reader can read the folder of a stopped
        daemon. Everything must be durable."""
        tiles.write_partials(self._tiles_folder, self._tree, [pending.data for pending in self._pending])

    def entries(self, position: int) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) from `position` on, those of the unwritten group too."""
        base, pending = self.base, self._pending
        for number in range(position // TILE_WIDTH, base // TILE_WIDTH):
            for place, data in enumerate(tiles.read_bundle(self._tiles_folder, number), number * TILE_WIDTH):
                if place >= position:
                    yield place, data
        for place in range(max(position, base), base + len(pending)):
            yield place, pending[place - base].data

    def close(self) -> None:
        """Let go of the tail, without writing."""
        stale, self._file = self._file, -1
        if stale >= 0:
            os.close(stale)

    def _sign(self) -> None:
        head = Checkpoint(self._signer.verifier.name, self._tree.size, self._tree.root())
        self._note = self._signer.sign(head.text())

    def _rewrite_tail(self) -> None:
        """Replace the tail by one that begins after the bundles, ends at `durable`, and has the newest note."""
        head = tails.Head(self.base, self.durable, self._settled_tree.root(), self._settled)
        held = [pending.data for pending in self._pending[: self.durable - self.base]]
        disk.replace(self._folder / TAIL, tails.build(tails.sign_head(head, self._signer), held, self._note))
        # From here on the new tail is the ledger's end.
        self.close()
        self.go_on()
