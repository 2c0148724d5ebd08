"""Shows what changed since a baseline that the caller keeps. Stateless: nothing in the sandbox has to be believed."""

import difflib
import hashlib
import json
import os
import stat
import sys

from runner.guest.beneath import MAX_DEPTH, ToolError, failure, kind_of, open_beneath, regular, walk

PIECE = 1 << 20
MOST_THINGS = 100_000
MOST_BASELINE = 6 << 20  # bytes on standard output, below the ceiling at which a call is killed
MOST_INPUT = 16 << 20
MOST_LISTED = 128 << 10  # bytes of changes in the result
MOST_DIFF = 1 << 20  # bytes of unified diff
SMALL_TEXT, SMALL_LINES = 32 << 10, 2000  # difflib takes quadratic time at worst
MOST_TEXT = 2 << 20  # of all small files together in one baseline
SHOWN = ("type", "mode", "size", "sha256", "target")


def run(call):
    """What differs, or with mode = baseline what there is; see tool.toml."""
    place = call.place("path")
    mode = call.arguments.get("mode", "changes")
    done = {"path": place.shown, "files": 0, "bytes": 0, "not_seen": 0}
    before = read_baseline(sys.stdin.buffer) if mode == "changes" else {}
    # A diff needs the new text where the old one is known; a baseline holds what the caller wants it to.
    wants = before.get if mode == "changes" else (lambda path: {"text": ""} if call.arguments.get("text", True) else {})
    try:
        folder = place.folder()
        try:
            now = look(folder, wants, done)
        finally:
            os.close(folder)
        if mode == "baseline":
            write_baseline(now)
        else:
            done |= compare(before, now)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise failure(place.shown, error) from None
    return done


def look(folder, wants, done):
    """Everything below the open `folder`: path -> what it is."""
    found, texts = {}, 0
    for name, held, status in walk(folder):
        if len(found) >= MOST_THINGS:
            raise ToolError(f"more than {MOST_THINGS} files: name a smaller folder in `path`", "too_many")
        path = text_of(os.fsencode(name))
        thing = {"type": kind_of(status.st_mode), "mode": f"{stat.S_IMODE(status.st_mode):04o}"}
        if stat.S_ISREG(status.st_mode):
            wanted = texts < MOST_TEXT and "text" in (wants(path) or {})
            texts += read_file(name, held, thing, wanted, done)
        elif stat.S_ISLNK(status.st_mode):
            try:
                thing["target"] = text_of(os.fsencode(os.readlink(name.rsplit("/", 1)[-1], dir_fd=held)))
            except OSError:  # swapped meanwhile
                done["not_seen"] += 1
        elif stat.S_ISDIR(status.st_mode) and name.count("/") + 1 >= MAX_DEPTH:
            done["not_seen"] += 1
        found[path] = thing
        done["files"] += 1
    return found


def read_file(name, held, thing, wanted, done):
    """Size and digest of a regular file into `thing`, and its text if `wanted` and small. Returns the text's length."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = open_beneath(held, name.rsplit("/", 1)[-1], flags)
        with regular(descriptor, "rb", name) as file:
            most = os.fstat(file.fileno()).st_size
            total, size, start = hashlib.sha256(), 0, b""
            while size < most and (piece := file.read(min(PIECE, most - size))):
                start = start or piece
                total.update(piece)
                size += len(piece)
    except (OSError, ToolError):  # not ours to read, removed or swapped meanwhile
        done["not_seen"] += 1
        return 0
    thing["size"], thing["sha256"] = size, total.hexdigest()
    done["bytes"] += size
    text = small_text(start) if wanted and size == len(start) else None
    if text is None:
        return 0
    thing["text"] = text
    return size


def small_text(data):
    """The bytes as text a person can compare; None when they are not that."""
    if len(data) > SMALL_TEXT or b"\0" in data or data.count(b"\n") > SMALL_LINES:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def write_baseline(now):
    """The state as lines of JSON."""
    written = 0
    for path in sorted(now):
        line = json.dumps({"path": path, **now[path]}, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        written += len(line)
        if written > MOST_BASELINE:
            raise ToolError("the baseline is too long: set `text` to false, or name a smaller folder", "too_many")
        sys.stdout.buffer.write(line)


def read_baseline(source):
    """The baseline on standard input: path -> what it was. No bytes are the empty start."""
    data = source.read(MOST_INPUT + 1)
    if len(data) > MOST_INPUT:
        raise ToolError(f"the baseline is longer than {MOST_INPUT} bytes", "baseline")
    found = {}
    try:
        for line in data.splitlines():
            thing = json.loads(line)
            if "format" in thing and "path" not in thing:  # the header of a snapshot's manifest
                continue
            path = thing.pop("path")
            if not isinstance(path, str) or not isinstance(thing.get("text", ""), str) or path in found:
                raise ValueError(f"line {len(found) + 1} is not what this tool writes")
            found[path] = thing
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ToolError(f"standard input is not a baseline: {error}", "baseline") from None
    return found


def compare(before, now):
    """The changes for the result; the text diff goes to standard output."""
    counts, listed, room, more, only = {"added": 0, "removed": 0, "changed": 0}, [], MOST_LISTED, 0, 0
    diff_room = MOST_DIFF
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path), now.get(path)
        if shown(old) == shown(new):
            continue
        change = {"path": path, "change": "added" if old is None else "removed" if new is None else "changed"}
        counts[change["change"]] += 1
        change |= {name: shown(thing) for name, thing in (("before", old), ("after", new)) if thing is not None}
        size = len(json.dumps(change))
        room -= size
        if room >= 0:
            listed.append(change)
        else:
            more += 1
        diff = unified(path, old, new)
        if diff is not None and len(diff) <= diff_room:
            diff_room -= len(diff)
            sys.stdout.buffer.write(diff)
        elif old is not None and "file" in (old.get("type"), (new or {}).get("type")) and changes_content(old, new):
            only += 1
    return {"counts": counts, "changes": listed, "more": more, "only_digests": only}


def shown(thing):
    """What of a thing is compared and listed."""
    return None if thing is None else {key: thing[key] for key in SHOWN if key in thing}


def changes_content(old, new):
    """Whether more than the mode differs."""
    return new is None or old.get("sha256") != new.get("sha256")


def unified(path, old, new):
    """A unified diff of two small texts, None where one of them is not known or they are equal."""
    if old is None or "text" not in old or (new is not None and "text" not in new):
        return None
    was, is_now = old["text"], new["text"] if new is not None else ""
    if was == is_now or len(was) > SMALL_TEXT:
        return None
    name = path.encode("unicode_escape").decode()  # a name with a newline must not look like a line of the diff
    lines = []
    names = (f"before/{name}", f"after/{name}" if new is not None else "/dev/null")
    for line in difflib.unified_diff(was.splitlines(True), is_now.splitlines(True), *names):
        lines.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(lines).encode()


def text_of(name):
    """Bytes as text, one way only: as a snapshot's manifest writes them."""
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
