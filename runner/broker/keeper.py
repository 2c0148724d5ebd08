"""What the master key opens: the store, the journal, and the key of fingerprints. Opened when first needed, so that
`runner secret init` takes effect on a daemon that runs; refused, and never replaced, when it does not open."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from runner.broker import master
from runner.broker.journal import Journal
from runner.broker.providers.provider import unavailable
from runner.broker.store import Store
from runner.errors import RunnerError

_log = logging.getLogger(__name__)
_MAX_CREDENTIAL = 64 << 10
_FINGERPRINT = 16  # bytes: collisions of 2^64 values matter to nobody


class Opened:
    """The open store and journal."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.store = Store.open(folder, key)
        self.journal = Journal(folder, self.store.key("journal"))
        self._fingerprints = self.store.key("fingerprint")

    def fingerprint(self, value: bytes | bytearray) -> str:
        """A keyed digest of a secret's value: the same for the same value, for as long as this store lives."""
        return hmac.digest(self._fingerprints, value, hashlib.sha256)[:_FINGERPRINT].hex()


class Keeper:
    """The one who opens it."""

    def __init__(self, folder: Path, key: bytes | None) -> None:
        """`key` is the systemd credential's; without one, the key lies in `folder`."""
        self._folder = folder
        self._key = key
        self._opened: Opened | None = None

    @property
    def opened(self) -> Opened | None:
        """What is open, None before."""
        return self._opened

    def open(self) -> Opened:
        """Everything, opened now where it was not. Raises `RunnerError` (key, unavailable), saying what to do."""
        if self._opened is None:
            key = self._key if self._key is not None else master.from_folder(self._folder)
            self._opened = Opened(self._folder, key)
        return self._opened

    def credential(self, name: str) -> bytes:
        """A provider's own credential: a file (0600) by its whole path, else a stored secret by its name.

        Raises `RunnerError` (unavailable). Called in threads too: a stored record is replaced, never changed."""
        if name.startswith("/"):
            try:
                value = master.read_file(Path(name), maximum=_MAX_CREDENTIAL)
            except RunnerError as error:
                _log.error("a provider's credential: %s", error.refused.line())
                raise unavailable("a provider's credential cannot be read", next_step="see the daemon's log") from None
        else:
            secret = self.open().store.get(name)
            if secret is None:
                raise unavailable(
                    f"no secret `{name}` is stored, which a provider needs", next_step=f"run `runner secret set {name}`"
                )
            value = bytes(secret.value)
            secret.wipe()
        value = value.removesuffix(b"\n")
        if not value or not value.isascii() or not value.decode("ascii").isprintable():
            _log.error("a provider's credential, %s, is not one line of printable ASCII", name)
            raise unavailable("a provider's credential cannot be used", next_step="see the daemon's log")
        return value
