"""An operator proves its key on a connection to admin.sock, as an agent proves the key of its leaf token.

The proof is over the connection's own nonce, which is drawn for it, accepted once and within seconds: so it names no
time, and there is nothing to replay. `aud` binds it to one daemon. The payload must be its own RFC 8785 bytes, so what
was signed has one reading; the key is one that the configuration names, never one that the proof brings along.
"""

from __future__ import annotations

from runner.token.jcs import canonical_object
from runner.token.keys import PublicKey, SigningKey
from runner.token.strict import OPERATOR_TYPE, NotAccepted, compact

MAX_PROOF = 1024  # header and payload are some 300 characters, the signature 86


def sign_operator(key: SigningKey, *, audience: str, nonce: str) -> str:
    """A proof for one connection to the daemon that calls itself `audience` and gave this `nonce`."""
    return key.jws({"aud": audience, "nonce": nonce, "sub": key.public.thumbprint}, OPERATOR_TYPE)


def verify_operator(proof: str, key: PublicKey, *, audience: str, nonce: str) -> None:
    """Raises `NotAccepted`, whose words are for the ledger and never for the peer, unless `key` signed just this."""
    # 1. Size and header: algorithm, type, nothing critical.
    form = compact(proof, OPERATOR_TYPE, MAX_PROOF, "operator 1")
    # 2. Signature, before a byte of the payload is read.
    if not key.verifies(form.signature, form.signing_input):
        raise NotAccepted("operator 2", "not signed by this operator's key")
    # 3. The claims: these three, canonical, and this connection's.
    try:
        claims = canonical_object(form.payload, 1)
    except ValueError as error:
        raise NotAccepted("operator 3", f"the payload is not canonical JSON: {error}") from None
    if not nonce or claims != {"aud": audience, "nonce": nonce, "sub": key.thumbprint}:
        raise NotAccepted("operator 3", "the proof is for another connection, daemon or key")
