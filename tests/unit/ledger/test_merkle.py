"""The tree, against brute force and against RFC 6962's own vectors."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from runner.ledger import merkle
from runner.ledger.tile import Place, full_count, partial_places

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/ledger.json").read_text())
SIZES = [0, 1, 2, 3, 7, 255, 256, 257, 511, 512, 700, 65535, 65536, 65537, 70000]


def brute(hashes: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return hashlib.sha256(b"\x01" + brute(hashes[:split]) + brute(hashes[split:])).digest()


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf_hash(str(number).encode()) for number in range(count)]


def grown(hashes: list[bytes]) -> tuple[merkle.Tree, list[merkle.Tile]]:
    tree, tiles = merkle.Tree(), []
    for leaf in hashes:
        tiles += tree.add(leaf)
    return tree, tiles


def test_known_roots() -> None:
    tree = merkle.Tree()
    assert tree.root() == merkle.EMPTY_ROOT
    hashes = []
    for leaf, root in zip(VECTORS["leaves"], VECTORS["roots"], strict=True):
        hashes.append(merkle.leaf_hash(bytes.fromhex(leaf)))
        tree.add(hashes[-1])
        assert tree.root().hex() == merkle.root_of(hashes).hex() == root


@pytest.mark.parametrize("size", SIZES)
def test_roots_tiles_and_restoring(size: int) -> None:
    hashes = leaves(size)
    tree, tiles = grown(hashes)
    assert tree.size == size
    assert tree.root() == brute(hashes) == merkle.root_of(hashes)
    for tile in tiles:
        unit = 256**tile.level
        for place in range(0, 256, 85):
            low = (tile.number * 256 + place) * unit
            assert tile.data[place * 32 :][:32] == brute(hashes[low : low + unit])
    stored = {(tile.level, tile.number): tile.data for tile in tiles}
    assert len(stored) == sum(full_count(level, size) for level in range(4))
    assert {Place(part.level, part.number, len(part.data) // 32) for part in tree.partials()} == {
        place for place in partial_places(size) if place.level >= 0
    }
    full = size - size % 256
    again = merkle.Tree.restore(full, lambda level, number: stored[level, number])
    for leaf in hashes[full:]:
        again.add(leaf)
    assert again.root() == tree.root()
    assert again.partials() == tree.partials()
    assert again.copy().partials() == tree.partials()


def test_the_tiles_of_the_specifications_example() -> None:
    assert full_count(0, 70_000) == 273
    assert full_count(1, 70_000) == 1
    assert {place for place in partial_places(70_000) if place.level >= 0} == {(0, 273, 112), (1, 1, 17), (2, 0, 1)}


def test_subtrees_go_in_whole_or_leaf_by_leaf() -> None:
    hashes = leaves(1000)
    tree = merkle.Tree()
    for start in range(0, 768, 256):
        tree.add(merkle.tile_root(b"".join(hashes[start : start + 256])), 8)
    for leaf in hashes[768:]:
        tree.add(leaf)
    assert tree.root() == brute(hashes)
    with pytest.raises(ValueError, match="multiple"):
        tree.add(hashes[0], 8)


def test_a_copy_is_independent() -> None:
    tree, _ = grown(leaves(300))
    root = tree.root()
    tree.copy().add(b"x" * 32)
    assert (tree.size, tree.root()) == (300, root)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 100])
def test_inclusion_proofs(size: int) -> None:
    hashes = leaves(size)
    root = brute(hashes)
    rng = random.Random(size)
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, lambda low, high: brute(hashes[low:high]))
        assert merkle.included(hashes[index], index, size, proof, root)
        assert not merkle.included(b"x" * 32, index, size, proof, root)
        assert not merkle.included(hashes[index], index, size, [*proof, root], root)
        assert not merkle.included(hashes[index], index, size, proof, b"x" * 32)
        if proof:
            assert not merkle.included(hashes[index], index, size, proof[:-1], root)
            bent = list(proof)
            bent[rng.randrange(len(bent))] = b"x" * 32
            assert not merkle.included(hashes[index], index, size, bent, root)
            assert not merkle.included(hashes[index], (index + 1) % size, size, proof, root)
    with pytest.raises(ValueError, match="leaf"):
        merkle.inclusion_proof(size, size, lambda _low, _high: b"")
    assert not merkle.included(root, size, size, [], root)


def test_known_consistency_proofs() -> None:
    hashes = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
    roots = [bytes.fromhex(root) for root in VECTORS["roots"]]
    for old, size, known in VECTORS["consistency"]:
        proof = merkle.consistency_proof(old, size, lambda low, high: brute(hashes[low:high]))
        assert [step.hex() for step in proof] == known
        assert merkle.consistent(old, roots[old - 1], size, roots[size - 1], proof)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 32, 51])
def test_consistency_proofs(size: int) -> None:
    hashes = leaves(size)
    root = brute(hashes)
    rng = random.Random(size)
    other = b"x" * 32
    for old in range(size + 1):
        before = brute(hashes[:old])
        proof = merkle.consistency_proof(old, size, lambda low, high: brute(hashes[low:high]))
        assert merkle.consistent(old, before, size, root, proof)
        assert bool(proof) == (0 < old < size)
        assert not merkle.consistent(old, other, size, root, proof)
        assert not merkle.consistent(old, before, size, root, [*proof, root])
        if old:
            assert not merkle.consistent(old, before, size, other, proof)
        if proof:
            assert not merkle.consistent(old, before, size, root, proof[:-1])
            assert not merkle.consistent(old, before, size, root, proof[1:])
            bent = list(proof)
            bent[rng.randrange(len(bent))] = other
            assert not merkle.consistent(old, before, size, root, bent)
            assert not merkle.consistent(old + 1, before, size, root, proof)
    for old, wanted in ((-1, size), (size + 1, size)):
        assert not merkle.consistent(old, root, wanted, root, [])
        with pytest.raises(ValueError, match="older"):
            merkle.consistency_proof(old, wanted, lambda _low, _high: b"")


def test_the_next_leafs_proof_is_the_edge() -> None:
    tree = merkle.Tree()
    for number, leaf in enumerate(leaves(300)):
        proof = tree.next_proof()
        tree.add(leaf)
        assert merkle.included(leaf, number, number + 1, proof, tree.root())


def test_an_empty_tree_has_one_root() -> None:
    some = merkle.leaf_hash(b"x")
    assert merkle.consistent(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, [])
    assert not merkle.consistent(0, merkle.EMPTY_ROOT, 0, some, [])
    assert not merkle.consistent(0, some, 0, some, [])
    assert not merkle.consistent(0, some, 1, some, [])
    assert merkle.consistent(0, merkle.EMPTY_ROOT, 1, some, [])
    assert not merkle.consistent(0, merkle.EMPTY_ROOT, 1, some, [some])
    assert not merkle.consistent(1, some, 1, some, [some])
    assert not merkle.consistent(1, some, 0, some, [])
    assert not merkle.consistent(-1, some, 1, some, [])
    assert not merkle.included(some, 0, 0, [], some)
    assert not merkle.included(some, 1, 1, [], some)
    assert not merkle.included(some, -1, 1, [], some)
    assert not merkle.included(some, 0, 1, [some], merkle.node_hash(some, some))
    assert merkle.included(some, 0, 1, [], some)


def test_a_proof_that_is_too_short_or_too_long_proves_nothing() -> None:
    leaves = [merkle.leaf_hash(b"%d" % number) for number in range(9)]

    def subtree(low: int, high: int) -> bytes:
        return merkle.root_of(leaves[low:high])

    root = subtree(0, 9)
    # A hash inside the tree is no leaf, and the root itself is none.
    assert not merkle.included(root, 0, 9, [], root)
    assert not merkle.included(subtree(0, 8), 0, 9, [leaves[8]], root)
    for old in range(1, 9):
        proof = merkle.consistency_proof(old, 9, subtree)
        assert merkle.consistent(old, subtree(0, old), 9, root, proof)
        for wrong in ([], proof[:-1], proof[1:], [*proof, leaves[0]], [leaves[0], *proof], [*proof, proof[-1]]):
            assert not merkle.consistent(old, subtree(0, old), 9, root, wrong), (old, len(wrong))
        assert not merkle.consistent(old, root, 9, root, [])
