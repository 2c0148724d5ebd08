"""Git for tools that fetch: over HTTPS alone, with no configuration but ours, no hook, no submodule and no prompt.

A repository's own configuration can name programs to run, and an agent can write it: no command here reads one. A
clone has ours, and a fetch works in a folder of its own that borrows nothing of the repository but objects and refs.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from typing import Any

from runner.guest.beneath import ToolError
from runner.guest.outward import Url, request

# Of a copy of a tool whose manifest binds a credential to its host: the placeholder, and whom it stands for.
PASSWORD, USERNAME = "GIT_PASSWORD", "GIT_PASSWORD_USERNAME"
_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9+@_-]|[./](?![./]|\Z)){0,199}\Z")
_KEPT = ("PATH", "LANG", "TMPDIR", "https_proxy", "HTTPS_PROXY", "GIT_SSL_CAINFO", "SSL_CERT_FILE")
_OF_HTTP = ("unable to access", "RPC failed", "Authentication failed", "could not read Username", "not found")
_SAID = 2000  # characters of what git says that are passed on
_CONFIG = {
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "http.followRedirects": "false",  # a redirect is a destination that nobody asked about
    "http.sslVerify": "true",
    "credential.helper": "",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.protectHFS": "true",  # names that are .git on another system: the workspace may be taken there
    "core.protectNTFS": "true",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "transfer.fsckObjects": "true",  # objects that attack older clients are refused; old harmless faults are not
    "fetch.fsck.zeroPaddedFilemode": "ignore",
    "fetch.fsck.badTimezone": "ignore",
    "fetch.fsck.missingSpaceBeforeDate": "ignore",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
}


def check_ref(name: str, argument: str) -> str:
    """A branch, tag or remote name that no option and no range can be. Raises `ToolError`."""
    if not _REF.match(name) or name.endswith(".lock") or "@{" in name or ".lock/" in name:
        raise ToolError(f"{argument}: `{name[:80]}` is not the name of a branch or tag", argument)
    return name


def environment(url: Url) -> dict[str, str]:
    """What git sees: the way out, whom to trust, our configuration, and a credential for this host alone."""
    config = dict(_CONFIG)
    header = authorization()
    if header:
        config[f"http.{url.origin}/.extraHeader"] = f"Authorization: {header}"
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    found |= {
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_CONFIG_COUNT": str(len(config)),
    }
    for number, (key, value) in enumerate(config.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def authorization() -> str:
    """The header's value that the manifest's credential stands for, "" without one."""
    if PASSWORD not in os.environ:
        return ""
    pair = f"{os.environ.get(USERNAME, 'x-access-token')}:{os.environ[PASSWORD]}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def git(url: Url, *arguments: str, folder: str, keep: tuple[int, ...] = (), **more: str) -> str:
    """Run git in a folder; what it printed. Raises `ToolError` saying why it failed, in egress's words where it was
    that which refused."""
    command = ["/usr/bin/git", *arguments]
    done: Any = subprocess.run(
        command,
        cwd=folder,
        env={**environment(url), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        pass_fds=keep,
    )
    if done.returncode:
        raise _failed(url, done.stderr.decode("utf-8", "replace"))
    text: str = done.stdout.decode("utf-8", "replace")
    return text.strip()


def _failed(url: Url, said: str) -> ToolError:
    """Why. Git does not show what a proxy answers: the request that it begins with is made once more, to be told."""
    lines = [line for line in said.splitlines() if not line.startswith(("hint:", "Cloning into"))]
    text = "\n".join(lines)[:_SAID] or "git ended without a word"
    if not any(each in text for each in _OF_HTTP):
        return ToolError(text, "git")
    header = authorization()
    first = url._replace(target=f"{url.target.rstrip('/')}/info/refs?service=git-upload-pack")
    try:
        answer = request("GET", first, headers={"Authorization": header} if header else {}, most=1)
    except ToolError as error:
        return error
    if answer.header("location"):
        where = answer.header("location")[:300]
        return ToolError(f"{url}: redirects to {where}, and redirects are not followed: name that URL", "redirect")
    if answer.status in (401, 403, 404):
        held = "the credential of this tool was not enough" if header else "this tool has no credential for it"
        return ToolError(f"{url}: the server answers {answer.status}: it is not there, or {held}", "refused")
    return ToolError(text, "git")
