"""What every command of `runner trace` takes: the state folder, the key, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
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
LedgerDir = Annotated[
    Path | None, typer.Option("--ledger", metavar="DIR", help="A ledger folder, or an export of one, instead.")
]
STATE = Path("/var/lib/toolrunner")


def open_ledger(state: Path, key: str, ledger: Path | None = None) -> Ledger:
    """The ledger under a state folder, or the one in `ledger`. Raises `RunnerError`."""
    folder = ledger or state / "ledger"
    return Ledger(folder, load_verifier(key, folder))


def content_folder(state: Path, ledger: Path | None) -> Path | None:
    """The content store that belongs to it; None beside an export, which has none."""
    if ledger is None:
        return state / "content"
    return ledger.parent / "content" if (ledger.parent / "content").is_dir() else None


def print_plain(value: Any) -> None:
    """As `tables.print_json`, but all ASCII: entries hold hostile text, and JSON lets bidi characters through."""
    print(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))
