"""Both sides of the control connection against the same bytes, and against each other."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.guest import frame
from runner.wire import guest

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/guest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["type"])
def test_both_sides_write_and_read_these_bytes(vector: dict[str, Any]) -> None:
    kind, call = vector["code"], vector["call"]
    payload, whole = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["frame"])
    assert getattr(frame, vector["type"]) == getattr(guest, vector["type"]) == kind
    assert frame.pack(kind, call, payload) == guest.pack(kind, call, payload) == whole
    reader: Any = frame.Reader(frame.FROM_GATE) if kind < 0x80 else guest.GuestReader()
    pieces = [found for byte in whole for found in reader.feed(bytes([byte]))]
    assert pieces == [(kind, call, payload)]


MESSAGES = {
    "READY": guest.Ready,
    "CODE_READY": guest.CodeReady,
    "STARTED": guest.Started,
    "ENDED": guest.Ended,
    "FAULT": guest.Fault,
}


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["type"])
def test_gate_understands_what_the_guest_says(vector: dict[str, Any]) -> None:
    if vector["type"] in MESSAGES:
        found: Any = guest.read_json(bytes.fromhex(vector["payload"]), MESSAGES[vector["type"]])
        assert json.loads(bytes.fromhex(vector["payload"])).keys() <= set(found.__struct_fields__)
    else:
        assert vector["code"] in set(range(1, 9)) | {0x83, 0x84, 0x85, 0x86, 0x87}


@pytest.mark.parametrize("vector", VECTORS["invalid"]["to_guest"], ids=lambda vector: vector["why"])
def test_the_guest_refuses(vector: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="may not come"):
        list(frame.Reader(frame.FROM_GATE).feed(bytes.fromhex(vector["bytes"])))


@pytest.mark.parametrize("vector", VECTORS["invalid"]["from_guest"], ids=lambda vector: vector["why"])
def test_gate_refuses(vector: dict[str, str]) -> None:
    with pytest.raises(RunnerError):
        list(guest.GuestReader().feed(bytes.fromhex(vector["bytes"])))


@pytest.mark.parametrize("vector", VECTORS["digests"], ids=lambda vector: vector["digest"][:8])
def test_both_sides_digest_code_alike(vector: dict[str, Any]) -> None:
    files = {path: bytes.fromhex(data) for path, data in vector["files"].items()}
    assert frame.code_digest(files) == guest.code_digest(files) == vector["digest"]


@given(
    st.lists(st.tuples(st.sampled_from(sorted(frame.FROM_GATE)), st.integers(0, 2**32 - 1), st.binary(max_size=4))),
    st.integers(1, 50),
)
def test_frames_survive_any_cutting(sent: list[tuple[int, int, bytes]], step: int) -> None:
    sent = [(kind, call, b"" if kind == frame.PING else payload) for kind, call, payload in sent]
    stream = b"".join(guest.pack(*item) for item in sent)
    reader = frame.Reader(frame.FROM_GATE)
    found = [item for at in range(0, len(stream), step) for item in reader.feed(stream[at : at + step])]
    assert found == sent


@given(st.binary(max_size=64))
def test_hostile_bytes_are_refused_or_wait_for_more(data: bytes) -> None:
    reader = frame.Reader(frame.FROM_GATE)
    found = []
    with contextlib.suppress(ValueError):
        found.extend(reader.feed(data))
    assert all(len(payload) <= frame.FROM_GATE[kind] for kind, _, payload in found)
