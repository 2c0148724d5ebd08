"""Messages between gate and engine. Gate names a profile by digest; it can express no mount, user, image or flag."""

from __future__ import annotations

from typing import Protocol

import msgspec

from runner.errors import Refusal, RunnerError
from runner.model import Measured, SandboxPlan, Spent


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Create(Message, frozen=True, tag="create"):
    """Make one sandbox. Answered by `Created` (with the control connection's descriptor) or `Failed`."""

    number: int
    plan: SandboxPlan


class Destroy(Message, frozen=True, tag="destroy"):
    """Kill and remove one sandbox. Answered by `Destroyed`, also when it was gone already."""

    number: int
    sandbox: str
    reason: str


class KeepDisks(Message, frozen=True, tag="keep_disks"):
    """First request of a gate: the tasks that live. Disks of others, left by an earlier run, are removed. Answered by
    `Kept`."""

    number: int
    tasks: tuple[str, ...]


class RemoveDisk(Message, frozen=True, tag="remove_disk"):
    """The task is over: delete its disk. Answered by `Done`, also when there is none."""

    number: int
    task: str


class Snapshot(Message, frozen=True, tag="snapshot"):
    """Read the workspace of a sandbox: every file, or with `full` false those that changed since the last time.
    Answered by `Snapped`."""

    number: int
    sandbox: str
    full: bool = False


class Snapped(Message, frozen=True, tag="snapped"):
    """The lines of a manifest (`runner/ledger/tree.py`), without its header. `read` files were hashed anew."""

    number: int
    lines: bytes
    files: int
    size: int  # bytes of all files
    read: int


class Listen(Message, frozen=True, tag="listen"):
    """Listen on 127.0.0.1:`port` inside the network namespace of a sandbox. Answered by `Listening`, which carries the
    listener's descriptor."""

    number: int
    sandbox: str
    port: int


class Listening(Message, frozen=True, tag="listening"):
    """The listener is there; the message carries one descriptor."""

    number: int


class Identify(Message, frozen=True, tag="identify"):
    """Say what process has this pid now: gate's user may not look. Answered by `Identified`."""

    number: int
    pid: int


class Identified(Message, frozen=True, tag="identified"):
    """What /proc tells of it: start in clock ticks after boot, control group, program and its SHA-256; `problem` says
    why something is not there."""

    number: int
    start: int = 0
    cgroup: str = ""
    executable: str = ""
    digest: str = ""
    problem: str = ""


class ArchiveImage(Message, frozen=True, tag="archive_image"):
    """Save this image once, and list its packages. Answered by `ImageArchived`, which may take long."""

    number: int
    image: str


class ImageArchived(Message, frozen=True, tag="image_archived"):
    """The archive's SHA-256 and size, and the packages as CycloneDX; `problem` says why something is not there."""

    number: int
    digest: str = ""
    size: int = 0
    sbom: bytes = b""
    packages: int = 0
    problem: str = ""


class ListArchives(Message, frozen=True, tag="list_archives"):
    """Say which archives there are. Answered by `Archives`."""

    number: int


class Archive(msgspec.Struct, frozen=True):
    """An archive that stands: its SHA-256 and size. `image` is "" when there is no record of which it is of."""

    image: str
    digest: str
    size: int


class Archives(Message, frozen=True, tag="archives"):
    """Every archive of an image, by image."""

    number: int
    archives: tuple[Archive, ...]


class RemoveArchive(Message, frozen=True, tag="remove_archive"):
    """Remove the archive of this SHA-256. Answered by `Done`, also when there is none."""

    number: int
    digest: str


class Describe(Message, frozen=True, tag="describe"):
    """Say what sandboxes are made with. Answered by `Described`."""

    number: int


class Described(Message, frozen=True, tag="described"):
    """The container engine and its host, by their own word."""

    number: int
    engine: str
    runtime: str
    runc: str
    cgroup_version: int
    landlock: int


class Kept(Message, frozen=True, tag="kept"):
    """The tasks that still have a disk."""

    number: int
    tasks: tuple[str, ...]


class Done(Message, frozen=True, tag="done"):
    """The request is carried out."""

    number: int


class Destroyed(Message, frozen=True, tag="destroyed"):
    """The sandbox is gone. `spent` is what its cgroup said it used, None when that was gone first."""

    number: int
    spent: Spent | None = None


