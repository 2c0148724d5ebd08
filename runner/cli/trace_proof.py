"""`runner trace` for those who do not trust this machine: checkpoints to keep, proofs to send, and their check with the
public key alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli.trace_options import STATE, Json, Key, State, open_ledger
from runner.errors import EXIT_UNVERIFIED, RunnerError, refuse
from runner.evidence.prove import prove_consistency, prove_inclusion
from runner.evidence.read import load_keys, read_file
from runner.evidence.view import find, line
from runner.ledger import proof
from runner.ledger.entry import decode
from runner.ledger.note import MAX_CHECKPOINT, Checkpoint
from runner.ledger.rotation import Keys

_LINE = 400  # characters of an entry on a terminal


def anchor(state: State = STATE, key: Key = "", as_json: Json = False) -> None:
    """Print the newest signed checkpoint, to keep where this machine cannot change it: by mail, on paper, elsewhere.

    Later, `runner trace verify --anchor FILE` finds a ledger that was cut, rolled back or forked since, and
    `runner trace consistency FILE` proves to others that it was not.

    Example: runner trace anchor > anchor-2026-01-31"""
    ledger = open_ledger(state, key)
    if as_json:
        print_ascii({**_facts(ledger.checkpoint), "note": ledger.note.decode(), "key": ledger.verifier.text})
        return
    print(ledger.note.decode(), end="")


def prove(
    what: Annotated[str, typer.Argument(metavar="CALL|POSITION", help="A call's id, or the position of any entry.")],
    state: State = STATE,
    key: Key = "",
    decision: Annotated[
        bool, typer.Option("--decision", help="Of a call: the entry of the decision, not that of the outcome.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that an entry is in the log: print the entry, the hashes that lead to the root, and its signed checkpoint.

    The form is C2SP tlog-proof (https://c2sp.org/tlog-proof), the entry in its extra line. Whoever has the public key
    checks it with `runner trace check`; nothing else of the ledger is needed, and nothing else is told.

    Example: runner trace prove 0197f0c2a1b37cc2 > receipt.tlog-proof"""
    ledger = open_ledger(state, key)
    if what.isascii() and what.isdecimal() and len(what) <= len(str(ledger.size)):
        position = int(what)
    else:
        view = find(ledger, what)
        if view is None:
            raise refuse("unknown_call", "no such call in this ledger", field=what, next_step="see `runner trace list`")
        position = view.outcome_position if view.outcome and not decision else view.position
    found = prove_inclusion(ledger, position)
    if as_json:
        print_ascii({"proof": _inclusion(found), **_facts(ledger.checkpoint)})
        return
    print(found.text().decode(), end="")


