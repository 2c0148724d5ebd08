"""The picture of `runner bench`: latencies beside their baselines, budgets as shares of their goals, a call's steps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runner.cli.bench_row import Row, caption, verdict, words

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
_MET = {"goal": "#009E73", "floor": "#E69F00", "not goal": "#E69F00", "no": "#D55E00", "": "#999999"}
_SAID = {
    "#009E73": "reaches its goal",
    "#E69F00": "misses its goal",
    "#D55E00": "misses its floor",
    "#999999": "no goal",
}
_PEERS = {
    "relay_p50": ("bare relay", "^"),
    "posix_spawn": ("posix_spawn", "o"),
    "interpreter_start": ("bare python3", "v"),
    "bwrap": ("bwrap", "s"),
    "docker_exec": ("docker exec", "D"),
    "docker_exec_python": ("docker exec", "D"),
    "docker_run": ("docker run", "P"),
}
_STEPS = ("#0072B2", "#56B4E9", "#CC79A7", "#F0E442", "#E69F00", "#009E73", "#D55E00", "#999999", "#332288")
_INSIDE = "of_it_the_process"
_FARTHEST = 10.0  # times its goal: what is beyond is drawn as an arrow, so that the others can be told apart
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG = 44  # characters of a label on one line


class Bar(NamedTuple):
    """One latency: its label, milliseconds, bounds in ms (0 = none), what it keeps, and its peers' milliseconds."""

    label: str
    value: float
    goal: float
    floor: float
    met: str
    peers: dict[str, float]


class Share(NamedTuple):
    """Another figure: its label, how much of its goal it reaches (1 = the goal, more is better), the same of its floor
    (0 = none), what it keeps, and figure and goal in words."""

    label: str
    share: float
    floor: float
    met: str
    said: str


def bars(rows: Iterable[Row]) -> list[Bar]:
    """Every latency that is bounded, or that is judged against its peers. Zero has no place on a log axis."""
    found = []
    for row in rows:
        peers = {name.removesuffix("_ms"): value for name, value in row["baseline"].items() if name.endswith("_ms")}
        asked = [name for name in dict.fromkeys([*row["goal"], *row["floor"]]) if name.endswith("_ms")]
        if any(name.startswith("over_") for name in row["goal"]):
            asked = list(dict.fromkeys(["median_ms", *asked]))
        for number, name in enumerate(asked):
            if (value := row["figures"][name]) > 0:
                goal, floor = (_number(row[level].get(name, "")) for level in ("goal", "floor"))
                met = verdict(row, name) or row["met"]
                shown = {peer: at for peer, at in peers.items() if peer in _PEERS} if number == 0 else {}
                found.append(Bar(_label(row, name), value, goal, floor, met, shown))
    return found


def shares(rows: Iterable[Row]) -> list[Share]:
    """Every other bounded figure, as a share of its goal. A goal of 0 has no share."""
    found = []
    for row in rows:
        for name, bound in row["goal"].items():
            value = {**row["figures"], **row["ratios"]}[name]
            sign, goal, floor = bound.split()[0], _number(bound), _number(row["floor"].get(name, ""))
            if name.endswith("_ms") or not goal or value <= 0:
                continue
            unit = words(name)[1]
            written = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            said = f"{written} {unit}".strip() + _goal(bound)
            at_floor = _share(floor, sign, goal) if floor else 0.0
            found.append(Share(_label(row, name), _share(value, sign, goal), at_floor, verdict(row, name), said))
    return found


def steps(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """The steps of a warm call in order, in ms, the tool's own time apart; nothing when they were not measured."""
    row = next((row for row in rows if f"{_INSIDE}_us" in row["figures"]), None)
    if row is None:
        return []
    names = [name for name in row["ratios"] if name.endswith("_share") and name != "all_share"]
    found = {name.removesuffix("_share"): row["figures"][f"{name.removesuffix('_share')}_us"] / 1000 for name in names}
    inside = found.pop(_INSIDE)
    longest = max(found, key=lambda name: found[name])  # the step that the process runs in
    parts: list[tuple[str, float]] = []
    for name, value in found.items():
        if name == longest:
            parts += [("the tool's process", inside), (f"{name}, besides it", max(value - inside, 0.0))]
        else:
            parts.append((name, max(value, 0.0)))
    return [(name.replace("_", " "), value) for name, value in parts]


def _label(row: Row, figure: str) -> str:
    name = words(figure)[0]
    text = row["row"] if name == "median" else f"{row['name'].replace('_', ' ')}: {name}"
    return textwrap.fill(text, _LONG)


def _goal(bound: str, name: str = "goal") -> str:
    return f"  ({name} {'≥' if bound.startswith('>') else '≤'} {_number(bound):,g})"


def _said(bar: Bar) -> str:
    asked = ((bar.goal, "goal"), (bar.floor, "floor"))
    return f"{bar.value:.3g} ms" + next((_goal(f"<= {bound}", name) for bound, name in asked if bound), "")


def _number(bound: str) -> float:
    return float(bound.split()[1]) if bound else 0.0


def _share(value: float, sign: str, goal: float) -> float:
    return value / goal if sign == ">=" else goal / value


# --- drawing --------------------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw what there is of the three parts into `path`. Needs matplotlib, imported here: no other command does."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    one, two, three = bars(rows), shares(rows), steps(rows)
    parts: list[tuple[float, Callable[[Any], None]]] = []
    if one:
        parts.append((0.38 * len(one) + 1.3, lambda axes: _latencies(axes, one)))
    if two:
        parts.append((0.33 * len(two) + 1.2, lambda axes: _budgets(axes, two)))
    if three:
        parts.append((2.6, lambda axes: _stack(axes, three)))
    if not parts:
        parts.append((1.0, lambda axes: axes.set_axis_off()))
    heights = [height for height, _ in parts]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"}):
        figure = Figure(figsize=(12, sum(heights) + 1.2))
        # The column of figures to the right, and legends, are not laid out: they have room that is kept for them.
        figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.12, rect=(0, 0, 0.81, 1)))
        grid = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)
        for axes, (_, put) in zip(grid[:, 0], parts, strict=True):
            put(axes)
        smoke = " · a smoke run: it proves nothing" if any(row.get("quick") for row in rows) else ""
        figure.suptitle("What a call costs", fontsize=15, fontweight="bold", x=0.01, ha="left")
        note = textwrap.fill(caption(rows[-1]) + smoke, 155)
        figure.supxlabel(note, fontsize=8.5, color="#444444", x=0.01, ha="left")
        figure.savefig(path, dpi=150)


