"""Inspectors look for text that speaks to the model, in what comes from where nobody vouches for it.

The built-in one is `Instructions`: rules as data on every reading of a text (runner/stream/reveal.py), weighed. It is
pure, linear in the text, bounded in memory, and no proof: it knows phrases, not meaning. runner/stream/windows.py runs
it over a stream of any length.

When a verdict comes, and what may have been delivered by then: where the label's action is `mark` or less the text goes
on at once and the verdict comes with the result. Where it is `strip`, `hold` or `block` nothing goes on before the
window that holds it has been inspected: when 10 KiB are there, or at the end of the call. A pause releases nothing
there: a server that dribbles would choose it. What of a long output was clean and had left before a `block` stays
delivered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from runner.errors import RunnerError, refuse
from runner.model import InjectionRule
from runner.stream.anchors import Anchors, branches
from runner.stream.found import Found
from runner.stream.normal import Text, fold
from runner.stream.reveal import readings

INJECTED = "injected"
THRESHOLD = 60  # percent
_EACH = 16  # findings of one rule in one reading
_NEAR = 600  # bytes between findings that are of one text
_DISGUISES = frozenset({"rot13", "backwards", "leet", "apart", "base64", "hex"})
_LETTERS = frozenset({"rot13", "backwards", "leet", "apart"})  # of ordinary text: so short a match there is chance
_BY_CHANCE = 12
_ESCAPED_LETTER = re.compile(rb"%[4-7][0-9A-Fa-f]|&#|\\u00[4-7]|\\x[4-7]|\\u\{")
_HIDING = re.compile(
    rb"display\s{0,3}:\s{0,3}none|visibility\s{0,3}:\s{0,3}hidden|font-size\s{0,3}:\s{0,3}0|opacity\s{0,3}:\s{0,3}0?\.?0"
    rb"|color\s{0,3}:\s{0,3}(?:white|transparent|#f{3,6})|\shidden(?:\s|=|>)|aria-hidden|sr-only|text-indent\s{0,3}:\s{0,3}-"
    rb"|(?:left|top)\s{0,3}:\s{0,3}-\d{3}|\[//\]: #",
    re.IGNORECASE,
)
_PAIRS = ('" "', "“ ”", "„ “", "« »", "「 」", "` `", "<code> </code>", "<q> </q>", "<blockquote> </blockquote>")
_QUOTES = (*(tuple(pair.encode().split()) for pair in _PAIRS), (b" '", b"'"), (b"\n>", b"\n"))
_SENTENCE = re.compile(rb"[.!?\n>\"]|\xe3\x80\x82")


class Inspected(NamedTuple):
    """A verdict: `score` in percent, the rules that made it, and the parts of the text that it is about. Places are
    offsets in the bytes that were inspected."""

    labels: frozenset[str]
    score: int
    found: tuple[Found, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()


class Inspector(Protocol):
    """Looks at text that nobody vouches for. `labels` are those it has already."""

    name: str

    def inspect(self, data: bytes, labels: frozenset[str]) -> Inspected:
        """The verdict on a whole text."""


class _Placed(NamedTuple):
    """One finding, with what its place adds to its rule's weight or takes from it."""

    start: int
    end: int
    rule: int
    weight: float


# --- rules ---------------------------------------------------------------------------------------------------

_MEANS = {
    " ": rb"(?:[^a-z0-9\x80-\xff]{1,12})",
    "…": rb"[^.!?]{0,40}",
    "~": rb"[a-z0-9\x80-\xff']{0,16}",
}
_SPECIAL = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_BOUND = re.compile(r"\{(\d*),?(\d*)\}")
_REPEAT = 120


