"""`runner policy explain` and `runner policy diff`: why a call was decided so, and what another bundle would change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.catalog import shared
from runner.cli.policy import Policies, Profiles, Tools, compiled
from runner.cli.tables import print_table, print_text
from runner.errors import RunnerError, refuse
from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger, load_verifier
from runner.review import compare
from runner.review import explain as why
from runner.review.cases import EgressPoint, Point, read_case_file, read_cases
from runner.review.compare import Comparison
from runner.review.explain import Explained, change_view, decision_view
from runner.review.recorded import find, recorded, serving_then
from runner.review.values import ABSENT, Change

State = Annotated[
    Path | None, typer.Option("--state", envvar="RUNNER_STATE", metavar="DIR", help="The daemon's state folder.")
]
Key = Annotated[
    str, typer.Option("--key", metavar="FILE|TEXT", help="The verifier key; default: the one in the ledger folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EXPLAIN = "Example: runner policy explain policies/cases/base.toml:12"
DIFF = "Example: runner policy diff /etc/toolrunner/policies ./policies --state /var/lib/toolrunner"
_STATE = Path("/var/lib/toolrunner")
_SHOWN = 120  # characters of a value on a terminal
_LISTED = 20  # differing calls on a terminal; --json has more


@contextmanager
def _evidence(state: Path, key: str) -> Iterator[tuple[Ledger, ContentReader]]:
    folder = state / "ledger"
    try:
        content = ContentReader(state / "content")
    except RunnerError as error:
        reason = error.refused.reason
        raise refuse("ledger", reason, field=str(state), next_step="name the daemon's state: --state DIR") from None
    try:
        yield Ledger(folder, load_verifier(key, folder)), content
    finally:
        content.close()


def _print_json(value: Any) -> None:
    """All ASCII: arguments of recorded calls are hostile text, and JSON lets bidi characters through."""
    print(json.dumps(value, indent=2, sort_keys=True, default=dict))


def explain(
    call: Annotated[str, typer.Argument(help="A recorded call's id, or FILE.toml:LINE of a case.")],
    policies: Policies = None,
    tools: Tools = None,
    profiles: Profiles = None,
    state: State = None,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Say which rules held for a call, which nearly did, and the smallest change that would change the decision.

    A recorded call is explained under the catalogue that decided it, unless folders are named. Changes are found by
    asking the policy engine about calls that differ in one attribute or argument: parts left out, boundaries of the
    argument's schema, and what the rules compare with. The smallest replaces the fewest characters of JSON. A change
    that is not found may still exist, and one that is found may be more than the token grants, which is not asked.
    """
    again: dict[str, Any] = {}
    if ".toml" in call:
        point, place = _case(call, policies)
        if isinstance(point, EgressPoint):
            raise refuse(
                "not_supported",
                "no changes of a request to a destination are tried",
                field=place,
                next_step="ask `runner policy test` which rules held, or `runner egress explain URL`",
            )
        explained = why.explain(point, compiled(policies, tools, profiles))
        again = {"case": place}
    else:
        with _evidence(state or _STATE, key) as (ledger, content):
            found = find(ledger, content, call)
            if found.point is None:
                raise refuse("policy", f"it cannot be explained: {found.why}", field=call)
            named = policies or tools or profiles
            served = compiled(policies, tools, profiles) if named else serving_then(content, found)
        explained = why.explain(found.point, served)
        was = found.call.decision
        got = explained.decision
        # A step_up or defer without an approver is recorded as the denial that it became.
        same = (got.effect, got.rules) == (was.effect, was.rules) and got.policy == was.policy
        again = {
            "call": found.call.call,
            "position": found.position,
            "recorded": {
                "decision": was.effect,
                "rules": list(was.rules),
                "reason": was.reason,
                "code": was.code,
                "policy": was.policy,
            },
            "decided_again_the_same": same,
        }
    if as_json:
        _print_json(again | _view(explained))
    else:
        _print(again, explained)


def _case(place: str, policies: Path | None) -> tuple[Point | EgressPoint, str]:
    name, _, line = place.partition(".toml")
    path = Path(f"{name}.toml")
    if not path.is_file():  # as `policy check` and `policy test` print it
        path = (policies or shared("policies")) / "cases" / path.name
    cases = read_case_file(path, f"policies/cases/{path.name}")
    number = int(line[1:]) if line[1:].isdecimal() else 0
    if not number and len(cases) == 1:
        return cases[0][1].point, cases[0][0]
    before = [each for each in cases if int(each[0].rpartition(":")[2]) <= number]
    if not before:
        raise refuse(
            "policy", f"it has {len(cases)} cases", field=str(path), next_step="name one by its line: FILE.toml:LINE"
        )
    return before[-1][1].point, before[-1][0]


