"""Lists a folder."""

import os
import stat

from runner.guest.beneath import failure, kind_of, show, walk

MOST_BYTES = 150_000  # of names: the result as JSON must stay below what a call may return
PER_ENTRY = 40


def run(call):
    """Entries until the limit or the size bound is reached."""
    place = call.place("path")
    limit = call.arguments.get("limit", 500)
    entries, room = [], MOST_BYTES
    folder = place.folder()
    try:
        for path, _, status in walk(folder, recursive=call.arguments.get("recursive", False)):
            entry = {"path": show(path), "kind": kind_of(status.st_mode)}
            if stat.S_ISREG(status.st_mode):
                entry["size"] = status.st_size
            room -= len(entry["path"].encode()) + PER_ENTRY
            if len(entries) >= limit or room < 0:
                return {"entries": entries, "truncated": True}
            entries.append(entry)
    except OSError as error:
        raise failure(place.shown, error) from None
    finally:
        os.close(folder)
    return {"entries": entries, "truncated": False}
