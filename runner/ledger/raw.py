"""Raw output as entries: what is kept of it with a call's outcome, and each opening of it."""

from __future__ import annotations

from typing import Literal

from runner.ledger.part import Content, Entry, Int, Operator, Part


class Raw(Part, frozen=True):
    """A call's output as the tool wrote it, before any filter, encrypted (`runner/ledger/escrow.py`).

    `content` is the ciphertext, salted; `stdout`, `stderr` and `result` are bytes of what is in it. `recipients` are
    fingerprints of the keys that open it; `kept` is why it is kept. `lost` bytes came after the call's limit of output
    and are kept nowhere: the call was killed for them."""

    content: Content
    segments: Int
    kept: Literal["always", "filtered", "held"]
    recipients: tuple[str, ...]
    stdout: Int = 0
    stderr: Int = 0
    result: Int = 0
    lost: Int = 0


class RawOpen(Entry, frozen=True, tag="raw_open"):
    """An operator was given the raw output of `call`, still encrypted, after this was on disk. `raw` is the digest of
    what was handed over, as the call's outcome names it."""

    call: str
    raw: str
    why: str
    by: Int
    operator: Operator | None = None
