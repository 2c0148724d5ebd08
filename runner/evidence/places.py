"""Whether every tile file lies where the ledger has a place for it, and the partial ones begin what they should."""

from __future__ import annotations

from collections.abc import Sequence

from runner.evidence import report as found
from runner.evidence.files import Files, file_name
from runner.evidence.listing import Listing
from runner.evidence.report import Findings
from runner.ledger.merkle import HASH, TILE_WIDTH, Tree
from runner.ledger.tile import ENTRIES, Place, bundle_limit, full_count, pack_bundle, partial_places


class Places:
    """What the walk over all entries found out: the tree, where bundles end, and what lies behind them."""

    def __init__(
        self, files: Files, findings: Findings, tree: Tree, base: int, held: Sequence[bytes], made: dict[Place, bytes]
    ) -> None:
        self._files = files
        self._findings = findings
        self._tree = tree
        self._base = base
        self._held = held
        self._made = dict(made)  # full tiles and bundles whose entries lie in the tail
        for number in range(len(held) // TILE_WIDTH):
            bundle = pack_bundle(held[number * TILE_WIDTH :][:TILE_WIDTH])
            self._made[Place(ENTRIES, base // TILE_WIDTH + number)] = bundle
        self._edge = {(tile.level, tile.number): tile.data for tile in tree.partials()}

    def check(self, listing: Listing, *, exported: bool) -> None:
        """Compare the names found at the start with what the ledger turned out to be."""
        for name in listing.strays:
            self._findings.add(found.FILES, name, "no file of a ledger has this name")
        for name in listing.unfinished:
            self._findings.note(f"{name}: a write that is under way, or was cut off; the next start removes it")
        size = self._tree.size
        for level, last in listing.last.items():
            if last >= full_count(level, size):
                self._findings.add(found.FILES, file_name(Place(level, last)), f"it lies behind the end at {size}")
        for place, data in self._made.items():
            # A file only if the writer got that far before it was interrupted.
            if place.number <= listing.last.get(place.level, -1) and self._files.exists(file_name(place)):
                stored = self._files.read(file_name(place), bundle_limit())
                if stored is not None and stored != data:
                    self._findings.add(found.TILES, file_name(place), "it differs from what the tail's entries make")
        for place in listing.partials:
            self._check_partial(place)
        if exported:
            for missing in set(partial_places(size)) - set(listing.partials):
                self._findings.add(found.FILES, file_name(missing), "it is missing")

    def _check_partial(self, place: Place) -> None:
        name = file_name(place)
        if not self._files.exists(name):
            return  # removed by the daemon since the names were read: its full tile is there
        data = self._files.read(name, bundle_limit())
        if data is not None and data != self._true_partial(place):
            self._findings.add(found.TILES, name, "it is not the beginning of that tile")

    def _true_partial(self, place: Place) -> bytes | None:
        """What a partial tile must hold; None when the ledger does not reach so far."""
        full = Place(place.level, place.number)
        if place.level == ENTRIES:
            start = place.number * TILE_WIDTH - self._base
            entries = self._held[start:] if start >= 0 else self._files.bundle(place.number) or []
            return pack_bundle(entries[: place.width]) if len(entries) >= place.width else None
        whole = self._made.get(full) or self._edge.get((place.level, place.number))
        if whole is None and place.number < full_count(place.level, self._base):
            whole = self._files.tile(full)
        length = place.width * HASH
        return whole[:length] if whole is not None and len(whole) >= length else None
