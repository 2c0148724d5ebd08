"""`runner bench`: the benches of a checkout, run and told: a table, JSON, a picture. The benches do the measuring."""

from __future__ import annotations

import ast
import json as jsonlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

import runner
from runner.cli import bench_plot
from runner.cli.bench_row import Row, caption, lines, missed
from runner.cli.tables import print_table, print_text
from runner.config import Users
from runner.engine.docker import Docker
from runner.errors import EXIT_TOOL, refuse
from runner.serve.privilege import group_id, user_id

EPILOG = "Example: runner bench warm_call fresh_jail --out speed.json --plot speed.png"
_FIRST = (  # in the order of the budgets; whatever else there is comes after
    *("gate_overhead", "sealed_decisions", "warm_call", "fresh_jail", "first_call_pooled", "first_call_cold"),
    *("throughput", "python_tool", "filtered_output", "long_output"),
    *("egress_decision", "egress_request", "egress_bulk", "egress_close", "egress_end", "network_call"),
    *("memory", "many_calls", "million_entries"),
)
_PLOTS = (".png", ".svg", ".pdf")


class Bench(NamedTuple):
    """One script, and what it says it measures."""

    name: str
    title: str
    path: Path


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ROW]...", help="Which; all by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run: its figures prove nothing.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Say what there is, and run nothing.")] = False,
    read: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run nothing: show what --out wrote earlier.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON here.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a picture here: .png, .svg or .pdf.")] = None,
    check: Annotated[
        Literal["goal", "floor"] | None, typer.Option(help="Exit with status 1 when a row misses this.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure this host against the budgets, each figure beside a baseline of the same run. Takes about ten minutes;
    needs a checkout, root and Docker, and a host that does nothing else.

    Exit status 0 whatever the figures are, unless --check; 1 when a bench broke."""
    if listing:
        _list(json=json)
        return
    _check_files(out, plot)
    if read is not None:
        result = _read(read)
    else:
        wanted = _chosen(names or [])
        _ready()
        result = {"quick": quick, "rows": [], "broken": []}
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a bench is told, and cleans up
        try:
            _measure(wanted, result)
        finally:
            signal.signal(signal.SIGTERM, before)
    if out is not None:
        out.write_text(jsonlib.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None and result["rows"]:
        bench_plot.draw(result["rows"], plot)
    if json:
        print(jsonlib.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show(result)
    if result["broken"] or (check and missed(result["rows"], check)):
        raise typer.Exit(EXIT_TOOL)


# --- what there is --------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where the benches lie. Raises `RunnerError` (not_supported) where there is no checkout."""
    checkout = Path(runner.__file__).resolve().parents[1]
    found = checkout / "tests" / "bench"
    if not (checkout / "pyproject.toml").is_file() or not found.is_dir():
        raise refuse(
            "not_supported",
            "the benches are a part of the source tree, and this is an installed package",
            next_step="run it from a checkout: scripts/setup, then runner bench",
        )
    return found


def benches(place: Path) -> Iterator[Bench]:
    """Each script that can be run, with the first line of what it says of itself; the rest there is shared code."""
    order = {name: number for number, name in enumerate(_FIRST)}
    for path in sorted(place.glob("*.py"), key=lambda path: (order.get(path.stem, len(order)), path.stem)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
            yield Bench(path.stem, (ast.get_docstring(tree) or path.stem).partition("\n")[0], path)


def _chosen(names: list[str]) -> list[Bench]:
    known = {each.name: each for each in benches(folder())}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no bench `{name}`; see runner bench --list", param_hint="ROW")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


def _list(*, json: bool) -> None:
    found = [(each.name, each.title) for each in benches(folder())]
    if json:
        print(jsonlib.dumps([{"name": name, "title": title} for name, title in found], indent=2, ensure_ascii=False))
    else:
        print_table(("row", "measures"), found)


def _check_files(out: Path | None, plot: Path | None) -> None:
    """Everything that would spoil the end of a long run, before it begins."""
    if plot is not None and plot.suffix not in _PLOTS:
        raise typer.BadParameter(f"name a file that ends in {', '.join(_PLOTS)}", param_hint="--plot")
    if plot is not None and find_spec("matplotlib") is None:
        raise refuse(
            "unavailable",
            "a picture needs matplotlib, which is not installed",
            next_step='pip install "toolrunner[bench]", in a checkout: pip install -e ".[bench]"',
        )
    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.resolve().parent}", param_hint=option)


def _ready() -> None:
    """What a daemon needs. Raises `RunnerError` naming what is missing, and the next step."""
    if os.geteuid() != 0:
        raise refuse("host", "runner bench starts daemons, which needs root", next_step="run it with sudo")
    users = Users()
    for name in (users.gate, users.recorder):
        user_id(name)
    group_id(users.agents_group)
    if find_spec("pytest") is None:
        raise refuse("host", "the benches use what the tests use, and it is not here", next_step="run scripts/setup")
    Docker(timeout_s=10).close()


# --- running --------------------------------------------------------------------------------------------------


def _measure(wanted: list[Bench], result: dict[str, Any]) -> None:
    """Run each alone: benches that run side by side measure each other."""
    for number, each in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {each.name}: {each.title}", end=" … ", file=sys.stderr, flush=True)
        began = time.monotonic()
        status, said, complained = _run([sys.executable, str(each.path), *(["--quick"] if result["quick"] else [])])
        seconds = round(time.monotonic() - began, 1)
        try:
            row = jsonlib.loads(said) if status == 0 else None
        except ValueError:
            row = None
        if isinstance(row, dict) and "figures" in row:
            result["rows"].append({"name": each.name, **row, "seconds": seconds})
            print(f"{row.get('met') or 'measured'}, {seconds:.0f} s", file=sys.stderr)
        else:
            reason = (complained.strip().splitlines() or [f"it ended with status {status} and no row"])[-1]
            result["broken"].append({"name": each.name, "reason": reason})
            print(f"broke: {reason}\n{complained[-4000:]}", file=sys.stderr)


def _run(command: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout, stderr. In a session of its own: Ctrl-C is ours to pass on, once, and then we wait."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            said, complained = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
    return process.returncode, said.decode("utf-8", "replace"), complained.decode("utf-8", "replace")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = jsonlib.loads(path.read_text(encoding="utf-8"))
        shaped = isinstance(found["rows"], list) and all(
            isinstance(row[part], dict) for row in found["rows"] for part in ("figures", "ratios", "goal", "floor")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--read") from None
    if not shaped:
        raise typer.BadParameter(f"{path} is not what --out writes", param_hint="--read")
    return {"quick": bool(found.get("quick")), "rows": found["rows"], "broken": found.get("broken", [])}


# --- telling --------------------------------------------------------------------------------------------------


def _show(result: dict[str, Any]) -> None:
    rows: list[Row] = result["rows"]
    table = [line for row in rows for line in lines(row)]
    print_table(("row", "figure", "found", "goal", "floor", "met", "against the same run's baseline"), table)
    print("\nwhat each row guarantees (how its figures were taken: --json)")
    for row in rows:
        print_text(f"{row['name']}: {row.get('guarantee', '')}", "  ", "    ")
    for each in result["broken"]:
        print_text(f"{each['name']} broke: {each['reason']}", "  ✗ ", "    ")
    if rows:
        print_text(caption(rows[-1]), "\n", "")
    if result["quick"]:
        print("a smoke run: these figures prove nothing")
