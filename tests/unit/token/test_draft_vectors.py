# ruff: noqa: E501 - one vector a line: a table is read across, not down
"""The draft's own test suite, revision 02: each of its vectors, and the step at which it is refused.

Facts of `ietf/vectors/aat-jws-vectors.md` in the repository tenuo-ai/tenuo (Apache-2.0): keys, claims, arguments,
verdicts. Tokens are rebuilt from them with plain json and cryptography, some under other ids than the suite's;
`test_claims.py` has the suite's bytes of J.1 and J.3. Left out: J.20.5 and J.20.6 (steps 7e, 7f) compare a proof with
an invocation beside it, and here the proof is the invocation; J.6.4 and J.6.10 are of policies that a daemon may have
and ours has not: a proof names its audience and this connection's nonce, always, and a token need name none.
"""

from __future__ import annotations

import base64
import hashlib
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.config import Limits
from runner.errors import RunnerError
from runner.model import Principal
from runner.token.capability import violation
from runner.token.claims import VerifiedChain, verify_tokens
from runner.token.keys import PublicKey, SigningKey
from runner.token.proof import sign_call, verify_call
from runner.token.strict import NotAccepted

NOW, IAT, EXP = 1704067500, 1704067200, 1704070800
AUDIENCE, ISSUER = "https://tools.example.com", "https://auth.example.com"
NONCE = "e1c8a7f4-3b2d-4c5e-9f6a-7b8c9d0e1f2a"
LIMITS = Limits(proof_window_s=30)
SEED = {"issuer": 1, "orchestrator": 2, "worker": 3, "worker2": 4, "attacker": 255}
Q3, Q4 = "/data/q3-report.pdf", "/data/q4-report.pdf"
README = "/srv/api/README.md"
BIG = 2**53 + 1
Map = dict[str, Any]


def jti(number: int) -> str:
    return f"019471f8-0000-7000-8000-{number:012x}"


def c(kind: str, **members: Any) -> Map:
    return {"constraint_type": kind, **members}


def exact(value: Any) -> Map:
    return c("exact", value=value)


def span(**members: Any) -> Map:
    return c("range", **members)


def both(*clauses: Map) -> Map:
    return c("all", constraints=list(clauses))


def either(*clauses: Map) -> Map:
    return c("any", constraints=list(clauses))


WILD = c("wildcard")
UNKNOWN = c("no_such_type")


