"""Every command, walked: help with an example that parses, --json, completion, and what a client-only install says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from runner import VERSION
from runner.cli import commands

ROOT = commands.command()
# They hand the terminal over to something else: the daemon's log, an agent, scenes to watch.
WITHOUT_JSON = {("serve",), ("exec",), ("demo",), ("trace", "schema")}  # the last prints nothing but JSON


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
    for name, each in (below or {}).items():
        yield from walk(each, (*path, name))


EVERY = dict(walk(ROOT))


def name(path: tuple[str, ...]) -> str:
    return " ".join(path)


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in getattr(parameter, "opts", ())}


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_help_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    said = f"{command.help}\n{command.epilog or ''}"
    found = re.findall(r"Example: (runner .*)", said)
    assert found, "no example"
    for example in found:
        words = shlex.split(example.partition(" > ")[0])[1:]
        assert tuple(words[: len(path)]) == path, example
        context = command.make_context(name(path), words[len(path) :], resilient_parsing=True)
        assert not context.args, example
        known = options(command)
        given = [word for word in words[: words.index("--") if "--" in words else None] if word.startswith("-")]
        assert {word.partition("=")[0] for word in given} <= known, example
    shown = CliRunner().invoke(commands.app, [*path, "--help"])
    assert shown.exit_code == 0
    assert "Example: " in shown.output


@pytest.mark.parametrize("path", [path for path in EVERY if path not in WITHOUT_JSON], ids=name)
def test_json_is_offered(path: tuple[str, ...]) -> None:
    assert "--json" in options(EVERY[path])


def test_a_flag_shows_no_type() -> None:
    flags = [p for c in EVERY.values() for p in c.params if getattr(p, "is_flag", False)]
    assert len(flags) > 30
    assert {flag.metavar for flag in flags} == {""}


def test_the_client_knows_every_command_of_the_daemon() -> None:
    """What a client-only install calls "a part of the daemon" is all that it does not have, and nothing it has."""
    assert {*commands.DAEMON_COMMANDS, "call", "result", "tools", "token"} == set(ROOT.commands)


def test_the_help_says_every_exit_status() -> None:
    said = CliRunner().invoke(commands.app, ["--help"]).output
    for status in ("0 done", "1 the tool", "2 wrong", "3", "4 unavailable", "5 a file", "6"):
        assert status in said


def run(**environment: str) -> str:
    command = [sys.executable, "-m", "runner"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_named_shell(shell: str) -> None:
    script = run(_RUNNER_COMPLETE=f"source_{shell}")
    assert f"_RUNNER_COMPLETE=complete_{shell}" in script
    assert {"bash": "complete -o default -F", "zsh": "compdef", "fish": "complete --command runner"}[shell] in script
    assert f"source_{shell}" in CliRunner().invoke(commands.app, ["--help"]).output


def test_completion_completes() -> None:
    words = run(_RUNNER_COMPLETE="complete_bash", COMP_WORDS="runner trace ", COMP_CWORD="2").split()
    assert {"list", "show", "verify", "tail"} <= set(words)
    assert run(_RUNNER_COMPLETE="complete_bash", COMP_WORDS="runner pol", COMP_CWORD="1").split() == ["policy"]


def test_bash_takes_the_script() -> None:
    """Sourced as --help tells, in a shell that knows nothing else."""
    script = (
        f'runner() {{ {shlex.quote(sys.executable)} -m runner "$@"; }}; '
        'eval "$(_RUNNER_COMPLETE=source_bash runner)"; complete -p runner'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "complete -o default -F _runner_completion runner"


def test_version() -> None:
    assert CliRunner().invoke(commands.app, ["--version"]).output == f"runner {VERSION}\n"


@pytest.mark.parametrize(
    "words", [["--nope"], ["nope"], ["trace", "nope"], ["trace", "list", "--limit", "0"], ["call"]]
)
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    assert CliRunner().invoke(commands.app, words).exit_code == 2
