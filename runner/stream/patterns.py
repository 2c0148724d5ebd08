"""Credentials and personal data that nobody registered, found by rules: in a text, and in a stream as it comes.

What counts as found is told without streams: of all places where a rule matches and its checks hold, the ones that
overlap nothing before them, from left to right; at one place the rule that comes first. A rule matches at a place or it
does not, whatever lies further than its reach; so a stream can be decided up to the last place where a match may still
begin, and its text is the same however it was cut.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ahocorasick_rs import BytesAhoCorasick

from runner.errors import RunnerError, refuse
from runner.model import FilterRule
from runner.stream.actions import Actions
from runner.stream.checks import CHECKS, DIGITS, entropy
from runner.stream.engines import Engine, Window, best
from runner.stream.found import Found
from runner.stream.shape import MAX_BEHIND, SHORT, Shape, chars, shape
from runner.stream.stage import LONG_MS, SHORT_MS, Name, Out
from runner.stream.through import Seen, seen

_LAZY = 2048  # bytes waiting, above which a stream that drips is looked at again only when there is an eighth more
_LEAD = 2  # bytes that every match begins with, by which its beginnings are found at memory speed
_NEAR = 64  # bytes of a rule without words, up to which it is looked for together with others
_KNOWN, _KNOWN_SIZE = 1024, 64  # values remembered while a text is looked at, and bytes of one
_DIGIT = re.compile(rb"[0-9]")
_ANCHOR = 4  # bytes of a rule's own word that make a beginning of a match a real one


class _Rule:
    """One rule, ready."""

    def __init__(self, rule: FilterRule) -> None:
        self.id, self.label = rule.id, rule.label
        try:
            self.shape: Shape = shape(rule.pattern)
            self.parts = tuple(self.shape.lead[:size] for size in range(len(self.shape.lead) - 1, 0, -1))
            self._regex = re.compile(rule.pattern.encode())
            self._allow = [re.compile(each.encode("ascii")) for each in rule.allow]
            self._group = self._regex.groupindex[rule.group] if rule.group else 0
        except KeyError:
            raise _wrong(rule, f"group: the pattern has no group `{rule.group[:64]}`", "write (?P<name>…)") from None
        except (ValueError, re.error, UnicodeEncodeError) as error:
            raise _wrong(rule, f"pattern: {error}") from None
        self._check: Callable[[bytes], bool] | None = CHECKS.get(rule.check)
        self._digits = rule.check in DIGITS
        self._entropy = rule.entropy

    @functools.cached_property
    def _beginning(self) -> re.Pattern[bytes]:
        """Finds what a text's end may be the beginning of. Made when it is first needed, which for most is never."""
        known = len(self.shape.lead) >= _LEAD
        return re.compile((self.shape.onward if known else self.shape.beginning).encode())

    def begins(self, text: bytes, start: int) -> int:
        """Where the first match that the end of `text` may be the beginning of would start; its length for none."""
        end, lead = len(text), self.shape.lead
        start = max(start, end - self.shape.reach)
        at = text.find(lead, start) if len(lead) >= _LEAD else start  # a hundred times as fast as a search for it
        if at >= 0 and (match := self._beginning.search(text, at)) is not None:
            return match.start()
        if len(lead) < _LEAD:
            return end
        if text.endswith(self.parts):
            for part in self.parts:  # the longest first
                if len(part) <= end - start and text.endswith(part):
                    return end - len(part)
        return end

    def matches(self, text: bytes, windows: Sequence[Window], begin: int) -> Iterator[tuple[int, int, int]]:
        """Every match in `windows` that holds, from `begin` on: where it begins, and the start and end of what goes."""
        at, digit, reach = begin, -1, self.shape.reach
        search, group, digits = self._regex.search, self._group, self._digits
        known: dict[bytes, bool] = {}  # short values of this text that were asked about: most are like others
        for low, high in windows:
            at = max(at, low)
            end = min(len(text), high + reach + 1)
            if not self.shape.lines:  # no match goes on after the line; one byte more is looked at
                line = text.find(b"\n", max(at, high - 1), end)
                end = line + 1 if line >= 0 else end
            while at < high:
                if digits:  # what can hold one begins no more than its reach before
                    if digit < at:
                        digit = found.start() if (found := _DIGIT.search(text, at)) else len(text) + reach
                    at = max(at, digit - reach)
                match = search(text, at, end)
                if match is None or (begun := match.start()) >= high:
                    break
                at = begun + 1
                value = match[group] or b""  # a group that has no part in the match
                if (holds := known.get(value)) is None:
                    holds = self._holds(value)
                    if len(value) <= _KNOWN_SIZE:
                        if len(known) >= _KNOWN:
                            known.clear()
                        known[value] = holds
                if holds:
                    yield begun, *match.span(group)

    def _holds(self, value: bytes) -> bool:
        """Whether what would go is what the rule means."""
        if not value:
            return False
        if self._check is not None and not self._check(value):
            return False
        if self._entropy and entropy(value) < self._entropy:
            return False
        return not any(each.search(value) for each in self._allow)


