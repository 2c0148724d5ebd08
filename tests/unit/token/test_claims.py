"""Chain verification against the vectors: every way to be invalid, refused at its step; and the draft's own bytes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.config import Limits
from runner.errors import RunnerError
from runner.token.claims import verify_chain, verify_tokens
from runner.token.keys import PublicKey, SigningKey
from runner.token.payload import is_name
from runner.token.strict import NotAccepted, b64

LIMITS = Limits()
DATA: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "token.json").read_text())


@pytest.mark.parametrize("vector", DATA["chains"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any], anchors: dict[str, Any]) -> None:
    def verify() -> Any:
        return verify_chain(vector["chain"], anchors, DATA["now"], DATA["audience"], LIMITS)

    if not vector["step"]:
        assert verify().principal.owner == "ann"
        return
    with pytest.raises(RunnerError) as caught:
        verify()
    assert caught.value.detail.startswith(f"step {vector['step']}:")
    assert caught.value.refused.code == "unauthenticated"
    assert caught.value.refused.reason == "the token chain was not accepted"


def test_the_vectors_are_what_their_script_writes(forge: ModuleType) -> None:
    assert forge.build() == DATA


def test_every_step_has_a_vector() -> None:
    steps = {vector["step"] for vector in DATA["chains"]}
    # 2a has a test of its own; 4f cannot fail after 3i and 4e, 5 cannot after 3c and 4d: the draft says so too.
    wanted = "1 2b 2c 3a 3b 3c 3d 3e 3f 3g 3h 3i 3j 3k 3l 3m 3n 4a 4b 4b1 4b2 4b3 4b4 4b5 4c 4d 4e 4g 4h 4i 4j 4k 4l"
    assert steps == {"", "profile", *wanted.split(), *(f"4{step}" for step in ("m", "n", "o", "q")), "6a", "6c"} | {
        f"4p{rule}" for rule in (1, 2, 3, 4)
    }


def test_what_a_verified_chain_says(forge: ModuleType, anchors: dict[str, Any]) -> None:
    leaf = forge.jws(forge.child_claims(forge.ROOT), "holder")
    chain = verify_chain([forge.ROOT, leaf], anchors, forge.NOW, forge.AUDIENCE, LIMITS)
    assert chain.principal.agent == "reader"
    assert chain.principal.asserted == ("helper",)
    assert (chain.jtis, chain.root_jti, chain.leaf_jti, chain.depth) == (("root-1", "child-1"), "root-1", "child-1", 1)
    assert (chain.expires, chain.issued) == (forge.NOW + 1800, forge.NOW - 200)
    assert chain.leaf_hash == forge.digest(leaf)
    assert b64(bytes.fromhex(chain.leaf_digest)) == chain.leaf_hash
    assert b64(bytes.fromhex(chain.root_digest)) == forge.digest(forge.ROOT)
    assert chain.leaf_key == PublicKey(forge.raw("worker"))
    assert (chain.issuer, chain.anchor, chain.profile) == (forge.ISSUER, PublicKey(forge.raw("issuer")), "default")
    assert set(chain.tools) == {"fs_read"}
    assert leaf not in repr(chain)
    assert forge.ROOT[-80:] not in repr(chain)


def test_longer_than_a_token_may_be(forge: ModuleType, anchors: dict[str, Any]) -> None:
    for chain, step in (([forge.ROOT + "A" * 65_536], "2a"), ([forge.ROOT, *["A" * 60_000] * 5], "2b")):
        with pytest.raises(NotAccepted) as caught:
            verify_tokens(chain, anchors, forge.NOW, forge.AUDIENCE, LIMITS)
        assert caught.value.step == step


@pytest.mark.parametrize("chain", [[None], [b"x"], [["x"]], [{}], [7]])
def test_what_is_no_text(chain: list[Any], anchors: dict[str, Any]) -> None:
    with pytest.raises(NotAccepted):
        verify_tokens(chain, anchors, DATA["now"], DATA["audience"], LIMITS)


def test_several_issuers_and_keys(forge: ModuleType) -> None:
    ours, other = PublicKey(forge.raw("issuer")), PublicKey(forge.raw("attacker"))

    def verify(anchors: dict[str, tuple[PublicKey, ...]]) -> str:
        return verify_chain([forge.ROOT], anchors, forge.NOW, forge.AUDIENCE, LIMITS).issuer

    assert verify({"https://other.example": (other,), forge.ISSUER: (other, ours)}) == forge.ISSUER
    for anchors in ({}, {forge.ISSUER: ()}, {forge.ISSUER: (other,)}, {"https://other.example": (ours,)}):
        with pytest.raises(RunnerError):
            verify(anchors)


def test_a_reserved_depth_of_the_daemon_bounds_the_issuers(forge: ModuleType, anchors: dict[str, Any]) -> None:
    leaf = forge.jws(forge.child_claims(forge.ROOT), "holder")
    assert verify_chain([forge.ROOT, leaf], anchors, forge.NOW, forge.AUDIENCE, LIMITS)
    with pytest.raises(RunnerError) as caught:
        verify_chain([forge.ROOT], anchors, forge.NOW, forge.AUDIENCE, Limits(delegation_depth=1))
    assert caught.value.detail.startswith("step 3i")


@pytest.mark.parametrize("name", ["a", "ann@example.com", "team/reader", "t-42", "a" * 128, "a.b:c_d-e"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 129,
        "a b",
        "a\n",
        "a\0",
        "-a",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "a/..",
        "a/./b",
        "ä",
        "a\u200b",
        None,
        7,
        ["a"],
    ],
)
def test_no_names(name: object) -> None:
    assert not is_name(name)


# Facts of the draft's test suite (tenuo-ai/tenuo, ietf/vectors/aat-jws-vectors.md, revision 02): bytes of J.1 and J.3.
J1 = (
    "eyJhbGciOiJFZDI1NTE5IiwidHlwIjoiYWF0K2p3dCJ9."
    "eyJhdXRob3JpemF0aW9uX2RldGFpbHMiOlt7InRvb2xzIjp7InJlYWRfZmlsZSI6eyJwYXRoIjp7ImNvbnN0cmFpbnRfdHlwZSI6IndpbGRjYXJk"
    "In19fSwidHlwZSI6ImF0dGVudWF0aW5nX2FnZW50X3Rva2VuIn1dLCJjbmYiOnsiandrIjp7ImNydiI6IkVkMjU1MTkiLCJrdHkiOiJPS1AiLCJ4"
    "IjoiZ1RsM0RxaDlGMTlXbzFSbXcweC16TXVOaXBHMDdqZWlYZllQVzRfSnM1USJ9fSwiZGVsX2RlcHRoIjowLCJkZWxfbWF4X2RlcHRoIjozLCJl"
    "eHAiOjE3MDQwNzA4MDAsImlhdCI6MTcwNDA2NzIwMCwiaXNzIjoiaHR0cHM6Ly9hdXRoLmV4YW1wbGUuY29tIiwianRpIjoiMDE5NDcxZjgtMDAw"
    "MC03MDAwLTgwMDAtMDAwMDAwMDAwMDAxIn0."
    "G2ZIeMAY5H1nbG0j2f6R9hW8WsP98CC8ZA9-dLpNATy-i7DMR6iAHzgSrAhpdTVt1Y5urMK9iE0ZXMcLHzrHBg"
)
J1_HASH = "qz05CjO1S-iTk93CGKmiB8y7bRUdUAe67kXzUwyMzUU"
J3_ROOT = {
    "jti": "019471f8-0000-7000-8000-000000000010",
    "iss": "https://auth.example.com",
    "iat": 1704067200,
    "exp": 1704070800,
    "del_depth": 0,
    "del_max_depth": 3,
    "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "gTl3Dqh9F19Wo1Rmw0x-zMuNipG07jeiXfYPW4_Js5Q"}},
    "authorization_details": [
        {
            "type": "attenuating_agent_token",
            "tools": {
                "read_file": {
                    "path": {"constraint_type": "one_of", "values": ["/data/q3-report.pdf", "/data/q4-report.pdf"]}
                },
                "search_index": {
                    "query": {"constraint_type": "wildcard"},
                    "limit": {"constraint_type": "range", "max": 100},
                },
            },
        }
    ],
}
J3_ROOT_HASH = "BR0nHWoCPtlrdOSpY8vPj7ejvLGj1SSJfK97P-ZWV0g"
J3_ROOT_SIGNATURE = "6YxvFx29Q1Y2k_TI4bp4DujeluiXEBMRi0VaS9KPQnnBijGrzBaOy_G1riBOyR5ZW2JBWVoRwIU5aY5uy_s2BQ"


def test_the_drafts_own_token_verifies_here(anchors: dict[str, Any]) -> None:
    (form,), (claims,), _ = verify_tokens([J1], anchors, 1704067500, "https://tools.example.com", LIMITS)
    assert form.hash == J1_HASH
    assert claims.jti == "019471f8-0000-7000-8000-000000000001"
    assert claims.tools == {"read_file": {"path": {"constraint_type": "wildcard"}}}
    with pytest.raises(RunnerError) as caught:  # but it names nobody here, which our profile requires
        verify_chain([J1], anchors, 1704067500, "https://tools.example.com", LIMITS)
    assert caught.value.detail.startswith("step profile")


def test_we_write_the_drafts_bytes(anchors: dict[str, Any]) -> None:
    token = SigningKey(b"\1" * 32).jws(J3_ROOT, "aat+jwt")
    assert token.rpartition(".")[2] == J3_ROOT_SIGNATURE
    (form,), _, _ = verify_tokens([token], anchors, 1704067500, "x", LIMITS)
    assert form.hash == J3_ROOT_HASH
