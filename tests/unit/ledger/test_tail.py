"""The journal: what comes back, what a torn end is, and what is damage."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.ledger import tail as tails
from runner.ledger.note import Signer
from runner.ledger.sequence import State

SIGNER = Signer("toolrunner/x", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
HEAD = tails.Head(512, 513, b"r" * 32, State(life="running", newest="é\n", open={"c": (500, "t\n")}))


def group(*entries: bytes) -> bytes:
    return b"".join(tails.record(tails.ENTRY, data) for data in entries) + tails.record(tails.SIGNED, b"note")


WHOLE = tails.build(tails.sign_head(HEAD, SIGNER), [b"{a}"], b"note") + group(b"{b}", b"{c}")


def read(data: bytes) -> tails.Tail:
    return tails.read_tail(data, SIGNER.verifier)


def test_it_comes_back() -> None:
    tail = read(WHOLE)
    assert tail.head == HEAD
    assert tail.entries == [b"{a}", b"{b}", b"{c}"]
    assert not tail.torn
    assert len(tail.records) == 5


def test_every_cut_leaves_whole_records() -> None:
    head_end = len(tails.record(tails.HEAD, tails.sign_head(HEAD, SIGNER)))
    for cut in range(len(WHOLE)):
        if cut < head_end:
            with pytest.raises(RunnerError, match="first record"):
                read(WHOLE[:cut])
            continue
        tail = read(WHOLE[:cut])
        assert WHOLE.startswith(WHOLE[: tail.end])
        assert tail.torn == (tail.end < cut)
        assert [record.data for record in tail.records] == [
            record.data for record in read(WHOLE).records[: len(tail.records)]
        ]


def test_damage_in_the_last_group_is_a_torn_end() -> None:
    bent = bytearray(WHOLE)
    bent[WHOLE.index(b"{b}")] ^= 1
    tail = read(bytes(bent))
    assert tail.torn
    assert tail.entries == [b"{a}"]


def test_damage_before_another_group_was_acknowledged_once() -> None:
    for place in range(WHOLE.index(b"{a}") - 9, WHOLE.index(b"{a}") + 3):
        bent = bytearray(WHOLE)
        bent[place] ^= 1
        with pytest.raises(RunnerError, match="acknowledged entries are damaged"):
            read(bytes(bent))


def test_a_second_head_is_no_record() -> None:
    assert read(WHOLE + tails.record(tails.HEAD, tails.sign_head(HEAD, SIGNER))).torn


@pytest.mark.parametrize(
    "text",
    [
        "toolrunner/x\n512 513\n00\n{}\n",
        "toolrunner/x/tail\n512\n00\n{}\n",
        "toolrunner/x/tail\n511 513\n00\n{}\n",
        "toolrunner/x/tail\n512 511\n00\n{}\n",
        "toolrunner/x/tail\n512 513\nzz\n{}\n",
        "toolrunner/x/tail\n512 513\n00\n[]\n",
        'toolrunner/x/tail\n512 513\n00\n{"more":1}\n',
        "toolrunner/x/tail\n512 513\n00\n",
    ],
)
def test_a_signed_head_that_is_none(text: str) -> None:
    with pytest.raises(RunnerError):
        tails.read_head(SIGNER.sign(text), SIGNER.verifier)


def test_a_head_of_another_key_or_log() -> None:
    other = Signer("toolrunner/y", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
    with pytest.raises(RunnerError, match="not signed by"):
        tails.read_head(tails.sign_head(HEAD, other), SIGNER.verifier)
