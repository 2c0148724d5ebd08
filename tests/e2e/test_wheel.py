"""The wheel: what travels in it, that a daemon runs from it anywhere, and that the client needs no daemon part."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.catalog import SCHEMA, shared
from runner.engine import image
from runner.errors import EXIT_INVALID, EXIT_UNAVAILABLE

CHECKOUT = Path(__file__).parents[2]
DAEMON_ONLY = (
    "anyio",
    "cedarpy",
    "docker",
    "jsonschema_rs",
    "opentelemetry",
    "psutil",
    "pyseccomp",
    "seccomp",
    "uvloop",
)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel of this checkout, built without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (built,) = (tmp_path / "dist").glob("toolrunner-*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, open_folder: Path, make_environment: Callable[..., Path]) -> Path:
    """The interpreter of an environment in an otherwise empty folder, with the wheel installed by pip."""
    python = make_environment(open_folder / "env", pip=True)
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run(command, check=True, cwd=open_folder, umask=0o022, env={"PATH": os.environ["PATH"]})
    return python


def test_what_travels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        carried = {name: archive.read(name) for name in names if name.startswith("runner/share/")}
        entry_points = archive.read(next(n for n in names if n.endswith("/entry_points.txt"))).decode()
    expected = {"runner/share/Containerfile": CHECKOUT / "Containerfile"}
    for folder in ("profiles", "tools", "policies"):
        files = [path for path in (CHECKOUT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        expected |= {f"runner/share/{path.relative_to(CHECKOUT).as_posix()}": path for path in files}
    assert carried == {name: path.read_bytes() for name, path in expected.items()}
    rest = {name for name in names - set(carried) if ".dist-info/" not in name}
    assert {name for name in rest if not name.endswith(".py")} == {
        "runner/ledger/schema.json",
        "runner/py.typed",
        "runner/wire/README.md",
    }
    assert {name for name in names if name.split("/")[0] != "runner"} == {n for n in names if ".dist-info/" in n}
    for odd in ("__pycache__", ".pyc", "test", "conftest", ".git", ".env", ".key"):
        assert [name for name in names if odd in name.lower()] == []
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "runner = runner.__main__:main" in entry_points


@pytest.mark.docker
def test_a_daemon_from_the_wheel(installed: Path, open_folder: Path, tool_image: str, runner: Any) -> None:
    """Everything a newcomer does first, from an installed wheel, with the image that is already here."""
    here: dict[str, Any] = {"python": str(installed), "cwd": open_folder, "env": {"PATH": "/usr/bin:/bin"}}
    where = "import runner, runner.catalog as c; print(runner.__file__, c.shared('tools'))"
    places = subprocess.run([installed, "-c", where], cwd=open_folder, check=True, capture_output=True, text=True)
    assert all(place.startswith(str(open_folder / "env")) for place in places.stdout.split()), places.stdout
    assert image.inputs_digest() in runner("image", "show", "--json", **here).stdout  # the same guest as this checkout
    assert tool_image in runner("image", "show", "--json", **here).stdout
    said = runner("demo", **here).stdout
    assert "✓ the demo is over" in said
    assert "UNEXPECTED" not in said
    runner("init", "mine", **here)
    mine = open_folder / "mine"
    for name in ("profiles", "tools", "policies"):
        there = {path.relative_to(mine / name) for path in (mine / name).rglob("*") if path.is_file()}
        assert there == {
            path.relative_to(shared(name))
            for path in shared(name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        } | ({Path(SCHEMA)} if name == "policies" else set())  # made for editors, of the tools beside it
    folders = [part for name in ("policies", "tools", "profiles") for part in (f"--{name}", f"mine/{name}")]
    assert "cases" in runner("policy", "check", *folders, **here).stdout
    script = subprocess.run([installed.parent / "runner", "--version"], check=True, capture_output=True, text=True)
    assert script.stdout.startswith("runner ")


@pytest.fixture
def client_only(wheel: Path, open_folder: Path, dependencies: list[str]) -> Path:
    """The interpreter of an environment that has every dependency but those that only `toolrunner[daemon]` brings."""
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(open_folder / "env")], check=True)
    (site,) = (open_folder / "env").glob("lib/python*/site-packages")
    for path in (path for folder in dependencies for path in Path(folder).iterdir()):
        name = path.name.partition(".")[0]
        if path.suffix not in (".pth", ".dist-info") and name not in (*DAEMON_ONLY, "runner", "__pycache__"):
            (site / path.name).symlink_to(path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return open_folder / "env" / "bin" / "python"


def test_the_client_alone(client_only: Path, runner: Any) -> None:
    hidden = subprocess.run([client_only, "-c", "import docker"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in hidden.stderr
    code = "import sys, runner.client; print(*sorted(m for m in sys.modules if m.startswith('runner.')))"
    loaded = subprocess.run([client_only, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "runner.client.aio" in loaded
    assert not [m for m in loaded if m.split(".")[1] in ("gate", "engine", "serve", "server", "sandbox", "recorder")]
    here = {"python": str(client_only)}
    for command in ("call", "result", "tools"):
        assert f"Usage: runner {command}" in runner(command, "--help", **here).stdout
    assert "credentials" in runner("tools", status=EXIT_INVALID, **here).stderr

    for command in (("serve", "--config", "a.toml"), ("trace", "list", "--json"), ("demo",), ("doctor", "--help")):
        done = runner(*command, status=EXIT_UNAVAILABLE, **here)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert f"`runner {command[0]}` is a part of the daemon" in line
        assert "install toolrunner[daemon]" in line
