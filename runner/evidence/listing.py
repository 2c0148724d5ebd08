"""What lies in a ledger folder, counted without being read: names that fit no rule are the reader's to report."""

from __future__ import annotations

import os
from pathlib import Path

from runner.evidence.read import EXPORTED_KEY, ROTATION_NAME
from runner.ledger.tile import (
    CHECKPOINT,
    KEY,
    LOCK,
    NEXT_KEY,
    PUBLIC_KEY,
    TAIL,
    TEMPORARY,
    TILES,
    Place,
    parse_tile_path,
)

_ROOT = frozenset({CHECKPOINT, KEY, LOCK, NEXT_KEY, PUBLIC_KEY, EXPORTED_KEY, TAIL})
_MAX_PARTIALS = 4096  # a ledger has a handful; more are strays
_MAX_DEPTH = 12


def _known(name: str) -> bool:
    return name in _ROOT or ROTATION_NAME.match(name) is not None


class Listing:
    """The files of a folder. Full tiles are only counted (number and greatest), so that memory stays flat."""

    def __init__(self, folder: Path) -> None:
        self.count: dict[int, int] = {}  # level -> full tiles
        self.last: dict[int, int] = {}  # level -> greatest number of a full tile
        self.partials: list[Place] = []
        self.strays: list[str] = []
        self.unfinished: list[str] = []  # temporary files of a writer that lives or died
        for item in sorted(os.scandir(folder), key=lambda item: item.name):
            if item.name == TILES and item.is_dir(follow_symlinks=False):
                self._walk(item.path, "", 0)
            elif item.name.endswith(TEMPORARY) and _known(item.name.removesuffix(TEMPORARY)):
                self.unfinished.append(item.name)
            elif not _known(item.name) or not item.is_file(follow_symlinks=False):
                self.strays.append(item.name)

    def _walk(self, folder: str, prefix: str, depth: int) -> None:
        for item in os.scandir(folder):
            name = f"{prefix}{item.name}"
            if item.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                self._walk(item.path, f"{name}/", depth + 1)
            elif item.is_file(follow_symlinks=False):
                self._add(name)
            else:
                self.strays.append(f"{TILES}/{name}")

    def _add(self, name: str) -> None:
        place = parse_tile_path(name.removesuffix(TEMPORARY))
        if place is None or (place.width and len(self.partials) >= _MAX_PARTIALS):
            self.strays.append(f"{TILES}/{name}")
        elif name.endswith(TEMPORARY):
            self.unfinished.append(f"{TILES}/{name}")
        elif place.width:
            self.partials.append(place)
        else:
            self.count[place.level] = self.count.get(place.level, 0) + 1
            self.last[place.level] = max(self.last.get(place.level, -1), place.number)
