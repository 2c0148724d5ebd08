"""`runner policy`: check policies, run their cases, and print the schema they are written against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.catalog import SCHEMA, SIGNATURE, compile_bundle, read_folders, shared
from runner.cli.keys import load_public, read_secret
from runner.cli.tables import print_json, print_table
from runner.errors import refuse
from runner.gate.schema import cedar_schema
from runner.gate.serving import Serving
from runner.gate.signature import sign, signature_of, verify
from runner.review.cases import Result, coverage, read_cases, run_cases
from runner.review.reach import Reach, reach
from runner.token.keys import read_private

app = typer.Typer(help="Check and test policies, and see what they decide and why.", no_args_is_help=True)

Policies = Annotated[Path | None, typer.Option("--policies", help="Folder of *.cedar files and cases/.")]
Tools = Annotated[Path | None, typer.Option("--tools", help="Folder of tools.")]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of profiles.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EXIT_FAILED = 1  # a case got another decision


def compiled(policies: Path | None, tools: Path | None, profiles: Path | None) -> Serving:
    """The folders, or the package's own where none is given, compiled as gate compiles them. Raises `RunnerError`."""
    bundle = read_folders(profiles or shared("profiles"), tools or shared("tools"), policies or shared("policies"))
    return Serving.compile(compile_bundle(bundle))


def tested(policies: Path | None, served: Serving) -> list[Result]:
    """Every case of the folder, run. Raises `RunnerError` (policy) for a case that cannot be read."""
    return run_cases(read_cases(policies or shared("policies")), served)


@app.command(epilog="Example: runner policy check --policies ./policies")
def check(
    policies: Policies = None,
    tools: Tools = None,
    profiles: Profiles = None,
    strict: Annotated[bool, typer.Option("--strict", help="A rule that no call reaches is an error.")] = False,
    public_key: Annotated[Path | None, typer.Option(help="The bundle must be signed by this key.")] = None,
    json: Json = False,
) -> None:
    """Parse every policy, validate it against the tools, run every case, and look for rules that no call reaches.

    Unreached are rules that hold for none of the cases, and for no call of a grid: each argument at the boundaries of
    its JSON Schema and at what the rules compare with, alone around every case, and a rule's own conditions together.
    Such a rule may still be reached by a call that nobody tried.

    Exit status 0, or 5 when a file is wrong, a case gets another decision, or (--strict) a rule is unreached.
    """
    served = compiled(policies, tools, profiles)
    if public_key is not None:
        trusted = load_public(public_key)[0]
        verify(served.catalog.policies, signature_of(served.catalog), [trusted])
    results = tested(policies, served)
    reached = reach(served, [result.case for result in results])
    stale = _stale(policies or shared("policies"), served)
    if json:
        print_json(_report(served, results) | {"reach": msgspec.to_builtins(reached), "schema_stale": stale})
    else:
        _print(served, results)
        _print_reach(served, reached)
        if stale:
            print(f"{SCHEMA} is not what the tools make now: runner policy schema --write")
    _hold(results)
    if strict and reached.unreached:
        rule = next(rule for rule in served.policies.all_rules if rule.id == reached.unreached[0])
        raise refuse(
            "policy",
            f"rule {rule.id}: no call reaches it",
            field=rule.source.place(),
            next_step="correct the rule, or add a case that reaches it",
        )


def _hold(results: Sequence[Result]) -> None:
    """Raises `RunnerError` (policy) when a case fails."""
    failed = [result for result in results if result.difference]
    if failed:
        raise refuse(
            "policy",
            f"{len(failed)} of {len(results)} cases fail; the first, “{failed[0].case.name}”, {failed[0].difference}",
            field=failed[0].place,
            next_step="correct the policy or the case",
        )


@app.command("test", epilog="Example: runner policy test --policies ./policies --json")
def try_cases(policies: Policies = None, tools: Tools = None, profiles: Profiles = None, json: Json = False) -> None:
    """Run every case in policies/cases: a call in a session, and the decision, rule and reason that it must get.

    Prints how many cases expect each rule, are decided by it, and meet its conditions at all. Exit status 0, 1 when a
    case gets another decision, 5 when a file is wrong.
    """
    served = compiled(policies, tools, profiles)
    results = tested(policies, served)
    covered = coverage(served, results)
    if json:
        print_json(_report(served, results) | {"coverage": msgspec.to_builtins(covered)})
    else:
        _print(served, results)
        print()
        columns = ("rule", "place", "expected by", "decided", "held in")
        print_table(
            columns, [(row.rule, row.place, str(row.expected), str(row.decided), str(row.matched)) for row in covered]
        )
    if any(result.difference for result in results):
        raise typer.Exit(EXIT_FAILED)


def untested(served: Serving, results: Sequence[Result]) -> list[str]:
    """Rules that no case expects: nobody would notice if they stopped to speak."""
    expected = {result.case.expect.rule for result in results}
    return [rule.id for rule in served.policies.all_rules if rule.id not in expected]


