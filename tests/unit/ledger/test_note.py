"""Signed notes and checkpoints: the reference implementation's note byte for byte, and no second spelling."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.ledger.note import Checkpoint, Signer, Verifier, open_note, read_checkpoint

VECTOR = json.loads((Path(__file__).parents[2] / "vectors/ledger.json").read_text())["note"]
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SIGNER = Signer("toolrunner/x", KEY)
HEAD = Checkpoint("toolrunner/x", 20, b"r" * 32)


def test_the_reference_implementations_note() -> None:
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(VECTOR["seed"])[1:])
    signer = Signer("PeterNeumann", private)
    note = (VECTOR["text"] + "\n" + VECTOR["signature"]).encode()
    assert signer.verifier.text == VECTOR["verifier"]
    assert signer.sign(VECTOR["text"]) == note
    assert open_note(note, Verifier.parse(VECTOR["verifier"])) == VECTOR["text"]


def test_a_checkpoint_comes_back() -> None:
    assert read_checkpoint(SIGNER.sign(HEAD.text()), SIGNER.verifier) == HEAD
    empty = Checkpoint("toolrunner/x", 0, b"r" * 32)
    assert read_checkpoint(SIGNER.sign(empty.text()), SIGNER.verifier) == empty


def test_every_flipped_bit_and_every_cut_is_refused() -> None:
    note = SIGNER.sign(HEAD.text())
    for place in range(len(note)):
        for bit in range(8):
            bent = bytearray(note)
            bent[place] ^= 1 << bit
            with pytest.raises(RunnerError):
                read_checkpoint(bytes(bent), SIGNER.verifier)
        with pytest.raises(RunnerError):
            read_checkpoint(note[:place], SIGNER.verifier)


def test_signatures_of_others_are_ignored_but_must_be_well_formed() -> None:
    witness = Signer("witness.example/w", Ed25519PrivateKey.from_private_bytes(b"w" * 32))
    note = SIGNER.sign(HEAD.text())
    cosigned = note + witness.sign(HEAD.text()).split(b"\n\n")[1]
    assert read_checkpoint(cosigned, SIGNER.verifier) == HEAD
    assert read_checkpoint(cosigned, SIGNER.verifier) == HEAD
    with pytest.raises(RunnerError, match="malformed"):
        read_checkpoint(note + b"noise\n", SIGNER.verifier)


@pytest.mark.parametrize(
    "other",
    [
        Signer("toolrunner/x", Ed25519PrivateKey.from_private_bytes(b"o" * 32)),
        Signer("toolrunner/y", KEY),
    ],
    ids=["other key", "other name"],
)
def test_other_keys_do_not_verify(other: Signer) -> None:
    with pytest.raises(RunnerError, match="not signed by"):
        read_checkpoint(other.sign(HEAD.text()), SIGNER.verifier)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("toolrunner/y\n20\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n", "another log"),
        ("toolrunner/x\n020\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n", "number"),
        ("toolrunner/x\n-1\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n", "number"),
        ("toolrunner/x\n٢\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n", "number"),
        (f"toolrunner/x\n{'9' * 5000}\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n", "number"),
        ("toolrunner/x\n20\ncnJy\n", "32 bytes"),
        ("toolrunner/x\n20\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnJ=\n", "base64"),
        ("toolrunner/x\n20\n!\n", "base64"),
        ("toolrunner/x\n20\n", "three lines"),
        ("toolrunner/x\n20\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\nextension\n", "three lines"),
    ],
)
def test_signed_nonsense_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RunnerError, match=reason):
        read_checkpoint(SIGNER.sign(text), SIGNER.verifier)


def test_a_note_holds_no_control_characters() -> None:
    with pytest.raises(RunnerError, match="control"):
        open_note(SIGNER.sign("a\tb\n"), SIGNER.verifier)


def test_every_change_of_a_verifier_key_is_refused() -> None:
    text = SIGNER.verifier.text
    assert Verifier.parse(f"{text}\n").text == text
    for place in range(len(text)):
        bent = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        with pytest.raises(RunnerError) as caught:
            Verifier.parse(bent)
        assert caught.value.refused.code == "key"
    for bad in ("", "+", "a+b", "a+00000000+AA==", text + "+"):
        with pytest.raises(RunnerError):
            Verifier.parse(bad)


@pytest.mark.parametrize("name", ["", "a+b", "a b", "a\u00a0b", "a\u2028b", "a\nb", "a\x00b"])
def test_names_that_no_key_has(name: str) -> None:
    with pytest.raises(RunnerError, match="cannot name a key"):
        Verifier(name, b"k" * 32)
    note = SIGNER.sign(HEAD.text()) + f"— {name} AAAAAAAAAAA=\n".encode()
    with pytest.raises(RunnerError, match=r"malformed|base64|control|too short"):
        open_note(note, SIGNER.verifier)


def test_keys_of_another_algorithm_or_length() -> None:
    public = KEY.public_key().public_bytes_raw()
    for data in (b"\x02" + public, b"\x01" + public[:-1], b"\x01" + public + b"k"):
        hashed = sha256(b"toolrunner/x\n" + data).digest()[:4].hex()
        with pytest.raises(RunnerError, match="not an Ed25519"):
            Verifier.parse(f"toolrunner/x+{hashed}+{base64.b64encode(data).decode()}")


def test_a_line_of_the_same_name_and_id_must_verify() -> None:
    """As a key whose id collides would sign: nobody's signature stands in for another's, and none is skipped."""
    note = SIGNER.sign(HEAD.text())
    short = base64.b64encode(SIGNER.verifier.id).decode()
    forged = base64.b64encode(SIGNER.verifier.id + b"s" * 64).decode()
    for line, reason in ((forged, "does not verify"), (short, "too short")):
        for wrong in (note + f"— toolrunner/x {line}\n".encode(), f"{HEAD.text()}\n— toolrunner/x {line}\n".encode()):
            with pytest.raises(RunnerError, match=reason):
                read_checkpoint(wrong, SIGNER.verifier)
    other = note + f"— toolrunner/y {forged}\n".encode()
    assert read_checkpoint(other, SIGNER.verifier) == HEAD


def test_a_checkpoint_has_a_bound() -> None:
    others = b"".join(b"\xe2\x80\x94 witness/%d AAAAAAAA\n" % number for number in range(3000))
    with pytest.raises(RunnerError, match="bytes"):
        read_checkpoint(SIGNER.sign(HEAD.text()) + others, SIGNER.verifier)
    assert (
        read_checkpoint(SIGNER.sign(HEAD.text()) + others[: others.index(b"witness/99 ") - 4], SIGNER.verifier) == HEAD
    )


def test_the_signers_repr_shows_no_key() -> None:
    assert base64.b64encode(b"k" * 32).decode() not in repr(SIGNER)
    assert "k" * 8 not in repr(vars(SIGNER))
