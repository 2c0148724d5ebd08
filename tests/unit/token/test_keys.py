"""Keys: RFC 8037 and RFC 7638 facts, weak keys refused, files that say nothing secret when they are wrong."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from runner.errors import RunnerError
from runner.token.keys import PublicKey, SigningKey, generate, private_file, public_file, read_private, read_public
from runner.token.strict import b64


def test_thumbprints_are_those_of_the_draft() -> None:
    # ietf/vectors of tenuo-ai/tenuo (Apache-2.0): public keys and thumbprints of its fixed seeds.
    for byte, x, thumbprint in (
        (1, "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w", "UDDReOZl1ipXAfp9wYsm13sDBMK5og--QWdBjzuf6o4"),
        (2, "gTl3Dqh9F19Wo1Rmw0x-zMuNipG07jeiXfYPW4_Js5Q", "aVBtapLd11SUVKIMGJfPzOEDuN0sXcmzJQNVT-_sKEU"),
        (255, "dqFZIESm5PURJlvKc6YE2QsFKdHfYCvjChmpJXZg0fU", "LlsmkXmHJuXWkRZLv_FKl_mprfIV5aYVnXqCgsebsdU"),
    ):
        public = SigningKey(bytes([byte]) * 32).public
        assert (public.jwk()["x"], public.thumbprint) == (x, thumbprint)
        assert PublicKey.from_jwk(public.jwk()) == public
        assert public.uri == f"urn:ietf:params:oauth:jwk-thumbprint:sha-256:{thumbprint}"


def test_rfc_8037_thumbprint() -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert PublicKey.from_jwk(jwk).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_signatures() -> None:
    key, other = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
    signature = key.sign(b"data")
    assert key.public.verifies(signature, b"data")
    assert not key.public.verifies(signature, b"dat")
    assert not other.public.verifies(signature, b"data")
    assert not key.public.verifies(signature[:-1], b"data")
    assert not key.public.verifies(signature + b"\0", b"data")
    assert not key.public.verifies(b"", b"data")


def test_s_plus_l_is_refused(forge: ModuleType) -> None:
    key = SigningKey(b"\1" * 32)
    signature = key.sign(b"data")
    s = int.from_bytes(signature[32:], "little") + forge.ORDER
    assert not key.public.verifies(signature[:32] + s.to_bytes(32, "little"), b"data")
    assert key.public.verifies(signature, b"data")


def test_small_order_keys_would_verify_everything_and_are_refused(forge: ModuleType) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    identity = bytes.fromhex(forge.SMALL_ORDER[0])
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"any message at all")  # the library does
    for encoded in forge.SMALL_ORDER:
        with pytest.raises(ValueError, match="small order"):
            PublicKey(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "EC"},
        {"crv": "X25519"},
        {"crv": "Ed448"},
        {"x": None},
        {"x": ""},
        {"x": "A" * 42},
        {"x": "A" * 44},
        {"x": ["A" * 43]},
        {"d": "AAAA"},
        {"k": "AAAA"},
    ],
)
def test_other_jwks(change: dict[str, object]) -> None:
    jwk: dict[str, object] = dict(SigningKey(b"\1" * 32).public.jwk())
    assert PublicKey.from_jwk(jwk)
    with pytest.raises(ValueError):
        PublicKey.from_jwk({**jwk, **change})


@pytest.mark.parametrize("jwk", [None, [], "", 1, {}])
def test_no_jwk(jwk: object) -> None:
    with pytest.raises(ValueError):
        PublicKey.from_jwk(jwk)


def test_generate() -> None:
    first, second = generate(), generate()
    assert len(first) == 32
    assert first != second
    with pytest.raises(ValueError):
        SigningKey(first[:-1])


def test_files() -> None:
    key = SigningKey(generate())
    text = private_file(key, "https://i.example")
    again, issuer = read_private(text, "f")
    assert (again.seed(), issuer) == (key.seed(), "https://i.example")
    assert read_public(public_file(key.public, "https://i.example"), "f") == (key.public, "https://i.example")
    assert "d" not in json.loads(public_file(key.public))
    with pytest.raises(RunnerError, match="private key material"):
        read_public(text, "f")
    with pytest.raises(RunnerError, match="no private key"):
        read_private(public_file(key.public), "f")


def test_files_that_are_wrong_show_nothing_secret() -> None:
    key = SigningKey(generate())
    secret = b64(key.seed())
    good = json.loads(private_file(key, "https://i.example"))
    other = SigningKey(generate()).public.jwk()["x"]
    bad = [
        private_file(key)[:-3],
        json.dumps({**good, "x": other}).encode(),
        json.dumps({**good, "issuer": "not a URI"}).encode(),
        json.dumps({**good, "issuer": 7}).encode(),
        json.dumps({**good, "d": secret + "="}).encode(),
        json.dumps({**good, "d": [secret]}).encode(),
        json.dumps([good]).encode(),
        private_file(key) + b" " * 5000,
        b"\xff" + private_file(key),
    ]
    for data in bad:
        with pytest.raises(RunnerError) as caught:
            read_private(data, "the.key")
        assert caught.value.refused.code == "key"
        assert caught.value.refused.field == "the.key"
        assert secret not in str(caught.value) + caught.value.detail
        assert caught.value.__suppress_context__


def test_repr_shows_the_public_half_only() -> None:
    key = SigningKey(b"\1" * 32)
    assert repr(key) == f"SigningKey({key.public.thumbprint})"
    assert b64(key.seed()) not in repr(key)
