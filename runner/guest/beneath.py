"""Files for tools, from inside the jail: every path is opened by openat2 beneath its root, following no link.

Gate has judged the path lexically; here the kernel is asked to enforce the same judgement on what is really there
(RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS). A component that is a symlink is a refusal, so the
lexical and the real path cannot differ, and a link swapped in during the call gains nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

WORKSPACE = "/workspace"
MAX_DEPTH = 64  # folders below one another in a walk: each holds a descriptor
_OPENAT2 = 437  # the same on every architecture
_RESOLVE = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY

_libc = ctypes.CDLL(None, use_errno=True)

_MEANING = {
    errno.ELOOP: "a part of the path is a symbolic link, and links are not followed",
    errno.EXDEV: "the path leaves its folder",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "this call may not do that here",
    errno.EROFS: "this call may not write here",
    errno.EEXIST: "it exists already",
    errno.ENOSPC: "the workspace is full",
    errno.EFBIG: "the file would be larger than this call may write",
}


class ToolError(Exception):
    """The tool cannot do what was asked. `code` is one word a program can act on; the message is for a reader."""

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


def failure(shown: str, error: OSError) -> ToolError:
    """What an OSError means for the path that the caller named."""
    name = errno.errorcode.get(error.errno or 0, "failed").lower()
    return ToolError(f"{shown}: {_MEANING.get(error.errno or 0, error.strerror or 'it failed')}", name)


def open_beneath(folder: int, relative: str, flags: int, mode: int = 0) -> int:
    """openat2(2) beneath the open `folder`, following no link. Raises OSError."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE)
    path = os.fsencode(relative)
    while True:
        opened: int = _libc.syscall(_OPENAT2, folder, path, how, ctypes.c_size_t(len(how)))
        if opened >= 0:
            return opened
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with the walk
            raise OSError(code, os.strerror(code))


def inside(path: str, root: str = "") -> str:
    """The normal form of `path` relative to `root` ("" is the workspace), "." for root itself. Relative paths begin at
    the workspace. Raises `ToolError` for a path that is not within it."""
    root = os.path.normpath(root or WORKSPACE)
    if not path or "\0" in path:
        raise ToolError("the path is empty or holds a NUL character", "path")
    whole = os.path.normpath(os.path.join(WORKSPACE, path)).replace("//", "/")
    if whole == root:
        return "."
    if not whole.startswith(root.rstrip("/") + "/"):
        raise ToolError(f"{path}: outside {root}", "path")
    return whole[len(root.rstrip("/")) + 1 :]


class Place:
    """One path argument: where it is, and how to open it. `shown` is what messages call it."""

    def __init__(self, path: str, root: str = "") -> None:
        self.shown = path
        self._root = inside(root or WORKSPACE)
        self.relative = inside(path, root)
        self.name = self.relative.rsplit("/", 1)[-1]

    @contextmanager
    def _base(self) -> Iterator[int]:
        workspace = os.open(WORKSPACE, _FOLDER | os.O_CLOEXEC)
        try:
            root = open_beneath(workspace, self._root, _FOLDER)
        finally:
            os.close(workspace)
        try:
            yield root
        finally:
            os.close(root)

    def open(self, flags: int, mode: int = 0o644) -> int:
        """A descriptor. Raises `ToolError`. Never blocks on a FIFO and never becomes a terminal's controller."""
        try:
            with self._base() as root:
                made = mode if flags & os.O_CREAT else 0
                return open_beneath(root, self.relative, flags | os.O_NONBLOCK | os.O_NOCTTY, made)
        except OSError as error:
            raise failure(self.shown, error) from None

    def reader(self) -> BinaryIO:
        """The regular file, to read. Raises `ToolError` for anything else that lies there."""
        return regular(self.open(os.O_RDONLY), "rb", self.shown)

    def writer(self, *, append: bool = False, parents: bool = False, mode: int = 0o644) -> BinaryIO:
        """The regular file, made if it is not there, emptied unless `append`. Raises `ToolError`."""
        if parents:
            self.make_folders(self.relative.split("/")[:-1])
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0)
        opened = self.open(flags, mode)
        made = regular(opened, "ab" if append else "wb", self.shown)
        if not append:
            os.ftruncate(opened, 0)
        return made

    def folder(self) -> int:
        """A descriptor of the folder. Raises `ToolError`."""
        return self.open(_FOLDER)

    def make_folders(self, parts: list[str]) -> None:
        """Make the folders `parts`, each in the one before, beginning at the root; the root too, for a granted folder
        that nobody made yet, but nothing above it. Raises `ToolError`."""
        above, _, name = self._root.rpartition("/")
        workspace = -1
        try:
            workspace = os.open(WORKSPACE, _FOLDER | os.O_CLOEXEC)
            with suppress(FileExistsError):
                held = open_beneath(workspace, above or ".", _FOLDER)
                try:
                    os.mkdir(name, 0o755, dir_fd=held)
                finally:
                    os.close(held)
            with self._base() as root:
                make_folders(root, parts)
        except OSError as error:
            raise failure(self.shown, error) from None
        finally:
            if workspace >= 0:
                os.close(workspace)


