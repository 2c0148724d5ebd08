"""`runner image`: build the images of sandboxes from what travels with this package, and show which ones are in use."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from runner.cli.tables import print_json, print_table
from runner.engine import image
from runner.engine.docker import Docker

app = typer.Typer(help="The images that sandboxes are made from.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KindName = Annotated[
    Literal["tools", "web"],
    typer.Option("--kind", help="tools: the one of tools without a network; web: with git and clients of the network."),
]
Host = Annotated[str, typer.Option("--docker-host", help="Docker engine; DOCKER_HOST or the local socket by default.")]


@app.command(epilog="Example: runner image build --base toolrunner/base:bookworm")
def build(
    base: Annotated[
        str,
        typer.Option(
            "--base", help="A local image: Debian with full python3, and the packages of its kind. Nothing is pulled."
        ),
    ] = "",
    kind: KindName = "tools",
    docker_host: Host = "",
    json: Json = False,
) -> None:
    """Build an image, unless one of exactly these inputs exists. Exit status 4 when Docker or base is missing."""
    docker, made = Docker(docker_host), image.KINDS[kind]
    existing = image.find(docker, made)
    found = (
        existing.id
        if existing
        else image.build(docker, base or made.base, lambda line: print(line, file=sys.stderr), kind=made)
    )
    if json:
        print_json({"tag": image.tag(made), "id": found, "inputs": image.inputs_digest(made), "built": not existing})
        return
    print(f"{image.tag(made)} {found} ({'was there already' if existing else 'built'})")


@app.command(epilog="Example: runner image show --json")
def show(kind: KindName = "tools", docker_host: Host = "", json: Json = False) -> None:
    """Show an image of this package: its tag, the digest of its inputs, and whether it is on this host."""
    made = image.KINDS[kind]
    found = image.find(Docker(docker_host), made)
    facts: dict[str, Any] = {
        "tag": image.tag(made),
        "inputs": image.inputs_digest(made),
        "files": sorted(image.inputs(made)),
        "packages": list(made.packages),
        "id": found.id if found else "",
        "size": found.size if found else 0,
    }
    if json:
        print_json(facts)
    else:
        lists = {key: ", ".join(facts[key]) or "those of the base" for key in ("files", "packages")}
        shown = {**facts, **lists, "id": facts["id"] or "not built"}
        print_table(("key", "value"), [(key, str(value)) for key, value in shown.items()])
    if found is None:
        raise typer.Exit(4)
