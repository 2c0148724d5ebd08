"""Making tokens: a root by the issuer, a derived one offline by any holder. Nothing is signed that would be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.config import Limits
from runner.errors import RunnerError, refuse
from runner.token.keys import PublicKey, SigningKey
from runner.token.payload import DETAILS_TYPE, PRIVATE_CLAIM, Claims, asserted_name, child_claims, identity, root_claims
from runner.token.strict import TOKEN_TYPE, Compact, NotAccepted, compact, parse_json

Tools = Mapping[str, Mapping[str, Any]]  # tool id -> constraint map; {} allows any arguments


def mint_root(
    *,
    issuer: str,
    key: SigningKey,
    holder: PublicKey,
    agent: str,
    owner: str,
    task: str,
    session: str,
    profile: str,
    tools: Tools,
    now: int,
    expires: int,
    jti: str,
    depth: int = 0,
    audience: str = "",
    limits: Limits | None = None,
) -> str:
    """A root token: `issuer` gives `holder` these tools from `now` until `expires` (seconds), derivable `depth` times.

    Raises `RunnerError` (token) naming what this daemon's own verification would refuse."""
    claims: dict[str, Any] = {
        "iss": issuer,
        "del_depth": 0,
        "del_max_depth": depth,
        PRIVATE_CLAIM: {"agent": agent, "owner": owner, "task": task, "session": session, "profile": profile},
        **_common(jti, now, expires, holder, tools, audience),
    }
    try:
        root_claims(claims, issuer, now, limits or Limits())
        identity(claims[PRIVATE_CLAIM])
        return key.jws(claims, TOKEN_TYPE)
    except (NotAccepted, ValueError) as error:
        raise _unfit(error) from None


def derive(
    parent_token: str,
    holder_key: SigningKey,
    *,
    holder: PublicKey,
    tools: Tools,
    now: int,
    jti: str,
    expires: int | None = None,
    depth: int | None = None,
    agent: str = "",
    audience: str = "",
    limits: Limits | None = None,
) -> str:
    """A token for `holder`, derived offline from `parent_token` by the holder of `holder_key`: at most the parent's
    tools, constraints, lifetime and depth. `agent` is the name that the holder gives it, recorded as asserted.

    Raises `RunnerError` (token) naming the invariant that the wish would break."""
    limits = limits or Limits()
    try:
        above, parent = _own(parent_token, limits)
        if holder_key.public != parent.holder:
            raise NotAccepted("4b", "the key is not the parent's holder key")
        claims: dict[str, Any] = {
            "iss": holder_key.public.uri,
            "del_depth": parent.del_depth + 1,
            "del_max_depth": parent.del_max_depth if depth is None else depth,
            "par_hash": above.hash,
            **_common(jti, max(now, parent.iat), parent.exp if expires is None else expires, holder, tools, audience),
        }
        if agent:
            claims[PRIVATE_CLAIM] = {"agent": agent}
        child_claims(parent, above.hash, claims, now, limits)
        asserted_name(claims.get(PRIVATE_CLAIM))
        return holder_key.jws(claims, TOKEN_TYPE)
    except (NotAccepted, ValueError) as error:
        raise _unfit(error) from None


def own_claims(token: str, limits: Limits | None = None) -> Claims:
    """What the holder's own token says, unproven. Raises `RunnerError` (token)."""
    try:
        return _own(token, limits or Limits())[1]
    except (NotAccepted, ValueError) as error:
        raise _unfit(error) from None


def _own(token: str, limits: Limits) -> tuple[Compact, Claims]:
    """The holder's own token: its form is checked, its signature is the daemon's to check. A derived parent is read
    as if it were a root, because what lies above it is not known here and cannot widen it."""
    form = compact(token, TOKEN_TYPE, limits.token_bytes, "parent")
    claims = parse_json(form.payload, 2 * limits.constraint_depth + 16)
    if type(claims) is not dict or type(claims.get("iss")) is not str:
        raise NotAccepted("parent", "the parent token has no issuer")
    as_root = {name: value for name, value in claims.items() if name != "par_hash"} | {"del_depth": 0}
    # Its own time: an expired parent shows as step 4i of the child.
    read = root_claims(as_root, claims["iss"], claims.get("iat", 0), limits)
    depth = claims.get("del_depth")
    if type(depth) is not int:
        raise NotAccepted("parent", "del_depth is not an integer")
    return form, Claims(
        jti=read.jti,
        iss=read.iss,
        iat=read.iat,
        exp=read.exp,
        holder=read.holder,
        del_depth=depth,
        del_max_depth=read.del_max_depth,
        tools=read.tools,
        aud=read.aud,
        private=read.private,
    )


def _common(jti: str, iat: int, exp: int, holder: PublicKey, tools: Tools, audience: str) -> dict[str, Any]:
    common: dict[str, Any] = {
        "jti": jti,
        "iat": iat,
        "exp": exp,
        "cnf": {"jwk": holder.jwk()},
        "authorization_details": [
            {"type": DETAILS_TYPE, "tools": {name: dict(constraints) for name, constraints in tools.items()}}
        ],
    }
    if audience:
        common["aud"] = audience
    return common


def _unfit(error: Exception) -> RunnerError:
    if isinstance(error, NotAccepted):
        rule, step = f"draft §8 step {error.step}", "correct it and try again"
        return refuse("token", error.reason, rule=rule, next_step=step, field=error.field, allowed=error.allowed)
    return refuse("token", str(error), next_step="correct it and try again")
