"""The catalogue: profiles, tools, policies and config, read as bytes by parent and compiled by gate and engine.

Process: parent reads (`read_bundle`); gate, engine and the command line compile (`compile_bundle`).
Input: the operator's files, as bytes.
Trusts: who may write those folders.
Does not trust: their content; symbolic links, sizes, names; anything half-written.
Privilege: none of its own; parent reads as root, so it opens, bounds and digests and understands nothing.

A catalogue is whole or it is not there: one error names file, line, field and what to do.
"""

from runner.catalog.compiled import Catalog, check_escrow, compile_bundle, keeps_raw
from runner.catalog.files import SCHEMA, SIGNATURE, archive, read_bundle, read_folders, shared, unarchive
from runner.catalog.manifest import compile_tool

__all__ = [
    "SCHEMA",
    "SIGNATURE",
    "Catalog",
    "archive",
    "check_escrow",
    "compile_bundle",
    "compile_tool",
    "keeps_raw",
    "read_bundle",
    "read_folders",
    "shared",
    "unarchive",
]
