"""A sub-agent's credentials from its parent's, offline: the daemon hears of them when they are used, not before.

What a wish does not mention stays as narrow as the parent has it; what it mentions may only be narrower. A mistake
names the tool, the argument and what the parent allows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner.errors import refuse
from runner.token.credentials import Credentials, credentials
from runner.token.issue import derive, own_claims
from runner.token.keys import SigningKey

Wish = Iterable[str] | Mapping[str, Mapping[str, Any]]
ANOTHER = "ask for less, or have whoever holds the parent token ask for more"


def attenuate(
    held: Credentials,
    wish: Wish,
    *,
    holder: SigningKey,
    jti: str,
    now: int,
    agent: str = "",
    ttl_s: int | None = None,
    depth: int = 0,
    audience: str = "",
) -> Credentials:
    """Credentials for `holder`, narrower than `held`: these tools, for at most `ttl_s` seconds from `now` on.

    `wish` names tools, or maps them to constraints on arguments: each replaces the parent's, None leaves an optional
    argument out, and arguments that are not named keep the parent's. `agent` is the name the holder goes by in the
    record, asserted by the parent; `depth` is how often it may derive again, in a row. Without `ttl_s` it is good for
    as long as the parent. Raises `RunnerError` (token) naming what would be wider than the parent."""
    parent = own_claims(held.leaf)
    left, below = parent.exp - now, parent.del_max_depth - parent.del_depth - 1
    if left <= 0:
        raise refuse("token", "the token to derive from has expired", field="ttl")
    if ttl_s is not None and not 0 < ttl_s <= left:
        reason = "it would outlive the token it derives from" if ttl_s > 0 else "it would not live at all"
        raise refuse("token", reason, rule="draft §8 step 4h", field="ttl", allowed=f"{left} s", next_step=ANOTHER)
    if not 0 <= depth <= below:
        reason, allowed = "it could be derived from more often than its parent", f"{below} more"
        if below < 0:
            reason, allowed = "the token may not be derived from any further", "no derivation"
        raise refuse("token", reason, rule="draft §8 step 4g", field="depth", allowed=allowed, next_step=ANOTHER)
    text = derive(
        held.leaf,
        held.signing_key(),
        holder=holder.public,
        tools=_narrowed(parent.tools or {}, wish),
        now=now,
        jti=jti,
        expires=None if ttl_s is None else now + ttl_s,
        depth=parent.del_depth + 1 + depth,
        agent=agent,
        audience=audience,
    )
    return credentials((*held.chain, text), holder, held.socket)


def _narrowed(parent: Mapping[str, Mapping[str, Any]], wish: Wish) -> dict[str, dict[str, Any]]:
    names = (wish,) if isinstance(wish, str) else wish
    asked: Mapping[str, Mapping[str, Any]] = names if isinstance(names, Mapping) else {name: {} for name in names}
    return {tool: _map(tool, parent.get(tool, {}), constraints) for tool, constraints in asked.items()}


def _map(tool: str, parent: Mapping[str, Any], wished: Mapping[str, Any]) -> dict[str, Any]:
    made = {name: each for name, each in {**parent, **wished}.items() if each is not None}
    if not made and None in wished.values():  # an empty map is the open one: the opposite of what was wished
        raise refuse(
            "token",
            "a constraint map that names no argument lets every argument through",
            rule="draft §3.3",
            field=tool,
            next_step="name one optional argument, or leave the tool out",
        )
    return made
