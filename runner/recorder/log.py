"""The recorder: entries in, positions and signed checkpoints out.

One thread, blocking. A group is everything appended and stored between two commits. `durability.py` tells what each
write means when it fails; `journal.py` marks the points after which a crash is recoverable.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError, refuse
from runner.ledger import entry as entries
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.note import Signer
from runner.ledger.sequence import Sequence
from runner.ledger.tile import LOCK, PACKED, RESERVE
from runner.recorder import durability as disk
from runner.recorder.content import ContentStore
from runner.recorder.journal import Journal
from runner.recorder.prune import Retention, Selection
from runner.recorder.raw import Found, RawOutput
from runner.recorder.readback import STATE_KINDS, select
from runner.recorder.recovery import Recovered, nothing, recover
from runner.recorder.reserve import Reserve

PUBLISH_S = 1.0  # how often the checkpoint file is replaced at most; the tail holds every checkpoint anyway
UNKNOWN_END = (
    "the daemon died while this call was open: its tool may have run in part, in full, or not at all; nobody knows"
)


Job = Generator[None, None, Selection | Found | None]


class OpenCall(NamedTuple):
    """A call with a plan and no outcome. `position` is its entry's."""

    call: str
    task: str
    position: int


class Recorder:
    """The one writer of a ledger and its content. Made by `open`; after any failure it does nothing more."""

    def __init__(
        self,
        journal: Journal,
        sequence: Sequence,
        content: ContentStore,
        reserve: Reserve,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._reserve = reserve
        self._sequence = sequence
        self._content = content
        self._clock = clock
        self._published_at = float("-inf")
        self._failed: RunnerError | None = None
        self._lock = -1
        self._successor = ""  # the key that the newest rotation in the tail names
        self.retention = Retention(journal, content, content.folder, self.commit)
        self.raw = RawOutput(journal, content, content.folder, lambda: self.durable)
        life = sequence.state.life
        self.previous: Literal["none", "clean", "dead"] = (
            "none" if life == "none" else "clean" if life == "stopped" else "dead"
        )

    # --- life ------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        state_dir: Path,
        origin: str,
        key: Ed25519PrivateKey,
        now: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        *,
        reserve: int = 0,
        replacing: bool = False,
    ) -> Recorder:
        """Open the ledger under `state_dir`, made when there is none, and bring it in order; with `replacing`, only to
        finish a replacement of the key that was cut off. `reserve` bytes of disk are held back for when it is full.

        `origin` is `toolrunner/<instance>`, `now` gives RFC 3339 UTC times. Raises `RunnerError` (ledger) when another
        process writes it, when the disk fails, or when what was acknowledged is damaged."""
        folder, signer = state_dir / "ledger", Signer(origin, key)
        with disk.to_disk("opening the ledger"):
            disk.make_folder(folder)
            held = disk.lock(folder / LOCK)
            opened: Recorder | None = None
            try:
                found = recover(folder, signer.verifier)
                known = found or nothing()
                disk.make_folder(state_dir / "content")
                kept = Reserve(state_dir / "content" / RESERVE, reserve)
                content = ContentStore(state_dir / "content", kept.give_up)
                journal = Journal(folder, state_dir / "content", signer, known, kept.give_up)
                opened = cls(journal, known.sequence, content, kept, clock)
                opened._begin(found, now, signer.verifier.text, replacing=replacing)
            except BaseException:
                if opened:
                    opened._release()
                os.close(held)
                raise
        opened._lock = held
        return opened

    def _begin(self, found: Recovered | None, now: Callable[[], str], key: str, *, replacing: bool) -> None:
        """Create, or repair, or just go on; then the tail's file is open for appending."""
        if found is None:
            self._journal.create()
            self._published_at = self._clock()
            return
        self._successor = found.successor
        if found.successor not in ("", key):
            if not replacing:
                raise refuse("key", "this key was replaced by another", next_step=f"restore {found.successor}")
            self._journal.go_on()
            return
        if found.cut:
            self._admit(entries.Repair(time=now(), dropped=found.cut, size=self.size))
        if self.size > found.signed:
            self._journal.repair()
        else:
            self._journal.go_on()
        self.tidy()
        self.retention.resume()

    def close(self) -> None:
        """Commit, leave a folder that other tlog readers can read, and let go. After a failure: only let go."""
        try:
            if self._failed is None:
                self.commit()
                self.tidy(stopping=True)
        finally:
            self._release()

    def abandon(self) -> None:
        """Let go, and write nothing: what a crash does, in order."""
        self._release()

    def _release(self) -> None:
        self._content.close()
        self._journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._failed = self._failed or refuse("ledger", "the recorder is closed")

    @property
    def full(self) -> bool:
        """Whether the disk is full but for what was held back: only what ends or forbids something may be recorded."""
        return self._reserve.scarce

    def look_for_room(self) -> None:
        """Look at the disk; `full` may change. Raises `RunnerError` (ledger)."""
        with self._alive("keeping a reserve of disk"):
            self._reserve.look()

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        """Every write goes through here: a failure of the disk is the end, and is never tried again."""
        if self._failed is not None:
            raise self._failed
        try:
            with disk.to_disk(what):
                yield
        except BaseException as error:
            self._failed = error if isinstance(error, RunnerError) else refuse("ledger", f"{what} was cut off")
            raise

    # --- entries ---------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The position of the next entry."""
        return self._journal.size

    @property
    def durable(self) -> int:
        """Every entry below this is on disk, with its content and a signed checkpoint over it."""
        return self._journal.durable

    @property
    def newest_call(self) -> str:
        """The greatest call id so far, "" for none. New ones must be greater (see `ledger/sequence.py`)."""
        return self._sequence.state.newest

    def append(self, entry_bytes: bytes, contents: Iterable[bytes] = ()) -> tuple[int, str]:
        """Take one entry into the current group, and the content that it names: its position, and its digest.

        Raises `RunnerError` (ledger), and writes nothing, when the bytes are not canonical, of an unknown kind or
        version, or out of order. That refusal is not the end: the next entry may come."""
        if self._failed is not None:
            raise self._failed
        entry = entries.decode(entry_bytes)
        if isinstance(entry, entries.Rotate):
            raise refuse("ledger", "a rotation of the key is the recorder's own to write")
        if isinstance(entry, entries.Prune):
            self.retention.check(entry)
        if isinstance(entry, entries.RawOpen):
            self.raw.check(entry)
        self._sequence.check(entry)
        small: list[bytes] = []
        for data in contents:
            if len(data) <= PACKED:
                small.append(data)
            else:
                self._content.add(data)
        return self._take(entry_bytes, tuple(small), entry), entries.digest(entry_bytes)

    def _admit(self, entry: entries.AnyEntry) -> None:
        """Take an entry of the recorder's own."""
        self._sequence.check(entry)
        self._take(entries.encode(entry), (), entry)

    def _take(self, data: bytes, contents: tuple[bytes, ...], entry: entries.AnyEntry) -> int:
        position = self.size
        self._sequence.apply(position, entry)
        if isinstance(entry, entries.Prune | entries.Hold):
            self.retention.saw(entry)
        elif isinstance(entry, entries.RawOpen):
            self.raw.saw(position, entry)
        self._journal.take(data, contents, self._sequence.state)
        return position

    def commit(self) -> int:
        """Make the group durable: content, entries, and a signed checkpoint. Returns the size then on disk.

        Blocking. Raises `RunnerError` (ledger) when the disk fails: nothing of the group is acknowledged then."""
        self.tidy()
        with self._alive("writing the ledger"):
            self._content.commit()
            # A crash here leaves content that no entry names.
            if self.size > self.durable:
                self._journal.write_group()
        return self.durable

    def tidy(self, *, stopping: bool = False) -> None:
        """What is due after an acknowledgement: full bundles and their content become files, the checkpoint file
        follows.

        Call it when the acknowledgement is sent; otherwise the next `commit` does it first. On a full disk it waits:
        what is durable lies in the tail, for a stopped ledger too."""
        if self._reserve.scarce:
            return
        with self._alive("writing tiles"):
            try:
                self._tidy(stopping)
            except disk.NoRoom:
                if not self._reserve.give_up():
                    raise

    def _tidy(self, stopping: bool) -> None:
        journal = self._journal
        if journal.durable - journal.base >= TILE_WIDTH:
            journal.settle()
        if stopping:
            for data in journal.contents():
                self._content.store(data)  # so that the content folder is whole without the tail
            self._content.commit()
            journal.write_partials()
        self._content.tidy(stopping=stopping)
        waited = stopping or self._clock() - self._published_at >= PUBLISH_S
        if waited and journal.published != journal.durable:
            journal.publish()
            self._published_at = self._clock()

    def rotate(self, key: Ed25519PrivateKey, now: str, *, by: int, why: str = "") -> int:
        """Replace the key by `key`, from the next entry on: the position of the entry that says so.

        It is on disk on return, signed by both keys; the caller then puts the key's file in its place. Repeating it
        with the same key finishes what a crash cut off. Raises `RunnerError` (ledger)."""
        old, new = self._journal.signer, Signer(self._journal.signer.verifier.name, key)
        resumed = self._successor == new.verifier.text
        if not resumed:
            self.commit()
        with self._alive("replacing the key"):
            if not resumed:
                entry = entries.Rotate(time=now, old=old.verifier.text, new=new.verifier.text, by=by, why=why)
                self._admit(entry)
            self._journal.hand_over(new)
            self._successor = new.verifier.text
        return self.size - 1

    # --- content ---------------------------------------------------------------------------------------

    def store(self, data: bytes) -> str:
        """Keep content; it is durable before any entry of the same group. Returns its name."""
        with self._alive("storing content"):
            return self._content.store(data)

    def open_stream(self, stream: int, salt: bytes = b"") -> None:
        """Begin content that comes in pieces; `salt` is its first bytes."""
        with self._alive("storing content"):
            self._content.open_stream(stream, salt)

    def write_stream(self, stream: int, data: bytes) -> None:
        """The next piece of it."""
        with self._alive("storing content"):
            self._content.write_stream(stream, data)

    def close_stream(self, stream: int, digest: str = "", *, drop: bool = False) -> None:
        """The end of it. A name other than `digest` is the recorder's end too; `drop` forgets the content."""
        with self._alive("storing content"):
            self._content.close_stream(stream, digest, drop=drop)

    def end_stream(self, stream: int) -> str:
        """The end of it; its name."""
        with self._alive("storing content"):
            return self._content.end_stream(stream)

    def read_raw(self, digest: str, offset: int) -> bytes:
        """A piece of raw output that an entry on disk says was opened. Raises `RunnerError`; a refusal is not the
        end."""
        with self._reading():
            return self.raw.read(digest, offset)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What cannot be read back is its asker's to be told; nothing was lost by trying."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise refuse("ledger", f"the content store cannot be read: {error}") from error

    # --- retention, and finding ------------------------------------------------------------------------

    def work(self, job: Job) -> tuple[bool, Selection | Found | None]:
        """One step of a selection, a removal or a search: whether it is done, and what it found."""
        with self._alive("pruning"):
            try:
                next(job)
            except StopIteration as done:
                return True, done.value
        return False, None

    # --- reading back ----------------------------------------------------------------------------------

    def since(self, position: int, batch: int, kinds: frozenset[str] = STATE_KINDS) -> Iterator[tuple[int, bytes]]:
        """At most `batch` entries of `kinds` from `position` on, in order: (position, canonical bytes). Calls only
        when they were allowed. Fewer than `batch` means that the ledger's end (`size`) was reached."""
        with self._alive("reading the ledger"):
            # Whole, because an iterator that its reader drops half-way must not look like a failure here.
            found = list(islice(select(self._journal.entries(position), kinds), batch))
        return iter(found)

    def open_calls(self) -> list[OpenCall]:
        """Calls with a plan and no outcome, oldest first."""
        found = [OpenCall(call, task, position) for call, (position, task) in self._sequence.state.open.items()]
        return sorted(found, key=lambda opened: opened.position)

    def seal_interrupted(self, now: str) -> int:
        """Append an `interrupted` outcome for each open call: for the ones that a dead run left. Returns how many;
        they are durable after the next `commit`."""
        if self._failed is not None:
            raise self._failed
        sealed = self.open_calls()
        for opened in sealed:
            self._admit(
                entries.Outcome(time=now, call=opened.call, task=opened.task, outcome="interrupted", reason=UNKNOWN_END)
            )
        return len(sealed)
