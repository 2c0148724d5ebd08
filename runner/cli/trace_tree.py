"""`runner trace tree`, and the drawing of a token's tree that `runner trace show` has too."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner.cli.trace_options import STATE, Json, Key, LedgerDir, State, content_folder, open_ledger, print_plain
from runner.errors import refuse
from runner.evidence.acts import moment
from runner.evidence.content import ContentReader
from runner.evidence.delegation import Grants, Token, tree
from runner.evidence.read import Ledger
from runner.evidence.view import CallView, Filter, calls, visible
from runner.token.narrow import describe

if TYPE_CHECKING:
    from rich.tree import Tree

EPILOG = "Example: runner trace tree nightly --calls 20"
_WIDE = 10_000  # characters of a line in a pipe: nothing is broken there


def show_tree(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
    count: Annotated[int, typer.Option("--calls", min=0, help="Show the newest so many calls of each token.")] = 5,
    as_json: Json = False,
) -> None:
    """Draw who acted by whose word in a task: every token that a call came with, from the root down, what each may do,
    what was refused, what was revoked and by whom.

    A token that no call came with is in no entry, and so in no tree."""
    opened = open_ledger(state, key, ledger)
    found = delegation(opened, calls(opened, Filter(task=task)), content_folder(state, ledger), keep=count)
    if not found:
        refused = "no call of this task is in this ledger"
        raise refuse("unknown_call", refused, field=task, next_step="see `runner task list --all`")
    if as_json:
        print_plain(found)
        return
    for root in found:
        draw(root)
    tokens = [token for root in found for token in root.walk()]
    made, denied = sum(token.calls for token in tokens), sum(token.refused for token in tokens)
    print(f"task {visible(task)}: {len(tokens)} tokens, {made} calls, {denied} of them refused")
    if any(token.grants is None for token in tokens):
        print("note: what tokens grant is in the content store, which is not here")


def delegation(ledger: Ledger, views: Iterable[CallView], content: Path | None, *, keep: int) -> list[Token]:
    """The trees behind these calls, with what tokens grant where the content store is at hand."""
    reader = ContentReader(content) if content is not None else None
    try:
        return tree(ledger, views, reader, keep=keep)
    finally:
        if reader is not None:
            reader.close()


def draw(root: Token, *, counted: bool = True) -> None:
    """Print a tree, with how many calls came with each token. Nothing in it is markup, whatever it says."""
    from rich.console import Console  # here, so that the other commands start sooner
    from rich.text import Text
    from rich.tree import Tree

    def grown(token: Token, branch: Tree, *, dead: bool) -> None:
        for line in _lines(token):
            branch.add(Text(visible(line)))
        dead = dead or bool(token.revoked)
        for below in token.below:
            grown(below, branch.add(Text(visible(_title(below, counted=counted, dead=dead)))), dead=dead)

    top = Tree(Text(visible(_title(root, counted=counted, dead=False))))
    grown(root, top, dead=False)
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE).print(top)


def _title(token: Token, *, counted: bool, dead: bool) -> str:
    """`dead` when a token above it was revoked."""
    words = [token.name or "(no name)", token.token]
    if counted:
        calls = "1 call" if token.calls == 1 else f"{token.calls} calls"
        words.append(calls + (f", {token.refused} refused" if token.refused else ""))
    words += ["REVOKED"] if token.revoked else ["below a revoked token"] if dead else []
    return "  ".join(words)


def _lines(token: Token) -> list[str]:
    said = [f"for {token.owner}"] if not token.depth else []
    said += [f"announced in entry {token.announced}"] if token.announced >= 0 else []
    said += [f"good until {moment(token.expires)}"] if token.expires else []
    found = [", ".join(said)] if said else []
    for each in token.revoked:
        why = f": {each.why}" if each.why else ""
        of = f"{each.target} {each.value}".strip()
        found.append(f"revoked {each.time} by {each.by}, as {of}, in entry {each.position}{why}")
    if token.grants is not None:
        found += _granted(token.grants)
    found += [f"without {', '.join(token.dropped)}"] if token.dropped else []
    for made in token.made:
        why = f": {made.why}" if made.why and made.outcome != "exited 0" else ""
        found.append(f"{made.time}  {made.call}  {made.tool}  {made.effect}  {made.outcome}{why}")
    if token.calls > len(token.made) > 0:
        found.append(f"… and {token.calls - len(token.made)} earlier")
    return found


def _granted(grants: Grants) -> list[str]:
    free = sorted(tool for tool, bound in grants.items() if not bound)
    found = [f"may {', '.join(free)}, with any arguments"] if free else []
    for tool, bound in sorted(grants.items()):
        if bound:
            found.append(
                f"may {tool}: " + "; ".join(f"{name} {describe(each)}" for name, each in sorted(bound.items()))
            )
    return found or ["may call nothing itself"]
