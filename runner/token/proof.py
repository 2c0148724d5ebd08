"""Proof of possession (the draft, §7, step 7): the holder of the leaf key signs every call, and each hello.

Stricter than the draft where it leaves a choice: `aat_aud` and `nonce` are required, so a proof is good for one
connection of one daemon; and the payload must be the RFC 8785 bytes it is said to be. That one comparison refuses
repeated members, odd numbers, odd escapes and white space at once, so what was signed has one reading. The call frame
carries no second copy of tool and arguments: steps 7e and 7f hold because the verified `aat_tool` and `hta` are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from runner.config import Limits
from runner.errors import refuse
from runner.model import Value
from runner.token.claims import VerifiedChain
from runner.token.jcs import MAX_DEPTH, canonical, canonical_object
from runner.token.keys import SigningKey
from runner.token.payload import JTI
from runner.token.strict import (
    HELLO_TYPE,
    PROOF_TYPE,
    TOKEN_TYPE,
    NotAccepted,
    b64,
    compact,
    header_segment,
    parse_json,
    unauthenticated,
)

_ENVELOPE = 4096  # bytes of a proof's payload beside its arguments


class ProvenCall(Value, frozen=True):
    """What the holder of the leaf key signed: this tool with these arguments, here and now."""

    tool: str
    arguments: dict[str, Any]
    jti: str
    iat: int


class ProvenHello(Value, frozen=True):
    """The holder of the leaf key is on this connection."""

    jti: str
    iat: int


# --- the holder's side -----------------------------------------------------------------------------------


def sign_call(
    key: SigningKey,
    leaf: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    audience: str,
    nonce: str,
    now: float,
    jti: str,
) -> str:
    """A proof for one call under the leaf token `leaf`. `jti` is fresh for every call; `now` is the daemon's clock.

    Raises `RunnerError` (arguments) when an argument has no canonical JSON form, such as NaN or an integer that no
    double holds, and `RunnerError` (token) when `leaf` is no token."""
    return CallSigner(key, leaf, audience=audience, nonce=nonce).sign(tool, arguments, now=now, jti=jti)


class CallSigner:
    """`sign_call` for many calls of one connection: what all its proofs share is encoded once."""

    def __init__(self, key: SigningKey, leaf: str, *, audience: str, nonce: str) -> None:
        """Raises as `sign_call` does for `leaf`."""
        leaf_jti, leaf_hash = _leaf(leaf)
        self._key = key
        self._header = f"{header_segment(PROOF_TYPE)}.".encode()
        # In the order of a canonical object's members: aat_aud, aat_hash, aat_id, aat_tool, hta, iat, jti, nonce.
        shared = canonical({"aat_aud": audience, "aat_hash": leaf_hash, "aat_id": leaf_jti})
        self._first = shared[:-1] + b',"aat_tool":'
        self._last = b',"nonce":' + canonical(nonce) + b"}"

    def sign(self, tool: str, arguments: Mapping[str, Any], *, now: float, jti: str) -> str:
        """The proof for one call. Raises as `sign_call`."""
        try:
            hta = canonical(dict(arguments), MAX_DEPTH - 1)
            payload = b'%b%b,"hta":%b,"iat":%d,"jti":%b%b' % (
                self._first,
                canonical(tool),
                hta,
                int(now),
                canonical(jti),
                self._last,
            )
        except ValueError as error:
            raise refuse("arguments", f"not sendable as canonical JSON: {error}") from None
        signing_input = self._header + b64(payload).encode()
        return f"{signing_input.decode()}.{b64(self._key.sign(signing_input))}"


def sign_hello(key: SigningKey, leaf: str, *, audience: str, nonce: str, now: float, jti: str) -> str:
    """A proof for the hello of one connection, over the daemon's nonce. Raises `RunnerError` (token)."""
    leaf_jti, leaf_hash = _leaf(leaf)
    claims = {
        "jti": jti,
        "iat": int(now),
        "aat_id": leaf_jti,
        "aat_hash": leaf_hash,
        "aat_aud": audience,
        "nonce": nonce,
    }
    return key.jws(claims, HELLO_TYPE)