class Created(Message, frozen=True, tag="created"):
    """The sandbox is measured and equal to its plan; the message carries one descriptor: its control connection."""

    number: int
    sandbox: str
    measured: Measured


class Failed(Message, frozen=True, tag="failed"):
    """The request failed; nothing of it is left."""

    number: int
    refusal: Refusal


class SandboxEnded(Message, frozen=True, tag="sandbox_ended"):
    """A sandbox ended by itself and has been removed. `oom` when the kernel killed it for memory."""

    sandbox: str
    reason: str
    oom: bool = False


FromGate = (
    Create
    | Destroy
    | KeepDisks
    | RemoveDisk
    | Snapshot
    | Listen
    | Identify
    | Describe
    | ArchiveImage
    | ListArchives
    | RemoveArchive
)
FromEngine = (
    Created
    | Destroyed
    | Done
    | Failed
    | Kept
    | SandboxEnded
    | Snapped
    | Listening
    | Identified
    | Described
    | ImageArchived
    | Archives
)


class Requester(Protocol):
    """What a typed caller needs of a channel: send a numbered request, wait for its answer and its descriptor."""

    def number(self) -> int:
        """A fresh request number."""

    async def request(self, message: Message) -> tuple[FromEngine, int | None]:
        """Send; return the answer with that number, and the descriptor it carried."""


class EngineCaller:
    """Gate's typed view of engine. Each method raises `RunnerError` with engine's own refusal."""

    def __init__(self, channel: Requester) -> None:
        self._channel = channel

    async def create(self, plan: SandboxPlan) -> tuple[Measured, int]:
        """A measured sandbox and the descriptor of its control connection, which the caller now owns."""
        answer, descriptor = await self._channel.request(Create(number=self._channel.number(), plan=plan))
        if isinstance(answer, Failed):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, Created)
        assert descriptor is not None
        return answer.measured, descriptor

    async def destroy(self, sandbox: str, reason: str) -> Spent | None:
        """Kill and remove; done when this returns: what the sandbox used, where it is known."""
        answer = await self._ask(Destroy(number=self._channel.number(), sandbox=sandbox, reason=reason))
        assert isinstance(answer, Destroyed)
        return answer.spent

    async def keep_disks(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Keep what these tasks have on disk, remove what others had. Returns those that have a disk."""
        answer = await self._ask(KeepDisks(number=self._channel.number(), tasks=tasks))
        assert isinstance(answer, Kept)
        return answer.tasks

    async def remove_disk(self, task: str) -> None:
        """The task is over, and so is its disk."""
        await self._ask(RemoveDisk(number=self._channel.number(), task=task))

    async def snapshot(self, sandbox: str, *, full: bool) -> Snapped:
        """The lines of the workspace's manifest."""
        answer = await self._ask(Snapshot(number=self._channel.number(), sandbox=sandbox, full=full))
        assert isinstance(answer, Snapped)
        return answer

    async def listen(self, sandbox: str, port: int) -> int:
        """A listener on loopback inside the sandbox, as a descriptor that the caller now owns."""
        wanted = Listen(number=self._channel.number(), sandbox=sandbox, port=port)
        answer, descriptor = await self._channel.request(wanted)
        if isinstance(answer, Failed):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, Listening)
        assert descriptor is not None
        return descriptor

    async def identify(self, pid: int) -> Identified:
        """What process has this pid now."""
        answer = await self._ask(Identify(number=self._channel.number(), pid=pid))
        assert isinstance(answer, Identified)
        return answer

    async def archive(self, image: str) -> ImageArchived:
        """The archive of an image, made when there is none."""
        answer = await self._ask(ArchiveImage(number=self._channel.number(), image=image))
        assert isinstance(answer, ImageArchived)
        return answer

    async def archives(self) -> tuple[Archive, ...]:
        """The archives that stand."""
        answer = await self._ask(ListArchives(number=self._channel.number()))
        assert isinstance(answer, Archives)
        return answer.archives

    async def remove_archive(self, digest: str) -> None:
        """Remove one; gone when this returns."""
        await self._ask(RemoveArchive(number=self._channel.number(), digest=digest))

    async def describe(self) -> Described:
        """What sandboxes are made with."""
        answer = await self._ask(Describe(number=self._channel.number()))
        assert isinstance(answer, Described)
        return answer

    async def _ask(self, message: Message) -> FromEngine:
        answer, _ = await self._channel.request(message)
        if isinstance(answer, Failed):
            raise RunnerError(answer.refusal)
        return answer
