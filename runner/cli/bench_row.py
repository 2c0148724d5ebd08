"""What a bench's row says, in words: figures with their units, what each of them keeps, and where they come from."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

Row = dict[str, Any]  # see tests/bench/common.py

_SIGNS = {"<=": operator.le, ">=": operator.ge}
_UNITS = {"mb_per_s": "MB/s", "per_s": "/s", "ms": "ms", "us": "µs", "mb": "MB", "percent": "%", "s": "s"}


def missed(rows: Iterable[Row], level: str) -> list[str]:
    """The rows that have bounds and do not keep this one."""
    enough = ("goal",) if level == "goal" else ("goal", "floor")
    return [row["name"] for row in rows if row["met"] and row["met"] not in enough]


def holds(value: float, bound: str) -> bool:
    """Whether a value keeps a bound such as `<= 1.5`."""
    sign, number = bound.split()
    return bool(_SIGNS[sign](value, float(number)))


def verdict(row: Row, figure: str) -> str:
    """What one figure of a row keeps: `goal`, `floor`, or `no`; `not goal` where it has no floor to miss; "" where
    nothing is asked of it."""
    value = {**row["figures"], **row["ratios"]}[figure]
    for level in ("goal", "floor"):
        if figure in row[level] and holds(value, row[level][figure]):
            return level
    return "no" if figure in row["floor"] else "not goal" if figure in row["goal"] else ""


def words(figure: str) -> tuple[str, str]:
    """A figure's name without its unit, and the unit: names end in it."""
    for suffix, unit in _UNITS.items():
        if figure == suffix or figure.endswith(f"_{suffix}"):
            return figure.removesuffix(suffix).strip("_").replace("_", " ") or "rate", unit
    return figure.replace("_", " "), ""


def amount(value: float, unit: str) -> str:
    """A number and its unit, as a person writes it."""
    return f"{value:,} {unit}".strip()


def lines(row: Row) -> list[tuple[str, ...]]:
    """The lines of a row in the table: what is asked of it, or else all it found; its ratios beside that."""
    values = {**row["figures"], **row["ratios"]}
    judged = list(dict.fromkeys([*row["goal"], *row["floor"]])) or list(row["figures"])
    beside = [name for name in row["ratios"] if name not in judged]
    found: list[tuple[str, ...]] = []
    for number, (figure, ratio) in enumerate(zip_longest(judged, beside)):
        name, unit = words(figure) if figure else ("", "")
        found.append(
            (
                row["name"] if not number else "",
                name,
                amount(values[figure], unit) if figure else "",
                row["goal"].get(figure, ""),
                row["floor"].get(figure, ""),
                verdict(row, figure) if figure else "",
                f"{ratio.replace('_', ' ')}: {values[ratio]:,}" if ratio else "",
            )
        )
    return found


def caption(row: Row) -> str:
    """Where and when."""
    of = row.get("machine", {})
    return (
        f"{of.get('date', '')} · commit {of.get('commit', '')} · {of.get('cpus', '?')} cores of {of.get('cpu', '?')}, "
        f"{of.get('memory_gib', '?')} GiB · Linux {of.get('kernel', '?')} · Docker {of.get('docker', '?')}, "
        f"{of.get('runtime', '?')}, cgroup v{of.get('cgroup', '?')} · Python {of.get('python', '?')} · "
        f"load {of.get('load', '?')}"
    )
