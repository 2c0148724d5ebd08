"""Paths as `path_containment` compares them: lexically, in normal form. Where one leads is the guest's to enforce."""

from __future__ import annotations

WORKSPACE = "/workspace"  # where a call's working directory is, so where a relative path begins
PATH_MAX = 4096  # Linux's


def normal_path(text: object) -> str | None:
    """The lexical normal form of a path, absolute, relative ones taken from /workspace; None when it is no path.

    What is longer than any kernel would open is no path: 900 clauses on 200 kB once took six seconds."""
    if type(text) is not str or not 0 < len(text) <= PATH_MAX or "\0" in text:
        return None
    parts: list[str] = []
    for part in (text if text[0] == "/" else f"{WORKSPACE}/{text}").split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part and part != ".":
            parts.append(part)
    return "/" + "/".join(parts)


def beneath(root: str | None, path: str | None) -> bool:
    """Whether `path` is `root` or lies below it; both in normal form, None is beneath nothing."""
    if root is None or path is None:
        return False
    return path == root or path.startswith(root.rstrip("/") + "/")
