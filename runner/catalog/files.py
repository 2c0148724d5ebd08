"""Reading a catalogue's folders into bytes: parent's part, done as root, which therefore interprets nothing."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.config import Config
from runner.errors import refuse
from runner.wire.guest import code_digest
from runner.wire.parent import Bundle

# Bounds on what parent reads: the whole bundle travels to two processes as one message each.
MAX_FILE = 1 << 20
MAX_FOLDER = 4 << 20
MAX_FILES = 512
MAX_DEPTH = 5

# The generated schema, for editors: no part of a bundle. Cedar's extension takes the one `*.cedarschema` that lies in a
# policy's own folder (vscode-cedar, src/fileutil.ts, getSchemaUri); Cedar's command line is given its path.
SCHEMA = "runner.cedarschema"
SIGNATURE = "bundle.sig"  # of a bundle of policies: beside them, no part of what it signs
VERSION = "bundle.toml"  # what the author calls this state of the bundle: a part of it, signed with the rest

_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")


def shared(name: str) -> Path:
    """Where the package's own `profiles`, `tools`, `policies` or `Containerfile` lies: in a checkout at its root, in an
    installed wheel under runner/share."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / name
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.exists() else package / "share" / name


def read_bundle(config: Config, config_path: Path, config_bytes: bytes) -> Bundle:
    """The bytes of everything `config` points at. Raises `RunnerError` naming the file that is a link, too large, not a
    regular file, badly named or one too many; nothing is interpreted."""
    return read_folders(
        Path(config.profiles or shared("profiles")),
        Path(config.tools or shared("tools")),
        Path(config.policies or shared("policies")),
        config_path=config_path,
        config_bytes=config_bytes,
    )


def read_folders(
    profiles: Path, tools: Path, policies: Path, *, config_path: Path = Path("runner.toml"), config_bytes: bytes = b""
) -> Bundle:
    """A bundle of three folders; `read_bundle` for callers that have no config file."""
    found = {
        "profiles": read_folder(profiles, "profile"),
        "tools": read_folder(tools, "manifest"),
        "policies": read_folder(policies, "policy", skip=("cases", SCHEMA)),
    }
    files = all_files(config_bytes, **found)
    return Bundle(config=config_bytes, config_path=str(config_path), digest=code_digest(files), **found)


def all_files(
    config: bytes, *, profiles: Mapping[str, bytes], tools: Mapping[str, bytes], policies: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Everything a bundle's digest covers, by path."""
    files = {"runner.toml": config}
    for folder, content in (("profiles", profiles), ("tools", tools), ("policies", policies)):
        files.update({f"{folder}/{path}": data for path, data in content.items()})
    return files


def read_folder(folder: Path, code: str, skip: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below `folder`, by relative path. README.md, dot files and __pycache__ are not part of a catalogue.

    Raises `RunnerError` of `code` naming the file."""
    found: dict[str, bytes] = {}
    total = 0
    for path in _walk(folder.resolve(), code, 1, skip):
        data = _read_file(path, code)
        total += len(data)
        if len(found) >= MAX_FILES or total > MAX_FOLDER:
            raise refuse(
                code,
                f"more than {MAX_FILES} files or {MAX_FOLDER} bytes",
                field=str(folder),
                next_step="remove what is not needed",
            )
        found[path.relative_to(folder.resolve()).as_posix()] = data
    return dict(sorted(found.items()))


def _walk(folder: Path, code: str, depth: int, skip: tuple[str, ...] = ()) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise refuse(
            code,
            f"cannot read the folder: {error.strerror}",
            field=str(folder),
            next_step="lay the folders out with `runner init DIR`",
        ) from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in ("__pycache__", "README.md", *skip):
            continue
        if entry.is_symlink():
            raise refuse(code, "is a symbolic link", field=str(path), next_step="put the file itself there")
        if not _PART.match(entry.name):
            raise refuse(
                code,
                "the name has characters outside A-Z a-z 0-9 _ . -",
                field=repr(str(path))[1:-1],
                next_step="rename or remove it",
            )
        if not entry.is_dir(follow_symlinks=False):
            yield path
        elif depth < MAX_DEPTH:
            yield from _walk(path, code, depth + 1)
        else:
            raise refuse(code, f"folders nest deeper than {MAX_DEPTH}", field=str(path), next_step="flatten it")


def _read_file(path: Path, code: str) -> bytes:
    """At most `MAX_FILE` bytes of a regular file, opened without following a link and without waiting on a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refuse(code, "is not a regular file", field=str(path), next_step="remove it")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        reason = f"cannot read it: {error.strerror}"
        raise refuse(code, reason, field=str(path), next_step="correct its mode") from error
    if len(data) > MAX_FILE:
        raise refuse(code, f"is larger than {MAX_FILE} bytes", field=str(path), next_step="make it smaller")
    return data


def archive(files: Mapping[str, bytes]) -> bytes:
    """The bytes whose SHA-256 is `code_digest(files)`: each file in path order, path and bytes length-prefixed."""
    parts: list[bytes] = []
    for path in sorted(files):
        name = path.encode()
        parts += [struct.pack(">I", len(name)), name, struct.pack(">Q", len(files[path])), files[path]]
    return b"".join(parts)


def unarchive(data: bytes) -> dict[str, bytes]:
    """The files of an archive that was told by its digest. Raises `RunnerError` (ledger) when it ends too early."""
    found: dict[str, bytes] = {}
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        piece = data[at : at + count]
        if len(piece) != count:
            raise refuse("ledger", "an archive of files ends too early")
        at += count
        return piece

    while at < len(data):
        name = take(int.from_bytes(take(4))).decode("utf-8", "replace")
        found[name] = take(int.from_bytes(take(8)))
    return found


class Contents:
    """Collects what the content store must hold, so that every digest of an artefact resolves."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def plain(self, data: bytes) -> str:
        """Keep `data`; its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.found[digest] = data
        return digest

    def archive(self, files: Mapping[str, bytes]) -> str:
        """Keep the archive of `files`; its digest, which is `code_digest(files)`."""
        return self.plain(archive(files))
