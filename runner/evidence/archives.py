"""Whether the archives of images that entries name are there, and are what the entries say.

Engine keeps them beside the ledger; whoever reads the ledger elsewhere may not have them, which is a note. Where their
folder is, each image has the archive that its newest entry names, or a tombstone that says who removed it and why.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from runner.evidence import report as found
from runner.evidence.report import Findings
from runner.ledger import entry as entries

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_GONE = "there is no such file"


class ArchiveCheck:
    """Told every entry in order. Memory grows with the number of images, not of entries."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self._named: dict[str, tuple[int, str, int]] = {}  # archive -> position of its newest entry, image, size
        self._newest: dict[str, str] = {}  # image -> archive
        self._pruned: dict[str, tuple[int, entries.PruneImage]] = {}  # archive -> its tombstone

    def want(self, position: int, entry: entries.AnyEntry) -> None:
        """Follow what this entry says of an image."""
        if isinstance(entry, entries.Image) and entry.archive is not None:
            digest = entry.archive.digest
            if not _DIGEST.fullmatch(digest):
                self._findings.add(found.WRONG, f"position {position}, archive", "it is not a digest")
                return
            self._named[digest] = (position, entry.image, entry.archive.size)
            self._newest[entry.image] = digest
            self._pruned.pop(digest, None)  # made anew since
        elif isinstance(entry, entries.PruneImage):
            self._pruned[entry.archive.digest] = (position, entry)

    def finish(self, signed: int) -> None:
        """Look at the folder, and hash what is there; a tombstone counts among the `signed` entries only."""
        self._pruned = {name: found for name, found in self._pruned.items() if found[0] < signed}
        reachable = self._folder.is_dir() and os.access(self._folder, os.R_OK | os.X_OK)
        for digest, (position, image, size) in self._named.items():
            missing = self._look(digest, position, size)
            if not missing or digest in self._pruned or self._newest[image] != digest:
                continue
            if reachable and missing == _GONE:
                self._findings.add(
                    found.MISSING, f"position {position}, archive", "the image's archive is gone, and no entry says why"
                )
            else:
                self._findings.note(f"position {position}: the image's archive cannot be read: {missing}")
        for digest, (position, tombstone) in self._pruned.items():
            left = _DIGEST.fullmatch(digest) and (self._folder / f"{digest}.tar").exists()
            self._findings.note(
                f"position {position}: the archive of image {tombstone.image or 'unknown'}, {tombstone.archive.size} "
                f"bytes, was pruned by uid {tombstone.by} ({tombstone.why})"
                + ("; it is still here: the next start of the daemon removes it" if left else "")
            )

    def _look(self, digest: str, position: int, expected: int) -> str:
        """Hash an archive; why it cannot be read, "" when it can."""
        total, size = hashlib.sha256(), 0
        try:
            descriptor = os.open(
                self._folder / f"{digest}.tar", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return "it is not a regular file"
                while piece := file.read(_PIECE):
                    total.update(piece)
                    size += len(piece)
        except FileNotFoundError:
            return _GONE
        except OSError as error:
            return str(error.strerror)
        if (total.hexdigest(), size) != (digest, expected):
            self._findings.add(found.WRONG, f"position {position}, archive", "the image's archive is another one")
        return ""
