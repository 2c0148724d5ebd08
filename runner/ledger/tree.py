"""A workspace as content: the manifest of a snapshot, the Merkle root over it, and what differs between two.

A manifest is lines, each ended by a newline, each an object in the entries' own canonical JSON (sorted keys, no
spaces, RFC 8785). The first is a header, `{"format":"runner-workspace-1","salt":"<32 hex digits>"}`; the salt keeps
pruned content from being guessed by its root. Then one line for each thing below the workspace's folder (which itself
has none), in the order of the paths' bytes:

    {"mode":"0644","path":"a/b","sha256":"<hex of the content>","size":3,"type":"file"}
    {"mode":"0755","path":"a","type":"folder"}
    {"mode":"0777","path":"l","target":"a/b","type":"link"}
    {"mode":"0600","path":"p","type":"fifo"}             (also "socket" and "device")

`mode` has all twelve bits in octal. Paths and targets are bytes: those that are not UTF-8 are written as `\\xff`, and
a backslash as two. Owners, times, extended attributes, link counts and holes are no part of it; a hard link is a
second file with the same digest. The root is RFC 6962's MTH over the lines without their newlines, so that
`merkle.inclusion_proof` proves a single file. tests/vectors/workspace.json has examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from runner.errors import refuse
from runner.ledger.entry import Part
from runner.ledger.merkle import leaf_hash, root_of

FORMAT = "runner-workspace-1"

_encoder = msgspec.json.Encoder(order="sorted")


class Thing(Part, frozen=True):
    """One line: a file, folder, link or special file of the workspace."""

    type: Literal["file", "folder", "link", "fifo", "socket", "device"]
    path: str
    mode: str
    size: int = -1  # files only
    sha256: str = ""
    target: str = ""  # links only


class Header(Part, frozen=True):
    """The first line."""

    format: str
    salt: str


class Change(Part, frozen=True):
    """One path that differs. What is absent on one side was not there."""

    path: str
    before: Thing | None = None
    after: Thing | None = None

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        """How it differs."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


_things = msgspec.json.Decoder(Thing)
_headers = msgspec.json.Decoder(Header)


def manifest(lines: bytes, salt: bytes) -> bytes:
    """The header and these lines, as kept in the content store."""
    return _encoder.encode(Header(format=FORMAT, salt=salt.hex())) + b"\n" + lines


def root(kept: bytes) -> str:
    """The Merkle root of a manifest, in hex."""
    return root_of([leaf_hash(line) for line in kept.removesuffix(b"\n").split(b"\n")]).hex()


def read(kept: bytes) -> dict[str, Thing]:
    """What a manifest lists, by path. Raises `RunnerError` (ledger) when it is none: each path once, in order."""
    first, *rest = kept.removesuffix(b"\n").split(b"\n")
    try:
        header = _headers.decode(first)
        things = [_things.decode(line) for line in rest]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse("ledger", f"not the manifest of a workspace: {error}") from None
    if header.format != FORMAT:
        raise refuse("ledger", f"a manifest of format {header.format[:40]!r}; this reader knows {FORMAT}")
    found = {thing.path: thing for thing in things}
    if len(found) != len(things):
        raise refuse("ledger", "the manifest of a workspace lists a path twice")
    return found


def line(thing: Thing) -> bytes:
    """A thing as its line, without the newline."""
    return _encoder.encode(thing)


def lines(things: Iterable[Thing]) -> bytes:
    """Things, already in order, as lines."""
    return b"".join([_encoder.encode(thing) + b"\n" for thing in things])


def compare(before: dict[str, Thing], after: dict[str, Thing]) -> list[Change]:
    """Every path that differs, in the order of the paths."""
    return [
        Change(path=path, before=before.get(path), after=after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def total(things: Sequence[Thing]) -> int:
    """Bytes of all files together."""
    return sum(thing.size for thing in things if thing.type == "file")
