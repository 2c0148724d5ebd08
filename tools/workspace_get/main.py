"""Gives a file or a tree. What lies in the workspace is hostile: it is opened without following or waiting."""

import errno
import os
import shutil
import stat
import sys
import tarfile

from runner.guest.beneath import MAX_DEPTH, ToolError, failure, kind_of, open_beneath, regular, show, walk

PIECE = 1 << 20
LISTED = 100
LONGEST_PATH = 4096


def run(call):
    """What was given and what was not; the bytes themselves are on standard output."""
    place = call.place("path")
    done = {"path": place.shown, "files": 0, "folders": 0, "bytes": 0, "skipped": [], "skipped_count": 0}
    try:
        if call.arguments["kind"] == "file":
            with place.reader() as file:
                shutil.copyfileobj(file, sys.stdout.buffer, PIECE)
                done["files"], done["bytes"] = 1, file.tell()
        else:
            give_tree(place, done)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise failure(place.shown, error) from None
    return done


def give_tree(place, done):
    """The folder as a tar stream."""
    folder = place.folder()
    try:
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for path, held, status in walk(folder):
                archive.members = []  # else every entry stays in memory
                if unsendable := cannot_send(path):
                    skip(path, unsendable, done)
                elif stat.S_ISDIR(status.st_mode):
                    archive.addfile(header(path, status, tarfile.DIRTYPE))
                    done["folders"] += 1
                    if path.count("/") + 1 >= MAX_DEPTH:
                        skip(path, f"what is in it lies more than {MAX_DEPTH} folders deep", done)
                else:
                    give_file(archive, path, held, status, done)
    finally:
        os.close(folder)


def give_file(archive, path, held, status, done):
    """One entry that is not a folder: a regular file, or a line in `skipped`."""
    if not stat.S_ISREG(status.st_mode):
        skip(path, kind_of(status.st_mode), done)
        return
    try:
        descriptor = open_beneath(held, path.rsplit("/", 1)[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        file = regular(descriptor, "rb", path)
    except (OSError, ToolError) as error:
        forbidden = isinstance(error, OSError) and error.errno == errno.EACCES
        skip(path, "its mode forbids to read it" if forbidden else "changed while it was read", done)
        return
    with file:
        entry = header(path, os.fstat(file.fileno()), tarfile.REGTYPE)
        source = Exactly(file, entry.size)
        archive.addfile(entry, source)
        if source.short:
            skip(path, "changed while it was read", done)
    done["files"] += 1
    done["bytes"] += entry.size


def cannot_send(path):
    """Why the reader at the other end would refuse the whole stream for this one name; "" when it would not."""
    try:
        return "its path is too long" if len(path.encode()) > LONGEST_PATH else ""
    except UnicodeEncodeError:
        return "its name is not UTF-8"


def header(path, status, kind):
    """The tar header: name, mode, size and time; no owner."""
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.mtime = kind, stat.S_IMODE(status.st_mode) & 0o755, int(status.st_mtime)
    entry.size = status.st_size if kind == tarfile.REGTYPE else 0
    return entry


def skip(path, why, done):
    """Report an entry that was left out."""
    done["skipped_count"] += 1
    if len(done["skipped"]) < LISTED:
        done["skipped"].append({"path": show(path)[:500], "why": why})


class Exactly:
    """A file that gives exactly as many bytes as its header promised, zeros if it became shorter meanwhile."""

    def __init__(self, file, size):
        self._file, self._left, self.short = file, size, False

    def read(self, most):
        """The next bytes."""
        data = self._file.read(min(most, self._left))
        if not data and self._left:
            self.short = True
            data = bytes(min(most, self._left))
        self._left -= len(data)
        return data
