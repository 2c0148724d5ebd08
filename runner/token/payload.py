"""What one token says: its claims in the order the draft's §8 checks them, with the step numbers, and our profile.

Called on claims whose signature verified, and by whoever mints or derives before signing, so that nothing is signed
that would be refused. A field is read by one function here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runner.config import NAME, TOOL_ID, Limits
from runner.model import Value
from runner.token.capability import attenuates, map_problem
from runner.token.constraints import Work
from runner.token.keys import URI, PublicKey
from runner.token.narrow import shown
from runner.token.strict import NotAccepted

DETAILS_TYPE = "attenuating_agent_token"
PRIVATE_CLAIM = "runner"  # ours: identity in the root, an asserted name in derived tokens
JTI = re.compile(r"[\x21-\x7e]{1,128}")
_IDENTITY = ("agent", "owner", "task", "session", "profile")


class Claims(Value, frozen=True):
    """A token's claims, read and found valid at its place in a chain. `tools` is None where no entry has any."""

    jti: str
    iss: str
    iat: int
    exp: int
    holder: PublicKey
    del_depth: int
    del_max_depth: int
    tools: dict[str, Any] | None
    aud: tuple[str, ...] | None  # None when the token carries no `aud`
    private: Any  # the private claim, unread


class Identity(Value, frozen=True):
    """The root's private claim: who the chain acts for, and the task profile it may use."""

    agent: str
    owner: str
    task: str
    session: str
    profile: str


def root_claims(claims: object, issuer: str, now: float, limits: Limits) -> Claims:
    """Steps 3b–3n on the claims of a root that `issuer`'s key signed. Raises `NotAccepted`."""
    if type(claims) is not dict:
        raise NotAccepted("3b", "the claims are not an object")
    # 3b. iat and exp are NumericDates.
    iat, exp = _date(claims, "iat", "3b"), _date(claims, "exp", "3b")
    # 3c. del_depth is the integer 0.
    if _whole(claims, "del_depth", "3c") != 0:
        raise NotAccepted("3c", "del_depth of a root is not 0")
    # 3d. A root has no parent.
    if "par_hash" in claims:
        raise NotAccepted("3d", "a root carries par_hash")
    # 3e–3h. Time.
    if exp <= now:
        raise NotAccepted("3e", "expired")
    if iat > now + limits.iat_skew_s:
        raise NotAccepted("3f", "issued in the future")
    if exp <= iat:
        raise NotAccepted("3g", "exp is not after iat")
    if exp > iat + limits.token_lifetime_s:
        raise NotAccepted("3h", f"the lifetime exceeds {limits.token_lifetime_s} s")
    # 3i. The issuer's ceiling on depth.
    ceiling = _whole(claims, "del_max_depth", "3i")
    if ceiling > limits.delegation_depth:
        raise NotAccepted("3i", f"del_max_depth exceeds {limits.delegation_depth}")
    # 3j. jti.
    jti = _jti(claims, "3j")
    # 3k. iss belongs to the key that verified.
    if type(claims.get("iss")) is not str or not URI.fullmatch(claims["iss"]) or claims["iss"] != issuer:
        raise NotAccepted("3k", "iss is not the issuer whose key signed")
    # 3l. The holder's key.
    holder = _holder(claims, "3l")
    # 3m, 3n. Exactly one entry of our type, its constraints well-formed and known.
    tools = _tools(claims, "3m", "3n", limits)
    if tools is None:
        raise NotAccepted("3m", "no entry of type attenuating_agent_token")
    return Claims(
        jti=jti,
        iss=issuer,
        iat=iat,
        exp=exp,
        holder=holder,
        del_depth=0,
        del_max_depth=ceiling,
        tools=tools,
        aud=_audience(claims),
        private=claims.get(PRIVATE_CLAIM),
    )


def child_claims(parent: Claims, parent_hash: str, claims: object, now: float, limits: Limits) -> Claims:
    """Steps 4b1–4q on the claims of a token derived from `parent`, signed by its holder. Raises `NotAccepted`."""
    if type(claims) is not dict:
        raise NotAccepted("4b", "the claims are not an object")
    # 4b1–4b5. Required claims and their types.
    jti = _jti(claims, "4b1")
    holder = _holder(claims, "4b2")
    if type(claims.get("authorization_details")) is not list:
        raise NotAccepted("4b3", "authorization_details is not an array")
    depth, ceiling = _whole(claims, "del_depth", "4b4"), _whole(claims, "del_max_depth", "4b4")
    if type(claims.get("iss")) is not str or type(claims.get("par_hash")) is not str:
        raise NotAccepted("4b5", "iss or par_hash is not a string")
    iat, exp = _date(claims, "iat", "4b5"), _date(claims, "exp", "4b5")
    # 4c. I1: the issuer is the parent's holder.
    if claims["iss"] != parent.holder.uri:
        raise NotAccepted("4c", "iss is not the thumbprint of the parent's holder")
    # 4d–4m. I2 and I3, in the draft's order.
    for step, holds, reason in (
        ("4d", depth == parent.del_depth + 1, "del_depth is not the parent's plus 1"),
        ("4e", depth <= parent.del_max_depth, "the parent may not be derived from any further"),
        ("4f", depth <= limits.delegation_depth, f"deeper than {limits.delegation_depth}"),
        ("4g", ceiling <= parent.del_max_depth, "del_max_depth was raised"),
        ("4h", exp <= parent.exp, "outlives its parent"),
        ("4i", exp > now, "expired"),
        ("4j", iat >= parent.iat, "issued before its parent"),
        ("4k", iat <= now + limits.iat_skew_s, "issued in the future"),
        ("4l", exp > iat, "exp is not after iat"),
        ("4m", depth <= ceiling, "del_depth exceeds its own del_max_depth"),
    ):
        if not holds:
            raise NotAccepted(step, reason)
    # 4n, 4o. At most one entry of our type; its constraints.
    tools = _tools(claims, "4n", "4o", limits)
    # 4p. I4: nothing is granted that the parent does not grant.
    _check_monotonicity(parent.tools or {}, tools or {})
    # 4q. I5: this parent and no other.
    if claims["par_hash"] != parent_hash:
        raise NotAccepted("4q", "par_hash is not the digest of the parent's signing input")
    return Claims(
        jti=jti,
        iss=claims["iss"],
        iat=iat,
        exp=exp,
        holder=holder,
        del_depth=depth,
        del_max_depth=ceiling,
        tools=tools,
        aud=_audience(claims),
        private=claims.get(PRIVATE_CLAIM),
    )


