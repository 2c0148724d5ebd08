"""Retention: which content may go, and its removal, in steps that fit between two groups of entries.

Order: select (nothing changes), keep the list, have gate append the `prune` entry that names it, and only when that is
durable remove. A failure ends the recorder, as any other (`durability.py`), and a crash at any point is harmless:

| # | write | a failure or crash here leaves |
| --- | --- | --- |
| 1 | pruned/L.due: .new, fsync, rename, fsync folder | a list that no entry names: the next start removes it |
| 2 | tail: the `prune` entry, in its group. **Decides** | the same, or an entry and a list that is due |
| 3 | tail without the content: .new, fsync, rename, fsync folder | a due list: the next start does 3 to 8 again |
| 4 | rows of small.db, 64 in a transaction | the same |
| 5 | large content: unlink, fsync folder | the same |
| 6 | a pack without it: .new, fsync, rename, fsync folder; unlink the old, fsync folder | the same; either, or both |
| 7 | SQLite's own log into the database, zeros over what was there | the same; also while a reader holds on |
| 8 | pruned/L.due to pruned/L: rename, fsync folder | a list that is due, or done; its content is gone |

Each but 4 and 7, which are SQLite's, is tested as the last that happened, as one that did not happen any more, and as
one that failed, with and without having been done (`test_prune.py`).

A pack is replaced: the new one is whole under its name before the old one goes, so that a reader finds one of them.
A pack that is damaged is left as it is: evidence of that is worth more than the room.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from runner.errors import refuse
from runner.ledger import entry as entries
from runner.ledger import pruned as lists
from runner.ledger.merkle import TILE_WIDTH
from runner.ledger.tile import DUE, PACKS, PRUNED, TEMPORARY, pack_contents, pack_path, pack_prefix, split_pack
from runner.recorder import durability as disk
from runner.recorder.content import ContentStore
from runner.recorder.images import NamedImages
from runner.recorder.journal import Journal

MAX_PIECES = 250_000  # of one list: some 50 MB of memory while it is made; what is left goes into the next
STEP = 64  # entries, or pieces, of one step: a fraction of the time that an entry may wait for its group
_FLUSHES, _PAUSE_S = 1000, 0.005  # tries, and the pause after each, until no reader holds on to what was removed
_NAMED = re.compile(rb'"digest":"([0-9a-f]{64})"')
# A quote inside a JSON string is escaped, so these bytes are never part of a text.
_CALL, _OUTCOME, _PRUNE = b'"kind":"call"', b'"kind":"outcome"', b'"kind":"prune"'
_REQUEST, _ENDED = b'"kind":"egress"', b'"kind":"egress_end"'
_HOLD, _RELEASE = b'"kind":"hold"', b'"kind":"release"'
_PACK = re.compile(r"(?P<number>[0-9]{3})-[0-9a-f]{32}")


class Selection(NamedTuple):
    """What may go: the list's name ("" when it was not kept), what is in it, and images that nobody needs then."""

    pruned: str
    pieces: int
    size: int
    held: int
    more: bool
    images: tuple[str, ...] = ()


class _Peek(msgspec.Struct):
    call: str = ""


_peek = msgspec.json.Decoder(_Peek)
Job = Generator[None, None, Selection | None]


