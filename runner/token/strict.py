"""Bytes of a stranger into a JWS, with one reading only: size, three segments, canonical base64url, strict JSON.

General libraries are lenient here (padding, spare bits, repeated members, `NaN`, other `typ`): a token that two
parsers read differently is two tokens. Nothing in a header selects a key: `kid`, `jwk`, `jku`, `x5c`, `x5u` are
never looked at. Claims are parsed only after the signature verified (the draft, §8).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

import msgspec

from runner.errors import RunnerError, refuse
from runner.model import Value
from runner.token.jcs import admissible, canonical

ALGORITHM = "Ed25519"  # RFC 9864; the draft (§9.12) forbids the older polymorphic "EdDSA", and so do we
TOKEN_TYPE = "aat+jwt"  # noqa: S105 - a media type, not a password
PROOF_TYPE = "aat-pop+jwt"
HELLO_TYPE = "runner-hello+jwt"  # ours: possession of the leaf key when a connection opens
OPERATOR_TYPE = "runner-operator+jwt"  # ours: possession of an operator's key on a connection to admin.sock

GENERIC = "the token chain was not accepted"
_MAX_NUMBER_TEXT = 1100  # the longest exact decimal form of a double has fewer digits


class NotAccepted(Exception):
    """A check failed. `step` is the number in the draft's §8, or `profile` for a rule of ours; never for the peer.

    `field` and `allowed` are for whoever signs: the `tool.argument` that is too wide, and how wide it may be."""

    def __init__(self, step: str, reason: str, *, field: str = "", allowed: str = "") -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason
        self.field = field
        self.allowed = allowed


def unauthenticated(failed: NotAccepted) -> RunnerError:
    """What the peer is told: the same words whatever failed. The step and the reason stay in `detail`."""
    return refuse("unauthenticated", GENERIC, detail=str(failed))


class Compact(Value, frozen=True):
    """A JWS whose form, algorithm and type are right, and whose signature nobody has looked at yet."""

    signing_input: bytes
    payload: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the signing input: names the token without holding it."""
        return hashlib.sha256(self.signing_input).hexdigest()

    @property
    def hash(self) -> str:
        """The same digest as `par_hash` and `aat_hash` carry it (§4.6)."""
        return b64(hashlib.sha256(self.signing_input).digest())


_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_TO_URL = bytes.maketrans(b"+/", b"-_")


def b64(data: bytes) -> str:
    """base64url without padding (RFC 7515, Appendix C)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The bytes of canonical base64url: its alphabet alone, no padding, spare bits zero. Raises ValueError."""
    try:
        encoded = text.encode("ascii")
        data = binascii.a2b_base64(encoded.translate(_TO_STANDARD) + b"=" * (-len(encoded) % 4))
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError("not base64url") from None
    # The decoder skips what it does not know and drops spare bits: what was read must write the same text.
    if binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=") != encoded:
        raise ValueError("not canonical base64url")
    return data


_PLAIN = {
    typ: b64(canonical({"alg": ALGORITHM, "typ": typ})) for typ in (TOKEN_TYPE, PROOF_TYPE, HELLO_TYPE, OPERATOR_TYPE)
}


def header_segment(typ: str) -> str:
    """The protected header of a JWS of type `typ` as we write it, encoded."""
    return _PLAIN[typ]


def compact(text: str, typ: str, maximum: int, step: str) -> Compact:
    """Split a compact JWS of at most `maximum` characters and check its header. Raises `NotAccepted` at `step`."""
    if type(text) is not str or len(text) > maximum:
        raise NotAccepted(step, f"not a string of at most {maximum} characters")
    segments = text.split(".", 3)
    if len(segments) != 3:
        raise NotAccepted(step, "not three segments")
    head, body, tail = segments
    try:
        if head != _PLAIN[typ]:
            _check_header(unb64(head), typ, step)
        signature = unb64(tail)
        payload = unb64(body)
    except ValueError as error:
        raise NotAccepted(step, str(error)) from None
    return Compact(signing_input=f"{head}.{body}".encode(), payload=payload, signature=signature)


def _check_header(data: bytes, typ: str, step: str) -> None:
    header = parse_json(data, 16)
    if type(header) is not dict:
        raise NotAccepted(step, "the header is not an object")
    if header.get("alg") != ALGORITHM:
        raise NotAccepted(step, f"alg is not {ALGORITHM}")
    if header.get("typ") != typ:
        raise NotAccepted(step, f"typ is not {typ}")
    if "crit" in header:  # RFC 7515 §4.1.11: we implement no extension, so none can be understood
        raise NotAccepted(step, "crit lists an extension that is not understood")


def parse_json(data: bytes, depth: int) -> Any:
    """Strict I-JSON: UTF-8 without a mark, no repeated member, no NaN, admissible numbers, at most `depth` containers
    deep, whole surrogate pairs. A number without fraction or exponent is int, any other float. Raises ValueError."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members,
            parse_int=_integer,
            parse_float=_double,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    canonical(value, depth)
    return value


class _OnlyJti(msgspec.Struct):
    jti: str


_jti_decoder = msgspec.json.Decoder(_OnlyJti)


def untrusted_jti(text: str) -> str:
    """The `jti` of a token nobody verified, for step 2c. Raises ValueError when there is none."""
    segments = text.split(".", 3)
    if len(segments) != 3:
        raise ValueError("not three segments")
    try:
        return _jti_decoder.decode(unb64(segments[1])).jti
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("no jti can be read") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name is repeated")
    return members


def _integer(text: str) -> int:
    if len(text) > 15 and (len(text) > _MAX_NUMBER_TEXT or not admissible(text, float(text))):
        raise ValueError("a number does not survive as a double")
    return int(text)


def _double(text: str) -> float:
    value = float(text)
    if len(text) > _MAX_NUMBER_TEXT or not admissible(text, value):
        raise ValueError("a number does not survive as a double")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
