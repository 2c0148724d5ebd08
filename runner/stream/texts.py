"""Filtering in one go: what is no stream. Error texts, reasons, names, labels; structured results and arguments.

The order is that of streams: issued secrets, patterns, what inspectors find, hygiene. Of a value, every key, text and
number is looked at by itself, and a text together with its key, which may tell what it is (`"password": "…"`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from runner.errors import Refusal
from runner.model import Action, Decision
from runner.stream.exact import Needles, find, mark
from runner.stream.found import Found
from runner.stream.hygiene import plain, shown

_MEMO = 16  # texts of a task known to be clean: its original request, the reason of a rule, the name of a client
_MEMO_TEXT = 4096
_END = b"\xff" * 4  # no form of a secret goes on with it
_encode = msgspec.json.Encoder(order="sorted").encode


class Finder(Protocol):
    """What finds in a whole text: `Patterns`, an inspector."""

    def find(self, data: bytes) -> Sequence[Found]:
        """What is there: sorted, not overlapping."""


class Act(Protocol):
    """What becomes of what is found: `runner.stream.actions.Actions`."""

    def of(self, label: str) -> Action:
        """What is done about this label."""

    def replace(self, found: Found, data: bytes) -> bytes:
        """What stands there instead."""


class Memo:
    """Texts of one task in which nothing was found, for as long as the same is looked for."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._of: tuple[object, ...] = ()

    def knows(self, text: str, *by: object) -> bool:
        """Whether all of `by` have found nothing in it."""
        if by != self._of:
            self._texts, self._of = set(), by
        return text in self._texts

    def learn(self, text: str) -> None:
        """Those that `knows` was asked about last have found nothing."""
        if len(text) <= _MEMO_TEXT:
            if len(self._texts) >= _MEMO:
                self._texts.clear()
            self._texts.add(text)


class Texts:
    """Filters texts and values, and counts what it found in them."""

    def __init__(
        self, needles: Callable[[], Needles], finders: Sequence[Finder], actions: Act, memo: Memo | None = None
    ) -> None:
        """`needles` are asked for each time: a task may be given more while a call of it runs."""
        self._needles = needles
        self._finders = tuple(finders)
        self._actions = actions
        self._memo = memo or Memo()
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.blocked = ""  # the rule of what may not be delivered at all; the call is to be killed
        self.held = ""  # the rule of what is kept back until somebody has looked at it

    def text(self, text: str, *, whole: bool = False) -> str:
        """A text as it may be told and recorded; `whole` where nobody has cut it off."""
        if not text:
            return text
        needles = self._needles()
        if self._memo.knows(text, needles, *self._finders):
            return text
        before = self.counts.total()
        data = self._replaced(needles, text.encode("utf-8", "surrogatepass"), whole=whole)
        found = shown(data.decode("utf-8", "backslashreplace"), self.counts)
        if not whole and found == text and self.counts.total() == before:
            self._memo.learn(text)
        return found

    def decision(self, decision: Decision) -> Decision:
        """A decision as it may be told and recorded: its words may repeat arguments."""
        clean = {name: self.text(getattr(decision, name)) for name in ("reason", "field", "allowed")}
        missing = tuple([self.text(each) for each in decision.missing])
        if missing == decision.missing and all(getattr(decision, name) == text for name, text in clean.items()):
            return decision
        return replace(decision, missing=missing, **clean)

    def refusal(self, refused: Refusal) -> Refusal:
        """A refusal as it may be told."""
        words = ("reason", "field", "allowed", "next_step")
        return replace(refused, **{name: self.text(getattr(refused, name)) for name in words})

    def again(self, value: Any) -> Any:
        """As `value`, counting nothing: something that was counted already, in another shape."""
        counts, self.counts = self.counts, Counter()
        try:
            return self.value(value)
        finally:
            self.counts = counts

    def value(self, value: Any) -> Any:
        """A value of JSON as it may be told and recorded; the same object when nothing was found in it."""
        data = _encode(value)
        needles = self._needles()
        # Without an escape every text stands in it as it is, between quotes.
        if b"\\" not in data and plain(data) and not self._finds(needles, data):
            return value
        return self._walked(value)

    def _noted(self, found: Sequence[Found]) -> list[Found]:
        """Count these; the ones that are to be replaced."""
        replaced = []
        for each in found:
            action = self._actions.of(each.label)
            if action == "allow":
                continue
            self.counts[each.rule] += 1
            self.labels.add(each.label)
            if action == "block":
                self.blocked = self.blocked or each.rule
            elif action == "hold":
                self.held = self.held or each.rule
            if action != "mark":
                replaced.append(each)
        return replaced

    def _finds(self, needles: Needles, data: bytes) -> bool:
        return bool(find(needles, data)) or any(finder.find(data) for finder in self._finders)

    def _replaced(self, needles: Needles, data: bytes, *, whole: bool) -> bytes:
        """With what is found replaced and counted."""
        data = self._without(needles, data, whole=whole)
        for finder in self._finders:
            if found := finder.find(data):
                data = _put(data, self._noted(found), self._actions.replace)
        return data

    def _named(self, key: str, text: str) -> str:
        """A text under a key that says what it is, as the JSON of both tells."""
        inside = _encode(text)
        if b"\\" in inside:
            return text  # its places are not those of the text
        start = len(whole := _encode({key: text})) - len(inside)
        for finder in self._finders:
            found = [each for each in finder.find(whole) if start <= each.start and each.end < len(whole) - 1]
            found = self._noted([each for each in found if self._actions.of(each.label) != "mark"])
            whole = _put(whole, found, self._actions.replace)
        return whole[start:-2].decode()

    def _without(self, needles: Needles, data: bytes, *, whole: bool) -> bytes:
        """Without issued secrets. What is not `whole` may be cut off in one: then the beginning of one at the end goes
        too, which in a value would be a word that a secret begins with (`postgresql`)."""
        if not needles:
            return data
        found = find(needles, data + _END if whole else data)
        if not found:
            return data
        for each in found:
            self.counts[each.rule] += 1
            self.labels.add(each.label)
        return _put(data, found, lambda each, _: mark(each.rule))

    def _walked(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(value, whole=True)
            case dict():
                walked: dict[str, Any] = {}
                for key, inner in value.items():
                    name = base = self.text(key, whole=True)
                    number = 2
                    while name in walked:  # two keys that differed in what was taken out
                        name, number = f"{base}#{number}", number + 1
                    walked[name] = self._walked(self._named(key, inner) if isinstance(inner, str) else inner)
                return walked
            case list() | tuple():
                return [self._walked(inner) for inner in value]
            case bool() | None:
                return value
            case _:  # a number may be a secret that was issued; patterns do not look for one in digits alone
                text = _encode(value)
                clean = self._without(self._needles(), text, whole=True)
                return value if clean == text else clean.decode()


def _put(data: bytes, found: Sequence[Found], replacement: Callable[[Found, bytes], bytes]) -> bytes:
    parts: list[bytes] = []
    at = 0
    for each in found:
        parts += (data[at : each.start], replacement(each, data))
        at = each.end
    return b"".join((*parts, data[at:]))
