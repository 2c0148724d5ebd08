"""An inspector over a stream of any length, and over a structured result: bounded memory, the same verdict however the
output was cut.

A stream is inspected in windows that overlap, so that an instruction that two chunks, or two windows, share is found.
Where the label's action keeps text back (`strip`, `hold`, `block`), what a window holds goes on after its inspection
and not before, and no pause releases it; otherwise it goes on at once.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from runner.model import Action, Marked
from runner.stream.found import Found
from runner.stream.hygiene import Clean
from runner.stream.inspect import INJECTED, Inspected, Inspector
from runner.stream.stage import Name

STEP = 8192  # bytes of a stream that a window adds
OVERLAP = 2048  # bytes of it that the next one looks at again: no instruction that is known is longer
_BEFORE = 1024  # bytes that have been judged and are looked at for what they say of the next: a comment that opens
UNTRUSTED = "untrusted"
_PLAIN = bytes(range(0x20, 0x7F)) + b"\t\n\r\0"  # padding, too: files come in archives
_MARKED = 64  # parts told of one call


class Act(Protocol):
    """What becomes of what is found: `runner.stream.actions.Actions`."""

    def of(self, label: str) -> Action:
        """What is done about this label."""

    def replace(self, found: Found, data: bytes) -> bytes:
        """What stands there instead."""


class Origin(Protocol):
    """Where a call's output may come from, as gate sees it (runner/gate/origin.py)."""

    def sources(self, reached: Sequence[str]) -> tuple[str, ...]:
        """The call is over and has reached these hosts: who nobody vouches for has had a part in what it gave back."""


class _Stream:
    """One stream, or the encoded part of one: what was judged last, what waits for judgement, and where that begins."""

    def __init__(self) -> None:
        self.before = b""
        self.waiting = bytearray()
        self.at = 0  # where the waiting begins, in what came here
        self.out = 0  # in what went on


