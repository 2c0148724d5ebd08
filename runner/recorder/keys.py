"""The recorder's signing key: made at the first start, read at each one, replaced only inside the log."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from runner.errors import refuse
from runner.ledger.note import Signer
from runner.ledger.tile import CHECKPOINT, KEY, NEXT_KEY, PUBLIC_KEY, TAIL
from runner.recorder.durability import FILE_MODE, make_folder, replace, to_disk

_PUBLIC_MODE = 0o644
_MAX_KEY = 4096


def load_or_create_key(folder: Path, origin: str) -> Ed25519PrivateKey:
    """The key in the ledger folder; made there, with its public half beside it, when the folder holds no ledger yet.

    Run as the recorder's user, or as root on a folder that belongs to that user. Raises `RunnerError`: `key` when
    the file is missing, unreadable, too open or of another kind, `ledger` when the disk does not take it."""
    path = folder / KEY
    with to_disk("reading or making the ledger's key"):
        make_folder(folder)
        if os.path.lexists(folder / NEXT_KEY):
            raise refuse(
                "key",
                "a replacement of the ledger's key was begun and cut off",
                field=str(folder / NEXT_KEY),
                next_step="finish it with `runner trace rotate-key`, then start the daemon",
            )
        if not os.path.lexists(path):
            _create(folder, path)
        private = load_key(path)
        _publish(folder, Signer(origin, private).verifier.text)
    return private


def _create(folder: Path, path: Path) -> None:
    if (folder / TAIL).exists() or (folder / CHECKPOINT).exists():
        raise refuse(
            "key",
            "the ledger's key is missing, and a ledger is not continued under a new one",
            field=str(path),
            next_step="restore the key, or move the ledger folder away to begin a new ledger",
        )
    make_key(path)
    _give_to_owner(folder, path)


def make_key(path: Path) -> None:
    """A new key in a file (0600), durably."""
    private = Ed25519PrivateKey.generate()
    replace(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=FILE_MODE)


def publish_key(folder: Path, text: str) -> None:
    """Put the verifier key's text into key.pub, durably."""
    replace(folder / PUBLIC_KEY, f"{text}\n".encode(), mode=_PUBLIC_MODE)


def _publish(folder: Path, text: str) -> None:
    """Write key.pub when it is not there. Readers who want to trust it take it from elsewhere."""
    path = folder / PUBLIC_KEY
    if not os.path.lexists(path):
        publish_key(folder, text)
        _give_to_owner(folder, path)


def _give_to_owner(folder: Path, path: Path) -> None:
    """Root makes the key before it drops; it belongs to whom the folder belongs to."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def load_key(path: Path) -> Ed25519PrivateKey:
    """A private key from its file. Raises `RunnerError` (key) when it is too open or of another kind, and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise refuse("key", "others than its owner can read it", field=str(path), next_step=f"chmod 600 {path}")
        data = os.read(descriptor, _MAX_KEY)
    finally:
        os.close(descriptor)
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise refuse("key", "it is not an Ed25519 private key", field=str(path), next_step="restore it from a backup")
    return private