def expanded(rule: InjectionRule) -> re.Pattern[bytes]:
    """A rule's pattern as the regular expression that it stands for. Raises `RunnerError` (policy) where it is none, is
    not bounded, or holds a sign of another script that folds to a sign of regular expressions."""
    made = []
    for match in _SPECIAL.finditer(rule.pattern):
        sign = match.group()
        if sign in ("*", "+") or (sign == "{" and not _bounded(rule.pattern, match.start())):
            raise _wrong(rule, f"`{sign}` has no bound of at most {_REPEAT}")
        if sign in _MEANS:
            made.append(_MEANS[sign])
            continue
        form = sign.encode() if sign.isascii() else fold(sign)
        if not sign.isascii() and (len(sign) > 1 or (form and form.isascii() and not form.isalnum())):
            raise _wrong(rule, f"write `{sign}` as a word of its own")
        made.append(form)
    if re.search(r"\(\?[^:]|\\[1-9]", rule.pattern):
        raise _wrong(rule, "no lookaround, names, flags or back references")
    try:
        return re.compile(b"".join(made), re.DOTALL)
    except re.error as error:
        raise _wrong(rule, str(error)) from None


def _wrong(rule: InjectionRule, why: str) -> RunnerError:
    return refuse("policy", f"injection rule {rule.id}: {why}", field=rule.id)


def _bounded(pattern: str, at: int) -> bool:
    bound = _BOUND.match(pattern, at)
    return (
        bound is not None and bool(bound.group(2) or "," not in bound.group()) and int(bound.group(2) or 0) <= _REPEAT
    )


class Instructions:
    """The built-in inspector. Immutable, compiled once, shared by all calls."""

    name = "rules"

    def __init__(self, rules: Sequence[InjectionRule]) -> None:
        """Raises `RunnerError` (policy) naming the rule that is not one."""
        self.rules = tuple(rules)
        self._patterns = [expanded(rule) for rule in rules]
        self._anchors = Anchors([branches(rule.pattern, fold) for rule in rules])

    def inspect(self, data: bytes, labels: frozenset[str] = frozenset()) -> Inspected:
        """The verdict on a text that is valid UTF-8 or nearly so."""
        found = self._found(data)
        flagged: list[_Placed] = []
        parts: list[tuple[int, int]] = []
        score = 0.0
        for group in _groups(found):
            weight = _weight(group)
            score = max(score, weight)
            if weight >= THRESHOLD:
                flagged += group
                parts += _parts(data, group)
        told = tuple(Found(each.start, each.end, self.rules[each.rule].id, INJECTED) for each in flagged)
        return Inspected(frozenset({INJECTED} if flagged else ()), round(score), told, tuple(parts))

    def check_examples(self) -> int:
        """How many examples and counter-examples there are. Raises `RunnerError` (policy) for the first that does not
        hold: an example must match its rule, a counter-example must not be taken for injected."""
        for index, rule in enumerate(self.rules):
            for example in rule.examples:
                folded = fold(example)
                where = self._anchors.places(folded).get(index, [])
                if not any(self._patterns[index].search(folded, *part) for part in where):
                    raise _wrong(rule, f"it does not match its example `{example[:80]}`")
            for example in rule.counter_examples:
                if self.inspect(example.encode()).labels:
                    raise _wrong(rule, f"its counter-example `{example[:80]}` is taken for injected")
        return sum(len(rule.examples) + len(rule.counter_examples) for rule in self.rules)

    def _found(self, data: bytes) -> list[_Placed]:
        places: dict[tuple[int, int, int], bool] = {}
        discussed: list[int] = []
        for text in readings(data):
            for index, where in self._anchors.places(text.data).items():
                within = (m for part in where for m in self._patterns[index].finditer(text.data, *part))
                for match in islice(within, _EACH):
                    if len(match.group()) < _BY_CHANCE and _LETTERS.intersection(text.via):
                        continue
                    start, end = text.span(*match.span())
                    if self.rules[index].kind == "discussion":
                        discussed.append(start)
                        continue
                    open_ = places.get((start, end, index), True)
                    places[start, end, index] = open_ and _disguised(text, match.group(), data[start:end])
        return [
            _Placed(start, end, index, self._weigh(data, start, end, index, disguised, discussed))
            for (start, end, index), disguised in sorted(places.items())
        ]

    def _weigh(self, data: bytes, start: int, end: int, rule: int, disguised: bool, discussed: list[int]) -> float:
        weight = float(self.rules[rule].weight)
        if disguised or _hidden(data, start):
            weight += (100 - weight) / 2
        around = {at for at in discussed if start - 500 < at < end + 500 and not start <= at < end}
        return weight / 2 if len(around) > 1 and _quoted(data, start, end) else weight


