"""Segments say what they hold, and whatever was done to them since is found when they are opened."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyrage
import pytest

from runner.errors import RunnerError
from runner.ledger.escrow import (
    MAX_SEGMENT,
    Head,
    Identities,
    Recipients,
    Stream,
    fingerprint,
    new_identity,
    split,
)

SECRET, PUBLIC = new_identity()
OTHER_SECRET, OTHER_PUBLIC = new_identity()
KEYS = Recipients((PUBLIC,))


def kept(call: str = "c1", *parts: list[tuple[Stream, bytes]], keys: Recipients = KEYS) -> list[bytes]:
    """Segments of these pieces, one for each list of them."""
    starts: dict[Stream, int] = {}
    made = []
    for number, part in enumerate(parts):
        pieces = tuple((name, len(data)) for name, data in part)
        head = Head(call=call, number=number, starts=dict(starts), pieces=pieces)
        made.append(keys.seal(head, b"".join(data for _, data in part)))
        for name, count in pieces:
            starts[name] = starts.get(name, 0) + count
    return made


WHOLE = kept(
    "c1", [("stdout", b"ab"), ("stderr", b"\0\xff"), ("stdout", b"c\n")], [("stderr", b"d"), ("result", b"{}")]
)


def opened(content: bytes, call: str = "c1", secret: str = SECRET) -> list[tuple[Stream, bytes]]:
    return list(Identities(secret).open([content], call))


def refusal(content: bytes, call: str = "c1", secret: str = SECRET) -> tuple[str, str]:
    with pytest.raises(RunnerError) as caught:
        opened(content, call, secret)
    return caught.value.refused.code, caught.value.refused.reason


def test_what_was_sealed_is_opened_byte_by_byte_in_its_order() -> None:
    pieces = [("stdout", b"ab"), ("stderr", b"\0\xff"), ("stdout", b"c\n"), ("stderr", b"d"), ("result", b"{}")]
    assert opened(b"".join(WHOLE)) == pieces
    cut = [b"".join(WHOLE)[at : at + 1] for at in range(len(b"".join(WHOLE)))]
    assert list(Identities(SECRET).open(cut, "c1")) == pieces
    assert opened(b"") == []


def test_any_of_the_recipients_opens_it_and_nobody_else() -> None:
    both = b"".join(kept("c1", [("stdout", b"x")], keys=Recipients((PUBLIC, OTHER_PUBLIC))))
    assert opened(both) == opened(both, secret=OTHER_SECRET) == [("stdout", b"x")]
    assert opened(b"".join(WHOLE), secret=f"# a comment\n\n{OTHER_SECRET}\n{SECRET}\n")
    code, reason = refusal(b"".join(WHOLE), secret=OTHER_SECRET)
    assert (code, reason) == ("key", "this identity opens none of it")


def test_a_segment_is_an_age_file_that_other_programs_open() -> None:
    (first, _) = split([b"".join(WHOLE)])
    line, _, data = pyrage.decrypt(first, [pyrage.x25519.Identity.from_str(SECRET)]).partition(b"\n")
    assert json.loads(line) == {
        "v": 1, "call": "c1", "number": 0, "starts": {}, "pieces": [["stdout", 2], ["stderr", 2], ["stdout", 2]],
    }  # fmt: skip
    assert data == b"ab\0\xffc\n"


THIRD = kept("c1", *[[("stdout", b"ab")]] * 3)
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "of another call": (lambda: b"".join(kept("c2", [("stdout", b"ab")])), "it is of call c2"),
    "changed places": (lambda: THIRD[1] + THIRD[0] + THIRD[2], "it is segment 1, of another place"),
    "the first left out": (lambda: THIRD[1] + THIRD[2], "it is segment 1, of another place"),
    "one in the middle left out": (lambda: THIRD[0] + THIRD[2], "it is segment 2, of another place"),
    "twice": (lambda: THIRD[0] + THIRD[0], "it is segment 0, of another place"),
    "another place": (lambda: WHOLE[0] + THIRD[1], "it is segment 1, of another place"),
    "cut": (lambda: WHOLE[0] + WHOLE[1][:-1], "it is cut"),
    "cut in a length": (lambda: WHOLE[0] + WHOLE[1][:3], "it is cut"),
    "one bit": (lambda: WHOLE[0][:-1] + bytes([WHOLE[0][-1] ^ 1]), "it is damaged"),
    "no age": (lambda: b"\0\0\0\4abcd", "it is damaged"),
    "a length of nothing": (lambda: b"\0\0\0\0", "it is no segment"),
    "too long": (lambda: (MAX_SEGMENT + 1).to_bytes(4, "big"), "it is no segment"),
    "no head": (lambda: sealed(b"hello"), "it does not say what it holds"),
    "another count": (
        lambda: sealed(b'{"call":"c1","number":0,"pieces":[["stdout",3]],"starts":{},"v":1}\nab'),
        "it is segment 0, of another place",
    ),
    "more in the head": (
        lambda: sealed(b'{"call":"c1","number":0,"pieces":[],"starts":{},"v":1,"x":1}\n'),
        "it does not say what it holds",
    ),
}


def sealed(data: bytes) -> bytes:
    made: bytes = pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(PUBLIC)])
    return len(made).to_bytes(4, "big") + made


@pytest.mark.parametrize("how", sorted(DAMAGED))
def test_what_is_not_as_it_was_is_found(how: str) -> None:
    make, reason = DAMAGED[how]
    assert refusal(make()) == ("ledger", f"what is kept is not what the tool wrote: {reason}")


def test_the_last_segment_is_missed_by_the_digest_alone() -> None:
    """A cut at a segment's end opens: what finds it is the digest in the signed outcome, which the reader compares."""
    assert opened(WHOLE[0])


@pytest.mark.parametrize("how", ["none", "twice", "misspelt", "short", "nine", "private"])
def test_recipients_that_cannot_be_are_refused(how: str) -> None:
    texts = {
        "none": (),
        "twice": (PUBLIC, PUBLIC),
        "misspelt": (PUBLIC[:-1] + ("q" if PUBLIC[-1] != "q" else "p"),),
        "short": ("age1x",),
        "nine": tuple(new_identity()[1] for _ in range(9)),
        "private": (SECRET,),
    }[how]
    with pytest.raises(RunnerError) as caught:
        Recipients(texts)
    assert (caught.value.refused.code, caught.value.refused.field) == ("config", "escrow.recipients")
    assert SECRET[16:40] not in str(caught.value)


@pytest.mark.parametrize("how", ["empty", "comment", "public", "short", "more", "checksum"])
def test_files_that_are_no_identity_are_refused(how: str) -> None:
    text = {
        "empty": "",
        "comment": "# only a comment\n",
        "public": PUBLIC,
        "short": SECRET[:-1],
        "more": f"{SECRET}\nx",
        "checksum": "AGE-SECRET-KEY-1" + "Q" * 58,
    }[how]
    with pytest.raises(RunnerError) as caught:
        Identities(text)
    assert caught.value.refused.code == "key"
    assert SECRET[16:60] not in str(caught.value)


def test_fingerprints_name_the_keys() -> None:
    assert KEYS.fingerprints == Identities(SECRET).fingerprints == (fingerprint(PUBLIC),)
    assert fingerprint(PUBLIC) != fingerprint(OTHER_PUBLIC)
