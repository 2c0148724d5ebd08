"""The files that are written once: full tiles, bundles and packs, and the partial tiles of a stopped ledger."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from runner.ledger.merkle import HASH, TILE_HEIGHT, TILE_WIDTH, Tile, Tree
from runner.ledger.tile import ENTRIES, Place, pack_bundle, pack_contents, pack_path, split_bundle, tile_path
from runner.recorder.durability import write_once


def write_full(folder: Path, base: int, entries: Sequence[bytes], tiles: Sequence[Tile]) -> list[Tile]:
    """Write `entries` (whole bundles from position `base` on) and the tiles that they complete, durably.

    Returns those tiles. Raises OSError, or `RunnerError` (ledger) when a file exists and holds other bytes."""
    end = base + len(entries)
    due = [tile for tile in tiles if (tile.number + 1) << (TILE_HEIGHT * (tile.level + 1)) <= end]
    files = [(folder / tile_path(Place(tile.level, tile.number)), tile.data) for tile in due]
    for start in range(0, len(entries), TILE_WIDTH):
        place = Place(ENTRIES, (base + start) // TILE_WIDTH)
        files.append((folder / tile_path(place), pack_bundle(entries[start : start + TILE_WIDTH])))
    write_once(files)
    return due


def write_packs(folder: Path, base: int, contents: Sequence[tuple[bytes, ...]]) -> None:
    """Write what came with the entries of whole bundles, from position `base` on, under the content folder, durably.

    A bundle whose entries came with nothing has no pack. Raises as `write_full`."""
    files: list[tuple[Path, bytes]] = []
    for start in range(0, len(contents), TILE_WIDTH):
        packed = pack_contents(chain.from_iterable(contents[start : start + TILE_WIDTH]))
        if packed:
            files.append((folder / pack_path((base + start) // TILE_WIDTH, packed), packed))
    write_once(files)


def write_partials(folder: Path, tree: Tree, entries: Sequence[bytes]) -> None:
    """Write the partial tiles of `tree`, and its unfinished bundle `entries`, for tlog readers of any make."""
    files = [(Place(tile.level, tile.number, len(tile.data) // HASH), tile.data) for tile in tree.partials()]
    if entries:
        files.append((Place(ENTRIES, tree.size // TILE_WIDTH, len(entries)), pack_bundle(entries)))
    for place, _ in files:
        _drop_partials(folder, place.level, place.number, keep=str(place.width))
    write_once([(folder / tile_path(place), data) for place, data in files])


def drop_outgrown(folder: Path, tiles: Sequence[Tile]) -> None:
    """Remove the partial tiles and bundles of places that are full now."""
    for tile in tiles:
        _drop_partials(folder, tile.level, tile.number)
        if tile.level == 0:
            _drop_partials(folder, ENTRIES, tile.number)


def _drop_partials(folder: Path, level: int, number: int, keep: str = "") -> None:
    partials = folder / f"{tile_path(Place(level, number))}.p"
    if not partials.is_dir():
        return
    for partial in partials.iterdir():
        if partial.name != keep:
            partial.unlink()
    if not keep:
        partials.rmdir()


def read_bundle(folder: Path, number: int) -> list[bytes]:
    """The entries of a full bundle. Raises OSError, or `RunnerError` (ledger) when it does not hold 256 entries."""
    return split_bundle((folder / tile_path(Place(ENTRIES, number))).read_bytes(), TILE_WIDTH)
