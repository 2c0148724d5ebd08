"""What a pattern's own tree tells: how long a match can be, how one begins, and a wider pattern for the first pass.

A rule's pattern is read once by Python's own parser and kept as a tree of byte sets, so that case, classes and escapes
mean one thing everywhere. What the tree does not know (back references, anchors, look-ahead past one byte, repetition
without an end) is refused: matching has to be bounded and must not depend on how a stream was cut.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Python's parser of its own patterns; the public name of it (sre_parse) is deprecated without a successor.
_parser: Any = importlib.import_module("re._parser")

MAX_REACH = 20 << 10  # bytes of one match: a long key block; what is longer would hold a stream's memory
SHORT = 512  # bytes that a word without blanks may hold a stream back, unless it begins like something longer
MAX_BEHIND = 16  # bytes before a match that it may look at
_ENOUGH = 8  # bytes of a run that the first pass counts: more costs it time to compile and finds no fewer
_CHOICES = 8  # words that a run of bytes may stand for, of which some vary a little
_LONG = 8  # a repetition that varies by more is only counted from below in the first pass: engines like that better

_ALL = frozenset(range(256))
_EVERY = bytes(range(256))
_CATEGORIES = {
    "CATEGORY_DIGIT": frozenset(b"".join(re.findall(rb"\d", _EVERY))),
    "CATEGORY_NOT_DIGIT": frozenset(b"".join(re.findall(rb"\D", _EVERY))),
    "CATEGORY_SPACE": frozenset(b"".join(re.findall(rb"\s", _EVERY))),
    "CATEGORY_NOT_SPACE": frozenset(b"".join(re.findall(rb"\S", _EVERY))),
    "CATEGORY_WORD": frozenset(b"".join(re.findall(rb"\w", _EVERY))),
    "CATEGORY_NOT_WORD": frozenset(b"".join(re.findall(rb"\W", _EVERY))),
}
_BLANK = _CATEGORIES["CATEGORY_SPACE"]


class Chars(NamedTuple):
    """One byte of a set."""

    of: frozenset[int]


class Run(NamedTuple):
    """One after the other."""

    parts: tuple[Node, ...]


class Either(NamedTuple):
    """One of them, the first that fits."""

    parts: tuple[Node, ...]


class Many(NamedTuple):
    """`least` to `most` times; `lazy` prefers few."""

    part: Node
    least: int
    most: int
    lazy: bool


class Edge(NamedTuple):
    """A look at a neighbour (`ahead` or behind), that must or (`negative`) must not be so. `width` in bytes."""

    part: Node
    ahead: bool
    negative: bool
    width: int


class Border(NamedTuple):
    r"""`\b` or `\B`, as written."""

    text: str


Node = Chars | Run | Either | Many | Edge | Border


class Shape(NamedTuple):
    """What is known of a pattern. Texts are patterns of bytes in ASCII."""

    reach: int  # bytes of its longest match
    least: int  # and of its shortest
    blank: bool  # whether a match may hold a space or tab
    lines: bool  # whether a match may hold the end of a line
    lead: bytes  # what every match begins with, byte for byte; perhaps nothing
    words: tuple[bytes, ...]  # in lower case; every match holds one of them; () = nothing is known
    head: tuple[bytes, ...]  # the same of what stands before a match's first blank, in its first bytes
    first: frozenset[int]  # bytes that a match may begin with
    beginning: str  # matches where a text ends in what may be the beginning of a match, or a match that may still grow
    onward: str  # the same of a beginning that holds all of `lead`
    wider: str  # for the first pass: ends close to wherever the pattern does, and perhaps elsewhere


def shape(pattern: str) -> Shape:
    """The shape of `pattern`. Raises ValueError saying what a rule must not hold."""
    try:
        tree = _parser.parse(pattern.encode("ascii"))
    except UnicodeEncodeError:
        raise ValueError(r"has characters beyond ASCII: write their bytes as \xNN") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a pattern: {error}") from None
    node = _run(tree, bool(tree.state.flags & re.IGNORECASE))
    least, most = _width(node)
    if not least > 0:
        raise ValueError("matches nothing at all: it needs at least one byte")
    if most > MAX_REACH:
        raise ValueError(f"has no end, or one beyond {MAX_REACH} bytes: write {{0,200}} instead of *, {{1,200}} for +")
    found = _held(node)
    lead = _lead(node)
    lines = 10 in found
    if lines and len(lead) < 4:
        raise ValueError("may hold the end of a line: then it must begin with four bytes or more that never vary")
    return Shape(
        reach=most,
        least=least,
        blank=bool(found & _BLANK),
        lines=lines,
        lead=lead,
        words=_words(node),
        head=_words(_head(node)),
        first=_starts(node),
        beginning=_beginning(node) + r"\Z",
        onward=_onward(node, len(lead)) + r"\Z",
        wider=_wider(node),
    )


# --- reading -------------------------------------------------------------------------------------------------


def _run(tree: Iterable[Any], fold: bool) -> Node:
    parts: list[Node] = []
    for operation, argument in tree:
        node = _node(str(operation), argument, fold)
        parts += node.parts if isinstance(node, Run) else (node,)
    return parts[0] if len(parts) == 1 else Run(tuple(parts))


def _node(name: str, argument: Any, fold: bool) -> Node:
    if name in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
        return Chars(_set(name, argument, fold))
    if name == "SUBPATTERN":
        _, on, off, tree = argument
        return _run(tree, (fold or bool(on & re.IGNORECASE)) and not off & re.IGNORECASE)
    if name == "BRANCH":
        return Either(tuple(_run(tree, fold) for tree in argument[1]))
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, tree = argument
        part = _run(tree, fold)
        if most > 1 and _ends(part) & _starts(part):
            raise ValueError(
                "repeats a group whose end and beginning may be the same byte: that takes for ever to fail"
            )
        if name == "POSSESSIVE_REPEAT" and not isinstance(part, Chars):  # Python before 3.11.5 does it wrongly
            raise ValueError("repeats a group possessively: only one character or class can be (CPython gh-106052)")
        return Many(part, int(least), int(most), name == "MIN_REPEAT")
    if name in ("ASSERT", "ASSERT_NOT"):
        direction, tree = argument
        part = _run(tree, fold)
        width = _width(part)[1]
        if width > (1 if direction > 0 else MAX_BEHIND):
            raise ValueError(f"looks ahead more than one byte, or back more than {MAX_BEHIND}")
        return Edge(part, direction > 0, name == "ASSERT_NOT", width)
    if name == "AT" and str(argument) in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
        return Border(r"\b" if str(argument) == "AT_BOUNDARY" else r"\B")
    what = {"AT": "an anchor (^, $, \\A, \\Z)", "GROUPREF": "a back reference"}.get(name, name.lower())
    raise ValueError(f"has {what}, which cannot be matched in a stream")


def _set(name: str, argument: Any, fold: bool) -> frozenset[int]:
    if name == "ANY":
        return _ALL - {10}
    if name == "IN":
        found: set[int] = set()
        negative = False
        for kind, value in argument:
            kind = str(kind)
            if kind == "NEGATE":
                negative = True
            elif kind == "LITERAL":
                found.add(value)
            elif kind == "RANGE":
                found.update(range(value[0], value[1] + 1))
            else:
                found |= _CATEGORIES[str(value)]
        folded = _folded(found) if fold else frozenset(found)
        return _ALL - folded if negative else folded
    one = _folded({argument}) if fold else frozenset({argument})
    return _ALL - one if name == "NOT_LITERAL" else one


def _folded(of: Iterable[int]) -> frozenset[int]:
    return frozenset(each for byte in of for each in bytes([byte]).lower() + bytes([byte]).upper())


# --- asking --------------------------------------------------------------------------------------------------


def _width(node: Node) -> tuple[int, int]:
    """The fewest and the most bytes it matches."""
    match node:
        case Chars():
            return 1, 1
        case Run(parts):
            each = [_width(part) for part in parts]
            return sum(low for low, _ in each), sum(high for _, high in each)
        case Either(parts):
            each = [_width(part) for part in parts]
            return min(low for low, _ in each), max(high for _, high in each)
        case Many(part, least, most, _):
            low, high = _width(part)
            return low * least, high * most
    return 0, 0


def _starts(node: Node) -> frozenset[int]:
    """Every byte that it may begin with."""
    match node:
        case Chars(of):
            return of
        case Either(parts):
            return frozenset().union(*(_starts(part) for part in parts))
        case Many(part, _, most, _):
            return _starts(part) if most else frozenset()
        case Run(parts):
            found: frozenset[int] = frozenset()
            for part in parts:
                found |= _starts(part)
                if _width(part)[0]:
                    break
            return found
    return frozenset()


def _ends(node: Node) -> frozenset[int]:
    """Every byte that it may take one more or one fewer of at its end."""
    found: frozenset[int] = frozenset()
    for part in reversed(_parts(node)):
        match part:
            case Either(parts):
                found = found.union(*(_ends(each) for each in parts))
            case Many(each, least, most, _):
                found |= _held(each) if most > least else _ends(each)
        if _width(part)[0]:
            break
    return found


def _held(node: Node) -> frozenset[int]:
    """Every byte that a match may hold."""
    match node:
        case Chars(of):
            return of
        case Run(parts) | Either(parts):
            return frozenset().union(*(_held(part) for part in parts))
        case Many(part, _, most, _):
            return _held(part) if most else frozenset()
    return frozenset()


def _parts(node: Node) -> Sequence[Node]:
    return node.parts if isinstance(node, Run) else (node,)


def _lead(node: Node) -> bytes:
    found = bytearray()
    for part in _parts(node):
        if isinstance(part, Chars) and len(part.of) == 1:
            found += bytes(part.of)
        elif not isinstance(part, Edge | Border):
            break
    return bytes(found)


def _head(node: Node) -> Node:
    """As much of its beginning as holds no blank and is no longer than `SHORT`."""
    if isinstance(node, Either):
        return Either(tuple(_head(part) for part in node.parts))
    parts: list[Node] = []
    width = 0
    for part in _parts(node):
        width += _width(part)[1]
        if width > SHORT:
            break
        if _held(part) & _BLANK:
            parts += [_head(part)] if isinstance(part, Either) else []
            break
        parts.append(part)
    return Run(tuple(parts))


def _words(node: Node) -> tuple[bytes, ...]:
    """Of the texts that every match holds one of, the ones whose shortest is longest."""
    best: tuple[bytes, ...] = ()
    run: tuple[bytes, ...] = (b"",)

    def better(words: tuple[bytes, ...]) -> None:
        nonlocal best
        if words and min(map(len, words)) > min(map(len, best), default=0):
            best = words

    for part in _parts(node):
        if isinstance(part, Chars):
            choices = sorted({bytes([byte]).lower() for byte in part.of}) if len(part.of) <= _CHOICES else []
            if choices and len(run) * len(choices) <= _CHOICES:
                run = tuple(each + choice for each in run for choice in choices)
                continue
        if isinstance(part, Edge | Border):
            continue
        better(run)
        run = (b"",)
        if isinstance(part, Either):
            each = [_words(one) for one in part.parts]
            better(tuple(sorted({word for words in each for word in words})) if all(each) else ())
        elif isinstance(part, Many) and part.least:
            better(_words(part.part))
    better(run)
    return best


# --- writing -------------------------------------------------------------------------------------------------


@functools.cache
def chars(of: frozenset[int]) -> str:
    """The pattern of one byte of a set."""
    if len(of) == 1:
        return f"\\x{next(iter(of)):02x}"
    negative = len(of) > 128
    ranges: list[list[int]] = []
    for byte in sorted(_ALL - of if negative else of):
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1][1] = byte
        else:
            ranges.append([byte, byte])
    if not ranges:
        return r"[\x00-\xff]"
    inside = "".join(f"\\x{low:02x}" + (f"-\\x{high:02x}" if high > low else "") for low, high in ranges)
    return f"[{'^' if negative else ''}{inside}]"


def _plain(node: Node) -> str:
    """The node as it is."""
    match node:
        case Chars(of):
            return chars(of)
        case Run(parts):
            return "".join(_plain(part) for part in parts)
        case Either(parts):
            return f"(?:{'|'.join(_plain(part) for part in parts)})"
        case Many(part, least, most, lazy):
            return f"(?:{_plain(part)}){{{least},{most}}}{'?' if lazy else ''}"
        case Edge(part, ahead, negative, _):
            return f"(?{'' if ahead else '<'}{'!' if negative else '='}{_plain(part)})"
        case Border(text):
            return text


def _beginning(node: Node) -> str:
    r"""The node whole, or as much of it as there is before the text ends. Looking ahead is taken to be well."""
    match node:
        case Chars(of):
            return rf"(?:\Z|{chars(of)})"
        case Run(parts):
            return "".join(_beginning(part) for part in parts)
        case Either(parts):
            return f"(?:{'|'.join(_beginning(part) for part in parts)})"
        case Many(part, least, most, lazy):
            if one := _single(part):
                some = f"{chars(one)}{{{least},{most}}}{'?' if lazy else ''}"
                return rf"(?:{some}|{chars(one)}{{0,{least}}}\Z)" if least else some
            return f"(?:{_beginning(part)}){{{least},{most}}}{'?' if lazy else ''}"
        case Edge(_, ahead, _, _):
            return "" if ahead else _plain(node)
        case Border(text):
            return rf"(?:{text}|\Z)"


def _single(node: Node) -> frozenset[int]:
    """The bytes of which it is one, if looking ahead is well; none where it may be more than a byte."""
    match node:
        case Chars(of):
            return of
        case Either(parts):
            each = [_single(part) for part in parts]
            return frozenset().union(*each) if all(each) else frozenset()
        case Run(parts):
            solid = [part for part in parts if not (isinstance(part, Edge) and part.ahead)]
            return _single(solid[0]) if len(solid) == 1 else frozenset()
    return frozenset()


def _onward(node: Node, lead: int) -> str:
    """As `_beginning`, but for the first bytes, `lead` of them, which are there."""
    text = ""
    for part in _parts(node):
        whole = isinstance(part, Chars) and lead > 0
        text += _plain(part) if whole else _beginning(part)
        lead -= whole
    return text


def _wider(node: Node) -> str:
    """For the first pass. Nothing is looked at but matched; a run at either end is as short as it can be."""
    parts = _sharp(_parts(node))
    first = "".join(_wide_edge(part) for part in parts if isinstance(part, Edge) and not part.ahead and _one(part))
    last = "".join(_wide_edge(part) for part in parts if isinstance(part, Edge) and part.ahead and _one(part))
    starts = isinstance(parts[0], Edge) and not parts[0].ahead
    ends = isinstance(parts[-1], Edge) and parts[-1].ahead
    middle = parts[1 if starts else 0 : -1 if ends else None]
    loose_start = _varies(middle[0])
    loose_end = _varies(middle[-1])
    text = ""
    for number, part in enumerate(middle):
        outer = (number == 0 and loose_start) or (number == len(middle) - 1 and loose_end)
        text += _shortest(part) if outer else _wide(part)
    return (first if starts and not loose_start else "") + text + (last if ends and not loose_end else "")


def _sharp(parts: Sequence[Node]) -> list[Node]:
    """Without what stands before the first byte that never varies, but for one part: every match holds the rest too."""
    for number, part in enumerate(parts):
        if isinstance(part, Chars) and len(part.of) == 1:
            known = number < 2 or _words(Run(tuple(parts[:number])))
            return list(parts if known else parts[number - 1 :])
    return list(parts)


def _one(edge: Edge) -> bool:
    return isinstance(edge.part, Chars)


def _varies(node: Node) -> bool:
    return isinstance(node, Many) and (node.most > node.least or node.least > _ENOUGH)


def _wide_edge(edge: Edge) -> str:
    assert isinstance(edge.part, Chars)
    of = _ALL - edge.part.of if edge.negative else edge.part.of
    outside = (r"\z" if edge.ahead else "^") if edge.negative else ""
    return f"(?:{outside}|{chars(of)})" if outside else chars(of)


def _shortest(node: Node) -> str:
    assert isinstance(node, Many)
    return f"{_wide(node.part)}{{{min(node.least, _ENOUGH)}}}" if node.least else ""


def _wide(node: Node) -> str:
    match node:
        case Run(parts):
            return f"(?:{''.join(_wide(part) for part in parts)})"
        case Either(parts):
            return f"(?:{'|'.join(_wide(part) for part in parts)})"
        case Many(part, least, most, _):
            if most - least > _LONG or least > _ENOUGH:
                return f"{_wide(part)}{{{min(least, _ENOUGH)},}}"
            return f"{_wide(part)}{{{least},{most}}}"
        case Edge() | Border():
            return ""
    return _plain(node)
