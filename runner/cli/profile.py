"""`runner profile`: what each profile promises, in words with its numbers. What this host enforces: `runner doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runner.catalog import Catalog, compile_bundle, read_folders, shared
from runner.catalog.egress import overlap
from runner.catalog.profile import amount_text
from runner.cli.checks import wall_findings
from runner.cli.egress import rule_words
from runner.cli.filters import filter_json, filter_lines, narrowed
from runner.cli.tables import print_json, print_table, print_text
from runner.engine import seccomp
from runner.engine.host import COSTS
from runner.errors import refuse
from runner.model import TaskProfile, ToolProfile

app = typer.Typer(
    help="See and check profiles: the walls of a task, and of one tool inside them.", no_args_is_help=True
)

Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of profiles.")]
Tools = Annotated[Path | None, typer.Option("--tools", help="Folder of tools.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A profile's name.")]


def _catalog(profiles: Path | None, tools: Path | None) -> Catalog:
    return compile_bundle(read_folders(profiles or shared("profiles"), tools or shared("tools"), shared("policies")))


@app.command("list", epilog="Example: runner profile list")
def list_profiles(profiles: Profiles = None, tools: Tools = None, json: Json = False) -> None:
    """List every profile with what it is for."""
    catalog = _catalog(profiles, tools)
    every = [("task", each) for each in catalog.task_profiles.values()]
    both: list[tuple[str, TaskProfile | ToolProfile]] = [*every]
    both += [("tool", each) for each in catalog.tool_profiles.values()]
    if json:
        print_json([{"name": each.name, "kind": kind, "description": each.description} for kind, each in both])
        return
    print_table(
        ("profile", "kind", "digest", "for"), [(e.name, kind, e.digest[:12], e.description) for kind, e in both]
    )


@app.command(epilog="Example: runner profile show default")
def show(name: Name, profiles: Profiles = None, tools: Tools = None, json: Json = False) -> None:
    """Show one profile with every number in it."""
    catalog = _catalog(profiles, tools)
    profile: Any = catalog.task_profiles.get(name) or catalog.tool_profiles.get(name)
    if profile is None:
        known = ", ".join([*catalog.task_profiles, *catalog.tool_profiles])
        raise refuse("profile", f"no profile `{name[:64]}`", next_step=f"known profiles: {known}")
    if json:
        # Not to_builtins: a value that equals its default is still a promise.
        print_json(_plain(profile))
        return
    rows = [(key, str(value)) for key, value in _flat(_plain(profile))]
    print_table(("key", "value"), rows)


@app.command(epilog="Example: runner profile check --profiles ./profiles")
def check(profiles: Profiles = None, tools: Tools = None, json: Json = False) -> None:
    """Check every profile; say in words what each promises, and what this host enforces. Exit status 5: one is wrong.

    Each system call filter is explained by groups: what their calls are for, what they open, how many they are.
    What else the daemon needs of this host is `runner doctor`'s.
    """
    catalog = _catalog(profiles, tools)
    used = sorted({task.seccomp for task in catalog.task_profiles.values()})
    for name in used:
        seccomp.validate(_filter(catalog, name), f"profiles/seccomp/{name}.json")
    groups = {name: seccomp.explain(_filter(catalog, name)) for name in used}
    said: dict[str, list[str]] = {}
    for task in catalog.task_profiles.values():
        said[f"{task.name} (task)"] = [*task_promises(task), *_never(task, catalog)]
    for tool in catalog.tool_profiles.values():
        users = [manifest.id for manifest in catalog.tools.values() if manifest.profile == tool.name]
        said[f"{tool.name} (tool)"] = [
            *tool_promises(tool, users),
            *[narrowed(name, found, tool.seccomp_deny) for name, found in groups.items() if tool.seccomp_deny],
        ]
    host = wall_findings(catalog.task_profiles.values())
    if json:
        tools_deny = {tool.name: tool.seccomp_deny for tool in catalog.tool_profiles.values()}
        print_json({
            "profiles": said,
            "filters": {name: filter_json(found, tools_deny) for name, found in groups.items()},
            "host": host,
        })  # fmt: skip
        return
    for name, promises in said.items():
        print(name)
        for promise in promises:
            print_text(promise, "  - ", "    ")
    for name, found in groups.items():
        print(f"system calls of profiles/seccomp/{name}.json: what is not listed is refused")
        for line in filter_lines(found):
            print_text(line, "  - ", "    ")
    print("this host")
    for wall in host:
        print_text(f"{wall.name}: {wall.found}" + (f" ({wall.remedy})" if wall.remedy else ""), "  - ", "    ")
    print(f"\n{len(said)} profiles are whole and fit the {len(catalog.tools)} tools")


def task_promises(profile: TaskProfile) -> list[str]:
    """What a container made from this profile is held to."""
    most = profile.ceilings
    memory, workspace, tmp = amount_text(most.memory), amount_text(most.workspace), amount_text(most.tmp)
    output, result, file = amount_text(most.output), amount_text(most.result), amount_text(most.file_size)
    shm = f"shared memory of {amount_text(most.shm)}" if most.shm else "no shared memory in /dev/shm"
    where = (
        "on the host's disk, kept until the task ends"
        if profile.workspace_kind == "disk"
        else "in memory, gone with the sandbox"
    )
    return [
        f"one container per task, from image {profile.image}, gone after {profile.idle_timeout_s} s without a call",
        f"{_network(profile)}, no capability, no way to gain privileges, a read-only root, a user of its own",
        f"only system calls that profiles/seccomp/{profile.seccomp}.json lists",
        f"at most {memory} of memory, no swap, {most.cpus_milli / 1000:g} CPU, {most.pids} processes and threads",
        f"a workspace of {workspace} and {most.workspace_inodes} files {where}, /tmp of {tmp}, {shm}",
        {
            "none": "the workspace's content is not in the ledger",
            "changed": "after each call that may write it, the workspace's files, those that changed hashed anew, "
            "are in the ledger",
            "full": "after each call that may write it, the workspace's files, all hashed anew, are in the ledger",
        }[profile.snapshot],
        f"at most {most.concurrent_calls} calls at once",
        f"each call ends after {most.wall_ms / 1000:g} s or {most.cpu_s} s of CPU, whole tree killed",
        f"each call writes at most {output} of output, {result} of result and files of {file}",
        f"each call is paused when it writes more than {amount_text(most.output_rate)} of output a second",
        f"each call holds at most {most.open_files} open files",
        f"only these tools: {', '.join(profile.tools)}",
        *[f"may let out, where tool, token and policy agree: {rule_words(rule)}" for rule in profile.egress],
        f"secrets reach its tools by {', '.join(profile.delivery)}" if profile.delivery else "no secret reaches it",
        *[f"where the host has none, does without {COSTS[word][0]}: {COSTS[word][1]}" for word in profile.accept],
    ]


def _never(profile: TaskProfile, catalog: Catalog) -> list[str]:
    """Destinations that a tool of this profile asks for, and that no rule of the profile opens."""
    return [
        f"never lets out what `{tool}` may send by its rule `{rule.name}`: no rule here opens {rule.host}"
        for tool in profile.tools
        for rule in catalog.tools[tool].egress
        if not any(overlap(rule, own) for own in profile.egress)
    ]


def _network(profile: TaskProfile) -> str:
    return "no route and no resolver: requests leave through egress alone" if profile.egress else "no network"


def tool_promises(profile: ToolProfile, users: list[str]) -> list[str]:
    """What a call in this profile is held to, on top of its task's."""
    workspace = {"none": "cannot see the workspace", "read": "reads the workspace, changes nothing in it"}
    said = [
        "each call in a fresh jail, discarded after it"
        if profile.isolation == "call"
        else "calls of the task share a jail, one after the other; nothing that runs survives its call",
        workspace.get(profile.workspace, "reads and changes the workspace"),
        "has /tmp" if profile.tmp else "has no /tmp",
    ]
    narrowed = [
        (profile.wall_ms, f"{profile.wall_ms / 1000:g} s"),
        (profile.cpu_s, f"{profile.cpu_s} s of CPU"),
        (profile.output, f"{amount_text(profile.output)} of output"),
        (profile.open_files, f"{profile.open_files} open files"),
        (profile.file_size, f"files of {amount_text(profile.file_size)}"),
    ]
    own = [text for value, text in narrowed if value]
    said.append(f"at most {', '.join(own)}" if own else "the limits of its task, no narrower ones")
    said.append(f"used by: {', '.join(users)}" if users else "used by no tool")
    return said


def _filter(catalog: Catalog, name: str) -> bytes:
    text = catalog.seccomp.get(name)
    if text is None:
        known = ", ".join(sorted(catalog.seccomp)) or "none"
        raise refuse("profile", f"seccomp filter {name!r} does not exist", allowed=known)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {key: _plain(getattr(value, key)) for key in value.__struct_fields__}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                found += _flat(each, f"{prefix}{key}.{each['name']}.")
        else:
            found.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return found
