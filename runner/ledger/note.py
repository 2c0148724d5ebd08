"""Signed notes and checkpoints: C2SP signed-note with Ed25519 (type 0x01), C2SP tlog-checkpoint.

Reading is strict where the formats leave room (base64 with spare bits, sizes with leading zeros): a note that
parses has one spelling, so that a flipped bit is never a second one of the same meaning.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runner.errors import refuse
from runner.ledger.merkle import HASH

_ED25519 = b"\x01"  # signed-note's type byte
_DASH = "— "
MAX_CHECKPOINT = 64 << 10  # signed-note wants at least 16 signatures read; post-quantum ones are nearly 5 kB
MAX_SIZE_DIGITS = 16  # a ledger has fewer than 2^53 entries, so that its numbers fit canonical JSON


def read_base64(text: str, what: str) -> bytes:
    """Base64 in its one spelling. Raises `RunnerError` (ledger)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("ledger", f"{what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise refuse("ledger", f"{what} is not canonical base64")
    return data


def read_number(text: str, what: str) -> int:
    """A decimal in its one spelling. Raises `RunnerError` (ledger)."""
    number = text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")
    if not number or len(text) > MAX_SIZE_DIGITS:
        raise refuse("ledger", f"{what} is not a number")
    return int(text)


def _name_ok(name: str) -> bool:
    return bool(name) and "+" not in name and not any(char.isspace() or char < " " for char in name)


def key_id(name: str, public: bytes) -> bytes:
    """signed-note: SHA-256(name || 0x0A || 0x01 || public key)[:4]."""
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


class Verifier:
    """A public key with its name. `text` is its signed-note verifier key, `name+hash+key`."""

    def __init__(self, name: str, public: bytes) -> None:
        if not _name_ok(name):
            raise refuse("key", f"`{name}` cannot name a key: it is empty, or has a space or a plus")
        self.name = name
        self.id = key_id(name, public)
        self.text = f"{name}+{self.id.hex()}+{base64.b64encode(_ED25519 + public).decode()}"
        self._public = Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """A verifier from `name+hash+key`. Raises `RunnerError` (key)."""
        parts = text.strip().split("+", 2)
        wrong = "it is not a verifier key of the form name+hash+key"
        if len(parts) != 3:
            raise refuse("key", wrong, next_step="use the text of the ledger's key.pub")
        try:
            data = base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError):
            raise refuse("key", wrong, next_step="use the text of the ledger's key.pub") from None
        if len(data) != 33 or data[:1] != _ED25519:
            raise refuse("key", "it is not an Ed25519 verifier key", next_step="use the text of the ledger's key.pub")
        made = cls(parts[0], data[1:])
        if made.text != text.strip():
            raise refuse("key", "its hash does not fit its name and key", next_step="copy the key's text again, whole")
        return made

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Whether `signature` is this key's over `text`."""
        try:
            self._public.verify(signature, text)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A private key with its name. Its repr shows neither."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verifier = Verifier(name, private.public_key().public_bytes_raw())

    def sign(self, text: str) -> bytes:
        """A signed note of `text`, which ends in a newline."""
        return f"{text}\n{self.line(text)}".encode()

    def line(self, text: str) -> str:
        """The signature line of `text` alone, for a note that more than one key signs."""
        signature = self.verifier.id + self._private.sign(text.encode())
        return f"{_DASH}{self.verifier.name} {base64.b64encode(signature).decode()}\n"


class Handover(Signer):
    """Two keys that sign the same: at the one size that belongs to both, when the second follows the first."""

    def __init__(self, old: Signer, new: Signer) -> None:
        self._keys = (old, new)
        self.verifier = new.verifier

    def line(self, text: str) -> str:
        """Both signature lines, the older key's first."""
        return "".join(key.line(text) for key in self._keys)


def open_note(note: bytes, verifier: Verifier) -> str:
    """The text of a note that `verifier`'s key signed. Raises `RunnerError` (ledger) for anything else.

    Signatures of other keys are ignored, as signed-note demands (witnesses may add theirs)."""
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError:
        raise refuse("ledger", "a signed note is not UTF-8") from None
    if any(char < " " and char != "\n" for char in whole):
        raise refuse("ledger", "a signed note holds a control character")
    cut = whole.rfind("\n\n")
    if cut < 0 or not whole.endswith("\n"):
        raise refuse("ledger", "a signed note has no signature")
    text, signatures = whole[: cut + 1], whole[cut + 2 :]
    signed = False
    for line in signatures[:-1].split("\n"):
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not _name_ok(name):
            raise refuse("ledger", "a signed note has a malformed signature line")
        data = read_base64(encoded, "a note's signature")
        if len(data) < 5:
            raise refuse("ledger", "a note's signature is too short")
        if name != verifier.name or data[:4] != verifier.id:
            continue
        if not verifier.verifies(data[4:], text.encode()):
            raise refuse("ledger", f"the signature of {name} does not verify")
        signed = True
    if not signed:
        raise refuse(
            "ledger",
            f"not signed by {verifier.name}+{verifier.id.hex()}",
            next_step="verify with the key of the daemon that wrote this ledger",
        )
    return text


class Checkpoint(NamedTuple):
    """A tree head: the log's name, its number of entries, and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note text of tlog-checkpoint, without extension lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def read_checkpoint(note: bytes, verifier: Verifier) -> Checkpoint:
    """A verified checkpoint. Origin and key name must both be the verifier's. Raises `RunnerError` (ledger)."""
    if len(note) > MAX_CHECKPOINT:
        raise refuse("ledger", f"a checkpoint of {len(note)} bytes")
    lines = open_note(note, verifier).split("\n")
    if len(lines) != 4:
        raise refuse("ledger", "a checkpoint has three lines: origin, size, root")
    origin, digits, root = lines[:3]
    if origin != verifier.name:
        raise refuse("ledger", f"the checkpoint is of another log, `{origin}`")
    size = read_number(digits, "a checkpoint's size")
    hashed = read_base64(root, "a checkpoint's root")
    if len(hashed) != HASH:
        raise refuse("ledger", "a checkpoint's root is not 32 bytes")
    return Checkpoint(origin, size, hashed)
