"""Proofs as text: what comes back, and that no other spelling does."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import RunnerError
from runner.ledger import merkle, proof
from runner.ledger.note import Checkpoint, Signer, read_checkpoint

SIGNER = Signer("toolrunner/x", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
ENTRIES = [f"entry {number}".encode() for number in range(9)]
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]


def subtree(low: int, high: int) -> bytes:
    return merkle.root_of(LEAVES[low:high])


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint("toolrunner/x", size, subtree(0, size))


def inclusion(position: int, size: int = 9) -> proof.Inclusion:
    hashes = tuple(merkle.inclusion_proof(position, size, subtree))
    return proof.Inclusion(position, ENTRIES[position], hashes, SIGNER.sign(checkpoint(size).text()))


def consistency(old: int, size: int = 9) -> proof.Consistency:
    hashes = tuple(merkle.consistency_proof(old, size, subtree))
    return proof.Consistency(old, hashes, SIGNER.sign(checkpoint(size).text()))


def test_the_form_of_inclusion_is_the_specifications() -> None:
    """https://c2sp.org/tlog-proof: header, extra, index, hashes from the leaf up, an empty line, the checkpoint."""
    made = inclusion(5)
    lines = made.text().decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == "extra " + base64.b64encode(b"entry 5").decode()
    assert lines[2] == "index 5"
    assert lines[3] == base64.b64encode(LEAVES[4]).decode()
    assert lines.index("") == 3 + len(made.hashes)
    assert made.text().endswith(made.note)


def test_the_form_of_consistency_is_the_specifications() -> None:
    """https://c2sp.org/tlog-witness, add-checkpoint: old, hashes, an empty line, the checkpoint."""
    made = consistency(6)
    lines = made.text().decode().split("\n")
    assert lines[0] == "old 6"
    assert lines[1 : 1 + len(made.hashes)] == [base64.b64encode(hashed).decode() for hashed in made.hashes]
    assert made.text().endswith(b"\n\n" + made.note)


@pytest.mark.parametrize("position", range(9))
def test_inclusion_comes_back_and_holds_for_its_checkpoint_alone(position: int) -> None:
    made = inclusion(position)
    assert proof.kind_of(made.text()) is proof.Inclusion
    found = proof.read_inclusion(made.text())
    assert found == made
    assert found.holds(read_checkpoint(found.note, SIGNER.verifier))
    assert not found.holds(checkpoint(8))
    assert not found._replace(entry=b"entry x").holds(checkpoint(9))
    assert not found._replace(position=(position + 1) % 9).holds(checkpoint(9))


@pytest.mark.parametrize("old", range(10))
def test_consistency_comes_back_and_holds_for_its_checkpoints_alone(old: int) -> None:
    made = consistency(old)
    assert proof.kind_of(made.text()) is proof.Consistency
    found = proof.read_consistency(made.text())
    assert found == made
    assert found.holds(checkpoint(old), checkpoint(9))
    assert not found.holds(checkpoint(old)._replace(root=b"x" * 32), checkpoint(9))
    assert not found.holds(checkpoint(old)._replace(origin="toolrunner/y"), checkpoint(9))
    assert not found.holds(checkpoint((old + 1) % 10), checkpoint(9))


def judged(data: bytes) -> bool:
    """Whether some text still proves what `inclusion` or `consistency` made."""
    try:
        if proof.kind_of(data) is proof.Inclusion:
            found = proof.read_inclusion(data)
            return found.holds(read_checkpoint(found.note, SIGNER.verifier))
        after = proof.read_consistency(data)
        return after.holds(checkpoint(6), read_checkpoint(after.note, SIGNER.verifier))
    except RunnerError:
        return False


@pytest.mark.parametrize("whole", [inclusion(5).text(), consistency(6).text()], ids=["inclusion", "consistency"])
def test_every_flipped_bit_and_every_cut_is_refused(whole: bytes) -> None:
    assert judged(whole)
    for place in range(len(whole)):
        for bit in range(8):
            bent = bytearray(whole)
            bent[place] ^= 1 << bit
            assert not judged(bytes(bent)), (place, bit)
        assert not judged(whole[:place])
    assert not judged(whole + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("index 5", "index 05"),
        lambda text: text.replace("index 5", "index +5"),
        lambda text: text.replace("index 5", "index ٥"),
        lambda text: text.replace("index 5", "index " + "9" * 400),
        lambda text: text.replace("index 5", "index 5\n" + "A" * 43 + "="),
        lambda text: text.replace("index 5", "index 5\n" + ("A" * 43 + "=\n") * 64),
        lambda text: text.replace("extra ", "extra  "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("@v1", "@v2"),
        lambda text: "\n".join(line for line in text.split("\n") if not line.startswith("extra")),
        lambda text: text + "x" * proof.MAX_PROOF,
        lambda text: "",
    ],
)
def test_other_spellings_are_refused(change: object) -> None:
    text = inclusion(5).text().decode()
    assert not judged(change(text).encode())  # type: ignore[operator]  # a function of text


HASH = base64.b64encode(b"h" * 32).decode()
START = "c2sp.org/tlog-proof@v1\nextra AAAA\nindex 5"


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (proof.read_inclusion, "extra AAAA\nindex 5\nx\n\nn", "does not begin as"),
        (proof.read_inclusion, "c2sp.org/tlog-proof@v1\nextra AAAA\n\nn", "does not begin as"),
        (proof.read_inclusion, "c2sp.org/tlog-proof@v1\nAAAA\nindex 5\n\nn", "needs an extra line"),
        (proof.read_inclusion, "c2sp.org/tlog-proof@v1\nextra AAAA\n5\n\nn", "needs an extra line"),
        (proof.read_inclusion, START, "an empty line"),
        (proof.read_inclusion, START + "\nAAAA\n\nn", "hashes of 32 bytes"),
        (proof.read_inclusion, START + f"\n{HASH}" * 64 + "\n\nn", "at most 63"),
        (proof.read_inclusion, START + "\n\n" + "n" * proof.MAX_PROOF, "longer than"),
        (proof.read_consistency, "5\n\nn", "does not begin as"),
        (proof.read_consistency, "\n\nn", "does not begin as"),
        (proof.read_consistency, "old 05\n\nn", "not a number"),
        (proof.read_consistency, "old 5", "an empty line"),
        (proof.read_consistency, "old 5\nAAAA\n\nn", "hashes of 32 bytes"),
        (proof.read_consistency, "old 5" + f"\n{HASH}" * 64 + "\n\nn", "at most 63"),
        (proof.read_consistency, "old 5\n\n" + "n" * proof.MAX_PROOF, "longer than"),
    ],
)
def test_each_rule_of_the_form_has_its_refusal(read: Callable[[bytes], object], text: str, reason: str) -> None:
    with pytest.raises(RunnerError, match=reason):
        read(text.encode())


def test_the_longest_forms_are_read() -> None:
    """The twins of the bounds above."""
    assert len(proof.read_inclusion((START + f"\n{HASH}" * 63 + "\n\nn").encode()).hashes) == 63
    assert len(proof.read_consistency(("old 5" + f"\n{HASH}" * 63 + "\n\nn").encode()).hashes) == 63
    assert proof.read_inclusion((START + "\n\n" + "n" * (proof.MAX_PROOF - len(START) - 2)).encode()).position == 5
