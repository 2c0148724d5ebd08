"""Who asks: opening a connection, authenticating calls, what the token grants, what time and revocation do to it."""

from __future__ import annotations

from typing import Any

import pytest

from runner.config import Limits
from runner.errors import RunnerError
from runner.gate.authenticate import Authenticator, capability
from runner.gate.tokens import ChainCache, ReplayWindow
from runner.model import Authenticated, Peer, ToolCall
from runner.token.claims import VerifiedChain
from runner.token.issue import derive, mint_root
from runner.token.keys import SigningKey
from runner.token.proof import sign_call, sign_hello

ISSUER, HOLDER, WORKER, OTHER = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
NOW = 1_700_000_000.5
URI, AUDIENCE, NONCE = "https://i.example", "runner:test", "nonce-1"
PEER = Peer(uid=1001, pid=42)
TOOLS: dict[str, Any] = {
    "fs_read": {
        "path": {"constraint_type": "path_containment", "root": "/workspace/src"},
        "limit": {"constraint_type": "range", "max": 100, "optional": True},
    },
    "shell_run": {},
}


class State:
    """A registry as the daemon's state keeps it: announced digests, revoked names."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.gone: set[str] = set()

    def announced(self, root_jti: str) -> str | None:
        return self.digests.get(root_jti)

    def revoked(self, verified: VerifiedChain) -> str:
        names = {*verified.jtis, verified.principal.task, verified.principal.agent, verified.principal.owner}
        return "it was revoked" if names & self.gone else ""


class House:
    """One daemon's authenticator and an agent that holds a root token."""

    def __init__(self, limits: Limits | None = None, started: float = NOW - 3600, **wish: Any) -> None:
        self.state = State()
        self.limits = limits or Limits()
        self.authenticator = Authenticator({URI: (ISSUER.public,)}, AUDIENCE, self.state, self.limits, started)
        self.root = self.mint(**wish)
        self.count = 0

    def mint(self, jti: str = "root-1", **wish: Any) -> str:
        fields: dict[str, Any] = {
            "issuer": URI, "key": ISSUER, "holder": HOLDER.public, "agent": "reader", "owner": "ann", "task": "t-1",
            "session": "s-1", "profile": "default", "tools": TOOLS, "now": int(NOW) - 60, "expires": int(NOW) + 600,
            "depth": 2,
        }  # fmt: skip
        token = mint_root(jti=jti, **{**fields, **wish})
        self.state.digests[jti] = digest(token)
        return token

    def open(
        self, chain: list[str] | None = None, key: SigningKey = HOLDER, nonce: str = NONCE, now: float = NOW
    ) -> Any:
        chain = chain or [self.root]
        hello = sign_hello(key, chain[-1], audience=AUDIENCE, nonce=nonce, now=now, jti="h")
        return self.authenticator.open(chain, hello, NONCE, now, PEER)

    def call(
        self,
        verified: VerifiedChain,
        tool: str = "fs_read",
        arguments: dict[str, Any] | None = None,
        *,
        key: SigningKey = HOLDER,
        leaf: str = "",
        now: float = NOW,
        jti: str = "",
        nonce: str = NONCE,
    ) -> Authenticated:
        self.count += 1
        arguments = {"path": "src/a"} if arguments is None else arguments
        proof = sign_call(
            key,
            leaf or self.root,
            tool,
            arguments,
            audience=AUDIENCE,
            nonce=nonce,
            now=now,
            jti=jti or f"p-{self.count}",
        )
        return self.authenticator.authenticate(ToolCall(number=1, proof=proof, peer=PEER), verified, NONCE, now)


def digest(token: str) -> str:
    import hashlib

    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def refused(action: Any, code: str, words: str = "") -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        action()
    assert caught.value.refused.code == code
    assert words in caught.value.refused.reason + caught.value.detail
    return caught.value


# --- a connection ----------------------------------------------------------------------------------------


def test_open_and_call() -> None:
    house = House()
    verified = house.open()
    made = house.call(verified, arguments={"path": "src/a", "limit": 5})
    assert (made.tool, made.arguments) == ("fs_read", {"path": "src/a", "limit": 5})
    assert made.principal == verified.principal
    assert (made.chain, made.leaf_digest, made.profile) == (("root-1",), digest(house.root), "default")
    assert made.constraints == TOOLS["fs_read"]
    assert capability(made, verified.tools) is None


