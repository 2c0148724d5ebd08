"""Reading a ledger folder, also while the recorder writes it.

A reader takes the tail's bytes first: it names the position where it begins, and every bundle before that position
was on disk, for good, before this tail got its name. So one read of one file is a consistent view, and no lock and
no second try is needed. A tail that is being appended to is read up to its last complete group.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from runner.errors import RunnerError, refuse
from runner.ledger import tail as tails
from runner.ledger.merkle import FULL_TILE, HASH, TILE_HEIGHT, TILE_WIDTH, leaf_hash, root_of, tile_root
from runner.ledger.note import Checkpoint, Verifier, read_checkpoint
from runner.ledger.proof import MAX_PROOF
from runner.ledger.rotation import MAX_ROTATIONS, Keys, Rotation, read_rotation
from runner.ledger.tile import (
    CHECKPOINT,
    ENTRIES,
    PUBLIC_KEY,
    ROTATION,
    TAIL,
    TILES,
    Place,
    bundle_limit,
    full_count,
    split_bundle,
    tile_path,
)

Relevant = Callable[[Callable[[bytes], bool]], bool]  # of bytes, by asking which others they hold
EXPORTED_KEY = "vkey"  # the name of the public key in an export
ROTATION_NAME = re.compile(rf"{ROTATION}\.([1-9][0-9]{{0,3}})\Z")
MAX_TAIL = 1 << 30  # a tail is cut at 256 entries (16 MiB at most) and a group; more is not one
MAX_NOTE = 1 << 20


def read_file(path: Path | str, limit: int) -> bytes:
    """A regular file's bytes, never through a symbolic link. Raises `RunnerError` (ledger) naming it."""
    scratch = Scratch()
    count = scratch.read(path, limit)
    return bytes(memoryview(scratch.data)[:count])


class Scratch:
    """One buffer for file after file: a search reads far more than it keeps, and memory fresh from the kernel for each
    file costs it more than the looking."""

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self, path: Path | str, limit: int) -> int:
        """Put a file's bytes at the start of `data`; how many they are. Refuses as `read_file` does."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise refuse("ledger", "it is not a regular file", field=str(path))
                if status.st_size > limit:
                    raise refuse("ledger", f"its {status.st_size} bytes are more than {limit}", field=str(path))
                return self._fill(descriptor, status.st_size)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise refuse("ledger", "it is missing", field=str(path)) from None
        except OSError as error:
            raise refuse("ledger", f"it cannot be read: {error.strerror}", field=str(path)) from None

    def _fill(self, descriptor: int, size: int) -> int:
        """Read what the file held when it was opened; a file that grows is read up to there."""
        if len(self.data) < size:
            self.data = bytearray(size)
        count = 0
        with memoryview(self.data) as room:
            while count < size and (got := os.readv(descriptor, [room[count:size]])):
                count += got
        return count


def rotation_files(folder: Path) -> list[Path]:
    """The files of a folder's handovers, first one first. Raises `RunnerError` (ledger) when one is missing."""
    found = {int(match[1]) for path in folder.glob(f"{ROTATION}.*") if (match := ROTATION_NAME.match(path.name))}
    if len(found) > MAX_ROTATIONS or found != set(range(1, len(found) + 1)):
        raise refuse("ledger", "the rotations are not numbered without a gap", field=str(folder / ROTATION))
    return [folder / f"{ROTATION}.{number}" for number in sorted(found)]


def read_rotations(paths: Iterable[Path]) -> list[Rotation]:
    """The handovers in these files, verified each by itself. Raises `RunnerError` naming the file."""
    found = []
    for path in paths:
        try:
            found.append(read_rotation(read_file(path, MAX_PROOF)))
        except RunnerError as error:
            raise refuse("ledger", error.refused.reason, field=error.refused.field or str(path)) from None
    return found