class Retention:
    """Selects and removes, for one recorder. `commit` makes everything taken so far durable."""

    def __init__(self, journal: Journal, content: ContentStore, folder: Path, commit: Callable[[], int]) -> None:
        self._journal = journal
        self._content = content
        self._folder = folder
        self._lists = folder / PRUNED
        self._commit = commit
        self._bundles: dict[str, set[int]] = {}  # of lists that are due, as far as this run made them
        self._tombstones: set[str] = set()  # lists that an entry of this run names

    def check(self, entry: entries.Prune) -> None:
        """Raise `RunnerError` (ledger) for a tombstone of what was not selected, or not since the newest hold."""
        name = entry.pruned.digest
        if name not in self._bundles or name in self._tombstones:
            raise refuse("ledger", "a `prune` entry names no list that was selected since the newest hold")

    def saw(self, entry: entries.Prune | entries.Hold) -> None:
        """A tombstone was appended; or a hold, after which what was selected must be selected again."""
        if isinstance(entry, entries.Prune):
            self._tombstones.add(entry.pruned.digest)
        else:
            self._bundles = {name: found for name, found in self._bundles.items() if name in self._tombstones}

    # --- selecting -----------------------------------------------------------------------------------------

    def select(self, of: entries.Criteria, *, keep: bool, images: Collection[str] = ()) -> Job:
        """Find what fits, in calls that have ended, oldest first; with `keep`, keep the list. Of `images`, find those
        that no kept call names any more."""
        end = self._journal.size
        holds: dict[str, list[entries.Criteria]] = {}
        named = NamedImages(images)
        for run in self._walk(end):
            for _, data in run:
                named.meet(data)
                if _HOLD in data or _RELEASE in data:
                    _follow(holds, entries.decode(data))
            yield
        held = [each for of_name in holds.values() for each in of_name]
        choice = _Choice(of, held, self._earlier())
        for run in self._walk(end):
            for position, data in run:
                if not choice.full:
                    choice.look(position, data)
            yield
        more = choice.full
        for run in self._walk(end):  # the same content may be another call's too
            for _, data in run:
                choice.spare(data)
            yield
        yield from self._unname(named, held, choice, end)
        listed = lists.build(choice.found)
        name = ""
        if keep and listed:
            name = sha256(listed).hexdigest()
            disk.make_folder(self._lists)
            disk.replace(self._lists / (name + DUE), listed)
            self._bundles[name] = choice.bundles
        return Selection(
            name, len(choice.found), sum(choice.found.values()), choice.held, more, tuple(sorted(named.unnamed))
        )

    def _unname(
        self, named: NamedImages, holds: Sequence[entries.Criteria], choice: _Choice, end: int
    ) -> Iterator[None]:
        """Find which images no kept call names, up to the call that names the last of them."""
        for run in self._walk(end):
            if not named.unnamed:
                return
            for _, data in run:
                named.look(data, holds, choice.goes)
            yield

    def _walk(self, end: int) -> Iterator[list[tuple[int, bytes]]]:
        for start in range(0, end, TILE_WIDTH):
            bundle = list(islice(self._journal.entries(start), min(TILE_WIDTH, end - start)))
            for place in range(0, len(bundle), STEP):
                yield bundle[place : place + STEP]

    def _earlier(self) -> list[bytes]:
        """Lists of what is gone, or due and named by a tombstone."""
        found = self._lists.iterdir() if self._lists.is_dir() else ()
        return [path.read_bytes() for path in found if not path.suffix or path.stem in self._tombstones]

    def gone(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Which of `digests` were pruned."""
        with disk.to_disk("reading the lists of what was pruned"):
            earlier = self._earlier()
        return tuple(each for each in digests if any(lists.holds(listed, bytes.fromhex(each)) for listed in earlier))

    # --- removing ------------------------------------------------------------------------------------------

    def remove(self, name: str) -> Job:
        """Remove what list `name` holds. Raises `RunnerError` (ledger) unless an entry of this run names it."""
        if name not in self._tombstones or not (self._lists / (name + DUE)).is_file():
            raise refuse("ledger", "no `prune` entry names this list, or it was carried out before", field=name[:64])
        return self._remove(name, self._bundles.pop(name, None))

    def resume(self) -> None:
        """At start: carry out what a tombstone says and a crash cut off; forget lists that no entry names."""
        if not self._lists.is_dir():
            return
        for left in self._lists.glob(f"*{TEMPORARY}"):
            left.unlink()
        due = {path.name.removesuffix(DUE) for path in self._lists.glob(f"*{DUE}")}
        if not due:
            return
        found = [entries.decode(data) for _, data in self._journal.entries(0) if _PRUNE in data]
        named = due & {entry.pruned.digest for entry in found if isinstance(entry, entries.Prune)}
        self._tombstones |= named
        for name in sorted(named):
            for _ in self._remove(name, None):
                pass
        for name in due - named:
            (self._lists / (name + DUE)).unlink()
        disk.sync_folder(self._lists)

    def _remove(self, name: str, bundles: Collection[int] | None) -> Job:
        path = self._lists / (name + DUE)
        digests = lists.split(path.read_bytes())
        wanted = frozenset(digests)
        self._commit()
        # From here on the tombstone is on disk: what follows may be done twice, and is done again after a crash.
        self._journal.forget(wanted)
        yield
        for start in range(0, len(digests), STEP):
            self._content.remove(digests[start : start + STEP])
            yield
        for pack in self._packs(bundles):
            self._shrink(pack, wanted)
            yield
        for _ in range(_FLUSHES):
            if self._content.flush():
                break
            time.sleep(_PAUSE_S)
            yield
        else:
            return None  # the next start does it again, the list being due
        # A crash here leaves the list due: its content is looked for once more.
        path.rename(self._lists / name)
        disk.sync_folder(self._lists)
        return None

    def _packs(self, bundles: Collection[int] | None) -> Iterator[Path]:
        """The packs of these bundles; every one when nobody remembers."""
        if bundles is None:
            yield from sorted(path for path in (self._folder / PACKS).rglob("*-*") if _PACK.fullmatch(path.name))
            return
        for number in sorted(bundles):
            prefix = self._folder / pack_prefix(number)
            if prefix.parent.is_dir():
                yield from sorted(path for path in prefix.parent.iterdir() if path.name.startswith(prefix.name))

    def _shrink(self, path: Path, wanted: Collection[bytes]) -> None:
        """Replace a pack by one without `wanted`."""
        if path.name.endswith(TEMPORARY):
            return
        data = path.read_bytes()
        pieces = list(split_pack(data))
        kept = [piece for piece in pieces if sha256(piece).digest() not in wanted]
        if len(kept) == len(pieces) or pack_contents(pieces) != data:
            return
        if kept:
            packed = pack_contents(kept)
            disk.write_once([(_renamed(path, packed), packed)])
        # A crash here leaves both: the old one is shrunk again, into the same.
        path.unlink()
        disk.sync_folder(path.parent)


def _renamed(path: Path, packed: bytes) -> Path:
    """The name of a pack of the same bundle that holds `packed`."""
    ending = Path(pack_path(0, packed)).name.partition("-")[2]
    return path.with_name(f"{path.name.partition('-')[0]}-{ending}")


def _follow(holds: dict[str, list[entries.Criteria]], entry: entries.AnyEntry) -> None:
    if isinstance(entry, entries.Hold):
        holds.setdefault(entry.name, []).append(entry.of)
    elif isinstance(entry, entries.Release):
        holds.pop(entry.name, None)


class _Open(NamedTuple):
    """A call that has no outcome yet: whether a hold is on it, and its own content with the positions that name it."""

    call: str
    held: bool
    contents: list[tuple[int, entries.Content | entries.Stream]]
    raw: bool  # only its raw output is meant

    def add(self, position: int, entry: entries.AnyEntry) -> None:
        """One more entry of it."""
        if isinstance(entry, entries.Egress | entries.EgressEnd | entries.Outcome):
            self.contents.extend((position, each) for each in entries.own_content(entry, raw=self.raw))


class _Choice:
    """What has been chosen so far."""

    def __init__(self, of: entries.Criteria, holds: Sequence[entries.Criteria], earlier: Sequence[bytes]) -> None:
        self._of = of
        self._holds = holds
        self._earlier = earlier
        self._open: dict[str, _Open] = {}  # fits and is planned
        self._calls: set[str] = set()
        self.found: dict[bytes, int] = {}
        self.bundles: set[int] = set()
        self.held = 0

    @property
    def full(self) -> bool:
        return len(self.found) >= MAX_PIECES

    def goes(self, digest: bytes) -> bool:
        """Whether this content is chosen, or gone already."""
        return digest in self.found or any(lists.holds(listed, digest) for listed in self._earlier)

    def look(self, position: int, data: bytes) -> None:
        """One entry: a call that fits is chosen when it has its outcome, or never gets one."""
        if _CALL in data:
            entry = entries.decode(data)
            if isinstance(entry, entries.Call) and self._of.fits(
                entry.time, entry.who.task, (entry.who.agent,), entry.tool
            ):
                agents = (entry.who.agent, *entry.who.asserted)
                held = any(hold.fits(entry.time, entry.who.task, agents, entry.tool) for hold in self._holds)
                own = entries.own_content(entry, raw=self._of.raw)
                opened = _Open(entry.call, held, [(position, each) for each in own], self._of.raw)
                if entry.plan is None:
                    self._take(opened)
                else:
                    self._open[entry.call] = opened
        elif (_REQUEST in data or _ENDED in data) and _NAMED.search(data):
            if (asked := self._open.get(_peek.decode(data).call)) is not None:
                asked.add(position, entries.decode(data))
        elif _OUTCOME in data and (begun := self._open.pop(_peek.decode(data).call, None)) is not None:
            begun.add(position, entries.decode(data))
            self._take(begun)

    def _take(self, over: _Open) -> None:
        for position, content in over.contents:
            digest = bytes.fromhex(content.digest)
            if content.size <= self._of.larger or any(lists.holds(listed, digest) for listed in self._earlier):
                continue
            if over.held:
                self.held += 1
                continue
            self._calls.add(over.call)
            self.found[digest] = content.size
            self.bundles.add(position // TILE_WIDTH)

    def spare(self, data: bytes) -> None:
        """What an entry of any other call names too stays."""
        for named in _NAMED.findall(data):
            digest = bytes.fromhex(named.decode())
            if digest in self.found and _peek.decode(data).call not in self._calls:
                del self.found[digest]
