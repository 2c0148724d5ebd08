"""Retention as entries: legal holds, and the tombstones of what was pruned, content and archives of images."""

from __future__ import annotations

from collections.abc import Collection

from runner.ledger.part import Content, Entry, Int, Operator, Part


class Criteria(Part, frozen=True):
    """Which calls: each part that is not empty must fit. `before` is compared with the call's time; `larger` picks
    pieces of content with more bytes than that, `raw` raw output alone."""

    before: str = ""
    larger: Int = 0
    raw: bool = False
    tasks: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def fits(self, time: str, task: str, agents: Collection[str], tool: str) -> bool:
        """Whether a call is meant, any of whose `agents` will do; what `larger` and `raw` say of pieces left aside."""
        labels = ((self.tasks, (task,)), (self.agents, agents), (self.tools, (tool,)))
        named = all(not asked or any(has in asked for has in those) for asked, those in labels)
        return named and (not self.before or time < self.before)


class Hold(Entry, frozen=True, tag="hold"):
    """From here on until its release, no content of the calls that `of` fits is pruned: legal hold. Calls to come are
    meant too. `agents` are also the names that parents gave along a chain: a hold rather keeps too much; a prune goes
    by the root token's alone, which no agent chooses."""

    name: str
    of: Criteria
    why: str
    by: Int
    operator: Operator | None = None


class Release(Entry, frozen=True, tag="release"):
    """The holds of this name hold no more."""

    name: str
    why: str
    by: Int
    operator: Operator | None = None


class Prune(Entry, frozen=True, tag="prune"):
    """A tombstone: content removed from the content store, after this was on disk. Entries, and the digests in them,
    stay. `pruned` is the sorted list of the digests removed, 32 bytes each, under its plain SHA-256; `size` their
    content's bytes; `held` counts the pieces that fitted and were spared by holds."""

    of: Criteria
    pruned: Content
    pieces: Int
    size: Int
    why: str
    by: Int
    operator: Operator | None = None
    held: Int = 0


class PruneImage(Entry, frozen=True, tag="prune_image"):
    """A tombstone: the archive of an image that no kept call names was removed, after this was on disk. `image` is ""
    for an archive that engine has no record of. The list of the image's packages stays, and so does every entry."""

    image: str
    archive: Content
    why: str
    by: Int
    operator: Operator | None = None
