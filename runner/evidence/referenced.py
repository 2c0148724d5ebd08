"""Which digests an entry names, and whether each of them resolves in the content store."""

from __future__ import annotations

from pathlib import Path

from runner.evidence import report as found
from runner.evidence.archives import ArchiveCheck
from runner.evidence.content import ContentReader, Reference
from runner.evidence.report import Findings
from runner.ledger import entry as entries

_REMEMBER = 8192  # artefacts repeat in every call; hashing them once is enough
_AT_ONCE = 400  # references looked up in one query


def references(position: int, entry: entries.AnyEntry) -> list[Reference]:
    """Every digest in an entry that must resolve in the content store."""
    found: list[tuple[str, entries.Content | entries.Stream | None]] = []
    artefacts: list[tuple[str, str]] = []
    if isinstance(entry, entries.Call):
        found = [("arguments", entry.arguments), ("plan.plan", entry.plan.plan if entry.plan else None)]
        found.append(("authority", entry.authority))
        artefacts = [("tool_digest", entry.tool_digest), ("decision.policy", entry.decision.policy)]
    elif isinstance(entry, entries.Outcome):
        found = [("stdout", entry.stdout), ("stderr", entry.stderr), ("result", entry.result)]
        found.append(("workspace.manifest", entry.workspace.manifest if entry.workspace else None))
        found.append(("raw.content", entry.raw.content if entry.raw else None))
    elif isinstance(entry, entries.Egress):
        found = [("path_content", entry.path_content)]
    elif isinstance(entry, entries.EgressEnd):
        found = [("response", entry.response)]
    elif isinstance(entry, entries.Start):
        found = [("config", entry.config)]
        artefacts = [("catalogue", entry.catalogue), ("policy", entry.policy)]
    elif isinstance(entry, entries.Image):
        found = [("sbom", entry.sbom)]
    elif isinstance(entry, entries.Reload):
        artefacts = [("before", entry.before), ("after", entry.after), ("policy", entry.policy)]
    elif isinstance(entry, entries.Pending):
        artefacts = [("before", entry.before), ("after", entry.after)]
    elif isinstance(entry, entries.SandboxBegin):
        artefacts = [("profile_digest", entry.profile_digest)]
    named = [Reference(position, field, content.digest, content.size) for field, content in found if content]
    return named + [Reference(position, field, digest, -1) for field, digest in artefacts if digest]


class ContentCheck:
    """Looks references up in batches. Without a content folder it looks up nothing."""

    def __init__(self, folder: Path | None, findings: Findings) -> None:
        self._reader = ContentReader(folder) if folder else None
        self._findings = findings
        self._wanted: list[Reference] = []
        self._known: dict[tuple[str, int], None] = {}
        self._tombstones: dict[str, tuple[int, entries.Prune]] = {}  # by the list they name
        self._archives = ArchiveCheck(folder.parent / "engine" / "images", findings) if folder else None
        self._gone: dict[str, tuple[int, str, str]] = {}  # by list: pieces that are gone, and the first of them

    def want(self, position: int, entry: entries.AnyEntry) -> None:
        """Check what `entry` names, now or with the next batch."""
        if self._reader is None:
            return
        if isinstance(entry, entries.Prune):
            self._tombstones[entry.pruned.digest] = (position, entry)
            if not self._reader.listed(entry.pruned.digest):
                self._findings.add(found.MISSING, f"position {position}, pruned", "the list of what went is missing")
        if self._archives is not None:
            self._archives.want(position, entry)
        for reference in references(position, entry):
            key = (reference.digest, reference.size)
            if key not in self._known:
                self._known[key] = None
                self._wanted.append(reference)
        if len(self._wanted) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Check what waits."""
        if self._reader is not None and self._wanted:
            gone = self._reader.gone(self._wanted)
            for reference in self._wanted if gone else ():
                if reference.digest in gone:
                    self._count(gone[reference.digest], reference)
            for problem in self._reader.check([each for each in self._wanted if each.digest not in gone]):
                if problem.missing and (listed := self._reader.pruned(problem.reference.digest)):  # just now
                    self._count(listed, problem.reference)
                    continue
                check = found.MISSING if problem.missing else found.WRONG
                digest = problem.reference.digest
                self._findings.add(check, _place(problem.reference), f"{problem.reason} ({digest[:16]}…)")
        self._wanted.clear()
        while len(self._known) > _REMEMBER:
            del self._known[next(iter(self._known))]

    def _count(self, listed: str, reference: Reference) -> None:
        count, *first = self._gone.get(listed, (0, _place(reference), reference.digest))
        self._gone[listed] = (count + 1, first[0], first[1])

    def finish(self, signed: int) -> None:
        """At the end, when every tombstone was met: check what waits, and that a tombstone among the `signed` entries
        stands for all that is gone. Behind them whoever can write the tail could have put one."""
        self.flush()
        if self._archives is not None:
            self._archives.finish(signed)
        self._tombstones = {name: found for name, found in self._tombstones.items() if found[0] < signed}
        for listed, (count, place, digest) in self._gone.items():
            if listed not in self._tombstones:
                self._findings.add(
                    found.MISSING,
                    place,
                    f"its content is missing, and {count - 1} more: a list says pruned, no entry does ({digest[:16]}…)",
                )
        for position, entry in self._tombstones.values():
            gone = self._gone.get(entry.pruned.digest, (0, "", ""))[0]
            self._findings.note(
                f"position {position}: {entry.pieces} pieces of content, {entry.size} bytes, were pruned by uid "
                f"{entry.by} ({entry.why}); {gone} of them are gone"
            )

    def close(self) -> None:
        """Let go of the store."""
        if self._reader is not None:
            self._reader.close()


def _place(reference: Reference) -> str:
    return f"position {reference.position}, {reference.field}"
