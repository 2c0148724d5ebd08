"""`runner bench` without running a bench: what there is, what it says of rows, what it draws, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import runner
from runner.cli import bench, bench_plot, bench_row, commands
from runner.errors import EXIT_TOOL, EXIT_USAGE, RunnerError

ROOT = Path(runner.__file__).resolve().parents[1]
ROW: dict[str, Any] = {
    "row": "warm jailed call",
    "figures": {"median_ms": 1.2, "gate_cpu_us": 90.0},
    "baseline": {"bwrap_ms": 6.0, "docker_exec_ms": 60.0},
    "ratios": {"over_bwrap": 0.2, "faster_than_docker_exec": 50.0},
    "goal": {"median_ms": "<= 1.0", "over_bwrap": "<= 0.25"},
    "floor": {"median_ms": "<= 1.5"},
    "met": "floor",
    "guarantee": "a jail that calls share",
    "measured": "by hand",
    "quick": False,
    "machine": {"cpus": 2, "kernel": "6.18", "date": "2026-01-02T03:04:05Z"},
}
# A script in the place of a bench: it prints a row, says something on stderr, and ends as its name says.
SCRIPT = '''"""A bench of the test

More words.
"""
import json, sys
if __name__ == "__main__":
    print("Traceback\\nValueError: no luck", file=sys.stderr)
    print(json.dumps({row} | {{"quick": "--quick" in sys.argv}}))
    sys.exit({status})
'''


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(commands.app, ["bench", *map(str, words)])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Benches of the test's own in place of the checkout's, on a host that has all that is needed."""
    for name, status in (("good", 0), ("broken", 1)):
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(row=ROW, status=status))
    (tmp_path / "shared.py").write_text('"""No bench."""\n')
    (tmp_path / "silent.py").write_text('"""Says no row"""\nif __name__ == "__main__":\n    print("[]")\n')
    monkeypatch.setattr(bench, "folder", lambda: tmp_path)
    monkeypatch.setattr(bench, "_ready", lambda: None)
    return tmp_path


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({"quick": False, "rows": [{"name": "warm", **ROW, **changes}], "broken": []}))
    return path


# --- what there is --------------------------------------------------------------------------------------------


def test_every_bench_of_the_checkout_is_listed_with_what_it_measures() -> None:
    listed = json.loads(invoke("--list", "--json").stdout)
    names = [each["name"] for each in listed]
    assert {"warm_call", "fresh_jail", "gate_overhead", "sealed_decisions", "steps", "scaling"} <= set(names)
    assert not {"common", "load", "jails", "first_calls", "ledgers"} & set(names)
    assert all(each["title"] and each["title"] != each["name"] for each in listed)
    assert set(bench._FIRST) <= set(names)
    plain = invoke("--list").stdout
    assert all(name in plain for name in names)


_HELP = """
import contextlib, io, json, runpy, sys
said, paths = {}, sys.argv[1:]
sys.path.insert(0, paths[0].rpartition("/")[0])
for path in paths:
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    said[path] = out.getvalue()
print(json.dumps(said))
"""


