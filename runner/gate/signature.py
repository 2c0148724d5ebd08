"""Whether a bundle of policies is one that a trusted key signed.

The signature is a file beside the policies, `bundle.sig`: a compact JWS (RFC 7515, EdDSA) over the digest of all other
files of the bundle, with a `typ` of its own, so that no token is ever taken for one. Nothing of it is parsed: what a
right one says is made here, and compared. A signature does not age: an older bundle, put back, is as good as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.catalog import SIGNATURE, Catalog
from runner.config import Policy
from runner.errors import refuse
from runner.token.jcs import canonical
from runner.token.keys import PublicKey, SigningKey, read_public
from runner.token.strict import ALGORITHM, b64, unb64
from runner.wire.guest import code_digest

TYPE = "toolrunner-policy-bundle+jws"
MAX_SIGNATURE = 1024  # the real ones have 270
_PLACE = f"policies/{SIGNATURE}"
_SIGN = "sign it with `runner policy sign`"


def sign(policies: Mapping[str, bytes], key: SigningKey) -> bytes:
    """The content of the signature file for these files of a bundle."""
    signed = _signed(policies)
    return f"{signed}.{b64(key.sign(signed.encode()))}\n".encode()


def check(catalog: Catalog, rules: Policy, files: Mapping[str, bytes]) -> str:
    """The thumbprint of the key that signed the bundle; "" when none did and none had to.

    `rules` are the configuration's, `files` the key files that they name. A signature that is there is checked
    wherever a key is trusted, also where none is required. Raises `RunnerError` (policy, key, config)."""
    if rules.require_signature and not rules.public_keys:
        raise refuse(
            "config",
            "require_signature without a key: no bundle could ever be accepted",
            field="policy.public_keys",
            next_step="name the public key of `runner keys init` there",
        )
    keys = [read_public(files[name], name)[0] for name in rules.public_keys]
    if rules.require_signature:
        signature_of(catalog)
    return verify(catalog.policies, catalog.signature, keys) if keys and catalog.signature is not None else ""


def signature_of(catalog: Catalog) -> bytes:
    """The signature beside the policies. Raises `RunnerError` (policy) when there is none."""
    if catalog.signature is None:
        raise refuse("policy", "the bundle is not signed, and has to be", field=_PLACE, next_step=_SIGN)
    return catalog.signature


def verify(policies: Mapping[str, bytes], signature: bytes, keys: Sequence[PublicKey]) -> str:
    """The thumbprint of whichever key signed these files. Raises `RunnerError` (policy) when none did."""
    expected = f"{_signed(policies)}."
    text = signature[: MAX_SIGNATURE + 1].decode("ascii", "replace").removesuffix("\n")
    if not text.startswith(expected):
        raise refuse("policy", "the signature is not of these files", field=_PLACE, next_step=_SIGN)
    try:
        data = unb64(text[len(expected) :])
    except ValueError:
        data = b""
    for key in keys:
        if key.verifies(data, expected[:-1].encode()):
            return key.thumbprint
    raise refuse("policy", "the signature is not by a key that the configuration trusts", field=_PLACE, next_step=_SIGN)


def _signed(policies: Mapping[str, bytes]) -> str:
    header = canonical({"alg": ALGORITHM, "typ": TYPE})
    return f"{b64(header)}.{b64(canonical({'digest': code_digest(dict(policies))}))}"
