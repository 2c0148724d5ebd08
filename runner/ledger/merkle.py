"""The Merkle tree over entries: RFC 6962 §2.1 hashing, the right edge of a growing tree, its proofs.

A leaf is SHA-256(0x00 || entry), a node SHA-256(0x01 || left || right). Tiles are those of C2SP tlog-tiles: 256
hashes of one level; each hash of level l+1 is the root of one full tile of level l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
FULL_TILE = TILE_WIDTH * HASH

EMPTY_ROOT = sha256(b"").digest()


class Tile(NamedTuple):
    """A tile: `data` is up to 256 hashes of `level`; it is the `number`-th of that level."""

    level: int
    number: int
    data: bytes


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring subtrees of one height: RFC 6962's MTH with the leaves hashed already."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        odd = row[-1:] if len(row) & 1 else []
        row = [sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)] + odd
    return row[0]


def tile_root(data: bytes) -> bytes:
    """The root of a full tile's bytes."""
    # Two neighbouring hashes lie next to each other, so a pair needs one slice instead of two and a join.
    row = data
    while len(row) > HASH:
        row = b"".join([sha256(b"\x01" + row[i : i + 64]).digest() for i in range(0, len(row), 64)])
    return row


class Tree:
    """The right edge of a tree: enough to add leaves, to tell the root at the current size, and to cut tiles.

    It holds one hash per set bit of the size, and the hashes of each level's unfinished tile: a few kilobytes
    at any size."""

    __slots__ = ("_edge", "_stack", "size")

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[bytes] = []  # roots of the perfect subtrees the tree is made of, largest first
        self._edge: list[list[bytes]] = []

    @classmethod
    def restore(cls, size: int, read_tile: Callable[[int, int], bytes]) -> Tree:
        """The tree at `size`, a multiple of 256, from its full tiles; `read_tile(level, number)` gives their bytes."""
        if size % TILE_WIDTH:
            raise ValueError("a tree is restored at a multiple of 256")
        tree = cls()
        top = 0
        while size >> (TILE_HEIGHT * (top + 1)):
            top += 1
        for level in range(top, 0, -1):
            end = size >> (TILE_HEIGHT * level)
            for number in range(end - (end % TILE_WIDTH), end):
                tree.add(tile_root(read_tile(level - 1, number)), TILE_HEIGHT * level)
        return tree

    def copy(self) -> Tree:
        """An independent copy."""
        other = Tree()
        other.size = self.size
        other._stack = list(self._stack)
        other._edge = [list(row) for row in self._edge]
        return other

    def add(self, subtree: bytes, height: int = 0) -> list[Tile]:
        """Append a perfect subtree of 2^`height` leaves (0: one leaf hash). Returns the tiles it completed."""
        count = self.size >> height
        if count << height != self.size:
            raise ValueError("a subtree starts at a multiple of its own size")
        self.size += 1 << height
        tiles: list[Tile] = []
        if height % TILE_HEIGHT == 0:
            self._record(height // TILE_HEIGHT, subtree, tiles)
        while count & 1:
            subtree = sha256(b"\x01" + self._stack.pop() + subtree).digest()
            height += 1
            count >>= 1
            if height % TILE_HEIGHT == 0:
                self._record(height // TILE_HEIGHT, subtree, tiles)
        self._stack.append(subtree)
        return tiles

    def _record(self, level: int, subtree: bytes, tiles: list[Tile]) -> None:
        while len(self._edge) <= level:
            self._edge.append([])
        row = self._edge[level]
        row.append(subtree)
        if len(row) == TILE_WIDTH:
            number = (self.size - 1) >> (TILE_HEIGHT * (level + 1))
            tiles.append(Tile(level, number, b"".join(row)))
            row.clear()

    def root(self) -> bytes:
        """The root at the current size."""
        if not self._stack:
            return EMPTY_ROOT
        total = self._stack[-1]
        for subtree in reversed(self._stack[:-1]):
            total = node_hash(subtree, total)
        return total

    def next_proof(self) -> list[bytes]:
        """The inclusion proof of the leaf that comes next, in the tree that ends with it."""
        return self._stack[::-1]

    def partials(self) -> list[Tile]:
        """The unfinished tiles at the current size, as tlog-tiles' partial tiles; their width is len(data) / 32."""
        return [
            Tile(level, self.size >> (TILE_HEIGHT * (level + 1)), b"".join(row))
            for level, row in enumerate(self._edge)
            if row
        ]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(index: int, size: int, subtree: Callable[[int, int], bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1: the hashes that lead from leaf `index` to the root at `size`, leaf's neighbour first.

    `subtree(low, high)` is the root over the leaves low..high-1."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    proof: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(subtree(middle, high))
            high = middle
        else:
            proof.append(subtree(low, middle))
            low = middle
    proof.reverse()
    return proof


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162 §2.1.3.2: whether `proof` shows that `leaf` is number `index` of the tree of `size` with `root`."""
    if not 0 <= index < size:
        return False
    place, last = index, size - 1
    total = leaf
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            total = node_hash(step, total)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            total = node_hash(total, step)
        place >>= 1
        last >>= 1
    return last == 0 and total == root


def consistency_proof(old: int, size: int, subtree: Callable[[int, int], bytes]) -> list[bytes]:
    """RFC 6962 §2.1.2: the hashes that show that the tree of `size` begins with the tree of `old`.

    Empty for `old` 0 and for `old` equal to `size`. `subtree(low, high)` is the root over the leaves low..high-1."""
    if not 0 <= old <= size:
        raise ValueError("no such older tree")
    proof: list[bytes] = []
    if not old:
        return proof
    low, high = 0, size
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append(subtree(middle, high))
            high = middle
        else:
            proof.append(subtree(low, middle))
            low = middle
    if low:
        proof.append(subtree(low, high))
    proof.reverse()
    return proof


def consistent(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """RFC 9162 §2.1.4.2: whether `proof` shows that the tree of `size` with `root` begins with that of `old`."""
    if not 0 <= old <= size:
        return False
    if old == size:
        return not proof and old_root == root and (size > 0 or root == EMPTY_ROOT)
    if not old:
        return not proof and old_root == EMPTY_ROOT
    steps = [old_root, *proof] if not old & (old - 1) else list(proof)
    if not steps:
        return False
    place, last = old - 1, size - 1
    while place & 1:
        place >>= 1
        last >>= 1
    before = after = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            after = node_hash(after, step)
        place >>= 1
        last >>= 1
    return last == 0 and before == old_root and after == root
