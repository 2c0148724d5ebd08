"""`runner tool`: what tools there are, what one is, whether they are whole, and the beginning of a new one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from runner.catalog import compile_tool, shared
from runner.catalog.files import Contents, read_folder
from runner.catalog.manifest import compile_tools
from runner.catalog.profile import compile_profiles
from runner.cli.egress import rule_words, secret_words
from runner.cli.tables import print_json, print_table, print_text
from runner.cli.tool_source import derive, template
from runner.config import TOOL_ID
from runner.errors import refuse
from runner.gate.schema import Record, cedar_type, hidden, visible
from runner.model import Manifest

app = typer.Typer(help="See, check and begin tools.", no_args_is_help=True)

Tools = Annotated[Path | None, typer.Option("--tools", help="Folder of tools.")]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of profiles.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(help="A tool's id.")]


def _manifests(tools: Path | None, profiles: Path | None) -> dict[str, Manifest]:
    """Every tool of the folder, checked with the tool profiles; task profiles need not list them yet."""
    contents = Contents()
    _, tool_profiles = compile_profiles(read_folder(profiles or shared("profiles"), "profile"), contents)
    return compile_tools(read_folder(tools or shared("tools"), "manifest"), tool_profiles, contents)


@app.command("list", epilog="Example: runner tool list")
def list_tools(tools: Tools = None, profiles: Profiles = None, json: Json = False) -> None:
    """List every tool."""
    every = _manifests(tools, profiles).values()
    if json:
        keys = ("id", "description", "consequence", "kind", "profile", "digest")
        print_json([{key: getattr(manifest, key) for key in keys} for manifest in every])
        return
    rows = [(m.id, m.consequence, m.kind, m.profile, m.digest[:12], _first(m.description)) for m in every]
    print_table(("tool", "consequence", "kind", "profile", "digest", "description"), rows)


@app.command(epilog="Example: runner tool show shell_run")
def show(tool: Id, tools: Tools = None, profiles: Profiles = None, json: Json = False) -> None:
    """Show one tool: its arguments, what policy sees of them, its profile and digests."""
    manifest = _find(_manifests(tools, profiles), tool)
    seen = {key: cedar_type(attribute.shape) for key, attribute in visible(manifest).fields.items()}
    unseen = hidden(manifest)
    if json:
        shown = {key: getattr(manifest, key) for key in manifest.__struct_fields__ if key != "files"}
        print_json({**shown, "files": sorted(manifest.files), "policy": seen, "hidden_from_policy": unseen})
        return
    print(f"{manifest.id}:")
    print_text(" ".join(manifest.description.split()), "  ", "  ")
    print()
    rows = [
        ("consequence", manifest.consequence),
        ("kind", manifest.kind + (f": {' '.join(manifest.argv)}" if manifest.argv else "")),
        ("profile", manifest.profile),
        ("stdin", "yes" if manifest.stdin else "no"),
        ("files", ", ".join(sorted(manifest.files)) or "none"),
        ("digest", manifest.digest),
        ("code digest", manifest.code_digest or "none"),
        ("hidden from policy", ", ".join(unseen) or "nothing"),
    ]
    rows += [("reaches", rule_words(rule)) for rule in manifest.egress]
    rows += [("secret", secret_words(secret)) for secret in manifest.secrets]
    print_table(("about it", ""), rows)
    print()
    required = manifest.parameters.get("required", ())
    arguments = [
        (name, _kind(schema), "yes" if name in required else "no", _policy(name, visible(manifest)), _about(schema))
        for name, schema in manifest.parameters.get("properties", {}).items()
    ]
    print_table(("argument", "type", "required", "in policy", "about"), arguments)


@app.command(epilog="Example: runner tool check fs_read --tools ./tools")
def check(
    tool: Annotated[str | None, typer.Argument(help="One tool; without it, all of them.")] = None,
    tools: Tools = None,
    profiles: Profiles = None,
    json: Json = False,
) -> None:
    """Check tools: manifest, schemas, code, profile, what policy sees. Exit status 5 when one is wrong."""
    every = _manifests(tools, profiles)
    chosen = [_find(every, tool)] if tool else list(every.values())
    found = [(manifest, visible(manifest), hidden(manifest)) for manifest in chosen]
    if json:
        print_json(
            {
                "tools": [
                    {
                        "id": m.id,
                        "digest": m.digest,
                        "hidden_from_policy": unseen,
                        "egress": [rule_words(rule) for rule in m.egress],
                        "secrets": [secret_words(secret) for secret in m.secrets],
                    }
                    for m, _, unseen in found
                ]
            }
        )
        return
    rows = [(m.id, str(len(record.fields)), ", ".join(unseen) or "-", m.digest[:12]) for m, record, unseen in found]
    print_table(("tool", "attributes in policy", "hidden from policy", "digest"), rows)
    for manifest in chosen:
        for words in (*map(rule_words, manifest.egress), *map(secret_words, manifest.secrets)):
            print_text(words, f"{manifest.id} · ", "    ")
    print(f"\n{len(rows)} tools are whole")


@app.command(epilog="Example: runner tool new word_count --from mytools:count --dir ./tools")
def new(
    tool: Id,
    from_: Annotated[str, typer.Option("--from", help="module:function to take schema and code from.")] = "",
    dir_: Annotated[Path, typer.Option("--dir", help="Folder of tools to write into.")] = Path("tools"),
    json: Json = False,
) -> None:
    """Write the folder of a new python tool that works as it is. With --from, from a function with type hints."""
    if not TOOL_ID.match(tool):
        raise refuse("manifest", f"`{tool[:80]}` is not a tool id: {TOOL_ID.pattern}", next_step="choose another name")
    folder = dir_ / tool
    if folder.exists():
        raise refuse("manifest", "exists already, and nothing is overwritten", field=str(folder))
    files = derive(tool, from_) if from_ else template(tool)
    manifest = compile_tool(tool, files)
    visible(manifest)
    try:
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise refuse("manifest", f"cannot write it: {error.strerror}", field=str(error.filename or folder)) from error
    if json:
        print_json({"id": tool, "folder": str(folder), "files": sorted(files), "digest": manifest.digest})
        return
    print(f"wrote {folder}: {', '.join(sorted(files))}")
    print(f"next: edit it, then `runner tool check {tool} --tools {dir_}`. Every call of it is refused until a task")
    print("profile and a token list it, and a policy permits it")


def _find(manifests: dict[str, Manifest], tool: str) -> Manifest:
    if tool not in manifests:
        known = ", ".join(manifests) or "none"
        raise refuse("unknown_tool", f"no tool `{tool[:64]}`", next_step=f"known tools: {known}")
    return manifests[tool]


def _kind(schema: object) -> str:
    kind = schema.get("type", "any") if isinstance(schema, dict) else "any"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _about(schema: object) -> str:
    return str(schema.get("description", "")) if isinstance(schema, dict) else ""


def _policy(name: str, record: Record) -> str:
    shown = [f"{key}: {cedar_type(each.shape)}" for key, each in record.fields.items() if each.source == name]
    return ", ".join(shown) or "hidden"


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.:;])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(":;")
