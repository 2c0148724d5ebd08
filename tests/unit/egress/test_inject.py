"""Credentials: in their place, and nowhere else, however a body is cut."""

from __future__ import annotations

import base64
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.egress.inject import Credentials, Filter, Leak, Needles, Unfit, Watch
from runner.wire.egress import Injection

KEY, OTHER, CANARY = (f"rnr-{letter * 32}" for letter in "koc")
VALUE = b"s3cret/+value"


def credentials(*places: str, value: bytes = VALUE, canary: str = CANARY) -> Credentials:
    return Credentials(
        (
            Injection(name="key", placeholder=KEY, value=value, rules=("api",), places=places),
            Injection(
                name="other", placeholder=OTHER, value=b"another-value", rules=("else",), places=("header:x-key",)
            ),
        ),
        canary,
    )


def test_only_the_rules_that_it_is_bound_to_give_a_credential() -> None:
    held = credentials("header:X-Key")
    assert [each.name for each in held.bound(["api"])] == ["key"]
    assert [each.name for each in held.bound(["else", "api"])] == ["key", "other"]
    assert held.bound(["apis"]) == ()
    held.wipe()
    assert held.bound(["api"]) == ()


def test_each_place_is_filled() -> None:
    for places, path, query, headers, wanted in (
        (("header:X-Key",), "/", "", ((b"x-key", f"a {KEY}".encode()),), ("", b"a " + VALUE)),
        (("header:authorization",), "/", "", ((b"authorization", f"Bearer {KEY}".encode()),), ("", b"Bearer " + VALUE)),
        (("query:key",), "/p", f"?a=b&key={KEY}", (), ("?a=b&key=s3cret%2F%2Bvalue", None)),
        (("query:a b",), "/p", f"?a%20b=x{KEY}", (), ("?a%20b=xs3cret%2F%2Bvalue", None)),
    ):
        held = credentials(*places)
        filled = held.fill(held.bound(["api"]), path, query, headers)
        assert (filled.query, filled.headers[0][1] if filled.headers else None) == wanted
        assert filled.used == ("key",)
        assert VALUE in filled.shown


def test_basic_credentials_are_opened_and_closed_again() -> None:
    held = credentials("basic")
    said = b"Basic " + base64.b64encode(f"user:{KEY}".encode())
    filled = held.fill(held.bound(["api"]), "/", "", ((b"authorization", said),))
    scheme, coded = filled.headers[0][1].split(b" ")
    assert (scheme, base64.b64decode(coded)) == (b"Basic", b"user:" + VALUE)
    assert coded in filled.shown
    untouched = b"Basic " + base64.b64encode(b"user:password")
    assert held.fill((), "/", "", ((b"authorization", untouched),)).headers[0][1] == untouched
    for odd in (b"Basic !!!", b"Basic", b"Digest x"):
        assert held.fill((), "/", "", ((b"authorization", odd),)).headers[0][1] == odd


EVERYWHERE = ("header:X-Key", "query:key", "basic", "body")
LEAKS = {
    "path": (f"/a/{KEY}", "", (), "path"),
    "query of another key": ("/", f"?q={KEY}", (), "query"),
    "name in the query": ("/", f"?{KEY}=1", (), "query"),
    "encoded in the query": ("/", "?q=%72nr-" + "k" * 32, (), "query"),
    "another header": ("/", "", ((b"x-other", KEY.encode()),), "header x-other"),
    "name of a header": ("/", "", ((KEY.lower().encode(), b"x"),), "name of a header"),
    "user agent": ("/", "", ((b"user-agent", f"a/{KEY}".encode()),), "header user-agent"),
    "bearer where only basic may": ("/", "", ((b"authorization", f"Bearer {KEY}".encode()),), "header authorization"),
    "basic for a proxy": (
        *("/", "", ((b"proxy-authorization", b"Basic " + base64.b64encode(f"u:{KEY}".encode())),)),
        "basic credentials",
    ),
    "canary in the right place": ("/", "", ((b"x-key", CANARY.encode()),), "header x-key"),
    "another's in the right place": ("/", "", ((b"x-key", OTHER.encode()),), "header x-key"),
}


@pytest.mark.parametrize(("path", "query", "headers", "where"), LEAKS.values(), ids=LEAKS)
def test_anywhere_else_it_is_a_leak(
    path: str, query: str, headers: tuple[tuple[bytes, bytes], ...], where: str
) -> None:
    held = credentials(*EVERYWHERE)
    bound = held.bound(["api"])
    good = ((b"x-key", KEY.encode()),)
    assert held.fill(bound, "/", f"?key={KEY}", good).headers == [(b"x-key", VALUE)]
    with pytest.raises(Leak) as leak:
        held.fill(bound, path, query, headers)
    assert leak.value.where == where
    assert leak.value.name in {"key", "other", "canary"}


