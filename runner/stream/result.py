"""A python tool's structured result: hostile JSON bytes into a value, or the reason why it is none."""

from __future__ import annotations

from typing import Any

import msgspec

_DEPTH = 64  # what any client's decoder can be trusted to take


def structured(data: bytes | None, limit: int) -> tuple[Any, str]:
    """The value and "", or None and what is wrong with it. Never raises."""
    if data is None:
        return None, ""
    if len(data) > limit:
        return None, f"the result is larger than {limit} bytes"
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "the result is not JSON"
    if _depth(value) > _DEPTH:
        return None, f"the result nests deeper than {_DEPTH}"
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, RecursionError):
        return None, "the result holds an integer that no 64 bits hold"
    return value, ""


def _depth(value: Any) -> int:
    """How deep containers nest. Iterative: hostile depth costs no stack."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        found, depth = todo.pop()
        if isinstance(found, dict | list):
            deepest = max(deepest, depth)
            todo.extend((inner, depth + 1) for inner in (found.values() if isinstance(found, dict) else found))
    return deepest
