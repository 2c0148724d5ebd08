"""Argument constraints: when one is well-formed (the draft, §3.4), what it accepts, what it subsumes (§4.5).

One row per type in `KINDS`; a type that is not there denies. The core types are all of the draft's; the one
extension is `path_containment`, as its §5.3 example, read on the lexical normal form (a relative path is taken from
/workspace). Values are compared by their RFC 8785 form, and numbers by size as the doubles that this form denotes.
Every public function is total: hostile input is False, or a reason, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from runner.token.jcs import EXACT, canonical
from runner.token.narrow import describe, narrow_schema
from runner.token.paths import beneath, normal_path

__all__ = [
    "MAX_DEPTH",
    "Work",
    "check",
    "confined_to",
    "describe",
    "narrow_schema",
    "normal_path",
    "problem",
    "subsumes",
]

MAX_DEPTH = 32  # the draft's recommended MAX_CONSTRAINT_DEPTH
MAX_WORK = 10_000  # comparisons per derivation step (10 ms): pairs of clauses multiply, and it is gate's time
_HOSTILE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class Work:
    """How many comparisons a subsumption may still make, and what it has serialised for them."""

    __slots__ = ("_texts", "left")

    def __init__(self, left: int = MAX_WORK) -> None:
        self.left = left
        self._texts: dict[int, tuple[list[Any], set[bytes]]] = {}

    def texts(self, values: list[Any]) -> set[bytes]:
        """The canonical texts of a token's list, made once however many pairs of clauses ask: pairs multiply, and a
        list may be as long as its token. Raises ValueError."""
        found = self._texts.get(id(values))
        if found is None:  # kept beside its texts, so that no other list can have its id
            found = self._texts[id(values)] = (values, _texts(values))
        return found[1]

    def spend(self, amount: int) -> None:
        """Take `amount`; raises ValueError when there is not so much left."""
        self.left -= amount
        if self.left < 0:
            raise ValueError("too many comparisons")


class _Subject:
    """An argument's value, and what several constraints want to know of it, computed once."""

    __slots__ = ("_elements", "_path", "_text", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._path: str | None = ""
        self._text: bytes | None = None
        self._elements: set[bytes] | None = None

    @property
    def text(self) -> bytes:
        if self._text is None:
            self._text = canonical(self.value)
        return self._text

    @property
    def path(self) -> str | None:
        if self._path == "":
            self._path = normal_path(self.value)
        return self._path

    @property
    def elements(self) -> set[bytes]:
        if self._elements is None:
            self._elements = _texts(self.value)
        return self._elements


class _Kind(NamedTuple):
    members: frozenset[str]
    problem: Callable[[Mapping[str, Any], int], str]
    accepts: Callable[[Mapping[str, Any], _Subject, int], bool]
    subsumes: Callable[[Mapping[str, Any], Mapping[str, Any], int, Work], bool]


def problem(constraint: object, depth: int = MAX_DEPTH, *, nested: bool = False) -> str:
    """Why `constraint` is not well-formed, nests deeper than `depth`, or is of an unknown type; "" when it is fine."""
    if depth <= 0:
        return "nested too deeply"
    if type(constraint) is not dict:
        return "a constraint is not an object"
    kind = _kind(constraint)
    if kind is None:
        return "the constraint type is not known here"
    extra = constraint.keys() - kind.members - {"constraint_type"}
    if "optional" in extra and not nested:
        extra.discard("optional")
        if type(constraint["optional"]) is not bool:
            return "optional is not a boolean"
    if extra:
        return "a constraint has a member its type does not define"
    return kind.problem(constraint, depth)


def check(constraint: Mapping[str, Any], value: Any) -> bool:
    """Whether `constraint` accepts `value`. False for a constraint or a value that is not well-formed."""
    try:
        return _accepts(constraint, _Subject(value), MAX_DEPTH)
    except _HOSTILE:
        return False


def subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], work: Work | None = None) -> bool:
    """Whether every value that `child` accepts is accepted by `parent`, by the table of §4.5 alone: conservative, and
    False when the comparison would cost more than `work` has left. Both must be well-formed (`problem`)."""
    try:
        return _subsumes(parent, child, MAX_DEPTH, work or Work())
    except _HOSTILE:
        return False


