"""What an end-to-end test has: the command line as a person starts it, and environments of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runner() -> Run:
    """`runner("trace", "list", status=0)`: one command, its output as text. Another exit status fails the test."""

    def run(*arguments: str | Path, status: int = 0, python: str = "", **options: Any) -> Any:
        command = [python or sys.executable, "-m", "runner", *map(str, arguments)]
        options = {"cwd": "/", "stdin": subprocess.DEVNULL, "timeout": 90} | options
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done

    return run


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can pass: pytest's own lies under a private one."""
    folder = Path(tempfile.mkdtemp(prefix="toolrunner-e2e-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def dependencies() -> list[str]:
    """The folders that this environment's packages lie in."""
    return [path for path in dict.fromkeys(sys.path) if Path(path).name in ("site-packages", "dist-packages")]


@pytest.fixture
def make_environment(dependencies: list[str]) -> Callable[..., Path]:
    """`make_environment(folder, checkout)`: a fresh virtual environment with this one's dependencies, no network
    needed, and the package of `checkout` if one is given. Its interpreter."""

    def make(folder: Path, checkout: Path | None = None, *, pip: bool = False) -> Path:
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([base, "-m", "venv", *(() if pip else ("--without-pip",)), str(folder)], check=True, umask=0o022)
        # A path that a .pth file adds is not searched for .pth files itself: this checkout does not come along.
        (site,) = folder.glob("lib/python*/site-packages")
        paths = [*([str(checkout)] if checkout else []), *dependencies]
        (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in paths))
        (site / "borrowed.pth").chmod(0o644)
        return folder / "bin" / "python"

    return make
