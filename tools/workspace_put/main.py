"""Puts a file or a tree into the workspace. The tar stream is hostile: it may come from anywhere."""

import os
import shutil
import sys
import tarfile

from runner.guest.beneath import ToolError, failure, make_folders, open_beneath, regular

MOST_ENTRIES = 262_144  # the inodes of the largest workspace that this package ships a profile for
LONGEST_HEADER = 64 << 10  # of a pax or long-name header, which tarfile reads into memory whole
PIECE = 1 << 20
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def run(call):
    """What was written."""
    place = call.place("path")
    try:
        if call.arguments["kind"] == "file":
            return put_file(call, place)
        return put_tree(call, place)
    except OSError as error:
        raise failure(place.shown, error) from None


def put_file(call, place):
    """Standard input into one file."""
    mode = int(call.arguments.get("mode", "644"), 8)
    with place.writer(parents=True, mode=mode) as file:
        shutil.copyfileobj(sys.stdin.buffer, file, PIECE)
        file.flush()
        os.fchmod(file.fileno(), mode)
        size = file.tell()
    return {"path": place.shown, "files": 1, "folders": 0, "bytes": size}


def put_tree(call, place):
    """A tar stream into a folder."""
    if place.relative != ".":
        place.make_folders(place.relative.split("/"))
    root = place.folder()
    done = {"path": place.shown, "files": 0, "folders": 0, "bytes": 0}
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", tarinfo=Entry, errorlevel=2) as archive:
            for entry in archive:
                archive.members = []  # else every entry of the stream stays in memory
                put_entry(archive, entry, root, done)
    except (tarfile.TarError, UnicodeError, ValueError, EOFError) as error:
        raise ToolError(f"standard input is not a tar stream: {error}", "tar") from None
    finally:
        os.close(root)
    while sys.stdin.buffer.read(PIECE):  # the padding after the archive
        pass
    return done


def put_entry(archive, entry, root, done):
    """One entry, beneath the open folder `root`. Raises `ToolError` when it is not allowed."""
    if done["files"] + done["folders"] >= MOST_ENTRIES:
        raise ToolError(f"more than {MOST_ENTRIES} entries", "too_many")
    parts = parts_of(entry.name, done)
    if entry.isdir():
        make_folders(root, parts)
        done["folders"] += 1
        return
    if not entry.isreg() or entry.issparse() or not parts:
        raise refused(entry.name, "it is neither a regular file nor a folder", done)
    make_folders(root, parts[:-1])
    mode = 0o755 if entry.mode & 0o100 else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = open_beneath(root, "/".join(parts), flags, mode)
        with regular(descriptor, "wb", entry.name) as file:
            os.ftruncate(file.fileno(), 0)
            shutil.copyfileobj(archive.extractfile(entry), file, PIECE)
            os.fchmod(file.fileno(), mode)
            done["bytes"] += file.tell()
    except OSError as error:
        raise failure(entry.name[:500], error) from None
    done["files"] += 1


def parts_of(name, done):
    """The folders and name of an entry. Raises `ToolError` for one that could leave its folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise refused(name, "the name is absolute or has a `..`", done)
    return parts


def refused(name, reason, done):
    """The refusal of an entry, saying how far the unpacking came."""
    return ToolError(
        f"entry `{name[:500]}` is refused: {reason}; {done['files']} files were written before it", "entry"
    )


class Entry(tarfile.TarInfo):
    """A tar header with a bound on those that carry other headers."""

    def _proc_member(self, archive):
        if self.type in HEADERS and self.size > LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return super()._proc_member(archive)
