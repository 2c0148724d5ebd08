"""`runner serve`, `runner status` and `runner task`: the running daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runner.cli.credentials import ADMIN_SOCKET, Socket, ask
from runner.cli.tables import print_json, print_table
from runner.errors import refuse
from runner.wire import admin

DEFAULT_CONFIG = Path("/etc/toolrunner/runner.toml")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="Tasks: who works in which sandbox.", no_args_is_help=True)


def serve(
    config: Annotated[Path, typer.Option(help="The daemon's configuration.", envvar="RUNNER_CONFIG")] = DEFAULT_CONFIG,
) -> None:
    """Run the daemon in the foreground, as root. SIGTERM drains and stops it, SIGHUP reads the catalogue anew."""
    # In a fresh interpreter: the root process that stays should hold no more than it uses, and none of these commands.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "runner.serve.parent", str(config)])  # noqa: S606 - no shell


def status(socket: Socket = ADMIN_SOCKET, json: Json = False) -> None:
    """How the daemon is: instance, tasks, running calls, sandboxes, which of its parts serve, critical alerts, the
    catalogue in force."""
    answer = ask(socket, admin.Status())
    assert isinstance(answer, admin.StatusView)
    facts = msgspec.to_builtins(answer)
    facts.pop("type", None)
    if json:
        print_json(facts)
    else:
        print_table(("fact", "value"), [(name, _told(value)) for name, value in facts.items()])
        if answer.alerts:
            said = f"{answer.alerts} critical since it started, the newest {answer.newest_alert}"
            typer.secho(f"\nalerts: {said}; see `runner trace list --alerts`", fg=typer.colors.RED, bold=True)


@app.command("list", epilog="Example: runner task list --all")
def list_tasks(
    socket: Socket = ADMIN_SOCKET,
    all_: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    json: Json = False,
) -> None:
    """Tasks that live, oldest first."""
    tasks = _tasks(socket, admin.ListTasks(all=all_))
    if json:
        print_json([msgspec.to_builtins(task) for task in tasks])
        return
    print_table(
        ("task", "agent", "owner", "profile", "state", "calls", "running", "began"),
        [
            (t.task, t.agent, t.owner, t.profile, t.state, str(t.calls), str(len(t.running)), t.began[:19] + "Z")
            for t in tasks
        ],
    )


@app.command(epilog="Example: runner task show t-42")
def show(
    task: Annotated[str, typer.Argument(help="The task's id.")], socket: Socket = ADMIN_SOCKET, json: Json = False
) -> None:
    """One task: who, since when, what runs in it now, how it ended."""
    (found,) = _tasks(socket, admin.ShowTask(task=task))
    facts = {name: value for name, value in msgspec.to_builtins(found).items() if name != "type"}
    if json:
        print_json(facts)
        return
    print_table(("fact", "value"), [(name, _told(value)) for name, value in facts.items()])


@app.command(epilog='Example: runner task end t-42 --why "the branch was abandoned"')
def end(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    why: Annotated[str, typer.Option(help="Recorded with the act.")] = "",
    socket: Socket = ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """End a task: its calls are killed and sealed, its sandbox is removed, its token is worth nothing any more."""
    done = ask(socket, admin.EndTask(task=task, why=why))
    assert isinstance(done, admin.Done)
    if json:
        print_json({"task": task, "calls_stopped": done.affected})
    else:
        print(f"{task} ended; {done.affected} running calls were stopped")


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _tasks(socket: Path, message: admin.ListTasks | admin.ShowTask) -> tuple[admin.TaskView, ...]:
    answer = ask(socket, message)
    if not isinstance(answer, admin.Tasks):
        raise refuse("protocol", "the daemon answered something else")
    return answer.tasks
