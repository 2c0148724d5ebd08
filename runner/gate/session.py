"""One connection's proven identity, fixed for its life."""

from __future__ import annotations

import msgspec

from runner.gate.provenance import Provenance
from runner.gate.tasks import Task, Tasks
from runner.token.claims import VerifiedChain
from runner.wire.agent import SessionFacts


class Session(msgspec.Struct, frozen=True):
    """Who a connection is: the chain it proved, the nonce its proofs must carry, what it says of itself, its task,
    and what receipts say of its process and authority."""

    verified: VerifiedChain
    nonce: str
    facts: SessionFacts
    task: Task
    tasks: Tasks
    provenance: Provenance
