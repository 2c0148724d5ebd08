"""From token texts of a stranger to a `VerifiedChain`: the draft's §8, steps 1 to 6, in its order and by its numbers.

 1. The chain is not empty.
 2. Sizes; every token once (its jti, still untrusted).
 3. The root: header, signature under a trust anchor, then its claims.
 4. Each derived token: header, signature under its parent's holder key, claims, invariants I1 to I5.
 5. The chain is as long as its leaf is deep.
 6. The leaf grants something here; every audience in the chain is this daemon.
 Profile: who it is for (the root's private claim), names that parents gave (the others').

Step 6b (tool and arguments) is gate's `capability`, step 7 (proof of possession) is `proof`. Nothing here reads a
key, URL or path out of a header, and no claim is parsed before its signature verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.config import Limits
from runner.model import Principal, Value
from runner.token.keys import PublicKey
from runner.token.payload import Claims, asserted_name, child_claims, identity, root_claims
from runner.token.strict import TOKEN_TYPE, Compact, NotAccepted, compact, parse_json, unauthenticated, untrusted_jti

Anchors = Mapping[str, tuple[PublicKey, ...]]  # issuer URI -> its public keys


class Link(Value, frozen=True):
    """One token of a verified chain, for the record: never its text."""

    jti: str
    digest: str  # hex SHA-256 of its signing input
    issued: int
    expires: int
    tools: dict[str, Any] | None  # what it grants: tool -> constraint map; None when it only passes on nothing
    name: str = ""  # what its parent's holder calls whom it is for; "" at the root


class VerifiedChain(Value, frozen=True):
    """A chain that passed every step, as of `verify_chain`'s `now`; whoever keeps it re-checks `expires`.

    Holds no token text. Identity is the root's alone; `principal.asserted` are names that parents gave."""

    principal: Principal
    profile: str  # the task profile the root names
    tools: dict[str, Any]  # the leaf's: tool -> constraint map
    jtis: tuple[str, ...]  # root to leaf
    expires: int  # the leaf's exp: no parent ends sooner (I3)
    issued: int  # the leaf's iat
    issuer: str
    anchor: PublicKey  # the trust anchor that signed the root
    root_jti: str
    root_digest: str  # hex SHA-256 of the root's signing input: what `token mint` announced
    leaf_jti: str
    leaf_digest: str  # the same of the leaf
    leaf_hash: str  # the same, base64url, as proofs carry it in `aat_hash`
    leaf_key: PublicKey
    depth: int  # del_depth of the leaf: 0 when the root itself is presented
    links: tuple[Link, ...] = ()  # root to leaf


def verify_chain(chain: Sequence[str], anchors: Anchors, now: float, audience: str, limits: Limits) -> VerifiedChain:
    """Verify token texts, root to leaf, at `now` (seconds) for the enforcement point named `audience`.

    Raises `RunnerError` (unauthenticated) with the same words whatever failed; the step and reason are its `detail`."""
    try:
        return _verified(chain, anchors, now, audience, limits)
    except NotAccepted as failed:
        raise unauthenticated(failed) from None


def _verified(chain: Sequence[str], anchors: Anchors, now: float, audience: str, limits: Limits) -> VerifiedChain:
    forms, tokens, anchor = verify_tokens(chain, anchors, now, audience, limits)
    root, leaf = tokens[0], tokens[-1]
    who = identity(root.private)
    names = tuple(filter(None, (asserted_name(token.private) for token in tokens[1:])))
    return VerifiedChain(
        principal=Principal(agent=who.agent, owner=who.owner, task=who.task, session=who.session, asserted=names),
        profile=who.profile,
        tools=leaf.tools or {},
        jtis=tuple(token.jti for token in tokens),
        expires=leaf.exp,
        issued=leaf.iat,
        issuer=root.iss,
        anchor=anchor,
        root_jti=root.jti,
        root_digest=forms[0].digest,
        leaf_jti=leaf.jti,
        leaf_digest=forms[-1].digest,
        leaf_hash=forms[-1].hash,
        leaf_key=leaf.holder,
        depth=leaf.del_depth,
        links=tuple(_link(form, token) for form, token in zip(forms, tokens, strict=True)),
    )