def _latencies(axes: Any, found: list[Bar]) -> None:
    """Bars on a log axis, with the peers of the same run and the bounds."""
    marks: dict[str, Any] = {}
    for y, bar in enumerate(found):
        axes.barh(y, bar.value, height=0.56, color=_MET[bar.met], zorder=2)
        for bound, style, name in ((bar.goal, "-", "goal"), (bar.floor, ":", "floor")):
            if bound:
                marks[name] = axes.plot([bound, bound], [y - 0.4, y + 0.4], style, color="black", lw=2, zorder=4)[0]
        for peer, value in bar.peers.items():
            name, sign = _PEERS[peer]
            marks[name] = axes.plot(value, y, sign, color="white", mec="#0072B2", mew=1.6, ms=6.5, zorder=6, ls="")[0]
    axes.set_xscale("log")
    every = [value for bar in found for value in (bar.value, bar.goal, bar.floor, *bar.peers.values()) if value]
    axes.set_xlim(min(every) / 1.6, max(every) * 1.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds, log scale: shorter is better")
    _finish(axes, "Latency, beside the baselines of the same run", [bar.label for bar in found])
    _beside(axes, [_said(bar) for bar in found])
    _legend(axes, [bar.met for bar in found], marks)


def _budgets(axes: Any, found: list[Share]) -> None:
    """How much of each goal is reached: 1 is the goal, whatever its unit and direction."""
    marks: dict[str, Any] = {}
    for y, share in enumerate(found):
        axes.barh(y, min(share.share, _FARTHEST), height=0.56, color=_MET[share.met], zorder=2)
        if share.share > _FARTHEST:
            axes.plot(_FARTHEST * 0.93, y, ">", color="white", ms=6, zorder=5)
        if share.floor:
            line = axes.plot([share.floor] * 2, [y - 0.4, y + 0.4], ":", color="black", lw=2, zorder=4)
            marks["floor"] = line[0]
    marks["goal"] = axes.axvline(1, color="black", lw=2, zorder=3)
    axes.set_xscale("log")
    least = min(min(share.share, share.floor or 1.0) for share in found)
    axes.set_xlim(min(least, 0.5) / 1.3, _FARTHEST)
    axes.set_xticks([at for at in _TICKS if min(least, 0.5) / 1.3 <= at], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("share of the goal that is reached, log scale: longer is better, 1 is the goal")
    _finish(axes, "Throughput, memory, scale and ratios, against their goals", [share.label for share in found])
    _beside(axes, [share.said for share in found])
    _legend(axes, [share.met for share in found], marks)


def _stack(axes: Any, found: list[tuple[str, float]]) -> None:
    """One bar of steps."""
    left, total = 0.0, sum(value for _, value in found)
    for number, (name, value) in enumerate(found):
        label = f"{name}: {value:.2f} ms, {value / total:.0%}"
        axes.barh(0, value, left=left, height=0.6, color=_STEPS[number % len(_STEPS)], label=label, zorder=2)
        left += value
    axes.set_xlim(0, total)
    axes.set_xlabel("milliseconds")
    _finish(axes, "Where the time of a warm call goes (medians)", ["a warm call"], rows=-(-len(found) // 3))
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 0.98), frameon=False, fontsize=9, ncols=3).set_in_layout(False)


def _finish(axes: Any, title: str, labels: list[str], rows: int = 2) -> None:
    """`rows` of legend lie between the title and the axes."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=8 + 16 * rows, x=0)
    axes.grid(axis="x", which="major", color="#dddddd", zorder=0)


def _beside(axes: Any, texts: list[str]) -> None:
    """A column of figures to the right, where no mark can hide them."""
    for y, text in enumerate(texts):
        said = axes.annotate(
            text, (1.0, y), (8, 0), axes.get_yaxis_transform(), "offset points", va="center", fontsize=9.5
        )
        said.set_in_layout(False)


def _legend(axes: Any, met: Iterable[str], marks: dict[str, Any]) -> None:
    """Only what is drawn, colours first, above the bars."""
    from matplotlib.patches import Patch

    used = {_MET[one] for one in met}
    colours: dict[str, Any] = {said: Patch(color=colour) for colour, said in _SAID.items() if colour in used}
    entries = colours | {name: marks[name] for name in ("goal", "floor") if name in marks}
    entries |= {name: mark for name, mark in marks.items() if name not in entries}
    legend = axes.legend(
        entries.values(), entries.keys(), loc="lower left", bbox_to_anchor=(0.0, 0.985), frameon=False, fontsize=9,
        ncols=6, columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2,
    )  # fmt: skip
    legend.set_in_layout(False)