def regular(descriptor: int, mode: str, shown: str) -> BinaryIO:
    """The open regular file as a Python file. Closes it and raises `ToolError` for a FIFO, socket, device, folder."""
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise ToolError(f"{shown}: not a regular file but a {kind_of(kind)}", "not_a_file")
    os.set_blocking(descriptor, True)
    opened: Any = os.fdopen(descriptor, mode)
    result: BinaryIO = opened
    return result


def make_folders(folder: int, parts: list[str]) -> None:
    """Make `parts`, each in the one before, beneath the open `folder`, unless they are there. Raises OSError."""
    held = os.dup(folder)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=held)
            below = open_beneath(held, part, _FOLDER)
            os.close(held)
            held = below
    finally:
        os.close(held)


def kind_of(mode: int) -> str:
    """One word for the kind of a file."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
    return kinds.get(stat.S_IFMT(mode), "socket" if stat.S_ISSOCK(mode) else "device")


def show(name: str) -> str:
    """A file name as text that survives JSON: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(folder: int, *, recursive: bool = True) -> Iterator[tuple[str, int, os.stat_result]]:
    """What lies in the open `folder`, in name order, folders before what is in them: (path relative to it, an open
    descriptor of the folder that holds it, status). Links are reported, never followed. Folders deeper than
    `MAX_DEPTH` are reported but not entered. Raises OSError."""
    stack: list[tuple[str, int, list[str]]] = [("", os.dup(folder), _names(folder))]
    try:
        while stack:
            prefix, held, names = stack[-1]
            if not names:
                os.close(held)
                stack.pop()
                continue
            name = names.pop()
            try:
                status = os.stat(name, dir_fd=held, follow_symlinks=False)
            except FileNotFoundError:  # removed meanwhile
                continue
            path = prefix + name
            yield path, held, status
            if recursive and stat.S_ISDIR(status.st_mode) and len(stack) < MAX_DEPTH:
                try:
                    below = open_beneath(held, name, _FOLDER)
                except OSError:  # removed, or swapped for a link
                    continue
                stack.append((path + "/", below, _names(below)))
    finally:
        for _, held, _ in stack:
            os.close(held)


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder), reverse=True)


class Call:
    """What a python tool's `run(call)` is given."""

    def __init__(self, tool: str, arguments: dict[str, Any], roots: dict[str, str], folder: str = "") -> None:
        self.tool = tool
        self.folder = folder  # where the tool's own code lies
        self.arguments = arguments
        self._roots = roots

    def place(self, argument: str, default: str = ".") -> Place:
        """The path in the argument of that name, confined to the folder that the caller's token grants for it."""
        return Place(str(self.arguments.get(argument, default)), self._roots.get(argument, ""))

    def open(self, argument: str, mode: str = "rb") -> BinaryIO:
        """The file in a path argument, as a binary file: mode "rb", "wb" or "ab". Raises `ToolError`."""
        place = self.place(argument)
        if mode == "rb":
            return place.reader()
        if mode in ("wb", "ab"):
            return place.writer(append=mode == "ab")
        raise ValueError(f"mode {mode!r} is not rb, wb or ab")