def load_keys(text_or_path: str, folder: Path, rotations: Sequence[Path] | None = None) -> Keys:
    """The keys of a ledger, from one that is trusted: a verifier key text, a file that holds one, or, for "", the one
    in the ledger folder. The others follow from `rotations`, by default the folder's.

    Raises `RunnerError`: key, or ledger when a handover is damaged."""
    given = load_given(text_or_path, folder)
    return Keys(given, read_rotations(rotation_files(folder) if rotations is None else rotations))


def load_verifier(text_or_path: str, folder: Path) -> Verifier:
    """The key that signs the ledger in `folder` now, from one that is trusted. Raises as `load_keys`."""
    return load_keys(text_or_path, folder).newest


def load_given(text_or_path: str, folder: Path) -> Verifier:
    """The one key that is trusted, without those that follow from it. Raises `RunnerError` (key)."""
    if "+" in text_or_path and not Path(text_or_path).exists():
        return Verifier.parse(text_or_path)
    paths = [Path(text_or_path)] if text_or_path else [folder / PUBLIC_KEY, folder / EXPORTED_KEY]
    for path in paths:
        try:
            return Verifier.parse(read_file(path, MAX_NOTE).decode())
        except UnicodeDecodeError:
            raise refuse("key", "it is not text", field=str(path)) from None
        except RunnerError as error:
            if error.refused.code == "key":
                raise
            last = error
    raise refuse("key", last.refused.reason, field=str(paths[0]), next_step="give the key with --key") from None