def test_never_announced() -> None:
    house = House()
    assert house.open()
    house.state.digests.clear()
    error = refused(house.open, "unauthenticated", "never announced")
    assert "token mint" in error.refused.next_step
    house.state.digests["root-1"] = "0" * 64  # announced under that jti, but another token
    refused(house.open, "unauthenticated", "never announced")


def test_strangers_learn_one_sentence() -> None:
    house = House()
    wrong_key = refused(lambda: house.open(key=OTHER), "unauthenticated")
    wrong_chain = refused(lambda: house.open([house.root[:-4] + "AAAA"]), "unauthenticated")
    wrong_nonce = refused(lambda: house.open(nonce="x"), "unauthenticated")
    assert wrong_key.refused == wrong_chain.refused == wrong_nonce.refused
    assert len({wrong_key.detail, wrong_chain.detail, wrong_nonce.detail}) == 3


def test_a_stranger_is_not_told_whether_a_token_is_known() -> None:
    house = House()
    house.state.digests.clear()
    house.state.gone.add("t-1")
    refused(lambda: house.open(key=OTHER), "unauthenticated", "not signed by the leaf's holder")


@pytest.mark.parametrize("name", ["root-1", "t-1", "reader", "ann"])
def test_revoked_at_open_and_while_open(name: str) -> None:
    house = House()
    verified = house.open()
    assert house.call(verified)
    house.state.gone.add(name)
    refused(house.open, "revoked")
    refused(lambda: house.call(verified), "revoked")


def test_revoking_a_middle_token_ends_what_was_derived() -> None:
    house = House()
    child = derive(
        house.root, HOLDER, holder=WORKER.public, tools={"shell_run": {}}, now=int(NOW), jti="c-1", agent="w"
    )
    verified = house.open([house.root, child], WORKER)
    assert verified.principal.agent == "reader"
    assert verified.principal.asserted == ("w",)
    assert house.call(verified, "shell_run", {}, key=WORKER, leaf=child)
    house.state.gone.add("c-1")
    refused(lambda: house.call(verified, "shell_run", {}, key=WORKER, leaf=child), "revoked")
    assert house.open()  # the parent lives on


def test_expiry_while_open() -> None:
    house = House()
    verified = house.open()
    assert house.call(verified, now=NOW + 599)
    refused(lambda: house.call(verified, now=NOW + 600), "unauthenticated", "expired")
    refused(lambda: house.open(now=NOW + 600), "unauthenticated", "3e")


def test_a_removed_anchor_ends_open_connections_and_new_ones() -> None:
    house = House()
    verified = house.open()
    house.authenticator.replace_anchors({URI: (ISSUER.public, OTHER.public)})
    assert house.call(verified)
    house.authenticator.replace_anchors({URI: (OTHER.public,)})
    refused(lambda: house.call(verified), "unauthenticated", "anchor was removed")
    refused(house.open, "unauthenticated", "3b")


# --- a call ------------------------------------------------------------------------------------------------


def test_a_proof_is_for_one_connection_and_one_leaf() -> None:
    house = House()
    verified = house.open()
    assert house.call(verified)
    refused(lambda: house.call(verified, nonce="other"), "unauthenticated", "7h")
    refused(lambda: house.call(verified, key=OTHER), "unauthenticated", "7b")
    twin = house.mint(jti="root-2", task="t-2")
    refused(lambda: house.call(verified, leaf=twin), "unauthenticated", "7c")


def test_proofs_from_before_the_start() -> None:
    house = House(started=NOW - 5)
    verified = house.open()
    assert house.call(verified, now=NOW - 5)
    refused(lambda: house.call(verified, now=NOW - 6), "unauthenticated", "before the daemon started")


