"""Fetches into a repository without reading its configuration: git works in a folder of ours that borrows its objects
and refs, so that nothing that lies in the workspace can name a program to run."""

import os
import re
import shutil
import tempfile
from contextlib import suppress

from runner.guest.beneath import ToolError, failure, open_beneath
from runner.guest.git import check_ref, git
from runner.guest.outward import parse_url

MOST = 500
CONFIG = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
BORROWED = ("objects", "refs", "packed-refs", "shallow")
_HEAD = re.compile(r"(?:ref: refs/heads/[^\s\x00-\x1f]{1,200}|[0-9a-f]{40})\n?\Z")


def run(call):
    """Which refs changed."""
    given = call.arguments
    url = parse_url(given["url"], ("https",))
    if "?" in url.target or url.target == "/":
        raise ToolError("url: a repository has a path and no query", "url")
    remote = check_ref(given.get("remote", "origin"), "remote")
    names = [check_ref(each, "refs") for each in given.get("refs", [])]
    wanted = [f"+refs/heads/{each}:refs/remotes/{remote}/{each}" for each in names or ["*"]]
    options = [f"--depth={given['depth']}"] if given.get("depth") else []
    place = call.place("path")
    held = opened(place)
    ours = tempfile.mkdtemp(prefix="fetch-")
    try:
        borrow(ours, held, place.shown)
        before = refs(url, ours, held)
        fixed = ("--quiet", "--no-recurse-submodules", "--no-auto-maintenance", "--no-write-fetch-head")
        tags = "--tags" if given.get("tags") else "--no-tags"
        git(url, "fetch", *fixed, tags, *options, "--", str(url), *wanted, folder=ours, keep=(held,), GIT_DIR=ours)
        give_back(ours, held)
        after = refs(url, ours, held)
    finally:
        shutil.rmtree(ours, ignore_errors=True)
        os.close(held)
    changed = [
        {"ref": ref, "commit": commit, **({"before": before[ref]} if ref in before else {})}
        for ref, commit in sorted(after.items())
        if before.get(ref) != commit
    ]
    return {
        "source": str(url),
        "path": place.shown,
        "updated": changed[:MOST],
        "truncated": len(changed) > MOST,
        "untrusted": True,
    }


def opened(place):
    """The repository's .git, which is a folder that no link leads to."""
    folder = place.folder()
    try:
        held = open_beneath(folder, ".git", os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise failure(f"{place.shown}/.git", error) from None
    finally:
        os.close(folder)
    return held


def borrow(ours, held, shown):
    """Make `ours` a repository of this one's objects and refs, with a configuration of our own and no hooks."""
    try:
        for name in ("objects", "refs"):
            os.close(open_beneath(held, name, os.O_RDONLY | os.O_DIRECTORY))
        with os.fdopen(open_beneath(held, "HEAD", os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as file:
            head = file.read(300)
    except (OSError, ValueError) as error:
        raise ToolError(f"{shown}/.git: not a repository ({type(error).__name__})", "not_a_repository") from None
    if not _HEAD.match(head):
        raise ToolError(f"{shown}/.git/HEAD: names neither a branch nor a commit", "not_a_repository")
    for name, text in (("config", CONFIG), ("HEAD", head)):
        with open(f"{ours}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    for name in BORROWED:
        os.symlink(f"/proc/self/fd/{held}/{name}", f"{ours}/{name}")


def give_back(ours, held):
    """A history that became whole: git removes the list of cut commits by its name, which is our link."""
    if not os.path.lexists(f"{ours}/shallow"):
        with suppress(FileNotFoundError):
            os.unlink("shallow", dir_fd=held)


def refs(url, ours, held):
    """Every ref and its commit."""
    listed = git(url, "for-each-ref", "--format=%(objectname) %(refname)", folder=ours, keep=(held,), GIT_DIR=ours)
    return {ref: commit for commit, _, ref in (line.partition(" ") for line in listed.splitlines())}
