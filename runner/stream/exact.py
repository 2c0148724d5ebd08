"""Issued secrets leave a call's output: each, in every form, across pieces and across both streams, is replaced.

A secret of which a beginning came and then nothing for a while: six bytes or more of it are replaced at once, and what
follows is swallowed as far as it is the secret's; fewer are let go, but remembered. So at most five bytes of a form of
a secret ever get out, and those only before a pause.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from runner.stream.found import Found
from runner.stream.needles import LABEL, Needles
from runner.stream.stage import LONG_MS, SHORT_MS, Name, Out
from runner.stream.view import View

__all__ = ["ExactStage", "Needles", "find", "mark"]


def mark(rule: str) -> bytes:
    """What stands where a secret stood. `rule` is `secret:NAME`."""
    return b"[REDACTED:" + rule.removeprefix("secret:").encode() + b"]"


def find(needles: Needles, data: bytes) -> list[Found]:
    """Every secret of a whole text, also one that its end cuts off after six bytes; sorted, not overlapping."""
    if not needles:
        return []
    view = View(needles)
    merged: list[Found] = []
    for found in sorted((*view.take(data), *view.pause(over=True)), key=_first):
        if merged and found.start < merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(found.end, merged[-1].end))
        else:
            merged.append(found)
    return merged


def _first(found: Found) -> tuple[int, int, str]:
    """Order of findings: where they begin, and of those the longest."""
    return found.start, -found.end, found.rule


class _Side:
    """What of one stream waits, and what of it is to be replaced: in `data` by as many bytes."""

    def __init__(self, *, data: bool = False) -> None:
        self._data = data
        self.base = 0  # offset of the first byte that waits
        self.waiting = b""
        self._found: list[Found] = []
        self._covered = 0  # end of the last replaced region
        self._marked = False  # that region has its mark

    @property
    def idle(self) -> bool:
        """Whether there is nothing to let go, nor to mark."""
        return not self.waiting and not self._found

    def add(self, start: int, end: int, rule: str) -> None:
        """Replace these bytes, as far as they have not gone; without a rule they go without a mark."""
        self._found.append(Found(start, end, rule, LABEL))

    def release(self, upto: int, counts: Counter[str]) -> bytes:
        """Everything before an offset, with marks. Regions that overlap are one, with the mark of the first."""
        if not self._found and self._covered <= self.base < upto:
            data, self.waiting = self.waiting[: upto - self.base], self.waiting[upto - self.base :]
            self.base = upto
            return data
        at, upto = self.base, max(upto, self.base)
        parts: list[bytes] = []
        later: list[Found] = []
        for found in sorted(self._found, key=_first):
            if found.start >= upto:
                later.append(found)
                continue
            if found.start < self._covered and found.end <= self.base:
                continue  # it has gone with its region
            if found.start >= self._covered:
                parts.append(self._between(max(at, self._covered), found.start))
                at, self._marked = max(at, found.start), False
            size = found.end - max(found.start, self._covered, self.base)
            self._covered = max(self._covered, found.end)
            instead = b""
            if found.rule and not self._marked:
                instead = mark(found.rule)
                self._marked = True
                counts[found.rule] += 1
            parts.append(instead[: max(size, 0)].ljust(size, b"*") if self._data else instead)
        parts.append(self._between(max(at, self._covered), upto))
        self._found, self.waiting, self.base = later, self.waiting[upto - self.base :], upto
        return b"".join(parts)

    def _between(self, start: int, end: int) -> bytes:
        return self.waiting[max(start - self.base, 0) : max(end - self.base, 0)]


class _Piece(NamedTuple):
    """A piece of a stream in the order of arrival: where it lies in both."""

    start: int
    end: int
    stream: Name
    offset: int  # of `start` in the stream


class ExactStage:
    """A `Stage`: replaces issued secrets by `[REDACTED:name]`, once where each begins. With `data`, stdout is no text:
    what stands there is cut or filled up with stars to the same length, so that what follows stays where it is.

    Memory is bounded by the length of the longest form of a secret (16 times that and 256 bytes, of each stream), and
    by 64 KiB for compressed data.
    """

    def __init__(self, needles: Needles, *, data: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self._needles = needles
        self._sides: dict[Name, _Side] = {"stdout": _Side(data=data), "stderr": _Side()}
        self._views: dict[Name, View] = {"stdout": View(needles), "stderr": View(needles)}
        self._both = View(needles, packed=False)
        self._pieces: list[_Piece] = []  # what `_both` keeps, in order
        self._arrived = 0  # bytes of both
        self._last: Name = "stdout"  # the stream that came last
        self._since = 0  # where in both it began to be the only one

    def take(self, stream: Name, data: bytes) -> Out:
        """More of one stream."""
        if not data:
            return []
        if not self._needles:
            return [(stream, data)]
        view, side = self._views[stream], self._sides[stream]
        offset, shared = view.end, view.base == side.base
        for found in view.take(data):
            side.add(found.start, found.end, found.rule)
        side.waiting = view.text if shared else side.waiting + data
        self._arrive(_Piece(self._arrived, self._arrived + len(data), stream, offset), data)
        return self._release(long=False)

    def pause(self, quiet_ms: int) -> Out:
        """Short beginnings go; after `LONG_MS` longer ones are replaced, and nothing waits any more."""
        if quiet_ms >= LONG_MS:
            return self._end(over=False)
        return self._release(long=True) if quiet_ms >= SHORT_MS else []

    def close(self) -> Out:
        """The call is over: a beginning of a secret that it leaves is replaced too."""
        return self._end(over=True)

    def _end(self, *, over: bool) -> Out:
        for name, view in self._views.items():
            for found in view.pause(over=over):
                self._sides[name].add(found.start, found.end, found.rule)
        for found in self._both.pause(over=over):
            self._replace(found)
        return self._release(long=True, everything=True)

    @property
    def waits_ms(self) -> int:
        """`SHORT_MS` while something waits that may go after it, `LONG_MS` while only the rest waits, else 0."""
        waiting = [(side.base, self._held(name, long=True)) for name, side in self._sides.items() if side.waiting]
        if not waiting:
            return 0
        return SHORT_MS if any(held > base for base, held in waiting) else LONG_MS

    @property
    def size(self) -> int:
        """Bytes held or remembered."""
        views = (self._both, *self._views.values())
        return sum(len(side.waiting) for side in self._sides.values()) + sum(view.size for view in views)

    def _arrive(self, piece: _Piece, data: bytes) -> None:
        """Keep the order of arrival. It is searched only while a possible beginning in it came on the other stream."""
        if piece.stream != self._last:
            self._last, self._since = piece.stream, piece.start
        self._pieces.append(piece)
        self._arrived = piece.end
        if self._mixed():
            for found in self._both.take(data):
                self._replace(found)
        else:
            self._both.adopt(self._views[piece.stream], piece.end - self._since, piece.end)
        self._pieces = [kept for kept in self._pieces if kept.end > self._both.base]

    def _mixed(self) -> bool:
        return any(piece.stream != self._last for piece in self._pieces)

    def _replace(self, found: Found) -> None:
        """A secret in both streams: its mark goes where it begins, its other part just goes."""
        parts: dict[Name, tuple[int, int]] = {}
        for piece in self._pieces:
            start, end = max(found.start, piece.start), min(found.end, piece.end)
            if start < end:
                first = parts.get(piece.stream, (piece.offset + start - piece.start, 0))[0]
                parts[piece.stream] = first, piece.offset + end - piece.start
        if len(parts) > 1:
            for number, (stream, (first, last)) in enumerate(parts.items()):
                self._sides[stream].add(first, last, "" if number else found.rule)

    def _held(self, name: Name, *, long: bool) -> int:
        """From where on a stream waits."""
        held = self._views[name].held(long=long)
        if self._mixed():
            start = self._both.held(long=long)
            for piece in self._pieces:
                if piece.stream == name and piece.end > start:
                    return min(held, piece.offset + max(start - piece.start, 0))
        return held

    def _release(self, *, long: bool, everything: bool = False) -> Out:
        out: Out = []
        for name, side in self._sides.items():
            if side.idle:
                continue
            upto = self._views[name].end if everything else self._held(name, long=long)
            if data := side.release(upto, self.counts):
                out.append((name, data))
        if self.counts:
            self.labels.add(LABEL)
        return out
