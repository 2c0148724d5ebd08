"""`runner egress`: which part lets a request out, and what the one that does not is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.catalog import Catalog, compile_bundle, read_bundle, read_folders, shared
from runner.catalog.egress import allowlists
from runner.catalog.profile import amount_text
from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_json, print_table, printable
from runner.cli.token import read_chain
from runner.config import load_config
from runner.destination import ANY, Malformed, Target, absolute
from runner.destination import method as method_of
from runner.egress.allowlist import Limit
from runner.errors import EXIT_REFUSED, refuse
from runner.gate.serving import Serving
from runner.model import EgressRule, Principal, SecretRef
from runner.review.egress import Explained, Said, Standing, explain_by
from runner.review.egress import explain as explained
from runner.token.issue import own_claims
from runner.wire import admin
from runner.wire.egress import Requested

app = typer.Typer(help="See what a tool's calls may reach, and which part decides.", no_args_is_help=True)

_SCHEMES = frozenset({"https", "http", "tcp"})
EXPLAIN = (
    "Example: runner egress explain https://api.example.com/v1/items --tool http_request --method POST\n\n"
    "Example: runner egress explain tcp://db.example.com:5432 --tool sql_query --token agent.token "
    "--config runner.toml\n\n"
    "Example: runner egress explain https://api.example.com/v1/items --task t-42\n\n"
    "Exit status: 0 it may go out, 3 it may not, 5 a file or token is wrong."
)


@app.callback()
def nouns() -> None:
    """See what a tool's calls may reach, and which part decides."""


