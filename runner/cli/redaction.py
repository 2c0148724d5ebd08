"""`runner filter`: what the rules of policies/filters find in a text, and what would become of it."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.catalog import compile_bundle, read_folders, shared
from runner.catalog.compiled import Catalog
from runner.catalog.filters import INJECTION
from runner.cli.tables import print_json, print_table, printable
from runner.errors import refuse
from runner.model import FilterRule, InjectionRule
from runner.stream.actions import Actions, chosen, mask
from runner.stream.found import Found
from runner.stream.inspect import INJECTED, Instructions
from runner.stream.patterns import Patterns
from runner.stream.specimen import check_examples, ready
from runner.stream.windows import inspect_whole

app = typer.Typer(help="See what filters find in text, and check their rules.", no_args_is_help=True)

Policies = Annotated[Path | None, typer.Option("--policies", help="Folder of policies, with filters/*.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EXIT_NOTHING = 1  # as grep: nothing was found
_SHOWN = 60  # characters of a finding


def _catalog(policies: Path | None) -> Catalog:
    return compile_bundle(read_folders(shared("profiles"), shared("tools"), policies or shared("policies")))


@app.command("test", epilog="Example: runner filter test build.log")
def try_text(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")],
    policies: Policies = None,
    profile: Annotated[str, typer.Option("--profile", help="Use the [labels] of this task profile.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Print what was found as it is, not masked.")] = False,
    json: Json = False,
) -> None:
    """Show what the filters find in a text, and what a call whose output it was would deliver instead.

    Needs no daemon. Text that speaks to a model is looked for as in a result that nobody vouches for; anything else
    that was found is printed masked unless --show says otherwise. Issued secrets are not looked for: they are known to
    a running call only. The key of hashes is made for this command.

    Exit status as grep: 0 when something was found, 1 when nothing was, 5 when a rule is wrong.
    """
    data = _read(file)
    catalog = _catalog(policies)
    if profile and profile not in catalog.task_profiles:
        known = ", ".join(sorted(catalog.task_profiles))
        raise refuse("profile", f"no task profile `{profile[:64]}`", next_step=f"use one of: {known}")
    labels = catalog.task_profiles[profile].labels if profile else {}
    actions = Actions(chosen(labels), secrets.token_bytes(32))
    orders = inspect_whole(Instructions(catalog.injections), data, frozenset())
    found = sorted({*ready(catalog.filters).find(data), *orders.found})
    rows = [_row(each, data, actions, (*catalog.filters, *catalog.injections), show=show) for each in found]
    counts = Counter(each.rule for each in found)
    if json:
        print_json({"findings": rows, "counts": counts, "bytes": len(data)})
    elif rows:
        columns = ("line", "column", "rule", "label", "action", "before", "after")
        print_table(columns, [[str(row[column]) for column in columns] for row in rows])
        print()
        for rule, count in counts.most_common():
            print(f"{count:6}  {rule}")
    else:
        print("nothing found")
    if not rows:
        raise typer.Exit(EXIT_NOTHING)


def _row(
    found: Found, data: bytes, actions: Actions, rules: tuple[FilterRule | InjectionRule, ...], *, show: bool
) -> dict[str, Any]:
    start = data.rfind(b"\n", 0, found.start) + 1
    value = data[found.start : found.end]
    before = value if show or found.label == INJECTED else mask(found.label, value)
    # What keeps its text would tell here what --show is for.
    kept = actions.of(found.label) in ("allow", "mark") and not show
    after = before if kept else actions.replace(found, data)
    rule = next(each for each in rules if each.id == found.rule)
    return {
        "line": data.count(b"\n", 0, found.start) + 1,
        "column": found.start - start + 1,
        "rule": found.rule,
        "label": found.label,
        "action": actions.of(found.label),
        "before": _short(before),
        "after": _short(after),
        "why": rule.description,
        "source": rule.place if isinstance(rule, FilterRule) else f"policies/{INJECTION}",
    }


def _short(value: bytes) -> str:
    text = printable(value.decode("utf-8", "replace"))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 4 :]} ({len(value)} bytes)"


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise refuse("arguments", f"cannot read it: {error.strerror}", field=file, next_step="name a file") from None


@app.command("list", epilog="Example: runner filter list --json")
def list_rules(policies: Policies = None, json: Json = False) -> None:
    """List every rule: its id, label, what it finds, and where it is written."""
    rules = _catalog(policies).filters
    columns = ("id", "label", "description", "place")
    if json:
        print_json([{column: getattr(rule, column) for column in columns} for rule in rules])
        return
    print_table(columns, [[str(getattr(rule, column)) for column in columns] for rule in rules])
    print(f"\n{len(rules)} rules, {len({rule.label for rule in rules})} labels")


@app.command(epilog="Example: runner filter check --policies ./policies")
def check(policies: Policies = None, json: Json = False) -> None:
    """Read every rule and try every example: each must be found by its own rule, no counter-example may be.

    Exit status 0, or 5 when a rule is wrong: the error names file and line.
    """
    catalog = _catalog(policies)
    count = check_examples(Patterns(catalog.filters), catalog.filters)
    count += Instructions(catalog.injections).check_examples()
    rules = len(catalog.filters) + len(catalog.injections)
    if json:
        print_json({"rules": rules, "examples": count})
    else:
        print(f"{rules} rules, {count} examples and counter-examples hold")
