"""`runner call`, `result` and `tools`: what they print, where, and how they exit."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runner.cli.call import call, result, tools, visible
from runner.errors import EXIT_REFUSED, EXIT_TOOL, EXIT_USAGE, RunnerError
from runner.token.credentials import DESCRIPTOR_VARIABLE
from runner.wire import agent

app = typer.Typer()
for command in (call, result, tools):
    app.command()(command)

SPEC = agent.ToolSpec(
    name="echo",
    description="Says it\x1b[31m again.",
    parameters={"type": "object", "properties": {"text": {"type": "string"}}},
    result={},
    consequence="low",
    digest="d",
)


@pytest.fixture
def handed(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    descriptor = os.memfd_create("credentials", 0)
    os.write(descriptor, daemon.credentials)
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, str(descriptor))
    daemon.specs = (SPEC,)
    yield descriptor
    os.close(descriptor)


def invoke(*args: str, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, list(args), input=stdin)


def test_output_goes_to_its_own_stream_as_bytes(handed: int) -> None:
    done = invoke("call", "echo", "--arg", "text=a\x1b[31mb", "--arg", "error=careful", "--arg", "exit=3")
    assert done.exit_code == EXIT_TOOL
    assert done.stdout_bytes == b"a\x1b[31mb"
    assert done.stderr.startswith("careful")
    assert "echo exited with status 3" in done.stderr


def test_values_are_json_where_they_parse(handed: int, daemon: Any) -> None:
    seen: list[Any] = []

    async def take(sim_call: Any) -> None:
        seen.append(sim_call.arguments)
        sim_call.accept()
        sim_call.finish()

    daemon.tools["take"] = take
    args = ["n=5", 'l=["a"]', "b=true", "s=plain", 't="5"', "e=", "q=a=b", "nan=NaN", "z=01"]
    assert invoke("call", "take", *(part for arg in args for part in ("--arg", arg))).exit_code == 0
    assert seen == [
        {"n": 5, "l": ["a"], "b": True, "s": "plain", "t": "5", "e": "", "q": "a=b", "nan": "NaN", "z": "01"}
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--arg", "novalue"], "not NAME=VALUE"),
        (["--arg", "a=1", "--arg", "a=2"], "given twice"),
        (["--args-json", "/nonexistent"], "No such file"),
        (["--args-json", "-", "--stdin"], "either the arguments"),
        (["--args-json", "-"], "not JSON"),
        (["--deadline", "soon"], "is not a time"),
    ],
)
def test_a_wrong_command_line_is_explained(handed: int, args: list[str], said: str) -> None:
    done = invoke("call", "echo", *args, stdin=b'{"a": 1, "a": 2}')
    assert done.exit_code == EXIT_USAGE
    assert said in " ".join(done.output.replace("│", " ").split())


def test_arguments_from_a_file_and_stdin_to_the_tool(handed: int, daemon: Any, tmp_path: Path) -> None:
    async def collect(sim_call: Any) -> None:
        sim_call.accept()
        sim_call.credit_stdin(1 << 20)
        while not (message := await sim_call.input.get()).eof:
            await sim_call.output(message.data.upper())
        await sim_call.output(sim_call.arguments["tail"].encode())
        sim_call.finish()

    daemon.tools["collect"] = collect
    (tmp_path / "args.json").write_text('{"tail": "!"}')
    done = invoke("call", "collect", "--args-json", str(tmp_path / "args.json"), "--stdin", stdin=b"some bytes")
    assert done.stdout == "SOME BYTES!"
    assert invoke("call", "echo", "--args-json", "-", stdin=b'{"text": "from stdin"}').stdout == "from stdin"


def test_json_is_one_object(handed: int) -> None:
    done = invoke("call", "echo", "--arg", "text=hi", "--arg", 'value={"n":1}', "--json")
    facts = json.loads(done.stdout)
    assert (facts["ok"], facts["stdout"], facts["stderr"], facts["value"]) == (True, "hi", "", {"n": 1})
    assert facts["outcome"]["kind"] == "exited"
    refused = invoke("call", "missing", "--json")
    assert refused.exit_code == EXIT_REFUSED
    assert json.loads(refused.stdout)["refused"]["code"] == "not_granted"


def test_binary_output_survives_json(handed: int, daemon: Any) -> None:
    async def noise(sim_call: Any) -> None:
        sim_call.accept()
        await sim_call.output(b"\xff\x00")
        sim_call.finish()

    daemon.tools["noise"] = noise
    assert json.loads(invoke("call", "noise", "--json").stdout)["stdout_base64"] == "/wA="


def test_a_refusal_is_the_callers_to_print(handed: int) -> None:
    done = invoke("call", "missing")
    assert isinstance(done.exception, RunnerError)
    assert done.exception.refused.code == "not_granted"


def test_detached_calls_are_started_and_awaited(handed: int, daemon: Any) -> None:
    async def attach(sim_call: Any) -> None:
        sim_call.accept(replayed=True)
        await sim_call.output(b"kept output")
        sim_call.finish()

    daemon.tools["attach"] = attach
    started = invoke("call", "echo", "--detach", "--idempotency-key", "k", "--intent", "later")
    assert started.exit_code == 0
    assert started.stdout.strip().startswith("call-")
    assert f"runner result {started.stdout.strip()}" in started.stderr
    assert invoke("result", started.stdout.strip()).stdout == "kept output"


def test_tools_are_listed(handed: int) -> None:
    plain = invoke("tools").stdout
    assert "echo" in plain
    assert "text" in plain
    assert "\x1b" not in plain
    assert json.loads(invoke("tools", "--json").stdout)["tools"][0]["name"] == "echo"
    assert json.loads(invoke("tools", "--form", "anthropic").stdout)[0]["input_schema"] == SPEC.parameters


def test_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DESCRIPTOR_VARIABLE, raising=False)
    done = invoke("tools")
    assert isinstance(done.exception, RunnerError)
    assert "runner exec" in done.exception.refused.next_step


def test_a_terminal_shows_control_characters_and_obeys_none(handed: int, daemon: Any) -> None:
    async def rude(sim_call: Any) -> None:
        sim_call.accept()
        await sim_call.output("ok\t\x1b]52;c;AAAA\x07\r\u202eevil é".encode() + b"\xff\n")
        sim_call.finish()

    daemon.tools["rude"] = rude
    master, slave = pty.openpty()
    code = "import typer; from runner.cli.call import call; typer.run(call)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "rude"],
        stdout=slave,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(handed,),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 1000):
            shown += piece
    except OSError:  # a pty says EIO when its other side is closed
        pass
    os.close(master)
    assert child.communicate(timeout=60)[1] == b""
    assert child.returncode == 0
    assert shown.replace(b"\r\n", b"\n") == "ok\t\\x1b]52;c;AAAA\\x07\\x0d\\u202eevil é\\xff\n".encode()


@given(st.text())
def test_visible_leaves_no_control_character(text: str) -> None:
    shown = visible(text)
    assert all(char.isprintable() or char in "\n\t" or char.isspace() or ord(char) > 0x2FF for char in shown)
    assert not set(shown) & {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x200B]}
    if text.isprintable():
        assert shown == text
