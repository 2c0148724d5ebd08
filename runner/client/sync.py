"""The client for ordinary programs: calls go from the caller's thread straight to the socket.

with connect() as runner:
    print(runner.call("shell_run", {"argv": ["ls"]}).text)
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket as sockets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from runner.client.calls import (
    CLIENT_NAME,
    CallOptions,
    CallResult,
    attaching,
    exchange_for,
    fields,
    of_chunks,
    request,
    to_result,
)
from runner.client.core import Make
from runner.client.credentials import Identity, Narrower, attenuate, find_credentials, find_socket
from runner.client.errors import CallError, ToolFailed
from runner.client.exchange import DROPPED, Exchange
from runner.client.files import MAX_GET, Extracted, Incoming, TreeWriter, outgoing, tree_bytes
from runner.client.link import Link
from runner.client.tools import ToolSet
from runner.model import Chunk
from runner.token.attenuate import Wish
from runner.token.credentials import Credentials
from runner.wire import agent

SyncInput = bytes | Iterable[bytes]
SyncOnOutput = Callable[[Chunk], None]


class Runner:
    """A session with the daemon. Methods, results and exceptions are `AsyncRunner`'s; threads may share one.

    A forked child cannot use its parent's (`Unavailable`); its own copy it may close, or forget."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | sockets.socket | None = None,
        credentials: bytes | Credentials | None = None,
        session: agent.SessionFacts | None = None,
    ) -> None:
        found = find_credentials(credentials)
        facts = session or agent.SessionFacts(client=CLIENT_NAME)
        self._identity = Identity(found)
        self._link = Link.open(self._identity, facts, socket or find_socket(found))
        self._core = self._link.core
        assert self._core.welcome is not None
        self._welcome = self._core.welcome

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
        """Whether the task goes on in an empty workspace."""
        return self._welcome.workspace_lost

    @property
    def tools_digest(self) -> str:
        """Changes when the daemon swaps its catalogue."""
        self._link.glance()
        return self._core.tools_digest

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, None while it lives."""
        return self._link.lost

    def attenuate(self, tools: Wish, **options: Unpack[Narrower]) -> Credentials:
        """Narrower credentials for a sub-agent of this task, made offline: see `runner.client.attenuate`."""
        return attenuate(tools, credentials=self._identity.credentials, now=self._identity.now(), **options)

    # --- calls ---

    def call(
        self,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        stdin: SyncInput | None = None,
        on_output: SyncOnOutput | None = None,
        check: bool = False,
        **options: Unpack[CallOptions],
    ) -> CallResult:
        """Run a tool and wait for its end. `on_output` is called for each chunk as it comes, in the thread that called
        this; the tool waits while it takes its time. An interrupt (Ctrl-C) cancels the call, unless it is detached,
        and leaves the connection usable."""
        exchange = exchange_for(options, gathers=on_output is None)
        try:
            self._begin(exchange, tool, arguments, stdin is not None, options)
            if options.get("detach"):
                return self._detach(exchange, stdin)
            result = self._follow(exchange, stdin, on_output)
        except BaseException:
            self._link.abandon(exchange)
            raise
        if check and not result.ok:
            raise ToolFailed(tool, result)
        return result

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
        exchange = exchange_for(options, gathers=False)
        try:
            self._begin(exchange, tool, arguments, stdin, options)
            self._link.until(exchange.accepted)
            yield SyncStream(self._link, exchange)
        finally:
            self._link.abandon(exchange)

    @contextlib.contextmanager
    def attach(self, call: str, *, stdout: int = 0, stderr: int = 0, window: int = 0) -> Iterator[SyncStream]:
        """Follow a detached call of this task from these output offsets on: where an earlier chunk had its `end`."""
        exchange = Exchange(window=window, cancels=False)
        try:
            self._link.begin(exchange, attaching(call, stdout, stderr))
            self._link.until(exchange.accepted)
            yield SyncStream(self._link, exchange)
        finally:
            self._link.abandon(exchange)

    def result(self, call: str, *, output: bool = True) -> CallResult:
        """The end of a detached call of this task, awaited."""
        if output:
            with self.attach(call) as stream:
                return stream.result()
        return to_result(self._ask(lambda number, _: agent.GetResult(number=number, call=call)), b"", b"")

    def cancel(self, call: str) -> None:
        """End a detached call of this task."""
        exchange = Exchange(output=DROPPED)
        self._link.begin(exchange, attaching(call))
        self._link.until(exchange.accepted)
        self._link.cancel(exchange)
        self._link.until(exchange.ended)
        exchange.last_answer(agent.Result)

    def tools(self) -> ToolSet:
        """What this token may call, and `dispatch`."""
        answer: agent.Tools = self._ask(lambda number, _: agent.ListTools(number=number)).last_answer(agent.Tools)
        return ToolSet(answer.tools, answer.digest, self)

    def end_task(self) -> None:
        """End the task. Only the root token's holder may."""
        self._ask(lambda number, _: agent.EndTask(number=number)).last_answer(agent.TaskEnded)

    def until_durable(self, position: int) -> None:
        """Wait until the ledger entry at `position` is on disk."""
        self._link.until_durable(position)

    # --- files ---

    def put(
        self, path: str, data: bytes | os.PathLike[str], *, omit_links: bool = False, **options: Unpack[CallOptions]
    ) -> CallResult:
        """Put bytes, a local file or a local folder at `path` in the workspace."""
        kind, source = outgoing(data, omit_links=omit_links)
        return self.call("workspace_put", {"path": path, "kind": kind}, stdin=source, check=True, **options)

    def get(self, path: str, *, limit: int = MAX_GET, **options: Unpack[CallOptions]) -> bytes:
        """The bytes of one file of the workspace."""
        pieces: list[bytes] = []
        self._fetch("file", Incoming(path, limit, pieces.append), options)
        return b"".join(pieces)

    def get_tree(
        self, path: str, folder: str | os.PathLike[str], *, limit: int = MAX_GET, **options: Unpack[CallOptions]
    ) -> Extracted:
        """A folder of the workspace into the new local `folder`."""
        with TreeWriter(Path(folder), limit) as tree:
            done = self._fetch("tree", Incoming(path, tree_bytes(limit), tree.feed), options)
            return tree.finish(done.value)

    def _fetch(self, kind: str, incoming: Incoming, options: CallOptions) -> CallResult:
        with self.stream("workspace_get", {"path": incoming.path, "kind": kind}, **options) as stream:
            for chunk in stream:
                incoming.take(chunk)
            return incoming.finish(stream.result())

    # --- inside ---

    def _begin(
        self, exchange: Exchange, tool: str, arguments: dict[str, Any] | None, stdin: bool, options: CallOptions
    ) -> None:
        self._link.check()
        more = fields(options)
        proof = self._core.prove_call(tool, arguments or {})
        self._link.begin(exchange, request(proof, stdin, more))

    def _ask(self, make: Make) -> Exchange:
        """A question that one message answers."""
        exchange = Exchange(cancels=False)
        self._link.begin(exchange, make)
        self._link.until(exchange.ended)
        return exchange

    def _detach(self, exchange: Exchange, stdin: SyncInput | None) -> CallResult:
        """Wait until the call is accepted and its stdin is sent, then leave it alone."""
        self._link.ignore(exchange)
        self._link.until(exchange.accepted)
        call = exchange.accepted_call()
        if stdin is not None:
            self._feed(exchange, stdin)
        return CallResult(call=call, ended=None, replayed=exchange.replayed)

    def _follow(self, exchange: Exchange, stdin: SyncInput | None, on_output: SyncOnOutput | None) -> CallResult:
        if on_output is None:
            if stdin is not None:
                self._feed(exchange, stdin)
            self._link.until(exchange.ended)
            return to_result(exchange, *exchange.gathered())
        kept: list[Chunk] = []
        show = on_output

        def deliver() -> bool:
            chunk = self._link.next_chunk(exchange)
            if chunk is None:
                return False
            kept.append(chunk)
            if inspect.isawaitable(show(chunk)):
                raise TypeError("on_output returned an awaitable, which only the async client awaits")
            return True

        if stdin is not None:
            self._feed(exchange, stdin, deliver)
        while deliver():
            pass
        return of_chunks(exchange, kept)

    def _feed(self, exchange: Exchange, stdin: SyncInput, deliver: Callable[[], object] | None = None) -> None:
        """Send stdin to its end, or the call's."""
        for piece in (stdin,) if isinstance(stdin, bytes) else stdin:
            if not self._link.write_stdin(exchange, piece, deliver):
                return
        self._link.close_stdin(exchange)

    def close(self) -> None:
        """Say bye and close; calls under way are cancelled, detached ones run on."""
        self._link.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncStream:
    """A call that is followed. Not reading pauses the tool, and no other."""

    def __init__(self, link: Link, exchange: Exchange) -> None:
        self.call = exchange.accepted_call()
        self._link = link
        self._exchange = exchange
        self._kept: list[Chunk] = []

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Chunk:
        chunk = self._link.next_chunk(self._exchange)
        if chunk is None:
            raise StopIteration
        return chunk

    def write_stdin(self, data: bytes) -> bool:
        """Send bytes to the tool; False when the call ended before it took them."""
        return self._link.write_stdin(self._exchange, data)

    def close_stdin(self) -> None:
        """Let the tool read end of file."""
        self._link.close_stdin(self._exchange)

    def cancel(self) -> None:
        """Ask for the call's end."""
        self._link.cancel(self._exchange)

    def result(self) -> CallResult:
        """The call's end, with output that was not iterated yet."""
        for chunk in self:
            self._kept.append(chunk)
        return of_chunks(self._exchange, self._kept)


def connect(
    socket: str | os.PathLike[str] | sockets.socket | None = None,
    credentials: bytes | Credentials | None = None,
    session: agent.SessionFacts | None = None,
) -> Runner:
    """A connected `Runner`. Credentials come from the descriptor in RUNNER_CREDENTIALS_FD, and the socket from
    RUNNER_SOCKET, the credentials, or the daemon's usual place, unless they are given."""
    return Runner(socket, credentials, session)