def test_every_bench_says_how_it_is_run() -> None:
    """Each can be started alone, and knows --quick; what only others use has no main."""
    folder = ROOT / "tests" / "bench"
    names = {each.name for each in bench.benches(folder)}
    paths = sorted(map(str, folder.glob("*.py")))
    # One process for all: most of each would be the imports that they share.
    done = subprocess.run([sys.executable, "-c", _HELP, *paths], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert list(said) == paths
    assert {Path(path).stem for path, text in said.items() if "--quick" in text} == names


# --- running --------------------------------------------------------------------------------------------------


def test_a_run_shows_a_table_and_writes_json(made: Path) -> None:
    out = made / "out.json"
    done = invoke("good", "--quick", "--out", out)
    assert done.exit_code == 0
    assert re.search(r"good +median +1\.2 ms +<= 1\.0 +<= 1\.5 +floor", done.stdout)
    assert "a jail that calls share" in done.stdout
    assert "prove nothing" in done.stdout
    found = json.loads(out.read_text())
    assert [(row["name"], row["quick"]) for row in found["rows"]] == [("good", True)]
    assert found["rows"][0]["figures"] == ROW["figures"]
    assert found["rows"][0]["seconds"] >= 0
    assert found["broken"] == []


def test_a_bench_that_breaks_is_said_and_the_others_run(made: Path) -> None:
    done = invoke("--json")
    assert done.exit_code == EXIT_TOOL
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ["good"]
    assert {each["name"]: each["reason"] for each in found["broken"]} == {
        "broken": "ValueError: no luck",
        "silent": "it ended with status 0 and no row",
    }
    assert invoke("good", "--json").exit_code == 0


@pytest.mark.parametrize(("level", "met", "status"), [
    ("floor", "floor", 0), ("goal", "floor", EXIT_TOOL), ("floor", "no", EXIT_TOOL), ("goal", "goal", 0),
    ("goal", "", 0),
])  # fmt: skip
def test_check_turns_figures_into_a_status(tmp_path: Path, level: str, met: str, status: int) -> None:
    told = written(tmp_path / "told.json", met=met)
    assert invoke("--read", told, "--check", level).exit_code == status
    assert invoke("--read", told).exit_code == 0


# --- rows -----------------------------------------------------------------------------------------------------


def test_a_figure_is_judged_by_its_own_bounds() -> None:
    assert bench_row.verdict(ROW, "median_ms") == "floor"
    assert bench_row.verdict(ROW, "over_bwrap") == "goal"
    assert bench_row.verdict(ROW, "gate_cpu_us") == ""
    slow = ROW | {"figures": {"median_ms": 1.6}, "ratios": {"over_bwrap": 0.3}}
    assert bench_row.verdict(slow, "median_ms") == "no"
    assert bench_row.verdict(slow, "over_bwrap") == "not goal"
    more = {"figures": {"per_s": 3000}, "ratios": {}, "goal": {"per_s": ">= 5000"}, "floor": {"per_s": ">= 2000"}}
    assert bench_row.verdict(more, "per_s") == "floor"


@pytest.mark.parametrize(("figure", "said"), [
    ("median_ms", ("median", "ms")), ("per_s", ("rate", "/s")), ("mb_per_s", ("rate", "MB/s")),
    ("one_task_per_s", ("one task", "/s")), ("gate_cpu_us", ("gate cpu", "µs")), ("over_bwrap", ("over bwrap", "")),
    ("memory_growth_percent", ("memory growth", "%")), ("open_s", ("open", "s")),
])  # fmt: skip
def test_names_end_in_their_unit(figure: str, said: tuple[str, str]) -> None:
    assert bench_row.words(figure) == said


def test_a_row_without_bounds_shows_all_it_found() -> None:
    lines = bench_row.lines({"name": "steps", **ROW, "goal": {}, "floor": {}})
    assert [line[1:3] for line in lines] == [("median", "1.2 ms"), ("gate cpu", "90.0 µs")]
    assert [line[6] for line in lines] == ["over bwrap: 0.2", "faster than docker exec: 50.0"]


# --- the picture ----------------------------------------------------------------------------------------------


def test_a_picture_is_drawn_of_what_was_written(tmp_path: Path) -> None:
    for name, begins in (("speed.png", b"\x89PNG"), ("speed.svg", b"<?xml"), ("speed.pdf", b"%PDF")):
        assert invoke("--read", written(tmp_path / "told.json"), "--plot", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_picture_holds_every_row_that_can_be_drawn() -> None:
    named = {"name": "warm", **ROW}
    (bar,) = bench_plot.bars([named])
    assert (bar.value, bar.goal, bar.floor, bar.met) == (1.2, 1.0, 1.5, "floor")
    assert bar.peers == {"bwrap": 6.0, "docker_exec": 60.0}
    (share,) = bench_plot.shares([named])
    assert (share.share, share.met) == (1.25, "goal")
    assert bench_plot.bars([named | {"figures": {"median_ms": -0.1}}]) == []  # no place on a log axis
    assert bench_plot.shares([named | {"goal": {"over_bwrap": "<= 0"}}]) == []
    more = {"name": "m", "row": "m", "baseline": {}, "ratios": {}, "met": "no"}
    more |= {"figures": {"per_s": 1000}, "goal": {"per_s": ">= 5000"}, "floor": {"per_s": ">= 2000"}}
    (share,) = bench_plot.shares([more])
    assert (share.share, share.floor, share.met) == (0.2, 0.4, "no")


def test_steps_add_up_and_set_the_tool_s_own_time_apart() -> None:
    figures = {"client_to_gate_us": 200, "until_end_us": 3000, "gate_to_client_us": -20, "of_it_the_process_us": 1000}
    steps = {"name": "steps", **ROW, "figures": {**figures, "all_us": 3180}}
    steps["ratios"] = {name.replace("_us", "_share"): 0.5 for name in steps["figures"]} | {"telemetry": 1.0}
    assert bench_plot.steps([steps]) == [
        ("client to gate", 0.2),
        ("the tool's process", 1.0),
        ("until end, besides it", 2.0),
        ("gate to client", 0.0),
    ]
    assert bench_plot.steps([{"name": "warm", **ROW}]) == []


# --- refusals -------------------------------------------------------------------------------------------------


def test_without_matplotlib_a_picture_is_refused_before_anything_runs(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench.find_spec
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    done = invoke("good", "--plot", made / "speed.png")
    assert isinstance(done.exception, RunnerError)
    assert "toolrunner[bench]" in done.exception.refused.next_step
    assert done.stdout == ""
    assert invoke("good").exit_code == 0


def test_an_installed_package_has_no_benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.folder() == ROOT / "tests" / "bench"
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "runner" / "__init__.py"))
    with pytest.raises(RunnerError) as refused:
        bench.folder()
    assert refused.value.refused.code == "not_supported"
    assert "checkout" in refused.value.refused.next_step


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = invoke("warm_call")
    assert isinstance(done.exception, RunnerError)
    assert (done.exception.refused.code, "sudo" in done.exception.refused.next_step) == ("host", True)


@pytest.mark.parametrize(
    "words",
    [["nothing_of_this_name"], ["--plot", "speed.gif"], ["--out", "/no/such/folder/x"], ["--read", "/no/such/file"]],
)
def test_wrong_words_are_refused_before_anything_runs(words: list[str], made: Path) -> None:
    assert invoke(*words).exit_code == EXIT_USAGE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1}', '{"rows": [{"figures": 1}]}', '{"rows": [1]}'])
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text(text)
    assert invoke("--read", tmp_path / "told.json").exit_code == EXIT_USAGE
