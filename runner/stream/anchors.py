"""Words without which a pattern cannot match, read off the pattern itself.

So a text is looked through once for the words of all patterns, and a pattern is tried only where its own words stand.
It reads the small language that rules are written in (policies/filters/injection.toml): literals, classes, `(?:…|…)`,
`?` and `{n,m}`, and the signs for gaps. What it does not understand gives no word, so it can cost time, never a match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import ahocorasick_rs

Words = frozenset[bytes]
Branch = tuple[Words, ...]  # a match of this branch holds one word of each of these sets

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|\{\d*,?\d*\}|.", re.DOTALL)
_ENOUGH = 4  # letters that make a word rare enough
_SETS = 2  # of a branch: words of two sets near each other are rare
_NEAR = 180  # bytes between the words of one match
_REACH = 220  # bytes before and after them that a match may have
_GAPS = frozenset(".…~ ^$")
_LITERAL = frozenset('\\.|[]()<>{}#$*+?^/-"&~ ')


class _Node:
    """A part of a pattern: one literal byte string, an alternation, a sequence, or something without words."""

    def __init__(self, kind: str, parts: Iterable[_Node] = (), text: bytes = b"") -> None:
        self.kind = kind
        self.parts = list(parts)
        self.text = text


def branches(pattern: str, fold: Callable[[str], bytes]) -> tuple[Branch, ...]:
    """The alternatives of a pattern, each with the words that it needs; () for one that has none."""
    tree, _ = _alternation(_TOKEN.findall(pattern), 0, fold)
    found: list[Branch] = []
    for branch in _spread(tree):
        sets = sorted(_needed(branch), key=_worth, reverse=True)[:_SETS]
        if not sets:
            return ()
        found.append((sets[0], *(words for words in sets[1:] if _worth(words)[0] == _ENOUGH)))
    return tuple(found)


class Anchors:
    """Where in a text each of many patterns may match. Immutable."""

    def __init__(self, patterns: Sequence[tuple[Branch, ...]]) -> None:
        """`patterns` as `branches` gives them; one without words may match anywhere."""
        self._free = tuple(index for index, each in enumerate(patterns) if not each)
        self._branches = [(index, branch) for index, each in enumerate(patterns) for branch in each]
        self._words = sorted({word for _, branch in self._branches for words in branch for word in words})
        self._search = ahocorasick_rs.BytesAhoCorasick(self._words)
        places = {word: at for at, word in enumerate(self._words)}
        self._sets = [[frozenset(places[word] for word in words) for words in branch] for _, branch in self._branches]
        # Of each word the branches, as bits, in whose first and in whose second set it is.
        self._first, self._second = [0] * len(self._words), [0] * len(self._words)
        self._alone = 0
        for bit, sets in enumerate(self._sets):
            for word in sets[0]:
                self._first[word] |= 1 << bit
            for word in sets[1] if len(sets) > 1 else ():
                self._second[word] |= 1 << bit
            self._alone |= (len(sets) == 1) << bit

    def places(self, data: bytes) -> dict[int, list[tuple[int, int]]]:
        """Of each pattern that may match the parts of the text where it may, in order, apart from each other."""
        found: dict[int, list[tuple[int, int]]] = {index: [(0, len(data))] for index in self._free}
        hits = self._search.find_matches_as_indexes(data, overlapping=True)
        first, second = 0, self._alone
        starts: dict[int, list[int]] = {}
        for word, start, _ in hits:
            starts.setdefault(word, []).append(start)
        for word in starts:
            first |= self._first[word]
            second |= self._second[word]
        possible = first & second
        while possible:
            bit = (possible & -possible).bit_length() - 1
            possible &= possible - 1
            sets = self._sets[bit]
            places = [at for word in sets[0] & starts.keys() for at in starts[word]]
            if len(sets) > 1:
                places = _near(places, [at for word in sets[1] & starts.keys() for at in starts[word]])
            found.setdefault(self._branches[bit][0], []).extend((max(0, at - _REACH), at + _REACH) for at in places)
        return {index: _merged(parts) for index, parts in found.items() if parts}


def _near(starts: list[int], others: list[int]) -> list[int]:
    """Those of `starts` that have one of `others` near, in order."""
    starts.sort()
    others.sort()
    near, at = [], 0
    for start in starts:
        while at < len(others) and others[at] < start - _NEAR:
            at += 1
        if at < len(others) and others[at] <= start + _NEAR:
            near.append(start)
    return near


def _merged(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(parts):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


# --- reading ---------------------------------------------------------------------------------------------------


def _alternation(signs: list[str], at: int, fold: Callable[[str], bytes]) -> tuple[_Node, int]:
    ways: list[_Node] = []
    parts: list[_Node] = []
    while at < len(signs) and signs[at] != ")":
        sign = signs[at]
        at += 1
        if sign == "|":
            ways.append(_Node("cat", parts))
            parts = []
        elif sign in ("(?:", "("):
            inner, at = _alternation(signs, at, fold)
            at += 1
            parts.append(inner)
        elif sign == "?" or (sign[0] == "{" and len(sign) > 1):
            optional = sign == "?" or sign[1:2] in ("0", ",")
            parts[-1] = _Node("none") if optional else _Node("cat", [parts[-1]])
        else:
            parts.append(_leaf(sign, fold))
    ways.append(_Node("cat", parts))
    return (ways[0] if len(ways) == 1 else _Node("alt", ways)), at


def _leaf(sign: str, fold: Callable[[str], bytes]) -> _Node:
    if len(sign) == 1 and sign not in _GAPS:
        return _Node("text", text=sign.encode() if sign.isascii() else fold(sign))
    if sign[0] == "\\" and sign[1] in _LITERAL:
        return _Node("text", text=sign[1].encode())
    if sign == "\\b":
        return _Node("text")  # nothing between two letters, but no gap either
    return _Node("none")


# --- what is needed --------------------------------------------------------------------------------------------


def _spread(node: _Node) -> Iterator[_Node]:
    """The alternatives at the top, and those that the pattern consists of but for what begins or ends a word."""
    while node.kind == "cat" and len(solid := [p for p in node.parts if p.kind != "text" or p.text]) == 1:
        node = solid[0]
    if node.kind == "alt":
        for part in node.parts:
            yield from _spread(part)
    else:
        yield node


def _needed(node: _Node) -> list[Words]:
    """Sets of which every match holds a word each."""
    if node.kind == "text":
        return [frozenset({node.text})] if node.text else []
    if node.kind == "alt":
        best = [max(sets, key=_worth) if (sets := _needed(part)) else None for part in node.parts]
        return [frozenset().union(*(each for each in best if each))] if all(best) else []
    found: list[Words] = []
    run: set[bytes] = {b""}
    for part in [*node.parts, _Node("none")]:
        if part.kind == "text":
            run = {begun + part.text for begun in run}
            continue
        if run != {b""}:
            found.append(frozenset(run))
        run = {b""}
        found += _needed(part) if part.kind != "none" else []
    return [words for words in found if all(words)]


def _worth(words: Words) -> tuple[int, int]:
    """A set is worth what its shortest word is; of such, the fewer the better."""
    return min(_ENOUGH, min(len(word) for word in words)), -len(words)
