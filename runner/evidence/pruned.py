"""The lists of what was pruned, mapped into memory: a list counts only when its bytes hash to its name."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from runner.ledger import pruned as lists
from runner.ledger.tile import DUE, PRUNED


class PrunedLists:
    """Every list under a content folder. Looks again when the folder has changed: a daemon may be pruning."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / PRUNED
        self._seen = -1  # the folder's mtime
        self._maps: dict[str, mmap.mmap] = {}

    def find(self, digest: bytes) -> str:
        """The name of a list that holds this digest; "" when none does."""
        self._look()
        return self._find(digest)

    def find_all(self, digests: Iterable[bytes]) -> dict[bytes, str]:
        """The digests that are listed, each with its list's name. One look at the folder for all of them."""
        self._look()
        return {digest: name for digest in digests if (name := self._find(digest))} if self._maps else {}

    def _find(self, digest: bytes) -> str:
        return next((name for name, listed in self._maps.items() if lists.holds(listed, digest)), "")

    def has(self, name: str) -> bool:
        """Whether there is a whole list of this name."""
        self._look()
        return name in self._maps

    def close(self) -> None:
        """Let go of the files."""
        for listed in self._maps.values():
            listed.close()
        self._maps.clear()

    def _look(self) -> None:
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return
        if changed == self._seen:
            return
        self._seen = changed
        for path in self._folder.iterdir():
            name = path.name.removesuffix(DUE)
            if name not in self._maps and (listed := _mapped(path)) is not None:
                if hashlib.sha256(listed).hexdigest() == name:
                    self._maps[name] = listed
                else:
                    listed.close()


def _mapped(path: Path) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):  # empty, or no regular file
        return None
    finally:
        os.close(descriptor)
