"""Paths and bundles have one spelling each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.ledger.tile import (
    ENTRIES,
    Place,
    pack_bundle,
    pack_contents,
    pack_path,
    pack_prefix,
    parse_tile_path,
    split_bundle,
    split_pack,
    tile_path,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/ledger.json").read_text())


@pytest.mark.parametrize(("path", "place"), VECTORS["paths"].items())
def test_known_paths(path: str, place: list[int]) -> None:
    assert tile_path(Place(*place)) == path
    assert parse_tile_path(path) == Place(*place)


@pytest.mark.parametrize("path", VECTORS["bad_paths"])
def test_other_spellings_name_nothing(path: str) -> None:
    assert parse_tile_path(path) is None


@given(st.builds(Place, st.integers(ENTRIES, 63), st.integers(0, 10**12), st.integers(0, 255)))
def test_paths_come_back(place: Place) -> None:
    assert parse_tile_path(tile_path(place)) == place


@given(st.text(max_size=30))
def test_a_path_that_parses_is_the_only_spelling(path: str) -> None:
    place = parse_tile_path(path)
    assert place is None or tile_path(place) == path


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_come_back_and_every_cut_is_found(entries: list[bytes]) -> None:
    data = pack_bundle(entries)
    assert split_bundle(data, len(entries)) == entries
    for cut in range(len(data)):
        with pytest.raises(RunnerError):
            split_bundle(data[:cut], len(entries))
    with pytest.raises(RunnerError):
        split_bundle(data + b"\0", len(entries))


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_packs_come_back_as_far_as_they_are_whole(contents: list[bytes]) -> None:
    data = pack_contents(contents)
    assert list(split_pack(data)) == contents
    for cut in range(len(data)):
        found = list(split_pack(data[:cut]))
        assert found == contents[: len(found)]
        assert len(found) < len(contents)


def test_packs_of_one_number_have_names_of_their_own() -> None:
    one, other = pack_path(1234, b"one"), pack_path(1234, b"other")
    assert one != other
    for path in (one, other):
        assert path.startswith(pack_prefix(1234))
    assert pack_prefix(1234) == "pack/x001/234-"
