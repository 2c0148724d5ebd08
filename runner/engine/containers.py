"""One container, from nothing to measured and back to nothing.

    lease a uid (and the task's disk) → folder and socket → create → start → accept PID 1 → measure → (in use) → kill
    → remove → give back

Whatever fails on the way, everything made before it is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread

from runner.engine import measure
from runner.engine.cgroup import CgroupTree
from runner.engine.control import ControlSocket, remove_folder
from runner.engine.disk import Disk, Disks
from runner.engine.disk_found import DiskPromise
from runner.engine.docker import Docker
from runner.engine.host import CompiledProfile
from runner.engine.loop import Loop
from runner.engine.snapshot import Known
from runner.engine.template import create_body
from runner.engine.uids import UidLease, UidRange
from runner.errors import RunnerError, refuse
from runner.model import Measured, Spent

T = TypeVar("T")

log = logging.getLogger(__name__)

_SIGKILLED = 137
_OOM_NEWS_S = 0.2  # Docker hears of a memory kill and of the end on separate ways; one may come a moment later
_KILL_S = 5.0  # a killed PID 1 takes its whole namespace along in milliseconds; past this Docker is asked instead
_REMOVE_TRIES = 3


class Workshop:
    """What every container of this engine is made with."""

    def __init__(
        self,
        *,
        docker: Docker,
        tree: CgroupTree,
        uids: UidRange,
        disks: Disks,
        folder: Path,
        instance: str,
        start_s: float,
    ) -> None:
        self.docker = docker
        self.tree = tree
        self.uids = uids
        self.disks = disks
        self.folder = folder
        self.instance = instance
        self.start_s = start_s
        self.known: set[str] = set()  # sandboxes that a `Container` accounts for; whatever else is there is an orphan
        self.on_left: Callable[[], None] = lambda: None  # told when a container could not be removed
        # task -> held while a container of it has its disk, or while the disk is removed
        self.disk_users: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = anyio.CapacityLimiter(32)  # Docker calls at once; more only queue inside dockerd

    async def blocking(self, call: Callable[[], T]) -> T:
        """Run a blocking call in a thread. Not abandoned on cancellation: its effect must be known."""
        return await anyio.to_thread.run_sync(call, limiter=self._threads)


class Container:
    """A container and everything held for it on the host."""

    def __init__(self, workshop: Workshop, sandbox: str, compiled: CompiledProfile, task: str = "") -> None:
        """`task` is whose disk it gets, when the profile has disks."""
        self.sandbox = sandbox
        self.compiled = compiled
        self._task = task
        self._turn: asyncio.Lock | None = None
        self._disk: Disk | None = None
        self._loop: Loop | None = None
        self.measured: Measured | None = None
        self.known: Known = {}  # what its workspace held at the last snapshot
        self._workshop = workshop
        self._lease: UidLease | None = None
        self._socket: ControlSocket | None = None
        self._id = ""
        self._pidfd = -1
        self._control = -1
        self._membership: dict[str, str] = {}

    @property
    def pidfd(self) -> int:
        """Readable when PID 1 has ended, and with it every process of the sandbox."""
        return self._pidfd

    def take_control(self) -> int:
        """The descriptor of the control connection, once. No copy stays: PID 1 must see its end when gate closes it."""
        descriptor, self._control = self._control, -1
        assert descriptor >= 0
        return descriptor

    def oom_kills(self) -> int:
        """Processes of it that the kernel killed for memory so far; 0 when its cgroup is gone."""
        return self._workshop.tree.oom_kills(self._membership)

    def spent(self) -> Spent | None:
        """What it used so far, by its cgroup; None when that is gone."""
        return self._workshop.tree.spent(self._membership)

    async def make(self) -> None:
        """Make it and measure it. Raises `RunnerError`; then nothing of it is left."""
        self._workshop.known.add(self.sandbox)
        try:
            with anyio.fail_after(self._workshop.start_s):
                await self._make()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.unmake()
            if isinstance(error, TimeoutError):
                raise refuse(
                    "unavailable", f"the sandbox did not connect within {self._workshop.start_s:g} s of its start"
                ) from error
            raise

    async def _make(self) -> None:
        shop = self._workshop
        if self.compiled.profile.workspace_kind == "disk":
            await self._take_disk()
        else:
            self._lease = await shop.blocking(shop.uids.lease)
        assert self._lease is not None
        uid = self._lease.uid
        folder = shop.folder / self.sandbox
        self._socket = ControlSocket(folder, uid)
        body = create_body(
            self.compiled.profile,
            image=self.compiled.image,
            seccomp=self.compiled.seccomp,
            uid=uid,
            folder=str(folder),
            instance=shop.instance,
            sandbox=self.sandbox,
            lacks=self.compiled.lacks,
            disk=self._loop.path if self._loop is not None else "",
        )
        self._id = await shop.blocking(lambda: shop.docker.create(body, f"toolrunner-{shop.instance}-{self.sandbox}"))
        await shop.blocking(lambda: shop.docker.start(self._id))
        state = await shop.blocking(lambda: shop.docker.state(self._id))
        if not state.running or state.pid <= 0:
            raise self._died(state.exit_code)
        try:
            self._pidfd = os.pidfd_open(state.pid)
        except ProcessLookupError:
            raise self._died(state.exit_code) from None
        self._control = await self._connected(state.pid, uid)
        try:
            await self._settle_disk(state.pid)
            found = await shop.blocking(lambda: measure.read(state.pid, shop.tree, lacks=self.compiled.lacks))
            self._membership = found.membership
        except OSError as error:
            raise self._died(-1) from error
        promised = measure.Expected(
            uid=uid, ceilings=self.compiled.profile.ceilings, lacks=self.compiled.lacks, disk=self._promise()
        )
        wrong = measure.differences(found, promised)
        if state.image != self.compiled.image:
            wrong.append(f"the image is {state.image}, not {self.compiled.image}")
        if state.runtime != self.compiled.runtime:
            wrong.append(f"the runtime is {state.runtime}, not {self.compiled.runtime}")
        if wrong:
            raise refuse(
                "host",
                f"the sandbox is not what profile {self.compiled.profile.name!r} promises: {'; '.join(wrong)}",
                next_step="run `runner doctor`; the sandbox was destroyed and nothing ran in it",
            )
        self.measured = measure.measured(
            found, pid=state.pid, image=state.image, runtime=state.runtime, accepted=self.compiled.lacks
        )
        if self._disk is not None:
            self._disk.fresh = False

    async def _take_disk(self) -> None:
        """The task's disk, once the container that had it before is gone."""
        shop = self._workshop
        turn = shop.disk_users.setdefault(self._task, asyncio.Lock())
        await turn.acquire()
        self._turn = turn
        ceilings = self.compiled.profile.ceilings
        disk, self._lease = await shop.blocking(lambda: shop.disks.open(self._task, ceilings))
        self._disk = disk
        self._loop = await shop.blocking(disk.attach)

    async def _settle_disk(self, pid: int) -> None:
        """From here on the container's mount alone holds the loop device."""
        if self._loop is not None:
            self._loop.close()
        disk = self._disk
        if disk is not None:
            await self._workshop.blocking(lambda: disk.settle(pid))

    def _promise(self) -> DiskPromise | None:
        disk = self._disk
        return DiskPromise(image=str(disk.image), size=disk.size, inodes=disk.inodes) if disk is not None else None

    async def _connected(self, pid: int, uid: int) -> int:
        """PID 1's connection, or a refusal as soon as it ends without one."""
        assert self._socket is not None
        accepted = -1
        refused: RunnerError | None = None

        async def ended(scope: anyio.CancelScope) -> None:
            await anyio.wait_readable(self._pidfd)
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(ended, group.cancel_scope)
            try:
                accepted = await self._socket.accept(pid, uid)
            except RunnerError as error:
                refused = error  # raised below: in here the group would wrap it
            group.cancel_scope.cancel()
        if refused is not None:
            raise refused
        if accepted < 0:
            state = await self._workshop.blocking(lambda: self._workshop.docker.state(self._id))
            raise self._died(state.exit_code)
        return accepted

    def _died(self, exit_code: int) -> Exception:
        return refuse(
            "unavailable",
            f"PID 1 of the sandbox ended before it connected (exit {exit_code}); the image may not hold the guest",
            next_step="rebuild it with `runner image build`; then `runner doctor`",
        )

    async def ended(self) -> tuple[int, bool]:
        """PID 1's exit code, after it ended (-1 when Docker does not know any more), and whether Docker saw the kernel
        kill for memory: the cgroup that tells it, too, may be gone before it is read."""
        shop = self._workshop
        try:
            code = await shop.blocking(lambda: shop.docker.wait(self._id, 10.0))
            state = await shop.blocking(lambda: shop.docker.state(self._id))
            if code == _SIGKILLED and not state.oom:
                await anyio.sleep(_OOM_NEWS_S)
                state = await shop.blocking(lambda: shop.docker.state(self._id))
            return code, state.oom
        except Exception as error:  # the container may have been removed behind our back: that is no reason to stop
            log.warning("sandbox %s: exit code unknown: %s", self.sandbox, error)
            return -1, False

    async def unmake(self) -> None:
        """Kill and remove it and give back what it held. Any number of times; raises when Docker will not remove it."""
        self._close_control()
        try:
            await self._kill()
            await self._remove()
        except BaseException:
            self._workshop.on_left()
            raise
        finally:
            self._workshop.known.discard(self.sandbox)
            await self._give_back()

    async def _give_back(self) -> None:
        if self._loop is not None:
            self._loop.close()
        disk, self._disk = self._disk, None
        if disk is not None and disk.fresh:  # nothing ever ran with it
            await self._workshop.blocking(lambda: self._workshop.disks.remove(disk.task))
        # The uid goes back only now: the next lease looks for processes that still run as it.
        if self._lease is not None:
            self._lease.release()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.release()

    def _close_control(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    async def _kill(self) -> None:
        """End PID 1 without Docker's help; the kernel then ends everything in its PID namespace before PID 1 is."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with anyio.move_on_after(_KILL_S):
            await anyio.wait_readable(self._pidfd)
        descriptor, self._pidfd = self._pidfd, -1
        os.close(descriptor)

    async def _remove(self) -> None:
        if self._id:
            for attempt in range(1, _REMOVE_TRIES + 1):
                try:
                    await self._workshop.blocking(lambda: self._workshop.docker.remove(self._id))
                    break
                except Exception:
                    if attempt == _REMOVE_TRIES:
                        raise
                    await asyncio.sleep(0.2 * attempt)
        if self._socket is not None:
            remove_folder(self._socket.folder)
