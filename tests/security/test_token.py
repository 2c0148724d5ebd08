"""T01–T07, T14: forged tokens and proofs by the hundred; none is accepted, all refusals read the same.

Every family begins from a token that is accepted (`control`), and changes one thing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runner.config import Limits
from runner.errors import RunnerError
from runner.token.claims import verify_chain
from runner.token.keys import PublicKey, SigningKey
from runner.token.proof import verify_call

_SCRIPT = Path(__file__).parents[1] / "vectors" / "token_vectors.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("token_vectors", _SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


forge = _load()
LIMITS = Limits()
ANCHORS = {forge.ISSUER: (PublicKey(forge.raw("issuer")),)}
PROOF = forge.jws(forge.call_claims(forge.ROOT), "holder", typ=forge.PROOF)
ONE_SENTENCE = "unauthenticated: the token chain was not accepted · next: ask the issuer for a new token"
Variant = tuple[str, str]


def refusal_of(what: str, text: str) -> RunnerError | None:
    """How a root token, or a proof under the accepted root, is refused; None when it is accepted."""
    try:
        chain = verify_chain([text if what == "token" else forge.ROOT], ANCHORS, forge.NOW, forge.AUDIENCE, LIMITS)
        if what == "proof":
            verify_call(text, chain, forge.AUDIENCE, forge.NONCE, forge.NOW, 0, LIMITS)
    except RunnerError as error:
        return error
    return None


def accepts(token: str) -> bool:
    return refusal_of("token", token) is None


def casings(word: str) -> list[str]:
    return ["".join(letters) for letters in itertools.product(*((c.lower(), c.upper()) for c in word))]


def unsigned() -> Iterator[Variant]:
    for what, text in (("token", forge.ROOT), ("proof", PROOF)):
        _, body, tail = text.split(".")
        typ = forge.TOKEN if what == "token" else forge.PROOF
        for alg in [*casings("none"), "", " none", "none\0", "null"]:
            head = forge.b64(forge.text({"alg": alg, "typ": typ}))
            for kept in ("", tail, "AA"):
                yield what, f"{head}.{body}.{kept}"
        for header in (b"{}", b"null", b"", b'{"alg":null,"typ":"%s"}' % typ.encode(), b'{"typ":"%s"}' % typ.encode()):
            yield what, f"{forge.b64(header)}.{body}.{tail}"


def confused() -> Iterator[Variant]:
    """HMAC with every form in which a public key is published."""
    for who, what in (("issuer", "token"), ("holder", "proof")):
        raw = forge.raw(who)
        key = Ed25519PublicKey.from_public_bytes(raw)
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        forms = [
            raw,
            pem,
            pem.strip(),
            pem.replace(b"\n", b"\r\n"),
            key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
            forge.b64(raw).encode(),
            base64.b64encode(raw),
            raw.hex().encode(),
            forge.text(forge.jwk(who)),
            json.dumps(forge.jwk(who)).encode(),
            b"",
        ]
        claims, typ = (
            (forge.root_claims(), forge.TOKEN) if what == "token" else (forge.call_claims(forge.ROOT), forge.PROOF)
        )
        for alg, hashing in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            signing_input = f"{forge.b64(forge.text({'alg': alg, 'typ': typ}))}.{forge.b64(forge.text(claims))}"
            for secret in forms:
                yield what, f"{signing_input}.{forge.b64(hmac.digest(secret, signing_input.encode(), hashing))}"


def renamed() -> Iterator[Variant]:
    """A genuine signature under another algorithm's name."""
    names = ["EdDSA", "ed25519", "ED25519", "Ed25519ph", "Ed448", "ES256", "ES256K", "RS256", "PS256", "HS256", "dir"]
    for alg in [*names, "Ed25519 ", "Ed25519\0", 1, True, None, [], ["Ed25519"], {"Ed25519": 1}]:
        header = {"alg": alg, "typ": forge.TOKEN}
        yield "token", forge.jws(forge.root_claims(), "issuer", header=header)
        header = {"alg": alg, "typ": forge.PROOF}
        yield "proof", forge.jws(forge.call_claims(forge.ROOT), "holder", header=header)


