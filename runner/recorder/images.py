"""Which images are named by a call whose content is kept: an open call, or one of whose own content a piece stays.

A call names its sandbox, and the sandbox's entry the image it was made of. A call that a hold is on is kept whatever
went before the hold. An image that only unused sandboxes had, or calls whose content is all pruned, is named by none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from runner.ledger import entry as entries

# A quote inside a JSON string is escaped, so these bytes are never part of a text.
_SANDBOX, _CALL, _OUTCOME = b'"kind":"sandbox"', b'"kind":"call"', b'"kind":"outcome"'
_REQUEST, _ENDED = b'"kind":"egress"', b'"kind":"egress_end"'


class NamedImages:
    """Told every entry twice: first by `meet`, then by `look`, in order. `unnamed` is the answer at the end."""

    def __init__(self, images: Collection[str]) -> None:
        self.unnamed = set(images)
        self._sandboxes: dict[str, str] = {}  # of these images
        self._pruned: dict[str, str] = {}  # calls whose arguments and plan go: what follows them may stay

    def meet(self, data: bytes) -> None:
        """Remember which sandboxes were made of the images."""
        if self.unnamed and _SANDBOX in data:
            entry = entries.decode(data)
            if isinstance(entry, entries.SandboxBegin) and entry.isolation.image in self.unnamed:
                self._sandboxes[entry.sandbox] = entry.isolation.image

    def look(self, data: bytes, holds: Sequence[entries.Criteria], goes: Callable[[bytes], bool]) -> None:
        """Take away the image that this entry names, if its call is kept. `goes` says which content goes or is gone."""
        if not self.unnamed or not (_CALL in data or (self._pruned and _of_call(data))):
            return
        entry = entries.decode(data)
        if isinstance(entry, entries.Call) and entry.plan is not None:
            image = self._sandboxes.get(entry.plan.sandbox, "")
            if image in self.unnamed:
                who = (entry.who.task, (entry.who.agent, *entry.who.asserted))
                if _stays(entry, goes) or any(hold.fits(entry.time, *who, entry.tool) for hold in holds):
                    self.unnamed.discard(image)
                else:
                    self._pruned[entry.call] = image
        elif isinstance(entry, entries.Egress | entries.EgressEnd):
            if entry.call in self._pruned and _stays(entry, goes):
                self.unnamed.discard(self._pruned[entry.call])
        elif isinstance(entry, entries.Outcome):
            image = self._pruned.pop(entry.call, "")
            if image and _stays(entry, goes):
                self.unnamed.discard(image)


def _of_call(data: bytes) -> bool:
    return any(kind in data for kind in (_OUTCOME, _REQUEST, _ENDED))


def _stays(
    entry: entries.Call | entries.Egress | entries.EgressEnd | entries.Outcome, goes: Callable[[bytes], bool]
) -> bool:
    return any(not goes(bytes.fromhex(content.digest)) for content in entries.own_content(entry))