def test_towards_another_destination_every_place_is_a_leak() -> None:
    held = credentials(*EVERYWHERE)
    basic = b"Basic " + base64.b64encode(f"u:{KEY}".encode())
    for query, headers in ((f"?key={KEY}", ()), ("", ((b"x-key", KEY.encode()),)), ("", ((b"authorization", basic),))):
        with pytest.raises(Leak):
            held.fill((), "/", query, headers)
    with pytest.raises(Leak):
        held.body((), ()).feed(KEY.encode())


def test_a_value_that_cannot_stand_in_its_place_is_refused() -> None:
    held = credentials("header:x-key", "body", value=b"a\r\nx: y")
    with pytest.raises(Unfit):
        held.fill(held.bound(["api"]), "/", "", ((b"x-key", KEY.encode()),))
    with pytest.raises(Unfit):
        held.body(held.bound(["api"]), ((b"content-encoding", b"gzip"),))
    assert held.body(held.bound(["api"]), ((b"content-encoding", b"identity"),)).rewrites
    assert not credentials("header:x-key").body(held.bound(["api"])[:0], ((b"content-encoding", b"gzip"),)).rewrites


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (b"application/x-www-form-urlencoded; charset=utf-8", b"a+b&c=d %", b"a%2Bb%26c%3Dd%20%25"),
        (b"application/json", b'a"b\\c\n', b'a\\"b\\\\c\\n'),
        (b"Application/Vnd.X+JSON", b'"', b'\\"'),
        (b"text/plain", b'a+"\n', b'a+"\n'),
        (b"", b"\xff", b"\xff"),
    ],
)
def test_a_value_is_written_as_the_body_writes_texts(kind: bytes, value: bytes, wanted: bytes) -> None:
    held = credentials("body", value=value)
    filter_ = held.body(held.bound(["api"]), ((b"content-type", kind),))
    assert filter_.feed(b"x=" + KEY.encode() + b"&") + filter_.finish() == b"x=" + wanted + b"&"
    assert {value, wanted} == set(filter_.values)


def test_a_value_that_is_no_text_cannot_stand_in_json() -> None:
    held = credentials("body", value=b"\xff")
    with pytest.raises(Unfit):
        held.body(held.bound(["api"]), ((b"content-type", b"application/json"),))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def feed(filter_: Filter, parts: list[bytes], out: bytearray) -> None:
    """Every piece, and what comes out of it, until one is refused."""
    for part in parts:
        out += filter_.feed(part)
    out += filter_.finish()


def look(watch: Watch, parts: list[bytes]) -> None:
    """Every piece, until one is refused."""
    for part in parts:
        watch.look(bytearray(part) + b"beyond the size", len(part))


@given(st.lists(st.integers(0, 400), max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_a_body_is_filled_however_it_is_cut(cuts: list[int], before: bytes, after: bytes) -> None:
    held = credentials("body")
    data = before + KEY.encode() + b"rnr-" + after + KEY.encode() + KEY.encode()[:20]
    filter_, out = held.body(held.bound(["api"]), ()), bytearray()
    feed(filter_, pieces(data, cuts), out)
    assert out == before + VALUE + b"rnr-" + after + VALUE + KEY.encode()[:20]
    assert filter_.used == {"key"}


@given(st.lists(st.integers(0, 200), max_size=40), st.binary(max_size=60), st.sampled_from([KEY, OTHER, CANARY]))
def test_nothing_of_a_placeholder_gets_out_of_a_body(cuts: list[int], before: bytes, needle: str) -> None:
    filter_, out = credentials("header:x-key").body((), ()), bytearray()
    with pytest.raises(Leak):
        feed(filter_, pieces(before + needle.encode() + b"after", cuts), out)
    assert before.startswith(bytes(out))


@given(st.lists(st.integers(0, 200), max_size=40), st.binary(max_size=60))
def test_a_stream_that_is_not_held_up_is_seen_through(cuts: list[int], before: bytes) -> None:
    parts = pieces(before + KEY.encode() + b"after", cuts)
    with pytest.raises(Leak):
        look(Watch(Needles([(KEY.encode(), "key"), (b"short", "short")]), "tunnel"), parts)
    look(Watch(Needles([(KEY.encode(), "key")]), "tunnel"), [part.replace(b"k", b"j") for part in parts])


def test_nothing_to_look_for_finds_nothing() -> None:
    nothing = Credentials((), "")
    assert not nothing.needles
    Watch(nothing.needles, "x").look(b"rnr-", 4)
    assert nothing.body((), ()).feed(b"") == b""
    assert nothing.fill((), "/rnr-", "?rnr-", ((b"a", b"rnr-"),)).used == ()


def test_an_injection_never_shows_its_value() -> None:
    made = Injection(name="key", placeholder=KEY, value=VALUE, rules=(), places=())
    assert "s3cret" not in repr(made)
