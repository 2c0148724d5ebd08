"""Making proofs from a ledger folder. Each is checked here before it is given away: a damaged ledger gives none."""

from __future__ import annotations

from runner.errors import refuse
from runner.evidence.read import Ledger
from runner.ledger.merkle import consistency_proof, inclusion_proof
from runner.ledger.note import Checkpoint
from runner.ledger.proof import Consistency, Inclusion

_DAMAGED = "run `runner trace verify`, which names what is damaged"


def prove_inclusion(ledger: Ledger, position: int) -> Inclusion:
    """That entry `position` is under the newest signed checkpoint. Raises `RunnerError` (ledger)."""
    signed = ledger.checkpoint
    if not 0 <= position < signed.size:
        raise refuse(
            "ledger",
            f"there is no signed entry {position}: the newest checkpoint signs {signed.size}",
            next_step="name one below that; an entry of this moment is signed within 50 ms",
        )
    hashes = inclusion_proof(position, signed.size, ledger.subtree)
    found = Inclusion(position, ledger.entry(position), tuple(hashes), ledger.note)
    if not found.holds(signed):
        raise refuse("ledger", "its entry does not lead to the signed root", field=str(position), next_step=_DAMAGED)
    return found


def prove_consistency(ledger: Ledger, before: Checkpoint, after: Checkpoint, note: bytes) -> Consistency:
    """That the checkpoint `after`, which is `note`, begins with all of `before`. Raises `RunnerError` (ledger) when
    the ledger does not hold both, which is what a cut, a rollback or a fork looks like."""
    if before.size > after.size:
        raise refuse("ledger", f"the older checkpoint signs {before.size} entries, the newer one only {after.size}")
    if after.size > ledger.signed:
        raise refuse("ledger", f"a checkpoint signs {after.size} entries, and only {ledger.signed} are here")
    found = Consistency(before.size, tuple(consistency_proof(before.size, after.size, ledger.subtree)), note)
    if not found.holds(before, after):
        raise refuse("ledger", "the ledger does not lead from the older checkpoint to the newer one")
    return found