# --- what a place means --------------------------------------------------------------------------------------


def _disguised(text: Text, matched: bytes, original: bytes) -> bool:
    """Whether the text could only be read beneath a disguise: an encoding, or letters that are other letters."""
    if _DISGUISES.intersection(text.via) or ("escapes" in text.via and _ESCAPED_LETTER.search(original)):
        return True
    if original.isascii() or not matched.isascii():
        return False  # another script's own words are no disguise
    return any(_masked(char) for char in original.decode("utf-8", "replace") if char > "\x7f")


def _masked(char: str) -> bool:
    form = fold(char)
    if not form:
        return unicodedata.category(char) != "Mn"
    return form.isalnum() and not unicodedata.normalize("NFD", char)[0].isascii()


def _hidden(data: bytes, start: int) -> bool:
    """Whether a place is in a comment, or in an element that is not shown."""
    before = data[max(0, start - 1000) : start]
    if before.rfind(b"<!--") > before.rfind(b"-->"):
        return True
    hides = [match.end() for match in _HIDING.finditer(before)]
    return bool(hides) and b"</" not in before[hides[-1] :] and b"\n\n" not in before[hides[-1] :]


def _quoted(data: bytes, start: int, end: int) -> bool:
    """Whether a place stands in quotes or code."""
    before, after = data[max(0, start - 200) : start], data[end : end + 200]
    return (
        any(_opens(before, left, right) and right in after for left, right in _QUOTES) or before.count(b"```") % 2 > 0
    )


def _opens(before: bytes, left: bytes, right: bytes) -> bool:
    if left == right:
        return before.rpartition(b"\n")[2].count(left) % 2 > 0
    return before.rfind(left) > before.rfind(right)


def _groups(found: list[_Placed]) -> Iterator[list[_Placed]]:
    """Findings that are near each other, in order of place."""
    group: list[_Placed] = []
    reached = 0
    for each in found:
        if group and each.start - reached > _NEAR:
            yield group
            group = []
        reached = max(reached, each.end) if group else each.end
        group.append(each)
    if group:
        yield group


def _weight(group: list[_Placed]) -> float:
    """The rules of a group together, each once, and of findings that cover each other the heaviest."""
    left, counted, taken = 1.0, set[int](), list[tuple[int, int]]()
    for each in sorted(group, key=lambda each: -each.weight):
        if each.rule in counted or any(_covered(each, *other) for other in taken):
            continue
        counted.add(each.rule)
        taken.append((each.start, each.end))
        left *= 1 - each.weight / 100
    return 100 * (1 - left)


def _covered(each: _Placed, start: int, end: int) -> bool:
    """Whether most of the shorter of two findings is the other's too: then both are one."""
    common = min(each.end, end) - max(each.start, start)
    return common * 10 > 7 * min(each.end - each.start, end - start)


def _parts(data: bytes, group: list[_Placed]) -> list[tuple[int, int]]:
    """What to take out: the sentences that findings are in, and what is between them."""
    parts: list[tuple[int, int]] = []
    for each in group:
        before = data[max(0, each.start - 240) : each.start]
        start = each.start - len(before) + max((m.end() for m in _SENTENCE.finditer(before)), default=len(before))
        after = _SENTENCE.search(data, each.end, each.end + 240)
        end = each.end if after is None else after.start() + (after.group() in (b".", b"!", b"?"))
        if parts and start - parts[-1][1] <= 160:
            parts[-1] = (min(parts[-1][0], start), max(parts[-1][1], end))
        else:
            parts.append((start, end))
    return parts
