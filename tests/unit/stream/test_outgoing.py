"""What a text that goes out carries: found in pieces, in wrappers, in compressed bodies, and told when it cannot be."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib

import pytest
from customers import PARTS, as_csv, people

from runner.stream.found import Found
from runner.stream.outgoing import Outgoing
from runner.stream.patterns import Patterns
from runner.stream.shingles import Shingles
from runner.stream.tasks import Filters

ROWS = people(1, 30)
ROW = PARTS["row"](ROWS[4]).encode()
SECRET = b"s3cr3t-value-of-the-api"


def find(data: bytes) -> list[Found]:
    """One issued secret, and a pattern."""
    found = [Found(m.start(), m.end(), "secret:api-key", "secret") for m in re.finditer(SECRET, data)]
    return found + [Found(m.start(), m.end(), "eu-iban", "pii.iban") for m in re.finditer(rb"DE\d{20}", data)]


def memory() -> Shingles:
    made = Shingles(bytes(32))
    made.keep("call-1", {"customer"}, as_csv(ROWS).encode())
    return made


def outgoing(coding: str = "", read: Shingles | None = None) -> Outgoing:
    return Outgoing(find, memory() if read is None else read, coding)


def test_labels_secrets_and_where_they_came_from() -> None:
    carries = outgoing().look(b"key=" + SECRET + b"\n" + ROW)
    assert carries.labels == {"customer", "pii.iban", "secret"}
    assert carries.secrets == {"api-key"}
    assert carries.sources == ("call-1",)
    assert carries.whole


def test_nothing_is_carried_by_what_copies_nothing() -> None:
    carries = outgoing().look(b"an ordinary text, " * 100)
    assert carries == (frozenset(), frozenset(), (), True)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_are_looked_at_with_the_end_of_those_before(size: int) -> None:
    filler = 3000 if size > 1 else 300  # each piece is a look
    text = b"x" * filler + ROW + b"y" * filler + SECRET + b"z" * 100
    looks = outgoing()
    for at in range(0, len(text), size):
        carries = looks.look(text[at : at + size])
    assert carries.labels >= {"customer", "secret"}


def test_what_is_wrapped_is_searched_by_everything() -> None:
    carries = outgoing().look(json.dumps({"data": base64.b64encode(b"-- " + SECRET + b" " + ROW).decode()}).encode())
    assert carries.labels == {"customer", "pii.iban", "secret"}


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_a_compressed_body_is_unpacked_as_it_comes(coding: str) -> None:
    text = b"x" * 50_000 + ROW
    packed = zlib.compress(text) if coding == "deflate" else gzip.compress(text)
    looks = outgoing(coding)
    for at in range(0, len(packed), 20):
        carries = looks.look(packed[at : at + 20])
    assert "customer" in carries.labels
    assert carries.whole


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("br", b"anything"),
        ("gzip, gzip", b"anything"),
        ("gzip", b"this is no gzip"),
        ("gzip", gzip.compress(bytes(5 << 20))),
        ("gzip", gzip.compress(b"one") + gzip.compress(ROW)),
        ("", gzip.compress(bytes(50 << 20))),
    ],
)
def test_what_cannot_be_looked_at_is_told(coding: str, data: bytes) -> None:
    assert not outgoing(coding).look(data).whole


def test_a_value_is_looked_at_as_one() -> None:
    """A record spread over arguments is one record."""
    row = ROWS[4]
    value = {"to": row["first_name"] + " " + row["last_name"], "note": ["number", row["customer"]], "count": 3}
    assert outgoing().value(value).labels == {"customer"}
    assert outgoing().value({**value, "note": ["number", "C-1"]}).labels == frozenset()


def test_numbers_of_a_value_count() -> None:
    digits = int(ROWS[4]["phone"].replace("+", "").replace(" ", ""))
    assert outgoing().value({"phone": digits}).labels == {"customer"}


def test_without_anything_read_only_secrets_and_patterns_are_found() -> None:
    assert outgoing(read=Shingles(bytes(32))).look(ROW).labels == {"pii.iban"}


def test_a_task_finds_its_secrets_and_not_what_only_begins_like_one() -> None:
    filters = Filters(lambda: bytes(32))
    filters.secrets("t").hold("c", "orders-db", (b"postgresql://u:pw-orders-71f0@db/x",), lasting=True)

    def secrets(text: bytes) -> set[str]:
        return set(filters.outgoing("t", Patterns(())).look(text).secrets)

    assert secrets(b"engine=postgresql") == set()
    for text in (b"postgresql://u:pw-orders-71f0@db/x", base64.b64encode(b"-- postgresql://u:pw-orders-71f0@db/x")):
        assert secrets(text) == {"orders-db"}