class Bench:
    """Builds and signs as the suite does."""

    def __init__(self, forge: ModuleType) -> None:
        self.forge = forge

    def key(self, who: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(bytes([SEED[who]]) * 32)

    def jwk(self, who: str) -> Map:
        raw = self.key(who).public_key().public_bytes_raw()
        return {"crv": "Ed25519", "kty": "OKP", "x": self.forge.b64(raw)}

    def uri(self, who: str) -> str:
        digest = hashlib.sha256(self.forge.text(self.jwk(who))).digest()
        return f"urn:ietf:params:oauth:jwk-thumbprint:sha-256:{self.forge.b64(digest)}"

    def jws(self, claims: Any, who: str, header: Map) -> str:
        signing_input = ".".join(self.forge.b64(self.forge.text(part)) for part in (header, claims))
        return f"{signing_input}.{self.forge.b64(self.key(who).sign(signing_input.encode()))}"

    def root(
        self, tools: Any, number: int = 0x10, *, header: Map | None = None, by: str = "issuer", **change: Any
    ) -> str:
        claims = {
            "jti": jti(number), "iss": ISSUER, "iat": IAT, "exp": EXP, "del_depth": 0, "del_max_depth": 3,
            "cnf": {"jwk": self.jwk("orchestrator")},
            "authorization_details": [{"type": "attenuating_agent_token", "tools": tools}],
        } | change  # fmt: skip
        return self.jws(claims, by, header or {"alg": "Ed25519", "typ": "aat+jwt"})

    def child(
        self, parent: str, tools: Any, number: int = 0x11, *, depth: int = 1, signer: str = "orchestrator",
        holder: str = "worker", by: str = "", **change: Any,
    ) -> str:  # fmt: skip
        claims = {
            "jti": jti(number), "iss": self.uri(signer), "iat": IAT + 60 * depth, "exp": 1704069000, "del_depth": depth,
            "del_max_depth": 2, "par_hash": self.forge.digest(parent), "cnf": {"jwk": self.jwk(holder)},
            "authorization_details": [{"type": "attenuating_agent_token", "tools": tools}],
        } | change  # fmt: skip
        return self.jws(claims, by or signer, {"alg": "Ed25519", "typ": "aat+jwt"})


@pytest.fixture(scope="module")
def bench(forge: ModuleType) -> Bench:
    return Bench(forge)


ROOT = {
    "read_file": {"path": c("one_of", values=[Q3, Q4])},
    "search_index": {"query": WILD, "limit": span(max=100)},
}
L1 = {
    "read_file": {"path": c("one_of", values=[Q3])},
    "search_index": {"query": exact("public filings"), "limit": span(max=20)},
}
L2 = {"read_file": {"path": exact(Q3)}}
SEARCH = {"query": "public filings", "limit": 5}


def j3(bench: Bench, length: int = 3) -> list[str]:
    root = bench.root(ROOT)
    first = bench.child(root, L1)
    second = bench.child(
        first, L2, 0x12, depth=2, signer="worker", holder="worker2", iat=IAT + 120, exp=1704068400
    )  # fmt: skip
    return [root, first, second][:length]


# --- what a map grants: J.8, J.9, J.15 to J.18, J.22 ---------------------------------------------------------

EXPORT = {"format": either(exact("pdf"), exact("csv"), exact("xlsx")), "limit": both(span(max=100), span(min=0))}
TEN = {"format": "pdf", "limit": 10}
PDF, PDF_CSV = either(exact("pdf")), either(exact("pdf"), exact("csv"))
SAME = both(span(max=100), span(min=0))
PUBLISH = {
    "label": c("not_one_of", excluded=["secret", "internal"]), "tags": c("contains", required=["public"]),
    "roles": c("subset", allowed=["reader", "editor", "admin"]), "limit": span(min=0, max=100),
}  # fmt: skip
PUBLISHED = {"label": "public", "tags": ["public"], "roles": ["reader"], "limit": 10}
ABOVE = span(min=0, max=100, min_inclusive=False)
PATH = exact(README)
SOME = span(max=200, optional=True)
OPEN = {"path": PATH, "head": SOME, "tail": SOME, "*": WILD}
CLOSED = {"path": PATH, "head": SOME}
UTF8 = exact("utf-8")
NARROW: dict[str, tuple[Map, Map | None, Map, str]] = {  # id: parent's map, child's (None: no child), arguments, step
    "J.1": ({"path": WILD}, None, {"path": Q3}, ""),
    "J.8.1": ({}, {"path": exact(Q3)}, {"path": Q3}, ""),
    "J.8.2": ({}, None, {"path": Q3, "mode": "r"}, ""),
    "J.8.3": ({"path": UNKNOWN}, None, {"path": Q3}, "3n"),
    "J.8.4": ({"limit": both(span(min=0), span(max=100))}, {"limit": span(min=10, max=50)}, {"limit": 20}, "4p4"),
    "J.8.8": ({"id": WILD}, None, {"id": 2**53 + 2}, ""),
    "J.15.1": (EXPORT, {"format": PDF, "limit": both(span(max=100), span(min=0), span(min=1))}, TEN, ""),
    "J.15.2": (EXPORT, {"format": PDF, "limit": both(span(max=100))}, TEN, "4p4"),
    "J.15.3": (EXPORT, {"format": PDF, "limit": both(span(min=10, max=50))}, TEN, ""),
    "J.15.4": ({"format": WILD, "limit": both(WILD, WILD)}, {"format": WILD, "limit": both(exact(5))}, {**TEN, "limit": 5}, ""),
    "J.15.5": (EXPORT, {"format": PDF, "limit": both(span(max=200), span(min=0))}, TEN, "4p4"),
    "J.15.6": (EXPORT, {"format": PDF, "limit": both(span(max=100), span(min=0), span(min=1))}, {**TEN, "limit": 0}, "6b"),
    "J.16.1": (EXPORT, {"format": PDF_CSV, "limit": SAME}, TEN, ""),
    "J.16.2": (EXPORT, {"format": either(exact("pdf"), exact("docx")), "limit": SAME}, TEN, "4p4"),
    "J.16.3": (EXPORT, {"format": either(), "limit": SAME}, TEN, "4o"),
    "J.16.4": (EXPORT, {"format": PDF_CSV, "limit": SAME}, {**TEN, "format": "csv"}, ""),
    "J.16.5": (EXPORT, {"format": PDF_CSV, "limit": SAME}, {**TEN, "format": "xlsx"}, "6b"),
    "J.16.6": ({"format": either(c("one_of", values=["pdf", "csv"]), exact("xlsx")), "limit": WILD}, {"format": PDF, "limit": WILD}, TEN, ""),
    "J.17.1": (PUBLISH, {**PUBLISH, "label": c("not_one_of", excluded=["secret", "internal", "embargoed"])}, PUBLISHED, ""),
    "J.17.2": (PUBLISH, {**PUBLISH, "label": c("not_one_of", excluded=["secret"])}, PUBLISHED, "4p4"),
    "J.17.3": (PUBLISH, {**PUBLISH, "tags": c("contains", required=["public", "reviewed"])}, {**PUBLISHED, "tags": ["public", "reviewed"]}, ""),
    "J.17.4": (PUBLISH, {**PUBLISH, "tags": c("contains", required=[])}, PUBLISHED, "4p4"),
    "J.17.5": (PUBLISH, {**PUBLISH, "roles": c("subset", allowed=["reader", "editor"])}, PUBLISHED, ""),
    "J.17.6": (PUBLISH, {**PUBLISH, "roles": c("subset", allowed=["reader", "editor", "admin", "owner"])}, PUBLISHED, "4p4"),
    "J.17.7": (PUBLISH, {**PUBLISH, "limit": ABOVE}, PUBLISHED, ""),
    "J.17.8": ({**PUBLISH, "limit": ABOVE}, PUBLISH, PUBLISHED, "4p4"),
    "J.18.1": (EXPORT, {"format": both(exact("pdf")), "limit": SAME}, TEN, "4p4"),
    "J.18.2": ({"format": both(EXPORT["format"]), "limit": WILD}, {"format": both(PDF), "limit": WILD}, TEN, ""),
    "J.21.7": ({"path": both()}, None, {"path": Q3}, "3n"),
    "J.21.11": ({"path": c("all", constraints=WILD)}, None, {"path": Q3}, "3n"),
    "J.21.12": ({"path": WILD, "limit": c("range", maximum=10)}, None, {"path": Q3, "limit": 1000}, "3n"),
    "J.22.1": (OPEN, None, {"path": README}, ""),
    "J.22.2": (OPEN, None, {"path": README, "head": 100}, ""),
    "J.22.3": (OPEN, None, {"path": README, "head": 500}, "6b"),
    "J.22.4": (OPEN, None, {"path": README, "encoding": "utf-8"}, ""),
    "J.22.5": (OPEN, None, {"head": 10}, "6b"),
    "J.22.6": (CLOSED, None, {"path": README, "encoding": "utf-8"}, "6b"),
    "J.22.7": (CLOSED, {"path": PATH, "head": span(max=100)}, {"path": README, "head": 50}, ""),
    "J.22.8": (CLOSED, {"path": {**PATH, "optional": True}, "head": SOME}, {"path": README}, "4p3"),
    "J.22.9": (CLOSED, {"path": PATH}, {"path": README, "head": 10}, "6b"),
    "J.22.10": (CLOSED, {"path": PATH}, {"path": README}, ""),
    "J.22.11": (CLOSED, {"head": SOME}, {"head": 10}, "4p2"),
    "J.22.12": (OPEN, {**OPEN, "encoding": UTF8}, {"path": README, "encoding": "latin-1"}, "6b"),
    "J.22.13": (OPEN, {**OPEN, "encoding": UTF8}, {"path": README, "encoding": "utf-8"}, ""),
    "J.22.14": (CLOSED, {**CLOSED, "*": WILD}, {"path": README}, "4p2"),
    "J.22.15": (CLOSED, {**CLOSED, "encoding": WILD}, {"path": README}, "4p2"),
    "J.22.16": (OPEN, {"path": PATH, "tail": SOME, "*": WILD}, {"path": README}, "4p2"),
    "J.22.17": ({}, {"path": PATH, "*": WILD}, {"path": README, "head": 5}, ""),
    "J.22.18": ({"path": both({**PATH, "optional": True})}, None, {"path": README}, "3n"),
    "J.22.19": ({"path": PATH, "*": span(max=5)}, None, {"path": README}, "3n"),
    "J.22.20": (OPEN, {**OPEN, "encoding": {**UTF8, "optional": True}}, {"path": README}, ""),
    "J.22.21": (OPEN, {"path": PATH, "head": SOME, "tail": SOME}, {"path": README, "tail": 20}, ""),
    "J.22.22": (OPEN, {"path": PATH, "head": SOME, "tail": SOME}, {"path": README, "encoding": "utf-8"}, "6b"),
    "J.22.23": ({"path": PATH, "*": {**WILD, "optional": True}}, None, {"path": README}, "3n"),
}  # fmt: skip


def outcome(bench: Bench, chain: list[str], tool: str, arguments: Map) -> str:
    """The step that refuses, "" when none does."""
    anchors = {ISSUER: (PublicKey(bench.key("issuer").public_key().public_bytes_raw()),)}
    try:
        _, tokens, _ = verify_tokens(chain, anchors, NOW, AUDIENCE, LIMITS)
    except NotAccepted as failed:
        return failed.step
    tools = tokens[-1].tools or {}
    return "" if tool in tools and violation(tools[tool], arguments) is None else "6b"


@pytest.mark.parametrize("name", NARROW)
def test_maps(name: str, bench: Bench) -> None:
    parent, child, arguments, step = NARROW[name]
    chain = [bench.root({"tool": parent})]
    if child is not None:
        chain.append(bench.child(chain[0], {"tool": child}))
    assert outcome(bench, chain, "tool", arguments) == step


# --- chains: J.2 to J.7, J.9 to J.14, J.21 ---------------------------------------------------------------------


def widened(**change: Any) -> Map:
    return {**L1, **change}


ROOTS: dict[str, tuple[Map, str]] = {  # id: what the root says otherwise, step
    "J.5": ({"exp": 1704067400}, "3e"),
    "J.6.8": ({"aud": AUDIENCE}, ""),
    "J.6.9": ({"aud": "https://other.example.com"}, "6c"),
    "J.7.3": ({"header": {"alg": "Ed25519", "typ": "aat-pop+jwt"}}, "3a"),
    "J.7.4": ({"header": {"alg": "Ed25519"}}, "3a"),
    "J.7.5": ({"header": {"alg": "EdDSA", "typ": "aat+jwt"}}, "3a"),
    "J.7.6": (
        {"header": {"alg": "Ed25519", "typ": "aat+jwt", "crit": ["urn:example:unknown"], "urn:example:unknown": True}},
        "3a",
    ),
    "J.8.5": ({"tools": {"read_file": {"path": WILD}, "export": {"format": UNKNOWN}}}, "3n"),
    "J.8.6": ({"tools": {"read_file": {"path": WILD}, "export": {"limit": span(min=10, max=5)}}}, "3n"),
    # Refused as strict JSON already (step 3b): the digits never become a constraint.
    "J.8.9": ({"tools": {"read_file": {"path": WILD}, "get_account": {"id": span(max=BIG)}}}, "3b"),
    "J.21.1": ({"par_hash": "A" * 43}, "3d"),
    "J.21.2": ({"del_depth": 1}, "3c"),
    "J.21.4": ({"iat": NOW + 31}, "3f"),
    "J.21.5": ({"exp": IAT + 7_776_001}, "3h"),
    "J.21.6": ({"iss": "https://other-issuer.example.com"}, "3k"),
    "J.21.8": ({"authorization_details": [{"type": "attenuating_agent_token"}]}, "3m"),
    "J.21.9": ({"del_depth": False}, "3c"),
    "J.21.10": ({"tools": {"read_file": ["path"]}}, "3m"),
}
CHILDREN: dict[str, tuple[Map, str]] = {  # id: what the first derived token says otherwise, step
    "J.2": ({"jti": jti(0x10)}, "2c"),
    "J.9.4": ({}, ""),
    "J.10": ({"del_depth": 2}, "4d"),
    "J.10.b": ({"del_max_depth": 4}, "4g"),
    "J.11": ({"tools": widened(read_file={"path": c("one_of", values=[Q3, Q4, "/data/secret.pdf"])})}, "4p4"),
    "J.11.b": ({"tools": widened(delete_file={})}, "4p1"),
    "J.11.c": ({"tools": widened(search_index={"query": exact("public filings")})}, "4p2"),
    "J.11.d": ({"tools": widened(read_file={"path": WILD})}, "4p4"),
    "J.13": ({"exp": EXP + 3600}, "4h"),
    "J.13.b": ({"iat": IAT - 1}, "4j"),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots(name: str, bench: Bench) -> None:
    change, step = ROOTS[name]
    change = dict(change)
    root = bench.root(change.pop("tools", ROOT), **change)
    assert outcome(bench, [root], "read_file", {"path": Q3}) == step


@pytest.mark.parametrize("name", CHILDREN)
def test_children(name: str, bench: Bench) -> None:
    change, step = CHILDREN[name]
    change = dict(change)
    root = bench.root(ROOT)
    chain = [root, bench.child(root, change.pop("tools", L1), **change)]
    assert outcome(bench, chain, "search_index", SEARCH) == step


def test_links(bench: Bench) -> None:
    """J.3, J.4, J.10.c, J.12, J.14, J.21.3, J.9: who signed what for whom."""
    root, first, second = j3(bench)
    attacker = bench.uri("attacker")
    head, body, tail = root.split(".")
    flipped = bytearray(base64.urlsafe_b64decode(tail + "=="))
    flipped[0] ^= 1
    deeper = bench.child(second, L2, 0x63, depth=3, signer="worker2", holder="attacker", iat=IAT + 180, exp=1704068400)
    private = {"jwk": {**bench.jwk("orchestrator"), "d": bench.forge.b64(b"\2" * 32)}}
    unsigned = f"{bench.forge.b64(bench.forge.text({'alg': 'none'}))}.{body}."
    keyed = {"alg": "Ed25519", "typ": "aat+jwt", "jwk": bench.jwk("attacker")}
    payload_only = bench.forge.b64(hashlib.sha256(body.encode()).digest())
    q3, mode = {"path": Q3}, {"path": Q3, "mode": "r"}
    for name, chain, tool, arguments, step in (
        ("J.3", [root, first, second], "read_file", q3, ""),
        ("J.4", [root, bench.child(root, L1, 0x41, signer="attacker")], "read_file", q3, "4b"),
        ("J.4.b", [root, bench.child(root, L1, 0x42, by="attacker")], "read_file", q3, "4b"),
        ("J.4.c", [root, bench.child(root, L1, 0x43, iss=attacker)], "read_file", q3, "4c"),
        ("J.9.1", [root, first, second], "read_file", mode, "6b"),
        ("J.9.2", [root, first, second], "read_file", {}, "6b"),
        ("J.9.3", [root, first, second], "search_index", SEARCH, "6b"),
        ("J.10.c", [root, first, second, deeper], "read_file", q3, "4e"),
        ("J.12", [root, bench.child(root, L1, par_hash=bench.forge.digest(bench.root({})))], "read_file", q3, "4q"),
        ("J.12.b", [root, bench.child(root, L1, par_hash=payload_only)], "read_file", q3, "4q"),
        ("J.14", [f"{head}.{body}.{bench.forge.b64(bytes(flipped))}"], "read_file", q3, "3b"),
        ("J.14.b", [unsigned], "read_file", q3, "3a"),
        ("J.14.c", [bench.root(ROOT, 0x81, by="attacker", header=keyed)], "read_file", q3, "3b"),
        ("J.20.3", [root, first, second], "read_file", {"path": Q4}, "6b"),
        ("J.21.3", [bench.root({"read_file": {"path": WILD}}, cnf=private)], "read_file", q3, "3l"),
    ):
        assert (name, outcome(bench, chain, tool, arguments)) == (name, step)


# --- proofs: J.6, J.7, J.20 --------------------------------------------------------------------------------------

POP = {"alg": "Ed25519", "typ": "aat-pop+jwt"}
PROOFS: dict[str, tuple[Map, str]] = {  # id: what the proof says otherwise (None: leaves out), step
    "J.6.1": ({"aat_aud": None}, "7d"),
    "J.6.2": ({"aat_aud": "https://evil.example.com"}, "7d"),
    "J.6.3": ({"aat_aud": None, "nonce": NONCE}, "7d"),  # stricter: the draft lets a daemon do without
    "J.6.5": ({}, "7h"),
    "J.6.6": ({"nonce": NONCE}, ""),
    "J.6.7": ({"nonce": "0f0e0d0c-0b0a-4908-8706-050403020100"}, "7h"),
    "J.7.1": ({"header": {"alg": "Ed25519"}}, "7a"),
    "J.7.2": ({"header": {"alg": "Ed25519", "typ": "aat+jwt"}}, "7a"),
    "J.20.1": ({"by": "attacker"}, "7b"),
    "J.20.2": ({"aat_id": jti(0x11)}, "7c"),
    "J.20.4": ({"iat": NOW - 31}, "7g"),
    "J.20.7": ({"leaf": {"exp": 1704068700}}, "7c"),  # the proof is for the sibling of this id
    "J.20.8": ({"hta": None, "nonce": NONCE}, "7c"),
}


@pytest.mark.parametrize("name", PROOFS)
def test_proofs(name: str, bench: Bench) -> None:
    change, step = PROOFS[name]
    change = dict(change)
    leaf = signed = j3(bench)[2]
    if other := change.pop("leaf", None):
        parent = j3(bench)[1]
        leaf = bench.child(parent, L2, 0x12, depth=2, signer="worker", holder="worker2", **other)
    header, by = change.pop("header", POP), change.pop("by", "worker2")
    claims = {
        "jti": jti(0xA03), "iat": NOW, "aat_id": jti(0x12), "aat_hash": bench.forge.digest(signed),
        "aat_tool": "read_file", "hta": {"path": Q3}, "aat_aud": AUDIENCE,
    } | change  # fmt: skip
    proof = bench.jws({key: value for key, value in claims.items() if value is not None}, by, header)
    verified = VerifiedChain(
        principal=Principal(agent="a", owner="o", task="t", session="s"), profile="default", tools=L2, jtis=(),
        expires=EXP, issued=IAT, issuer=ISSUER, anchor=SigningKey(b"\1" * 32).public, root_jti=jti(0x10),
        root_digest="", leaf_jti=jti(0x12), leaf_digest="", leaf_hash=bench.forge.digest(leaf),
        leaf_key=SigningKey(b"\4" * 32).public, depth=2,
    )  # fmt: skip
    if not step:
        assert verify_call(proof, verified, AUDIENCE, NONCE, NOW, 0, LIMITS).arguments == {"path": Q3}
        return
    with pytest.raises(RunnerError) as caught:
        verify_call(proof, verified, AUDIENCE, NONCE, NOW, 0, LIMITS)
    assert caught.value.detail.startswith(f"step {step}:")


def test_a_number_that_a_double_does_not_hold_is_not_signed(bench: Bench) -> None:
    """J.8.7, by whoever would send it; the daemon's reading of such a proof is in test_proof.py."""
    root = bench.root({"get_account": {"id": WILD}})
    options: dict[str, Any] = {"audience": AUDIENCE, "nonce": NONCE, "now": NOW, "jti": "p"}
    assert sign_call(SigningKey(b"\2" * 32), root, "get_account", {"id": 2**53 + 2}, **options)
    with pytest.raises(RunnerError):
        sign_call(SigningKey(b"\2" * 32), root, "get_account", {"id": BIG}, **options)
