"""A daemon without tools: real frames, the real session tables, real verification of tokens and proofs.

Scripts stand in for tools: `daemon.tools["echo"] = script`, where a script is `async def script(call: SimCall)`.
It runs in a thread and loop of its own, so that sync and async clients meet it the same way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from runner.config import Limits
from runner.errors import RunnerError, refuse
from runner.model import Outcome, Peer
from runner.token import credentials as handed
from runner.token.claims import verify_chain
from runner.token.issue import mint_root
from runner.token.keys import SigningKey
from runner.token.proof import verify_call, verify_hello
from runner.wire import agent
from runner.wire import session as wire
from runner.wire.frame import Decoder, FrameReader, encode
from runner.wire.liveness import Liveness

AUDIENCE = "runner:sim"
ISSUER = "https://issuer.test"
_ISSUER_KEY = SigningKey(b"i" * 32)
_HOLDER_KEY = SigningKey(b"h" * 32)


def credentials(socket: str) -> bytes:
    """What `runner exec` would hand over, for this daemon."""
    now = int(time.time())
    root = mint_root(
        issuer=ISSUER,
        key=_ISSUER_KEY,
        holder=_HOLDER_KEY.public,
        agent="sim-agent",
        owner="sim-owner",
        task="sim-task",
        session="sim-session",
        profile="default",
        tools={"echo": {}},
        now=now,
        expires=now + 3600,
        jti="sim-root",
    )
    return handed.encode(handed.credentials((root,), _HOLDER_KEY, socket))


class SimCall:
    """One call as a script sees it."""

    def __init__(self, connection: SimConnection, request: Any, tool: str, arguments: dict[str, Any]) -> None:
        self.request = request
        self.tool = tool
        self.arguments = arguments
        self.id = f"call-{connection.daemon.next_id()}"
        self.cancelled = asyncio.Event()
        self.input: asyncio.Queue[agent.Stdin] = asyncio.Queue()
        self.connection = connection
        self._moved = asyncio.Event()
        self._offsets = {"stdout": 0, "stderr": 0}

    def send(self, message: Any) -> None:
        self.connection.send(message)

    def accept(self, **more: Any) -> None:
        self.send(agent.Accepted(number=self.request.number, call=self.id, **more))

    def credit_stdin(self, count: int) -> None:
        self.send(agent.StdinCredit(number=self.request.number, bytes=count))

    async def output(self, data: bytes, stream: str = "stdout") -> None:
        while data:
            room = self.connection.session.room(self.request.number)
            if not room:
                self._moved.clear()
                await self._moved.wait()
                continue
            piece, data = data[:room], data[room:]
            offset = self._offsets[stream]
            self._offsets[stream] += len(piece)
            self.send(agent.Output(number=self.request.number, stream=stream, offset=offset, data=piece))

    def finish(self, *, kind: str = "exited", exit_code: int | None = 0, value: Any = None, **more: Any) -> None:
        self.send(
            agent.Result(
                number=self.request.number,
                call=self.id,
                outcome=Outcome(kind=kind, exit_code=exit_code if kind == "exited" else None),
                receipt="ab" * 32,
                position=7,
                durable=False,
                value=value,
                stdout_bytes=self._offsets["stdout"],
                stderr_bytes=self._offsets["stderr"],
                **more,
            )
        )

    def forward(self, message: Any) -> None:
        self._moved.set()
        if isinstance(message, agent.Cancel):
            self.cancelled.set()
        elif isinstance(message, agent.Stdin):
            self.input.put_nowait(message)


Script = Callable[[SimCall], Awaitable[None]]


class SimConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, daemon: SimDaemon) -> None:
        self.daemon = daemon
        self.session = wire.Session(daemon.limits, (1,))
        self.log: list[Any] = []
        self.calls: dict[int, SimCall] = {}
        self.transport: Any = None
        self.closed = False
        self._nonce = f"nonce-{daemon.next_id()}"
        self._reader = FrameReader(daemon.limits.max_frame)
        self._decoder: Decoder[Any] = Decoder(
            agent.FromClient, elements=daemon.limits.max_elements, depth=daemon.limits.max_depth
        )
        self._verified: Any = None
        self.liveness: Liveness

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.daemon.connections.append(self)
        self.liveness = Liveness(self.daemon.limits, time.monotonic())
        if not self.daemon.mute:
            challenge = agent.Challenge(
                versions=self.daemon.versions, nonce=self._nonce, audience=AUDIENCE, time=int(self.daemon.now())
            )
            transport.write(encode(challenge))

    def data_received(self, data: bytes) -> None:
        frames = 0
        try:
            for body in self._reader.feed(data):
                frames += 1
                message = self._decoder.decode(body)
                self.log.append(message)
                self._event(self.session.receive(message))
        except RunnerError as error:
            self.daemon.errors.append(error)
            self.transport.write(encode(self.session.close(error)))
            self.transport.close()
        self.liveness.heard(time.monotonic(), frames, self._reader.pending)

    def eof_received(self) -> bool:
        self.session.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for call in self.calls.values():
            call.cancelled.set()

    def send(self, message: Any) -> None:
        if not self.closed:
            self.session.sent(message)
            self.transport.write(encode(message))

    def raw(self, message: Any) -> None:
        """Send without asking the tables: what a broken daemon would do."""
        self.transport.write(encode(message))

    def _event(self, event: wire.Event) -> None:
        if isinstance(event, wire.Authenticate):
            self._hello(event.hello)
        elif isinstance(event, wire.Serve):
            self._serve(event.request)
        elif isinstance(event, wire.Forward) and event.message.number in self.calls:
            self.calls[event.message.number].forward(event.message)
        elif isinstance(event, wire.Send):
            self.transport.write(encode(event.message))
        elif isinstance(event, wire.Leave) and (event.at_once or self.session.done):
            self.transport.close()

    def _hello(self, hello: agent.Hello) -> None:
        limits, now = self.daemon.limits, self.daemon.now()
        self._verified = verify_chain(hello.chain, {ISSUER: (_ISSUER_KEY.public,)}, now, AUDIENCE, limits)
        verify_hello(hello.proof, self._verified, AUDIENCE, self._nonce, now, 0, limits)
        self.send(
            agent.Welcome(
                session="sim-session",
                task="sim-task",
                agent="sim-agent",
                tools_digest="d1",
                max_frame=limits.max_frame,
                call_window=limits.output_window,
                calls=limits.calls_per_connection,
                heartbeat_ms=int(limits.heartbeat_s * 1000),
            )
        )

    def _serve(self, request: Any) -> None:
        if isinstance(request, agent.ListTools):
            self.send(agent.Tools(number=request.number, digest="d1", tools=self.daemon.specs))
        elif isinstance(request, agent.EndTask):
            self.send(agent.TaskEnded(number=request.number, reason="ended by its holder"))
            self.transport.close()
        elif isinstance(request, agent.Attach | agent.GetResult):
            self._run(SimCall(self, request, "attach", {"call": request.call}))
        else:
            try:
                plain = self.session.to_tool_call(request, Peer(uid=0, pid=1))
                proven = verify_call(
                    plain.proof, self._verified, AUDIENCE, self._nonce, self.daemon.now(), 0, self.daemon.limits
                )
                if proven.tool not in self.daemon.tools:
                    raise refuse("not_granted", f"the token does not grant `{proven.tool}`", allowed="echo")
            except RunnerError as error:
                self.send(agent.Refused(number=request.number, refusal=error.refused))
                return
            self._run(SimCall(self, request, proven.tool, proven.arguments))

    def _run(self, call: SimCall) -> None:
        self.calls[call.request.number] = call

        async def run() -> None:
            try:
                await self.daemon.tools[call.tool](call)
            except RunnerError as error:
                self.send(agent.Refused(number=call.request.number, refusal=error.refused, call=call.id))
            except Exception as error:
                self.daemon.errors.append(error)
                raise
            finally:
                self.calls.pop(call.request.number, None)

        task = asyncio.get_running_loop().create_task(run())
        self.daemon.tasks.add(task)
        task.add_done_callback(self.daemon.tasks.discard)


class SimDaemon:
    """`with SimDaemon(folder) as daemon:` listens on `daemon.socket` until the block ends."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.socket = str(folder / "agent.sock")
        self.limits = limits or Limits()
        self.tools: dict[str, Script] = {"echo": echo}
        self.specs: tuple[agent.ToolSpec, ...] = ()
        self.versions: tuple[int, ...] = (1,)
        self.skew = 0.0  # seconds that this daemon's clock is ahead
        self.mute = False
        self.connections: list[SimConnection] = []
        self.errors: list[Exception] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._ids = 0
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="sim-daemon")

    @property
    def credentials(self) -> bytes:
        return credentials(self.socket)

    @property
    def log(self) -> list[Any]:
        """What the last client sent."""
        return self.connections[-1].log

    def now(self) -> float:
        return time.time() + self.skew

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def do(self, act: Callable[[], Any]) -> Any:
        """Run something in the daemon's loop and wait for it."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def until(self, ready: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait for something that happens in the daemon's thread. Raises AssertionError when it does not come."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_unix_server(lambda: SimConnection(self), self.socket)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in self.connections:
            connection.transport.abort()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def __enter__(self) -> SimDaemon:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


async def echo(call: SimCall) -> None:
    """Writes its `text`, `repeat` times, and exits with its `exit`."""
    call.accept()
    text = str(call.arguments.get("text", "")).encode()
    for _ in range(call.arguments.get("repeat", 1)):
        await call.output(text)
    if "error" in call.arguments:
        await call.output(call.arguments["error"].encode(), "stderr")
    call.finish(exit_code=call.arguments.get("exit", 0), value=call.arguments.get("value"))
