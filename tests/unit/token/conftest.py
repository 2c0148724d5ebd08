"""What the token tests share: the vectors, the script that makes them, and how to verify as this daemon would."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VECTORS = Path(__file__).parents[2] / "vectors"


def load_forge() -> ModuleType:
    """tests/vectors/token_vectors.py as a module."""
    spec = importlib.util.spec_from_file_location("token_vectors", VECTORS / "token_vectors.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def forge() -> ModuleType:
    return load_forge()


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return dict(json.loads((VECTORS / "token.json").read_text()))


@pytest.fixture(scope="session")
def anchors(forge: ModuleType) -> dict[str, Any]:
    from runner.token.keys import PublicKey

    return {forge.ISSUER: (PublicKey(forge.raw("issuer")),)}
