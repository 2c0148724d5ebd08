"""The gate process: `python -m runner.serve.gate PARENT ENGINE RECORDER AGENT ADMIN STATE INSTANCE USER`.

The first five are descriptors. Everything is imported before privileges are dropped. Gate ends when parent or
recorder ends: no call unrecorded.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from runner import VERSION
from runner.admin.operations import Operations
from runner.admin.reload import Offered, Reloads, Swap
from runner.admin.second import SecondPerson
from runner.admin.socket import AdminServer
from runner.errors import RunnerError, refuse
from runner.gate import pruned
from runner.gate.authenticate import Authenticator
from runner.gate.calls import Calls
from runner.gate.entries import Journal
from runner.gate.identifiers import CallIds
from runner.gate.images import Images
from runner.gate.parts import Clock, Parts
from runner.gate.provenance import Provenances
from runner.gate.requests import Requests
from runner.gate.serving import Serving
from runner.gate.strangers import Strangers
from runner.gate.tasks import Tasks
from runner.ledger import entry as entries
from runner.model import Principal
from runner.pipeline import Pipeline
from runner.sandbox.claim import Claims
from runner.sandbox.execute import Executor
from runner.sandbox.lease import Leases
from runner.sandbox.snapshot import Snapshots
from runner.serve import log, outward, privilege
from runner.serve.anchors import thumbprints
from runner.serve.channel import Channel
from runner.serve.life import Life, stamp
from runner.serve.offered import compiled
from runner.serve.room import Room
from runner.server import Server
from runner.state.authority import Authority
from runner.state.store import Store
from runner.stream.escrow import Escrows
from runner.stream.tasks import Filters
from runner.telemetry import Telemetry
from runner.wire import admin, parent
from runner.wire import broker as broker_wire
from runner.wire import egress as egress_wire
from runner.wire import engine as engine_wire
from runner.wire import recorder as recorder_wire

_log = logging.getLogger(__name__)
_BEACON_S = 60
_SALT = 16
_TASK_KEY = 32
T = TypeVar("T")


def settle() -> None:
    """Take what lives as long as the catalogue out of the garbage collector's sight: walking its 45,000 objects takes
    7 to 16 ms, in which no call moves."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class GateProcess:
    """Gate behind its channels; builds its parts once parent has committed the first catalogue."""

    def __init__(self, *, state: Path, instance: str, boot: str, sockets: tuple[socket.socket, socket.socket]) -> None:
        self._state_dir = state
        self._instance = instance
        self._boot = boot
        self._sockets = sockets
        self._offered: dict[int, Offered] = {}
        self._reloads = Reloads(lambda message: self._upward.post(message))
        self._committed = asyncio.Event()
        self._opened: asyncio.Future[recorder_wire.Opened] = asyncio.get_running_loop().create_future()
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._status = 0
        self._stop: parent.Stop | None = None
        self._server: Server | None = None
        self._started = stamp()
        self._swapping = asyncio.Lock()
        self._room = Room()

    async def serve(self, parent_fd: int, engine_fd: int, recorder_fd: int, egress_fd: int, broker_fd: int) -> int:
        """Serve until parent says stop, or parent or recorder ends. Returns the exit status."""
        self._upward = Channel(
            socket.socket(fileno=parent_fd), parent.FromParent, self._from_parent, carriers=(parent.Part,)
        )
        self._recorder = Channel(socket.socket(fileno=recorder_fd), recorder_wire.FromRecorder, self._from_recorder)
        self._attach_engine(socket.socket(fileno=engine_fd))
        self._outward = outward.Outward(self._heard, self._changed, self._given_up)
        self._outward.attach("egress", socket.socket(fileno=egress_fd))
        self._outward.attach("broker", socket.socket(fileno=broker_fd))
        watch = asyncio.ensure_future(self._watch_channels())
        try:
            self._opened_as = await self._opened
            await self._committed.wait()
            if self._stop is None:
                await self._build()
                self._upward.post(parent.Ready(detail=f"audience runner:{self._instance}"))
                ticker = asyncio.ensure_future(self._tick())
                await self._ending.wait()
                ticker.cancel()
                await self._end()
        except RunnerError as error:
            _log.critical("%s", error.refused.line())
            self._upward.post(parent.Fatal(refusal=error.refused))
            self._status = 1
        watch.cancel()
        return self._status

    async def _watch_channels(self) -> None:
        waits = [asyncio.ensure_future(channel.closed.wait()) for channel in (self._upward, self._recorder)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        _log.critical("%s ended: gate ends", "parent" if self._upward.closed.is_set() else "recorder")
        os._exit(1)  # nothing more can be recorded: sandboxes end with their control connections, which close here

    # --- parts --------------------------------------------------------------------------------------------

    async def _build(self) -> None:
        serving, anchors, agents, operators, self._reloads.in_force, _ = self._offered.pop(self._generation)
        config = serving.catalog.config
        limits = config.limits
        self._store = Store(self._state_dir / "state.db")
        caller = recorder_wire.RecorderCaller(self._recorder)
        if self._store.position > self._opened_as.size:
            _log.warning("state knows more than the ledger: it is rebuilt from the ledger")
            self._store.reset()
        found, size = await caller.since(self._store.position)
        self._store.follow(found, size)
        self._journal = Journal(caller, self._store, stamp, lambda: os.urandom(_SALT), self._fatal)
        clock = Clock(now=time.time, monotonic=time.monotonic, new_call=CallIds(self._opened_as.newest_call).new)
        calls = Calls(
            keep_calls=limits.detached_results, keep_bytes=limits.detached_bytes, keep_s=limits.detached_s,
            clock=time.monotonic,
        )  # fmt: skip
        images = Images(self._journal, self._store, self._caller, wanted=config.sandboxes.archive)
        self._claims = Claims(
            self._caller(),
            self._journal,
            describe=images.describe,
            new_sandbox=lambda: secrets.token_hex(6),
            start_s=limits.sandbox_start_s,
            spares=config.sandboxes.pool,
            owner_of=lambda task: tasks.live[task].principal.owner if task in tasks.live else "",
            creating=config.sandboxes.creating,
            per_owner=config.sandboxes.per_owner,
        )
        tasks = Tasks(
            self._journal, self._store, calls, self._claims,
            maximum=limits.tasks, per_owner=limits.tasks_per_owner, clock=time.monotonic,
        )  # fmt: skip
        for row in self._store.tasks(ended=False):
            known = Principal(agent=row.agent, owner=row.owner, task=row.task, session=row.session)
            tasks.remember(known, token=row.token, profile=row.profile)
        await self._claims.keep_disks(tasks.live)
        await pruned.let_go(caller, self._store, calls)
        authority = self._authority = Authority(self._store)
        audience = f"runner:{self._instance}"
        self._parts = Parts(
            serving=serving,
            authenticator=Authenticator(anchors, audience, authority, limits, time.time()),
            tasks=tasks,
            calls=calls,
            journal=self._journal,
            requests=Requests(self._journal, limits),
            state=self._store,
            clock=clock,
            limits=limits,
        )
        self._telemetry = Telemetry(
            config.telemetry.export, self._state_dir / "spans.jsonl", instance=self._instance, version=VERSION
        )
        # Two readers in engine: a snapshot may wait for another task's before its own time begins.
        self._snapshots = Snapshots(lambda: self._claims.engine, self._journal, seconds=4 * limits.snapshot_s)
        outward_ = self._outward
        self._leases = Leases(
            lambda: self._claims.engine, lambda: outward_.egress, lambda: outward_.broker, outward_.abandon
        )
        executor = Executor(self._claims, self._snapshots, self._leases, grace_s=limits.kill_grace_s)
        filters = Filters(lambda: os.urandom(_TASK_KEY), escrows=Escrows(self._journal.recorder, self._journal.salt))
        pipeline = Pipeline(self._parts, executor, filters, self._telemetry)
        self._strangers = Strangers(self._journal)
        self._life = Life(self._journal, self._instance, self._boot)
        described = await self._caller().describe()
        await self._life.begin(serving, anchors, self._config_bytes, self._opened_as, described)
        await self._room.attach(self._parts, self._journal)
        self._server = Server(
            self._parts,
            pipeline,
            self._strangers,
            Provenances(self._journal, self._identify),
            uids=agents,
            audience=audience,
            nonce=lambda: secrets.token_urlsafe(24),
        )
        tasks.on_end.append(self._server.task_ended)
        tasks.on_end.append(filters.task_ended)
        server = self._server
        operations = self._operations = Operations(
            self._parts,
            self._store,
            authority,
            self._view,
            lambda: server.revoked(authority.revoked),
            self._read_workspace,
            self._reloads,
            SecondPerson(self._store, self._journal, limits, time.time, lambda: self._admin.roster),
            images,
            self._outward,
        )
        await images.finish()
        await operations.stop_revoked("revoked before the daemon stopped")  # where a crash came between the two
        self._admin = AdminServer(
            operations, operators, self._strangers, audience=audience, nonce=lambda: secrets.token_urlsafe(24)
        )
        settle()
        await self._server.start(self._sockets[0])
        await self._admin.start(self._sockets[1])
        self._stock(serving)

    def _stock(self, serving: Serving) -> None:
        self._claims.stock(serving.task_profiles, serving.tools, serving.catalog.tool_profiles)

    async def _identify(self, pid: int) -> engine_wire.Identified:
        return await self._caller().identify(pid)

    def _fatal(self, error: RunnerError) -> None:
        _log.critical("the ledger does not take entries: %s", error.refused.line())
        os._exit(1)

    async def _read_workspace(self, task: str) -> bytes:
        sandbox = self._claims.sandbox_of(task)
        if not sandbox:
            raise refuse(
                "unavailable",
                "the task has no sandbox now, so there is no workspace to read",
                next_step="name its last call with --until, where its profile takes snapshots",
            )
        return (await self._snapshots.now(sandbox, full=True)).lines

    def _view(self) -> admin.StatusView:
        assert self._server is not None
        serving = self._parts.serving
        return admin.StatusView(
            instance=self._instance,
            version=VERSION,
            audience=f"runner:{self._instance}",
            pid=os.getpid(),
            started=self._started,
            tasks=len(self._parts.tasks.live),
            running=len(self._parts.calls.running),
            connections=len(self._server.connections),
            sandboxes=self._claims.count,
            ledger_size=self._store.position,
            catalogue=serving.catalog.digest,
            policy=serving.policies.digest,
            engine=not self._engine.closed.is_set(),
            egress=self._outward.egress is not None,
            broker=self._outward.broker is not None,
            alerts=self._parts.requests.alerts,
            newest_alert=self._parts.requests.newest,
            closed=tuple(f"{target} {value}".strip() for target, value in self._authority.closed()),
            refusing=self._parts.draining or self._parts.full,
        )

    # --- engine, recorder, parent ---------------------------------------------------------------------------

    def _caller(self) -> engine_wire.EngineCaller:
        return engine_wire.EngineCaller(self._engine)

    def _attach_engine(self, sock: socket.socket) -> None:
        self._engine = Channel(
            sock, engine_wire.FromEngine, self._from_engine, carriers=(engine_wire.Created, engine_wire.Listening)
        )
        self._beside(self._watch_engine(self._engine))

    def _beside(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Run `work` beside the rest; held until it ends, since the loop itself holds tasks weakly."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_engine(self, channel: Channel) -> None:
        await channel.closed.wait()
        if self._server is None:
            return
        _log.error("engine ended: every sandbox is closed, calls end as interrupted until it is back")
        if channel is self._engine:
            self._claims.engine_lost()
        await self._journal.write(
            entries.Degraded(time=stamp(), part="engine", state="lost", reason="the engine process ended")
        )

    def _from_engine(self, message: Any, descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)  # an answer that nobody waits for any more: its sandbox ends with this
        if isinstance(message, engine_wire.SandboxEnded):
            _log.warning("sandbox %s ended: %s", message.sandbox, message.reason)

    def _heard(self, message: Any, reply: outward.Answer) -> None:
        """What egress and broker say unasked."""
        if isinstance(message, broker_wire.Expired):
            self._leases.expired(message.call, message.lease)
        elif self._server is not None:
            self._parts.requests.heard(message, reply)
        elif isinstance(message, egress_wire.Ask):  # the broker is ahead of us: it tries again
            reply(egress_wire.Answer(number=message.number, allowed=False, reason="gate is starting"))

    def _given_up(self, part: outward.Part, run: int) -> None:
        self._upward.post(parent.GivenUp(name=part, run=run))

    async def _changed(self, part: outward.Part, state: outward.State) -> None:
        """A part that live calls depend on ended, or is back."""
        if self._server is not None:
            if state == "lost":
                self._leases.lost(part)
                if part == "egress":
                    await self._parts.requests.lost()
            reason = f"the {part} process ended" if state == "lost" else ""
            await self._journal.write(entries.Degraded(time=stamp(), part=part, state=state, reason=reason))

    def _from_recorder(self, message: Any, _: int | None) -> None:
        if isinstance(message, recorder_wire.Opened) and not self._opened.done():
            self._opened.set_result(message)
        elif isinstance(message, recorder_wire.DurableTo) and self._server is not None:
            self._server.durable(message.size)
        elif isinstance(message, recorder_wire.Room):
            self._room.told(message, self._beside)

    def _from_parent(self, message: Any, descriptor: int | None) -> None:
        match message:
            case parent.Offer():
                self._offer(message)
            case parent.Commit():
                self._commit(message.generation)
            case parent.Swapped():
                self._beside(self._answer_reload(message))
            case parent.Part(name="engine") if descriptor is not None:
                self._engine_back(socket.socket(fileno=descriptor))
            case parent.Part(name="egress" | "broker" as name) if descriptor is not None:
                self._outward.attach(name, socket.socket(fileno=descriptor), message.run)
            case parent.Stop():
                self._stop = message
                self._ending.set()
                self._committed.set()  # a daemon that never began to serve has nothing to drain

    def _engine_back(self, sock: socket.socket) -> None:
        if self._server is not None:
            self._claims.engine_lost()  # unless its end has been seen already
        self._engine.close()
        self._attach_engine(sock)
        if self._server is not None:
            self._claims.engine = self._caller()
            self._stock(self._parts.serving)
            self._beside(self._claims.keep_disks(self._parts.tasks.live))
            self._beside(self._journal.write(entries.Degraded(time=stamp(), part="engine", state="restored")))

    def _offer(self, offer: parent.Offer) -> None:
        try:
            self._offered[offer.generation] = compiled(offer, self._reloads)
        except RunnerError as error:
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=error.refused))
            return
        self._config_bytes = offer.bundle.config
        self._upward.post(parent.Compiled(generation=offer.generation))

    def _commit(self, generation: int) -> None:
        if self._server is None:
            self._generation = generation
            self._committed.set()
            return
        offered = self._offered.pop(generation)
        self._offered.clear()
        self._reloads.in_force = offered.standing  # the next one offered is judged against it
        self._reloads.swap = self._beside(self._swap(offered))

    async def _answer_reload(self, swapped: parent.Swapped) -> None:
        """A refused one is an entry before whoever asked is told. One that waits is written by who lets it wait."""
        try:
            refused = swapped.refusal and self._reloads.refused(
                stamp(), swapped.asked, swapped.refusal, swapped.offered
            )
            if refused:
                await self._journal.write(refused, sync=True)
        finally:
            self._reloads.answered(swapped.asked, swapped.refusal)

    async def _swap(self, offered: Offered) -> Swap:
        """Put the new catalogue into force between two calls. A call that has begun keeps the one it has."""
        async with self._swapping:  # one after the other: each entry names what was in force before it
            return await self._put_into_force(offered)

    async def _put_into_force(self, offered: Offered) -> Swap:
        serving = offered.serving
        assert self._server is not None
        for content in serving.catalog.contents.values():
            await self._journal.recorder.store(content)
        before = self._parts.serving.catalog.digest
        after, policy = serving.catalog.digest, serving.policies.digest
        held = thumbprints(offered.anchors)
        make = offered.request.entry if offered.request else entries.Reload
        written = await self._journal.write(
            make(time=stamp(), before=before, after=after, policy=policy, anchors=held), sync=True
        )
        self._parts.serving = serving
        self._parts.authenticator.replace_anchors(offered.anchors)
        self._server.revoked(self._parts.authenticator.retired)
        self._server.admit_only(offered.agents)
        self._admin.admit_only(offered.operators)
        self._server.tools_changed()
        self._stock(serving)
        settle()
        _log.info("catalogue %s is in force", serving.catalog.digest[:16])
        first = offered.request.first if offered.request else None
        stopped = await self._operations.stop_retired(first.uid if first else -1, first)
        return Swap(written.position, stopped)

    # --- time -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        assert self._server is not None
        beat = time.monotonic()
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            try:
                self._server.tick(now)
                self._parts.calls.prune()
                await self._strangers.flush()
                await self._parts.tasks.sweep(time.time(), self._idle_timeout)
                if now - beat >= _BEACON_S:
                    beat = now
                    await self._life.beacon(self._parts, self._store)
            except Exception:
                _log.exception("a tick failed")  # the next one must come: it holds deadlines and expiry

    def _idle_timeout(self, profile: str) -> int:
        found = self._parts.serving.task_profiles.get(profile)
        return found.idle_timeout_s if found is not None else 0  # its profile was removed: nothing new begins in it

    async def _end(self) -> None:
        """Drain, say so in the ledger, end."""
        assert self._server is not None
        assert self._stop is not None
        clean = await self._server.drain(self._stop.drain_ms / 1000)
        self._admin.close()
        await self._claims.close("the daemon ends", self._parts.limits.kill_grace_s)
        await self._strangers.flush()
        await self._life.end(self._stop.reason, clean=clean)
        self._telemetry.close()
        self._store.close()
        self._upward.post(parent.Stopped(clean=clean))


def main() -> int:
    """Resolve what needs root's view, drop everything, then serve."""
    fds = [int(value) for value in sys.argv[1:8]]
    state, instance, user = sys.argv[8:11]
    log.configure("gate")
    os.umask(0o077)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    privilege.leave_network()
    privilege.drop_to(user)
    privilege.harden()
    privilege.clear_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def run() -> int:
        sockets = (socket.socket(fileno=fds[5]), socket.socket(fileno=fds[6]))
        process = GateProcess(state=Path(state), instance=instance, boot=boot, sockets=sockets)
        return await process.serve(*fds[:5])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
