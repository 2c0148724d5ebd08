"""Raw output read back for whoever may open it, encrypted as it lies: only after an entry of this run says so, on disk.

The order is held here too, not by gate alone: find (nothing is given but the outcome), append the `raw_open` entry, and
only when that is durable read. A read is of one piece; nothing waits for it but its asker.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Generator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from runner.errors import refuse
from runner.ledger import entry as entries
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.tile import pack_prefix, split_pack
from runner.recorder.content import ContentStore
from runner.recorder.journal import Journal

PIECE = 1 << 20  # bytes of one answer
_CALL = re.compile(r"[0-9A-Za-z._:@/-]{1,128}\Z")  # nothing that JSON would write in another way
_REMEMBERED = 64  # findings and openings: what is forgotten is asked for again, and is another entry
_OUTCOME = b'"kind":"outcome"'
_BEGUN = b'"kind":"call"'


class Found(NamedTuple):
    """A call's outcome: where it lies, and its bytes. Position -1: there is none."""

    position: int = -1
    outcome: bytes = b""


class RawOutput:
    """For one recorder. `durable` says how many entries are on disk."""

    def __init__(self, journal: Journal, content: ContentStore, folder: Path, durable: Callable[[], int]) -> None:
        self._journal = journal
        self._content = content
        self._folder = folder
        self._durable = durable
        self._found: OrderedDict[str, tuple[str, int]] = OrderedDict()  # raw digest -> call, position of its outcome
        self._opened: OrderedDict[str, int] = OrderedDict()  # raw digest -> position of its newest `raw_open`

    def find(self, call: str) -> Generator[None, None, Found]:
        """Look for the outcome of this call, newest first, a bundle a step."""
        if not _CALL.match(call):
            return Found()
        needle = f'"call":"{call}"'.encode()
        size = self._journal.size
        for start in range((size - 1) // TILE_WIDTH * TILE_WIDTH, -1, -TILE_WIDTH):
            for position, data in islice(self._journal.entries(start), min(TILE_WIDTH, size - start)):
                if needle in data and _OUTCOME in data:
                    entry = entries.decode(data)
                    if isinstance(entry, entries.Outcome) and entry.call == call:
                        return self._remember(position, entry, data)
                elif needle in data and _BEGUN in data:
                    begun = entries.decode(data)
                    if isinstance(begun, entries.Call) and begun.call == call and begun.plan is None:
                        return Found()
            yield
        return Found()

    def _remember(self, position: int, entry: entries.Outcome, data: bytes) -> Found:
        if entry.raw is not None:
            self._found[entry.raw.content.digest] = (entry.call, position)
            _bound(self._found)
        return Found(position, data)

    def check(self, entry: entries.RawOpen) -> None:
        """Raise `RunnerError` (ledger) for an opening of what was not found to be that call's."""
        if self._found.get(entry.raw, ("", -1))[0] != entry.call:
            raise refuse("ledger", "a `raw_open` entry names no raw output that was found of its call")

    def saw(self, position: int, entry: entries.RawOpen) -> None:
        """An opening was appended."""
        self._opened[entry.raw] = position
        _bound(self._opened)

    def read(self, digest: str, offset: int) -> bytes:
        """The next piece of what was opened, salt first; b"" at its end. Raises `RunnerError` (ledger) when no entry on
        disk says that it was opened, (unknown_call) when it is not there any more."""
        if not 0 <= self._opened.get(digest, -1) < self._durable() or digest not in self._found:
            raise refuse("ledger", "no entry says that this was opened", next_step="open it, in this run")
        data = self._with_entry(bytes.fromhex(digest), self._found[digest][1])
        piece = data[offset : offset + PIECE] if data is not None else self._content.read(digest, offset, PIECE)
        if piece is None:
            raise refuse(
                "unknown_call",
                "its raw output is not kept any more",
                next_step="`runner trace show` says who pruned it",
            )
        return piece

    def _with_entry(self, digest: bytes, position: int) -> bytes | None:
        """Small content that came with its entry: in the tail, or in the pack of the entry's bundle."""
        for content in self._journal.contents():
            if sha256(content).digest() == digest:
                return content
        prefix = self._folder / pack_prefix(position // TILE_WIDTH)
        for path in prefix.parent.glob(f"{prefix.name}*") if prefix.parent.is_dir() else ():
            for content in split_pack(path.read_bytes()):
                if sha256(content).digest() == digest:
                    return content
        return None


def _bound(remembered: OrderedDict[str, tuple[str, int]] | OrderedDict[str, int]) -> None:
    if len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)
