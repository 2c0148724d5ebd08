"""What becomes of a finding, by action and label; and which tables win."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.model import Action
from runner.stream.actions import DEFAULTS, ORDER, Actions, chosen, combined, mask
from runner.stream.found import Found

KEY = b"k" * 32
EMAIL = b"jane.doe@Example.org"


def replaced(action: Action, label: str, value: bytes, key: bytes = KEY) -> bytes:
    return Actions({label: action}, key).replace(Found(2, 2 + len(value), "the-rule", label), b"x " + value + b" y")


@pytest.mark.parametrize(
    ("action", "label", "value", "becomes"),
    [
        ("allow", "pii.email", EMAIL, EMAIL),
        ("mark", "pii.email", EMAIL, EMAIL),
        ("mask", "pii.email", EMAIL, b"j***@E***.org"),
        ("mask", "pii.card", b"4111 1111 1111 1111", b"**** **** **** 1111"),
        ("mask", "pii.phone", b"+49 151 2345678", b"+** *** *****78"),
        ("mask", "pii.iban", b"DE89 3704 0044 0532 0130 00", b"DE** **** **** **** ***0 00"),
        ("mask", "pii.ssn", b"536-22-1234", b"***-**-****"),
        ("mask", "credential.x", b"ab_C1-\xff", b"**_**-*"),
        ("generalise", "pii.email", EMAIL, b"[e-mail at example.org]"),
        ("generalise", "pii.card", b"4111111111111111", b"[card of Visa]"),
        ("generalise", "pii.iban", b"DE89370400440532013000", b"[account in DE]"),
        ("generalise", "pii.phone", b"+49 151 2345678", b"[phone number in +49]"),
        ("generalise", "pii.phone", b"+1 415 555 0132", b"[phone number in +1]"),
        ("generalise", "pii.phone", b"+353 1 234 5678", b"[phone number in +353]"),
        ("generalise", "pii.phone", b"415-555-0132", b"[phone number]"),
        ("generalise", "credential.aws", b"AKIA", b"[credential.aws]"),
        ("redact", "credential.aws", b"AKIA", b"[REDACTED:the-rule]"),
        ("hold", "credential.aws", b"AKIA", b"[REDACTED:the-rule]"),
        ("block", "credential.aws", b"AKIA", b"[REDACTED:the-rule]"),
        ("strip", "injected", b"ignore it", b"[removed: injected]"),
    ],
)
def test_each_action_does_what_it_is_named(action: Action, label: str, value: bytes, becomes: bytes) -> None:
    assert replaced(action, label, value) == becomes


def test_hashes_join_within_a_task_and_not_beyond() -> None:
    first = replaced("hash", "pii.email", EMAIL)
    assert first.startswith(b"[email:")
    assert len(first) == len("[email:]") + 12
    assert first == replaced("hash", "pii.email", EMAIL)
    assert first == replaced("hash", "pii.email", b"jane\x1b[1m.doe@Example.org")  # seen through colour
    assert first != replaced("hash", "pii.email", EMAIL, b"l" * 32)
    assert first != replaced("hash", "pii.email", b"john.doe@Example.org")


@given(some.sampled_from(["pii.email", "pii.card", "pii.iban", "pii.phone", "credential.x"]), some.binary(max_size=60))
def test_a_mask_of_anything_is_no_longer_than_it_and_some(label: str, value: bytes) -> None:
    assert len(mask(label, value)) <= len(value) + 12


def test_the_most_specific_entry_decides() -> None:
    actions = Actions({"pii": "mask", "pii.email": "hash", "*": "mark"}, KEY)
    assert [actions.of(label) for label in ("pii.email", "pii.phone", "pii", "credential.aws")] == [
        "hash",
        "mask",
        "mask",
        "mark",
    ]
    assert Actions({}, KEY).of("pii.email") == "allow"
    assert Actions(DEFAULTS, KEY).of("credential.github") == "redact"
    assert Actions(DEFAULTS, KEY).of("injected") == "mark"


def test_a_profile_stands_in_place_of_the_defaults() -> None:
    actions = Actions(chosen({"pii.email": "allow", "credential": "block"}), KEY)
    assert [actions.of(label) for label in ("pii.email", "pii.iban", "credential.aws")] == ["allow", "mask", "block"]


TABLES = some.dictionaries(
    some.sampled_from(["*", "pii", "pii.email", "pii.card", "credential", "credential.aws"]),
    some.sampled_from(get_args(Action)),
)


@given(TABLES, TABLES, some.sampled_from(["pii", "pii.email", "pii.phone", "credential.aws", "other"]))
def test_of_several_tables_the_strictest_wins(one: dict[str, Action], other: dict[str, Action], label: str) -> None:
    together = Actions(combined(one, other), KEY).of(label)
    assert ORDER.index(together) >= max(ORDER.index(Actions(table, KEY).of(label)) for table in (one, other))