def _view(found: Explained) -> dict[str, Any]:
    return {
        "tool": found.question.tool,
        "now": decision_view(found.decision),
        "by_policy": found.by_policy,
        "matching": list(found.matching),
        "near": [{"rule": rule, "change": change_view(change)} for rule, change in found.near.items()],
        "smallest": _flip(found.flips[0]) if found.flips else None,
        "flips": [_flip(flip) for flip in found.flips],
        "tried": found.tried,
        "all_tried": found.all_tried,
    }


def _flip(flip: Any) -> dict[str, Any]:
    return {"change": change_view(flip.change), "after": decision_view(flip.after), "new_rules": list(flip.rules)}


def _text(change: Change) -> str:
    return f"{change.field}: {_value(change.old)} → {_value(change.new)}"


def _value(value: Any) -> str:
    text = "absent" if value is ABSENT else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _print(again: dict[str, Any], found: Explained) -> None:
    by = ", ".join(found.decision.rules) or "no rule"
    if "recorded" in again:
        was = again["recorded"]
        same = "the same now" if again["decided_again_the_same"] else "not the same now"
        asked = same if was["policy"] else f"{was['code']}: the token refused it, and no policy was asked"
        print_text(f"{was['decision']} by {', '.join(was['rules']) or 'no rule'}; {asked}", "recorded  ")
    print_text(f"{found.decision.effect} by {by}: {found.decision.reason}", "decision  ", " " * 10)
    if not found.by_policy:
        print("          no policy was asked")
    print_text(", ".join(found.matching) or "none", "held      ", " " * 10)
    for rule, change in found.near.items():
        print_text(f"{rule}, if {_text(change)}", "nearly    ", " " * 10)
    for number, flip in enumerate(found.flips):
        rules = ", ".join(flip.after.rules) or "no rule"
        label = "smallest  " if number == 0 else "or        "
        print_text(f"{_text(flip.change)} makes it {flip.after.effect} by {rules}", label, " " * 10)
    if not found.flips:
        print("smallest  none of the changes tried gives another decision")
    rest = "" if found.all_tried else "; there are more to try"
    print(f"\nFound by asking about {found.tried} calls that differ in one attribute or argument{rest}.")


def diff(
    old: Annotated[Path, typer.Argument(help="Folder of policies.")],
    new: Annotated[Path, typer.Argument(help="Folder of policies to compare with it.")],
    tools: Tools = None,
    profiles: Profiles = None,
    state: State = None,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Say what changes from one bundle to another: over the cases of both, and over recorded calls with --state.

    A recorded call is asked about in the session as it was then: had the new bundle decided the calls before it, some
    sessions would have gone otherwise. Calls whose arguments are not kept are counted, not guessed. Both bundles are
    compiled with the same tools and profiles.
    """
    before, after = compiled(old, tools, profiles), compiled(new, tools, profiles)
    rules = compare.rules(before, after)
    found = {"cases": compare.over_cases([*read_cases(old), *read_cases(new)], before, after)}
    if state is not None:
        with _evidence(state, key) as (ledger, content):
            found["calls"] = compare.over_calls(recorded(ledger, content), before, after)
    if as_json:
        _print_json(
            {
                "old": before.policies.digest,
                "new": after.policies.digest,
                "rules": {"added": rules.added, "removed": rules.removed, "changed": rules.changed},
            }
            | {name: _comparison(each) for name, each in found.items()}
        )
        return
    print(f"old       policy {before.policies.digest[:16]}, {len(before.policies.all_rules)} rules")
    print(f"new       policy {after.policies.digest[:16]}, {len(after.policies.all_rules)} rules")
    for what, ids in (("added", rules.added), ("removed", rules.removed), ("changed", rules.changed)):
        if ids:
            print_text(", ".join(ids), f"{what:<10}", " " * 10)
    for name, each in found.items():
        _print_comparison(name, each)


def _comparison(found: Comparison) -> dict[str, Any]:
    return {
        "asked": found.asked,
        "counts": dict(found.counts),
        "left_out": dict(found.left_out),
        "differences": [
            {
                "place": each.place,
                "name": each.name,
                "tool": each.tool,
                "what": each.what,
                "old": decision_view(each.old),
                "new": decision_view(each.new),
            }
            for each in found.differences
        ],
    }


def _print_comparison(name: str, found: Comparison) -> None:
    differ = sum(found.counts.values())
    print(f"\n{found.asked} {name} asked about, {differ} differ")
    for what, count in sorted(found.counts.items()):
        print(f"  {count:>6}  {what}")
    for reason, count in sorted(found.left_out.items()):
        print(f"  {count:>6}  left out: {reason}")
    rows = [
        (
            each.place,
            each.tool,
            f"{each.old.effect} by {', '.join(each.old.rules) or '-'}",
            f"{each.new.effect} by {', '.join(each.new.rules) or '-'}",
        )
        for each in found.differences[:_LISTED]
    ]
    if rows:
        print_table(("where", "tool", "old", "new"), rows)
    if differ > _LISTED:
        print(f"… and {differ - _LISTED} more: --json")
