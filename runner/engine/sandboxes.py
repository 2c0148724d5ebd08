"""The sandboxes that live, from plan to end. The process root (serve/engine.py) drives this from one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from runner.config import Config
from runner.engine.archive import Archived, Archives, Standing
from runner.engine.cgroup import CgroupTree
from runner.engine.containers import Container, Workshop
from runner.engine.disk import Disks
from runner.engine.docker import Docker, HostFacts
from runner.engine.host import CompiledProfile, check_engine, compile_profile, host_facts
from runner.engine.image import TOOLS, WEB, Pins, tag
from runner.engine.listener import listen
from runner.engine.orphans import Orphans
from runner.engine.snapshot import Bounds, Taken, open_workspace, take
from runner.engine.uids import UidRange
from runner.errors import RunnerError, refuse
from runner.model import Measured, SandboxPlan, Spent, TaskProfile

log = logging.getLogger(__name__)

OnEnd = Callable[[str, str, bool], None]  # sandbox, reason, oom
Compiled = Mapping[str, CompiledProfile]

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")  # ids become names of containers and folders; they are always ours
_SIGKILLED = 137


class Engine:
    """Makes, watches and removes sandboxes. Everything but `compile` belongs to one event loop; ids are gate's."""

    def __init__(self, *, instance: str, config: Config, run_dir: Path, state_dir: Path, on_end: OnEnd) -> None:
        """`on_end(sandbox, reason, oom)` is called in the loop when a sandbox ended by itself, after its removal."""
        if not _ID.fullmatch(instance):
            raise refuse("config", f"instance id {instance!r} is not of small letters, digits and dashes")
        self._instance = instance
        self._config = config
        self._folder = run_dir / "sandboxes"
        self._pins = Pins(state_dir / "engine" / "images.json")
        self._uids = UidRange(config.sandboxes.uid_first, config.sandboxes.uid_count)
        self._disks = Disks(state_dir / "engine" / "disks", self._uids)
        self._archives = Archives(state_dir / "engine" / "images", config.sandboxes.archive_bytes)
        self._archivers = anyio.CapacityLimiter(1)
        self._on_end = on_end
        self._docker: Docker | None = None
        self._facts: HostFacts | None = None
        self._workshop: Workshop | None = None
        self._orphans: Orphans | None = None
        self._creating = asyncio.Semaphore(config.sandboxes.creating)
        self._compiled: Compiled = {}
        self._live: dict[str, Container] = {}
        self._making: dict[str, asyncio.Event] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._spent: dict[str, Spent | None] = {}  # of sandboxes that ended, until gate destroys them
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers = anyio.CapacityLimiter(2)  # hashing uses a core each; more only slow each other down
        self._closed = False

    @property
    def facts(self) -> HostFacts:
        """What the Docker engine said of itself at `start`."""
        assert self._facts is not None, "start() comes first"
        return self._facts

    @property
    def sandboxes(self) -> int:
        """How many sandboxes live."""
        return len(self._live)

    async def start(self) -> None:
        """Connect, check the engine, remove what an earlier run of this instance left. Raises `RunnerError` (host)."""
        settings = self._config.sandboxes
        self._docker = docker = await anyio.to_thread.run_sync(Docker, settings.docker_host)
        self._facts = await anyio.to_thread.run_sync(host_facts, docker)
        check_engine(self._facts)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._workshop = Workshop(
            docker=docker,
            tree=CgroupTree(),
            uids=self._uids,
            disks=self._disks,
            folder=self._folder,
            instance=self._instance,
            start_s=self._config.limits.sandbox_start_s,
        )
        self._orphans = Orphans(self._workshop)
        await anyio.to_thread.run_sync(self._orphans.remove)
        await anyio.to_thread.run_sync(self._disks.start)

    def compile(self, profiles: Mapping[str, TaskProfile], seccomp: Mapping[str, bytes]) -> Compiled:
        """Resolve images and check every promise against this host; changes nothing. Blocks on Docker: may be called
        from a thread. `seccomp` maps a filter's name (`default`) to its bytes. Raises `RunnerError` (profile, host)."""
        assert self._docker is not None, "start() comes first"
        found = {}
        for name, profile in profiles.items():
            found[name] = compile_profile(profile, seccomp, self.facts, self._image(profile.image, self._docker))
        return found

    def _image(self, wanted: str, docker: Docker) -> str:
        """The id of a profile's image. "" where it is `WEB` and nobody made that: its profile is refused when it is
        asked for, and the others serve. Raises `RunnerError` (host) for any other missing one, and one that moved."""
        if wanted == WEB.repository:
            return self._pins.resolve(docker, tag(WEB), WEB) if docker.image(tag(WEB)) else ""
        ours = wanted in ("", TOOLS.repository)
        return self._pins.resolve(docker, (self._config.sandboxes.image or tag()) if ours else wanted)

    def adopt(self, compiled: Compiled) -> None:
        """Make sandboxes from this catalogue from now on. Those that live keep theirs."""
        self._compiled = dict(compiled)

    def use(self, profiles: Mapping[str, TaskProfile], seccomp: Mapping[str, bytes]) -> None:
        """`adopt(compile(…))`, for start-up, when nothing else runs in the loop."""
        self.adopt(self.compile(profiles, seccomp))

    async def create(self, plan: SandboxPlan) -> tuple[Measured, int]:
        """A measured sandbox and the descriptor of its control connection, which the caller now owns.

        Raises `RunnerError` (unavailable, host, busy); then nothing of it is left, but the disk that the task had."""
        compiled = self._check(plan)
        done = self._making[plan.sandbox] = asyncio.Event()
        try:
            assert self._workshop is not None
            container = Container(self._workshop, plan.sandbox, compiled, plan.task)
            async with self._creating:  # whatever gate asks for: dockerd is everybody's
                await container.make()
            assert container.measured is not None
            self._live[plan.sandbox] = container
            asyncio.get_running_loop().add_reader(container.pidfd, self._pid_one_ended, plan.sandbox)
        finally:
            del self._making[plan.sandbox]
            done.set()
        if self._closed:
            await self.destroy(plan.sandbox, "engine is closing")
            raise refuse("unavailable", "engine is closing")
        return container.measured, container.take_control()

    def _check(self, plan: SandboxPlan) -> CompiledProfile:
        if self._closed or self._workshop is None:
            raise refuse("unavailable", "engine is not serving")
        if not _ID.fullmatch(plan.sandbox):
            raise refuse("internal", f"sandbox id {plan.sandbox!r} is not of small letters, digits and dashes")
        if plan.sandbox in self._live or plan.sandbox in self._making or plan.sandbox in self._ending:
            raise refuse("internal", f"sandbox {plan.sandbox} exists already")
        compiled = self._compiled.get(plan.profile)
        if compiled is None:
            raise refuse(
                "unavailable", f"there is no task profile {plan.profile!r}", allowed=", ".join(sorted(self._compiled))
            )
        if compiled.profile.digest != plan.profile_digest:
            raise refuse(
                "unavailable",
                f"profile {plan.profile!r} is not the one that was planned with: its digest differs",
                next_step="the catalogue was swapped meanwhile; retry",
            )
        if not compiled.image:
            raise refuse(
                "unavailable",
                f"the image of profile {plan.profile!r}, {tag(WEB)}, is not on this host",
                next_step=f"{WEB.remedy}; then reload the daemon",
            )
        if not _on_disk(compiled) and self._disks.has(plan.task):
            raise refuse(
                "unavailable",
                f"the task has a disk, and profile {plan.profile!r} has none any more",
                next_step="end the task and begin another, or give the profile its disk back",
            )
        maximum = self._config.sandboxes.maximum
        if len(self._live) + len(self._making) >= maximum:
            raise refuse("busy", f"{maximum} sandboxes live already", next_step="end tasks, or raise sandboxes.maximum")
        return compiled

    async def destroy(self, sandbox: str, reason: str) -> Spent | None:
        """Kill and remove one sandbox; one that is gone is no error. Returns when no process and no container is left:
        what the sandbox used, None when its cgroup was gone before it was asked.

        Raises `RunnerError` (unavailable) when Docker will not remove the container; its processes are gone even so."""
        making = self._making.get(sandbox)
        if making is not None:
            await making.wait()
        if sandbox in self._live:
            log.info("destroying sandbox %s: %s", sandbox, reason)
            self._begin_end(sandbox, Container.unmake)
        ending = self._ending.get(sandbox)
        if ending is not None:
            await asyncio.shield(ending)
        return self._spent.pop(sandbox, None)

    async def snapshot(self, sandbox: str, *, full: bool) -> Taken:
        """What lies in the sandbox's workspace now; with `full` false, only what changed is read anew.

        Raises `RunnerError`: unavailable when the sandbox is gone, not_supported beyond the bounds."""
        container = self._live.get(sandbox)
        if container is None or container.measured is None:
            raise refuse("unavailable", "the sandbox is gone")
        limits = self._config.limits
        bounds = Bounds(files=limits.snapshot_files, size=limits.snapshot_bytes, seconds=limits.snapshot_s)
        known, pid = None if full else container.known, container.measured.pid
        folder = open_workspace(pid, container.pidfd)

        def read() -> Taken:
            try:
                return take(folder, known, bounds)
            finally:
                os.close(folder)

        return await anyio.to_thread.run_sync(read, limiter=self._readers)

    async def listen(self, sandbox: str, port: int) -> int:
        """The descriptor of a listener on 127.0.0.1:`port` inside the sandbox, which the caller now owns.

        Raises `RunnerError` (unavailable) when the sandbox is gone or the port is held."""
        container = self._live.get(sandbox)
        if container is None or container.measured is None:
            raise refuse("unavailable", "the sandbox is gone")
        pid, pidfd = container.measured.pid, container.pidfd
        return (await anyio.to_thread.run_sync(listen, pid, pidfd, port)).detach()

    def stop_archiving(self) -> None:
        """Do not let an image that is being saved hold up the end."""
        self._archives.stop()

    async def archive(self, image: str) -> Archived:
        """The image's archive and packages, made when there are none. Total: what fails is its `problem`."""
        docker = self._docker
        assert docker is not None
        return await anyio.to_thread.run_sync(lambda: self._archives.archive(docker, image), limiter=self._archivers)

    async def archives(self) -> list[Standing]:
        """The archives that stand. Raises `RunnerError` (unavailable) when the disk does not tell."""
        return await anyio.to_thread.run_sync(self._archives.standing, limiter=self._archivers)

    async def remove_archive(self, digest: str) -> None:
        """Remove an archive; one that is not there is no error. Raises as `archives`."""
        await anyio.to_thread.run_sync(lambda: self._archives.remove(digest), limiter=self._archivers)

    async def keep_disks(self, tasks: Collection[str]) -> tuple[str, ...]:
        """Of what an earlier run left, keep the disks of `tasks` and remove the others. Returns who has a disk."""
        assert self._workshop is not None
        return await self._workshop.blocking(lambda: self._disks.keep(tasks))

    async def remove_disk(self, task: str) -> None:
        """The task is over: delete its disk, once no container has it. One that is not there is no error."""
        assert self._workshop is not None
        turn = self._workshop.disk_users.setdefault(task, asyncio.Lock())
        async with turn:
            await self._workshop.blocking(lambda: self._disks.remove(task))

    def _begin_end(self, sandbox: str, how: Callable[[Container], Coroutine[Any, Any, None]]) -> None:
        """From here on the sandbox is nobody's; exactly one task takes it apart."""
        container = self._live.pop(sandbox)
        self._spent[sandbox] = container.spent()  # while its cgroup is there
        asyncio.get_running_loop().remove_reader(container.pidfd)
        task = asyncio.get_running_loop().create_task(how(container))
        self._ending[sandbox] = task
        task.add_done_callback(lambda done: self._ended(sandbox, done))

    def _ended(self, sandbox: str, task: asyncio.Task[None]) -> None:
        del self._ending[sandbox]
        if not task.cancelled() and task.exception() is not None:
            log.error("sandbox %s: its container is left behind: %s", sandbox, task.exception())

    def _pid_one_ended(self, sandbox: str) -> None:
        """PID 1 ended without being told to. The cgroup still exists for a moment: read it before anything else."""
        oom_kills = self._live[sandbox].oom_kills()
        self._begin_end(sandbox, lambda container: self._unmake_ended(container, sandbox, oom_kills))

    async def _unmake_ended(self, container: Container, sandbox: str, oom_kills: int) -> None:
        code, seen = await container.ended()
        # A clean exit means that gate closed the connection; an earlier call's memory kill has no part in it.
        oom = (oom_kills > 0 or seen) and code != 0
        try:
            await container.unmake()
        finally:
            self._on_end(sandbox, _reason(code, oom), oom)

    async def close(self) -> None:
        """Destroy every sandbox and disconnect. Further requests are refused."""
        self._closed = True
        while self._making:
            await next(iter(self._making.values())).wait()
        for sandbox in tuple(self._live):
            self._begin_end(sandbox, Container.unmake)
        for result in await asyncio.gather(*self._ending.values(), return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, RunnerError):
                raise result
        if self._orphans is not None:
            await self._orphans.close()
        if self._docker is not None:
            await anyio.to_thread.run_sync(self._docker.close)


def _on_disk(compiled: CompiledProfile) -> bool:
    return compiled.profile.workspace_kind == "disk"


def _reason(code: int, oom: bool) -> str:
    if oom:
        return "the kernel killed it for memory"
    if code == _SIGKILLED:
        return "PID 1 was killed"
    return f"PID 1 ended with {code}" if code else "PID 1 ended when its control connection closed"
