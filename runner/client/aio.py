"""The client for asyncio programs: calls, streams, files, tools.

async with connect_async() as runner:
    done = await runner.call("shell_run", {"argv": ["ls"]})
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from runner.client.calls import CallOptions, CallResult, Exchange, Input, OnOutput
from runner.client.connection import Connection
from runner.client.credentials import Identity, find_credentials, find_socket
from runner.client.errors import CallError, ToolFailed, refused
from runner.client.files import Extracted, TreeWriter, outgoing
from runner.client.streams import Stream, detach, follow, streaming
from runner.client.tools import AsyncToolSet
from runner.wire import agent

CLIENT_NAME = "toolrunner-python"
MAX_GET = 64 << 20  # bytes that `get` holds in memory unless told otherwise


class AsyncRunner:
    """A session with the daemon. Use `connect_async`, or `open` and `aclose`. Every method may raise `CallError`s."""

    def __init__(self, connection: Connection) -> None:
        assert connection.welcome is not None
        self._connection = connection
        self._welcome = connection.welcome

    @classmethod
    async def open(
        cls,
        socket: str | os.PathLike[str] | sockets.socket | None = None,
        credentials: bytes | None = None,
        session: agent.SessionFacts | None = None,
    ) -> AsyncRunner:
        """Connect. Without arguments: credentials from the descriptor in RUNNER_CREDENTIALS_FD, the socket from
        RUNNER_SOCKET, from the credentials, or the daemon's usual place."""
        found = find_credentials(credentials)
        facts = session or agent.SessionFacts(client=CLIENT_NAME)
        return cls(await Connection.open(Identity(found), facts, socket or find_socket(found)))

    @property
    def task(self) -> str:
        """The task that the root token names."""
        return self._welcome.task

    @property
    def agent(self) -> str:
        """The agent that the root token names."""
        return self._welcome.agent

    @property
    def session(self) -> str:
        """The session that the root token names."""
        return self._welcome.session

    @property
    def workspace_lost(self) -> bool:
        """Whether the task's earlier sandbox is gone, so that it goes on in an empty workspace."""
        return self._welcome.workspace_lost

    @property
    def tools_digest(self) -> str:
        """Changes when the daemon swaps its catalogue; ask `tools()` again then."""
        return self._connection.tools_digest

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, None while it lives."""
        return self._connection.lost

    # --- calls ---

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        stdin: Input | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
        **options: Unpack[CallOptions],
    ) -> CallResult:
        """Run a tool and wait for its end. A tool that fails is a result, not an exception, unless `check`
        (`ToolFailed`). Cancelling the task that awaits this cancels the call, unless it is detached.

        With `detach` it returns as soon as the call is accepted: `running` is true, `result(call)` has the end.
        `on_output` is called (and awaited) for each chunk as it comes; the tool waits while it takes its time."""
        exchange = await self._begin(tool, arguments, stdin is not None, options)
        if options.get("detach"):
            return await detach(exchange, stdin)
        result = await follow(exchange, stdin, on_output)
        if check and not result.ok:
            raise ToolFailed(tool, result)
        return result

    @contextlib.asynccontextmanager
    async def stream(
        self,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        stdin: bool = False,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[Stream]:
        """Run a tool and follow it: `async with runner.stream(…) as stream: async for chunk in stream: …`.

        Raises the refusal on entry. Leaving the block before the call's end cancels the call, unless detached."""
        exchange = await self._begin(tool, arguments, stdin, options)
        async with streaming(exchange) as stream:
            yield stream

    @contextlib.asynccontextmanager
    async def attach(self, call: str, *, stdout: int = 0, stderr: int = 0, window: int = 0) -> AsyncIterator[Stream]:
        """Follow a detached call of this task from these output offsets on. Leaving the block leaves the call alone."""

        def make(number: int, window: int) -> agent.Attach:
            return agent.Attach(number=number, call=call, stdout=stdout, stderr=stderr, window=window)

        exchange = await self._connection.ask(make, window=window, detached=True)
        async with streaming(exchange) as stream:
            yield stream

    async def result(self, call: str, *, output: bool = True) -> CallResult:
        """The end of a detached call of this task, awaited; with what is kept of its output, unless told not to."""
        if output:
            async with self.attach(call) as stream:
                return await stream.result()
        exchange = await self._connection.ask(lambda number, _: agent.GetResult(number=number, call=call))
        answer = await exchange.finished()
        if not isinstance(answer, agent.Result):
            raise refused("protocol", "the daemon answered a question for a result with something else")
        return exchange.to_result(answer, b"", b"")

    async def cancel(self, call: str) -> None:
        """End a detached call of this task; done when its processes are gone."""
        exchange = await self._connection.ask(
            lambda number, window: agent.Attach(number=number, call=call, window=window)
        )
        exchange.ignore()
        await exchange.accepted()
        exchange.cancel()
        await exchange.finished()

    async def tools(self) -> AsyncToolSet:
        """What this token may call, with schemas in the forms that model vendors take, and `dispatch`."""
        exchange = await self._connection.ask(lambda number, _: agent.ListTools(number=number))
        answer = await exchange.finished()
        if not isinstance(answer, agent.Tools):
            raise refused("protocol", "the daemon answered a question for tools with something else")
        return AsyncToolSet(answer.tools, answer.digest, self)

    async def end_task(self) -> None:
        """End the task: its calls are cancelled and its sandbox removed. Only the root token's holder may."""
        exchange = await self._connection.ask(lambda number, _: agent.EndTask(number=number))
        await exchange.finished()

    async def until_durable(self, position: int) -> None:
        """Wait until the ledger entry at `position` is on disk."""
        await self._connection.until_durable(position)

    # --- files ---

    async def put(
        self, path: str, data: bytes | os.PathLike[str], *, omit_links: bool = False, **options: Unpack[CallOptions]
    ) -> CallResult:
        """Put bytes, a local file, or a local folder with all it holds, at `path` in the workspace. A folder with
        links is refused, unless they are to be left out.

        Raises `ToolFailed` when the workspace would not take it."""
        kind, source = outgoing(data, omit_links=omit_links)
        return await self.call("workspace_put", {"path": path, "kind": kind}, stdin=source, check=True, **options)

    async def get(self, path: str, *, limit: int = MAX_GET, **options: Unpack[CallOptions]) -> bytes:
        """The bytes of one file of the workspace. Raises `ToolFailed`, and `InvalidArguments` above `limit` bytes."""
        pieces: list[bytes] = []
        await self._fetch(path, "file", pieces.append, limit, options)
        return b"".join(pieces)

    async def get_tree(
        self, path: str, folder: str | os.PathLike[str], *, limit: int = MAX_GET, **options: Unpack[CallOptions]
    ) -> Extracted:
        """A folder of the workspace into the new local `folder`. Links and special files are left out and named
        in the answer. Nothing is left behind on failure."""
        with TreeWriter(Path(folder), limit) as tree:
            done = await self._fetch(path, "tree", tree.feed, limit + (limit >> 2) + (1 << 20), options)
            return tree.finish(done.value.get("skipped") if isinstance(done.value, dict) else None)

    async def _fetch(self, path: str, kind: str, take: Any, limit: int, options: CallOptions) -> CallResult:
        held = 0
        async with self.stream("workspace_get", {"path": path, "kind": kind}, **options) as stream:
            errors: list[bytes] = []
            async for chunk in stream:
                if chunk.stream == "stderr":
                    errors.append(chunk.data)
                    continue
                held += len(chunk.data)
                if held > limit:
                    raise refused("arguments", f"{path} is larger than {limit} bytes", next_step="raise `limit`")
                take(chunk.data)
            result = await stream.result()
        if not result.ok or result.stdout_bytes > held:
            raise ToolFailed("workspace_get", replace(result, stderr=b"".join(errors)))
        return result

    # --- inside ---

    async def _begin(self, tool: str, arguments: dict[str, Any] | None, stdin: bool, options: CallOptions) -> Exchange:
        unknown = set(options) - CallOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"a call takes no {', '.join(sorted(unknown))}")
        deadline = options.get("deadline")
        if deadline is not None and deadline <= 0:
            raise refused("arguments", "a deadline is a positive number of seconds", field="deadline")
        proof = self._connection.prove_call(tool, arguments or {})

        def make(number: int, window: int) -> agent.Call:
            return agent.Call(
                number=number,
                proof=proof,
                stdin=stdin,
                window=window,
                deadline_ms=0 if deadline is None else max(1, round(deadline * 1000)),
                traceparent=options.get("traceparent", ""),
                intent=options.get("intent", ""),
                because=tuple(options.get("because", ())),
                retry_of=options.get("retry_of", ""),
                idempotency_key=options.get("idempotency_key", ""),
                detach=options.get("detach", False),
                sync=options.get("sync", False),
            )

        return await self._connection.ask(
            make,
            window=options.get("window", 0),
            detached=options.get("detach", False),
            keyed=bool(options.get("idempotency_key")),
        )

    async def aclose(self) -> None:
        """Say bye and close; calls under way are cancelled, detached ones run on."""
        await self._connection.close()

    async def __aenter__(self) -> AsyncRunner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@contextlib.asynccontextmanager
async def connect_async(
    socket: str | os.PathLike[str] | sockets.socket | None = None,
    credentials: bytes | None = None,
    session: agent.SessionFacts | None = None,
) -> AsyncIterator[AsyncRunner]:
    """`async with connect_async() as runner:`; see `AsyncRunner.open`."""
    runner = await AsyncRunner.open(socket, credentials, session)
    try:
        yield runner
    finally:
        await runner.aclose()
