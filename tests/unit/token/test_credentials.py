"""Credentials as they are handed over: whole or refused, and never shown."""

from __future__ import annotations

import json

import pytest

from runner.errors import RunnerError
from runner.token.credentials import MAX_CREDENTIALS, credentials, encode, parse
from runner.token.keys import SigningKey

KEY = SigningKey(b"\7" * 32)


def test_round_trip() -> None:
    handed = credentials(("root", "leaf"), KEY, "/run/agent.sock")
    again = parse(encode(handed))
    assert again == handed
    assert again.leaf == "leaf"
    assert again.signing_key().public == KEY.public


def test_repr_shows_no_secret() -> None:
    handed = credentials(("root-text", "leaf-text"), KEY, "/s")
    assert handed.key not in repr(handed)
    assert "text" not in repr(handed)


@pytest.mark.parametrize(
    "change",
    [
        {"chain": []},
        {"chain": "a"},
        {"chain": [1]},
        {"key": ""},
        {"key": "AAAA"},
        {"key": 1},
        {"more": 1},
        {"socket": None},
    ],
)
def test_broken(change: dict[str, object]) -> None:
    good = json.loads(encode(credentials(("t",), KEY, "/s")))
    assert parse(json.dumps(good).encode())
    with pytest.raises(RunnerError) as caught:
        parse(json.dumps({**good, **change}).encode())
    assert caught.value.refused.code == "token"
    assert good["key"] not in str(caught.value) + caught.value.detail


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_CREDENTIALS + 1)])
def test_not_credentials(data: bytes) -> None:
    with pytest.raises(RunnerError):
        parse(data)