def consistency(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A checkpoint kept from earlier (a file).")],
    new: Annotated[str, typer.Argument(metavar="[NEW]", help="A newer one; default: the ledger's newest.")] = "",
    state: State = STATE,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Prove that the log only grew between two checkpoints: that the newer one begins with all of the older one.

    The form is the request of C2SP tlog-witness (https://c2sp.org/tlog-witness): `old` and a size, hashes, the newer
    checkpoint. Exit status 6 when there is no such proof: the ledger was cut, rolled back or forked.

    Example: runner trace consistency anchor-2026-01-31 > since-january"""
    ledger = open_ledger(state, key)
    keys = load_keys(key, ledger.folder)
    older, newer = checkpoint_file(Path(old)), checkpoint_file(Path(new)) if new else ledger.note
    try:
        before, after = keys.read(older), keys.read(newer)
        found = prove_consistency(ledger, before, after, newer)
    except RunnerError as error:
        _unproven(error.refused.reason, as_json=as_json)
        raise typer.Exit(EXIT_UNVERIFIED) from None
    if as_json:
        print_ascii({"proof": _consistency(found), "old": _facts(before), **_facts(after)})
        return
    print(found.text().decode(), end="")


def check(
    file: Annotated[Path, typer.Argument(help="A proof or a checkpoint, as `prove`, `consistency` or `anchor` wrote.")],
    key: Annotated[str, typer.Option("--key", metavar="FILE|TEXT", help="The public key, from whoever you trust.")],
    old: Annotated[
        Path | None, typer.Option("--old", metavar="FILE", help="For a consistency proof: the checkpoint you kept.")
    ] = None,
    rotation: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The ledger's rotation.1, rotation.2, … when its key was replaced."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a proof or a checkpoint offline, with the public key alone; say what it proves. Exit status 6 when it
    proves nothing.

    Example: runner trace check receipt.tlog-proof --key daemon.vkey"""
    keys = load_keys(key, Path(), rotation or [])
    data = _given(file, proof.MAX_PROOF)
    older = checkpoint_file(old) if old else None
    kind = proof.kind_of(data)
    if kind is not proof.Consistency and old is not None:
        raise refuse("arguments", "it is no proof of consistency, so there is nothing for --old", field=str(file))
    if kind is proof.Consistency and old is None:
        raise refuse(
            "arguments",
            "a proof of consistency starts from the checkpoint that you kept",
            field=str(file),
            next_step="give that checkpoint with --old",
        )
    try:
        told = _judge(keys, data, older)
    except RunnerError as error:
        _unproven(error.refused.reason, as_json=as_json)
        raise typer.Exit(EXIT_UNVERIFIED) from None
    retired = keys.retired(told["size"])
    if as_json:
        print_ascii({"ok": True, "retired_key": retired, **told})
        return
    print(f"proven: {told['says']}")
    if retired:
        print(
            "note: the key that signed this was replaced since, and whoever has it can still sign such a checkpoint; "
            "a newer proof, or the ledger, settles it"
        )
    if "entry" in told:
        print(line(told["position"], told["entry"].encode(), _LINE))


def checkpoint_file(path: Path) -> bytes:
    """What `anchor` wrote. Raises `RunnerError` (arguments) for a file that cannot be read, or holds a proof."""
    data = _given(path, MAX_CHECKPOINT)
    if proof.kind_of(data) is not None:
        raise refuse(
            "arguments", "it is a proof, not a checkpoint", field=str(path), next_step="give what `anchor` printed"
        )
    return data


def _given(path: Path, limit: int) -> bytes:
    """A file that somebody named: what is wrong with it says nothing of a ledger."""
    try:
        return read_file(path, limit)
    except RunnerError as error:
        raise refuse("arguments", error.refused.reason, field=str(path), next_step="name another file") from None


def _judge(keys: Keys, data: bytes, old: bytes | None) -> dict[str, Any]:
    """What a file proves. Raises `RunnerError` (ledger) when it is nothing."""
    kind = proof.kind_of(data)
    if kind is proof.Inclusion:
        inclusion = proof.read_inclusion(data)
        checkpoint = keys.read(inclusion.note)
        if not inclusion.holds(checkpoint):
            raise refuse("ledger", "its hashes do not lead from its entry to the signed root")
        decode(inclusion.entry)  # as entries are written, or this log never held it
        says = f"this entry is number {inclusion.position} of {checkpoint.size} in {checkpoint.origin}"
        return {**_facts(checkpoint), "says": says, "position": inclusion.position, "entry": inclusion.entry.decode()}
    if kind is proof.Consistency and old is not None:
        consistent = proof.read_consistency(data)
        before, checkpoint = keys.read(old), keys.read(consistent.note)
        if not consistent.holds(before, checkpoint):
            raise refuse("ledger", "its hashes do not lead from the older root to the newer one")
        says = f"the {checkpoint.size} entries of {checkpoint.origin} begin with the {before.size} you knew"
        return {**_facts(checkpoint), "says": says, "old": _facts(before)}
    checkpoint = keys.read(data)
    return {**_facts(checkpoint), "says": f"{checkpoint.origin} had {checkpoint.size} entries when this was signed"}


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": _base64(checkpoint.root)}


def _inclusion(found: proof.Inclusion) -> dict[str, Any]:
    return {
        "format": proof.INCLUSION,
        "index": found.position,
        "entry": found.entry.decode(),
        "hashes": [_base64(hashed) for hashed in found.hashes],
        "checkpoint": found.note.decode(),
    }


def _consistency(found: proof.Consistency) -> dict[str, Any]:
    return {
        "old": found.old,
        "hashes": [_base64(hashed) for hashed in found.hashes],
        "checkpoint": found.note.decode(),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def print_ascii(value: dict[str, Any]) -> None:
    """All ASCII: entries hold hostile text, and JSON lets bidi characters through."""
    print(json.dumps(value, indent=2, sort_keys=True))


def _unproven(reason: str, *, as_json: bool) -> None:
    if as_json:
        print_ascii({"ok": False, "reason": reason})
    else:
        print(f"NOT PROVEN: {reason}")
