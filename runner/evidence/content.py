"""Reading the content store: packs, SQLite opened read-only, large files by name. Bytes are hashed before use."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from runner.errors import refuse
from runner.evidence.packs import Packs
from runner.evidence.pruned import PrunedLists
from runner.ledger.tile import SMALL_CONTENT, content_path

SALT = 16  # bytes in front of salted content
_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")
_BATCH = 500  # SQLite takes at most 999 parameters in old builds
_PIECE = 1 << 20


class Reference(NamedTuple):
    """A digest that an entry names. `size` is the content's without salt, -1 where the entry does not say."""

    position: int
    field: str
    digest: str
    size: int


class Problem(NamedTuple):
    """What is wrong with the content of a reference."""

    reference: Reference
    missing: bool
    reason: str


class ContentReader:
    """A content folder, read-only. Raises `RunnerError` (ledger) when its database cannot be opened at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packs = Packs(folder)
        self._lists = PrunedLists(folder)
        path = folder / SMALL_CONTENT
        if not path.is_file():
            raise refuse("ledger", "there is no content store", field=str(path), next_step="give --no-content")
        # Without a journal beside it nobody writes it: then SQLite need not make one of its own.
        live = path.with_name(path.name + "-wal").exists()
        address = f"file:{quote(str(path))}?mode=ro" + ("" if live else "&immutable=1")
        try:
            self._database = sqlite3.connect(address, uri=True)
            self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            raise refuse("ledger", f"the content store cannot be read: {error}", field=str(path)) from None

    def close(self) -> None:
        """Let go of the files."""
        self._lists.close()
        self._database.close()

    def pruned(self, digest: str) -> str:
        """The list that says that this content was pruned; "" when none does. Whether a `prune` entry of the ledger
        names that list is the caller's to check."""
        return self._lists.find(bytes.fromhex(digest)) if _DIGEST.match(digest) else ""

    def listed(self, name: str) -> bool:
        """Whether the list of this name is here, whole."""
        return self._lists.has(name)

    def get(self, digest: str, position: int = -1) -> bytes | None:
        """The stored bytes of `digest`, whole and hashed; None when they are not there or not those. `position` is
        that of an entry that names it, with which small content came."""
        if not _DIGEST.match(digest):
            return None
        packed = self._packs.get(position, bytes.fromhex(digest))
        if packed is not None:
            return packed
        try:
            query = "SELECT data FROM blob WHERE digest = ?"
            row = self._database.execute(query, (bytes.fromhex(digest),)).fetchone()
        except sqlite3.Error:
            return None
        if row is not None:
            data = bytes(row[0])
        else:
            try:
                data = (self._folder / content_path(digest)).read_bytes()
            except OSError:
                return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def gone(self, wanted: Sequence[Reference]) -> dict[str, str]:
        """The digests among these that a list says were pruned and that are not here: each with its list's name. Asked
        before anything else is: content that is gone costs far more to look for than to look up."""
        places = {bytes.fromhex(each.digest): each.position for each in wanted if _DIGEST.match(each.digest)}
        listed = self._lists.find_all(places)
        found = self._packs.lack({digest: places[digest] for digest in listed}) if listed else []
        marks = ",".join("?" * len(found))
        try:
            query = f"SELECT digest FROM blob WHERE digest IN ({marks})"  # noqa: S608 - only question marks go in
            there = {bytes(row[0]) for row in self._database.execute(query, found)}
        except (sqlite3.Error, TypeError):
            return {}  # `check` says what is wrong
        absent = [digest for digest in found if digest not in there]
        return {digest.hex(): listed[digest] for digest in absent if not self._is_large(digest.hex())}

    def _is_large(self, digest: str) -> bool:
        return os.path.lexists(f"{self._folder}/{content_path(digest)}")

    def check(self, wanted: Sequence[Reference]) -> Iterator[Problem]:
        """What is wrong with any of `wanted`: missing, other bytes, other size."""
        for start in range(0, len(wanted), _BATCH):
            yield from self._check(wanted[start : start + _BATCH])

    def _check(self, wanted: Sequence[Reference]) -> Iterator[Problem]:
        by_digest: dict[bytes, list[Reference]] = {}
        for reference in wanted:
            if _DIGEST.match(reference.digest):
                by_digest.setdefault(bytes.fromhex(reference.digest), []).append(reference)
            else:
                yield Problem(reference, False, "it is not a digest")
        for digest, references in list(by_digest.items()):
            packed = self._packs.get(references[0].position, digest)
            if packed is not None:
                yield from _judge(by_digest.pop(digest), True, len(packed))
        marks = ",".join("?" * len(by_digest))
        query = f"SELECT digest, data FROM blob WHERE digest IN ({marks})"  # noqa: S608 - only question marks go in
        try:
            for digest, data in self._database.execute(query, list(by_digest)):
                same = hashlib.sha256(data).digest() == digest
                yield from _judge(by_digest.pop(digest), same, len(data))
        except (sqlite3.Error, TypeError, KeyError) as error:
            for left in by_digest.values():
                yield Problem(left[0], False, f"the content store cannot be read: {error}")
            return
        for left in by_digest.values():
            yield from self._check_large(left)

    def _check_large(self, wanted: list[Reference]) -> Iterator[Problem]:
        path = self._folder / content_path(wanted[0].digest)
        total, size = hashlib.sha256(), 0
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(0, "it is not a regular file")
                while piece := file.read(_PIECE):
                    total.update(piece)
                    size += len(piece)
        except FileNotFoundError:
            yield Problem(wanted[0], True, "its content is missing")
            return
        except OSError as error:
            yield Problem(wanted[0], False, f"{path.name}: {error.strerror}")
            return
        yield from _judge(wanted, total.hexdigest() == wanted[0].digest, size)


def _judge(wanted: list[Reference], same: bool, size: int) -> Iterator[Problem]:
    if not same:
        yield Problem(wanted[0], False, "the content under its name is another one")
        return
    for reference in wanted:
        if reference.size >= 0 and size not in (reference.size, reference.size + SALT):
            yield Problem(reference, False, f"the content has {size} bytes, the entry says {reference.size}")
