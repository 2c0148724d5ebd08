"""The files of one ledger: the tail that grows, and the tiles, bundles and checkpoint that settle out of it.

Every method that writes may raise OSError; the caller then never calls again (see `durability.py`). Only after `NoRoom`
of `settle`, `publish` or `write_partials` it may: they have changed no file that was there, and are done again later.
The comments mark the points between which a crash may fall, and what the next start finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from hashlib import sha256
from pathlib import Path

from runner.errors import refuse
from runner.ledger import tail as tails
from runner.ledger.merkle import TILE_HEIGHT, TILE_WIDTH, Tile, Tree, leaf_hash, tile_root
from runner.ledger.note import Checkpoint, Handover, Signer
from runner.ledger.proof import Inclusion
from runner.ledger.rotation import MAX_ROTATIONS
from runner.ledger.sequence import State
from runner.ledger.tile import CHECKPOINT, ROTATION, TAIL, TILES
from runner.recorder import durability as disk
from runner.recorder import tiles
from runner.recorder.recovery import Pending, Recovered


class Journal:
    """Entries on their way to disk. `durable` is the number of those that are there, signed."""

    def __init__(
        self, folder: Path, content: Path, signer: Signer, found: Recovered, more_room: Callable[[], bool]
    ) -> None:
        self._folder = folder
        self._more_room = more_room
        self._tiles_folder = folder / TILES
        self._content = content
        self.signer = signer
        self._settled: State = found.settled  # of the entries that are in bundles, as is the next
        self._marks: list[State] = found.marks  # of the entries before each end of a bundle that is due
        self._settled_tree: Tree = found.settled_tree
        self._tree: Tree = found.tree  # of the entries up to the newest checkpoint: a group is hashed as a whole
        self._pending: list[Pending] = found.entries  # every entry behind the bundles, written or not
        self._full: list[Tile] = found.tiles  # not yet files
        self._note = found.note
        self._file = -1
        self.durable = found.signed
        self.published = -1
        self.base = found.settled_tree.size  # the position of the tail's first entry
        self.size = found.tree.size  # the position of the next entry

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
        """Go on in a new tail of what was acknowledged and taken since, signed: one rename, so a crash before it
        repeats the repair, and after it nothing is left to repair."""
        self._sign()
        self.durable = self.size
        self._rewrite_tail()

    def hand_over(self, new: Signer) -> None:
        """Sign from here on with `new`: the last entry, taken or written already, is the one that says so.

        May be done again after a crash at any point of it: the tail's rename decides, the rest follows from it."""
        self.signer = Handover(self.signer, new)
        self._sign()
        self.durable = self.size
        self._rewrite_tail()
        # From here on the key is replaced: whoever reads the tail accepts both, and the log's next size is the new
        # key's. A crash before leaves the old key, alone.
        self.publish()
        before = self._settled_tree.copy()
        *earlier, (entry, _) = self._pending
        for data, _ in earlier:
            before.add(leaf_hash(data))
        handover = Inclusion(before.size, entry, tuple(before.next_proof()), self._note).text()
        disk.replace(self._next_rotation(handover), handover)
        self.signer = new
        self._sign()
        self.published = -1

    def _next_rotation(self, handover: bytes) -> Path:
        """Where the handover goes: behind the others, or where it was written before a crash."""
        for number in range(1, MAX_ROTATIONS + 1):
            path = self._folder / f"{ROTATION}.{number}"
            if not path.exists() or path.read_bytes() == handover:
                return path
        raise refuse(
            "ledger",
            f"the key was replaced {MAX_ROTATIONS} times",
            next_step="move the ledger folder away to begin a new ledger",
        )

    def take(self, data: bytes, contents: tuple[bytes, ...], state: State) -> None:
        """Add an entry to the group, with small content that it names; `state` is that of all entries with it."""
        self._pending.append((data, contents))
        self.size += 1
        if len(self._pending) % TILE_WIDTH == 0:
            self._marks.append(state.copy())

    def write_group(self) -> None:
        """Make the group durable, with a signed checkpoint over it."""
        self._sign()
        written = tails.group(self._pending[self.durable - self.base :], self._note)
        disk.write_all(self._file, written, self._more_room)
        # A crash here leaves a torn group, which nobody was told of: it is cut and noted at the next start.
        os.fdatasync(self._file)
        # From here on the group is recoverable.
        self.durable = self.size

    def settle(self) -> None:
        """Turn every full bundle of the tail into files, then begin a new tail after them."""
        base = self.base
        bundles = (self.durable - base) // TILE_WIDTH
        full = bundles * TILE_WIDTH
        if not full:
            return
        bundled = [data for data, _ in self._pending[:full]]
        tiles.write_packs(self._content, base, [contents for _, contents in self._pending[:full]])
        written = tiles.write_full(self._tiles_folder, base, bundled, self._full)
        # A crash here leaves packs, tiles and a tail that hold the same: the next start does this again.
        self._settled = self._marks[bundles - 1]
        for tile in written:
            if tile.level == 0:
                self._settled_tree.add(tile_root(tile.data), TILE_HEIGHT)
        self.base = self._settled_tree.size
        del self._pending[:full], self._marks[:bundles]
        self._full = [tile for tile in self._full if tile not in written]
        # Without room for the new tail, the old one goes on: it begins earlier, and holds all that this one would.
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
        tiles.write_partials(self._tiles_folder, self._tree, [data for data, _ in self._pending])

    def forget(self, digests: Collection[bytes]) -> None:
        """Leave this content out of the tail from now on. Everything must be durable. One rename: a crash before it
        leaves the old tail, and the removal is done again."""
        kept = [
            (data, tuple(each for each in contents if sha256(each).digest() not in digests))
            for data, contents in self._pending
        ]
        if kept != self._pending:
            self._pending = kept
            self._rewrite_tail()

    def contents(self) -> Iterator[bytes]:
        """The small content that lies in the tail, and in no pack yet."""
        for _, contents in self._pending:
            yield from contents

    def entries(self, position: int) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) from `position` on, those of the unwritten group too."""
        base, pending = self.base, self._pending
        for number in range(position // TILE_WIDTH, base // TILE_WIDTH):
            for place, data in enumerate(tiles.read_bundle(self._tiles_folder, number), number * TILE_WIDTH):
                if place >= position:
                    yield place, data
        for place in range(max(position, base), base + len(pending)):
            yield place, pending[place - base][0]

    def close(self) -> None:
        """Let go of the tail, without writing."""
        stale, self._file = self._file, -1
        if stale >= 0:
            os.close(stale)

    def _sign(self) -> None:
        for data, _ in self._pending[self._tree.size - self.base :]:
            self._full += self._tree.add(leaf_hash(data))
        head = Checkpoint(self.signer.verifier.name, self._tree.size, self._tree.root())
        self._note = self.signer.sign(head.text())

    def _rewrite_tail(self) -> None:
        """Replace the tail by one that begins after the bundles, ends at `durable`, and has the newest note."""
        head = tails.Head(self.base, self.durable, self._settled_tree.root(), self._settled)
        held = self._pending[: self.durable - self.base]
        disk.replace(self._folder / TAIL, tails.build(tails.sign_head(head, self.signer), held, self._note))
        # From here on the new tail is the ledger's end.
        self.close()
        self.go_on()
