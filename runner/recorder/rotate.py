"""Replacing the ledger's key, with the daemon stopped: the lock is held for all of it.

| # | write | a failure or crash here leaves |
| --- | --- | --- |
| 1 | key.next: .new, fsync, rename, fsync folder | the old key; the daemon refuses to start until this is finished |
| 2 | tail with the `rotate` entry, signed by both keys: .new, fsync, rename, fsync folder. **Decides** | the same |
| 3 | checkpoint, signed by both keys: .new, fsync, rename, fsync folder | an earlier checkpoint, the old key's |
| 4 | rotation.N: .new, fsync, rename, fsync folder | a tail that both keys verify, but no proof of the handover yet |
| 5 | key.pub: .new, fsync, rename, fsync folder | the same, and key.pub names the old key |
| 6 | key.next to key: rename, fsync folder. The old key is gone | everything but this: key.next is still there |
| 7 | as at every stop: tail, tiles and checkpoint of the new key alone | a ledger that the new key verifies |

While key.next lies there, doing all of it again finishes it, from wherever it was cut off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from runner.errors import refuse
from runner.ledger.note import Signer, Verifier
from runner.ledger.tile import KEY, NEXT_KEY, PUBLIC_KEY
from runner.recorder import durability as disk
from runner.recorder.keys import load_key, make_key, publish_key
from runner.recorder.log import Recorder


class Replaced(NamedTuple):
    """What a replacement did: verifier keys, and the position of the entry that says so."""

    position: int
    old: str
    new: str


def rotate_key(state: Path, now: Callable[[], str], *, by: int, why: str = "") -> Replaced:
    """Replace the key of the ledger under `state`, or finish what was cut off. Root acts as the folder's owner.

    Raises `RunnerError`: key when a key file is missing or wrong, ledger when a daemon writes it or the disk fails."""
    folder = state / "ledger"
    with disk.to_disk("replacing the ledger's key"), _as_owner(folder):
        if not os.path.lexists(folder / KEY):
            raise refuse("key", "there is no ledger with a key here", field=str(folder), next_step="give --state")
        named = Verifier.parse((folder / PUBLIC_KEY).read_text(encoding="utf-8"))
        old = load_key(folder / KEY)
        # The lock comes first: whoever else writes here must have ended before a key is made.
        resumed = os.path.lexists(folder / NEXT_KEY)
        recorder = Recorder.open(state, named.name, old, now, replacing=resumed)
        try:
            held = [old, load_key(folder / NEXT_KEY)] if resumed else [old]
            if named.text not in [Signer(named.name, key).verifier.text for key in held]:
                raise refuse("key", "it does not name the key beside it", field=str(folder / PUBLIC_KEY))
            if not resumed:
                make_key(folder / NEXT_KEY)
            new = load_key(folder / NEXT_KEY)
            texts = [Signer(named.name, key).verifier.text for key in (old, new)]
            position = recorder.rotate(new, now(), by=by, why=why)
            publish_key(folder, texts[1])
            (folder / NEXT_KEY).rename(folder / KEY)
            disk.sync_folder(folder)
        except BaseException:
            recorder.abandon()
            raise
        recorder.close()
    return Replaced(position, *texts)


@contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """What root writes here must belong to whom the folder belongs to: the recorder's user."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