POINTERS: list[dict[str, Any]] = [
    {"jwk": forge.jwk("attacker")},
    {"jku": "https://evil.example/keys"},
    {"jku": "file:///etc/passwd"},
    {"jku": "http://127.0.0.1/latest"},
    {"x5u": "https://evil.example/cert"},
    {"x5c": ["MIIB"]},
    {"x5t": "AAAA"},
    {"kid": "../../../../etc/passwd"},
    {"kid": "/dev/null"},
    {"kid": "x' UNION SELECT 'AAAA"},
    {"kid": "| touch /tmp/owned"},
    {"kid": "http://evil.example/key"},
    {"kid": ["issuer"]},
    {"kid": forge.thumbprint("attacker"), "jwk": forge.jwk("attacker"), "jku": "https://evil.example"},
]


def pointing() -> Iterator[Variant]:
    """A stranger's signature, and a header that says where to find the stranger's key."""
    for pointer in POINTERS:
        header = {"alg": "Ed25519", "typ": forge.TOKEN, **pointer}
        yield "token", forge.jws(forge.root_claims(), "attacker", header=header)
        header = {"alg": "Ed25519", "typ": forge.PROOF, **pointer}
        yield "proof", forge.jws(forge.call_claims(forge.ROOT), "attacker", header=header)


def mistyped() -> Iterator[Variant]:
    """Every claim as everything it is not, under the genuine key."""
    values: list[Any] = [None, True, False, "", "x", "0", -1, [], ["x"], {}, {"x": 1}, "fs_read shell_run"]
    for claim, value in itertools.product(forge.root_claims(), values):
        if (claim, value) in (("jti", "x"), ("jti", "0")):
            continue  # these are fine
        yield "token", forge.jws(forge.changed(forge.root_claims(), forge.put(claim, value)), "issuer")
    for claim in forge.root_claims():
        yield "token", forge.jws(forge.changed(forge.root_claims(), forge.drop(claim)), "issuer")
    for claim, value in itertools.product(forge.call_claims(forge.ROOT), values):
        fine = (claim == "jti" and value in ("x", "0")) or (claim == "aat_tool" and value in ("x", "0"))
        if fine or (claim == "hta" and isinstance(value, dict)):
            continue
        changed = forge.changed(forge.call_claims(forge.ROOT), forge.put(claim, value))
        yield "proof", forge.jws(changed, "holder", typ=forge.PROOF)


def misnamed() -> Iterator[Variant]:
    """Names with NULs, paths, line breaks, look-alikes, and a megabyte."""
    names = [
        "",
        " ",
        "a b",
        "a\0",
        "a\n",
        "\na",
        "../a",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a\\b",
        "ä",
        "а",
        "a\u200b",
        "a;b",
    ]
    for field, name in itertools.product(("agent", "owner", "task", "session", "profile"), [*names, "a" * 129]):
        yield "token", forge.jws(forge.changed(forge.root_claims(), forge.put("runner", field, name)), "issuer")
    tools = ("authorization_details", 0, "tools")
    for name in [*names, "Fs_read", "fs.read", "fs-read", "1x", "a" * 65]:
        yield "token", forge.jws(forge.changed(forge.root_claims(), forge.put(*tools, name, {})), "issuer")
    for jti in ["", "a b", "a\0", "a\n", "ä", "a" * 129, "a" * 1_000_000]:
        yield "token", forge.jws(forge.changed(forge.root_claims(), forge.put("jti", jti)), "issuer")


def reencoded() -> Iterator[Variant]:
    """The same bytes in another text, and other bytes that a lenient reader takes for the same."""
    for what, text in (("token", forge.ROOT), ("proof", PROOF)):
        segments = text.split(".")
        for place in range(3):
            for change in (
                "{}=", "{}==", " {}", "{}\n", "\n{}", "{}\0", "{}\t", "{}+", "{}/", "{}%3D", "", "{}.", ".{}", "{}{}",
                "é{}",
            ):  # fmt: skip
                changed = [*segments]
                changed[place] = change.replace("{}", segments[place])
                if ".".join(changed) != text:
                    yield what, ".".join(changed)
        yield what, text.replace(".", "..")
        yield what, text.replace(".", ",")
        yield what, forge.spare_bit(text)
        yield what, forge.malleable(text)
        yield what, text.swapcase()
        yield what, "\ufeff" + text
        yield what, "A" * (2 << 20)
        yield what, text + "A" * (2 << 20)


def flipped() -> Iterator[Variant]:
    """One character of the signing input, one bit of each byte of the signature."""
    for what, text in (("token", forge.ROOT), ("proof", PROOF)):
        head, _, tail = text.rpartition(".")
        signature = base64.urlsafe_b64decode(tail + "==")
        for place in range(64):
            bad = bytearray(signature)
            bad[place] ^= 1 << (place % 8)
            yield what, f"{head}.{forge.b64(bytes(bad))}"
        for place in range(3, len(head), 17):
            if head[place] != ".":
                yield what, f"{head[:place]}{'A' if head[place] != 'A' else 'B'}{head[place + 1 :]}.{tail}"