class Patterns:
    """Every rule of a catalogue, compiled once, shared by all calls. Raises `RunnerError` (policy) for a rule that
    cannot be had."""

    def __init__(self, rules: Sequence[FilterRule], engine: Callable[[Sequence[Shape]], Engine] = best) -> None:
        self._rules = [_Rule(rule) for rule in rules]
        shapes = [rule.shape for rule in self._rules]
        try:
            self._engine = engine(shapes)
        except Exception as error:  # the engine's own error types are not ours to name
            raise refuse("policy", f"the rules do not compile together: {error}", field="policies/filters") from error
        across: dict[bytes, list[_Rule]] = {}
        for rule in self._rules:
            if rule.shape.lines:
                across.setdefault(rule.shape.lead, []).append(rule)
        self._across = [(lead, max(each.shape.reach for each in rules), rules) for lead, rules in across.items()]
        inside = [rule for rule in self._rules if not rule.shape.lines]
        self._long = [rule for rule in inside if not rule.shape.blank and rule.shape.reach > SHORT]
        blank = [rule for rule in inside if rule.shape.blank]
        self._short = max((min(rule.shape.reach, SHORT) for rule in inside), default=0)
        self._wide = max((rule.shape.reach for rule in blank), default=0)
        wordless = [rule for rule in blank if min(map(len, rule.shape.head), default=0) < _LEAD]
        self._near = [rule for rule in wordless if rule.shape.reach <= _NEAR]
        self._wordless = [rule for rule in wordless if rule.shape.reach > _NEAR]
        gates: dict[bytes, list[_Rule]] = {}
        for rule in blank:
            for word in () if rule in wordless else rule.shape.head:
                gates.setdefault(word, []).append(rule)
        self._behind = list(gates.values())
        self._gates = BytesAhoCorasick(list(gates)) if gates else None
        self._far = max((rule.shape.reach for rule in self._long), default=0)
        words = {word for rule in self._rules for word in rule.shape.words if len(word) >= _ANCHOR}
        self._anchors = BytesAhoCorasick(sorted(words)) if words else None

    def find(self, data: bytes) -> list[Found]:
        """Everything in a whole text, in order, nothing overlapping; also through colour codes."""
        view = seen(data, whole=True)
        found, _ = self.accept(view.text, 0, 0, len(view.text) + 1)
        return [each._replace(start=view.place(each.start), end=view.after(each.end)) for each in found]

    def accept(self, text: bytes, begin: int, free: int, until: int) -> tuple[list[Found], int]:
        """What is found from `begin` on, starting at `free` or after and before `until`; and where the first match
        begins whose turn is later (else the length of the text)."""
        waiting: list[tuple[int, int, int, int, Iterator[tuple[int, int, int]]]] = []
        for number, places in self._engine.windows(text).items():
            matches = self._rules[number].matches(text, places, begin)
            for begun, start, end in matches:
                waiting.append((start, number, begun, end, matches))
                break
        heapq.heapify(waiting)
        found = []
        while waiting and waiting[0][0] < until:
            start, number, _, end, matches = waiting[0]
            if start >= free:
                rule = self._rules[number]
                found.append(Found(start, end, rule.id, rule.label))
                free = end
            for begun, start, end in matches:
                heapq.heapreplace(waiting, (start, number, begun, end, matches))
                break
            else:
                heapq.heappop(waiting)
        return found, min((each[2] for each in waiting), default=len(text))

    def undecided(self, text: bytes, begin: int) -> int:
        """Where the first match of an unfinished text may still begin; its length, when nothing may."""
        end = len(text)
        if end == begin:
            return end
        line = max(begin, text.rfind(b"\n", begin) + 1)
        word = line
        for blank in b" \t\r\f\v":
            word = max(word, text.rfind(blank, word) + 1)
        first = max(word, end - self._short)
        if first > word:
            far = max(word, end - self._far)
            lower = text[far:].lower()
            for rule in self._long:
                if not rule.shape.head or any(each in lower for each in rule.shape.head):
                    first = min(first, rule.begins(text, far))
        near = self._nearby.search(text, max(line, end - _NEAR)) if self._near else None
        first = min(first, near.start() if near else end)
        for rule in self._wordless:
            first = min(first, rule.begins(text, line))
        if self._gates is not None:
            tail = text[max(line, end - self._wide) :].lower()
            for gate in {each[0] for each in self._gates.find_matches_as_indexes(tail, overlapping=True)}:
                first = min(first, *(rule.begins(text, line) for rule in self._behind[gate]))
        for lead, reach, rules in self._across:
            if text.endswith(rules[0].parts) or text.find(lead, max(begin, end - reach)) >= 0:
                first = min(first, *(rule.begins(text, begin) for rule in rules))
        return first

    @functools.cached_property
    def _nearby(self) -> re.Pattern[bytes]:
        """What the text's end may be the beginning of, of several rules at once."""
        shapes = [rule.shape for rule in self._near]
        first = chars(frozenset().union(*(each.first for each in shapes)))  # most bytes begin none of them
        return re.compile(f"(?={first})(?:{'|'.join(each.beginning for each in shapes)})".encode())

    def anchored(self, text: bytes) -> bool:
        """Whether what waits holds a rule's own word: then it is worth waiting for more."""
        return self._anchors is not None and bool(self._anchors.find_matches_as_indexes(text.lower()))


