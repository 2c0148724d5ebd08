"""Clones a repository into an empty folder, which is opened beneath the workspace before git sees it."""

import os

from runner.guest.beneath import ToolError
from runner.guest.git import check_ref, git
from runner.guest.outward import parse_url


def run(call):
    """What was cloned."""
    given = call.arguments
    url = parse_url(given["url"], ("https",))
    if "?" in url.target or url.target == "/":
        raise ToolError("url: a repository has a path and no query", "url")
    options = ["--branch", check_ref(given["ref"], "ref")] if "ref" in given else []
    depth = given.get("depth", 1)
    options += [f"--depth={depth}"] if depth else []
    place = call.place("path")
    place.make_folders([] if place.relative == "." else place.relative.split("/"))
    held = place.folder()
    try:
        if os.listdir(held):
            raise ToolError(f"{place.shown}: the folder is not empty: name a new one", "exists")
        folder = f"/proc/self/fd/{held}"
        fixed = ("--quiet", "--template=", "--no-recurse-submodules")
        git(url, "clone", *fixed, *options, "--", str(url), ".", folder=folder)
        commit = git(url, "rev-parse", "--verify", "--quiet", "HEAD", folder=folder) if _has_commit(held) else ""
        return {
            "source": str(url),
            "path": place.shown,
            "commit": commit,
            "branch": git(url, "branch", "--show-current", folder=folder),
            "shallow": os.access(f"{folder}/.git/shallow", os.F_OK),
            "submodules": os.access(f"{folder}/.gitmodules", os.F_OK),
            "untrusted": True,
        }
    finally:
        os.close(held)


def _has_commit(held):
    """Whether the clone has any ref: one of an empty repository has none."""
    git_folder = os.open(".git", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
    try:
        return os.access("packed-refs", os.F_OK, dir_fd=git_folder) or os.access("shallow", os.F_OK, dir_fd=git_folder)
    finally:
        os.close(git_folder)