def confined_to(constraint: Mapping[str, Any]) -> str:
    """The folder, in normal form, beneath which every path lies that `constraint` accepts; "" when it names none."""
    try:
        return _confined_to(constraint, MAX_DEPTH)
    except _HOSTILE:
        return ""


def _confined_to(constraint: Mapping[str, Any], depth: int) -> str:
    kind = constraint["constraint_type"]
    if kind == "path_containment":
        return normal_path(constraint["root"]) or ""
    if kind == "all" and depth > 0:
        return max((_confined_to(clause, depth - 1) for clause in constraint["constraints"]), key=len, default="")
    return ""


def _kind(constraint: Mapping[str, Any]) -> _Kind | None:
    name = constraint.get("constraint_type")
    return KINDS.get(name) if type(name) is str else None


def _accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    kind = _kind(constraint)
    return depth > 0 and kind is not None and kind.accepts(constraint, subject, depth)


# Parents whose rule for a derived `exact` is: the parent accepts its value.
_TAKES_EXACT = frozenset({"exact", "range", "one_of", "path_containment"})


def _subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    above, below = _kind(parent), _kind(child)
    if depth <= 0 or above is None or below is None:
        return False
    work.spend(1)
    name = parent["constraint_type"]
    if name == "wildcard":
        return True
    if child["constraint_type"] == "exact" and name in _TAKES_EXACT:
        work.spend(len(parent.get("values", ())) + len(parent.get("root", "")) // 32)
        if name == "one_of" and type(child["value"]) is not str:
            return canonical(child["value"]) in work.texts(parent["values"])
        return _accepts(parent, _Subject(child["value"]), 1)
    return above is below and above.subsumes(parent, child, depth, work)


def _texts(values: Iterable[Any]) -> set[bytes]:
    return {canonical(value) for value in values}


def _double(value: object) -> float | None:
    """A number as the double it denotes, None when it is none. Two ways to write one double are one value to `exact`
    (1152921504606847000 and 1.152921504606847e18), so they are to `range`."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is not int:
        return None
    if -EXACT <= value <= EXACT:
        return float(value)
    try:
        return float(canonical(value))
    except ValueError:
        return None


# --- exact ---------------------------------------------------------------------------------------------


def _exact_problem(constraint: Mapping[str, Any], depth: int) -> str:
    if "value" not in constraint or isinstance(constraint["value"], list | dict):
        return "exact needs a scalar `value`"
    return ""


def _exact_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    value = constraint["value"]
    if type(value) is str or type(subject.value) is str:
        return type(value) is type(subject.value) and bool(value == subject.value)
    return not isinstance(subject.value, list | dict) and canonical(value) == subject.text


def _never(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    return False


# --- range ---------------------------------------------------------------------------------------------

_BOUNDS = (("min", "min_inclusive", 1), ("max", "max_inclusive", -1))


def _range_problem(constraint: Mapping[str, Any], depth: int) -> str:
    for bound, inclusive, _ in _BOUNDS:
        if bound in constraint and _double(constraint[bound]) is None:
            return f"range: {bound} is not a number"
        if inclusive in constraint and (bound not in constraint or type(constraint[inclusive]) is not bool):
            return f"range: {inclusive} is not a boolean beside {bound}"
    low, high = _double(constraint.get("min")), _double(constraint.get("max"))
    if low is not None and high is not None and low > high:
        return "range: min is greater than max"
    return ""


def _range_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    value = _double(subject.value)
    if value is None:
        return False
    for bound, inclusive, sign in _BOUNDS:
        if bound in constraint:
            limit = _double(constraint[bound])
            if limit is None or sign * value < sign * limit:
                return False
            if value == limit and not constraint.get(inclusive, True):
                return False
    return True


def _range_subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    for bound, inclusive, sign in _BOUNDS:
        if bound not in parent:
            continue
        above, below = _double(parent[bound]), _double(child.get(bound))
        if above is None or below is None or sign * below < sign * above:
            return False
        if below == above and child.get(inclusive, True) and not parent.get(inclusive, True):
            return False
    return True


# --- sets ------------------------------------------------------------------------------------------------


def _array_problem(member: str, *, filled: bool = False) -> Callable[[Mapping[str, Any], int], str]:
    def wrong(constraint: Mapping[str, Any], depth: int) -> str:
        values = constraint.get(member)
        if type(values) is not list or (filled and not values):
            return f"`{member}` is not {'a non-empty' if filled else 'an'} array"
        return ""

    return wrong


def _member(subject: _Subject, values: list[Any]) -> bool:
    if type(subject.value) is str:
        return subject.value in values
    text = subject.text
    return any(type(value) is not str and canonical(value) == text for value in values)


def _one_of_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return _member(subject, constraint["values"])


def _not_one_of_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return not _member(subject, constraint["excluded"])


def _contains_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return type(subject.value) is list and _texts(constraint["required"]) <= subject.elements


def _subset_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return type(subject.value) is list and subject.elements <= _texts(constraint["allowed"])


def _fewer(member: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], int, Work], bool]:
    """The derived set may only lose elements."""

    def narrows(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
        work.spend(len(parent[member]) + len(child[member]))
        return work.texts(child[member]) <= work.texts(parent[member])

    return narrows


def _more(member: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], int, Work], bool]:
    """The derived set may only gain elements."""

    def narrows(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
        work.spend(len(parent[member]) + len(child[member]))
        return work.texts(child[member]) >= work.texts(parent[member])

    return narrows


# --- wildcard, all, any -------------------------------------------------------------------------------------


def _wildcard_problem(constraint: Mapping[str, Any], depth: int) -> str:
    return ""


def _wildcard_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return True


def _clauses_problem(constraint: Mapping[str, Any], depth: int) -> str:
    clauses = constraint.get("constraints")
    if type(clauses) is not list or not clauses:
        return "`constraints` is not a non-empty array"
    return next(filter(None, (problem(clause, depth - 1, nested=True) for clause in clauses)), "")


def _all_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    clauses = constraint["constraints"]
    return bool(clauses) and all(_accepts(clause, subject, depth - 1) for clause in clauses)


def _any_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return any(_accepts(clause, subject, depth - 1) for clause in constraint["constraints"])


def _all_subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    below = child["constraints"]
    return all(any(_subsumes(p, c, depth - 1, work) for c in below) for p in parent["constraints"])


def _any_subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    above = parent["constraints"]
    return all(any(_subsumes(p, c, depth - 1, work) for p in above) for c in child["constraints"])


# --- path_containment (the draft's §5.3 example) -----------------------------------------------------------


def _path_problem(constraint: Mapping[str, Any], depth: int) -> str:
    root = constraint.get("root")
    if type(root) is not str or not root.startswith("/") or normal_path(root) is None:
        return "path_containment: `root` is not an absolute path"
    return ""


def _path_accepts(constraint: Mapping[str, Any], subject: _Subject, depth: int) -> bool:
    return beneath(normal_path(constraint["root"]), subject.path)


def _path_subsumes(parent: Mapping[str, Any], child: Mapping[str, Any], depth: int, work: Work) -> bool:
    work.spend((len(parent["root"]) + len(child["root"])) // 32)
    return beneath(normal_path(parent["root"]), normal_path(child["root"]))


def _names(*members: str) -> frozenset[str]:
    return frozenset(members)


KINDS: dict[str, _Kind] = {
    "exact": _Kind(_names("value"), _exact_problem, _exact_accepts, _never),  # exact under exact: see _TAKES_EXACT
    "range": _Kind(
        _names("min", "max", "min_inclusive", "max_inclusive"), _range_problem, _range_accepts, _range_subsumes
    ),
    "one_of": _Kind(_names("values"), _array_problem("values", filled=True), _one_of_accepts, _fewer("values")),
    "not_one_of": _Kind(_names("excluded"), _array_problem("excluded"), _not_one_of_accepts, _more("excluded")),
    "contains": _Kind(_names("required"), _array_problem("required"), _contains_accepts, _more("required")),
    "subset": _Kind(_names("allowed"), _array_problem("allowed"), _subset_accepts, _fewer("allowed")),
    "wildcard": _Kind(_names(), _wildcard_problem, _wildcard_accepts, _never),  # as a parent: see _subsumes
    "all": _Kind(_names("constraints"), _clauses_problem, _all_accepts, _all_subsumes),
    "any": _Kind(_names("constraints"), _clauses_problem, _any_accepts, _any_subsumes),
    "path_containment": _Kind(_names("root"), _path_problem, _path_accepts, _path_subsumes),
}
