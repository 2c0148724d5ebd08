"""`runner token attenuate`: what `client.attenuate` does, for the shell. No daemon is asked, no secret is shown.

Credentials come from a descriptor, a 0600 file or a pipe, and go to a new 0600 file, a descriptor, or straight to the
sub-agent's own process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli import execute, keys
from runner.client.credentials import attenuate, descriptor, find_credentials
from runner.errors import refuse
from runner.token import credentials as handed
from runner.token.issue import own_claims

EPILOG = (
    "Example: runner token attenuate --agent reader --tool fs_list "
    """--tool 'fs_read:{"path":{"constraint_type":"path_containment","root":"/workspace/src"}}' """
    "--ttl 5m -- python sub_agent.py\n\n"
    "Arguments that a --tool does not mention stay as narrow as your own token has them; null leaves an optional one "
    "out. A file of --out is handed on as a descriptor: `RUNNER_CREDENTIALS_FD=3 python sub_agent.py 3< sub.cred`."
)


def command(
    tool: Annotated[list[str], typer.Option(help="NAME, or NAME:{constraint map as JSON}. Repeatable.")],
    run: Annotated[
        list[str] | None, typer.Argument(help="The sub-agent's command, after --.", metavar="[COMMAND]")
    ] = None,
    agent: Annotated[str, typer.Option(help="The name the sub-agent goes by in the record.")] = "",
    ttl: Annotated[str, typer.Option(help="How long it is good for: 30s, 15m; as long as yours by default.")] = "",
    depth: Annotated[int, typer.Option(help="How many times it may be derived from again, in a row.", min=0)] = 0,
    audience: Annotated[str, typer.Option(help="Bind it to one daemon's audience.")] = "",
    source: Annotated[
        str, typer.Option("--from", help="Your credentials: a 0600 file, - for a pipe; else RUNNER_CREDENTIALS_FD.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the sub-agent's credentials to this new file (0600).")] = None,
    out_fd: Annotated[int | None, typer.Option(help="Or to this descriptor; 1 for a pipe.", min=1)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hand a part of your own authority to a sub-agent: fewer tools, narrower arguments, a shorter life. Offline."""
    if sum(map(bool, (run, out, out_fd))) != 1:
        raise typer.BadParameter("say where they go: --out FILE, --out-fd N, or -- COMMAND", param_hint="--out")
    if out_fd is not None and (os.isatty(out_fd) if _open(out_fd) else True):
        reason = "is a terminal, which would show a secret" if _open(out_fd) else "is not open"
        raise typer.BadParameter(f"descriptor {out_fd} {reason}", param_hint="--out-fd")
    program = execute.find_program(run[0]) if run else ""
    made = attenuate(
        parse_tools(tool),
        agent=agent,
        ttl_s=execute.seconds(ttl) if ttl else None,
        depth=depth,
        audience=audience,
        credentials=find_credentials(_read(source)),
    )
    if run:
        execute.run(descriptor(made), program, run, dict(os.environ))
    if out is not None:
        keys.write_new(out, handed.encode(made))
    elif out_fd is not None:
        try:
            with open(out_fd, "wb", closefd=False) as pipe:
                pipe.write(handed.encode(made))
        except OSError as error:
            reason = f"descriptor {out_fd} takes no credentials: {error.strerror}"
            raise typer.BadParameter(reason, param_hint="--out-fd") from None
    _print(made, str(out) if out else f"descriptor {out_fd}", json=json, to_stderr=out_fd == 1)


def parse_tools(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Each NAME, or NAME:{constraint map}, named once. Raises `typer.BadParameter`."""
    return execute.once((execute.parse_allow(text, "--tool") for text in texts), "--tool")


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _read(source: str) -> bytes | None:
    if not source:
        return None
    if source == "-":
        if sys.stdin.isatty():
            raise refuse("token", "there is a terminal on stdin", field="--from", next_step="pipe the credentials in")
        return sys.stdin.buffer.read(handed.MAX_CREDENTIALS + 1)
    step = "name the file that --out made, or use the descriptor you were started with"
    return keys.read_secret(Path(source), handed.MAX_CREDENTIALS + 1, next_step=step)


def _print(made: handed.Credentials, where: str, *, json: bool, to_stderr: bool) -> None:
    claims = own_claims(made.leaf)
    facts = {
        "jti": claims.jti,
        "agent": (claims.private or {}).get("agent", ""),
        "tools": sorted(claims.tools or {}),
        "expires": keys.when(claims.exp),
        "depth": claims.del_depth,
        "further": claims.del_max_depth - claims.del_depth,
        "credentials": where,
    }
    keys.print_facts(facts, json=json, to_stderr=to_stderr)
