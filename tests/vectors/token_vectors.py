# ruff: noqa: E501 - one vector a line: a table is read across, not down
"""Writes token.json: one token chain or proof per way to be invalid, each with the step of the draft's §8 that refuses.

Run it from the repository's root: `python tests/vectors/token_vectors.py`. Deterministic: fixed seeds, fixed time.
Written with plain json and cryptography, not with the code under test, so that the two can disagree.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NOW = 1704067500
ISSUER = "https://auth.example.com"
AUDIENCE = "https://tools.example.com"
NONCE = "n-7f3a"
SEEDS = {"issuer": b"\1" * 32, "holder": b"\2" * 32, "worker": b"\3" * 32, "attacker": b"\xff" * 32}
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the Ed25519 group
TOKEN, PROOF, HELLO = "aat+jwt", "aat-pop+jwt", "runner-hello+jwt"
# The canonical encodings of the points of small order (RFC 8032 curve), and encodings of y not below the field's size.
SMALL_ORDER = [
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "00" * 32,
    "00" * 31 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "01" + "00" * 30 + "80",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
    "ff" * 32,
]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def text(value: Any) -> bytes:
    """Canonical for the values used here: ASCII keys, no floats."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def private(who: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(SEEDS[who])


def raw(who: str) -> bytes:
    return private(who).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def jwk(who: str) -> dict[str, Any]:
    return {"crv": "Ed25519", "kty": "OKP", "x": b64(raw(who))}


def thumbprint(who: str) -> str:
    return b64(hashlib.sha256(text(jwk(who))).digest())


def jws(claims: Any, who: str, typ: str = TOKEN, header: Any = None) -> str:
    """Sign `claims` (bytes are taken as they are) under a header (bytes too)."""
    head = {"alg": "Ed25519", "typ": typ} if header is None else header
    segments = [b64(part if isinstance(part, bytes) else text(part)) for part in (head, claims)]
    signing_input = ".".join(segments)
    return f"{signing_input}.{b64(private(who).sign(signing_input.encode()))}"


def digest(token: str) -> str:
    return b64(hashlib.sha256(token.rpartition(".")[0].encode()).digest())


TOOLS: dict[str, Any] = {
    "fs_read": {
        "path": {"constraint_type": "path_containment", "root": "/workspace/src"},
        "limit": {"constraint_type": "range", "max": 100, "optional": True},
    },
    "shell_run": {},
}


def root_claims() -> dict[str, Any]:
    return {
        "jti": "root-1",
        "iss": ISSUER,
        "iat": NOW - 300,
        "exp": NOW + 3600,
        "del_depth": 0,
        "del_max_depth": 2,
        "cnf": {"jwk": jwk("holder")},
        "authorization_details": [{"type": "attenuating_agent_token", "tools": copy.deepcopy(TOOLS)}],
        "runner": {"agent": "reader", "owner": "ann", "task": "t-1", "session": "s-1", "profile": "default"},
    }


def child_claims(parent: str, by: str = "holder", holder: str = "worker", depth: int = 1) -> dict[str, Any]:
    return {
        "jti": f"child-{depth}",
        "iss": f"urn:ietf:params:oauth:jwk-thumbprint:sha-256:{thumbprint(by)}",
        "iat": NOW - 200,
        "exp": NOW + 1800,
        "del_depth": depth,
        "del_max_depth": 2,
        "par_hash": digest(parent),
        "cnf": {"jwk": jwk(holder)},
        "authorization_details": [
            {
                "type": "attenuating_agent_token",
                "tools": {"fs_read": {"path": {"constraint_type": "exact", "value": "/workspace/src/a.py"}}},
            }
        ],
        "runner": {"agent": "helper"},
    }


def call_claims(leaf: str, leaf_jti: str = "root-1") -> dict[str, Any]:
    return {
        "jti": "proof-1",
        "iat": NOW,
        "aat_id": leaf_jti,
        "aat_hash": digest(leaf),
        "aat_tool": "fs_read",
        "aat_aud": AUDIENCE,
        "nonce": NONCE,
        "hta": {"limit": 5, "path": "/workspace/src/a.py"},
    }


