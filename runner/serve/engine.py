"""The engine process: `python -m runner.serve.engine PARENT_FD GATE_FD STATE_DIR RUN_DIR INSTANCE`. Root, Docker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from runner.catalog import Catalog, compile_bundle
from runner.engine.processes import Processes
from runner.engine.sandboxes import Compiled, Engine
from runner.errors import RunnerError, refusal
from runner.serve import log, privilege
from runner.serve.channel import Channel
from runner.wire import engine as wire
from runner.wire import parent

_log = logging.getLogger(__name__)


class EngineProcess:
    """Engine behind its channels to parent and gate."""

    def __init__(self, *, state: Path, run: Path, instance: str) -> None:
        self._state = state
        self._run = run
        self._instance = instance
        self._engine: Engine | None = None
        self._offered: dict[int, Compiled] = {}
        self._gate: Channel | None = None
        self._upward: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes = Processes()

    async def serve(self, parent_fd: int, gate_fd: int) -> None:
        """Serve until gate or parent ends, then remove every sandbox."""
        self._upward = Channel(socket.socket(fileno=parent_fd), parent.FromParent, self._from_parent)
        self._gate = Channel(socket.socket(fileno=gate_fd), wire.FromGate, self._from_gate)
        waits = [asyncio.ensure_future(channel.closed.wait()) for channel in (self._gate, self._upward)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._engine is not None:
            self._engine.stop_archiving()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._engine is not None:
            await self._engine.close()

    def _run_task(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- parent -------------------------------------------------------------------------------------------

    def _from_parent(self, message: Any, _: int | None) -> None:
        if isinstance(message, parent.Offer):
            self._run_task(self._offer(message))
        elif isinstance(message, parent.Commit) and self._engine is not None:
            self._engine.adopt(self._offered.pop(message.generation))
            self._offered.clear()

    async def _offer(self, offer: parent.Offer) -> None:
        assert self._upward is not None
        try:
            catalog = await asyncio.to_thread(compile_bundle, offer.bundle)
            engine = await self._started(catalog)
            self._offered[offer.generation] = await asyncio.to_thread(
                engine.compile, catalog.task_profiles, catalog.seccomp
            )
        except RunnerError as error:
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=error.refused))
        except Exception:
            _log.exception("the catalogue could not be compiled")
            broken = refusal("internal", "engine has a defect; the log has the details")
            self._upward.post(parent.Rejected(generation=offer.generation, refusal=broken))
        else:
            self._upward.post(parent.Compiled(generation=offer.generation))

    async def _started(self, catalog: Catalog) -> Engine:
        if self._engine is None:
            engine = Engine(
                instance=self._instance,
                config=catalog.config,
                run_dir=self._run,
                state_dir=self._state,
                on_end=self._sandbox_ended,
            )
            await engine.start()
            self._engine = engine
        return self._engine

    # --- gate ---------------------------------------------------------------------------------------------

    def _from_gate(self, message: Any, _: int | None) -> None:
        self._run_task(self._answer(message))

    async def _answer(self, message: wire.FromGate) -> None:
        assert self._gate is not None
        try:
            if self._engine is None:
                raise RunnerError(refusal("unavailable", "engine is starting", retry_after_ms=1000))
            if isinstance(message, wire.Create):
                measured, descriptor = await self._engine.create(message.plan)
                created = wire.Created(number=message.number, sandbox=message.plan.sandbox, measured=measured)
                self._gate.post(created, descriptor)  # the channel closes our copy: PID 1 must see gate's EOF
            elif isinstance(message, wire.Listen):
                descriptor = await self._engine.listen(message.sandbox, message.port)
                self._gate.post(wire.Listening(number=message.number), descriptor)
            else:
                self._gate.post(await self._carry_out(self._engine, message))
        except RunnerError as error:
            self._gate.post(wire.Failed(number=message.number, refusal=error.refused))
        except Exception:
            _log.exception("a request of gate failed")
            broken = refusal("unavailable", "engine has a defect; the log has the details")
            self._gate.post(wire.Failed(number=message.number, refusal=broken))

    async def _carry_out(self, engine: Engine, message: wire.FromGate) -> wire.FromEngine:
        """Every request that passes no descriptor."""
        match message:
            case wire.Destroy():
                spent = await engine.destroy(message.sandbox, message.reason)
                return wire.Destroyed(number=message.number, spent=spent)
            case wire.KeepDisks():
                return wire.Kept(number=message.number, tasks=await engine.keep_disks(message.tasks))
            case wire.Snapshot():
                taken = await engine.snapshot(message.sandbox, full=message.full)
                return wire.Snapped(
                    number=message.number, lines=taken.lines, files=taken.files, size=taken.size, read=taken.read
                )
            case wire.RemoveDisk():
                await engine.remove_disk(message.task)
            case wire.Identify():
                return await self._processes.identify(message.number, message.pid)
            case wire.ArchiveImage():
                made = await engine.archive(message.image)
                return wire.ImageArchived(
                    number=message.number, digest=made.digest, size=made.size, sbom=made.sbom.encode(),
                    packages=made.packages, problem=made.problem,
                )  # fmt: skip
            case wire.ListArchives():
                return wire.Archives(
                    number=message.number,
                    archives=tuple(wire.Archive(*each) for each in await engine.archives()),
                )
            case wire.RemoveArchive():
                await engine.remove_archive(message.digest)
            case wire.Describe():
                facts = engine.facts
                return wire.Described(
                    number=message.number, engine=f"docker {facts.docker}", runtime=facts.default_runtime,
                    runc=facts.runc, cgroup_version=facts.cgroup_version, landlock=facts.landlock,
                )  # fmt: skip
        return wire.Done(number=message.number)

    def _sandbox_ended(self, sandbox: str, reason: str, oom: bool) -> None:
        assert self._gate is not None
        self._gate.post(wire.SandboxEnded(sandbox=sandbox, reason=reason, oom=oom))


def main() -> int:
    """Root stays root here; everything else is given up."""
    parent_fd, gate_fd, state, run, instance = sys.argv[1:6]
    log.configure("engine")
    os.umask(0o077)
    privilege.harden()
    # Docker's own client variables are an operator's choice, made where the daemon was started.
    privilege.clear_environment(keep=("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = EngineProcess(state=Path(state), run=Path(run), instance=instance)
    asyncio.run(process.serve(int(parent_fd), int(gate_fd)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
