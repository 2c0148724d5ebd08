"""What every command of `runner trace` takes: the state folder, the key, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.evidence.read import Ledger, load_verifier

State = Annotated[
    Path, typer.Option("--state", envvar="RUNNER_STATE", metavar="DIR", help="The daemon's state folder.")
]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="FILE|TEXT",
        help="The verifier key, or one that it replaced; default: the one in the ledger folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STATE = Path("/var/lib/toolrunner")


def open_ledger(state: Path, key: str) -> Ledger:
    """The ledger under a state folder. Raises `RunnerError`."""
    folder = state / "ledger"
    return Ledger(folder, load_verifier(key, folder))
