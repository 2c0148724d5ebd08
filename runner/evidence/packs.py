"""Reading the small content that came with entries: in the pack of their bundle, or in the tail until there is one.

Nothing here is trusted for its place or its name: whatever is found is hashed before it is given away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from runner.errors import RunnerError
from runner.evidence.read import MAX_TAIL, read_file
from runner.ledger import tail as tails
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.tile import TAIL, pack_prefix, split_pack

_MAX_PACK = 64 << 20  # 256 entries with sixteen full pieces each; more is not one
_MAX_PACKS = 8  # of one number: one for each ledger that used the folder


class Packs:
    """The packs under a content folder, and the tail of the ledger beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail = folder.parent / "ledger" / TAIL
        self._number = -1
        self._packed: dict[bytes, bytes] = {}  # what the packs of bundle `_number` hold
        self._listed: tuple[Path, list[Path]] = (folder, [])
        self._held: dict[bytes, bytes] = {}
        self._seen: tuple[int, int] | None = None  # inode and size of the tail that `_held` is of

    def get(self, position: int, name: bytes) -> bytes | None:
        """The content of SHA-256 `name` that came with the entry at `position`; None when it is not there."""
        if position < 0:
            return self._in_tail(name)
        number = position // TILE_WIDTH
        found = self._in_pack(number, name)
        if found is None:
            found = self._in_tail(name)
        if found is None and not self._packed:
            # The writer puts content into its pack before it takes it out of the tail.
            self._number, self._listed = -1, (self._folder, [])
            found = self._in_pack(number, name)
        return found

    def lack(self, places: Mapping[bytes, int]) -> list[bytes]:
        """Which of these (name -> position of an entry that names it) are not there. One look at the tail for all of
        them, and no second one: this is for content that should be gone."""
        self._read_tail()
        return [
            name
            for name, position in places.items()
            if name not in self._held and self._in_pack(position // TILE_WIDTH, name) is None
        ]

    def _in_pack(self, number: int, name: bytes) -> bytes | None:
        if number != self._number:
            self._packed = {sha256(content).digest(): content for content in self._read(number)}
            self._number = number
        return self._packed.get(name)

    def _read(self, number: int) -> Iterator[bytes]:
        prefix = self._folder / pack_prefix(number)
        if self._listed[0] != prefix.parent:
            self._listed = (prefix.parent, sorted(prefix.parent.iterdir()) if prefix.parent.is_dir() else [])
        for path in [path for path in self._listed[1] if path.name.startswith(prefix.name)][:_MAX_PACKS]:
            with suppress(RunnerError):  # what it held is missing then
                yield from split_pack(read_file(path, _MAX_PACK))

    def _in_tail(self, name: bytes) -> bytes | None:
        return self._held.get(name) if self._read_tail() else None

    def _read_tail(self) -> bool:
        try:
            status = self._tail.stat()
            if (status.st_ino, status.st_size) != self._seen:
                data = read_file(self._tail, MAX_TAIL)
                self._held = {sha256(content).digest(): content for content in tails.contents(data)}
                self._seen = (status.st_ino, status.st_size)
        except (OSError, RunnerError):
            return False
        return True
