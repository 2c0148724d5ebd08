"""`runner call`, `runner result` and `runner tools`: what an agent does, by hand, with the agent's own credentials."""

from __future__ import annotations

import asyncio
import base64
import codecs
import os
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer

from runner.cli.tables import print_json, print_table, printable
from runner.client import AsyncRunner, CallResult, Chunk, SessionFacts, connect_async
from runner.client.calls import ending
from runner.client.tools import ToolCatalogue
from runner.config import milliseconds
from runner.errors import EXIT_TOOL, RunnerError, exit_status
from runner.token.strict import parse_json

T = TypeVar("T")
NOTE_AFTER_S = 2.0
STATUS = "Exit status: 0 the tool succeeded, 1 it failed, 2 a wrong option, 3 refused, 4 unavailable, 5 a wrong token."

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of streaming.")]


def call(
    tool: Annotated[str, typer.Argument(help="A tool that `runner tools` lists.")],
    arg: Annotated[
        list[str], typer.Option("--arg", help="NAME=VALUE: JSON when it parses as such, else text.", metavar="K=V")
    ] = [],  # noqa: B006 - typer copies it
    args_json: Annotated[str, typer.Option(help="All arguments as a JSON object in a file; - for stdin.")] = "",
    stdin: Annotated[bool, typer.Option("--stdin", help="Pass standard input to the tool.")] = False,
    deadline: Annotated[str, typer.Option(help="Kill it after this long: 500ms, 10s, 5m.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Print the call's id and leave it running.")] = False,
    idempotency_key: Annotated[str, typer.Option(help="Same key, same arguments: the same call, run once.")] = "",
    intent: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    json: Json = False,
) -> None:
    """Call a tool and stream what it writes. Credentials come from `runner exec`.

    On a terminal, control characters in the output are shown, not obeyed; in a pipe the bytes are the tool's."""
    arguments = _arguments(arg, args_json, stdin=stdin)
    seconds = _seconds(deadline)

    async def act(runner: AsyncRunner) -> CallResult:
        return await runner.call(
            tool,
            arguments,
            stdin=_standard_input() if stdin else None,
            on_output=None if json or detach else _Terminal(tool).show,
            deadline=seconds,
            detach=detach,
            idempotency_key=idempotency_key,
            intent=intent,
        )

    _finish(_connected(act, json=json), tool, json=json)


def result(
    call_id: Annotated[str, typer.Argument(help="A call of this task that was started with --detach.", metavar="CALL")],
    cancel: Annotated[bool, typer.Option("--cancel", help="End it first.")] = False,
    json: Json = False,
) -> None:
    """Wait for the end of a detached call and print what it wrote."""

    async def act(runner: AsyncRunner) -> CallResult:
        if cancel:
            await runner.cancel(call_id)
        async with runner.attach(call_id) as stream:
            terminal = _Terminal(call_id)
            if not json:
                async for chunk in stream:
                    await terminal.show(chunk)
            return await stream.result()

    _finish(_connected(act, json=json), call_id, json=json)


