"""Labels that a manifest or a profile gives to text: `labels` of a tool, [[files]] of a task profile."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

import msgspec

from runner.catalog.place import Place
from runner.model import LabelledFiles

WORKSPACE = "/workspace"
MAX_FILES = 64
MAX_LABELS = 16
_LABEL = re.compile(r"^[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31}){0,3}\Z")  # as `filters.Label`
_TAKEN = frozenset({"secret"})  # found, never given


class FilesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[files]] table, as written."""

    path: str
    label: str
    programs: bool = True


def check_given(labels: Sequence[str], place: Place) -> tuple[str, ...]:
    """`labels` of a manifest. Raises the place's error."""
    for label in labels:
        if (wrong := _wrong(label)) or len(labels) > MAX_LABELS:
            raise place.wrong(f"labels: {wrong or f'more than {MAX_LABELS}'}", "labels", next_step=_STEP)
    return tuple(sorted(set(labels)))


_STEP = "write a word of your own, such as customer, or customer.address"


def _wrong(label: str) -> str:
    if not _LABEL.match(label):
        return f"`{label[:64]}` is not a label"
    return f"`{label}` is what issued secrets have" if label.partition(".")[0] in _TAKEN else ""


def compile_files(files: Sequence[FilesFile], place: Place) -> tuple[LabelledFiles, ...]:
    """[[files]] of a task profile, paths in normal form. Raises the place's error."""
    if len(files) > MAX_FILES:
        raise place.wrong(f"files: more than {MAX_FILES}", "files", next_step="name folders")
    found = []
    for number, each in enumerate(files):
        if wrong := _wrong(each.label):
            raise place.wrong(f"files: {wrong}", "files", str(number), "label", next_step=_STEP)
        path = posixpath.normpath(posixpath.join(WORKSPACE, each.path))
        if not each.path or "\0" in path or not f"{path}/".startswith(f"{WORKSPACE}/"):
            reason = f"files: `{each.path[:200]}` is not in the workspace"
            raise place.wrong(reason, "files", str(number), "path", next_step="write it relative to /workspace")
        found.append(LabelledFiles(path=path, label=each.label, programs=each.programs))
    return tuple(found)
