"""Which rules no call reaches: over the bundle's cases and a grid of boundary values, by asking the engine.

Requests to destinations are asked about as the cases have them: there is no schema whose boundaries could be tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice, product

import msgspec

from runner.gate.serving import Serving
from runner.model import Manifest
from runner.review.cases import Case, EgressPoint, Point
from runner.review.values import Change, changes, plain, rule_changes

_BASES = 64  # cases of one tool that the grid is laid around
_GRID = 20_000  # calls of one tool asked about
_MOST_TEXT = 1 << 28  # and characters of their arguments: half a minute, where a case is long
_TOGETHER = 2000  # calls in which a rule's own conditions are tried together


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """`unreached` are ids of rules that held for none of `asked` calls; `bare` are tools without any call to ask."""

    unreached: tuple[str, ...]
    asked: int
    bare: tuple[str, ...]
    cut: tuple[str, ...]  # tools whose grid has more calls than were asked about


def reach(served: Serving, cases: Sequence[Case]) -> Reach:
    """Ask until each rule held once, or the grid ends."""
    missing = {rule.id for rule in served.policies.all_rules}
    asked, bare, cut = 0, [], []
    for manifest in served.tools.values():
        bases = _bases(served, manifest, cases)
        if not bases:
            bare.append(manifest.id)
        here = {rule.id for rule in served.policies.rules(manifest.id)}
        longest = max((len(json.dumps(base.question.arguments)) for base in bases), default=1)
        count, most = 0, min(_GRID, _MOST_TEXT // longest)
        for point in islice(_grid(served, manifest, bases, here, missing), most):
            count += 1
            missing -= set(point.matching(served))
        if count == most:
            cut.append(manifest.id)
        asked += count
    for case in cases:
        if isinstance(case.point, EgressPoint):
            missing -= set(case.point.matching(served))
            asked += 1
    order = [rule.id for rule in served.policies.all_rules]
    return Reach(
        unreached=tuple(each for each in order if each in missing), asked=asked, bare=tuple(bare), cut=tuple(cut)
    )


def _bases(served: Serving, manifest: Manifest, cases: Sequence[Case]) -> list[Point]:
    found = [case.point for case in cases if case.tool == manifest.id and isinstance(case.point, Point)][:_BASES]
    first = plain(served, manifest)
    return [point for point in (*found, first) if point is not None and point.valid(served)]


def _grid(
    served: Serving, manifest: Manifest, bases: Sequence[Point], here: set[str], missing: set[str]
) -> Iterator[Point]:
    """The calls of a tool; ends when none of its rules is missing any more."""
    yield from bases
    for base in bases:
        for change in changes(base, served):
            if not here & missing:
                return
            yield change.onto(base)
    for rule in served.policies.rules(manifest.id):
        if rule.id in missing:
            for base in bases:
                yield from islice(_together(base, rule_changes(base, served, rule)), _TOGETHER)


def _together(base: Point, found: Sequence[Change]) -> Iterator[Point]:
    """Several attributes changed at once: every way to take one change, or none, of each."""
    fields: dict[str, list[Change | None]] = {}
    for change in found:
        fields.setdefault(change.field, [None]).append(change)
    for chosen in product(*fields.values()):
        point = base
        for each in chosen:
            point = each.onto(point) if each is not None else point
        yield point
