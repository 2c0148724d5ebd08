"""Opening a ledger: what the files say, checked, and what must be written before work goes on.

Nothing acknowledged is ever dropped here. Damage that a crash cannot explain is a refusal, never a repair.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from runner.errors import RunnerError, refuse
from runner.ledger import tail as tails
from runner.ledger.entry import Rotate, decode
from runner.ledger.merkle import FULL_TILE, TILE_WIDTH, Tile, Tree, leaf_hash
from runner.ledger.note import Checkpoint, Verifier, read_checkpoint
from runner.ledger.sequence import Sequence, State
from runner.ledger.tile import CHECKPOINT, TAIL, TEMPORARY, TILES, Place, tile_path

_RESTORE = "keep the folder for examination; restore a backup, or move it away to begin a new ledger"


Pending = tuple[bytes, tuple[bytes, ...]]  # an entry that lies in the tail, and the content that came with it


class Recovered(NamedTuple):
    """A ledger as found. `tiles` are full tiles whose entries still lie in the tail."""

    settled: State  # of the entries before the tail
    marks: list[State]  # of those before the first, second, … bundle's end in the tail
    settled_tree: Tree  # of the same
    sequence: Sequence  # of all entries
    tree: Tree
    entries: list[Pending]  # in the tail
    tiles: list[Tile]
    note: bytes  # the newest checkpoint of the tail
    signed: int  # its size
    successor: str  # the key that the newest rotation in the tail names, "" for none
    cut: int  # unreadable bytes at the tail's end, of a write that was never acknowledged


def recover(folder: Path, verifier: Verifier) -> Recovered | None:
    """Read and check the ledger in `folder`; None when there is none yet.

    Raises `RunnerError` (ledger), naming the file, when acknowledged entries are missing or damaged. Writes nothing
    but the removal of temporary files."""
    for left in (TAIL, CHECKPOINT):
        (folder / (left + TEMPORARY)).unlink(missing_ok=True)
    published = _published(folder, verifier)
    if published is None:
        return None
    data = _read(folder / TAIL)
    try:
        # What no checkpoint signs was not acknowledged, and may be anybody's: it is cut, never signed after the fact.
        found = tails.read_tail(data, verifier).acknowledged
        return _replay(folder, verifier, found, published)
    except RunnerError as error:
        if error.refused.next_step == _RESTORE:
            raise
        raise refuse(
            "ledger", error.refused.reason, field=error.refused.field or str(folder / TAIL), next_step=_RESTORE
        ) from error


def _published(folder: Path, verifier: Verifier) -> Checkpoint | None:
    """The checkpoint file's content; None when no ledger was ever created here."""
    has_tail, has_tiles = (folder / TAIL).exists(), (folder / TILES).exists()
    path = folder / CHECKPOINT
    if not path.exists():
        if has_tail or has_tiles:
            raise refuse("ledger", "the checkpoint is missing", field=str(path), next_step=_RESTORE)
        return None
    try:
        published = read_checkpoint(_read(path), verifier)
    except RunnerError as error:
        raise refuse("ledger", error.refused.reason, field=str(path), next_step=_RESTORE) from error
    if has_tail:
        return published
    if published.size or has_tiles:
        raise refuse("ledger", "the tail is missing", field=str(folder / TAIL), next_step=_RESTORE)
    return None  # creation was cut off between its two files


def _replay(folder: Path, verifier: Verifier, found: tails.Tail, published: Checkpoint) -> Recovered:
    head = found.head
    tree = Tree.restore(head.base, lambda level, number: _read_tile(folder, level, number))
    if tree.root() != head.root:
        raise refuse("ledger", f"the tiles do not add up to the signed root at {head.base}", field=str(folder / TILES))
    settled_tree, sequence = tree.copy(), Sequence(head.state)
    entries: list[Pending] = []
    marks: list[State] = []
    tiles: list[Tile] = []
    note, signed, successor = b"", -1, ""
    contents: list[bytes] = []
    for record in found.records:
        if record.kind == tails.CONTENT:
            contents.append(record.data)
        elif record.kind == tails.ENTRY:
            entry = decode(record.data)
            sequence.check(entry)
            sequence.apply(tree.size, entry)
            entries.append((record.data, tuple(contents)))
            successor = entry.new if isinstance(entry, Rotate) else successor
            contents.clear()
            if len(entries) % TILE_WIDTH == 0:
                marks.append(sequence.state.copy())
            tiles += tree.add(leaf_hash(record.data))
        else:
            checkpoint = read_checkpoint(record.data, verifier)
            if (checkpoint.size, checkpoint.root) != (tree.size, tree.root()):
                raise refuse("ledger", f"a checkpoint does not fit the entries before it, at byte {record.offset}")
            note, signed = record.data, checkpoint.size
        if tree.size == published.size and tree.root() != published.root:
            raise refuse("ledger", "checkpoint and tail are of two histories", field=str(folder / CHECKPOINT))
    known = max(published.size, head.size)
    if signed < known:
        raise refuse("ledger", f"{known} entries were acknowledged, {max(signed, 0)} are readable and signed")
    cut = found.size - found.end
    return Recovered(head.state, marks, settled_tree, sequence, tree, entries, tiles, note, signed, successor, cut)


def nothing() -> Recovered:
    """A ledger that has no entry yet."""
    return Recovered(State(), [], Tree(), Sequence(), Tree(), [], [], b"", 0, "", 0)


def _read_tile(folder: Path, level: int, number: int) -> bytes:
    path = folder / TILES / tile_path(Place(level, number))
    data = _read(path)
    if len(data) != FULL_TILE:
        raise refuse("ledger", f"a tile of {len(data)} bytes instead of {FULL_TILE}", field=str(path))
    return data


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise refuse("ledger", "it is missing", field=str(path), next_step=_RESTORE) from None
