"""Our canonical form is RFC 8785's, checked against the reference library."""

from __future__ import annotations

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from runner.token.jcs import admissible, canonical, canonical_object, number_text

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(values)
def test_equal_to_the_reference(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@given(st.dictionaries(st.text(), values, max_size=4), st.data())
def test_only_the_canonical_bytes_of_an_object_are_read(value: dict[str, Any], data: st.DataObject) -> None:
    written = canonical(value)
    assert canonical(canonical_object(written)) == written
    place = data.draw(st.integers(0, len(written) - 1))
    other = written[:place] + data.draw(st.binary(max_size=2)) + written[place + data.draw(st.integers(0, 2)) :]
    try:
        read = canonical_object(other)
    except ValueError:
        return
    assert canonical(read) == other  # changed, and still one text of one value


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":-0}',
        b'{"a":01}',
        b'{"a":9007199254740993}',
        b'{"a":"\\u0061"}',
        b'{"a":"\\/"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":[[[1]]]}',
        b'{"a":NaN}',
        b"[1]",
        b"null",
        b"{}{}",
        b"",
    ],
)
def test_what_is_not_the_canonical_form_of_an_object(data: bytes) -> None:
    with pytest.raises(ValueError):
        canonical_object(data, 3)
    assert canonical_object(b'{"a":[[1]],"b":1.5}', 3) == {"a": [[1]], "b": 1.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (1e-7, "1e-7"),
        (1e-6, "0.000001"),
        (333333333.33333329, "333333333.3333333"),
        (2**53, "9007199254740992"),
        (9007199254740994, "9007199254740994"),
        (10**21, "1e+21"),
        ({"\ufb33": 1, "\U0001f600": 2, "a": 3}, '{"a":3,"\U0001f600":2,"\ufb33":1}'),
        ("\x7f\x1f\u2028", '"\x7f\\u001f\u2028"'),
    ],
)
def test_known_forms(value: Any, text: str) -> None:
    assert canonical(value) == text.encode()


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**53 + 1,
        2**60,  # a double holds it, but its shortest form is 1152921504606847000
        10**400,
        "\ud800",
        {"\udc00": 1},
        {1: 2},
        b"bytes",
        {1, 2},
        object(),
    ],
)
def test_what_has_no_canonical_form(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_depth() -> None:
    assert canonical([[[]]], 3) == b"[[[]]]"
    with pytest.raises(ValueError, match="deep"):
        canonical([[[]]], 2)


def test_admissible_numbers_are_the_drafts() -> None:
    assert all(admissible(text, float(text)) for text in ("0.1", "1e20", "9007199254740994", "1.0", "-0"))
    assert not any(
        admissible(text, float(text)) for text in ("9007199254740993", "1.00000000000000001", "1e400", "1e-400")
    )
    with pytest.raises(ValueError):
        number_text(float("inf"))