def hello_claims(leaf: str) -> dict[str, Any]:
    claims = call_claims(leaf)
    return {name: value for name, value in claims.items() if name not in ("aat_tool", "hta")}


Change = Callable[[dict[str, Any]], Any]


def put(*path_and_value: Any) -> Change:
    """A change that sets a nested member."""
    *path, value = path_and_value

    def change(claims: dict[str, Any]) -> None:
        where: Any = claims
        for step in path[:-1]:
            where = where[step]
        where[path[-1]] = value

    return change


def drop(*path: Any) -> Change:
    def change(claims: dict[str, Any]) -> None:
        where: Any = claims
        for step in path[:-1]:
            where = where[step]
        del where[path[-1]]

    return change


def changed(claims: dict[str, Any], *changes: Change) -> dict[str, Any]:
    for change in changes:
        change(claims)
    return claims


ROOT = jws(root_claims(), "issuer")
MAP = ("authorization_details", 0, "tools", "fs_read")


def nested(levels: int) -> dict[str, Any]:
    constraint: dict[str, Any] = {"constraint_type": "wildcard"}
    for _ in range(levels - 1):
        constraint = {"constraint_type": "all", "constraints": [constraint]}
    return constraint


def malleable(token: str) -> str:
    """The same signature with S + L: the equation still holds, RFC 8032 forbids it."""
    head, _, tail = token.rpartition(".")
    signature = base64.urlsafe_b64decode(tail + "==")
    s = int.from_bytes(signature[32:], "little") + ORDER
    return f"{head}.{b64(signature[:32] + s.to_bytes(32, 'little'))}"