def identity(private: object) -> Identity:
    """The root's private claim. Raises `NotAccepted` (profile) unless it has exactly the five names."""
    if type(private) is not dict or set(private) != set(_IDENTITY):
        raise NotAccepted("profile", f"the root's `{PRIVATE_CLAIM}` claim has not exactly {', '.join(_IDENTITY)}")
    for name in _IDENTITY[:-1]:
        if not is_name(private[name]):
            raise NotAccepted("profile", f"`{PRIVATE_CLAIM}.{name}` is not a name")
    if type(private["profile"]) is not str or not TOOL_ID.fullmatch(private["profile"]):
        raise NotAccepted("profile", f"`{PRIVATE_CLAIM}.profile` is not the name of a task profile")
    return Identity(**private)


def asserted_name(private: object) -> str:
    """The name that a derived token gives its holder; "" when it gives none. Raises `NotAccepted` (profile) on more
    than a name: identity in a derived token is an attempt to be someone else."""
    if private is None:
        return ""
    if type(private) is not dict or set(private) != {"agent"} or not is_name(private["agent"]):
        raise NotAccepted("profile", f"a derived token's `{PRIVATE_CLAIM}` claim is more than an agent's name")
    return str(private["agent"])


def is_name(value: object) -> bool:
    """Whether `value` may name an agent, owner, task or session: `config.NAME`, and no path that climbs or has gaps."""
    return (
        type(value) is str
        and NAME.fullmatch(value) is not None
        and not any(part in ("", ".", "..") for part in value.split("/"))
    )


def _check_monotonicity(parent: Mapping[str, Any], child: Mapping[str, Any]) -> None:
    work = Work()
    for tool, constraints in child.items():
        if tool not in parent:
            known = ", ".join(sorted(parent))[:400]
            raise NotAccepted("4p1", f"tool {shown(tool)} is not the parent's to grant", field=tool, allowed=known)
        failed = attenuates(parent[tool], constraints, work)
        if failed:
            field = f"{tool}.{shown(failed.argument)[1:-1]}"
            raise NotAccepted(failed.step, f"tool {shown(tool)}: {failed.reason}", field=field, allowed=failed.allowed)


def _tools(claims: Mapping[str, Any], step: str, map_step: str, limits: Limits) -> dict[str, Any] | None:
    details = claims.get("authorization_details")
    if type(details) is not list:
        raise NotAccepted(step, "authorization_details is not an array")
    entries = [entry for entry in details if type(entry) is dict and entry.get("type") == DETAILS_TYPE]
    if len(entries) > 1:
        raise NotAccepted(step, "more than one entry of type attenuating_agent_token")
    if not entries:
        return None
    tools = entries[0].get("tools")
    if type(tools) is not dict:
        raise NotAccepted(step, "`tools` is not an object")
    for name, constraints in tools.items():
        if not TOOL_ID.fullmatch(name):  # our profile: tools are named by the catalogue's ids, never by URIs or paths
            raise NotAccepted("profile", f"{shown(name)} is not a tool id")
        if type(constraints) is not dict:
            raise NotAccepted(step, f"tool {name}: the constraint map is not an object")
        found = map_problem(constraints, limits.constraint_depth)
        if found:
            raise NotAccepted(map_step, f"tool {name}: {found}")
    return tools


def _holder(claims: Mapping[str, Any], step: str) -> PublicKey:
    confirmation = claims.get("cnf")
    if type(confirmation) is not dict:
        raise NotAccepted(step, "cnf is not an object")
    try:
        return PublicKey.from_jwk(confirmation.get("jwk"))
    except ValueError as error:
        raise NotAccepted(step, f"cnf.jwk: {error}") from None


def _jti(claims: Mapping[str, Any], step: str) -> str:
    jti = claims.get("jti")
    if type(jti) is not str or not JTI.fullmatch(jti):
        raise NotAccepted(step, "jti is not 1 to 128 printable ASCII characters")
    return jti


def _whole(claims: Mapping[str, Any], name: str, step: str) -> int:
    value = claims.get(name)
    if type(value) is not int or value < 0:
        raise NotAccepted(step, f"{name} is not a non-negative integer")
    return value


def _date(claims: Mapping[str, Any], name: str, step: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= 2**53:
        raise NotAccepted(step, f"{name} is not a NumericDate in whole seconds")
    return value


def _audience(claims: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`aud` as the strings it names; checked for every token in step 6c."""
    if "aud" not in claims:
        return None
    value = claims["aud"]
    values = [value] if type(value) is str else value
    if type(values) is not list or not all(type(item) is str for item in values):
        raise NotAccepted("6c", "aud is not a string or an array of strings")
    return tuple(values)
