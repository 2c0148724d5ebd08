"""The simulated daemon for the client's tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    """tests/ is no package, so the module is loaded from its file."""
    name = "tests_sim_daemon"
    if name not in sys.modules:
        path = Path(__file__).parents[2] / "sim" / "daemon.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def sim() -> ModuleType:
    """The module: scripts and helpers."""
    return _load()


@pytest.fixture
def daemon(sim: ModuleType, tmp_path: Path) -> Iterator[object]:
    """A running simulated daemon; its own errors fail the test unless the test takes them."""
    with sim.SimDaemon(tmp_path) as running:
        yield running
    assert not running.errors, running.errors
