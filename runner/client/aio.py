"""The client for asyncio programs: calls, streams, files, tools.

async with connect_async() as runner:
    done = await runner.call("shell_run", {"argv": ["ls"]})
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from runner.client.calls import (
    CLIENT_NAME,
    CallOptions,
    CallResult,
    Input,
    OnOutput,
    attaching,
    exchange_for,
    fields,
    request,
    to_result,
)
from runner.client.connection import Connection
from runner.client.core import Make
from runner.client.credentials import Identity, Narrower, attenuate, find_credentials, find_socket
from runner.client.errors import CallError, ToolFailed
from runner.client.exchange import DROPPED, Exchange
from runner.client.files import MAX_GET, Extracted, Incoming, TreeWriter, outgoing, tree_bytes
from runner.client.streams import Stream, detach, follow, streaming
from runner.client.tools import AsyncToolSet
from runner.token.attenuate import Wish
from runner.token.credentials import Credentials
from runner.wire import agent


class AsyncRunner:
    """A session with the daemon. Use `connect_async`, or `open` and `aclose`. Every method may raise `CallError`s."""

    def __init__(self, connection: Connection, identity: Identity) -> None:
        assert connection.core.welcome is not None
        self._identity = identity
        self._connection = connection
        self._core = connection.core
        self._welcome = connection.core.welcome

    @classmethod
    async def open(
        cls,
        socket: str | os.PathLike[str] | sockets.socket | None = None,
        credentials: bytes | Credentials | None = None,
        session: agent.SessionFacts | None = None,
    ) -> AsyncRunner:
        """Connect. Without arguments: credentials from the descriptor in RUNNER_CREDENTIALS_FD, the socket from
        RUNNER_SOCKET, from the credentials, or the daemon's usual place."""
        found = find_credentials(credentials)
        facts = session or agent.SessionFacts(client=CLIENT_NAME)
        identity = Identity(found)
        return cls(await Connection.open(identity, facts, socket or find_socket(found)), identity)

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
        return self._core.tools_digest

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, None while it lives."""
        return self._core.lost

    def attenuate(self, tools: Wish, **options: Unpack[Narrower]) -> Credentials:
        """Narrower credentials for a sub-agent of this task, made offline: see `runner.client.attenuate`."""
        return attenuate(tools, credentials=self._identity.credentials, now=self._identity.now(), **options)

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
        exchange = exchange_for(options, gathers=on_output is None)
        try:
            await self._begin(exchange, tool, arguments, stdin is not None, options)
            if options.get("detach"):
                return await detach(self._connection, exchange, stdin)
            result = await follow(self._connection, exchange, stdin, on_output)
        except BaseException:
            self._connection.abandon(exchange)
            raise
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
        exchange = exchange_for(options, gathers=False)
        await self._begin(exchange, tool, arguments, stdin, options)
        async with streaming(self._connection, exchange) as stream:
            yield stream

    @contextlib.asynccontextmanager
    async def attach(self, call: str, *, stdout: int = 0, stderr: int = 0, window: int = 0) -> AsyncIterator[Stream]:
        """Follow a detached call of this task from these output offsets on (an earlier chunk's `end`). Leaving the
        block leaves the call alone."""
        exchange = Exchange(window=window, cancels=False)
        await self._connection.begin(exchange, attaching(call, stdout, stderr))
        async with streaming(self._connection, exchange) as stream:
            yield stream

    async def result(self, call: str, *, output: bool = True) -> CallResult:
        """The end of a detached call of this task, awaited; with what is kept of its output, unless told not to."""
        if output:
            async with self.attach(call) as stream:
                return await stream.result()
        exchange = await self._ask(lambda number, _: agent.GetResult(number=number, call=call))
        return to_result(exchange, b"", b"")

    async def cancel(self, call: str) -> None:
        """End a detached call of this task; done when its processes are gone."""
        exchange = Exchange(output=DROPPED)
        await self._connection.begin(exchange, attaching(call))
        await self._connection.until(exchange.accepted)
        self._connection.cancel(exchange)
        await self._connection.until(exchange.ended)
        exchange.last_answer(agent.Result)

    async def tools(self) -> AsyncToolSet:
        """What this token may call, with schemas in the forms that model vendors take, and `dispatch`."""
        exchange = await self._ask(lambda number, _: agent.ListTools(number=number))
        answer: agent.Tools = exchange.last_answer(agent.Tools)
        return AsyncToolSet(answer.tools, answer.digest, self)

    async def end_task(self) -> None:
        """End the task: its calls are cancelled and its sandbox removed. Only the root token's holder may."""
        exchange = await self._ask(lambda number, _: agent.EndTask(number=number))
        exchange.last_answer(agent.TaskEnded)

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
        await self._fetch("file", Incoming(path, limit, pieces.append), options)
        return b"".join(pieces)

    async def get_tree(
        self, path: str, folder: str | os.PathLike[str], *, limit: int = MAX_GET, **options: Unpack[CallOptions]
    ) -> Extracted:
        """A folder of the workspace into the new local `folder`. Links and special files are left out and named
        in the answer. Nothing is left behind on failure."""
        with TreeWriter(Path(folder), limit) as tree:
            done = await self._fetch("tree", Incoming(path, tree_bytes(limit), tree.feed), options)
            return tree.finish(done.value)

    async def _fetch(self, kind: str, incoming: Incoming, options: CallOptions) -> CallResult:
        async with self.stream("workspace_get", {"path": incoming.path, "kind": kind}, **options) as stream:
            async for chunk in stream:
                incoming.take(chunk)
            return incoming.finish(await stream.result())

    # --- inside ---

    async def _begin(
        self, exchange: Exchange, tool: str, arguments: dict[str, Any] | None, stdin: bool, options: CallOptions
    ) -> None:
        more = fields(options)
        proof = self._core.prove_call(tool, arguments or {})
        await self._connection.begin(exchange, request(proof, stdin, more))

    async def _ask(self, make: Make) -> Exchange:
        """A question that one message answers."""
        exchange = Exchange(cancels=False)
        await self._connection.begin(exchange, make)
        await self._connection.until(exchange.ended)
        return exchange

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
    credentials: bytes | Credentials | None = None,
    session: agent.SessionFacts | None = None,
) -> AsyncIterator[AsyncRunner]:
    """`async with connect_async() as runner:`; see `AsyncRunner.open`."""
    runner = await AsyncRunner.open(socket, credentials, session)
    try:
        yield runner
    finally:
        await runner.aclose()
