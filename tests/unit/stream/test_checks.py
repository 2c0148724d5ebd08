"""Check digits, entropy, headers: against values whose answer is known elsewhere."""

from __future__ import annotations

import pytest

from runner.model import Check
from runner.stream.checks import CHECKS, IBAN_LENGTHS, entropy, issuer, luhn, stand_in


@pytest.mark.parametrize(
    ("check", "holds", "fails"),
    [
        (
            "card",
            [b"4111 1111 1111 1111", b"378282246310005", b"5555555555554444"],
            [b"4111111111111112", b"9999999999999995", b"4111"],
        ),
        ("luhn", [b"79927398713", b"130 692 544"], [b"79927398710"]),
        (
            "iban",
            [b"GB82 WEST 1234 5698 7654 32", b"DE89370400440532013000"],
            [b"GB82WEST12345698765433", b"DE8937040044053201300", b"ZZ89370400440532013000"],
        ),
        ("jwt", [b"eyJhbGciOiJub25lIn0.e30."], [b"eyJ0eXAiOiJKV1QifQ.e30.", b"e.y", b"W10.x", b"\xff.x"]),
        ("basic", [b"dXNlcjpwYXNz", b"dXNlcjpwYXNzdzByZA=="], [b"dXNlcg==", b"auth", b"!!!!"]),
        (
            "ssn",
            [b"536-22-1234"],
            [b"000-22-1234", b"666-22-1234", b"936-22-1234", b"536-00-1234", b"536-22-0000", b"536-22"],
        ),
        ("phone", [b"+49 151 2345678"], [b"123456", b"1111111111", b"1234567890123456"]),
        ("mixed", [b"a1b2c3d4e5"], [b"abcdefgh", b"1234567", b"your_key_1", b"${TOKEN1}"]),
        ("password", [b"Hunter2-x", b"tr0ub4dor"], [b"password", b"12345678", b"getpass1()", b"changeme1", b"<pass1>"]),
        ("real", [b"s3cr.t!"], [b"changeme", b"{{x}}", b"xxxxxxxx", b"%s", b"$PASS"]),
    ],
)
def test_each_check_holds_for_real_ones_and_fails_for_others(
    check: Check, holds: list[bytes], fails: list[bytes]
) -> None:
    assert [value for value in holds if not CHECKS[check](value)] == []
    assert [value for value in fails if CHECKS[check](value)] == []


def test_entropy_is_shannons_in_thousandths() -> None:
    assert [entropy(value) for value in (b"", b"aaaa", b"abab", b"abcd", bytes(range(256)))] == [0, 0, 1000, 2000, 8000]


def test_issuers_and_placeholders() -> None:
    assert [issuer(digits) for digits in ("4111111111111111", "2221000000000009", "1234567890123456")] == [
        "Visa",
        "Mastercard",
        "",
    ]
    assert luhn("0")
    assert not stand_in(b"k7Hq2mZp")
    assert all(len(country) == 2 and 15 <= length <= 33 for country, length in IBAN_LENGTHS.items())
