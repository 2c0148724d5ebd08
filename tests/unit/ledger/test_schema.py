"""The JSON Schema in the tree is the types', and takes every entry that they make and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import jsonschema_rs
import pytest

import runner.ledger
from runner.ledger import entry as entries
from runner.ledger.schema import schema, text

FILE = Path(runner.ledger.__file__).with_name("schema.json")


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(schema(), validate_formats=True)


def test_the_file_is_not_stale() -> None:
    assert FILE.read_text() == text(), "write it anew: runner trace schema > runner/ledger/schema.json"


def test_every_kind_is_in_it() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(entries.AnyEntry)}
    named = [part["properties"]["kind"]["enum"] for part in schema()["$defs"].values() if "kind" in part["properties"]]
    assert {kind for (kind,) in named} == kinds


def test_what_the_types_make_validates_and_what_they_refuse_does_not(validator: Any, sample: ModuleType) -> None:
    made = [sample.start(), sample.call(1), sample.call(2, effect="deny", planned=False), sample.outcome(1)]
    for entry in [*made, sample.stop()]:
        whole = json.loads(entries.encode(entry))
        validator.validate(whole)
        for wrong in (
            whole | {"extra": 1},
            whole | {"v": 2},
            whole | {"kind": "other"},
            whole | {"time": "yesterday"},
            {name: value for name, value in whole.items() if name != "time"},
            {name: value for name, value in whole.items() if name != "v"},
        ):
            assert not validator.is_valid(wrong), wrong
