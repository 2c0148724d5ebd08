"""Searches files line by line. A pattern that takes for ever is ended by the call's CPU limit."""

import fnmatch
import os
import re
import stat

from runner.guest.beneath import ToolError, failure, open_beneath, regular, show, walk

LARGEST = 8 << 20
LINE = 300  # characters of a line that are returned
MOST_BYTES = 150_000  # of matches: the result as JSON must stay below what a call may return
PER_MATCH = 50


def run(call):
    """Matches until the limit or the size bound is reached."""
    given = call.arguments
    search = Search(compiled(given["pattern"], given.get("ignore_case", False)), given.get("limit", 100))
    place = call.place("path")
    descriptor = place.open(os.O_RDONLY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        search.file(place.name, regular(descriptor, "rb", place.shown))
        return search.result()
    try:
        below(search, descriptor, given.get("glob", ""))
    except OSError as error:
        raise failure(place.shown, error) from None
    finally:
        os.close(descriptor)
    return search.result()


def compiled(pattern, ignore_case):
    """The regular expression. Raises `ToolError` saying what is wrong with it."""
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise ToolError(f"pattern: not a regular expression: {error}", "pattern") from None


def below(search, folder, glob):
    """Search every file below the open `folder` that `glob` selects."""
    for path, held, status in walk(folder):
        name = path.rsplit("/", 1)[-1]
        if search.full:
            return
        if stat.S_ISDIR(status.st_mode) or (
            glob and not fnmatch.fnmatchcase(name, glob) and not fnmatch.fnmatchcase(path, glob)
        ):
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            search.skipped += 1
            continue
        try:
            opened = regular(open_beneath(held, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb", path)
        except (OSError, ToolError):  # removed or swapped meanwhile
            search.skipped += 1
            continue
        search.file(path, opened)


class Search:
    """What was found so far."""

    def __init__(self, pattern, limit):
        self._pattern, self._limit, self._room = pattern, limit, MOST_BYTES
        self._matches = []
        self.files, self.skipped, self.full = 0, 0, False

    def file(self, path, opened):
        """Search one open file, and close it."""
        with opened:
            data = opened.read(LARGEST + 1)
        if b"\0" in data[:8192] or len(data) > LARGEST:
            self.skipped += 1
            return
        self.files += 1
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if self._pattern.search(line):
                self._add({"path": show(path), "line": number, "text": line.rstrip("\r")[:LINE]})
                if self.full:
                    return

    def _add(self, match):
        self._room -= len(match["path"].encode()) + len(match["text"].encode()) + PER_MATCH
        if len(self._matches) >= self._limit or self._room < 0:
            self.full = True
        else:
            self._matches.append(match)

    def result(self):
        """As the manifest describes it."""
        return {"matches": self._matches, "files": self.files, "skipped": self.skipped, "truncated": self.full}
