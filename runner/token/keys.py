"""Ed25519 keys as JWKs (RFC 8037, RFC 7638): the only place where a signature is made or checked.

libsodium makes and checks them, in two thirds and half of OpenSSL's time: there is one of each in every call. No JWT
library: its own parsing of header and claims would be a second reading of the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair, randombytes
from nacl.exceptions import BadSignatureError

from runner.errors import refuse
from runner.token.jcs import canonical
from runner.token.strict import b64, header_segment, parse_json, unb64

THUMBPRINT_URI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"  # RFC 9278
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]{1,512}")
MAX_ANCHORS = 16  # each costs a stranger's token one more verification
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_FIELD = 2**255 - 19
# The y of the eight points whose order divides 8 (and of their mirror images): under such a key one signature fits
# every message. Order 1: 1. Order 2: -1. Order 4: 0. Order 8: the two roots below.
_ORDER_8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})


class PublicKey:
    """An Ed25519 public key that is safe to verify with: canonical encoding, no point of small order."""

    __slots__ = ("raw", "thumbprint")

    def __init__(self, raw: bytes) -> None:
        """Raises ValueError when `raw` is not 32 bytes of such a key."""
        if len(raw) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")
        y = int.from_bytes(raw, "little") & (2**255 - 1)
        if y >= _FIELD or y in _SMALL_ORDER:
            raise ValueError("the public key is of small order or not in canonical form")
        self.raw = raw
        self.thumbprint = b64(hashlib.sha256(canonical(self.jwk())).digest())

    @classmethod
    def from_jwk(cls, jwk: object) -> PublicKey:
        """The key in a public JWK. Raises ValueError on another type of key, and on any private member."""
        if type(jwk) is not dict or jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519":
            raise ValueError("not an Ed25519 JWK")
        if not _PRIVATE_MEMBERS.isdisjoint(jwk):
            raise ValueError("the JWK holds private key material")
        x = jwk.get("x")
        if type(x) is not str or len(x) != 43:
            raise ValueError("x is not 32 bytes of base64url")
        return cls(unb64(x))

    def jwk(self) -> dict[str, str]:
        """The key's required members, which are also what its thumbprint covers."""
        return {"crv": "Ed25519", "kty": "OKP", "x": b64(self.raw)}

    @property
    def uri(self) -> str:
        """The thumbprint URI (RFC 9278) that tokens derived by this key carry as `iss`."""
        return THUMBPRINT_URI + self.thumbprint

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` over `data` is this key's. S not below the group order is refused (RFC 8032 §5.1.7)."""
        if len(signature) != 64:
            return False
        try:
            crypto_sign_open(signature + data, self.raw)
        except BadSignatureError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.thumbprint})"


class SigningKey:
    """An Ed25519 private key. Its repr names the public key only."""

    __slots__ = ("_pair", "public")

    def __init__(self, seed: bytes) -> None:
        """Raises ValueError when `seed` is not 32 bytes."""
        if len(seed) != 32:
            raise ValueError("a private key is 32 bytes")
        public, self._pair = crypto_sign_seed_keypair(seed)  # the pair: seed and public key
        self.public = PublicKey(public)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature over `data`."""
        signed: bytes = crypto_sign(data, self._pair)
        return signed[:64]

    def jws(self, claims: Mapping[str, Any], typ: str) -> str:
        """A compact JWS over the canonical form of `claims`. Raises ValueError on values that have none."""
        signing_input = f"{header_segment(typ)}.{b64(canonical(dict(claims)))}"
        return f"{signing_input}.{b64(self.sign(signing_input.encode()))}"

    def seed(self) -> bytes:
        """The private seed: 32 bytes that are the key."""
        return self._pair[:32]

    def __repr__(self) -> str:
        return f"SigningKey({self.public.thumbprint})"


def generate() -> bytes:
    """A fresh private seed of 32 bytes, from the cryptographic library's own generator."""
    return bytes(randombytes(32))


def private_file(key: SigningKey, issuer: str = "") -> bytes:
    """A key file: private JWK, and the issuer's URI where the key is an issuer's."""
    return _file({**key.public.jwk(), "d": b64(key.seed())}, issuer)


def public_file(key: PublicKey, issuer: str = "") -> bytes:
    """The public half, as `[[issuers]]` in the configuration names it."""
    return _file(dict(key.jwk()), issuer)


def anchors_file(keys: Sequence[PublicKey], issuer: str) -> bytes:
    """Several public halves in force at once: a JWK Set (RFC 7517 §5); of one key the file that `public_file` makes."""
    if len(keys) == 1:
        return public_file(keys[0], issuer)
    return canonical({"issuer": issuer, "keys": [key.jwk() for key in keys]}) + b"\n"


def _file(jwk: dict[str, str], issuer: str) -> bytes:
    if issuer:
        jwk["issuer"] = issuer
    return canonical(jwk) + b"\n"


def read_private(data: bytes, name: str) -> tuple[SigningKey, str]:
    """The key and issuer URI in a private key file. Raises `RunnerError` (key) naming the file, never its content."""
    try:
        jwk, issuer = _read(data)
        d = jwk.pop("d", None)
        if type(d) is not str:
            raise ValueError("there is no private key in it")
        key = SigningKey(unb64(d))
        if PublicKey.from_jwk(jwk) != key.public:
            raise ValueError("its public and private halves do not belong together")
    except ValueError as error:
        raise refuse("key", f"not an Ed25519 private JWK: {error}", field=name) from None
    return key, issuer


def read_public(data: bytes, name: str) -> tuple[PublicKey, str]:
    """The key and issuer URI in a public key file. Raises `RunnerError` (key) naming the file."""
    try:
        jwk, issuer = _read(data)
        key = PublicKey.from_jwk(jwk)
    except ValueError as error:
        raise refuse("key", f"not an Ed25519 public JWK: {error}", field=name) from None
    return key, issuer


def read_anchors(data: bytes, name: str) -> tuple[tuple[PublicKey, ...], str]:
    """The keys and issuer URI in a public key file, one or a set. Raises `RunnerError` (key) naming the file."""
    try:
        found, issuer = _read(data)
        jwks = found.get("keys", [found])
        if type(jwks) is not list or not 0 < len(jwks) <= MAX_ANCHORS:
            raise ValueError(f"a set holds 1 to {MAX_ANCHORS} keys")
        keys = tuple(PublicKey.from_jwk(jwk) for jwk in jwks)
        if len(set(keys)) != len(keys):
            raise ValueError("a key is in the set twice")
    except ValueError as error:
        raise refuse("key", f"not an Ed25519 public JWK, nor a set of them: {error}", field=name) from None
    return keys, issuer


def _read(data: bytes) -> tuple[dict[str, Any], str]:
    if len(data) > 4096:
        raise ValueError("the file is longer than a key")
    try:
        jwk = parse_json(data, 4)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError:
        raise ValueError("not JSON") from None  # the decoder's own words may quote the file
    if type(jwk) is not dict:
        raise ValueError("not a JSON object")
    issuer = jwk.get("issuer", "")
    if type(issuer) is not str or (issuer and not URI.fullmatch(issuer)):
        raise ValueError("issuer is not a URI")
    return jwk, issuer
