"""A python tool's structured result: hostile JSON bytes into a value, or the reason why it is none."""

from __future__ import annotations

from typing import Any

import msgspec


def structured(data: bytes | None, limit: int) -> tuple[Any, str]:
    """The value and "", or None and what is wrong with it. Never raises."""
    if data is None:
        return None, ""
    if len(data) > limit:
        return None, f"the result is larger than {limit} bytes"
    try:
        return msgspec.json.decode(data), ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "the result is not JSON"
