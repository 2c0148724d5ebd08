"""Minting and deriving: what is signed verifies, what would not verify is not signed, authority only narrows."""

from __future__ import annotations

import copy
import os
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import Limits
from runner.errors import RunnerError
from runner.token.capability import violation
from runner.token.claims import verify_chain
from runner.token.issue import derive, mint_root
from runner.token.keys import SigningKey

EXAMPLES = int(os.environ.get("RUNNER_PROPERTY_EXAMPLES", "1500"))
ISSUER, HOLDER, WORKER, THIRD = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
NOW = 1_700_000_000
ANCHORS = {"https://i.example": (ISSUER.public,)}
TOOLS: dict[str, Any] = {
    "fs_read": {"path": {"constraint_type": "path_containment", "root": "/workspace"}},
    "shell_run": {},
}


def wish(**changes: Any) -> dict[str, Any]:
    return {
        "issuer": "https://i.example",
        "key": ISSUER,
        "holder": HOLDER.public,
        "agent": "reader",
        "owner": "ann",
        "task": "t-1",
        "session": "s-1",
        "profile": "default",
        "tools": TOOLS,
        "now": NOW,
        "expires": NOW + 3600,
        "jti": "root-1",
        "depth": 3,
        **changes,
    }


def verified(chain: list[str], now: float = NOW, audience: str = "d") -> Any:
    return verify_chain(chain, ANCHORS, now, audience, Limits())


def test_mint_and_derive_verify() -> None:
    root = mint_root(**wish())
    child = derive(
        root, HOLDER, holder=WORKER.public, tools={"fs_read": TOOLS["fs_read"]}, now=NOW + 1, jti="c-1", agent="helper"
    )
    grand = derive(
        child,
        WORKER,
        holder=THIRD.public,
        tools={"fs_read": {"path": {"constraint_type": "exact", "value": "a"}}},
        now=NOW + 2,
        jti="c-2",
        expires=NOW + 60,
        depth=2,
        agent="grand",
        audience="d",
    )
    chain = verified([root, child, grand], NOW + 3)
    assert chain.principal.asserted == ("helper", "grand")
    assert chain.principal.owner == "ann"
    assert (chain.depth, chain.expires, chain.leaf_key) == (2, NOW + 60, THIRD.public)
    with pytest.raises(RunnerError):
        verified([root, child, grand], NOW + 3, audience="other")


def test_the_same_wish_gives_the_same_token_as_plain_json(forge: ModuleType) -> None:
    token = mint_root(**wish())
    assert forge.json.loads(forge.base64.urlsafe_b64decode(token.split(".")[1] + "==")) == {
        "jti": "root-1",
        "iss": "https://i.example",
        "iat": NOW,
        "exp": NOW + 3600,
        "del_depth": 0,
        "del_max_depth": 3,
        "cnf": {"jwk": HOLDER.public.jwk()},
        "authorization_details": [{"type": "attenuating_agent_token", "tools": TOOLS}],
        "runner": {"agent": "reader", "owner": "ann", "task": "t-1", "session": "s-1", "profile": "default"},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agent": "a b"}, "agent"),
        ({"owner": "../x"}, "owner"),
        ({"task": ""}, "task"),
        ({"session": "s\0"}, "session"),
        ({"profile": "../default"}, "profile"),
        ({"tools": {"../x": {}}}, "tool id"),
        ({"tools": {"fs_read": {"path": {"constraint_type": "regex"}}}}, "not known"),
        ({"tools": {"fs_read": {"path": {"constraint_type": "exact", "value": 2**53 + 1}}}}, "2\\^53"),
        ({"expires": NOW}, "expired"),
        ({"expires": NOW + 91 * 86_400}, "lifetime"),
        ({"depth": 9}, "del_max_depth"),
        ({"depth": -1}, "del_max_depth"),
        ({"jti": "a b"}, "jti"),
        ({"issuer": "somebody"}, "iss"),
    ],
)
def test_nothing_is_signed_that_would_be_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RunnerError, match=words) as caught:
        mint_root(**wish(**change))
    assert caught.value.refused.code == "token"


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"tools": {**TOOLS, "fs_write": {}}}, "4p1"),
        ({"tools": {"fs_read": {}}}, "4p2"),
        ({"tools": {"fs_read": {"path": {"constraint_type": "wildcard"}}}}, "4p4"),
        ({"expires": NOW + 3601}, "4h"),
        ({"now": NOW + 3600}, "4i"),
        ({"depth": 4}, "4g"),
        ({"depth": 0}, "4m"),
        ({"agent": "../x"}, "profile"),
        ({"jti": ""}, "4b1"),
    ],
)
def test_no_derivation_widens(change: dict[str, Any], step: str) -> None:
    root = mint_root(**wish())
    fine: dict[str, Any] = {"holder": WORKER.public, "tools": {"shell_run": {}}, "now": NOW, "jti": "c-1"}
    assert verified([root, derive(root, HOLDER, **fine)])
    with pytest.raises(RunnerError) as caught:
        derive(root, HOLDER, **{**fine, **change})
    assert caught.value.refused.rule == f"draft §8 step {step}"


