"""A place in a text, and what was found there."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """`start` and `end` are offsets in the bytes that were searched; `rule` is a rule's id or `secret:NAME`."""

    start: int
    end: int
    rule: str
    label: str
