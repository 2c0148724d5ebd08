"""Local files and folders as streams of bytes, out to a workspace and back in.

What comes back was made by a tool and is hostile. The reader here is small and strict instead of general: ustar
and the pax path record, regular files and folders, nothing else; every name is opened component by component
without following links, inside a fresh folder that appears under its own name only when all of it is good.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from runner.client.calls import CallResult
from runner.client.errors import ToolFailed, refused
from runner.model import Chunk

PIECE = 64 << 10
MAX_GET = 64 << 20  # bytes that `get` holds in memory unless told otherwise
BLOCK = 512
MAX_MEMBERS = 262_144  # the inodes of the largest workspace that a shipped profile has
MAX_NAME = 4096
MAX_DEPTH = 64
MAX_TOLD = 1000
MAX_HEADER = 64 << 10  # bytes of one extended header


# --- out -------------------------------------------------------------------------------------------------


def outgoing(data: bytes | os.PathLike[str], *, omit_links: bool = False) -> tuple[str, Iterator[bytes]]:
    """What `workspace_put` takes for bytes, a local file or a local folder: the kind, and the stream.

    Raises `InvalidArguments` when there is no such file."""
    if isinstance(data, bytes):
        return "file", iter([data])
    path = Path(data)
    if path.is_dir():
        return "tree", pack_tree(path, omit_links=omit_links)
    if not path.is_file():
        raise refused("arguments", "no such file or folder here", field=str(path))
    return "file", read_pieces(path)


def read_pieces(path: Path) -> Iterator[bytes]:
    """A local file's bytes."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def pack_tree(folder: Path, *, omit_links: bool = False) -> Iterator[bytes]:
    """A local folder as a tar stream: files and folders in sorted order, no owners, no times finer than a second.

    A workspace takes no links: `InvalidArguments` names the first, unless they are to be left out. It names a
    special file always. Nothing is opened through a link, also one that is swapped in meanwhile."""
    root = folder.resolve(strict=True)
    for base, folders, names, held in os.fwalk(root):
        folders.sort()
        if len(Path(base).relative_to(root).parts) >= MAX_DEPTH and folders:
            raise refused("arguments", f"folders lie more than {MAX_DEPTH} deep", field=str(Path(base, folders[0])))
        for name in sorted(folders + names):
            found = os.stat(name, dir_fd=held, follow_symlinks=False)
            if not (omit_links and stat.S_ISLNK(found.st_mode)):
                yield from _pack_member(root, Path(base, name), held, found)
    yield bytes(2 * BLOCK)


def _pack_member(root: Path, path: Path, folder: int, found: os.stat_result) -> Iterator[bytes]:
    entry = tarfile.TarInfo(path.relative_to(root).as_posix())
    entry.mode = stat.S_IMODE(found.st_mode) & 0o777
    entry.mtime = int(found.st_mtime)  # whole seconds: a fraction would need an extended header
    if stat.S_ISDIR(found.st_mode):
        entry.type = tarfile.DIRTYPE
    elif stat.S_ISREG(found.st_mode):
        entry.size = found.st_size
    else:
        link = stat.S_ISLNK(found.st_mode)
        raise refused(
            "arguments",
            "a workspace takes no links" if link else "neither a file nor a folder",
            field=str(path),
            next_step="pass omit_links=True to leave links out" if link else "move it out of the folder",
        )
    yield entry.tobuf(tarfile.PAX_FORMAT)
    if entry.size:
        yield from _exactly(path, folder, entry.size)


