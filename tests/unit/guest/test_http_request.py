"""What http_request makes of bodies, and of the credentials of a copy of it."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.guest import python_tool
from runner.guest.beneath import ToolError

TOOL = Path(__file__).parents[3] / "tools/http_request"


def load() -> ModuleType:
    path, known = list(sys.path), sys.modules.get("main")
    try:
        return python_tool.load(str(TOOL))
    finally:
        sys.path[:] = path
        sys.modules.pop("main", None)
        if known:
            sys.modules["main"] = known


MAIN = load()


@given(st.binary(max_size=300))
def test_a_body_comes_whole_one_way_or_the_other(body: bytes) -> None:
    ((name, text),) = MAIN.shown(body, False).items()
    assert (text.encode() if name == "body" else base64.b64decode(text)) == body


@given(st.text(max_size=50), st.integers(0, 200))
def test_a_character_that_the_bound_cut_is_left_out(text: str, most: int) -> None:
    body = text.encode()
    found = MAIN.shown(body[:most], len(body) > most)
    assert text.startswith(found["body"])
    assert len(body[:most]) - len(found["body"].encode()) < 4


def test_what_escapes_make_long_comes_as_base64() -> None:
    body = b"\x01" * 131_072
    found = MAIN.shown(body, False)
    assert base64.b64decode(found["base64"]) == body
    assert len(json.dumps(found)) < 256 << 10


def test_credentials_stand_where_their_variables_say() -> None:
    assert MAIN.credentials({"PATH": "/bin"}) == {}
    assert MAIN.credentials({"HTTP_BEARER": "p"}) == {"Authorization": "Bearer p"}
    assert MAIN.credentials({"HTTP_HEADER_X_API_KEY": "p"}) == {"X-Api-Key": "p"}
    basic = f"Basic {base64.b64encode(b'ann:p').decode()}"
    assert MAIN.credentials({"HTTP_PASSWORD": "p", "HTTP_PASSWORD_USERNAME": "ann"}) == {"Authorization": basic}


def test_a_body_is_base64_only_where_it_says_so() -> None:
    assert MAIN.content({"body": "aGk="}) == b"aGk="
    assert MAIN.content({"body": "aGk=", "base64": True}) == b"hi"
    with pytest.raises(ToolError, match="not base64"):
        MAIN.content({"body": "a b", "base64": True})
