"""Messages between gate and recorder. Order on the connection is order in the ledger.

Content comes before the entry that names it, or with it, so that every digest in an entry resolves. The cheap way,
one message and one system call at each end, is to hand the content over with its entry:

    await recorder.append(entry, contents=(salted_arguments, plan))
    await recorder.seal(call, outcome, contents=(salted_stdout,), sync=False)

`contents` are whole (salt first, where content is salted), each of at most `WITH_ENTRY` bytes. When the entry is
refused, they are forgotten with it. Larger content, and content whose end is not known, goes ahead of its entry in
pieces (`StoreOpen`, `StoreWrite`, `StoreClose` or `StoreEnd`); what belongs to no single entry, such as a catalogue, by
`store`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from runner.errors import Refusal, RunnerError
from runner.model import Receipt

WITH_ENTRY = 64 << 10  # bytes; more is better sent while it is made than held back for its entry

_AT_ONCE = 4096  # digests of one question


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Append(Message, frozen=True, tag="append"):
    """Append one entry, given as its canonical JSON (`runner.ledger.entry`), and keep the `contents` that it names,
    each as `Store` would. With `sync`, answer after the fsync."""

    number: int
    entry: bytes
    sync: bool = False
    contents: tuple[bytes, ...] = ()


class Store(Message, frozen=True, tag="store"):
    """Keep small content. Its name is the SHA-256 of `data`, which starts with the salt where content is salted."""

    data: bytes


class StoreOpen(Message, frozen=True, tag="store_open"):
    """Begin content that comes in pieces; `salt` is its first bytes."""

    stream: int
    salt: bytes = b""


class StoreWrite(Message, frozen=True, tag="store_write"):
    """The next piece."""

    stream: int
    data: bytes


class StoreClose(Message, frozen=True, tag="store_close"):
    """The end of it: the name must be `digest`, or the recorder stops (fatal). With `drop`, forget it instead."""

    stream: int
    digest: str = ""
    drop: bool = False


class StoreEnd(Message, frozen=True, tag="store_end"):
    """The end of content that is too long to be digested twice: answered by `Stored`, which has its name."""

    number: int
    stream: int


class Since(Message, frozen=True, tag="since"):
    """Send every entry that changes state (tokens, revocations, tasks, outcomes) from `position` on."""

    number: int
    position: int


class Select(Message, frozen=True, tag="select"):
    """Find what may be pruned: content of ended calls that fit, as `runner.ledger.entry.Criteria` has it, that no hold
    and no other call needs. Answered by `Selected`. With `keep`, the list of it is kept for a `prune` entry.

    `images` are ids; `Selected` has those that no call names whose content is kept, this selection taken as gone."""

    number: int
    before: str = ""
    larger: int = 0
    raw: bool = False
    tasks: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    keep: bool = False


class Remove(Message, frozen=True, tag="remove"):
    """Remove the content in this list, which a `prune` entry names. Answered by `Removed` when it is gone."""

    number: int
    pruned: str


class FindRaw(Message, frozen=True, tag="find_raw"):
    """Find the outcome of this call, whose raw output is to be opened. Answered by `FoundRaw`."""

    number: int
    call: str


class ReadRaw(Message, frozen=True, tag="read_raw"):
    """The next piece of raw output, encrypted as it lies, salt first. Answered by `RawPiece`, and only after a
    `raw_open` entry of this run that names `digest` is on disk."""

    number: int
    digest: str
    offset: int


class Ask(Message, frozen=True, tag="ask"):
    """Which of this content was pruned? Answered by `Gone`."""

    number: int
    digests: tuple[str, ...]


class Stored(Message, frozen=True, tag="stored"):
    """The content is kept under this name; durable with the next entry."""

    number: int
    digest: str


class Gone(Message, frozen=True, tag="gone"):
    """These were: a `prune` entry says so."""

    number: int
    digests: tuple[str, ...]


class Selected(Message, frozen=True, tag="selected"):
    """The list's name, and what is in it. `more` when there is more than one list may hold."""

    number: int
    pruned: str
    pieces: int
    size: int
    held: int
    more: bool = False
    images: tuple[str, ...] = ()


class Removed(Message, frozen=True, tag="removed"):
    """It is gone from the disk."""

    number: int


class FoundRaw(Message, frozen=True, tag="found_raw"):
    """Where the call's outcome lies, and its canonical JSON; -1 when it has none."""

    number: int
    position: int
    outcome: bytes = b""


class RawPiece(Message, frozen=True, tag="raw_piece"):
    """At most 1 MiB from the asked offset on; empty at the end."""

    number: int
    data: bytes


class Opened(Message, frozen=True, tag="opened"):
    """First message to gate: how the ledger was found. `newest_call` is the greatest call id in it."""

    size: int
    previous: Literal["none", "clean", "dead"]
    interrupted: int
    newest_call: str


class Appended(Message, frozen=True, tag="appended"):
    """The entry lies at `position`; its digest is the SHA-256 of its bytes. `durable` when it is on disk."""

    number: int
    position: int
    digest: str
    durable: bool = False


class Entries(Message, frozen=True, tag="entries"):
    """One batch of the answer to `Since`: (position, canonical JSON). `last` ends it; `next` is the ledger's size."""

    number: int
    entries: tuple[tuple[int, bytes], ...]
    last: bool
    next: int


class DurableTo(Message, frozen=True, tag="durable_to"):
    """Every entry below `size` is on disk, with the content it names."""

    size: int