class Inspection:
    """Inspects the streams of one call, and its structured result.

    It comes after hygiene: on text that is printable, so that what it tells of are places in what is delivered."""

    def __init__(self, inspector: Inspector | None, actions: Act, origin: Origin) -> None:
        """Without an `inspector` nothing is looked for: what comes from where is told all the same."""
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.marked: list[Marked] = []
        self.score = 0
        self.blocked = ""  # the rule that was the first, where the label's action is `block`
        self.held = ""
        self.origin = origin
        self._inspector = inspector
        self._actions = actions
        self._given = frozenset({UNTRUSTED})
        self._action: Action = actions.of(INJECTED)
        self._keeps_back = self._action not in ("allow", "mark")
        self._replaces = self._keeps_back and self._action not in ("hold", "block")
        self._streams: dict[tuple[Name, str], _Stream] = {}

    def take(self, cleans: list[Clean]) -> list[Clean]:
        """What may go on of these pieces, and of what waited before them."""
        if self._action == "allow" or self._inspector is None:
            return cleans
        out: list[Clean] = [] if self._keeps_back else cleans
        for stream, data, encoding in cleans:
            if encoding and (text := self._streams.pop((stream, ""), None)) is not None:
                out += self._judged((stream, ""), text, len(text.waiting))  # no text comes after it
            state = self._streams.setdefault((stream, encoding), _Stream())
            state.waiting += data
            while len(state.waiting) >= STEP + OVERLAP and not self.blocked:
                out += self._judged((stream, encoding), state, STEP)
        return [] if self.blocked else out

    def close(self) -> list[Clean]:
        """The end: what is left is inspected."""
        out: list[Clean] = []
        for name, state in self._streams.items():
            if state.waiting:
                out += self._judged(name, state, len(state.waiting))
        self._streams.clear()
        return [] if self.blocked else out

    def value(self, value: Any) -> Any:
        """A structured result as it may be told."""
        if self._action == "allow" or self._inspector is None:
            return value
        cleaned, verdict = inspect_value(self._inspector, value, self._given, self._actions if self._replaces else None)
        self._note(verdict, verdict.found)
        self._mark(Marked(stream="value", start=start, end=end) for start, end in verdict.parts)
        return cleaned

    def _judged(self, name: tuple[Name, str], state: _Stream, count: int) -> list[Clean]:
        """Inspects what waits, and lets about `count` bytes of it go: a part that is found is not cut."""
        assert self._inspector is not None
        window, begun = state.before + state.waiting[: count + OVERLAP], len(state.before)
        verdict = self._read(window, name[1])
        parts = [(max(start, begun), end) for start, end in verdict.parts if end > begun and start < begun + count]
        until = max([begun + count, *(end for _, end in parts)])
        found = [found for found in verdict.found if begun < found.end and found.start < until]
        self._note(verdict, found)
        if name[1] and parts and self._replaces:
            self.held = self.held or found[0].rule  # nothing can be taken out of what is encoded
        takes_out = self._replaces and not name[1]
        replaced = [(start, end, self._instead(window, start, end)) for start, end in parts] if takes_out else []
        clean = put(window[:until], replaced, begun)
        moved = state.out - begun
        for start, end in parts:
            size = len(self._instead(window, start, end)) if takes_out else end - start
            self._mark((Marked(stream=name[0], start=start + moved, end=start + moved + size),))
            moved += size - (end - start)
        state.at += until - begun
        state.out += len(clean)
        state.before = window[max(0, until - _BEFORE) : until]
        del state.waiting[: until - begun]
        return [Clean(name[0], clean, name[1])] if clean and self._keeps_back else []

    def _read(self, window: bytes, encoding: str) -> Inspected:
        """The verdict on a window. Of what is encoded (in whole groups of four) it is on what that stands for, unless
        that is no text at all; its places are those of the groups."""
        assert self._inspector is not None
        if not encoding:
            return self._inspector.inspect(window, self._given)
        data = base64.b64decode(window[: len(window) // 4 * 4])
        valid = data.decode("utf-8", "ignore").encode()
        if len(data.translate(None, _PLAIN)) * 2 > len(data) and len(valid) * 10 < len(data) * 9:
            return Inspected(frozenset(), 0)
        found = self._inspector.inspect(data, self._given)
        groups = tuple((start // 3 * 4, -(-end // 3) * 4) for start, end in found.parts)
        moved = tuple(each._replace(start=each.start // 3 * 4, end=-(-each.end // 3) * 4) for each in found.found)
        return found._replace(found=moved, parts=groups)

    def _instead(self, data: bytes, start: int, end: int) -> bytes:
        return self._actions.replace(Found(start, end, INJECTED, INJECTED), data)

    def _note(self, verdict: Inspected, found: Sequence[Found]) -> None:
        self.score = max(self.score, verdict.score)
        if not found:
            return
        self.labels.add(INJECTED)
        self.counts.update(each.rule for each in found)
        if self._action == "block":
            self.blocked = self.blocked or found[0].rule
        elif self._action == "hold":
            self.held = self.held or found[0].rule

    def _mark(self, marked: Iterable[Marked]) -> None:
        self.marked += islice(marked, max(0, _MARKED - len(self.marked)))


def put(data: bytes, parts: Sequence[tuple[int, int, bytes]], begun: int = 0) -> bytes:
    """`data` from `begun` on, with each of the parts, which are in order, replaced."""
    pieces, at = [], begun
    for start, end, instead in parts:
        pieces += [data[at : max(at, start)], instead]
        at = max(at, end)
    return b"".join((*pieces, data[at:]))


# --- structured results ----------------------------------------------------------------------------------------


def inspect_value(inspector: Inspector, value: Any, labels: frozenset[str], act: Act | None) -> tuple[Any, Inspected]:
    """A structured result and the verdict on its texts, names of fields included, in order and as if in lines; with
    `act` the value with what was found replaced. Long values are inspected in windows."""
    texts = list(_texts(value))
    verdict = inspect_whole(inspector, b"\n".join(texts), labels)
    if act is None or not verdict.parts:
        return value, verdict
    cleaned: list[bytes] = []
    at = 0
    for text in texts:
        inner = [(max(0, start - at), min(end - at, len(text))) for start, end in verdict.parts]
        hit = [(start, end) for start, end in inner if start < end]
        cleaned.append(put(text, [(a, b, act.replace(Found(a, b, INJECTED, INJECTED), text)) for a, b in hit]))
        at += len(text) + 1
    return _rebuilt(value, iter(cleaned)), verdict


def inspect_whole(inspector: Inspector, data: bytes, labels: frozenset[str]) -> Inspected:
    """The verdict on a whole text of any length: what windows over it say together."""
    found: list[Found] = []
    parts: list[tuple[int, int]] = []
    score, at = 0, 0
    while at == 0 or at < len(data):
        begun = max(0, at - OVERLAP)
        verdict = inspector.inspect(data[begun : at + STEP], labels)
        score = max(score, verdict.score)
        for start, end in verdict.parts:
            if parts and begun + start <= parts[-1][1]:
                parts[-1] = (min(parts[-1][0], begun + start), max(parts[-1][1], begun + end))
            else:
                parts.append((begun + start, begun + end))
        known = {(each.start, each.end, each.rule) for each in found}
        moved = (each._replace(start=each.start + begun, end=each.end + begun) for each in verdict.found)
        found += [each for each in moved if (each.start, each.end, each.rule) not in known]
        at += STEP
    return Inspected(frozenset({INJECTED} if parts else ()), score, tuple(found), tuple(parts))


def _texts(value: Any) -> Iterator[bytes]:
    """Every text in a value, in the order in which it is written. Values nest 64 deep at most (stream/result.py)."""
    if isinstance(value, str):
        yield value.encode("utf-8", "replace")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield str(key).encode("utf-8", "replace")
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _rebuilt(value: Any, texts: Iterator[bytes]) -> Any:
    if isinstance(value, str):
        return next(texts).decode("utf-8", "replace")
    if isinstance(value, dict):
        return {next(texts).decode("utf-8", "replace"): _rebuilt(each, texts) for key, each in value.items()}
    if isinstance(value, list):
        return [_rebuilt(each, texts) for each in value]
    return value
