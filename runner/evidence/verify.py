"""Verification, offline, with nothing but the public key and the folders: the checklist of `report.CHECKS`.

Numbers in comments are the checklist's. It streams: memory does not grow with the ledger. It reports everything it
finds with its place and goes on, and it raises only when it is asked for something impossible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.errors import RunnerError
from runner.evidence import report as found
from runner.evidence.files import Files, file_name
from runner.evidence.listing import Listing
from runner.evidence.places import Places
from runner.evidence.read import EXPORTED_KEY, MAX_NOTE, MAX_TAIL, read_rotations, rotation_files
from runner.evidence.referenced import ContentCheck
from runner.evidence.report import Findings, Report
from runner.ledger import tail as tails
from runner.ledger.entry import Rotate, decode
from runner.ledger.merkle import FULL_TILE, HASH, TILE_HEIGHT, TILE_WIDTH, Tile, Tree, leaf_hash, tile_root
from runner.ledger.note import Checkpoint, Verifier, read_checkpoint
from runner.ledger.rotation import Keys
from runner.ledger.sequence import Sequence as CallOrder
from runner.ledger.tile import CHECKPOINT, LOCK, NEXT_KEY, PUBLIC_KEY, ROTATION, TAIL, Place


def verify(
    ledger_dir: Path,
    vkey: str,
    content_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    anchors: Sequence[bytes] = (),
) -> Report:
    """Verify a ledger folder, or an export of one, against the verifier key `vkey` (`name+hash+key`).

    `content_dir` None leaves checks 8 and 9 out. `progress(done, total)` is called once per bundle. `anchors` are
    checkpoints kept elsewhere: the ledger must contain each of them, which finds a rolled-back or forked ledger. When
    the log's key was replaced, any of its keys will do: the others follow from the rotations beside the tiles.
    Raises `RunnerError` (key) when `vkey` is not a key, (ledger) when there is no such folder or content store."""
    began = time.perf_counter()
    run = _Run(ledger_dir, Verifier.parse(vkey), content_dir, progress, anchors)
    try:
        run.all()
    finally:
        run.close()
    seconds = time.perf_counter() - began
    skipped = frozenset() if content_dir else frozenset({found.MISSING, found.WRONG})
    checks = run.findings.checks(skipped)
    return Report(
        ok=all(check.ok for check in checks),
        origin=run.verifier.name,
        entries=run.tree.size,
        signed=run.signed,
        unsigned=max(run.tree.size - run.signed, 0),
        open_calls=len(run.order.state.open),
        checks=checks,
        notes=tuple(run.findings.notes),
        seconds=seconds,
        entries_per_second=int(run.tree.size / seconds) if seconds else 0,
    )


class _Run:
    """One verification: what is known so far of the tree, the order of calls, and what is still to be compared."""

    def __init__(
        self,
        folder: Path,
        verifier: Verifier,
        content_dir: Path | None,
        progress: Callable[[int, int], None] | None,
        anchors: Sequence[bytes],
    ) -> None:
        self.findings = Findings()
        self.keys = self._follow(folder, verifier)
        self.verifier = self.keys.newest
        self.files = Files(folder, self.findings)
        self.tree = Tree()
        self.order = CallOrder()
        self.signed = 0
        self._progress = progress
        self._anchors = anchors
        self._content = ContentCheck(content_dir, self.findings)
        self._handovers: list[tuple[int, bytes]] = []  # the entries that replace the key
        self._roots: dict[int, list[tuple[str, bytes]]] = {}  # size -> who says what its root is
        self._made: dict[Place, bytes] = {}  # full tiles whose entries came from the tail

    def close(self) -> None:
        """Let go of the content store."""
        self._content.close()

    def all(self) -> None:
        """The whole checklist. The order of reading matters on a ledger in use: names, checkpoint, tail, bundles."""
        listing = self._list()
        self._check_key()
        published = self._read_checkpoint()
        for number, note in enumerate(self._anchors, 1):
            self._expect(f"anchor {number}", note)
        tail, base, held = self._read_tail(published)
        for number, rotation in enumerate(self.keys.rotations, 1):
            claim = (f"{ROTATION}.{number}", rotation.checkpoint.root)
            self._roots.setdefault(rotation.checkpoint.size, []).append(claim)
        self._walk_bundles(base)
        self._walk_tail(tail, held, published)
        self._compare_handovers()
        self._content.finish(self.signed)
        for size, claims in self._roots.items():
            for who, _ in claims:
                self.findings.add(found.SIGNED, who, f"it signs {size} entries, and only {self.tree.size} are here")
        if listing:
            places = Places(self.files, self.findings, self.tree, base, held, self._made)
            places.check(listing, exported=tail is None)
        if self.tree.size > self.signed:
            self.findings.note(
                f"{self.tree.size - self.signed} entries after the newest checkpoint are not signed yet: "
                "the daemon is writing, or was stopped while it did"
            )

    # --- 1, 2, 6: names, key, checkpoints ------------------------------------------------------------------

    def _list(self) -> Listing | None:
        try:
            return Listing(self.files.folder)
        except OSError as error:
            self.findings.add(found.FILES, str(error.filename), f"it cannot be listed: {error.strerror}")
            return None

    def _follow(self, folder: Path, given: Verifier) -> Keys:
        """The log's keys, from the one given on; that one alone when the rotations are no chain from it."""
        try:
            return Keys(given, read_rotations(rotation_files(folder)))
        except RunnerError as error:
            self.findings.add(found.KEY, error.refused.field or ROTATION, error.refused.reason)
            return Keys(given)

    def _compare_handovers(self) -> None:
        """Each entry that replaces the key has its handover, and each handover its entry."""
        known = {rotation.position: rotation.entry for rotation in self.keys.rotations}
        for position, entry in self._handovers:
            if known.pop(position, None) == entry:
                continue
            if self.files.exists(NEXT_KEY) and position + 1 == self.tree.size:
                self.findings.note("a replacement of the key was cut off; `runner trace rotate-key` finishes it")
            else:
                self.findings.add(found.KEY, f"position {position}", "the key was replaced here, and no file proves it")
        for position in known:
            self.findings.add(found.KEY, f"position {position}", "a rotation says it is here, and it is not")

    def _check_key(self) -> None:
        for name in (PUBLIC_KEY, EXPORTED_KEY):
            if self.files.exists(name):
                data = self.files.read(name, MAX_NOTE, found.KEY)
                # Until a replacement of the key is finished, the file names the key before it.
                last = self.keys.texts[-2:] if self.files.exists(NEXT_KEY) else self.keys.texts[-1:]
                if data is not None and data not in [f"{text}\n".encode() for text in last]:
                    self.findings.add(found.KEY, name, "it is another key than the one given")

    def _read_checkpoint(self) -> Checkpoint | None:
        note = self.files.read(CHECKPOINT, MAX_NOTE)
        return None if note is None else self._expect(CHECKPOINT, note)

    def _expect(self, who: str, note: bytes) -> Checkpoint | None:
        """Note what a checkpoint claims; it is compared when the walk passes its size."""
        try:
            claim = self.keys.read(note)
        except RunnerError as error:
            self.findings.add(found.SIGNED, who, error.refused.reason)
            return None
        self._roots.setdefault(claim.size, []).append((who, claim.root))
        self.signed = max(self.signed, claim.size if who == CHECKPOINT else 0)
        return claim

    # --- 3: the tail ---------------------------------------------------------------------------------------

    def _read_tail(self, published: Checkpoint | None) -> tuple[tails.Tail | None, int, list[bytes]]:
        """The tail, the position where bundles end, and the entries behind it."""
        known = published.size if published else 0
        if not self.files.exists(TAIL) and not self.files.exists(LOCK):
            self.findings.note("there is no tail: this is an export")
            width = known % TILE_WIDTH
            held = self.files.bundle(known // TILE_WIDTH, width) if width else None
            return None, known - width, held or []
        data = self.files.read(TAIL, MAX_TAIL, found.TAIL)
        if data is None:
            return None, known - known % TILE_WIDTH, []
        try:
            tail = tails.read_tail(data, self.verifier)
        except RunnerError as error:
            self.findings.add(found.TAIL, TAIL, error.refused.reason)
            return None, known - known % TILE_WIDTH, []
        if tail.torn:
            self.findings.note(
                f"tail: {tail.size - tail.end} bytes at byte {tail.end} are no whole record: a write that is under "
                "way, or was cut off; the next start removes them and notes it"
            )
        self._roots.setdefault(tail.head.base, []).append(("tail, its head", tail.head.root))
        return tail, tail.head.base, []

    def _walk_tail(self, tail: tails.Tail | None, held: list[bytes], published: Checkpoint | None) -> None:
        if tail is None:
            for data in held:
                self._take(data)
            return
        if tail.head.state != self.order.state:
            self.findings.add(found.ORDER, TAIL, "its head tells another state than the entries before it add up to")
        signed, last = -1, -1
        for record in tail.records:
            if record.kind == tails.CONTENT:
                continue
            if record.kind == tails.ENTRY:
                held.append(record.data)
                self._take(record.data)
                continue
            place = f"{TAIL}, byte {record.offset}"
            try:
                claim = read_checkpoint(record.data, self.verifier)
            except RunnerError as error:
                self.findings.add(found.SIGNED, place, error.refused.reason)
                continue
            if (claim.size, claim.root) != (self.tree.size, self.tree.root()) or claim.size <= last:
                self.findings.add(found.SIGNED, place, f"it signs other entries than the {self.tree.size} before it")
            else:
                signed = claim.size
            last = claim.size
        acknowledged = max(tail.head.size, published.size if published else 0)
        if signed < acknowledged:
            self.findings.add(
                found.TAIL, TAIL, f"{acknowledged} entries were acknowledged, {max(signed, 0)} are readable and signed"
            )
        self.signed = max(self.signed, signed)

    # --- 4, 5, 7: entries and tiles ------------------------------------------------------------------------

    def _walk_bundles(self, base: int) -> None:
        self._compare_roots()
        for number in range(base // TILE_WIDTH):
            bundle = self.files.bundle(number)
            stored = self.files.tile(Place(0, number))
            if bundle is not None:
                leaves = [leaf_hash(entry) for entry in bundle]
                self._compare_leaves(number, leaves, stored)
                self._pass_roots(leaves)
                tile = b"".join(leaves)
                for position, entry in enumerate(bundle, number * TILE_WIDTH):
                    self._read_entry(position, entry)
            else:
                # The bundle is lost; its tile lets the rest of the tree be judged all the same.
                tile = stored or bytes(FULL_TILE)
            for above in self.tree.add(tile_root(tile), TILE_HEIGHT):
                self._compare_tile(above)
            self._compare_roots()
            if self._progress:
                self._progress(self.tree.size, base)

    def _take(self, data: bytes) -> None:
        """An entry of the tail. Its tiles may or may not be files already."""
        self._read_entry(self.tree.size, data)
        for tile in self.tree.add(leaf_hash(data)):
            self._made[Place(tile.level, tile.number)] = tile.data
        self._compare_roots()

    def _read_entry(self, position: int, data: bytes) -> None:
        try:
            entry = decode(data)
        except RunnerError as error:
            self.findings.add(found.ENTRIES, f"position {position}", error.refused.reason)
            return
        try:
            self.order.check(entry)
        except RunnerError as error:
            self.findings.add(found.ORDER, f"position {position}", f"{error.refused.field}: {error.refused.reason}")
        else:
            self.order.apply(position, entry)
        if isinstance(entry, Rotate):
            self._handovers.append((position, data))
        self._content.want(position, entry)

    def _compare_leaves(self, number: int, leaves: list[bytes], stored: bytes | None) -> None:
        if stored is None or stored == b"".join(leaves):
            return
        for place, leaf in enumerate(leaves):
            if stored[place * HASH :][:HASH] != leaf:
                position = number * TILE_WIDTH + place
                self.findings.add(found.TILES, f"position {position}", "the entry does not hash to what its tile says")

    def _compare_tile(self, made: Tile) -> None:
        place = Place(made.level, made.number)
        stored = self.files.tile(place)
        if stored is not None and stored != made.data:
            self.findings.add(found.TILES, file_name(place), "it does not hold the roots of the tiles below it")

    def _pass_roots(self, leaves: list[bytes]) -> None:
        """Compare claims about sizes inside a bundle."""
        start = self.tree.size
        if not any(start < size < start + TILE_WIDTH for size in self._roots):
            return
        whole, self.tree = self.tree, self.tree.copy()
        for leaf in leaves[:-1]:
            self.tree.add(leaf)
            self._compare_roots()
        self.tree = whole

    def _compare_roots(self) -> None:
        claims = self._roots.pop(self.tree.size, None) if self._roots else None
        for who, root in claims or ():
            if root != self.tree.root():
                self.findings.add(found.SIGNED, who, f"its root over {self.tree.size} entries is not theirs")
