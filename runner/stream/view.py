"""One order of a call's bytes, searched as it comes: a stream by itself, or both in order of arrival."""

from __future__ import annotations

from runner.stream.forms import HEAD
from runner.stream.found import Found
from runner.stream.needles import LABEL, Begun, Needles
from runner.stream.packed import Packed
from runner.stream.projections import sequence_at

_MAX_PACKED = 8  # runs of compressed data followed at once; one that begins inside so many others is not


class View:
    """Offsets are in the whole of it. Keeps no more text than the beginning of a secret can be long."""

    def __init__(self, needles: Needles, *, packed: bool = True) -> None:
        self._needles = needles
        self._packed = packed
        self.base = 0  # where `tail` begins
        self.text = b""  # what was searched last: `tail` as it was, and what came
        self.tail = b""  # what may still be the beginning of something
        self.begun: list[Begun] = []
        self._runs: list[Packed] = []
        self._seen: set[int] = set()  # beginnings of runs in `tail`
        self._told: set[Found] = set()  # findings in `tail`

    @property
    def end(self) -> int:
        """Bytes given so far."""
        return self.base + len(self.tail)

    @property
    def size(self) -> int:
        """Bytes kept."""
        return len(self.tail) + sum(len(run.out) for run in self._runs)

    def take(self, data: bytes) -> list[Found]:
        """More: what is found with it."""
        new = self.end
        self.text = text = self.tail + data if self.tail else data
        scan = self._needles.scan(text)
        base = self.base
        if not (scan.found or scan.begun or scan.recent or scan.packed or self._runs):  # as nearly always
            self.base, self.tail, self.begun = base + len(text), b"", []
            self._seen.clear()
            self._told.clear()
            return []
        found = {Found(base + f.start, base + f.end, f.rule, f.label) for f in scan.found}
        self.begun = [Begun(base + b.start, base + b.end, b.rule, b.erased) for b in scan.begun]
        if self._packed and (self._runs or scan.packed):
            found.update(self._follow(text, data, new, scan.packed))
        fresh = sorted(found - self._told)
        self._told |= found
        kept = min((*scan.recent, *(begun.start for begun in scan.begun)), default=len(text))
        self._keep(text, base + (sequence_at(text, kept) if b"\x1b" in text and kept < len(text) else kept))
        return fresh

    def held(self, *, long: bool) -> int:
        """From where on bytes wait; `long`: only for what has more than a few bytes of a beginning."""
        if not self.begun and not self._runs:
            return self.end
        starts = [begun.start for begun in self.begun if begun.rule or not long]
        return min(min(starts, default=self.end), min((run.start for run in self._runs), default=self.end))

    def pause(self, *, over: bool) -> list[Found]:
        """What has to be replaced now, as nothing more may come: beginnings that are long enough to tell. `over`:
        nothing more will."""
        whole = {(found.start, found.end) for found in self._told}
        found = [
            Found(begun.start, begun.end, begun.rule, LABEL)
            for begun in self.begun
            if begun.rule and not (over and begun.erased) and (begun.start, begun.end) not in whole
        ]
        for run in self._runs:
            if rule := self._inside(run, begun=True):
                found.append(Found(run.start, run.fed, rule, LABEL))
        return sorted(found)

    def adopt(self, other: View, length: int, end: int) -> None:
        """Go on as `other` stands, of which the last `length` bytes are the last of this, up to `end`."""
        kept = min(length, len(other.tail))
        self.base, self.tail = end - kept, other.tail[len(other.tail) - kept :]
        self.begun, self._told = [], set()

    def _keep(self, text: bytes, start: int) -> None:
        self.tail = text[start - self.base :]
        self.base = start
        self._told = {found for found in self._told if found.start >= start}
        self._seen = {at for at in self._seen if at >= start}

    def _follow(self, text: bytes, data: bytes, new: int, begins: dict[int, str]) -> set[Found]:
        """Feed what is compressed, in order of the text: runs that go on, then those that begin."""
        ended = [run for run in self._runs if not self._feed(run, data)]
        live = [run for run in self._runs if run.live]
        for offset, encoding in sorted(begins.items()):
            start = self.base + offset
            if start in self._seen:
                continue
            self._seen.add(start)
            if sum(run.live or run.fed > start for run in (*live, *ended[-_MAX_PACKED:])) >= _MAX_PACKED:
                continue
            run = Packed(start, encoding)
            (live if self._feed(run, text[offset:]) else ended).append(run)
        self._runs = live
        return {Found(run.start, run.fed, rule, LABEL) for run in ended if (rule := self._inside(run, begun=False))}

    @staticmethod
    def _feed(run: Packed, data: bytes) -> bool:
        run.feed(data)
        return run.live

    def _inside(self, run: Packed, *, begun: bool) -> str:
        """The first secret in what was inflated, or that its end is the beginning of."""
        if len(run.out) < HEAD:
            return ""
        scan = self._needles.scan(bytes(run.out))
        places = [(found.start, found.rule) for found in scan.found]
        if begun:
            places += [(part.start, part.rule) for part in scan.begun if part.rule]
        return min(places, default=(0, ""))[1]
