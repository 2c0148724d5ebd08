"""A ledger as a static C2SP tlog-tiles folder that readers of any make understand."""

from __future__ import annotations

from pathlib import Path

from runner.errors import refuse
from runner.evidence.read import EXPORTED_KEY, Ledger, read_file, rotation_files
from runner.ledger.merkle import HASH, TILE_HEIGHT, TILE_WIDTH, Tile, Tree, leaf_hash, tile_root
from runner.ledger.proof import MAX_PROOF
from runner.ledger.tile import CHECKPOINT, ENTRIES, TILES, Place, pack_bundle, tile_path


def export(ledger: Ledger, target: Path) -> int:
    """Write every signed entry, all tiles (the partial ones too), the checkpoint and the public key under `target`.

    Tiles are made from the entries again, not copied. Returns the number of entries. Raises `RunnerError` (ledger)
    when `target` is in use, cannot be written, or the entries do not add up to the signed root."""
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise refuse("ledger", "the folder is not empty", field=str(target), next_step="name a new one")
        return _export(ledger, target)
    except OSError as error:
        raise refuse("ledger", f"cannot write there: {error.strerror}", field=str(error.filename or target)) from error


def _export(ledger: Ledger, target: Path) -> int:
    signed, tree = ledger.checkpoint, Tree()
    full = signed.size // TILE_WIDTH
    run: list[bytes] = []
    for position, data in ledger.entries():
        if position >= signed.size:
            break
        run.append(data)
        if len(run) == TILE_WIDTH:
            tile = b"".join([leaf_hash(entry) for entry in run])
            _write(target, Place(0, position // TILE_WIDTH), tile)
            _write(target, Place(ENTRIES, position // TILE_WIDTH), pack_bundle(run))
            for above in tree.add(tile_root(tile), TILE_HEIGHT):
                _write(target, Place(above.level, above.number), above.data)
            run.clear()
    for data in run:
        tree.add(leaf_hash(data))
    if (tree.size, tree.root()) != (signed.size, signed.root):
        raise refuse("ledger", "the entries do not add up to the signed root: nothing to export", field=str(target))
    for partial in tree.partials():
        _write(target, _place(partial), partial.data)
    if run:
        _write(target, Place(ENTRIES, full, len(run)), pack_bundle(run))
    for path in rotation_files(ledger.folder):
        _put(target / path.name, read_file(path, MAX_PROOF))
    _put(target / EXPORTED_KEY, f"{ledger.verifier.text}\n".encode())
    # Last, so that a folder with a checkpoint is whole.
    _put(target / CHECKPOINT, ledger.note)
    return signed.size


def _place(partial: Tile) -> Place:
    return Place(partial.level, partial.number, len(partial.data) // HASH)


def _write(target: Path, place: Place, data: bytes) -> None:
    _put(target / TILES / tile_path(place), data)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