class Ledger:
    """A consistent view of a ledger folder: entries 0..size-1, of which `signed` are under a verified checkpoint.

    `refresh` takes a newer view. Raises `RunnerError` (ledger) when there is no ledger or it is damaged; the entries
    themselves are only proven by `verify`."""

    def __init__(self, folder: Path, verifier: Verifier) -> None:
        self.folder = folder
        self.verifier = verifier
        self.note = b""
        self.checkpoint: Checkpoint
        self.base = 0  # entries before this are in full bundles
        self.held: list[bytes] = []  # entries from there on
        self._scratch = Scratch()
        self.refresh()

    @property
    def size(self) -> int:
        """How many entries can be read."""
        return self.base + len(self.held)

    @property
    def signed(self) -> int:
        """How many of them the newest checkpoint signs."""
        return self.checkpoint.size

    def refresh(self) -> None:
        """Look again."""
        path = self.folder / TAIL
        if not path.exists():
            self._refresh_export()
            return
        found = tails.read_tail(read_file(path, MAX_TAIL), self.verifier)
        notes = [record.data for record in found.records if record.kind == tails.SIGNED]
        if not notes:
            raise refuse("ledger", "it holds no checkpoint", field=str(path))
        self.note = notes[-1]
        self.checkpoint = read_checkpoint(self.note, self.verifier)
        self.base, self.held = found.head.base, found.entries

    def _refresh_export(self) -> None:
        """A folder without a tail: an export, where the checkpoint says everything."""
        self.note = read_file(self.folder / CHECKPOINT, MAX_NOTE)
        self.checkpoint = read_checkpoint(self.note, self.verifier)
        width = self.checkpoint.size % TILE_WIDTH
        self.base = self.checkpoint.size - width
        self.held = []
        if width:
            place = Place(ENTRIES, self.base // TILE_WIDTH, width)
            data = read_file(self.folder / TILES / tile_path(place), bundle_limit())
            self.held = split_bundle(data, width)

    def bundle(self, number: int) -> list[bytes]:
        """The entries of a full bundle."""
        return split_bundle(read_file(self._bundle_path(number), bundle_limit()), TILE_WIDTH)

    def _bundle_if(self, number: int, relevant: Relevant) -> list[bytes]:
        """The entries of a full bundle, none of them when its bytes are not relevant."""
        count = self._scratch.read(self._bundle_path(number), bundle_limit())
        data = self._scratch.data
        if not relevant(lambda needle: data.find(needle, 0, count) >= 0):
            return []
        return split_bundle(bytes(memoryview(data)[:count]), TILE_WIDTH)

    def _bundle_path(self, number: int) -> str:
        return f"{self.folder}/{TILES}/{tile_path(Place(ENTRIES, number))}"

    def entries(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) from `start` on, in order."""
        for number in range(start // TILE_WIDTH, self.base // TILE_WIDTH):
            for position, data in enumerate(self.bundle(number), number * TILE_WIDTH):
                if position >= start:
                    yield position, data
        for position in range(max(start, self.base), self.size):
            yield position, self.held[position - self.base]

    def backwards(self, relevant: Relevant = lambda holds: True) -> Iterator[tuple[int, list[bytes]]]:
        """Runs of entries, newest run first: (position of the run's first, its entries in order). Bundles whose bytes
        are not relevant are passed over unparsed, which is what makes a search quick without an index to keep."""
        yield self.base, self.held
        for number in range(self.base // TILE_WIDTH - 1, -1, -1):
            run = self._bundle_if(number, relevant)
            if run:
                yield number * TILE_WIDTH, run

    def first_with(self, needles: Sequence[bytes], start: int) -> tuple[int, bytes] | None:
        """The first entry from `start` on that holds every needle."""
        return next(self.all_with(needles, start), None)

    def all_with(self, needles: Sequence[bytes], start: int) -> Iterator[tuple[int, bytes]]:
        """The entries from `start` on that hold every needle, in order."""
        for number in range(start // TILE_WIDTH, self.base // TILE_WIDTH):
            run = self._bundle_if(number, lambda holds: all(map(holds, needles)))
            for position, entry in enumerate(run, number * TILE_WIDTH):
                if position >= start and all(needle in entry for needle in needles):
                    yield position, entry
        for position in range(max(start, self.base), self.size):
            if all(needle in self.held[position - self.base] for needle in needles):
                yield position, self.held[position - self.base]

    def entry(self, position: int) -> bytes:
        """One entry's bytes."""
        if position >= self.base:
            return self.held[position - self.base]
        return self.bundle(position // TILE_WIDTH)[position % TILE_WIDTH]

    def subtree(self, low: int, high: int) -> bytes:
        """The Merkle root over entries low..high-1, from tiles where they are full; for inclusion proofs."""
        level = 0
        while (high - low) >> (TILE_HEIGHT * (level + 1)) and not low % (1 << (TILE_HEIGHT * (level + 1))):
            level += 1
        unit = 1 << (TILE_HEIGHT * level)
        hashes = [self._node(level, place) for place in range(low // unit, high // unit)]
        if high % unit:
            hashes.append(self.subtree(high - high % unit, high))
        return root_of(hashes)

    def _node(self, level: int, place: int) -> bytes:
        """The `place`-th hash of a tile level."""
        number = place // TILE_WIDTH
        if number < full_count(level, self.base):
            return self._tile(level, number)[place % TILE_WIDTH * HASH :][:HASH]
        if level == 0:
            return leaf_hash(self.entry(place))
        if place < full_count(level - 1, self.base):
            return tile_root(self._tile(level - 1, place))
        return root_of([self._node(level - 1, place * TILE_WIDTH + step) for step in range(TILE_WIDTH)])

    def _tile(self, level: int, number: int) -> bytes:
        path = self.folder / TILES / tile_path(Place(level, number))
        data = read_file(path, FULL_TILE)
        if len(data) != FULL_TILE:
            raise refuse("ledger", f"a tile of {len(data)} bytes instead of {FULL_TILE}", field=str(path))
        return data


def follow(
    ledger: Ledger, start: int, *, pause: Callable[[float], None] = time.sleep, every_s: float = 0.2
) -> Iterator[tuple[int, bytes]]:
    """Entries from `start` on as they are signed, for ever. `pause` is called between looks; it may raise to end."""
    seen: tuple[int, int] | None = None
    while True:
        for position, data in ledger.entries(start):
            if position >= ledger.signed:
                break
            yield position, data
            start = position + 1
        while True:
            pause(every_s)
            status = (ledger.folder / TAIL).stat()
            if (status.st_ino, status.st_size) != seen:
                break
        seen = (status.st_ino, status.st_size)
        ledger.refresh()
