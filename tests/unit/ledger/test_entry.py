"""Entries have one spelling, equal to RFC 8785, and a reader refuses what it does not know."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.ledger import entry as entries

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
INTS = st.integers(-(2**53) + 1, 2**53 - 1)
ASCII = st.text(alphabet="abz_09", min_size=1)
CONTENT = st.builds(entries.Content, digest=TEXT, size=INTS)
STREAM = st.builds(entries.Stream, digest=TEXT, size=INTS, delivered=INTS)
WHO = st.builds(entries.Who, agent=TEXT, owner=TEXT, task=TEXT, session=TEXT, asserted=st.tuples(TEXT, TEXT))
CALLS = st.builds(
    entries.Call,
    time=TEXT,
    call=TEXT,
    who=WHO,
    peer=st.builds(entries.PeerProcess, uid=INTS, pid=INTS, start=INTS, executable=TEXT, problem=TEXT),
    authority=st.none() | CONTENT,
    delegation=st.just(())
    | st.tuples(st.builds(entries.Delegated, token=TEXT, digest=TEXT, issued=INTS, expires=INTS)),
    context=st.none() | st.builds(entries.Context, calls=INTS, tools=st.just(()) | st.tuples(TEXT)),
    chain=st.tuples(TEXT),
    leaf=TEXT,
    proof=TEXT,
    tool=TEXT,
    arguments=st.none() | CONTENT,
    decision=st.builds(entries.Decided, effect=TEXT, reason=TEXT, rules=st.tuples(TEXT)),
    intent=TEXT,
    detach=st.booleans(),
    traceparent=TEXT,
)
OUTCOMES = st.builds(
    entries.Outcome,
    time=TEXT,
    call=TEXT,
    task=TEXT,
    outcome=TEXT,
    exit_code=st.none() | INTS,
    signal=st.none() | INTS,
    reason=TEXT,
    used=st.none() | st.builds(entries.Used, wall_us=INTS, source=TEXT, sources=st.dictionaries(ASCII, TEXT)),
    stdout=st.none() | STREAM,
    result=st.none() | CONTENT,
    walls=st.tuples(TEXT),
)
REFUSALS = st.builds(entries.Refusals, time=TEXT, uid=INTS, code=TEXT, detail=TEXT, count=INTS)


OF = st.builds(entries.Criteria, before=TEXT, larger=INTS, tasks=st.just(()) | st.tuples(TEXT))
PRUNES = st.builds(entries.Prune, time=TEXT, of=OF, pruned=CONTENT, pieces=INTS, size=INTS, why=TEXT, by=INTS)


@given(CALLS | OUTCOMES | REFUSALS | PRUNES)
def test_the_encoding_is_rfc_8785(entry: entries.AnyEntry) -> None:
    data = entries.encode(entry)
    assert data == rfc8785.dumps(json.loads(data))
    assert entries.decode(data) == entry
    assert b"\n" not in data


def _sample(**changes: Any) -> bytes:
    fields = {"count": 1, "code": "c", "detail": "d", "kind": "refusals", "time": "t", "uid": 0, "v": 1} | changes
    return rfc8785.dumps({name: value for name, value in fields.items() if value is not None})


def test_the_sample_is_an_entry() -> None:
    assert entries.decode(_sample()) == entries.Refusals(time="t", uid=0, code="c", detail="d", count=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_sample(v=2), "version 2"),
        (_sample(v=2, novelty="x"), "version 2"),
        (_sample(v=0), "version 0"),
        (_sample(v=None), "canonical"),
        (_sample(kind="novelty"), "knows"),
        (_sample(novelty="x"), "knows"),
        (_sample(kind="novelty", v=3), "version 3"),
        (_sample(detail=None), "knows"),
        (_sample(count="1"), "knows"),
        (_sample().replace(b'"uid":0', b'"uid":9007199254740992'), "knows"),
        (_sample().replace(b'"uid":0', b'"uid":0.5'), "knows"),
        (_sample().replace(b'"uid":0', b'"uid":NaN'), "not an entry"),
        (_sample().replace(b'"uid":0', b'"uid":-0'), "canonical"),
        (_sample().replace(b'"uid":0', b'"uid": 0'), "canonical"),
        (_sample().replace(b'"uid":0', b'"uid":0,"uid":0'), "canonical"),
        (_sample().replace(b'"d"', b'"\\u0064"'), "canonical"),
        (_sample().replace(b'"d"', b'"\\ud800"'), ""),
        (_sample().replace(b'"d"', b'"\xff"'), ""),
        (_sample() + b"\n", "canonical"),
        (b"", "not an entry"),
        (b"[]", "not an entry"),
        (b"[" * 60_000, "not an entry"),
        (b'{"a":' * 10_000, "not an entry"),
        (b" " * 70_000, "longer"),
    ],
)
def test_anything_else_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RunnerError) as caught:
        entries.decode(data)
    assert caught.value.refused.code == "ledger"
    assert reason in caught.value.refused.reason


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(RunnerError, match="Unicode"):
        entries.encode(entries.Refusals(time="t", uid=0, code="c", detail="\ud800", count=1))


def test_an_entry_longer_than_a_bundle_takes_is_refused() -> None:
    fits = entries.Refusals(time="t", uid=0, code="c", detail="x" * 60_000, count=1)
    assert entries.decode(entries.encode(fits)) == fits
    with pytest.raises(RunnerError, match="longer"):
        entries.encode(msgspec.structs.replace(fits, detail="x" * 66_000))


@given(st.binary(max_size=200))
def test_no_bytes_make_it_crash(data: bytes) -> None:
    with pytest.raises(RunnerError):
        entries.decode(data)


def test_every_kind_is_in_the_union() -> None:
    kinds = {kind for kind in vars(entries).values() if isinstance(kind, type) and issubclass(kind, entries.Entry)}
    assert kinds - {entries.Entry} == set(entries.AnyEntry.__args__)
