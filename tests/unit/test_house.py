"""The rules that import-linter cannot see: who makes which type, what each package says of itself, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "runner"
MODULES = sorted(path for path in RUNNER.rglob("*.py") if "share" not in path.parts)

# One type per trust level, each constructed in one place only.
CONSTRUCTED_IN = {
    "ToolCall": {"wire/session.py"},
    "Authenticated": {"gate/authenticate.py"},
    "Grant": {"gate/approve.py"},
    "CallPlan": {"sandbox/plan.py"},
    "Receipt": {"wire/recorder.py", "gate/idempotency.py"},  # sealed now, or sealed before and remembered
}
HEADINGS = ("Process:", "Input:", "Trusts:", "Does not trust:", "Privilege:")


def calls_in(path: Path) -> set[str]:
    """Names that are called in a module, as `Name(…)` or `module.Name(…)`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                found.add(node.func.id)
            elif isinstance(node.func, ast.Attribute):
                found.add(node.func.attr)
    return found


@pytest.mark.parametrize("name", sorted(CONSTRUCTED_IN))
def test_trust_types_are_made_in_one_place(name: str) -> None:
    makers = {str(path.relative_to(RUNNER)) for path in MODULES if name in calls_in(path)}
    assert makers == CONSTRUCTED_IN[name]


@pytest.mark.parametrize("package", sorted(p.parent.name for p in RUNNER.glob("*/__init__.py")))
def test_every_package_states_its_threat_model(package: str) -> None:
    text = ast.get_docstring(ast.parse((RUNNER / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    missing = [heading for heading in HEADINGS if not any(line.startswith(heading) for line in text.splitlines())]
    assert not missing


def test_the_path_reads_on_two_screens() -> None:
    assert len((RUNNER / "pipeline.py").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(RUNNER)))
def test_modules_stay_small_and_named_for_what_they_do(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert path.stem not in {"utils", "helpers", "manager", "misc", "common"}


def test_the_guest_stays_small() -> None:
    in_tools = {"python_tool.py", "beneath.py", "outward.py", "git.py"}  # run inside a call, not beside it
    lines = [
        len(path.read_text(encoding="utf-8").splitlines())
        for path in (RUNNER / "guest").glob("*.py")
        if path.name not in in_tools
    ]
    assert sum(lines) < 1220


@pytest.mark.parametrize(
    ("process", "never"),
    [
        ("gate", {"docker", "runner.engine", "runner.recorder", "runner.broker", "requests", "hvac", "authlib"}),
        ("engine", {"cedarpy", "nacl", "pyrage", "runner.gate", "runner.token", "runner.recorder"}),
        (
            "broker",
            {
                "docker",
                "cedarpy",
                "nacl",
                "requests",
                "hvac",
                "authlib",
                "runner.gate",
                "runner.engine",
                "runner.ledger",
                "runner.catalog",
            },
        ),
        ("recorder", {"docker", "cedarpy", "nacl", "pyrage", "runner.gate", "runner.engine", "runner.token"}),
        (
            "parent",
            {"docker", "cedarpy", "nacl", "typer", "runner.cli", "runner.gate", "runner.engine", "runner.recorder"},
        ),
    ],
)
def test_each_process_loads_only_what_it_may_hold(process: str, never: set[str]) -> None:
    """Every import of a process is at module level, so importing its root loads what it will ever hold; but of broker's
    libraries for servers, which it imports for a provider that has one."""
    code = f"import runner.serve.{process}, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert f"runner.serve.{process}" in loaded
    assert not never & loaded


def test_runner_itself_imports_nothing() -> None:
    tree = ast.parse((RUNNER / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
