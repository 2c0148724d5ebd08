"""agent.sock: sockets to frames, frames to requests, one task a request, answers back. Decides nothing.

Process: gate.
Input: bytes of agent processes.
Trusts: the kernel's word on the peer (SO_PEERCRED).
Does not trust: anything the peer sends, nor that it reads what it is sent.
Privilege: the listening socket that parent bound.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

from runner.config import PROTOCOL_VERSION, Limits
from runner.errors import Refusal, RunnerError, refusal, refuse
from runner.gate import idempotency
from runner.gate.listing import listing, listing_digest
from runner.gate.parts import Parts
from runner.gate.provenance import Provenances
from runner.gate.reply import RequestReply
from runner.gate.session import Session
from runner.gate.strangers import Strangers
from runner.model import Peer
from runner.pipeline import Pipeline
from runner.token.claims import VerifiedChain
from runner.wire import agent
from runner.wire import session as wire
from runner.wire.frame import Decoder, FrameReader, encode
from runner.wire.liveness import Liveness
from runner.wire.states import State

_log = logging.getLogger(__name__)
_HELD = 64 << 10  # bytes of output that wait for the result they leave with
_TURN = 32  # frames of one connection in one turn of the loop: a flood of small ones must not hold up the others
_INTERNAL = refusal("internal", "the daemon has a defect; the log has the details")


def peer_of(sock: socket.socket) -> Peer:
    """Who is at the other end, by SO_PEERCRED: fixed at connect, cannot be forged."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return Peer(uid=uid, pid=pid, gid=gid)


class Server:
    """Every connection on agent.sock."""

    def __init__(
        self,
        parts: Parts,
        pipeline: Pipeline,
        strangers: Strangers,
        provenances: Provenances,
        *,
        uids: frozenset[int],
        audience: str,
        nonce: Callable[[], str],
    ) -> None:
        self.parts = parts
        self.pipeline = pipeline
        self.strangers = strangers
        self.provenances = provenances
        self.uids = uids
        self.audience = audience
        self.nonce = nonce
        self.limits: Limits = parts.limits
        self.connections: set[Connection] = set()
        self.per_uid: Counter[int] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()
        self.durable_to = 0  # every entry below this is on disk
        self._listener: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept on the socket that parent bound."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(lambda: Connection(self), sock=sock, backlog=4096)

    def admits(self, peer: Peer) -> Refusal | None:
        """Whether this peer may open one more connection."""
        if peer.uid not in self.uids:
            return refusal(
                "unauthenticated", f"uid {peer.uid} may not connect", next_step="ask the operator to add it to [peers]"
            )
        if (
            self.per_uid[peer.uid] >= self.limits.connections_per_uid
            or len(self.connections) >= self.limits.connections
        ):
            return refusal("busy", f"uid {peer.uid} has its limit of connections open", retry_after_ms=1000)
        return None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one request beside the others. A defect in it is logged and ends nothing else."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a request failed", exc_info=error)

    def tick(self, now: float) -> None:
        """Once a second: heartbeats and deadlines of every connection."""
        for connection in list(self.connections):
            connection.tick(now)

    def durable(self, size: int) -> None:
        """Everything below `size` is on disk: tell whoever got an earlier result."""
        self.durable_to = max(self.durable_to, size)
        for connection in list(self.connections):
            connection.durable(size)

    def tools_changed(self) -> None:
        """The catalogue was swapped."""
        for connection in list(self.connections):
            connection.tools_changed()

    def revoked(self, why: Callable[[VerifiedChain], str]) -> None:
        """Authority was taken back: close the connections that stood on it. `why` is "" for those that do not."""
        for connection in list(self.connections):
            connection.revoked(why)

    def admit_only(self, uids: frozenset[int]) -> None:
        """`[peers]` was changed: whoever is not in it any more is hung up."""
        self.uids = uids
        for connection in list(self.connections):
            connection.admitted(uids)

    async def task_ended(self, task: str, reason: str) -> None:
        """Close the connections of a task that is over."""
        for each in list(self.connections):
            each.task_ended(task, reason)

    async def drain(self, seconds: float) -> bool:
        """Take no new work, wait for running calls, then close. Returns whether nothing had to be cut off."""
        if self._listener is not None:
            self._listener.close()
        self.parts.draining = "the daemon is shutting down"
        for connection in list(self.connections):
            connection.bye(self.parts.draining)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=seconds)
        clean = not self.tasks
        for running in list(self.parts.calls.running.values()):
            running.cancel("killed", "the daemon is shutting down")
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self.limits.kill_grace_s + 2)
        for connection in list(self.connections):
            connection.hang_up()
        return clean


