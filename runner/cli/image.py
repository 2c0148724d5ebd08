"""`runner image`: build the tool image from what travels with this package, and show which one is in use."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from runner.cli.tables import print_json, print_table
from runner.engine import image
from runner.engine.docker import Docker

app = typer.Typer(help="The image that sandboxes are made from.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Host = Annotated[str, typer.Option("--docker-host", help="Docker engine; DOCKER_HOST or the local socket by default.")]


@app.command(epilog="Example: runner image build --base toolrunner/base:bookworm")
def build(
    base: Annotated[
        str, typer.Option("--base", help="A local image: Debian with full python3. Nothing is pulled.")
    ] = image.BASE,
    docker_host: Host = "",
    json: Json = False,
) -> None:
    """Build the tool image, unless one of exactly these inputs exists. Exit status 4 when Docker or base is missing."""
    docker = Docker(docker_host)
    existing = image.find(docker)
    found = existing.id if existing else image.build(docker, base, lambda line: print(line, file=sys.stderr))
    if json:
        print_json({"tag": image.tag(), "id": found, "inputs": image.inputs_digest(), "built": existing is None})
        return
    print(f"{image.tag()} {found} ({'was there already' if existing else 'built'})")


@app.command(epilog="Example: runner image show --json")
def show(docker_host: Host = "", json: Json = False) -> None:
    """Show the tool image of this package: its tag, the digest of its inputs, and whether it is on this host."""
    found = image.find(Docker(docker_host))
    facts = {
        "tag": image.tag(),
        "inputs": image.inputs_digest(),
        "files": sorted(image.inputs()),
        "id": found.id if found else "",
        "size": found.size if found else 0,
    }
    if json:
        print_json(facts)
    else:
        shown = {**facts, "files": ", ".join(sorted(image.inputs())), "id": facts["id"] or "not built"}
        print_table(("key", "value"), [(key, str(value)) for key, value in shown.items()])
    if found is None:
        raise typer.Exit(4)