@app.command(epilog=EXPLAIN)
def explain(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…, http://… or tcp://HOST:PORT.")],
    tool: Annotated[str, typer.Option(help="The tool whose call sends it; with --task, its only one by default.")] = "",
    task: Annotated[str, typer.Option(help="Ask the running daemon about this live task, as it stands now.")] = "",
    socket: Socket = ADMIN_SOCKET,
    profile: Annotated[str, typer.Option(help="The task profile; the token's, or default.")] = "",
    method: Annotated[str, typer.Option(help="The method, where it can be read; GET by default.")] = "",
    token: Annotated[
        Path | None,
        typer.Option(help="A token, chain or credentials whose capability is asked, unproven; - for stdin."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="RUNNER_CONFIG", help="Take the catalogue of this configuration.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which parts let a request out, and what is missing where one does not.

    Task profile and tool ([[egress]]), token (its capability egress) and policies are asked one by one: each names the
    rule that matches, or the smallest that it lacks. The same functions decide here and in the daemon. Nothing is
    sent, and no name is looked up. Offline nothing is known of a session, so rules that read one see
    an empty one; addresses are judged when the name is looked up, after all of this allowed it. With --task the daemon
    tells what is in force for that task: its profile and tool, what its root token grants, the policies, its session
    so far."""
    if task and (profile or token):
        raise typer.BadParameter("the task has its own profile and token", param_hint="--task")
    if not task and not tool:
        raise typer.BadParameter("name the tool whose call sends it", param_hint="--tool")
    try:
        target = absolute(url, _SCHEMES)
        asked = method_of(method) if method else ""
    except Malformed as error:
        raise refuse("egress", str(error), field="URL", next_step="correct it") from None
    if task:
        found = _live(socket, task, tool, target, asked)
    else:
        catalog = _catalog(config)
        found = explained(target, asked, _standing(catalog, tool, profile, token), Serving.compile(catalog).policies)
    if json:
        print_json(_view(found))
    else:
        show(found)
    if not found.allowed:
        raise typer.Exit(EXIT_REFUSED)


def show(found: Explained) -> None:
    """An explanation for a person."""
    request = found.request
    where = f"{request.protocol} to {request.host} port {request.port}"
    what = "an opaque tunnel" if request.visibility == "opaque" else f"{request.method} {request.path}"
    print(f"{what}, {where}: {'may go out' if found.allowed else f'may not go out: {found.decides} decides'}\n")
    rows = []
    for each in found.parts:
        says = "not asked" if not each.asked else "allows" if each.allowed else "denies"
        rows.append((each.part, says, ", ".join(each.rules) or "-", printable(each.reason)))
    print_table(("part", "", "rules", "why"), rows)
    for each in found.parts:
        if each.asked and not each.allowed and each.missing:
            print(f"\n{each.part} lacks:\n")
            print("\n".join(f"    {printable(line)}" for line in each.missing.splitlines()))
    if found.allowed:
        print()
        for line in _terms(found):
            print(line)


def _terms(found: Explained) -> list[str]:
    lines = []
    if found.request.protocol == "https":
        lines.append(
            "egress ends its TLS and reads it" if found.inspect else "its TLS passes unread; the name in it must match"
        )
    for limit in found.limits:
        lines.append(f"{limit.rule}: at most {', '.join(_bounds(limit))} a call")
    lines += [f"credential {each.name} goes in at {', '.join(each.places)}" for each in found.secrets]
    return lines


def rule_words(rule: EgressRule) -> str:
    """A rule in words: what it opens, and what it bounds."""
    ports = " or ".join(map(str, rule.ports))
    below = f"one name below {rule.host[2:]}" if rule.host.startswith("*.") else rule.host
    host = "any host that the task profile names" if rule.host == ANY else below
    readable = rule.protocol == "http" or rule.inspect
    what = f"{', '.join(rule.methods) or 'any method'} of {', '.join(rule.paths) or 'any path'}"
    words = [
        f"{rule.name}: {rule.protocol} to {host} port {ports}",
        f"egress reads it: {what}" if readable else "opaque: nobody reads what passes",
    ]
    if rule.addresses:
        words.append(f"also at addresses in {', '.join(rule.addresses)}, which are denied elsewhere")
    bounds = _bounds(rule)
    if bounds:
        words.append(f"at most {', '.join(bounds)} a call")
    if rule.record == "digest":
        words.append("paths are recorded as digests")
    if rule.keep:
        words.append("responses are kept")
    return "; ".join(words)


def secret_words(secret: SecretRef) -> str:
    """A secret in words: how it reaches the tool, and where it may go."""
    if secret.delivery == "inject":
        where = f"goes in by rule {', '.join(secret.destinations)} at {', '.join(secret.places)}"
        return f"{secret.name}: the tool holds a placeholder in {secret.variable}; the value {where}"
    how = "the value in" if secret.delivery == "env" else "a file with the value, named by"
    return f"{secret.name}: the tool holds {how} {secret.variable}, and can send it anywhere it may reach"


def _bounds(of: EgressRule | Limit) -> list[str]:
    bounds = [f"{amount_text(of.up)} up"] if of.up else []
    bounds += [f"{amount_text(of.down)} down"] if of.down else []
    return bounds + ([f"{of.rate} a minute"] if of.rate else [])


def _catalog(config: Path | None) -> Catalog:
    if config is None:
        return compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies")))
    settings, text = load_config(config)
    return compile_bundle(read_bundle(settings, config, text))


def _standing(catalog: Catalog, tool: str, profile: str, token: Path | None) -> Standing:
    """A call as it would be. Raises `RunnerError` (unknown_tool, profile, not_granted, token)."""
    who = dict.fromkeys(("agent", "owner", "task", "session"), "any")
    granted = None
    if token is not None:
        chain = read_chain(token)
        granted = dict(own_claims(chain[-1]).tools or {})
        named: dict[str, Any] = own_claims(chain[0]).private or {}
        who |= {key: str(named[key]) for key in who if key in named}
        profile = profile or str(named.get("profile", ""))
    profile = profile or "default"
    manifest, task = catalog.tools.get(tool), catalog.task_profiles.get(profile)
    if manifest is None:
        raise refuse(
            "unknown_tool", f"no tool `{tool[:64]}`", next_step=f"known tools: {', '.join(catalog.tools) or 'none'}"
        )
    if task is None:
        known = ", ".join(catalog.task_profiles) or "none"
        raise refuse("profile", f"no task profile `{profile[:64]}`", next_step=f"known task profiles: {known}")
    if tool not in task.tools:
        holders = ", ".join(name for name, each in catalog.task_profiles.items() if tool in each.tools)
        raise refuse(
            "not_granted",
            f"task profile `{profile}` does not hold tool `{tool}`",
            field="--profile",
            next_step=f"add it to `tools` in profiles/{profile}.toml, or name a profile that does: {holders or 'none'}",
        )
    return Standing(
        principal=Principal(agent=who["agent"], owner=who["owner"], task=who["task"], session=who["session"]),
        tool=tool,
        profile=profile,
        allowlists=allowlists(task, manifest),
        granted=granted,
        secrets=manifest.secrets,
    )


def _live(socket: Path, task: str, tool: str, target: Target, method: str) -> Explained:
    """As the daemon has it now. Raises `RunnerError` (arguments, unknown_tool, not_granted, unavailable)."""
    facts = _told(socket, admin.ExplainEgress(task=task, tool=tool))

    def words(request: Requested) -> tuple[Said, Said]:
        view = _told(socket, admin.ExplainEgress(task=task, tool=facts.tool, request=request))
        return _said("token", view.token), _said("policy", view.policy)

    return explain_by(target, method, facts.allowlists, facts.secrets, words)


def _told(socket: Path, message: admin.ExplainEgress) -> admin.EgressView:
    answer = ask(socket, message)
    if not isinstance(answer, admin.EgressView):
        raise refuse("protocol", "the daemon answered something else")
    return answer


def _said(part: str, word: admin.EgressWord) -> Said:
    return Said(part=part, **{name: getattr(word, name) for name in word.__struct_fields__})


def _view(found: Explained) -> dict[str, Any]:
    request = found.request
    shown: dict[str, Any] = {
        "protocol": request.protocol,
        "host": request.host,
        "port": request.port,
        "visibility": request.visibility,
    }
    if request.visibility != "opaque":
        shown |= {"method": request.method, "path": request.path, "query": request.query}
    return {
        "allowed": found.allowed,
        "decides": found.decides,
        "request": shown,
        "inspect": found.inspect,
        "parts": [{key: getattr(each, key) for key in each.__struct_fields__} for each in found.parts],
        "limits": msgspec.to_builtins(found.limits),
        "secrets": [{"name": each.name, "places": each.places} for each in found.secrets],
    }