def _link(form: Compact, token: Claims) -> Link:
    return Link(
        jti=token.jti,
        digest=form.digest,
        issued=token.iat,
        expires=token.exp,
        tools=token.tools,
        name=asserted_name(token.private) if token.del_depth else "",
    )


def verify_tokens(
    chain: Sequence[str], anchors: Anchors, now: float, audience: str, limits: Limits
) -> tuple[list[Compact], list[Claims], PublicKey]:
    """The draft alone, without our profile. Raises `NotAccepted` with the step."""
    # 1. Something was presented.
    if not chain:
        raise NotAccepted("1", "the chain is empty")
    # 2. Sizes, then each token once.
    _check_sizes(chain, limits)
    _check_unique(chain)

    # 3a. The root's header.
    form = compact(chain[0], TOKEN_TYPE, limits.token_bytes, "3a")
    # 3b. Its signature, then its claims.
    issuer, anchor = _anchor_of(form, anchors)
    token = root_claims(_claims(form, "3b", limits), issuer, now, limits)  # 3b–3n
    forms, tokens = [form], [token]

    # 4. Each derived token under its parent.
    for text in chain[1:]:
        parent, above = token, form
        form = compact(text, TOKEN_TYPE, limits.token_bytes, "4a")
        if not parent.holder.verifies(form.signature, form.signing_input):
            raise NotAccepted("4b", "not signed by the parent's holder")
        token = child_claims(parent, above.hash, _claims(form, "4b", limits), now, limits)  # 4b1–4q
        forms.append(form)
        tokens.append(token)

    # 5. Defence in depth.
    if len(chain) != token.del_depth + 1:
        raise NotAccepted("5", "the chain's length is not its leaf's depth plus 1")
    # 6a. The leaf has an entry of our type.
    if token.tools is None:
        raise NotAccepted("6a", "the leaf grants nothing")
    # 6c. Every audience in the chain names this daemon.
    for one in tokens:
        if one.aud is not None and audience not in one.aud:
            raise NotAccepted("6c", "a token in the chain is for another audience")
    return forms, tokens, anchor


def _check_sizes(chain: Sequence[str], limits: Limits) -> None:
    total = 0
    for text in chain:
        if type(text) is not str or len(text) > limits.token_bytes:
            raise NotAccepted("2a", f"a token is longer than {limits.token_bytes} bytes")
        total += len(text)
    if total > limits.chain_bytes or len(chain) > limits.delegation_depth + 1:
        raise NotAccepted("2b", f"longer than {limits.chain_bytes} bytes or {limits.delegation_depth} steps")


def _check_unique(chain: Sequence[str]) -> None:
    try:
        jtis = [untrusted_jti(text) for text in chain]
    except ValueError as error:
        raise NotAccepted("2c", str(error)) from None
    if len(set(jtis)) != len(jtis):
        raise NotAccepted("2c", "a token appears twice in the chain")


def _anchor_of(form: Compact, anchors: Anchors) -> tuple[str, PublicKey]:
    """The trust anchor that signed. All are tried: `kid` would be a stranger's word, and anchors are few."""
    for issuer, keys in anchors.items():
        for key in keys:
            if key.verifies(form.signature, form.signing_input):
                return issuer, key
    raise NotAccepted("3b", "not signed by a trust anchor")


def _claims(form: Compact, step: str, limits: Limits) -> object:
    try:
        # A constraint of depth n nests 2n containers, inside details, entry, tools, map.
        return parse_json(form.payload, 2 * limits.constraint_depth + 16)
    except ValueError as error:
        raise NotAccepted(step, f"the claims are not strict JSON: {error}") from None