class Connection(asyncio.Protocol):
    """One agent process. Identity is proven once, by `Hello`, and never changes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        limits = server.limits
        self.session = wire.Session(limits, (PROTOCOL_VERSION,))
        self._decoder: Decoder[agent.FromClient] = Decoder(
            agent.FromClient, elements=limits.max_elements, depth=limits.max_depth
        )
        self._reader = FrameReader(limits.max_frame)
        self._liveness = Liveness(limits, server.parts.clock.monotonic())
        self._transport: asyncio.Transport | None = None
        self._peer = Peer(uid=-1, pid=0)
        self._nonce = ""
        self._proven: Session | None = None
        self._replies: dict[int, RequestReply] = {}
        self.writable = True
        self._reading = True
        self.closed = False
        self._held = bytearray()  # messages that leave with the next one
        self._ending = 0  # the number of the request that ends the task
        self._owed = -1  # the highest position a `Durable` is owed for
        self._aborting: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Judge the peer before a byte of it is read."""
        # A cast, not a check: uvloop's transports do not inherit from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=self._server.limits.send_queue)
        self._peer = peer_of(transport.get_extra_info("socket"))
        refused = self._server.admits(self._peer)
        if refused is not None:
            self._server.strangers.count(self._peer.uid, refused.code, refused.reason)
            transport.write(encode(agent.Closing(refusal=refused)))
            self.closed = True
            transport.close()
            return
        self._server.connections.add(self)
        self._server.per_uid[self._peer.uid] += 1
        self._nonce = self._server.nonce()
        transport.write(
            encode(
                agent.Challenge(
                    versions=(PROTOCOL_VERSION,),
                    nonce=self._nonce,
                    audience=self._server.audience,
                    time=int(self._server.parts.clock.now()),
                )
            )
        )

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        self._take(data)

    def _take(self, data: bytes = b"") -> None:
        """Serve the frames that are complete, as many as a connection may have served in a turn: the rest in the next
        one, or when the peer reads its answers again. Until then nothing more is read from it."""
        if self.closed or self._transport is None:
            return
        frames, behind = 0, False
        bodies = self._reader.feed(data)
        try:
            for body in bodies:
                frames += 1
                self._event(self.session.receive(self._decoder.decode(body)))
                if self.hung_up():
                    return
                if behind := frames == _TURN or not self.writable:
                    break
        except RunnerError as error:
            self.fail(error)
            return
        finally:
            bodies.close()
        pending = 0 if behind else self._reader.pending  # what we have not come to yet is not the peer's delay
        self._liveness.heard(self._server.parts.clock.monotonic(), frames, pending)
        if behind and self.writable:
            asyncio.get_running_loop().call_soon(self._take)
        self._read_on(not behind and self.writable)

    def _read_on(self, on: bool) -> None:
        """Have the transport read, or not."""
        if self._transport is not None and not self._transport.is_closing() and on != self._reading:
            self._reading = on
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    def eof_received(self) -> bool:
        """A half close ends the connection: frames after it would never come, answers could not be acknowledged."""
        if not self.closed:
            self.session.receive_eof()
            self.hang_up()
            self._abandon()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone."""
        self.closed = True
        if self._aborting is not None:
            self._aborting.cancel()
        if self in self._server.connections:
            self._server.connections.discard(self)
            self._server.per_uid[self._peer.uid] -= 1
            if not self._server.per_uid[self._peer.uid]:
                del self._server.per_uid[self._peer.uid]
        self._abandon()
        if self._proven is not None:
            self._server.parts.tasks.leave(self._proven.task)

    def pause_writing(self) -> None:
        """The peer does not read: whoever wants to send output waits, its tool with it, and nothing more is read."""
        self.writable = False
        self._read_on(False)

    def resume_writing(self) -> None:
        """It reads again."""
        self.writable = True
        for reply in self._replies.values():
            reply.wake()
        asyncio.get_running_loop().call_soon(self._take)  # what it sent while it did not read

    def _abandon(self) -> None:
        """Nobody reads the answers any more. Idempotent."""
        for reply in list(self._replies.values()):
            reply.abandon()

    # --- out ------------------------------------------------------------------------------------------------

    def room(self, number: int) -> int:
        """Output bytes that the client can take for this number now."""
        return self.session.room(number)

    def send(self, message: agent.FromDaemon, *, more: bool = False) -> None:
        """Queue a message, if the peer is still there. With `more`, another one follows at once and takes it along."""
        if self.closed or self._transport is None or self.session.state is State.CLOSED:
            return
        self.session.sent(message)
        self._write(message, more=more)

    def flush(self) -> None:
        """What waits for the next message leaves now."""
        if self._held and self._transport is not None and not self.closed:
            self._transport.write(bytes(self._held))
            self._held.clear()

    def _write(self, message: agent.FromDaemon, *, more: bool = False) -> None:
        assert self._transport is not None
        data = encode(message)
        if more and len(self._held) + len(data) <= _HELD:
            self._held += data
            return
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
        self._transport.write(data)

    def fail(self, error: RunnerError) -> None:
        """Say why, and hang up."""
        if self.closed or self._transport is None:
            return
        self._server.strangers.count(self._peer.uid, error.refused.code, error.detail or error.refused.reason)
        self._write(self.session.close(error))
        self.hang_up()

    def hung_up(self) -> bool:
        """Whether nothing more is read or written here."""
        return self.closed

    def hang_up(self) -> None:
        """Close once what was written is sent, for a bounded time."""
        if self._transport is not None and not self._transport.is_closing():
            transport = self._transport
            self.flush()
            self.closed = True
            transport.close()
            loop = asyncio.get_running_loop()
            self._aborting = loop.call_later(self._server.limits.kill_grace_s, transport.abort)

    def bye(self, reason: str) -> None:
        """The daemon will leave once running calls are answered."""
        if self.session.state is State.OPEN:
            self.send(agent.Bye(reason=reason))
            if not self._replies:
                self.hang_up()
        elif not self.closed:
            self.hang_up()

    def tick(self, now: float) -> None:
        """Ask a silent peer, or leave it."""
        due = self._liveness.due(now, self.session.state)
        if isinstance(due, RunnerError):
            self.fail(due)
        elif due is not None:
            self.send(due)
        if self._proven is not None and self._proven.verified.expires <= self._server.parts.clock.now():
            self.fail(refuse("unauthenticated", "the token expired"))

    def durable(self, size: int) -> None:
        """Tell the client once the results it has are on disk."""
        if 0 <= self._owed < size:
            self.send(agent.Durable(position=size - 1))
            self._owed = -1

    def owes(self, position: int) -> None:
        """A result was given whose entry is not known to be on disk."""
        self._owed = max(self._owed, position)
        self.durable(self._server.durable_to)

    def revoked(self, why: Callable[[VerifiedChain], str]) -> None:
        """Close if the connection stood on what was revoked."""
        if self._proven is not None and (reason := why(self._proven.verified)):
            self.fail(refuse("revoked", reason))

    def admitted(self, uids: frozenset[int]) -> None:
        """Close if the peer may not connect any more."""
        if self._peer.uid not in uids:
            self.fail(refuse("unauthenticated", f"uid {self._peer.uid} may not connect any more"))

    def tools_changed(self) -> None:
        """Tell the client to ask again."""
        if self._proven is not None and self.session.state is State.OPEN:
            self.send(agent.ToolsChanged(digest=listing_digest(self._tools(self._proven))))

    def task_ended(self, task: str, reason: str) -> None:
        """The task of this connection is over."""
        if self._proven is not None and self._proven.task.id == task and not self.closed:
            self.send(agent.TaskEnded(number=self._ending, reason=reason))
            self.hang_up()

    # --- in -------------------------------------------------------------------------------------------------

    def _event(self, event: wire.Event) -> None:
        match event:
            case wire.Authenticate():
                self._hello(event.hello)
            case wire.Serve():
                self._serve(event.request)
            case wire.Forward():
                reply = self._replies.get(event.message.number)
                if reply is not None:
                    reply.forward(event.message)
            case wire.Send():
                self._write(event.message)
            case wire.Leave() if event.at_once or self.session.done:
                self.hang_up()
            case _:
                pass

    def _hello(self, hello: agent.Hello) -> None:
        parts = self._server.parts
        verified = parts.authenticator.open(hello.chain, hello.proof, self._nonce, parts.clock.now(), self._peer)
        task = parts.tasks.join(verified.principal, token=verified.root_jti, profile=verified.profile)
        task.anchor = verified.issuer, verified.anchor
        task.granted, task.uid = verified.links[0].tools or {}, self._peer.uid
        assert self._transport is not None
        provenance = self._server.provenances.begin(self._transport.get_extra_info("socket"), self._peer, verified)
        self._proven = Session(verified, self._nonce, hello.session, task, parts.tasks, provenance)
        limits = self._server.limits
        self.send(
            agent.Welcome(
                session=verified.principal.session,
                task=task.id,
                agent=(verified.principal.asserted or (verified.principal.agent,))[-1],
                tools_digest=listing_digest(self._tools(self._proven)),
                max_frame=limits.max_frame,
                call_window=limits.output_window,
                calls=limits.calls_per_connection,
                heartbeat_ms=int(limits.heartbeat_s * 1000),
                workspace_lost=parts.tasks.workspace_lost(task),
            )
        )

    def _serve(self, request: Any) -> None:
        assert self._proven is not None
        reply = self._replies[request.number] = RequestReply(self, request.number)
        self._server.run(self._answer(request, self._proven, reply))

    async def _answer(self, request: Any, proven: Session, reply: RequestReply) -> None:
        number: int = request.number
        try:
            match request:
                case agent.Call():
                    call = self.session.to_tool_call(request, self._peer)
                    await self._server.pipeline.handle(call, proven, reply)
                case agent.ListTools():
                    specs = self._tools(proven)
                    self.send(agent.Tools(number=number, digest=listing_digest(specs), tools=specs))
                case agent.Attach():
                    await self._attach(request, proven, reply)
                case agent.GetResult():
                    await self._result(request, proven, reply)
                case agent.EndTask():
                    await self._end_task(number, proven)
        except RunnerError as error:
            self._refused(number, error, reply)
        except Exception:
            _log.exception("request %d failed", number)
            self._refused(number, RunnerError(_INTERNAL), reply)
        finally:
            self._replies.pop(number, None)
            if self.session.done and not self.closed:
                self.hang_up()

    def _refused(self, number: int, error: RunnerError, reply: RequestReply) -> None:
        recorded = reply.running is not None and reply.running.recorded
        if not recorded:
            self._server.strangers.count(self._peer.uid, error.refused.code, error.detail or error.refused.reason)
        call = reply.running.call if recorded and reply.running is not None else ""
        self.send(agent.Refused(number=number, refusal=error.refused, call=call))

    async def _attach(self, request: agent.Attach, proven: Session, reply: RequestReply) -> None:
        running = self._server.parts.calls.find(proven.task.id, request.call)
        if running is None:
            raise refuse("unknown_call", f"no output of call `{request.call[:64]}` is kept here", field="call")
        reply.follows(running)
        await reply.accepted(running.call, replayed=True)
        delivered = proven.task.context.delivered
        await idempotency.follow(running, reply, delivered, stdout=request.stdout, stderr=request.stderr)

    async def _result(self, request: agent.GetResult, proven: Session, reply: RequestReply) -> None:
        running = self._server.parts.calls.find(proven.task.id, request.call)
        if running is not None:
            reply.follows(running, cancels=False)  # to ask for a result is not to hold the call
            await idempotency.answer(running, reply, proven.task.context.delivered)
            return
        kept = self._server.parts.state.kept(proven.task.id, request.call)
        if kept is None:
            raise refuse("unknown_call", f"no result of call `{request.call[:64]}` is kept here", field="call")
        await idempotency.stored(kept, reply, proven.task.context.delivered)

    async def _end_task(self, number: int, proven: Session) -> None:
        if len(proven.verified.jtis) != 1:
            raise refuse("denied", "only the holder of the root token may end the task", rule="token:root")
        self._ending = number  # `TaskEnded` is the last message of every connection of the task
        await self._server.parts.tasks.end(proven.task.id, "ended by its holder", by=self._peer.uid)

    def _tools(self, proven: Session) -> tuple[agent.ToolSpec, ...]:
        serving, name = self._server.parts.serving, proven.verified.profile
        texts = self._server.pipeline.filters.texts(proven.task.id, serving.patterns, serving.task_profiles.get(name))
        return listing(serving, name, proven.verified.tools, texts)
