"""Every command, by noun. The client distribution has the agent's commands; the rest come with the daemon's parts."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from runner import VERSION
from runner.cli.call import call, result, tools

_STATUSES = (
    "Exit status of every command: 0 done, 1 the tool failed, 2 wrong usage, 3 refused, 4 unavailable (a retry may "
    "help), 5 a file, key or token is wrong, 6 evidence does not verify."
)

app = typer.Typer(
    name="runner",
    help="A sandboxed tool-runner daemon for AI agents.",
    epilog=_STATUSES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"runner {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A sandboxed tool-runner daemon for AI agents."""


_AGENT, _OPERATOR, _AUTHOR, _FORENSICS = "For agents", "For operators", "For authors", "For forensics"

app.command(rich_help_panel=_AGENT, epilog="Example: runner call fs_read --arg path=README.md")(call)
app.command(rich_help_panel=_AGENT, epilog="Example: runner result 019a…")(result)
app.command(rich_help_panel=_AGENT, epilog="Example: runner tools --form openai")(tools)


def _daemon_commands() -> None:
    from runner.cli import doctor, execute, image, init, keys, policy, profile, serve, token, tool, trace
    from runner.cli.demo import demo

    app.command(rich_help_panel=_AGENT, epilog="Example: runner demo --repo .")(demo)
    app.command("exec", rich_help_panel=_OPERATOR, epilog=execute.EPILOG)(execute.execute)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner serve --config runner.toml")(serve.serve)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner status --json")(serve.status)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner doctor --config runner.toml")(doctor.doctor)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner init ./agents")(init.init)
    app.add_typer(serve.app, name="task", rich_help_panel=_OPERATOR)
    app.add_typer(token.app, name="token", rich_help_panel=_OPERATOR)
    app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATOR)
    app.add_typer(image.app, name="image", rich_help_panel=_OPERATOR)
    app.add_typer(tool.app, name="tool", rich_help_panel=_AUTHOR)
    app.add_typer(profile.app, name="profile", rich_help_panel=_AUTHOR)
    app.add_typer(policy.app, name="policy", rich_help_panel=_AUTHOR)
    app.add_typer(trace.app, name="trace", rich_help_panel=_FORENSICS)


if find_spec("cedarpy") is not None:  # the daemon's parts are installed
    _daemon_commands()
