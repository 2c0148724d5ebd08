"""The client for ordinary programs: the async one in a thread of its own, which also answers heartbeats.

with connect() as runner:
    print(runner.call("shell_run", {"argv": ["ls"]}).text)
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, Unpack

import anyio
from anyio.from_thread import BlockingPortal

from runner.client.aio import MAX_GET, AsyncRunner
from runner.client.calls import CallOptions, CallResult
from runner.client.errors import CallError, refused
from runner.client.files import Extracted
from runner.client.streams import Stream
from runner.client.tools import ToolSet
from runner.model import Chunk
from runner.wire import agent

T = TypeVar("T")


def _portal(stack: contextlib.ExitStack) -> BlockingPortal:
    """An event loop in a daemon thread, stopped by `stack`: anyio's own portal keeps a program alive that forgot to
    close its client. No generator: one would be closed by the interpreter's end, when the thread is already gone."""
    started: Future[BlockingPortal] = Future()

    async def main() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    thread = threading.Thread(target=lambda: anyio.run(main), name="runner-client", daemon=True)
    thread.start()
    portal = started.result()
    stack.callback(thread.join)
    stack.callback(lambda: portal.call(portal.stop))
    return portal


class Runner:
    """A session with the daemon. Methods, results and exceptions are `AsyncRunner`'s; threads may share one."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | sockets.socket | None = None,
        credentials: bytes | None = None,
        session: agent.SessionFacts | None = None,
    ) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._portal = _portal(stack)
            self._runner = self._portal.call(AsyncRunner.open, socket, credentials, session)
            stack.callback(self._portal.call, self._runner.aclose)
            self._stack = stack.pop_all()
        self._closed = False

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Run in the loop's thread and wait; an interrupt here (Ctrl-C) cancels there."""
        if self._closed:
            raise refused("unavailable", "this client is closed", next_step="connect again")
        future = self._portal.start_task_soon(ask)
        try:
            return future.result()
        except CancelledError:
            raise refused("unavailable", "this client was closed while it waited", next_step="connect again") from None
        except BaseException:
            future.cancel()
            raise

    @property
    def task(self) -> str:
        """The task that the root token names."""
        return self._runner.task

    @property
    def agent(self) -> str:
        """The agent that the root token names."""
        return self._runner.agent

    @property
    def session(self) -> str:
        """The session that the root token names."""
        return self._runner.session

    @property
    def workspace_lost(self) -> bool:
        """Whether the task goes on in an empty workspace."""
        return self._runner.workspace_lost

    @property
    def tools_digest(self) -> str:
        """Changes when the daemon swaps its catalogue."""
        return self._runner.tools_digest

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, None while it lives."""
        return self._runner.lost

    def call(
        self,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        stdin: bytes | None = None,
        on_output: Callable[[Chunk], None] | None = None,
        check: bool = False,
        **options: Unpack[CallOptions],
    ) -> CallResult:
        """Run a tool and wait for its end. `on_output` is called in the client's thread."""
        return self._run(
            partial(self._runner.call, tool, arguments, stdin=stdin, on_output=on_output, check=check, **options)
        )

    @contextlib.contextmanager
    def stream(
        self,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        stdin: bool = False,
        **options: Unpack[CallOptions],
    ) -> Iterator[SyncStream]:
        """Run a tool and follow it: `with runner.stream(…) as stream: for chunk in stream: …`."""
        following = self._runner.stream(tool, arguments, stdin=stdin, **options)
        with self._portal.wrap_async_context_manager(following) as stream:
            yield SyncStream(self._run, self._portal, stream)

    @contextlib.contextmanager
    def attach(self, call: str, *, stdout: int = 0, stderr: int = 0, window: int = 0) -> Iterator[SyncStream]:
        """Follow a detached call of this task from these output offsets on."""
        following = self._runner.attach(call, stdout=stdout, stderr=stderr, window=window)
        with self._portal.wrap_async_context_manager(following) as stream:
            yield SyncStream(self._run, self._portal, stream)

    def result(self, call: str, *, output: bool = True) -> CallResult:
        """The end of a detached call of this task, awaited."""
        return self._run(partial(self._runner.result, call, output=output))

    def cancel(self, call: str) -> None:
        """End a detached call of this task."""
        self._run(partial(self._runner.cancel, call))

    def tools(self) -> ToolSet:
        """What this token may call, and `dispatch`."""
        found = self._run(self._runner.tools)
        return ToolSet(tuple(found), found.digest, self)

    def end_task(self) -> None:
        """End the task. Only the root token's holder may."""
        self._run(self._runner.end_task)

    def until_durable(self, position: int) -> None:
        """Wait until the ledger entry at `position` is on disk."""
        self._run(partial(self._runner.until_durable, position))

    def put(
        self, path: str, data: bytes | os.PathLike[str], *, omit_links: bool = False, **options: Unpack[CallOptions]
    ) -> CallResult:
        """Put bytes, a local file or a local folder at `path` in the workspace."""
        return self._run(partial(self._runner.put, path, data, omit_links=omit_links, **options))

    def get(self, path: str, *, limit: int = MAX_GET, **options: Unpack[CallOptions]) -> bytes:
        """The bytes of one file of the workspace."""
        return self._run(partial(self._runner.get, path, limit=limit, **options))

    def get_tree(
        self, path: str, folder: str | os.PathLike[str], *, limit: int = MAX_GET, **options: Unpack[CallOptions]
    ) -> Extracted:
        """A folder of the workspace into the new local `folder`."""
        return self._run(partial(self._runner.get_tree, path, folder, limit=limit, **options))

    def close(self) -> None:
        """Say bye and end the thread; calls under way are cancelled, detached ones run on."""
        if not self._closed:
            self._closed = True
            self._stack.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncStream:
    """A call that is followed. Not reading pauses the tool, and no other."""

    def __init__(
        self, run: Callable[[Callable[[], Awaitable[Any]]], Any], portal: BlockingPortal, stream: Stream
    ) -> None:
        self.call = stream.call
        self._run = run
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Chunk:
        chunk: Chunk | None = self._run(self._stream.next)
        if chunk is None:
            raise StopIteration
        return chunk

    def write_stdin(self, data: bytes) -> bool:
        """Send bytes to the tool; False when the call ended before it took them."""
        return bool(self._run(partial(self._stream.write_stdin, data)))

    def close_stdin(self) -> None:
        """Let the tool read end of file."""
        self._run(self._stream.close_stdin)

    def cancel(self) -> None:
        """Ask for the call's end."""
        self._portal.call(self._stream.cancel)

    def result(self) -> CallResult:
        """The call's end, with output that was not iterated yet."""
        result: CallResult = self._run(self._stream.result)
        return result


def connect(
    socket: str | os.PathLike[str] | sockets.socket | None = None,
    credentials: bytes | None = None,
    session: agent.SessionFacts | None = None,
) -> Runner:
    """A connected `Runner`. Credentials come from the descriptor in RUNNER_CREDENTIALS_FD, and the socket from
    RUNNER_SOCKET, the credentials, or the daemon's usual place, unless they are given."""
    return Runner(socket, credentials, session)
