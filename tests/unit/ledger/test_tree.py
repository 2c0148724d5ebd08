"""The manifest of a workspace: fixed bytes, a root that RFC 6962 defines, and comparisons that miss nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from runner.errors import RunnerError
from runner.ledger import tree
from runner.ledger.merkle import included, inclusion_proof, leaf_hash, root_of
from runner.ledger.tree import Thing

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/workspace.json").read_text())
SALT = bytes(16)
A = Thing(type="file", path="a", mode="0644", size=1, sha256="0" * 64)
B = Thing(type="folder", path="b", mode="0755")


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, as it is written there."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:half]) + mth(leaves[half:])).digest()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_vectors(vector: Any) -> None:
    kept = vector["manifest"].encode()
    lines = kept.splitlines(keepends=True)
    assert tree.root(kept) == vector["root"] == mth([line.removesuffix(b"\n") for line in lines]).hex()
    things = tree.read(kept)
    assert tree.manifest(tree.lines(things.values()), bytes.fromhex(vector["salt"])) == kept
    for line in lines:
        assert rfc8785.dumps(json.loads(line)) + b"\n" == line


def test_the_root_moves_with_every_field_and_with_the_salt() -> None:
    plain = tree.manifest(tree.lines([A, B]), SALT)
    others = [
        tree.manifest(tree.lines([A]), SALT),
        tree.manifest(tree.lines([A, B]), bytes(15) + b"\1"),
        plain.replace(b'"size":1', b'"size":2'),
        plain.replace(b"0644", b"0645"),
        plain.replace(b'"path":"b"', b'"path":"c"'),
        plain.replace(b"folder", b"device"),
        plain.replace(b"0" * 64, b"0" * 63 + b"1"),
    ]
    assert len({tree.root(kept) for kept in (plain, *others)}) == 8


def test_one_file_is_proven_without_the_others() -> None:
    things = [Thing(type="folder", path=f"{number:03}", mode="0755") for number in range(9)]
    kept = tree.manifest(tree.lines(things), SALT)
    leaves = [leaf_hash(line) for line in kept.removesuffix(b"\n").split(b"\n")]

    def subtree(start: int, end: int) -> bytes:
        return root_of(leaves[start:end])

    proof = inclusion_proof(4, len(leaves), subtree)
    root = bytes.fromhex(tree.root(kept))
    assert included(leaf_hash(tree.line(things[3])), 4, len(leaves), proof, root)
    assert not included(leaf_hash(tree.line(things[4])), 4, len(leaves), proof, root)


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"{}\n",
        b'{"format":"other","salt":""}\n',
        tree.manifest(b"nonsense\n", SALT),
        tree.manifest(b'{"mode":"0644","path":"a","type":"door"}\n', SALT),
        tree.manifest(b'{"mode":"0644","path":"a","type":"file","x":1}\n', SALT),
        tree.manifest(tree.lines([A, A]), SALT),
        tree.manifest(b"\xff\n", SALT),
    ],
)
def test_what_is_no_manifest_is_refused(kept: bytes) -> None:
    assert set(tree.read(tree.manifest(tree.lines([A, B]), SALT))) == {"a", "b"}
    with pytest.raises(RunnerError) as refused:
        tree.read(kept)
    assert refused.value.refused.code == "ledger"


def test_a_comparison_names_what_came_went_and_changed() -> None:
    moved = Thing(type="file", path="a", mode="0755", size=1, sha256="0" * 64)
    found = tree.compare({"a": A, "b": B}, {"a": moved, "c": B})
    assert [(change.kind, change.path) for change in found] == [("changed", "a"), ("removed", "b"), ("added", "c")]
    assert (found[0].before, found[0].after) == (A, moved)
    assert tree.compare({"a": A}, {"a": A}) == []
    assert tree.total([A, B, moved]) == 2
