"""Reading the files of a ledger that is being verified: what cannot be read is a finding, never an exception."""

from __future__ import annotations

from pathlib import Path

from runner.errors import RunnerError
from runner.evidence import report as found
from runner.evidence.read import read_file
from runner.evidence.report import Findings
from runner.ledger.merkle import FULL_TILE, TILE_WIDTH
from runner.ledger.tile import ENTRIES, TILES, Place, bundle_limit, split_bundle, tile_path


class Files:
    """A ledger folder whose contents are suspect."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self.folder = folder
        self._findings = findings

    def exists(self, name: str) -> bool:
        """Whether there is something under this name."""
        return (self.folder / name).exists()

    def read(self, name: str, limit: int, check: int = found.FILES) -> bytes | None:
        """A file's bytes; None after a finding of `check`."""
        try:
            return read_file(self.folder / name, limit)
        except RunnerError as error:
            self._findings.add(check, name, error.refused.reason)
            return None

    def tile(self, place: Place) -> bytes | None:
        """A full tile."""
        name = file_name(place)
        data = self.read(name, FULL_TILE)
        if data is not None and len(data) != FULL_TILE:
            self._findings.add(found.TILES, name, f"a tile of {len(data)} bytes instead of {FULL_TILE}")
            return None
        return data

    def bundle(self, number: int, width: int = 0) -> list[bytes] | None:
        """The entries of a full bundle, or of a partial one of `width`."""
        name = file_name(Place(ENTRIES, number, width))
        data = self.read(name, bundle_limit())
        if data is None:
            return None
        try:
            return split_bundle(data, width or TILE_WIDTH)
        except RunnerError as error:
            self._findings.add(found.ENTRIES, name, error.refused.reason)
            return None


def file_name(place: Place) -> str:
    """The path of a tile or bundle in the ledger folder."""
    return f"{TILES}/{tile_path(place)}"