@lru_cache(maxsize=8)
def _leaf(token: str) -> tuple[str, str]:
    """The holder's own leaf token: its jti and hash, which every proof names."""
    try:
        form = compact(token, TOKEN_TYPE, Limits().token_bytes, "leaf")
        jti = parse_json(form.payload, 128)["jti"]
    except (NotAccepted, ValueError, TypeError, KeyError):
        raise refuse("token", "the leaf token cannot be read") from None
    return str(jti), form.hash


# --- the daemon's side -----------------------------------------------------------------------------------


def verify_call(
    proof: str, verified: VerifiedChain, audience: str, nonce: str, now: float, not_before: float, limits: Limits
) -> ProvenCall:
    """Step 7 for a call. `nonce` is the one this connection was given; proofs issued before `not_before` (seconds,
    gate's start) are refused. Raises `RunnerError` (unauthenticated), generic, with the step in `detail`."""
    try:
        claims = _proven(proof, PROOF_TYPE, limits.argument_bytes, verified, audience, nonce, now, not_before, limits)
        tool, arguments = claims.get("aat_tool"), claims.get("hta")
        if type(tool) is not str or not JTI.fullmatch(tool):
            raise NotAccepted("7c", "aat_tool is not 1 to 128 printable ASCII characters")
        if type(arguments) is not dict:
            raise NotAccepted("7c", "hta is not an object")
    except NotAccepted as failed:
        raise unauthenticated(failed) from None
    return ProvenCall(tool=tool, arguments=arguments, jti=claims["jti"], iat=claims["iat"])


def verify_hello(
    proof: str, verified: VerifiedChain, audience: str, nonce: str, now: float, not_before: float, limits: Limits
) -> ProvenHello:
    """Step 7 for a hello, as `verify_call`."""
    try:
        claims = _proven(proof, HELLO_TYPE, 0, verified, audience, nonce, now, not_before, limits)
    except NotAccepted as failed:
        raise unauthenticated(failed) from None
    return ProvenHello(jti=claims["jti"], iat=claims["iat"])


def _proven(
    proof: str,
    typ: str,
    room: int,
    verified: VerifiedChain,
    audience: str,
    nonce: str,
    now: float,
    not_before: float,
    limits: Limits,
) -> dict[str, Any]:
    # 7a. Size and header: algorithm, type, nothing critical.
    form = compact(proof, typ, (room + _ENVELOPE) * 4 // 3, "7a")
    # 7b. Signature under the leaf's key, then the claims: canonical, or refused.
    if not verified.leaf_key.verifies(form.signature, form.signing_input):
        raise NotAccepted("7b", "not signed by the leaf's holder")
    claims = _canonical_claims(form.payload, limits.argument_depth + 1)
    # 7c. Types, and the exact leaf that was presented.
    jti, iat = claims.get("jti"), claims.get("iat")
    if type(jti) is not str or not JTI.fullmatch(jti):
        raise NotAccepted("7c", "jti is not 1 to 128 printable ASCII characters")
    if type(iat) is not int:
        raise NotAccepted("7c", "iat is not a NumericDate in whole seconds")
    if claims.get("aat_id") != verified.leaf_jti or claims.get("aat_hash") != verified.leaf_hash:
        raise NotAccepted("7c", "the proof is for another leaf token")
    # 7d. Audience: required, and this daemon.
    if claims.get("aat_aud") != audience:
        raise NotAccepted("7d", "aat_aud does not name this daemon")
    # 7g. Clock window (§9.10), and never from before this gate began: its replay memory began with it.
    if not now - limits.proof_window_s <= iat <= now + limits.iat_skew_s:
        raise NotAccepted("7g", f"iat is {iat - int(now):+d} s off")
    if iat < int(not_before):
        raise NotAccepted("7g", "issued before the daemon started")
    # 7h. The nonce this connection was given.
    if not nonce or claims.get("nonce") != nonce:
        raise NotAccepted("7h", "not the nonce of this connection")
    return claims


def _canonical_claims(payload: bytes, depth: int) -> dict[str, Any]:
    try:
        return canonical_object(payload, depth)
    except ValueError as error:
        raise NotAccepted("7b", f"the payload is not canonical JSON: {error}") from None
