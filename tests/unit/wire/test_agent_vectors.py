"""The published frames are the code's own, byte for byte, and the README's tables too."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.config import Limits
from runner.errors import CODES, RunnerError
from runner.token.strict import b64, unb64
from runner.wire import agent
from runner.wire.frame import HEADER, Decoder, FrameReader, encode

VECTORS = Path(__file__).parents[2] / "vectors"
FILE = json.loads((VECTORS / "agent.json").read_text(encoding="utf-8"))
LIMITS = Limits()
EITHER: Decoder[Any] = Decoder(
    agent.FromClient | agent.FromDaemon, elements=LIMITS.max_elements, depth=LIMITS.max_depth
)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_agent", VECTORS / "make_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_code_makes(maker: ModuleType) -> None:
    for path, text in maker.outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run tests/vectors/make_agent.py"


@pytest.mark.parametrize("name", [entry["name"] for entry in FILE["frames"]])
def test_a_frame_is_its_message_and_back(maker: ModuleType, name: str) -> None:
    entry = next(entry for entry in FILE["frames"] if entry["name"] == name)
    frame = bytes.fromhex(entry["frame"])
    message = maker.MESSAGES[name]
    assert encode(message) == frame
    (body,) = FrameReader(LIMITS.max_frame).feed(frame)
    assert EITHER.decode(body) == message
    assert int.from_bytes(frame[:HEADER], "big") == len(body)
    assert json.loads(msgspec.json.encode(message)) == entry["message"]


def test_every_message_has_a_vector(maker: ModuleType) -> None:
    known = {*get_args(agent.FromClient), *get_args(agent.FromDaemon)}
    assert {type(message) for message in maker.MESSAGES.values()} == known


@pytest.mark.parametrize("entry", FILE["hostile"], ids=lambda entry: entry["name"])
def test_a_hostile_body_is_refused(entry: dict[str, str]) -> None:
    with pytest.raises(RunnerError) as caught:
        EITHER.decode(bytes.fromhex(entry["body"]))
    assert caught.value.refused.code == "protocol"


@pytest.mark.parametrize("kind", ["hello", "call"])
def test_a_proof_can_be_made_without_this_code(kind: str) -> None:
    """What the README says, done with a general Ed25519 and base64url alone."""
    proof = FILE["proofs"][kind]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(FILE["keys"]["holder_seed_hex"]))
    signing_input = f"{b64(proof['header'].encode())}.{b64(proof['payload'].encode())}"
    assert f"{signing_input}.{b64(key.sign(signing_input.encode()))}" == proof["jws"]
    claims = json.loads(proof["payload"])
    assert json.dumps(claims, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == proof["payload"]
    hello = next(entry["message"] for entry in FILE["frames"] if entry["name"] == "hello")
    leaf = hello["chain"][-1]
    assert claims["aat_hash"] == b64(hashlib.sha256(leaf.rpartition(".")[0].encode()).digest())
    assert claims["aat_id"] == json.loads(unb64(leaf.split(".")[1]))["jti"]


def test_the_readme_names_every_code() -> None:
    text = (Path(agent.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- codes: generated -->")[1].split("<!-- /codes -->")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `"): (row[3].strip(), row[4].strip()) for row in rows} == {
        code: (row.meaning, row.next_step) for code, row in CODES.items()
    }


def test_a_nested_map_needs_its_type_only_where_the_readme_says() -> None:
    body = {"type": "hello", "version": 1, "chain": ["t"], "proof": "p", "session": {"client": "c"}}
    with_type = {**body, "session": {"type": "session", "client": "c"}}
    assert EITHER.decode(msgspec.msgpack.encode(with_type)).session.client == "c"
    assert EITHER.decode(msgspec.msgpack.encode(body)).session.client == "c"