def test_one_of_a_hundred_racers_wins() -> None:
    house = House()
    verified = house.open()
    proof = sign_call(HOLDER, house.root, "shell_run", {}, audience=AUDIENCE, nonce=NONCE, now=NOW, jti="once")
    call = ToolCall(number=1, proof=proof, peer=PEER)
    assert house.authenticator.authenticate(call, verified, NONCE, NOW)
    for _ in range(99):
        refused(lambda: house.authenticator.authenticate(call, verified, NONCE, NOW), "unauthenticated", "7i")


def test_the_window_outlives_the_proof_and_no_step_of_the_clock_revives_it() -> None:
    house = House()
    verified = house.open()
    house.call(verified, jti="once")
    for later in (0, 59, 59.5):
        refused(lambda: house.call(verified, jti="once"), "unauthenticated", "7i")
        refused(lambda at=later: _replayed(house, verified, "once", NOW + at), "unauthenticated", "7i")
    house.call(verified, now=NOW + 200)  # the memory of NOW is dropped
    refused(lambda: _replayed(house, verified, "once", NOW), "unauthenticated", "7i")  # and the clock steps back
    assert house.call(verified, now=NOW + 200)


def _replayed(house: House, verified: VerifiedChain, jti: str, now: float) -> Authenticated:
    proof = sign_call(
        HOLDER, house.root, "fs_read", {"path": "src/a"}, audience=AUDIENCE, nonce=NONCE, now=NOW, jti=jti
    )
    return house.authenticator.authenticate(ToolCall(number=1, proof=proof, peer=PEER), verified, NONCE, now)


def test_a_call_beyond_the_token_consumes_no_proof() -> None:
    house = House()
    verified = house.open()
    for _ in range(2):
        assert capability(house.call(verified, "fs_write", {}, jti="same"), verified.tools)
    house.call(verified, jti="same")
    refused(lambda: house.call(verified, jti="same"), "unauthenticated", "7i")


def test_holders_do_not_share_proof_ids() -> None:
    house = House()
    child = derive(house.root, HOLDER, holder=WORKER.public, tools={"shell_run": {}}, now=int(NOW), jti="c-1")
    assert house.call(house.open(), "shell_run", {}, jti="same")
    below = house.open([house.root, child], WORKER)
    assert house.call(below, "shell_run", {}, key=WORKER, leaf=child, jti="same")


def test_a_full_window_is_busy_and_one_task_cannot_fill_it() -> None:
    house = House(Limits(replay_proofs=16))
    verified = house.open()
    for _ in range(4):
        house.call(verified)
    error = refused(lambda: house.call(verified), "busy")
    assert error.refused.retryable
    assert error.refused.retry_after_ms == 60_000
    other = house.mint(jti="root-2", task="t-2")
    assert house.call(house.open([other]), leaf=other)
    assert house.call(verified, now=NOW + 61)  # there is room again


def test_the_window_is_bounded_in_all() -> None:
    house = House(Limits(replay_proofs=8))
    window = ReplayWindow(house.limits)
    for number in range(4):
        token = house.mint(jti=f"r-{number}", task=f"t-{number}")
        verified = house.open([token])
        for use in range(2):
            window.check(verified, f"p-{use}", int(NOW), NOW)
            window.record(verified, f"p-{use}", int(NOW))
    assert len(window) == 8
    fresh = house.open([house.mint(jti="r-9", task="t-9")])
    refused(lambda: window.check(fresh, "p", int(NOW), NOW), "busy")
    window.check(fresh, "p", int(NOW) + 61, NOW + 62)
    assert len(window) == 0


WITHIN = "a path within /workspace/src"


