"""The journal: what comes back, what a torn end is, and what is damage."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.ledger import tail as tails
from runner.ledger.note import Checkpoint, Signer
from runner.ledger.sequence import State

SIGNER = Signer("toolrunner/x", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
HEAD = tails.Head(512, 513, b"r" * 32, State(life="running", newest="é\n", open={"c": (500, "t\n")}))


def note(size: int) -> bytes:
    return SIGNER.sign(Checkpoint(SIGNER.verifier.name, size, b"r" * 32).text())


WHOLE = tails.build(tails.sign_head(HEAD, SIGNER), [(b"{a}", (b"of a",))], note(513)) + tails.group(
    [(b"{b}", ()), (b"{c}", (b"of c", b"of c too"))], note(515)
)


def read(data: bytes) -> tails.Tail:
    return tails.read_tail(data, SIGNER.verifier)


def test_it_comes_back() -> None:
    tail = read(WHOLE)
    assert tail.head == HEAD
    assert tail.entries == [b"{a}", b"{b}", b"{c}"]
    assert not tail.torn
    assert tail.signed == 3
    assert len(tail.records) == 8
    assert list(tails.contents(WHOLE)) == [b"of a", b"of c", b"of c too"]


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
        # Content whose entry was cut off goes with it.
        assert not tail.records or tail.records[-1].kind != tails.CONTENT
        assert len(list(tails.contents(WHOLE[:cut]))) <= 3


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


@pytest.mark.parametrize(
    "hostile",
    [
        tails.group([(b"{x}", ())], note(513)) + tails.record(tails.ENTRY, b"{y}"),  # a checkpoint that was public
        tails.group([], b"note") + tails.record(tails.ENTRY, b"{y}"),
        tails.record(tails.HEAD, tails.sign_head(HEAD, SIGNER)),
        bytes((tails.SIGNED, 0, 0, 15, 255)) * 500,
    ],
)
def test_content_that_looks_like_records_is_content_and_no_proof_of_damage(hostile: bytes) -> None:
    data = WHOLE + tails.group([(b"{d}", (hostile,)), (b"{e}", ())], note(517))
    assert read(data).entries[-2:] == [b"{d}", b"{e}"]
    assert list(tails.contents(data))[-1] == hostile
    for bent in (data.rindex(hostile), data.rindex(hostile) - 9):  # in a group that nobody was told of
        torn = bytearray(data)
        torn[bent] ^= 0x80
        tail = read(bytes(torn))
        assert tail.torn
        assert tail.entries == [b"{a}", b"{b}", b"{c}"]
    # The positive control: the same damage with a group behind it was acknowledged once.
    with pytest.raises(RunnerError, match="acknowledged entries are damaged"):
        read(bytes(torn) + tails.group([(b"{f}", ())], note(518)))


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