def _report(served: Serving, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "policy": served.policies.digest,
        "version": served.catalog.policy_version,
        "rules": [rule.id for rule in served.policies.all_rules],
        "untested": untested(served, results),
        "failed": sum(1 for result in results if result.difference),
        "cases": [
            {
                "place": result.place,
                "name": result.case.name,
                "tool": result.case.tool,
                "decision": result.got.effect,
                "rules": result.got.rules,
                "matching": result.matching,
                "reason": result.got.reason,
                "ok": not result.difference,
                "difference": result.difference,
            }
            for result in results
        ],
    }


def _print(served: Serving, results: Sequence[Result]) -> None:
    failing = any(result.difference for result in results)  # the reasons themselves are in --json
    columns = ("", "tool", "case", "decision", "rule", *(("place", "difference") if failing else ()))
    rows = []
    for result in results:
        rules = ", ".join(result.got.rules) or "-"
        row = ("FAILED" if result.difference else "ok", result.case.tool, result.case.name, result.got.effect, rules)
        rows.append((*row, result.place, result.difference) if failing else row)
    print_table(columns, rows)
    count, hold = len(served.policies.all_rules), sum(1 for result in results if not result.difference)
    version = f", version {served.catalog.policy_version}" if served.catalog.policy_version else ""
    print(f"\n{count} rules for {len(served.tools)} tools, policy {served.policies.digest[:16]}{version}")
    print(f"{hold} of {len(results)} cases hold")
    if silent := untested(served, results):
        print(f"rules without a case: {', '.join(silent)}")


def _print_reach(served: Serving, reached: Reach) -> None:
    places = {rule.id: rule.source.place() for rule in served.policies.all_rules}
    for rule in reached.unreached:
        print(f"unreached: {rule} ({places[rule]}): it held for none of {reached.asked} calls")
    if not reached.unreached:
        print(f"every rule was reached, by {reached.asked} calls at most")
    if reached.bare:
        print(
            f"tools that nothing was tried with, for want of a case with arguments that fit: {', '.join(reached.bare)}"
        )
    if reached.cut:
        print(f"tools with more boundary values than were tried: {', '.join(reached.cut)}")


def _stale(folder: Path, served: Serving) -> bool:
    """Whether there is a schema for editors that is not the one of these tools."""
    path = folder / SCHEMA
    return path.is_file() and path.read_text("utf-8", "replace") != cedar_schema(served.tools.values())


@app.command(epilog="Example: runner policy schema --tools ./tools --policies ./policies --write")
def schema(
    policies: Policies = None,
    tools: Tools = None,
    profiles: Profiles = None,
    write: Annotated[bool, typer.Option("--write", help=f"Write {SCHEMA} beside the policies, for editors.")] = False,
    json: Json = False,
) -> None:
    """Print the Cedar schema that policies are validated against, made from the tools' manifests.

    With --write it goes into the folder of the policies, where Cedar's editor extension looks for it by itself.
    """
    bundle = read_folders(profiles or shared("profiles"), tools or shared("tools"), policies or shared("policies"))
    text = cedar_schema(compile_bundle(bundle).tools.values())
    path = (policies or shared("policies")) / SCHEMA
    if write:
        try:
            path.write_text(text, "utf-8")
        except OSError as error:
            raise refuse("policy", f"cannot write it: {error.strerror}", field=str(path)) from None
    if json:
        print_json({"schema": text, "written": str(path) if write else ""})
    else:
        print(str(path) + "\n" if write else text, end="")


@app.command("sign", epilog="Example: runner policy sign --policies ./policies --key policy-keys/issuer.key")
def sign_bundle(
    key: Annotated[Path, typer.Option(help="A private key file, as `runner keys init` writes it.")],
    policies: Policies = None,
    tools: Tools = None,
    profiles: Profiles = None,
    json: Json = False,
) -> None:
    """Sign a bundle whose cases all hold: write bundle.sig beside its files, over the digest of all of them.

    A daemon with [policy] require_signature takes no other bundle, at its start and at a reload. Use a key of its own:
    whoever holds the issuer's key can mint tokens too.
    """
    served = compiled(policies, tools, profiles)
    _hold(tested(policies, served))
    private, _ = read_private(read_secret(key), str(key))
    path = (policies or shared("policies")) / SIGNATURE
    whole = path.with_name(f".{SIGNATURE}")  # no name of a bundle's file: a daemon that reads now sees old or new
    try:
        whole.write_bytes(sign(served.catalog.policies, private))
        whole.replace(path)
    except OSError as error:
        raise refuse("policy", f"cannot write it: {error.strerror}", field=str(path)) from None
    facts = {"policy": served.policies.digest, "version": served.catalog.policy_version, "signature": str(path)}
    facts["thumbprint"] = private.public.thumbprint
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:<12} {value}")