def tools(
    form: Annotated[
        Literal["table", "openai", "anthropic", "mcp"], typer.Option(help="The schema form of a model vendor.")
    ] = "table",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what these credentials may call, with schemas narrowed to what the token allows."""

    async def act(runner: AsyncRunner) -> ToolCatalogue:
        return await runner.tools()

    found = _connected(act, json=json)
    if form != "table":
        print_json(getattr(found, form)())
    elif json:
        print_json({"digest": found.digest, "tools": [msgspec.to_builtins(tool) for tool in found]})
    else:
        rows = [
            (tool.name, tool.consequence, ", ".join(tool.parameters.get("properties", {})), tool.description)
            for tool in found
        ]
        print_table(("tool", "consequence", "arguments", "description"), rows)


# --- in ----------------------------------------------------------------------------------------------------


def _arguments(pairs: list[str], file: str, *, stdin: bool) -> dict[str, Any]:
    """The arguments of the command line. Raises `typer.BadParameter`."""
    arguments: dict[str, Any] = {}
    if file:
        if file == "-" and stdin:
            raise typer.BadParameter("standard input is either the arguments or the tool's", param_hint="--args-json")
        try:
            data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
            arguments = parse_json(data, 64)
        except OSError as error:
            raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--args-json") from None
        except ValueError as error:
            raise typer.BadParameter(f"{file}: not JSON: {error}", param_hint="--args-json") from None
        if not isinstance(arguments, dict):
            raise typer.BadParameter(f"{file}: not a JSON object", param_hint="--args-json")
    for pair in pairs:
        name, given, text = pair.partition("=")
        if not given or not name:
            raise typer.BadParameter(f"`{pair}` is not NAME=VALUE", param_hint="--arg")
        if name in arguments:
            raise typer.BadParameter(f"`{name}` is given twice", param_hint="--arg")
        arguments[name] = _value(text)
    return arguments


def _value(text: str) -> Any:
    try:
        return parse_json(text.encode(), 64)
    except ValueError:
        return text


def _seconds(text: str) -> float | None:
    try:
        return milliseconds(text) / 1000 if text else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--deadline") from None


async def _aside(work: Callable[[], T]) -> T:
    """Do something that blocks in a thread that nobody waits for at exit: a terminal may never answer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(value)

    def run() -> None:
        try:
            value, error = work(), None
        except OSError as caught:
            value, error = None, caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def _standard_input() -> AsyncIterator[bytes]:
    read = getattr(sys.stdin.buffer, "read1", sys.stdin.buffer.read)
    while piece := await _aside(lambda: read(1 << 16)):
        yield piece


# --- out ---------------------------------------------------------------------------------------------------


class _Terminal:
    """Both output streams to their places: bytes into a pipe, visible text onto a terminal."""

    def __init__(self, what: str) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": make("backslashreplace"), "stderr": make("backslashreplace")}
        self._note = asyncio.get_running_loop().call_later(NOTE_AFTER_S, self._say, what)

    def _say(self, what: str) -> None:
        if sys.stderr.isatty():
            print(f"runner: {printable(what)} still runs and wrote nothing yet; Ctrl-C cancels it", file=sys.stderr)

    async def show(self, chunk: Chunk) -> None:
        """Write one chunk; the tool waits as long as the reader of our output does."""
        self._note.cancel()
        stream = sys.stdout if chunk.stream == "stdout" else sys.stderr
        data = chunk.data
        if stream.isatty():
            data = visible(self._decoders[chunk.stream].decode(data)).encode()

        def write() -> None:
            stream.buffer.write(data)
            stream.buffer.flush()

        await _aside(write)


def visible(text: str) -> str:
    """`text` with every control and format character but newline and tab escaped: shown, not obeyed."""
    if text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Co", "Cs") else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _connected(act: Callable[[AsyncRunner], Awaitable[T]], *, json: bool) -> T:
    """Run `act` on a connection. With `json`, a refusal is printed as JSON; else it is raised."""

    async def run() -> T:
        async with connect_async(session=SessionFacts(client="runner-cli")) as runner:
            return await act(runner)

    try:
        return asyncio.run(run())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        raise typer.Exit(EXIT_TOOL) from None  # our reader left, as `head` does; the call is cancelled
    except RunnerError as error:
        if not json:
            raise
        print_json({"refused": msgspec.to_builtins(error.refused), "call": getattr(error, "call", "")})
        raise typer.Exit(exit_status(error.refused)) from None


def _finish(done: CallResult, what: str, *, json: bool) -> None:
    """Say how it ended and exit with the status that tells it."""
    if json:
        print_json(_facts(done))
    elif done.running:
        print(done.call)
        print(f"runner: {printable(what)} runs on; `runner result {done.call}` waits for its end", file=sys.stderr)
    else:
        if done.value is not None:
            print_json(done.value)
        if not done.ok:
            print(f"runner: {printable(what)} {printable(ending(done.outcome))}", file=sys.stderr)
    if not done.ok and not done.running:
        raise typer.Exit(EXIT_TOOL)


def _facts(done: CallResult) -> dict[str, Any]:
    facts: dict[str, Any] = {"call": done.call, "running": done.running, "replayed": done.replayed}
    if done.ended is None:
        return facts
    facts |= {
        "ok": done.ok,
        "outcome": msgspec.to_builtins(done.ended),
        "receipt": done.receipt,
        "position": done.position,
        "durable": done.durable,
        "value": done.value,
        "filtered": dict(done.filtered),
        "labels": list(done.labels),
    }
    for name, data in (("stdout", done.stdout), ("stderr", done.stderr)):
        try:
            facts[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            facts[f"{name}_base64"] = base64.b64encode(data).decode("ascii")
    return facts