def reparsed() -> Iterator[Variant]:
    """JSON that two parsers read differently, under the genuine key."""
    claims = forge.text(forge.root_claims())
    for extra in (
        b',"exp":9999999999', b',"ex\\u0070":1', b',"x":{"a":1,"a":2}', b',"x":NaN', b',"x":Infinity', b',"x":1e999',
        b',"x":-Infinity', b',"x":9007199254740993', b',"x":1.00000000000000001', b',"x":01', b',"x":1.', b',"x":+1',
        b',"x":' + b"[" * 200 + b"]" * 200, b',"x":' + b'{"a":' * 200 + b"1" + b"}" * 200, b",'x':1", b',"x":"\x01"',
        b',"x":"\\ud800"', b',"x":"\\udc00\\ud800"', b',"x":"\xff"', b',"x":"\xed\xa0\x80"', b",", b',"x"', b" /* */",
    ):  # fmt: skip
        yield "token", forge.jws(claims[:-1] + extra + b"}", "issuer")
    for whole in (
        b"",
        b"null",
        b"[]",
        b'""',
        b"\xef\xbb\xbf" + claims,
        claims + b"\0",
        claims + claims,
        b"[" + claims + b"]",
    ):
        yield "token", forge.jws(whole, "issuer")
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        yield "token", forge.jws(claims.decode().encode(encoding), "issuer")


FAMILIES = {
    "unsigned": unsigned,
    "confused": confused,
    "renamed": renamed,
    "pointing": pointing,
    "mistyped": mistyped,
    "misnamed": misnamed,
    "reencoded": reencoded,
    "flipped": flipped,
    "reparsed": reparsed,
}


def test_control() -> None:
    assert accepts(forge.ROOT)
    assert refusal_of("proof", PROOF) is None
    assert accepts(forge.jws(forge.text(forge.root_claims())[:-1] + b',"x":{"a":1}}', "issuer"))


@pytest.mark.parametrize("family", FAMILIES)
def test_none_of_a_family_is_accepted(family: str) -> None:
    variants = list(FAMILIES[family]())
    assert len(variants) >= 20
    refusals = [(text, refusal_of(what, text)) for what, text in variants]
    assert [text[:300] for text, refusal in refusals if refusal is None] == []
    assert {refusal.refused.line() for _, refusal in refusals if refusal} == {ONE_SENTENCE}


def test_there_are_hundreds() -> None:
    assert sum(len(list(family())) for family in FAMILIES.values()) > 900


def test_a_pointer_beside_a_genuine_signature_is_ignored() -> None:
    """The draft's rule (§3.5): verified as if it were absent."""
    for pointer in POINTERS:
        assert accepts(
            forge.jws(forge.root_claims(), "issuer", header={"alg": "Ed25519", "typ": forge.TOKEN, **pointer})
        )


def says(**change: Any) -> str:
    """The accepted root with a claim changed."""
    return str(forge.jws(forge.root_claims() | change, "issuer"))


def headed(**header: Any) -> str:
    return str(forge.jws(forge.root_claims(), "issuer", header={"alg": "Ed25519", "typ": forge.TOKEN} | header))


def spaced() -> str:
    return str(forge.jws(json.dumps(forge.root_claims(), indent=2).encode(), "issuer"))


# What the specifications leave open, or what implementations are known to differ in: our choice, and whose word it is.
BORDERLINE: list[tuple[str, str, bool]] = [
    ("an unknown claim is ignored (RFC 7519 §4)", says(x=1), True),
    ("nbf is such a claim: the draft's §8 has no step for it", says(nbf=2**40), True),
    ("an unknown header parameter is ignored (RFC 7515 §4)", headed(x=1), True),
    ("kid chooses nothing: every anchor is tried (the draft, §3.5)", headed(kid="x"), True),
    ("white space in claims: the bytes are signed as they are (RFC 7515 §5.2)", spaced(), True),
    ("alg is compared as it is written (RFC 7515 §4.1.1)", headed(alg="ed25519"), False),
    ("typ is compared as it is written, without `application/`", headed(typ=f"application/{forge.TOKEN}"), False),
    ("typ is compared as it is written, though media types are not (RFC 7515 §4.1.9)", headed(typ="AAT+JWT"), False),
    ("an empty crit is an error (RFC 7515 §4.1.11)", headed(crit=[]), False),
    ("iat may be 30 s ahead (the draft's MAX_IAT_SKEW)", says(iat=forge.NOW + 30), True),
    ("and not 31", says(iat=forge.NOW + 31), False),
    ("exp has no leeway: at exp it is over (RFC 7519 §4.1.4)", says(exp=forge.NOW), False),
    ("until then it is not", says(exp=forge.NOW + 1), True),
    ("a NumericDate of a fraction (RFC 7519 §2 allows one)", says(exp=forge.NOW + 60.5), False),
    ("aud as an array (RFC 7519 §4.1.3)", says(aud=["x", forge.AUDIENCE]), True),
    ("an empty array names nobody", says(aud=[]), False),
    ("a jti of 128 characters", says(jti="x" * 128), True),
    ("and of 129", says(jti="x" * 129), False),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "token", "accepted"), BORDERLINE, ids=[choice for choice, _, _ in BORDERLINE])