def _exactly(path: Path, folder: int, size: int) -> Iterator[bytes]:
    """The file's first `size` bytes, zeros where it became shorter since, and the padding of its last block."""
    left = size
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise refused("arguments", f"it cannot be read: {error.strerror}", field=str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refused("arguments", "it was swapped for something else meanwhile", field=str(path))
        while left:
            piece = file.read(min(PIECE, left)) or bytes(min(PIECE, left))
            left -= len(piece)
            yield piece
    yield bytes(-size % BLOCK)


# --- in --------------------------------------------------------------------------------------------------


class Incoming:
    """What `workspace_get` sends, handed on piece by piece, up to a limit."""

    def __init__(self, path: str, limit: int, hand_on: Callable[[bytes], object]) -> None:
        self.path = path
        self._limit = limit
        self._hand_on = hand_on
        self._held = self._end = 0
        self._errors: list[bytes] = []

    def take(self, chunk: Chunk) -> None:
        """One chunk of the call. Raises `InvalidArguments` above the limit."""
        if chunk.stream == "stderr":
            self._errors.append(chunk.data)
            return
        self._held, self._end = self._held + len(chunk.data), chunk.end
        if self._held > self._limit:
            raise refused("arguments", f"{self.path} is larger than {self._limit} bytes", next_step="raise `limit`")
        self._hand_on(chunk.data)

    def finish(self, result: CallResult) -> CallResult:
        """The call's end. Raises `ToolFailed` when it failed, or when not all of it came."""
        if not result.ok or result.stdout_bytes > self._end:
            raise ToolFailed("workspace_get", replace(result, stderr=b"".join(self._errors)))
        return result


def tree_bytes(limit: int) -> int:
    """How long the stream of a tree of `limit` bytes may be: its files, their headers and their padding."""
    return limit + (limit >> 2) + (1 << 20)


@dataclass(frozen=True)
class Extracted:
    """What `get_tree` wrote. `skipped` names the links and special files that were left out."""

    folder: Path
    files: int
    bytes: int
    skipped: tuple[str, ...] = ()


@dataclass
class _Member:
    name: str
    size: int
    padding: int
    file: int = -1  # descriptor it is written to
    kind: bytes = b"0"
    header: bytearray = field(default_factory=bytearray)  # of an extended header


class TreeWriter:
    """A tar stream, fed in any pieces, into a new folder. Raises `InvalidArguments` on anything it will not take."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links above the folder are the caller's own
        self._limit = limit
        self._buffer = bytearray()
        self._member: _Member | None = None
        self._long_name = ""
        self._members = self._files = self._bytes = self._zeros = 0
        self._skipped: list[str] = []
        self._made: Path | None = None
        self._root = -1

    def __enter__(self) -> TreeWriter:
        if self._folder.exists() or self._folder.is_symlink():
            raise refused("arguments", f"{self._folder} exists", allowed="a folder that does not exist yet")
        try:
            self._made = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}.", dir=self._folder.parent))
        except OSError as error:
            raise refused("arguments", f"cannot write in {self._folder.parent}: {error.strerror}") from error
        self._root = os.open(self._made, os.O_RDONLY | os.O_DIRECTORY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._member is not None and self._member.file >= 0:
            os.close(self._member.file)
        if self._root >= 0:
            os.close(self._root)
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        self._buffer += data
        while (self._member is not None and self._body(self._member)) or (self._member is None and self._header()):
            pass

    def finish(self, value: Any = None) -> Extracted:
        """The stream ended: the folder appears under its name. `value` is the tool's, with its own list of what it
        left out; hostile too."""
        left_out = value.get("skipped") if isinstance(value, dict) else None
        if self._member is not None or self._buffer or self._zeros < 2:
            raise refused("arguments", "the tar stream ends early")
        assert self._made is not None
        self._made.chmod(0o755)
        self._made.rename(self._folder)
        self._made = None
        return Extracted(self._folder, self._files, self._bytes, tuple(self._skipped + _told(left_out)))

    # --- one header ---

    def _header(self) -> bool:
        if len(self._buffer) < BLOCK:
            return False
        block = bytes(self._buffer[:BLOCK])
        del self._buffer[:BLOCK]
        if not any(block):
            self._zeros += 1
            return True
        if self._zeros:
            raise refused("arguments", "the tar stream goes on after its end")
        kind, size = block[156:157], _number(block[124:136])
        if _number(block[148:156]) != sum(block[:148]) + 8 * 32 + sum(block[156:]) or block[257:262] != b"ustar":
            raise refused("arguments", "a tar header is damaged")
        self._members += 1
        if self._members > 2 * MAX_MEMBERS:
            raise refused("arguments", f"more than {MAX_MEMBERS} files", allowed=str(MAX_MEMBERS))
        if kind in (b"x", b"L"):
            if size > MAX_HEADER:
                raise refused("arguments", "an extended tar header is too long")
            self._member = _Member("", size, -size % BLOCK, kind=kind)
        else:
            self._open(self._name(block), kind, size, _number(block[100:108]))
        return True

    def _name(self, block: bytes) -> str:
        name = self._long_name
        self._long_name = ""
        if not name:
            prefix, short = _string(block[345:500]), _string(block[:100])
            name = f"{prefix}/{short}" if prefix and block[257:263] == b"ustar\0" else short
        return name

    def _open(self, name: str, kind: bytes, size: int, mode: int) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name or len(name) > MAX_NAME or len(parts) > MAX_DEPTH:
            raise refused("arguments", "a name in the tree leaves it, or is too long", field=_shown(name))
        if kind == b"5" and not size:
            os.close(self._folder_of(parts))
        elif kind in (b"0", b"\0") and parts:
            self._bytes += size
            if self._bytes > self._limit:
                raise refused("arguments", f"the tree is larger than {self._limit} bytes", next_step="raise `limit`")
            self._files += 1
            self._member = _Member(name, size, -size % BLOCK, file=self._create(parts, mode))
        elif kind in b"123467" and not size:
            self._skipped.append(_shown(name))
        else:
            raise refused("arguments", f"a tree holds no entries of tar type {kind!r}", field=_shown(name))

    def _folder_of(self, parts: list[str]) -> int:
        """A descriptor of that folder, made where it is missing, no link followed."""
        here = os.dup(self._root)
        try:
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
                inside = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = inside
        except OSError as error:
            os.close(here)
            raise refused(
                "arguments", f"a folder cannot be made: {error.strerror}", field=_shown("/".join(parts))
            ) from error
        return here

    def _create(self, parts: list[str], mode: int) -> int:
        folder = self._folder_of(parts[:-1])
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            return os.open(parts[-1], flags, 0o755 if mode & 0o100 else 0o644, dir_fd=folder)
        except OSError as error:
            raise refused(
                "arguments", f"a file cannot be made: {error.strerror}", field=_shown("/".join(parts))
            ) from error
        finally:
            os.close(folder)

    # --- one body ---

    def _body(self, member: _Member) -> bool:
        piece = bytes(self._buffer[: member.size])
        del self._buffer[: len(piece)]
        member.size -= len(piece)
        if member.file >= 0:
            _write(member.file, piece)
        else:
            member.header += piece
        if member.size or len(self._buffer) < member.padding:
            return False
        del self._buffer[: member.padding]
        self._member = None
        if member.file >= 0:
            os.close(member.file)
        else:
            self._long_name = _long_name(member)
        return True


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _number(field: bytes) -> int:
    """An octal number of a header. The binary form is for sizes that are refused anyway."""
    text = field.strip(b" \0")
    if not all(0x30 <= digit <= 0x37 for digit in text):
        raise refused("arguments", "a tar header holds a number that is not octal")
    return int(text or b"0", 8)


def _string(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise refused("arguments", "a name in the tree is not UTF-8", field=repr(name)[:120]) from None


def _long_name(member: _Member) -> str:
    """The name in a GNU `L` body or a pax header. A pax record that would change what follows is refused."""
    body = bytes(member.header)
    if member.kind == b"L":
        return _string(body)
    name = ""
    while body:
        length, space, _ = body[:20].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(body):
            raise refused("arguments", "an extended tar header is damaged")
        key, _, value = body[len(length) + 1 : int(length)].removesuffix(b"\n").partition(b"=")
        if key == b"path":
            name = _decoded(value)
        elif key not in (b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"linkpath", b"comment"):
            raise refused("arguments", f"an extended tar header sets {key[:40]!r}", allowed="path and times")
        body = body[int(length) :]
    return name


def _told(left_out: Any) -> list[str]:
    """The names in `workspace_get`'s own list of what it left out."""
    entries = left_out[:MAX_TOLD] if isinstance(left_out, list) else []
    return [
        _shown(entry["path"]) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str)
    ]


def _shown(name: str) -> str:
    """A hostile name for an error message."""
    return name[:120].encode("unicode_escape").decode("ascii")
