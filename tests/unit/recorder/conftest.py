"""The sample ledger, shared by every test of the record."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).parents[2] / "vectors/ledger_sample.py"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is some: thousands of crashes are played here, none of them a loss of power, so that a disk
    would only be waited for."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="toolrunner-test-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """tests/vectors/ledger_sample.py: entries, a key, and ledgers made of them."""
    if "ledger_sample" not in sys.modules:
        spec = importlib.util.spec_from_file_location("ledger_sample", _PATH)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["ledger_sample"] = module
        spec.loader.exec_module(module)
    return sys.modules["ledger_sample"]
