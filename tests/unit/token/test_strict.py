"""One reading of hostile bytes: base64url, JSON, and the compact form."""

from __future__ import annotations

import base64
import json
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.token.strict import (
    HELLO_TYPE,
    PROOF_TYPE,
    TOKEN_TYPE,
    NotAccepted,
    b64,
    compact,
    header_segment,
    parse_json,
    unauthenticated,
    unb64,
    untrusted_jti,
)


@given(st.binary(max_size=80))
def test_base64url_goes_round(data: bytes) -> None:
    assert unb64(b64(data)) == data


@given(st.text(alphabet=st.sampled_from("ABab01-_=+/ \n."), max_size=12))
def test_one_text_per_bytes(text: str) -> None:
    try:
        data = unb64(text)
    except ValueError:
        return
    assert b64(data) == text


@pytest.mark.parametrize("text", ["QQ==", "QQ=", "QR", "Q", "Q Q", "QQ\n", "Q+", "Qä", "QQ\0"])
def test_not_canonical_base64url(text: str) -> None:
    with pytest.raises(ValueError):
        unb64(text)


@given(st.recursive(st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5), st.lists, max_leaves=8))
def test_json_reads_what_json_writes(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), 64) == value


@given(st.binary(max_size=60))
def test_json_is_total(data: bytes) -> None:
    try:
        parse_json(data, 8)
    except ValueError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"x":[{"a":1,"\\u0061":2}]}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"9007199254740993",
        b"1.00000000000000001",
        b"1e400",
        b"1e-400",
        b"9" * 5000,
        b"0." + b"1" * 5000,
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"[[[[[[[[[]]]]]]]]]",
        b"[" * 200_000,
        b"{} {}",
        b"",
        b"'a'",
        b"01",
    ],
)
def test_json_with_two_readings(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data, 8)


def test_types_of_numbers_are_kept() -> None:
    assert [type(value) for value in parse_json(b"[1,1.0,1e2,9007199254740994]", 2)] == [int, float, float, int]


def test_size_comes_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr("runner.token.strict.unb64", read)
    with pytest.raises(NotAccepted, match="at most 65536"):
        compact("A" * (2 << 20), TOKEN_TYPE, 65_536, "2a")
    with pytest.raises(AssertionError):  # the control: within the size it is
        compact("A.B.C", TOKEN_TYPE, 65_536, "2a")


@pytest.mark.parametrize("typ", [TOKEN_TYPE, PROOF_TYPE, HELLO_TYPE])
def test_types_are_apart(typ: str) -> None:
    text = f"{header_segment(typ)}.e30.AAAA"
    assert compact(text, typ, 1000, "x").payload == b"{}"
    for other in {TOKEN_TYPE, PROOF_TYPE, HELLO_TYPE} - {typ}:
        with pytest.raises(NotAccepted, match="typ"):
            compact(text, other, 1000, "x")


def test_a_failure_says_one_thing_to_the_peer_and_all_to_the_log() -> None:
    errors = [unauthenticated(NotAccepted(step, reason)) for step, reason in (("3b", "a"), ("7i", "b"))]
    assert len({error.refused for error in errors}) == 1
    assert [error.detail for error in errors] == ["step 3b: a", "step 7i: b"]


def test_untrusted_jti(forge: ModuleType) -> None:
    assert untrusted_jti(forge.ROOT) == "root-1"
    for text in ("", "a.b", "a.e30.c", f"a.{base64.urlsafe_b64encode(b'[[').decode()}.c", "a.b.c.d"):
        with pytest.raises(ValueError):
            untrusted_jti(text)
