"""Lists of what was pruned: SHA-256 digests of 32 bytes each, sorted, nothing between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

HASH = 32


class Bytes(Protocol):
    """Bytes, or a file mapped into memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...


def build(digests: Iterable[bytes]) -> bytes:
    """A list of these."""
    return b"".join(sorted(digests))


def split(listed: bytes) -> list[bytes]:
    """The digests in a list."""
    return [listed[start : start + HASH] for start in range(0, len(listed), HASH)]


def holds(listed: Bytes, digest: bytes) -> bool:
    """Whether `digest` is in the list, found by halves."""
    low, high = 0, len(listed) // HASH
    while low < high:
        middle = (low + high) // 2
        found = listed[middle * HASH : (middle + 1) * HASH]
        if found == digest:
            return True
        if found < digest:
            low = middle + 1
        else:
            high = middle
    return False
