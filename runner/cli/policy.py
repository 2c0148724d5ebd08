"""`runner policy`: check policies against the tools and their cases; print the schema they are written against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.catalog import compile_bundle, read_folders, shared
from runner.cli.tables import print_json, print_table
from runner.config import decode_toml, parse_toml
from runner.errors import RunnerError, refuse
from runner.gate.authorize import Question, SessionView, decide
from runner.gate.schema import cedar_schema
from runner.gate.serving import Serving
from runner.model import Decision, Effect, Principal, Value

app = typer.Typer(help="Check policies, and see what they can refer to.", no_args_is_help=True)

Policies = Annotated[Path | None, typer.Option("--policies", help="Folder of *.cedar files and cases/.")]
Tools = Annotated[Path | None, typer.Option("--tools", help="Folder of tools.")]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of profiles.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Expect(Value, frozen=True, kw_only=True):
    """What a case must get. `rule` is one of the rules that decided, "" for none; `reason` is a part of the reason."""

    decision: Effect
    reason: str
    rule: str = ""
    code: str = ""


class Case(Value, frozen=True, kw_only=True):
    """One call in one session, and the decision it must get."""

    name: str
    tool: str
    expect: Expect
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    agent: str = "case-agent"
    owner: str = "case-owner"
    task: str = "case-task"
    profile: str = "default"
    peer_uid: int = 1000
    session: SessionView = SessionView()


Result = tuple[str, Case, Decision, str]  # place, case, what it got, how that differs ("" = it does not)


def compiled(policies: Path | None, tools: Path | None, profiles: Path | None) -> Serving:
    """The folders, or the package's own where none is given, compiled as gate compiles them. Raises `RunnerError`."""
    bundle = read_folders(profiles or shared("profiles"), tools or shared("tools"), policies or shared("policies"))
    return Serving.compile(compile_bundle(bundle))


def read_cases(folder: Path) -> list[tuple[str, Case]]:
    """Every case below `folder`/cases with its `file:line`. Raises `RunnerError` (policy)."""
    found: list[tuple[str, Case]] = []
    for path in sorted((folder / "cases").glob("*.toml")):
        name = f"policies/cases/{path.name}"
        text = path.read_bytes()
        tables = parse_toml(text, name, "policy")
        lines = text.splitlines(keepends=True)
        starts = [number for number, line in enumerate(lines) if line.strip() == b"[[case]]"]
        if set(tables) != {"case"} or len(starts) != len(tables["case"]):
            raise refuse("policy", "write each case as a [[case]] table of its own, and nothing else", field=name)
        for start, end, table in zip(starts, [*starts[1:], len(lines)], tables["case"], strict=True):
            # Blank lines for the cases before it: an error then names this case's line, not a namesake's.
            found.append((f"{name}:{start + 1}", _case(b"\n" * start + b"".join(lines[start:end]), name, start, table)))
    return found


def _case(text: bytes, name: str, start: int, table: dict[str, Any]) -> Case:
    try:
        return decode_toml(text, Case, name, "policy", table)
    except RunnerError as error:
        if error.refused.field != name:
            raise
        raise refuse("policy", error.refused.reason, field=f"{name}:{start + 1}") from None


def run_case(case: Case, served: Serving) -> tuple[Decision, str]:
    """The decision a case gets, and how it differs from the one it must get ("" when it does not)."""
    principal = Principal(agent=case.agent, owner=case.owner, task=case.task, session="case-session")
    question = Question(
        principal=principal, tool=case.tool, arguments=case.arguments, profile=case.profile, peer_uid=case.peer_uid
    )
    got, want = decide(question, case.session, served, served.policies), case.expect
    if got.effect != want.decision:
        return got, f"is {got.effect} ({got.reason}), must be {want.decision}"
    if (want.rule not in got.rules) if want.rule else bool(got.rules):
        return got, f"decided by {', '.join(got.rules) or 'no rule'}, must be {want.rule or 'no rule'}"
    if want.reason not in got.reason:
        return got, f"says “{got.reason}”, must say “{want.reason}”"
    if want.code and want.code != got.code:
        return got, f"has code {got.code or 'none'}, must have {want.code}"
    return got, ""


@app.command(epilog="Example: runner policy check --policies ./policies")
def check(policies: Policies = None, tools: Tools = None, profiles: Profiles = None, json: Json = False) -> None:
    """Parse every policy, validate it against the tools, and run every case in policies/cases.

    Exit status 0, or 5 when a file is wrong or a case gets another decision.
    """
    served = compiled(policies, tools, profiles)
    results = [(place, case, *run_case(case, served)) for place, case in read_cases(policies or shared("policies"))]
    if json:
        print_json(_report(served, results))
    else:
        _print(served, results)
    failed = [(place, case, difference) for place, case, _, difference in results if difference]
    if failed:
        place, case, difference = failed[0]
        raise refuse(
            "policy",
            f"{len(failed)} of {len(results)} cases fail; the first, “{case.name}”, {difference}",
            field=place,
            next_step="correct the policy or the case",
        )


def untested(served: Serving, results: Sequence[Result]) -> list[str]:
    """Rules that no case expects: nobody would notice if they stopped to speak."""
    tested = {case.expect.rule for _, case, _, _ in results}
    return [rule.id for rule in served.policies.all_rules if rule.id not in tested]


def _report(served: Serving, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "policy": served.policies.digest,
        "rules": [rule.id for rule in served.policies.all_rules],
        "untested": untested(served, results),
        "failed": sum(1 for result in results if result[3]),
        "cases": [
            {
                "place": place,
                "name": case.name,
                "tool": case.tool,
                "decision": got.effect,
                "rules": got.rules,
                "reason": got.reason,
                "ok": not difference,
                "difference": difference,
            }
            for place, case, got, difference in results
        ],
    }


def _print(served: Serving, results: Sequence[Result]) -> None:
    rows = []
    for _, case, got, wrong in results:
        rules = ", ".join(got.rules) or "-"
        rows.append(("FAILED" if wrong else "ok", case.tool, case.name, got.effect, rules, wrong))
    failing = any(row[-1] for row in rows)  # the reasons themselves are in --json
    columns = ("", "tool", "case", "decision", "rule", "difference")
    print_table(columns if failing else columns[:-1], rows if failing else [row[:-1] for row in rows])
    count, hold = len(served.policies.all_rules), sum(1 for result in results if not result[3])
    print(f"\n{count} rules for {len(served.tools)} tools, policy {served.policies.digest[:16]}")
    print(f"{hold} of {len(results)} cases hold")
    if silent := untested(served, results):
        print(f"rules without a case: {', '.join(silent)}")


@app.command(epilog="Example: runner policy schema --tools ./tools > policy.cedarschema")
def schema(tools: Tools = None, profiles: Profiles = None, json: Json = False) -> None:
    """Print the Cedar schema that policies are validated against, made from the tools' manifests."""
    bundle = read_folders(profiles or shared("profiles"), tools or shared("tools"), shared("policies"))
    text = cedar_schema(compile_bundle(bundle).tools.values())
    if json:
        print_json({"schema": text})
    else:
        print(text, end="")
