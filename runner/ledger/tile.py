"""Where everything of a ledger and its content lies, and how entries lie in bundles.

Paths and bundles are C2SP tlog-tiles: `tile/<level>/<index>[.p/<width>]`, `tile/entries/<index>[.p/<width>]`,
indexes in three-digit path elements, all but the last with an `x`; a bundle is entries with a big-endian uint16
length before each. A pack is the small content that came with the entries of one bundle, each piece behind a big-endian
uint32 length: a reader hashes them, which it had to do anyway. Its name begins with the bundle's index and ends in its
own hash, because one content folder outlives ledgers: one that was moved away, or restored from before, has other
bundles of the same numbers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple

from runner.errors import refuse
from runner.ledger.entry import MAX_ENTRY
from runner.ledger.merkle import TILE_HEIGHT, TILE_WIDTH

# Names inside <state>/ledger
TAIL = "tail"
CHECKPOINT = "checkpoint"
LOCK = "lock"
KEY = "key"
PUBLIC_KEY = "key.pub"
NEXT_KEY = "key.next"  # while the key is being replaced, and no longer
ROTATION = "rotation"  # rotation.1, rotation.2, …: how each key came after the one before it
TILES = "tile"
TEMPORARY = ".new"  # the suffix of a file being written; whole files never have it

# Names inside <state>/content
SMALL_CONTENT = "small.db"
LARGE_CONTENT = "sha256"
PARTIAL_CONTENT = "tmp"
PACKS = "pack"
RESERVE = "reserve"  # room held back for a full disk; holds nothing
PRUNED = "pruned"  # lists of what was pruned, each under its SHA-256 in hex
DUE = ".due"  # the suffix of a list whose content is still being removed
SMALL = 64 << 10  # bytes; up to this content lies in SQLite, where a row costs less than a file
PACKED = 16 << 10  # bytes; up to this content that came with its entry lies with it: in the tail, then in a pack

ENTRIES = -1  # the "level" of entry bundles
MAX_LEVEL = 63

_LENGTH = struct.Struct(">H")
_SIZE = struct.Struct(">I")
_PACK_NAME = 32  # hex digits
_PATH = re.compile(
    r"^(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?$"
)


class Place(NamedTuple):
    """Which tile or bundle (level `ENTRIES`) a path names; `width` is 0 for a full one."""

    level: int
    number: int
    width: int = 0


def tile_path(place: Place) -> str:
    """The path of a tile or bundle under `tile/`."""
    level = "entries" if place.level == ENTRIES else str(place.level)
    return f"{level}/{_index(place.number)}" + (f".p/{place.width}" if place.width else "")


def _index(number: int) -> str:
    index = f"{number % 1000:03d}"
    rest = number // 1000
    while rest:
        index = f"x{rest % 1000:03d}/{index}"
        rest //= 1000
    return index


def parse_tile_path(path: str) -> Place | None:
    """What a path under `tile/` names; None when it is not the one spelling of a tile or bundle."""
    found = _PATH.match(path)
    if not found:
        return None
    level = ENTRIES if found["level"] == "entries" else int(found["level"])
    place = Place(level, int(found["index"].replace("x", "").replace("/", "")), int(found["width"] or 0))
    if level > MAX_LEVEL or place.width >= TILE_WIDTH or tile_path(place) != path:
        return None
    return place


def full_count(level: int, size: int) -> int:
    """How many full tiles of a level (or bundles, for `ENTRIES`) a tree of `size` has."""
    return size >> (TILE_HEIGHT * (max(level, 0) + 1))


def partial_places(size: int) -> list[Place]:
    """The partial tiles and the partial bundle of a tree of `size`."""
    found: list[Place] = []
    level = 0
    while size >> (TILE_HEIGHT * level):
        width = (size >> (TILE_HEIGHT * level)) % TILE_WIDTH
        if width:
            found.append(Place(level, full_count(level, size), width))
            if level == 0:
                found.append(Place(ENTRIES, full_count(ENTRIES, size), width))
        level += 1
    return found


def pack_bundle(entries: Iterable[bytes]) -> bytes:
    """Entries as a bundle."""
    return b"".join([_LENGTH.pack(len(data)) + data for data in entries])


def split_bundle(data: bytes, count: int) -> list[bytes]:
    """The `count` entries of a bundle. Raises `RunnerError` (ledger) when it holds anything else."""
    found: list[bytes] = []
    place, end = 0, len(data)
    while place < end:
        if place + 2 > end:
            raise refuse("ledger", f"the bundle ends inside a length, at byte {place}")
        length = data[place] << 8 | data[place + 1]
        place += 2 + length
        if place > end:
            raise refuse("ledger", f"the bundle ends inside entry {len(found)}")
        found.append(data[place - length : place])
    if len(found) != count:
        raise refuse("ledger", f"the bundle holds {len(found)} entries, not {count}")
    return found


def bundle_limit() -> int:
    """The most bytes a bundle can have: what a reader refuses to load more of."""
    return TILE_WIDTH * (MAX_ENTRY + _LENGTH.size)


def content_path(digest: str) -> str:
    """The path of large content under the content folder."""
    return f"{LARGE_CONTENT}/{digest[:2]}/{digest[2:]}"


def pack_prefix(number: int) -> str:
    """How the path, under the content folder, of every pack of bundle `number` begins."""
    return f"{PACKS}/{_index(number)}-"


def pack_path(number: int, data: bytes) -> str:
    """The path of a pack of bundle `number` that holds `data`."""
    return pack_prefix(number) + sha256(data).hexdigest()[:_PACK_NAME]


def pack_contents(contents: Iterable[bytes]) -> bytes:
    """Content as a pack."""
    return b"".join([_SIZE.pack(len(data)) + data for data in contents])


def split_pack(data: bytes) -> Iterator[bytes]:
    """The content in a pack, as far as it is whole."""
    start, end = _SIZE.size, len(data)
    while start <= end:
        (length,) = _SIZE.unpack_from(data, start - _SIZE.size)
        if start + length > end:
            return
        yield data[start : start + length]
        start += length + _SIZE.size