class Room(Message, frozen=True, tag="room"):
    """Whether the reserve of disk is there. Without it the disk is full, and gate takes no new call: what is left is
    for revocations, kills and the ends of calls that run. Said when it changes; until then, it is there."""

    reserved: bool


class Refused(Message, frozen=True, tag="refused"):
    """The request was refused and nothing was written: an outcome without a plan, a second outcome, a bad entry."""

    number: int
    refusal: Refusal


FromGate = (
    Append | Store | StoreOpen | StoreWrite | StoreClose | StoreEnd | Since | Select | Remove | Ask | FindRaw | ReadRaw
)
FromRecorder = (
    Opened | Appended | Entries | DurableTo | Room | Refused | Stored | Selected | Removed | Gone | FoundRaw | RawPiece
)


class Requester(Protocol):
    """What a typed caller needs of a channel."""

    def number(self) -> int:
        """A fresh request number."""

    async def send(self, message: Message) -> None:
        """Send without an answer; waits while the channel is full."""

    async def request(self, message: Message) -> tuple[FromRecorder, int | None]:
        """Send; return the answer with that number."""


class RecorderCaller:
    """Gate's typed view of the recorder. Any failure here is fatal for gate: no call runs unrecorded."""

    def __init__(self, channel: Requester) -> None:
        self._channel = channel

    async def append(self, entry: bytes, *, sync: bool = False, contents: tuple[bytes, ...] = ()) -> Appended:
        """Append one canonical entry, and keep the `contents` that it names with it. Raises `RunnerError` (ledger)
        with the recorder's refusal: then nothing was written."""
        answer, _ = await self._channel.request(
            Append(number=self._channel.number(), entry=entry, sync=sync, contents=contents)
        )
        if isinstance(answer, Refused):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, Appended)
        return answer

    async def seal(self, call: str, entry: bytes, *, sync: bool, contents: tuple[bytes, ...] = ()) -> Receipt:
        """Append a call's outcome, with its output, and return its receipt."""
        sealed = await self.append(entry, sync=sync, contents=contents)
        return Receipt(call=call, digest=sealed.digest, position=sealed.position, durable=sealed.durable)

    async def store(self, data: bytes) -> None:
        """Keep content; a failure comes with the next append."""
        await self._channel.send(Store(data=data))

    async def send(self, message: StoreOpen | StoreWrite | StoreClose) -> None:
        """Content in pieces."""
        await self._channel.send(message)

    async def end(self, stream: int) -> str:
        """The end of content in pieces: its name, the SHA-256 that the recorder has of it."""
        answer, _ = await self._channel.request(StoreEnd(number=self._channel.number(), stream=stream))
        assert isinstance(answer, Stored)
        return answer.digest

    async def select(
        self,
        *,
        before: str,
        larger: int,
        raw: bool,
        tasks: tuple[str, ...],
        agents: tuple[str, ...],
        tools: tuple[str, ...],
        images: tuple[str, ...],
        keep: bool,
    ) -> Selected:
        """What may be pruned. Raises `RunnerError` (busy) while another selection or removal is under way."""
        asked = Select(
            number=self._channel.number(),
            before=before,
            larger=larger,
            raw=raw,
            tasks=tasks,
            agents=agents,
            tools=tools,
            images=images,
            keep=keep,
        )
        answer, _ = await self._channel.request(asked)
        if isinstance(answer, Refused):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, Selected)
        return answer

    async def remove(self, pruned: str) -> None:
        """Remove what a recorded `prune` entry names. Raises `RunnerError` (ledger) when none does, (busy)."""
        answer, _ = await self._channel.request(Remove(number=self._channel.number(), pruned=pruned))
        if isinstance(answer, Refused):
            raise RunnerError(answer.refusal)

    async def pruned(self, digests: Iterable[str]) -> set[str]:
        """Those of `digests` that were pruned."""
        gone: set[str] = set()
        asked = sorted(digests)
        for start in range(0, len(asked), _AT_ONCE):
            batch = tuple(asked[start : start + _AT_ONCE])
            answer, _ = await self._channel.request(Ask(number=self._channel.number(), digests=batch))
            assert isinstance(answer, Gone)
            gone.update(answer.digests)
        return gone

    async def find_raw(self, call: str) -> FoundRaw:
        """The outcome of a call. Raises `RunnerError` (busy) while something else is looked for or removed."""
        answer, _ = await self._channel.request(FindRaw(number=self._channel.number(), call=call))
        if isinstance(answer, Refused):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, FoundRaw)
        return answer

    async def read_raw(self, digest: str, offset: int) -> bytes:
        """A piece of opened raw output. Raises `RunnerError` (ledger, unknown_call)."""
        answer, _ = await self._channel.request(ReadRaw(number=self._channel.number(), digest=digest, offset=offset))
        if isinstance(answer, Refused):
            raise RunnerError(answer.refusal)
        assert isinstance(answer, RawPiece)
        return answer.data

    async def since(self, position: int) -> tuple[list[tuple[int, bytes]], int]:
        """Every state-changing entry from `position` on, and the ledger's size."""
        found: list[tuple[int, bytes]] = []
        number = self._channel.number()
        while True:
            answer, _ = await self._channel.request(Since(number=number, position=position))
            if isinstance(answer, Refused):
                raise RunnerError(answer.refusal)
            assert isinstance(answer, Entries)
            found.extend(answer.entries)
            if answer.last:
                return found, answer.next
            position = answer.next
