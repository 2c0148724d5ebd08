"""Proofs as text, complete in themselves: whoever has the public key checks them with no ledger at hand.

Inclusion is C2SP tlog-proof (https://c2sp.org/tlog-proof): the checkpoint follows the hashes, and the `extra` line
holds the entry's own bytes, from which the leaf is computed, so nothing has to be taken on trust. Consistency is the
request body of C2SP tlog-witness' add-checkpoint (https://c2sp.org/tlog-witness): `old N`, the hashes, an empty line,
the newer checkpoint; the older checkpoint is the one that its reader kept. Reading is strict: one spelling each.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from runner.errors import refuse
from runner.ledger.entry import MAX_ENTRY
from runner.ledger.merkle import HASH, consistent, included, leaf_hash
from runner.ledger.note import MAX_CHECKPOINT, Checkpoint, read_base64, read_number

INCLUSION = "c2sp.org/tlog-proof@v1"
_EXTRA, _INDEX, _OLD = "extra ", "index ", "old "
_MAX_HASHES = 63  # tlog-witness' limit; a tree below 2^53 entries needs fewer of either kind
MAX_PROOF = MAX_CHECKPOINT + 2 * MAX_ENTRY + 64 * (_MAX_HASHES + 3)  # bytes of a proof's file


class Inclusion(NamedTuple):
    """That `entry` is number `position` of the log at the checkpoint in `note`."""

    position: int
    entry: bytes
    hashes: tuple[bytes, ...]
    note: bytes

    def text(self) -> bytes:
        """The proof as a tlog-proof file."""
        extra = _EXTRA + base64.b64encode(self.entry).decode()
        return _written([INCLUSION, extra, f"{_INDEX}{self.position}"], self.hashes, self.note)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether it leads to `checkpoint`, which is its own note, verified."""
        return included(leaf_hash(self.entry), self.position, checkpoint.size, self.hashes, checkpoint.root)


class Consistency(NamedTuple):
    """That the log at the checkpoint in `note` begins with the `old` entries of an older one."""

    old: int
    hashes: tuple[bytes, ...]
    note: bytes

    def text(self) -> bytes:
        """The proof as a request to a tlog-witness."""
        return _written([f"{_OLD}{self.old}"], self.hashes, self.note)

    def holds(self, before: Checkpoint, checkpoint: Checkpoint) -> bool:
        """Whether it leads from `before` to `checkpoint`, which is its own note, verified."""
        same = (before.origin, before.size) == (checkpoint.origin, self.old)
        return same and consistent(before.size, before.root, checkpoint.size, checkpoint.root, self.hashes)


def _written(lines: list[str], hashes: Sequence[bytes], note: bytes) -> bytes:
    lines += [base64.b64encode(hashed).decode() for hashed in hashes]
    return "\n".join([*lines, "", ""]).encode() + note


def kind_of(data: bytes) -> type[Inclusion] | type[Consistency] | None:
    """Which proof a file says that it is; None for neither."""
    if data.startswith(INCLUSION.encode() + b"\n"):
        return Inclusion
    return Consistency if data.startswith(_OLD.encode()) else None


def read_inclusion(data: bytes) -> Inclusion:
    """A proof from its text, checked for form alone. Raises `RunnerError` (ledger)."""
    lines, note = _split(data)
    if len(lines) < 3 or lines[0] != INCLUSION:
        raise refuse("ledger", f"it does not begin as a proof of inclusion does: {INCLUSION}, extra, index")
    if not lines[1].startswith(_EXTRA) or not lines[2].startswith(_INDEX):
        raise refuse("ledger", "a proof of inclusion needs an extra line with the entry, then its index")
    entry = read_base64(lines[1].removeprefix(_EXTRA), "the proof's entry")
    position = read_number(lines[2].removeprefix(_INDEX), "the proof's index")
    return Inclusion(position, entry, _hashes(lines[3:]), note)


def read_consistency(data: bytes) -> Consistency:
    """A proof from its text, checked for form alone. Raises `RunnerError` (ledger)."""
    lines, note = _split(data)
    if not lines or not lines[0].startswith(_OLD):
        raise refuse("ledger", "it does not begin as a proof of consistency does: old, and a size")
    return Consistency(read_number(lines[0].removeprefix(_OLD), "the proof's old size"), _hashes(lines[1:]), note)


def _split(data: bytes) -> tuple[list[str], bytes]:
    """The lines before the empty one, and the note behind it."""
    if len(data) > MAX_PROOF:
        raise refuse("ledger", f"a proof of {len(data)} bytes is longer than {MAX_PROOF}")
    start, found, note = data.partition(b"\n\n")
    if not found or not start.isascii():
        raise refuse("ledger", "a proof is lines, an empty line, and a checkpoint")
    return start.decode("ascii").split("\n"), note


def _hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    hashes = tuple(read_base64(line, "a hash of the proof") for line in lines)
    if len(hashes) > _MAX_HASHES or any(len(hashed) != HASH for hashed in hashes):
        raise refuse("ledger", f"a proof has at most {_MAX_HASHES} hashes of {HASH} bytes")
    return hashes