# --- what the token grants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "rule", "field", "allowed"),
    [
        ("fs_read", {"path": "src/a"}, "", "", "", ""),
        ("shell_run", {"argv": ["true"]}, "", "", "", ""),
        ("fs_write", {}, "not_granted", "token:tools", "", "fs_read, shell_run"),
        ("fs_rea", {"path": "src/a"}, "not_granted", "token:tools", "", "fs_read, shell_run"),
        ("fs_read,shell_run", {}, "not_granted", "token:tools", "", "fs_read, shell_run"),
        ("fs_read", {"path": "src/../x"}, "constraint", "token:path:path_containment", "path", WITHIN),
        ("fs_read", {"path": "a", "limit": 1}, "constraint", "token:path:path_containment", "path", WITHIN),
        ("fs_read", {"path": "src", "limit": 101}, "constraint", "token:limit:range", "limit", "a number at most 100"),
        ("fs_read", {"path": "src/a", "mode": 1}, "constraint", "token:mode:closed", "mode", "limit, path"),
        ("fs_read", {}, "constraint", "token:path:required", "path", WITHIN),
        ("fs_read", {"path": "src", "\x1b[J": 1}, "constraint", r"token:\u001b[J:closed", r"\u001b[J", "limit, path"),
    ],
)  # fmt: skip
def test_capability(tool: str, arguments: dict[str, Any], code: str, rule: str, field: str, allowed: str) -> None:
    house = House()
    verified = house.open()
    made = house.call(verified, tool, arguments)
    found = capability(made, verified.tools)
    if not code:
        assert found is None
        return
    assert found
    assert (found.code, found.rule, found.field, found.allowed) == (code, rule, field, allowed)
    assert not found.retryable


def test_a_token_without_tools_grants_none() -> None:
    house = House(tools={})
    verified = house.open()
    found = capability(house.call(verified), verified.tools)
    assert found
    assert (found.code, found.allowed) == ("not_granted", "no tool")


# --- verified chains, remembered ---------------------------------------------------------------------------------


def test_the_cache_remembers_text_not_time() -> None:
    house = House()
    cache = ChainCache({URI: (ISSUER.public,)}, AUDIENCE, house.limits)
    first = cache.verified([house.root], NOW)
    assert cache.verified([house.root], NOW + 599) is first
    refused(lambda: cache.verified([house.root], NOW + 600), "unauthenticated", "3e")
    refused(lambda: cache.verified([house.root], NOW - 3600), "unauthenticated", "3f")
    assert cache.verified([house.root], NOW) is first
    refused(lambda: cache.verified([house.root + "\n"], NOW), "unauthenticated")
    refused(lambda: cache.verified([f"{house.root}\n{house.root}"], NOW), "unauthenticated")


def test_the_cache_is_bounded_and_hashes_nothing_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    roots = [house.mint(jti=f"r-{number}") for number in range(4)]
    cache = ChainCache({URI: (ISSUER.public,)}, AUDIENCE, Limits(cached_chain_bytes=2 * len(roots[0]) + 10))
    kept = [cache.verified([root], NOW) for root in roots]
    assert cache.verified([roots[3]], NOW) is kept[3]
    assert cache.verified([roots[2]], NOW) is kept[2]
    assert cache.verified([roots[0]], NOW) is not kept[0]
    monkeypatch.setattr("runner.gate.tokens.hashlib.sha256", None)
    refused(lambda: cache.verified(["A" * (2 << 20)], NOW), "unauthenticated", "2b")
    refused(lambda: cache.verified(["A"] * 1000, NOW), "unauthenticated", "2b")


def test_task_of_one_token_never_passes_for_another() -> None:
    """T08: every token against every other's connection."""
    house = House()
    tokens = {f"root-{number}": house.mint(jti=f"root-{number}", task=f"t-{number}") for number in range(4)}
    opened = {jti: house.open([token]) for jti, token in tokens.items()}
    for mine, token in tokens.items():
        for theirs, verified in opened.items():
            if mine == theirs:
                assert house.call(verified, leaf=token).principal.task == verified.principal.task
            else:
                refused(lambda t=token, v=verified: house.call(v, leaf=t), "unauthenticated", "7c")


def test_steps_of_the_clock_give_back_nothing_that_is_gone() -> None:
    """T11: an hour forward and back. Leeway is 30 s for iat, none for exp; a used proof stays used."""
    house = House()
    verified = house.open()
    house.call(verified, jti="once")
    refused(lambda: house.call(verified, now=verified.expires), "unauthenticated", "leaf")  # an hour forward, or more
    for at in (NOW, NOW - 31, NOW - 3600):  # and back: a used proof is used, one that is not of this time is none
        refused(lambda at=at: _replayed(house, verified, "once", at), "unauthenticated", "7")
    house.state.gone.add("t-1")
    for at in (NOW - 3600, NOW, NOW + 60):
        refused(lambda at=at: house.call(verified, now=at), "revoked")
