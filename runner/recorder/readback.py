"""Which entries gate's state follows, told from their bytes without decoding them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from runner.ledger.sequence import PERMITS

STATE_KINDS = frozenset(
    {
        *("token", "revoke", "reopen", "task_begin", "task_end", "sandbox", "sandbox_end", "call", "outcome"),
        *("reload", "pending", "withdraw", "image", "prune_image"),
    }
)  # calls only when they were allowed


class _Peek(msgspec.Struct):
    kind: str
    decision: msgspec.Raw = msgspec.Raw()


class _Decision(msgspec.Struct):
    effect: str


_peek = msgspec.json.Decoder(_Peek)
_decision = msgspec.json.Decoder(_Decision)


def select(entries: Iterable[tuple[int, bytes]], kinds: frozenset[str]) -> Iterator[tuple[int, bytes]]:
    """The (position, bytes) of `kinds` among entries that were checked when they were appended."""
    for position, data in entries:
        peeked = _peek.decode(data)
        if peeked.kind not in kinds:
            continue
        if peeked.kind != "call" or _decision.decode(peeked.decision).effect in PERMITS:
            yield position, data
