"""How one key follows another inside the log, so that the first public key is enough for all of it.

A `rotate` entry at position p names the old key and the new one. The checkpoint of size p+1 is signed by both: the
old key hands over, the new one proves that it is held. Every checkpoint below p+1 is the old key's, every one above
is the new key's, and a key that signs outside its part is refused: an old key that was stolen later cannot go on.
What it signs inside its part, with another history, is found by whoever compares it with the ledger or with an anchor
from after the handover; a proof under it, shown alone, is only as good as the old key is safe.

`rotation.N` beside the tiles is the N-th handover complete in itself: a tlog-proof (`proof.py`) of the entry under
that checkpoint. A reader follows them from any key that it trusts, without reading the log; verification compares
them with the entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runner.errors import RunnerError, refuse
from runner.ledger import proof
from runner.ledger.entry import Rotate, decode
from runner.ledger.note import Checkpoint, Verifier, read_checkpoint

MAX_ROTATIONS = 1000  # one a day for nearly three years; each is read whenever the ledger is
_FOREIGN = "verify with the key of the daemon that wrote this ledger, or with one that a rotation of it names"


class Rotation(NamedTuple):
    """One handover, verified: at `checkpoint`, which both keys signed, the entry before its end names them."""

    position: int
    old: Verifier
    new: Verifier
    checkpoint: Checkpoint
    entry: bytes


def read_rotation(data: bytes) -> Rotation:
    """A handover from its file. Raises `RunnerError` (ledger, or key for a malformed one)."""
    inclusion = proof.read_inclusion(data)
    entry = decode(inclusion.entry)
    if not isinstance(entry, Rotate):
        raise refuse("ledger", "the proof is of another entry than a rotation of the key")
    old, new = Verifier.parse(entry.old), Verifier.parse(entry.new)
    checkpoint = read_checkpoint(inclusion.note, old)
    if read_checkpoint(inclusion.note, new) != checkpoint or old.text == new.text:
        raise refuse("ledger", "a rotation is signed by two keys of one log")
    if inclusion.position + 1 != checkpoint.size or not inclusion.holds(checkpoint):
        raise refuse("ledger", "the rotation is not the last entry of the checkpoint that both keys signed")
    return Rotation(inclusion.position, old, new, checkpoint, inclusion.entry)


class Keys:
    """The keys of one log, oldest first, each with the sizes that it may sign.

    Made from any one key that is trusted, and the handovers. Raises `RunnerError` (key) when the handovers are not a
    chain, or do not touch that key."""

    def __init__(self, trusted: Verifier, rotations: Iterable[Rotation] = ()) -> None:
        self.rotations = sorted(rotations, key=lambda rotation: rotation.position)
        self._verifiers = [rotation.old for rotation in self.rotations[:1]] or [trusted]
        for number, rotation in enumerate(self.rotations, 1):
            if rotation.old.text != self._verifiers[-1].text or rotation.new.text in self.texts:
                raise refuse("key", f"rotation {number} does not follow the one before it", next_step=_FOREIGN)
            self._verifiers.append(rotation.new)
        if any(one.position == other.position for one, other in zip(self.rotations, self.rotations[1:], strict=False)):
            raise refuse("key", "two rotations at one position", next_step=_FOREIGN)
        if trusted.text not in self.texts:
            raise refuse("key", "no rotation of this ledger leads to or from the key given", next_step=_FOREIGN)

    @property
    def texts(self) -> list[str]:
        """The verifier keys, oldest first."""
        return [verifier.text for verifier in self._verifiers]

    @property
    def newest(self) -> Verifier:
        """The key that signs now."""
        return self._verifiers[-1]

    def read(self, note: bytes) -> Checkpoint:
        """A checkpoint signed by the key that its size belongs to. Raises `RunnerError` (ledger)."""
        first: RunnerError | None = None
        for number in range(len(self._verifiers) - 1, -1, -1):
            try:
                found = read_checkpoint(note, self._verifiers[number])
            except RunnerError as error:
                first = first or error
                continue
            low = self.rotations[number - 1].checkpoint.size if number else 0
            high = self.rotations[number].checkpoint.size if number < len(self.rotations) else found.size
            if low <= found.size <= high:
                self._compare(found)
                return found
            which = f"{self._verifiers[number].name}+{self._verifiers[number].id.hex()}"
            part = f"from {low} to {high}" if number < len(self.rotations) else f"from {low} on"
            raise refuse("ledger", f"{which} signs {found.size} entries, but it was the log's key {part} only")
        assert first is not None  # there is at least one key
        raise first

    def retired(self, size: int) -> bool:
        """Whether a checkpoint of this size is signed by a key that was replaced since."""
        return bool(self.rotations) and size <= self.rotations[-1].position

    def _compare(self, found: Checkpoint) -> None:
        """Where a handover is, both keys have said what the log is; one of them cannot say otherwise."""
        for rotation in self.rotations:
            if rotation.checkpoint.size == found.size and rotation.checkpoint != found:
                raise refuse("ledger", f"at {found.size} entries, a rotation of the key signs another root")
