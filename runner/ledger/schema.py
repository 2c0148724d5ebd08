"""The JSON Schema (2020-12) of every entry, made from the types themselves. `schema.json` beside this is its output.

`runner trace schema > runner/ledger/schema.json` writes it anew; a test fails while it is stale.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from runner.ledger.entry import VERSION, AnyEntry

_ID = "urn:toolrunner:ledger:entry:1"


def schema() -> dict[str, Any]:
    """One object of `AnyEntry`, told apart by `kind`. An entry that validates may still be out of order, or not in
    canonical form: that is what `runner trace verify` is for."""
    (whole,), parts = msgspec.json.schema_components((AnyEntry,), ref_template="#/$defs/{name}")
    for part in parts.values():
        if "kind" in part.get("properties", {}):
            part["properties"]["v"] = {"const": VERSION}
            part["required"] = sorted({*part["required"], "v"})
            part["properties"]["time"]["format"] = "date-time"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _ID,
        "title": "An entry of a toolrunner ledger",
        **whole,
        "$defs": parts,
    }


def text() -> str:
    """The schema as it lies in the tree."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
