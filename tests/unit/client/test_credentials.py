"""Credentials on an inherited descriptor: found, shared, never quoted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from runner.client import Unauthenticated, connect
from runner.client.credentials import DEFAULT_SOCKET, Identity, find_credentials, find_socket
from runner.token.credentials import DESCRIPTOR_VARIABLE, MAX_CREDENTIALS
from runner.token.strict import unb64
from runner.wire.agent import Challenge


@pytest.fixture
def handed(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The credentials on a descriptor, as `runner exec` hands them over."""
    descriptor = os.memfd_create("credentials", 0)
    os.write(descriptor, daemon.credentials)
    os.set_inheritable(descriptor, True)
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, str(descriptor))
    monkeypatch.delenv("RUNNER_SOCKET", raising=False)
    yield descriptor
    os.close(descriptor)


def test_the_descriptor_is_read_and_left_as_found(handed: int, daemon: Any) -> None:
    os.lseek(handed, 3, os.SEEK_SET)
    for _ in range(2):
        with connect() as runner:
            assert runner.call("echo", {"text": "mine"}).text == "mine"
    assert os.lseek(handed, 0, os.SEEK_CUR) == 3
    assert os.get_inheritable(handed)


def test_several_children_may_read_it(handed: int, daemon: Any) -> None:
    code = "from runner.client import connect\nwith connect() as r: print(r.call('echo', {'text': 'child'}).text)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(handed,), env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [child.communicate(timeout=60)[0] for child in children] == ["child\n"] * 3


@pytest.mark.parametrize("value", ["", "x", "-1", "9" * 30, "700"])
def test_a_missing_descriptor_is_explained(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, value)
    with pytest.raises(Unauthenticated, match=DESCRIPTOR_VARIABLE) as caught:
        find_credentials()
    assert caught.value.next_step


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"SECRET", b'{"chain":["SECRET"],"key":"SECRET","socket":"s"}', b"x" * (MAX_CREDENTIALS + 1)]
)
def test_broken_credentials_are_refused_and_not_quoted(data: bytes) -> None:
    with pytest.raises(Unauthenticated) as caught:
        find_credentials(data)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value.refused)


def test_a_token_does_not_show_in_the_repr(daemon: Any) -> None:
    found = find_credentials(daemon.credentials)
    assert found.chain[0] not in repr(found)
    assert found.key not in repr(found)


def test_where_the_socket_is(daemon: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = find_credentials(daemon.credentials)
    monkeypatch.delenv("RUNNER_SOCKET", raising=False)
    assert find_socket(found) == daemon.socket
    monkeypatch.setenv("RUNNER_SOCKET", str(tmp_path / "other.sock"))
    assert find_socket(found) == str(tmp_path / "other.sock")
    assert DEFAULT_SOCKET.endswith("/agent.sock")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**53, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=8), _json, max_size=4), st.text(max_size=20))
def test_what_is_signed_is_canonical_and_all_of_it_is_there(
    sim: Any, tool: str, arguments: dict[str, Any], audience: str
) -> None:
    """Its constant parts are encoded once and joined: the reference library must write the same bytes."""
    identity = Identity(find_credentials(sim.credentials("/nowhere")))
    identity.prove_hello(Challenge(versions=(1,), nonce='n"\\é', audience=audience, time=1_700_000_000))
    ids = set()
    for _ in range(2):
        header, body, signature = identity.prove_call(tool, arguments).split(".")
        payload = unb64(body)
        claims = json.loads(payload)
        assert payload == rfc8785.dumps({**claims, "hta": arguments})
        assert sorted(claims) == ["aat_aud", "aat_hash", "aat_id", "aat_tool", "hta", "iat", "jti", "nonce"]
        assert (claims["aat_tool"], claims["aat_aud"], claims["nonce"]) == (tool, audience, 'n"\\é')
        assert claims["aat_id"] == "sim-root"
        assert 1_700_000_000 <= claims["iat"] <= 1_700_000_060
        assert identity._key.public.verifies(unb64(signature), f"{header}.{body}".encode())
        ids.add(claims["jti"])
    assert len(ids) == 2