def spare_bit(token: str) -> str:
    """The last character of the signature with one of its spare bits set: another text, the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) | 1]


def roots() -> list[tuple[str, str, str]]:
    """(name, token, step) of single-token chains."""

    def root(*changes: Change) -> str:
        return jws(changed(root_claims(), *changes), "issuer")

    def header(**members: Any) -> str:
        return jws(root_claims(), "issuer", header={"alg": "Ed25519", "typ": TOKEN, **members})

    claims = text(root_claims()).decode()
    head, body, tail = ROOT.split(".")
    attacker = jws(root_claims(), "attacker")
    rows = [
        ("valid", ROOT, ""),
        ("valid: not canonical, which only proofs must be", jws(json.dumps(root_claims(), indent=1).encode(), "issuer"), ""),
        ("valid: kid is never looked at", header(kid="../../../etc/passwd"), ""),
        ("valid: jwk in the header is never looked at", header(jwk=jwk("attacker"), jku="https://evil.example"), ""),
        ("valid: claims that are not ours are ignored", root(put("scope", "everything")), ""),
        ("valid: entries of other types are ignored", root(lambda c: c["authorization_details"].append({"type": "x"})), ""),
        ("valid: aud names us", root(put("aud", ["x", AUDIENCE])), ""),
        ("valid: 32 nested constraints", root(put(*MAP, "path", nested(32))), ""),
        # 2: size, and each once
        ("jti is not a string", root(put("jti", 7)), "2c"),
        ("no jti", root(drop("jti")), "2c"),
        ("two segments", f"{head}.{body}", "2c"),
        ("four segments", f"{ROOT}.{tail}", "2c"),
        ("JSON serialization instead of compact", '{"payload":"","signatures":[]}', "2c"),
        ("payload is not base64", f"{head}.{body}!.{tail}", "2c"),
        ("payload is padded", f"{head}.{body}=.{tail}", "2c"),
        ("claims are not UTF-8", jws(b'{"jti":"root-1","x":"\xff"}', "issuer"), "3b"),
        ("claims are an array", jws(b"[]", "issuer"), "2c"),
        ("claims begin with a byte order mark", jws(b"\xef\xbb\xbf" + claims.encode(), "issuer"), "2c"),
        ("claims are UTF-16", jws(claims.encode("utf-16"), "issuer"), "2c"),
        # 3a: header
        ("alg none", jws(root_claims(), "issuer", header={"alg": "none", "typ": TOKEN}), "3a"),
        ("alg none, no signature", f"{b64(text({'alg': 'none', 'typ': TOKEN}))}.{body}.", "3a"),
        ("alg EdDSA, which RFC 9864 deprecates", jws(root_claims(), "issuer", header={"alg": "EdDSA", "typ": TOKEN}), "3a"),
        ("no alg", jws(root_claims(), "issuer", header={"typ": TOKEN}), "3a"),
        ("alg is an array", jws(root_claims(), "issuer", header={"alg": ["Ed25519"], "typ": TOKEN}), "3a"),
        ("alg repeated", jws(root_claims(), "issuer", header=b'{"alg":"none","alg":"Ed25519","typ":"aat+jwt"}'), "3a"),
        ("no typ", jws(root_claims(), "issuer", header={"alg": "Ed25519"}), "3a"),
        ("typ JWT", jws(root_claims(), "issuer", typ="JWT"), "3a"),
        ("typ in capitals", jws(root_claims(), "issuer", typ="AAT+JWT"), "3a"),
        ("typ as a whole media type", jws(root_claims(), "issuer", typ="application/aat+jwt"), "3a"),
        ("typ of a proof", jws(root_claims(), "issuer", typ=PROOF), "3a"),
        ("crit lists what nobody knows", header(crit=["exp"]), "3a"),
        ("crit is empty", header(crit=[]), "3a"),
        ("b64 false, as RFC 7797 wants it", header(b64=False, crit=["b64"]), "3a"),
        ("header is an array", jws(root_claims(), "issuer", header=b"[]"), "3a"),
        ("header is padded", f"{head}=.{body}.{tail}", "3a"),
        ("signature is padded", f"{ROOT}==", "3a"),
        ("spare bits of the signature are set", spare_bit(ROOT), "3a"),
        ("white space after the token", f"{ROOT}\n", "3a"),
        # 3b: signature, then strict JSON
        ("signed by a stranger", attacker, "3b"),
        ("signed by a stranger whose key is in the header", jws(root_claims(), "attacker", header={"alg": "Ed25519", "typ": TOKEN, "jwk": jwk("attacker")}), "3b"),
        ("signed by its own holder", jws(root_claims(), "holder"), "3b"),
        ("no signature", f"{head}.{body}.", "3b"),
        ("short signature", f"{head}.{body}.{tail[:40]}", "3b"),
        ("signature with a tail", f"{head}.{body}.{b64(base64.urlsafe_b64decode(tail + '==') + bytes(1))}", "3b"),
        ("S + L", malleable(ROOT), "3b"),
        ("signature of another header", f"{b64(text({'alg': 'Ed25519', 'kid': 'x', 'typ': TOKEN}))}.{body}.{tail}", "3b"),
        ("member repeated", jws(claims[:-1].encode() + b',"exp":1704071200}', "issuer"), "3b"),
        ("member repeated deep inside", jws(claims.replace('"shell_run":{}', '"shell_run":{},"shell_run":{}').encode(), "issuer"), "3b"),
        ("NaN", jws(claims[:-1].encode() + b',"x":NaN}', "issuer"), "2c"),
        ("Infinity", jws(claims[:-1].encode() + b',"x":-Infinity}', "issuer"), "2c"),
        ("a number no double holds", jws(claims[:-1].encode() + b',"x":9007199254740993}', "issuer"), "3b"),
        ("an overflowing number", jws(claims[:-1].encode() + b',"x":1e400}', "issuer"), "3b"),
        ("half a surrogate pair", jws(claims[:-1].encode() + b',"x":"\\ud800"}', "issuer"), "2c"),
        ("text after the claims", jws(claims.encode() + b"{}", "issuer"), "2c"),
        ("nested a hundred deep", jws(claims[:-1].encode() + b',"x":' + b"[" * 100 + b"]" * 100 + b"}", "issuer"), "3b"),
        ("nested a thousand deep", jws(claims[:-1].encode() + b',"x":' + b"[" * 1000 + b"]" * 1000 + b"}", "issuer"), "2c"),
        ("iat is a string", root(put("iat", str(NOW))), "3b"),
        ("iat has a fraction", jws(claims.replace(f'"iat":{NOW - 300}', f'"iat":{NOW - 300}.0').encode(), "issuer"), "3b"),
        ("exp has an exponent", jws(claims.replace(f'"exp":{NOW + 3600}', '"exp":2e9').encode(), "issuer"), "3b"),
        ("exp is true", root(put("exp", True)), "3b"),
        ("no exp", root(drop("exp")), "3b"),
        ("iat is negative", root(put("iat", -1)), "3b"),
        # 3c–3k
        ("del_depth is 1", root(put("del_depth", 1)), "3c"),
        ("del_depth is false", root(put("del_depth", False)), "3c"),
        ("no del_depth", root(drop("del_depth")), "3c"),
        ("par_hash in a root", root(put("par_hash", "x")), "3d"),
        ("par_hash null in a root", root(put("par_hash", None)), "3d"),
        ("expired", root(put("exp", NOW - 1)), "3e"),
        ("expires now", root(put("exp", NOW)), "3e"),
        ("issued in the future", root(put("iat", NOW + 31)), "3f"),
        ("exp before iat", root(put("iat", NOW + 20), put("exp", NOW + 10)), "3g"),
        ("lives longer than 90 days", root(put("exp", NOW + 90 * 86_400)), "3h"),
        ("del_max_depth above ours", root(put("del_max_depth", 9)), "3i"),
        ("del_max_depth negative", root(put("del_max_depth", -1)), "3i"),
        ("del_max_depth a string", root(put("del_max_depth", "2")), "3i"),
        ("jti is empty", root(put("jti", "")), "3j"),
        ("jti has a NUL", root(put("jti", "a\0b")), "3j"),
        ("jti has a line break", root(put("jti", "a\n")), "3j"),
        ("jti is not ASCII", root(put("jti", "ä")), "3j"),
        ("jti is long", root(put("jti", "a" * 129)), "3j"),
        ("iss is another", root(put("iss", "https://other.example.com")), "3k"),
        ("iss is a longer one", root(put("iss", ISSUER + ".evil")), "3k"),
        ("iss is an array", root(put("iss", [ISSUER])), "3k"),
        ("no iss", root(drop("iss")), "3k"),
        # 3l
        ("no cnf", root(drop("cnf")), "3l"),
        ("cnf without jwk", root(put("cnf", {"kid": "x"})), "3l"),
        ("cnf with a jku", root(put("cnf", {"jku": "https://evil.example/keys"})), "3l"),
        ("cnf.jwk is private", root(put("cnf", "jwk", "d", b64(SEEDS["holder"]))), "3l"),
        ("cnf.jwk of another curve", root(put("cnf", "jwk", "crv", "Ed448")), "3l"),
        ("cnf.jwk of another type", root(put("cnf", "jwk", {"kty": "oct", "k": "AAAA"})), "3l"),
        ("cnf.jwk x is short", root(put("cnf", "jwk", "x", b64(bytes(31)))), "3l"),
        ("cnf.jwk x is padded", root(put("cnf", "jwk", "x", b64(raw("holder")) + "=")), "3l"),
        ("cnf.jwk x has spare bits set", root(put("cnf", "jwk", "x", spare_bit(b64(raw("holder"))))), "3l"),
        # 3m, 3n
        ("no authorization_details", root(drop("authorization_details")), "3m"),
        ("authorization_details is an object", root(put("authorization_details", {})), "3m"),
        ("authorization_details is empty", root(put("authorization_details", [])), "3m"),
        ("two entries of our type", root(lambda c: c["authorization_details"].append(c["authorization_details"][0])), "3m"),
        ("no tools", root(drop("authorization_details", 0, "tools")), "3m"),
        ("tools is a string", root(put("authorization_details", 0, "tools", "fs_read shell_run")), "3m"),
        ("tools is an array", root(put("authorization_details", 0, "tools", ["fs_read", "shell_run"])), "3m"),
        ("a tool's map is an array", root(put(*MAP, [])), "3m"),
        ("constraint is a string", root(put(*MAP, "path", "wildcard")), "3n"),
        ("constraint without a type", root(put(*MAP, "path", {})), "3n"),
        ("constraint type unknown", root(put(*MAP, "path", {"constraint_type": "regex", "pattern": ".*"})), "3n"),
        ("constraint type unknown on another tool", root(put("authorization_details", 0, "tools", "x", {"a": {"constraint_type": "cel"}})), "3n"),
        ("constraint type is an array", root(put(*MAP, "path", {"constraint_type": ["wildcard"]})), "3n"),
        ("constraint with a member of no meaning", root(put(*MAP, "limit", {"constraint_type": "range", "max": 1, "step": 1})), "3n"),
        ("exact of an array", root(put(*MAP, "path", {"constraint_type": "exact", "value": []})), "3n"),
        ("exact of nothing", root(put(*MAP, "path", {"constraint_type": "exact"})), "3n"),
        ("one_of nothing", root(put(*MAP, "path", {"constraint_type": "one_of", "values": []})), "3n"),
        ("range upside down", root(put(*MAP, "limit", {"constraint_type": "range", "min": 2, "max": 1})), "3n"),
        ("range of true", root(put(*MAP, "limit", {"constraint_type": "range", "max": True})), "3n"),
        ("range inclusive of no bound", root(put(*MAP, "limit", {"constraint_type": "range", "max_inclusive": False})), "3n"),
        ("all of nothing", root(put(*MAP, "path", {"constraint_type": "all", "constraints": []})), "3n"),
        ("any of an object", root(put(*MAP, "path", {"constraint_type": "any", "constraints": {}})), "3n"),
        ("optional inside all", root(put(*MAP, "path", {"constraint_type": "all", "constraints": [{"constraint_type": "wildcard", "optional": True}]})), "3n"),
        ("optional is a string", root(put(*MAP, "path", {"constraint_type": "wildcard", "optional": "yes"})), "3n"),
        ("* is not a wildcard", root(put(*MAP, "*", {"constraint_type": "exact", "value": 1})), "3n"),
        ("* is optional", root(put(*MAP, "*", {"constraint_type": "wildcard", "optional": True})), "3n"),
        ("33 nested constraints", root(put(*MAP, "path", nested(33))), "3n"),
        ("path root is relative", root(put(*MAP, "path", "root", "src")), "3n"),
        ("path root has a NUL", root(put(*MAP, "path", "root", "/a\0")), "3n"),
        ("argument name has a control character", root(put(*MAP, "a\x1b[2J", {"constraint_type": "wildcard"})), "3n"),
        # 6
        ("aud is another", root(put("aud", "https://other.example.com")), "6c"),
        ("aud only begins like us", root(put("aud", AUDIENCE + ".evil")), "6c"),
        ("aud is a list in a string", root(put("aud", f"x {AUDIENCE}")), "6c"),
        ("aud is an object", root(put("aud", {AUDIENCE: True})), "6c"),
        ("aud is empty", root(put("aud", [])), "6c"),
        # our profile
        ("no runner claim", root(drop("runner")), "profile"),
        ("runner claim is a string", root(put("runner", "reader")), "profile"),
        ("runner claim lacks the owner", root(drop("runner", "owner")), "profile"),
        ("runner claim has more", root(put("runner", "admin", True)), "profile"),
        ("agent is an array", root(put("runner", "agent", ["reader"])), "profile"),
        ("agent is empty", root(put("runner", "agent", "")), "profile"),
        ("owner has a NUL", root(put("runner", "owner", "ann\0root")), "profile"),
        ("task climbs", root(put("runner", "task", "t/../../etc")), "profile"),
        ("task is absolute", root(put("runner", "task", "/etc")), "profile"),
        ("session has a line break", root(put("runner", "session", "s-1\n")), "profile"),
        ("profile is a path", root(put("runner", "profile", "../default")), "profile"),
        ("profile has a line break", root(put("runner", "profile", "default\n")), "profile"),
        ("tool is a path", root(put("authorization_details", 0, "tools", "../x", {})), "profile"),
        ("tool is a URI", root(put("authorization_details", 0, "tools", "https://x.example/t", {})), "profile"),
        ("tool has a NUL", root(put("authorization_details", 0, "tools", "fs_read\0", {})), "profile"),
    ]  # fmt: skip
    for encoded in SMALL_ORDER:
        rows.append((f"cnf.jwk of small order or not canonical: {encoded[:8]}…{encoded[-2:]}", root(put("cnf", "jwk", "x", b64(bytes.fromhex(encoded)))), "3l"))  # fmt: skip
    return rows


def chains() -> list[tuple[str, list[str], str]]:
    """(name, chain, step) of derived tokens."""

    def child(*changes: Change, by: str = "holder") -> list[str]:
        return [ROOT, jws(changed(child_claims(ROOT), *changes), by)]

    other_root = jws(changed(root_claims(), put("jti", "root-2")), "issuer")
    terminal = jws(changed(root_claims(), put("del_max_depth", 0)), "issuer")
    leaf = jws(child_claims(ROOT), "holder")
    grandchild = jws(changed(child_claims(leaf, "worker", "attacker", 2), put("jti", "child-2")), "worker")
    tools = ("authorization_details", 0, "tools")
    hollow = jws(changed(child_claims(ROOT), put("authorization_details", [])), "holder")
    return [
        ("valid child", child(), ""),
        ("valid grandchild", [ROOT, leaf, grandchild], ""),
        ("valid: the child gives no name", child(drop("runner")), ""),
        ("valid: a path below the root's", child(put(*tools, "fs_read", "path", {"constraint_type": "path_containment", "root": "/workspace/src/../src/a"})), ""),
        ("nothing", [], "1"),
        ("ten tokens", [ROOT] * 10, "2b"),
        ("the same token twice", [ROOT, ROOT], "2c"),
        ("the same jti twice", child(put("jti", "root-1")), "2c"),
        ("leaf alone", [leaf], "3b"),
        ("wrong order", [leaf, ROOT], "3b"),
        ("a step left out", [ROOT, grandchild], "4b"),
        ("typ of a proof", [ROOT, jws(child_claims(ROOT), "holder", typ=PROOF)], "4a"),
        ("alg EdDSA in the middle", [ROOT, jws(child_claims(ROOT), "holder", header={"alg": "EdDSA", "typ": TOKEN})], "4a"),
        ("signed by a stranger", child(by="attacker"), "4b"),
        ("signed by the issuer", child(by="issuer"), "4b"),
        ("signed by itself", child(by="worker"), "4b"),
        ("member repeated", [ROOT, jws(text(child_claims(ROOT))[:-1] + b',"exp":1704071200}', "holder")], "4b"),
        ("jti has a space", child(put("jti", "a b")), "4b1"),
        ("no cnf", child(drop("cnf")), "4b2"),
        ("no authorization_details", child(drop("authorization_details")), "4b3"),
        ("del_depth is a string", child(put("del_depth", "1")), "4b4"),
        ("no del_max_depth", child(drop("del_max_depth")), "4b4"),
        ("no par_hash", child(drop("par_hash")), "4b5"),
        ("exp is a float", [ROOT, jws(text(child_claims(ROOT)).replace(b'"exp":1704069300', b'"exp":1704069300.0'), "holder")], "4b5"),
        ("iss is the root's issuer", child(put("iss", ISSUER)), "4c"),
        ("iss is a stranger's thumbprint", child(put("iss", f"urn:ietf:params:oauth:jwk-thumbprint:sha-256:{thumbprint('attacker')}")), "4c"),
        ("del_depth skips one", child(put("del_depth", 2)), "4d"),
        ("del_depth stays", child(put("del_depth", 0)), "4d"),
        ("derived from a terminal token", [terminal, jws(child_claims(terminal), "holder")], "4e"),
        ("del_max_depth raised", child(put("del_max_depth", 3)), "4g"),
        ("outlives its parent", child(put("exp", NOW + 3601)), "4h"),
        ("expired", child(put("exp", NOW)), "4i"),
        ("older than its parent", child(put("iat", NOW - 301)), "4j"),
        ("issued in the future", child(put("iat", NOW + 31)), "4k"),
        ("exp before iat", child(put("iat", NOW + 30), put("exp", NOW + 20)), "4l"),
        ("deeper than its own ceiling", child(put("del_max_depth", 0)), "4m"),
        ("two entries of our type", child(lambda c: c["authorization_details"].append(c["authorization_details"][0])), "4n"),
        ("unknown constraint type", child(put(*tools, "fs_read", "path", {"constraint_type": "glob"})), "4o"),
        ("a tool more", child(put(*tools, "fs_write", {})), "4p1"),
        ("a tool that only begins like the parent's", child(put(*tools, "fs_rea", {})), "4p1"),
        ("an argument more", child(put(*tools, "fs_read", "mode", {"constraint_type": "wildcard"})), "4p2"),
        ("an argument dropped", child(put(*tools, "fs_read", {"limit": {"constraint_type": "range", "max": 1}})), "4p2"),
        ("* added", child(put(*tools, "fs_read", "*", {"constraint_type": "wildcard"})), "4p2"),
        ("map emptied", child(put(*tools, "fs_read", {})), "4p2"),
        ("a required argument made optional", child(put(*tools, "fs_read", "path", "optional", True)), "4p3"),
        ("a wider root", child(put(*tools, "fs_read", "path", {"constraint_type": "path_containment", "root": "/workspace"})), "4p4"),
        ("a neighbour whose name begins alike", child(put(*tools, "fs_read", "path", {"constraint_type": "path_containment", "root": "/workspace/src2"})), "4p4"),
        ("a root that climbs out", child(put(*tools, "fs_read", "path", {"constraint_type": "path_containment", "root": "/workspace/src/.."})), "4p4"),
        ("an exact path outside", child(put(*tools, "fs_read", "path", {"constraint_type": "exact", "value": "../etc/passwd"})), "4p4"),
        ("a wildcard", child(put(*tools, "fs_read", "path", {"constraint_type": "wildcard"})), "4p4"),
        ("a wider range", child(put(*tools, "fs_read", "limit", {"constraint_type": "range", "max": 101, "optional": True})), "4p4"),
        ("another parent of the same holder", [other_root, leaf], "4q"),
        ("par_hash over the payload alone", child(put("par_hash", b64(hashlib.sha256(ROOT.split(".")[1].encode()).digest()))), "4q"),
        ("par_hash padded", child(put("par_hash", digest(ROOT) + "=")), "4q"),
        ("a leaf that grants nothing", child(put("authorization_details", [])), "6a"),
        ("a grandchild of nothing grants something", [ROOT, hollow, jws(changed(child_claims(hollow, "worker", "attacker", 2)), "worker")], "4p1"),
        ("aud of the child is another", child(put("aud", "x")), "6c"),
        ("the child signs another owner", child(put("runner", {"agent": "a", "owner": "root"})), "profile"),
        ("the child signs a whole identity", child(put("runner", root_claims()["runner"])), "profile"),
        ("the child's name climbs", child(put("runner", "agent", "../x")), "profile"),
    ]  # fmt: skip


def proofs() -> list[tuple[str, str, str]]:
    """(name, proof for fs_read under ROOT by its holder, step)."""

    def proof(*changes: Change, by: str = "holder", typ: str = PROOF) -> str:
        return jws(changed(call_claims(ROOT), *changes), by, typ=typ)

    valid = proof()
    claims = text(call_claims(ROOT))
    head, body, _ = valid.split(".")

    def args(value: bytes) -> str:
        return jws(claims.replace(b'"hta":{"limit":5,', b'"hta":{"limit":' + value + b","), "holder", typ=PROOF)

    return [
        ("valid", valid, ""),
        ("valid: a double", args(b"0.5"), ""),
        ("valid: an integer above 2^53 that a double holds", args(b"9007199254740994"), ""),
        ("valid: as old as it may be", proof(put("iat", NOW - 60)), ""),
        ("valid: as early as it may be", proof(put("iat", NOW + 30)), ""),
        ("valid: a header in another order, with a kid", jws(claims, "holder", header=b'{"typ":"aat-pop+jwt","kid":"x","alg":"Ed25519"}'), ""),
        ("two segments", f"{head}.{body}", "7a"),
        ("padded", f"{valid}==", "7a"),
        ("spare bits set", spare_bit(valid), "7a"),
        ("no typ", jws(claims, "holder", header={"alg": "Ed25519"}), "7a"),
        ("typ of a token", proof(typ=TOKEN), "7a"),
        ("typ of a hello", proof(typ=HELLO), "7a"),
        ("a token instead", ROOT, "7a"),
        ("alg none", f"{b64(text({'alg': 'none', 'typ': PROOF}))}.{body}.", "7a"),
        ("alg EdDSA", jws(claims, "holder", header={"alg": "EdDSA", "typ": PROOF}), "7a"),
        ("crit", jws(claims, "holder", header={"alg": "Ed25519", "typ": PROOF, "crit": ["x"]}), "7a"),
        ("signed by another holder", proof(by="worker"), "7b"),
        ("signed by the issuer", proof(by="issuer"), "7b"),
        ("S + L", malleable(valid), "7b"),
        ("white space in the payload", jws(claims.replace(b",", b", ", 1), "holder", typ=PROOF), "7b"),
        ("members out of order", jws(b'{"jti":"proof-1",' + claims[1:-1].replace(b',"jti":"proof-1"', b"") + b"}", "holder", typ=PROOF), "7b"),
        ("member repeated", jws(claims.replace(b'"aat_tool":"fs_read"', b'"aat_tool":"fs_read","aat_tool":"fs_read"'), "holder", typ=PROOF), "7b"),
        ("argument repeated", args(b'5,"limit":6'), "7b"),
        ("an integer no double holds", args(b"9007199254740993"), "7b"),
        ("an integer whose shortest form is another", args(b"1152921504606846976"), "7b"),
        ("1.0 for 1", args(b"1.0"), "7b"),
        ("1e2 for 100", args(b"1e2"), "7b"),
        ("-0", args(b"-0"), "7b"),
        ("NaN", args(b"NaN"), "7b"),
        ("escaped letters", jws(claims.replace(b"fs_read", b"fs\\u005fread"), "holder", typ=PROOF), "7b"),
        ("half a surrogate pair", args(b'"\\ud800"'), "7b"),
        ("not UTF-8", args(b'"\xff"'), "7b"),
        ("nested deeper than arguments may be", args(b"[" * 33 + b"]" * 33), "7b"),
        ("nested five thousand deep", args(b"[" * 5_000), "7b"),
        ("an array", jws(b"[]", "holder", typ=PROOF), "7b"),
        ("no jti", proof(drop("jti")), "7c"),
        ("jti is empty", proof(put("jti", "")), "7c"),
        ("jti has a NUL", proof(put("jti", "a\0")), "7c"),
        ("iat is a string", proof(put("iat", str(NOW))), "7c"),
        ("iat is true", proof(put("iat", True)), "7c"),
        ("aat_id of another token", proof(put("aat_id", "root-2")), "7c"),
        ("aat_hash of another token", proof(put("aat_hash", b64(bytes(32)))), "7c"),
        ("no aat_hash", proof(drop("aat_hash")), "7c"),
        ("aat_tool is an array", proof(put("aat_tool", ["fs_read"])), "7c"),
        ("aat_tool has a NUL", proof(put("aat_tool", "fs_read\0")), "7c"),
        ("hta is an array", proof(put("hta", [])), "7c"),
        ("no hta", proof(drop("hta")), "7c"),
        ("no aat_aud", proof(drop("aat_aud")), "7d"),
        ("aat_aud is another", proof(put("aat_aud", "https://other.example.com")), "7d"),
        ("aat_aud is an array with us", proof(put("aat_aud", [AUDIENCE])), "7d"),
        ("too old", proof(put("iat", NOW - 61)), "7g"),
        ("too early", proof(put("iat", NOW + 31)), "7g"),
        ("no nonce", proof(drop("nonce")), "7h"),
        ("nonce of another connection", proof(put("nonce", "n-other")), "7h"),
        ("nonce is null", proof(put("nonce", None)), "7h"),
    ]  # fmt: skip


def build() -> dict[str, Any]:
    """The whole file."""
    return {
        "format": "draft-niyikiza-oauth-attenuating-agent-tokens-02",
        "now": NOW,
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "nonce": NONCE,
        "keys": {who: {"seed": seed.hex(), **jwk(who), "thumbprint": thumbprint(who)} for who, seed in SEEDS.items()},
        "chains": [
            *({"name": f"root: {name}", "chain": [token], "step": step} for name, token, step in roots()),
            *({"name": f"chain: {name}", "chain": chain, "step": step} for name, chain, step in chains()),
        ],
        "proofs": [{"name": name, "proof": token, "step": step} for name, token, step in proofs()],
    }


def main() -> None:
    """Write token.json beside this file."""
    path = Path(__file__).with_name("token.json")
    path.write_text(json.dumps(build(), indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
