"""`runner trace rotate-key`: the replacement of the ledger's key."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from runner.cli.trace_options import STATE, Json, State
from runner.cli.trace_proof import print_ascii
from runner.recorder.rotate import rotate_key as replace_key


def rotate_key(
    state: State = STATE,
    why: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: Json = False,
) -> None:
    """Replace the key that signs the ledger, as an entry of the ledger itself. The daemon must be stopped.

    The old key signs the entry that names the new one, and is then gone. Readers who know the old public key go on
    with it: rotation.N in the ledger folder leads them to the new one. If this is cut off, the daemon refuses to
    start until it is run again, which finishes it.

    Example: runner trace rotate-key --why 'the host was moved'"""
    replaced = replace_key(state, _now, by=os.getuid(), why=why)
    if as_json:
        print_ascii(replaced._asdict())
        return
    print(f"replaced at position {replaced.position}\nold key  {replaced.old}\nnew key  {replaced.new}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
