"""Proofs of possession: the vectors, the round trip, and everything a proof is bound to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config import Limits
from runner.errors import RunnerError
from runner.token.claims import VerifiedChain, verify_chain
from runner.token.keys import SigningKey
from runner.token.proof import sign_call, sign_hello, verify_call, verify_hello

DATA: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "token.json").read_text())
NOW, NONCE, AUDIENCE = DATA["now"], DATA["nonce"], DATA["audience"]
HOLDER = SigningKey(b"\2" * 32)
LIMITS = Limits()


@pytest.fixture(scope="module")
def chain(forge: ModuleType, anchors: dict[str, Any]) -> VerifiedChain:
    return verify_chain([forge.ROOT], anchors, NOW, AUDIENCE, LIMITS)


@pytest.mark.parametrize("vector", DATA["proofs"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any], chain: VerifiedChain) -> None:
    def verify() -> Any:
        return verify_call(vector["proof"], chain, AUDIENCE, NONCE, NOW, NOW - 1000, LIMITS)

    if not vector["step"]:
        assert verify().tool == "fs_read"
        return
    with pytest.raises(RunnerError) as caught:
        verify()
    assert caught.value.detail.startswith(f"step {vector['step']}:")
    assert caught.value.refused.reason == "the token chain was not accepted"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_arguments_arrive_as_they_were_signed(arguments: dict[str, Any]) -> None:
    from runner.token.jcs import canonical

    chain, root = _chain()
    proof = sign_call(HOLDER, root, "fs_read", arguments, audience=AUDIENCE, nonce=NONCE, now=NOW, jti="p")
    proven = verify_call(proof, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)
    assert (proven.tool, proven.jti, proven.iat) == ("fs_read", "p", NOW)
    assert canonical(proven.arguments) == canonical(arguments)


def _chain() -> tuple[VerifiedChain, str]:
    from runner.token.keys import PublicKey

    root = DATA["chains"][0]["chain"][0]
    jwk = {name: DATA["keys"]["issuer"][name] for name in ("kty", "crv", "x")}
    return verify_chain([root], {DATA["issuer"]: (PublicKey.from_jwk(jwk),)}, NOW, AUDIENCE, LIMITS), root


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1, "\ud800", b"x", {1: 2}, object()])
def test_an_argument_that_would_arrive_otherwise_is_not_sent(value: Any, forge: ModuleType) -> None:
    with pytest.raises(RunnerError) as caught:
        sign_call(HOLDER, forge.ROOT, "t", {"a": value}, audience="d", nonce="n", now=NOW, jti="p")
    assert caught.value.refused.code == "arguments"


Verify = Callable[..., Any]


@pytest.mark.parametrize("kind", ["call", "hello"])
def test_what_a_proof_is_bound_to(kind: str, chain: VerifiedChain, forge: ModuleType, anchors: dict[str, Any]) -> None:
    verify: Verify = verify_call if kind == "call" else verify_hello

    def sign(key: SigningKey = HOLDER, leaf: str = forge.ROOT, **changes: Any) -> str:
        bound: dict[str, Any] = {"audience": AUDIENCE, "nonce": NONCE, "now": NOW, "jti": "p", **changes}
        return sign_call(key, leaf, "fs_read", {}, **bound) if kind == "call" else sign_hello(key, leaf, **bound)

    assert verify(sign(), chain, AUDIENCE, NONCE, NOW, 0, LIMITS).jti == "p"
    twin = forge.jws(forge.changed(forge.root_claims(), forge.put("exp", forge.NOW + 60)), "issuer")  # the same jti
    for proof, step in (
        (sign(SigningKey(b"\3" * 32)), "7b"),
        (sign(leaf=twin), "7c"),
        (sign(audience="other"), "7d"),
        (sign(now=NOW - 61), "7g"),
        (sign(now=NOW + 31), "7g"),
        (sign(nonce="other"), "7h"),
        (sign(jti=""), "7c"),
    ):
        with pytest.raises(RunnerError) as caught:
            verify(proof, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)
        assert caught.value.detail.startswith(f"step {step}")


def test_a_hello_is_no_call_and_a_call_is_no_hello(chain: VerifiedChain, forge: ModuleType) -> None:
    bound: dict[str, Any] = {"audience": AUDIENCE, "nonce": NONCE, "now": NOW, "jti": "p"}
    call, hello = sign_call(HOLDER, forge.ROOT, "t", {}, **bound), sign_hello(HOLDER, forge.ROOT, **bound)
    assert verify_hello(hello, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)
    with pytest.raises(RunnerError):
        verify_hello(call, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)
    with pytest.raises(RunnerError):
        verify_call(hello, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)


def test_before_the_daemon_started(chain: VerifiedChain, forge: ModuleType) -> None:
    proof = sign_hello(HOLDER, forge.ROOT, audience=AUDIENCE, nonce=NONCE, now=NOW, jti="p")
    assert verify_hello(proof, chain, AUDIENCE, NONCE, NOW, NOW + 0.9, LIMITS)  # within the second it started in
    with pytest.raises(RunnerError) as caught:
        verify_hello(proof, chain, AUDIENCE, NONCE, NOW, NOW + 1, LIMITS)
    assert "started" in caught.value.detail


def test_no_nonce_is_no_wildcard(chain: VerifiedChain, forge: ModuleType) -> None:
    proof = sign_hello(HOLDER, forge.ROOT, audience=AUDIENCE, nonce="", now=NOW, jti="p")
    with pytest.raises(RunnerError):
        verify_hello(proof, chain, AUDIENCE, "", NOW, 0, LIMITS)


def test_size(chain: VerifiedChain, forge: ModuleType) -> None:
    bound: dict[str, Any] = {"audience": AUDIENCE, "nonce": NONCE, "now": NOW, "jti": "p"}
    full = sign_call(HOLDER, forge.ROOT, "t", {"a": "x" * (LIMITS.argument_bytes - 10)}, **bound)
    assert verify_call(full, chain, AUDIENCE, NONCE, NOW, 0, LIMITS)
    with pytest.raises(RunnerError) as caught:
        verify_call(
            sign_call(HOLDER, forge.ROOT, "t", {"a": "x" * (LIMITS.argument_bytes + 5000)}, **bound),
            chain, AUDIENCE, NONCE, NOW, 0, LIMITS,
        )  # fmt: skip
    assert caught.value.detail.startswith("step 7a")


def test_a_leaf_that_is_no_token() -> None:
    with pytest.raises(RunnerError) as caught:
        sign_hello(HOLDER, "nonsense", audience="d", nonce="n", now=NOW, jti="p")
    assert caught.value.refused.code == "token"