def test_only_the_holder_derives() -> None:
    root = mint_root(**wish())
    for key in (ISSUER, WORKER):
        with pytest.raises(RunnerError, match="holder key"):
            derive(root, key, holder=WORKER.public, tools={}, now=NOW, jti="c-1")


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 70_000, "..", "eyJhbGciOiJub25lIn0.e30."])
def test_no_parent(token: str) -> None:
    with pytest.raises(RunnerError) as caught:
        derive(token, HOLDER, holder=WORKER.public, tools={}, now=NOW, jti="c-1")
    assert caught.value.refused.code == "token"


def test_a_terminal_token_is_not_derived_from() -> None:
    root = mint_root(**wish(depth=0))
    with pytest.raises(RunnerError, match="any further"):
        derive(root, HOLDER, holder=WORKER.public, tools={}, now=NOW, jti="c-1")


atoms = st.sampled_from([1, 2, 3, "a", "/workspace/x", "../y"])
constraint = st.one_of(
    st.builds(lambda value: {"constraint_type": "exact", "value": value}, atoms),
    st.builds(lambda high: {"constraint_type": "range", "max": high}, st.integers(1, 3)),
    st.builds(lambda many: {"constraint_type": "one_of", "values": many}, st.lists(atoms, min_size=1, max_size=3)),
    st.builds(lambda root: {"constraint_type": "path_containment", "root": root}, st.sampled_from(["/", "/workspace"])),
    st.just({"constraint_type": "wildcard"}),
)
tools = st.dictionaries(
    st.sampled_from(["fs_read", "shell_run", "fs_write"]),
    st.dictionaries(st.sampled_from(["path", "limit"]), constraint, max_size=2),
    max_size=3,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    parent=tools,
    child=tools,
    lifetime=st.integers(-1, 20),
    depth=st.integers(0, 4),
    calls=st.lists(
        st.tuples(
            st.sampled_from(["fs_read", "shell_run", "fs_write"]),
            st.dictionaries(st.sampled_from(["path", "limit", "x"]), atoms, max_size=2),
        ),
        max_size=6,
    ),
)
def test_a_sub_token_is_never_wider(
    parent: dict[str, Any], child: dict[str, Any], lifetime: int, depth: int, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    """Whatever a holder manages to derive verifies, and grants, outlives and delegates no more than its parent."""
    root = mint_root(**wish(tools=parent, expires=NOW + 10))
    above = verified([root])
    try:
        text = derive(
            root,
            HOLDER,
            holder=WORKER.public,
            tools=copy.deepcopy(child),
            now=NOW,
            jti="c",
            expires=NOW + lifetime,
            depth=depth,
        )
    except RunnerError:
        return
    below = verified([root, text])
    assert below.expires <= above.expires
    assert depth <= 3
    for tool, arguments in calls:
        if tool in below.tools and violation(below.tools[tool], arguments) is None:
            assert tool in above.tools
            assert violation(above.tools[tool], arguments) is None
