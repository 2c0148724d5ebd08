"""`runner admin`: the operators themselves: who the daemon takes you for, and a key to be known by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli import keys
from runner.cli.credentials import ADMIN_SOCKET, ask
from runner.cli.tables import print_json, print_table
from runner.errors import refuse
from runner.token.keys import SigningKey, generate, private_file
from runner.wire import admin

app = typer.Typer(
    help="Operators: who they are, what they may do, what they did. With a key: `runner --operator-key FILE admin …`",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Socket = Annotated[
    Path,
    typer.Option("--socket", help="The daemon's admin.sock.", envvar="RUNNER_ADMIN_SOCKET", readable=False),
]


@app.command(epilog="Example: runner admin whoami --json")
def whoami(socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """Whom the daemon takes you for, how it knows, and what you may do."""
    answer = ask(socket, admin.Whoami())
    if not isinstance(answer, admin.WhoamiView):
        raise refuse("protocol", "the daemon answered something else")
    known = f"key {answer.key}" if answer.key else f"uid {answer.uid}"
    if json:
        print_json(
            {
                "name": answer.name,
                "uid": answer.uid,
                "key": answer.key,
                "known_by": "key" if answer.key else "uid",
                "roles": answer.roles,
                "may": answer.may,
            }
        )
        return
    rows = [("operator", answer.name), ("known by", known)]
    rows += [("roles", ", ".join(answer.roles)), ("may", ", ".join(answer.may))]
    print_table(("fact", "value"), rows)


@app.command(epilog="Example: runner admin key ~/.config/toolrunner/ann.key --name ann --role containment")
def key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes (0600); never over another file.")],
    name: Annotated[str, typer.Option(help="The operator's name.")] = "NAME",
    role: Annotated[list[str] | None, typer.Option(help="A role. Repeatable.")] = None,
    json: Json = False,
) -> None:
    """Make a key to be known by, and print the section of runner.toml that names you by it."""
    made = SigningKey(generate())
    keys.write_new(file, private_file(made))
    facts = {"private_key": str(file), "key": made.public.jwk()["x"], "thumbprint": made.public.thumbprint}
    if json:
        print_json(facts)
        return
    roles = ", ".join(f'"{each}"' for each in role or ["ROLE"])
    print(f"wrote {file}; for the daemon's configuration:\n")
    print(f'[[operators]]\nname = "{name}"\nkey = "{facts["key"]}"\nroles = [{roles}]')