def _wrong(rule: FilterRule, reason: str, next_step: str = "") -> RunnerError:
    return refuse("policy", f"rule {rule.id}: {reason}", field=rule.place, next_step=next_step)


class _Stream:
    """One stream's text that is not decided yet. Places are in `raw`."""

    def __init__(self) -> None:
        self.raw = b""
        self.before = b""  # what was seen before it, for looks back
        self.sent = 0  # so much has gone on: more than nothing only after a pause, or inside a match that goes over it
        self.free = 0  # where the last match ended
        self.again = 0  # looked at again when there is so much
        self.wait = 0  # milliseconds, 0 when nothing waits

    @property
    def late(self) -> bool:
        """Whether something came that was not looked at."""
        return len(self.raw) < self.again


class PatternStage:
    """The filter of one call. `blocked` and `held` name the first rule whose finding is to block or hold the output;
    what they found is redacted all the same."""

    def __init__(self, patterns: Patterns, actions: Actions) -> None:
        self._patterns = patterns
        self._actions = actions
        self._streams: dict[Name, _Stream] = {"stdout": _Stream(), "stderr": _Stream()}
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.blocked = ""
        self.held = ""

    def take(self, stream: Name, data: bytes) -> Out:
        """See `Stage`."""
        state = self._streams[stream]
        if state.late and len(state.raw) + len(data) < state.again:
            state.raw += data
            state.wait = SHORT_MS  # for the look; what is a beginning then waits on
            return []
        return _pieces(stream, self._look(state, data))

    def pause(self, quiet_ms: int) -> Out:
        """See `Stage`."""
        out: Out = []
        for name, state in self._streams.items():
            if not 0 < state.wait <= quiet_ms:
                continue
            if state.late:
                state.again = 0
                out += _pieces(name, self._look(state, b""))
            if 0 < state.wait <= quiet_ms:
                out += _pieces(name, self._look(state, b"", quiet=True))
        return out

    def close(self) -> Out:
        """See `Stage`."""
        out: Out = []
        for name, state in self._streams.items():
            if state.raw:
                out += _pieces(name, self._look(state, b"", quiet=True))
                self._streams[name] = _Stream()
        return out

    @property
    def waits_ms(self) -> int:
        """See `Stage`."""
        return min((state.wait for state in self._streams.values() if state.wait), default=0)

    def _look(self, state: _Stream, data: bytes, *, quiet: bool = False) -> bytes:
        """What may go on now; all of it when the stream is `quiet`, as if it ended here."""
        state.raw += data
        view = seen(state.raw, whole=quiet)
        context = len(state.before)
        text = state.before + view.text if context else view.text
        undecided = self._patterns.undecided(text, context)
        until = len(text) + 1 if quiet else undecided
        found, later = self._patterns.accept(text, context, context + view.at(state.free), until)
        out = self._replaced(state, text, context, view, found) if found else []
        upto = len(state.raw) if quiet else view.place(undecided - context)
        if state.sent < upto:
            out.append(state.raw[state.sent : upto])
            state.sent = upto
        self._drop(state, text, context, view, min(undecided, later))
        return b"".join(out)

    def _replaced(self, state: _Stream, text: bytes, context: int, view: Seen, found: Sequence[Found]) -> list[bytes]:
        """What goes on up to the end of the last finding."""
        out: list[bytes] = []
        known: dict[tuple[str, bytes], bytes] = {}  # what stands for a value: much of anything is mostly the same
        for each in found:
            start, end = each.start - context, each.end - context
            if view.back is not None:
                start, end = view.place(start), view.after(end)
            state.free = end
            action = self._actions.of(each.label)
            if action == "allow":
                continue
            self.counts[each.rule] += 1
            self.labels.add(each.label)
            if action == "block" and not self.blocked:
                self.blocked = each.rule
            if action == "hold" and not self.held:
                self.held = each.rule
            if action == "mark" or end <= state.sent:
                continue
            # After a pause its beginning may have gone already: then the rest goes as the whole would have.
            value = each.rule, text[each.start : each.end]
            if (instead := known.get(value)) is None:
                instead = known[value] = self._actions.replace(each, text)
            out += (state.raw[state.sent : start], instead)
            state.sent = end
        return out

    def _drop(self, state: _Stream, text: bytes, context: int, view: Seen, keep: int) -> None:
        """Forget what is decided; `keep` is the first place of `text` that is not."""
        at = view.place(keep - context)
        state.before = text[max(0, keep - MAX_BEHIND) : keep]
        state.raw = state.raw[at:]
        state.sent, state.free = max(0, state.sent - at), max(0, state.free - at)
        size = len(state.raw)
        state.again = size + size // 8 if size > _LAZY else 0
        waits = state.sent < size
        state.wait = (LONG_MS if self._patterns.anchored(state.raw[state.sent :]) else SHORT_MS) if waits else 0


def _pieces(stream: Name, data: bytes) -> Out:
    return [(stream, data)] if data else []
