"""`runner trace schema`: the JSON Schema of every entry, for readers of any make."""

from __future__ import annotations

from runner.ledger.schema import text

EPILOG = "Example: runner trace schema > entry.schema.json"


def schema() -> None:
    """Print the JSON Schema (2020-12) of every entry a ledger can hold."""
    print(text(), end="")