def test_borderline(choice: str, token: str, accepted: bool) -> None:
    """T02."""
    assert accepts(token) is accepted


_AUDITED = """
import sys, json
from runner.config import Limits
from runner.errors import RunnerError
from runner.token.claims import verify_chain
from runner.token.keys import PublicKey
given = json.load(sys.stdin)
anchors = {given["issuer"]: (PublicKey(bytes.fromhex(given["key"])),)}
limits, outcomes, seen = Limits(), [], []
def hook(event, arguments):
    if event == "open" or event.startswith(("socket.", "subprocess.", "os.", "urllib.")):
        seen.append(event)
sys.addaudithook(hook)
for token in given["tokens"]:
    try:
        verify_chain([token], anchors, given["now"], given["audience"], limits)
        outcomes.append(True)
    except RunnerError:
        outcomes.append(False)
during = list(seen)
open("/dev/null").close()
print(json.dumps([outcomes, during, seen]))
"""


def test_nothing_in_a_header_opens_a_file_or_a_socket() -> None:
    """T04: the interpreter's own audit events, in a process that does nothing else."""
    headers = [{"alg": "Ed25519", "typ": forge.TOKEN, **pointer} for pointer in POINTERS]
    tokens = [
        forge.jws(forge.root_claims(), who, header=header) for who in ("issuer", "attacker") for header in headers
    ]
    given = {
        "issuer": forge.ISSUER, "key": forge.raw("issuer").hex(), "now": forge.NOW, "audience": forge.AUDIENCE,
        "tokens": [forge.ROOT, *tokens],
    }  # fmt: skip
    command = [sys.executable, "-c", _AUDITED]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    outcomes, during, seen = json.loads(done.stdout)
    assert outcomes == [True] + [True] * len(POINTERS) + [False] * len(POINTERS)
    assert during == []
    assert seen == ["open"]  # the control: the hook sees an open when there is one


def test_revocation_goes_by_id_not_by_text() -> None:
    """T05: two texts of one token name the same jti and digest, or one of them is refused."""
    again = forge.jws(forge.root_claims(), "issuer", header={"typ": forge.TOKEN, "alg": "Ed25519", "kid": "x"})
    assert again != forge.ROOT
    both = [verify_chain([token], ANCHORS, forge.NOW, forge.AUDIENCE, LIMITS) for token in (forge.ROOT, again)]
    assert both[0].root_jti == both[1].root_jti
    assert both[0].root_digest != both[1].root_digest  # which was announced for one of them only


def test_token_text_and_keys_are_in_no_error_repr_or_log(caplog: pytest.LogCaptureFixture) -> None:
    """T14, for the part that reads tokens: a canary in each secret place."""
    caplog.set_level(logging.DEBUG)
    signature = forge.ROOT.rpartition(".")[2]
    key = SigningKey(forge.SEEDS["holder"])
    chain = verify_chain([forge.ROOT], ANCHORS, forge.NOW, forge.AUDIENCE, LIMITS)
    texts = [repr(chain), repr(key), repr(chain.leaf_key), str(chain)]
    for family in ("reencoded", "flipped"):
        for what, text in FAMILIES[family]():
            error = refusal_of(what, text)
            assert error
            texts += [str(error), repr(error), error.detail, repr(error.refused)]
    everything = "\n".join([*texts, caplog.text])
    assert len(texts) > 300
    assert signature not in everything
    assert PROOF.rpartition(".")[2] not in everything
    assert forge.b64(key.seed()) not in everything
    assert key.seed().hex() not in everything
    assert hashlib.sha256(forge.ROOT.rpartition(".")[0].encode()).hexdigest() in everything  # the digest may be
