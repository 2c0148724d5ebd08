"""The sample ledger, shared by every test of the record."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).parents[2] / "vectors/ledger_sample.py"


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
