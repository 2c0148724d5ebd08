"""Every command, by noun. The client distribution has the agent's commands; the rest come with the daemon's parts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from runner import VERSION
from runner.cli import token
from runner.cli.call import call, result, tools
from runner.errors import refuse

_EPILOG = (
    "Example: runner demo\n\n"
    "Exit status of every command: 0 done, 1 the tool failed, 2 wrong usage, 3 refused, 4 unavailable (a retry may "
    "help), 5 a file, key or token is wrong, 6 evidence does not verify.\n\n"
    'Completion: eval "$(_RUNNER_COMPLETE=source_bash runner)", or source_zsh, source_fish; --install-completion '
    "writes it into the settings of the shell you are in."
)

_HELP = ["-h", "--help"]

app = typer.Typer(
    name="runner",
    help="A sandboxed tool-runner daemon for AI agents.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": _HELP},
)


_DAEMON = find_spec("cedarpy") is not None  # the daemon's parts are installed


def _version(wanted: bool) -> None:
    if wanted:
        print(f"runner {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    operator_key: Annotated[
        Path | None,
        typer.Option(
            "--operator-key", envvar="RUNNER_OPERATOR_KEY", metavar="FILE", help="Be the operator of this key, not uid."
        ),
    ] = None,
) -> None:
    """A sandboxed tool-runner daemon for AI agents."""
    if _DAEMON:
        from runner.cli import credentials

        credentials.operator_key.set(operator_key)


_AGENT, _OPERATOR, _AUTHOR, _FORENSICS = "For agents", "For operators", "For authors", "For forensics"

app.command(rich_help_panel=_AGENT, epilog="Example: runner call fs_read --arg path=README.md")(call)
app.command(rich_help_panel=_AGENT, epilog="Example: runner result 019a…")(result)
app.command(rich_help_panel=_AGENT, epilog="Example: runner tools --form openai")(tools)
app.add_typer(token.app, name="token", rich_help_panel=_AGENT)  # `attenuate` and `inspect` need no daemon


def _daemon_commands() -> None:
    from runner.cli import (
        admin,
        bench,
        doctor,
        egress,
        escrow,
        execute,
        image,
        init,
        keys,
        policy,
        policy_explain,
        profile,
        redaction,
        retention,
        schema,
        secret,
        serve,
        tool,
        trace,
        workspace,
    )
    from runner.cli.demo import demo

    app.command(rich_help_panel=_AGENT, epilog="Example: runner demo --repo .")(demo)
    app.command("exec", rich_help_panel=_OPERATOR, epilog=execute.EPILOG)(execute.execute)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner serve --config runner.toml")(serve.serve)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner status --json")(serve.status)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner doctor --config runner.toml")(doctor.doctor)
    app.command(rich_help_panel=_OPERATOR, epilog="Example: runner init ./agents")(init.init)
    app.command(rich_help_panel=_OPERATOR, epilog=bench.EPILOG)(bench.bench)
    serve.app.command(epilog=workspace.EPILOG)(workspace.diff)
    trace.app.command(epilog=schema.EPILOG)(schema.schema)
    retention.mount(trace.app)
    trace.app.command("raw", epilog=escrow.RAW)(escrow.raw)
    app.add_typer(serve.app, name="task", rich_help_panel=_OPERATOR)
    app.add_typer(admin.app, name="admin", rich_help_panel=_OPERATOR)
    app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATOR)
    app.add_typer(secret.app, name="secret", rich_help_panel=_OPERATOR)
    app.add_typer(image.app, name="image", rich_help_panel=_OPERATOR)
    app.add_typer(tool.app, name="tool", rich_help_panel=_AUTHOR)
    app.add_typer(profile.app, name="profile", rich_help_panel=_AUTHOR)
    policy.app.command(epilog=policy_explain.EXPLAIN)(policy_explain.explain)
    policy.app.command(epilog=policy_explain.DIFF)(policy_explain.diff)
    app.add_typer(policy.app, name="policy", rich_help_panel=_AUTHOR)
    app.add_typer(redaction.app, name="filter", rich_help_panel=_AUTHOR)
    app.add_typer(egress.app, name="egress", rich_help_panel=_AUTHOR)
    app.add_typer(trace.app, name="trace", rich_help_panel=_FORENSICS)
    app.add_typer(escrow.app, name="escrow", rich_help_panel=_FORENSICS)


# What the client distribution does not have. A test holds this list to the commands above.
DAEMON_COMMANDS = (
    *("demo", "exec", "serve", "status", "doctor", "init", "bench", "task", "admin", "keys", "secret", "image"),
    *("tool", "profile", "policy", "filter", "egress", "trace", "escrow"),
)


def _absent_commands() -> None:
    """Each command of the daemon says what to install: better than "no such command"."""
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    for name in DAEMON_COMMANDS:
        app.command(name, hidden=True, context_settings=anything)(_absent)


def _absent(context: typer.Context) -> None:
    raise refuse(
        "unavailable",
        f"`runner {context.info_name}` is a part of the daemon, and only the client is installed here",
        next_step="install toolrunner[daemon]",
    )


if _DAEMON:
    _daemon_commands()
else:
    _absent_commands()


def command() -> Any:
    """The whole command line, ready to be called. The help of a flag shows no type: it takes no value."""
    root_command = get_command(app)
    for each in _walk(root_command):
        if not each.hidden:
            asked = typer.Context(each, help_option_names=_HELP)
            for parameter in (*each.params, each.get_help_option(asked)):
                if getattr(parameter, "is_flag", False):
                    parameter.metavar = ""
    return root_command


def _walk(found: Any) -> Iterator[Any]:
    yield found
    for each in getattr(found, "commands", {}).values():
        yield from _walk(each)
