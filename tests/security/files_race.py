"""E11: links swapped about a thousand times a second while files go in and out. Importable by the tests, and a program
for the long run:

    python tests/security/files_race.py --seconds 600

Everything that an agent may do with a token that is confined to /workspace/in is done over and over, while a tool of
the same task swaps what lies there for links to /workspace/out, to the image and to a folder of the host. What lies
there must never come out, and nothing may appear there."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

SECRET = b"a secret that lies outside"
INSIDE = b"what lies inside"
FILE_TOOLS = ("fs_read", "fs_write", "fs_list", "fs_search", "workspace_put", "workspace_get", "workspace_diff")
CONFINED = {"constraint_type": "path_containment", "root": "/workspace/in"}
TURN_S = 40.0  # a call's wall time is 60 s: the attacker is started anew

SETUP = """
mkdir -p in/d out/d host/d && printf %s "$0" > out/f && cp out/f out/d/f && cp out/f out/d/g && chmod 600 out/f &&
printf %s "$1" > in/f && cp in/f in/d/f && mkfifo in/p && ln -s ../out/f in/link && ln in/f in/hard
"""
AFTER = 'rm -rf in; mkdir -p in/d; printf %s "$0" > in/f; cp in/f in/d/f'
ACTS = ("put", "put_tree", "get", "get_below", "get_tree", "fs_read", "fs_write", "fs_list", "fs_search", "diff")
ATTACK = """
import os, sys, time
HOST = {host!r}
os.chdir("/workspace/in")
targets = ["../out", "/workspace/out", "/etc", HOST, "/proc/self/root", "/run/tools"]
until, swaps = time.monotonic() + {seconds}, 0
while time.monotonic() < until:
    target = targets[swaps % len(targets)]
    try:
        os.symlink(target + "/f", "new"); os.rename("new", "f")
        os.rename("d", "was"); os.symlink(target, "d")
        time.sleep(0.0005)
        with open("new", "w") as file: file.write({inside!r})
        os.rename("new", "f")
        os.unlink("d"); os.rename("was", "d")
        time.sleep(0.0005)
    except OSError:  # the agent put something there just now
        for name in ("new", "d"):
            try: os.unlink(name)
            except OSError: pass
        if not os.path.lexists("d"):
            try: os.rename("was", "d")
            except OSError: os.makedirs("d", exist_ok=True)
    swaps += 2
print(swaps)
"""
STATE = "find /workspace/out -printf '%p %y %m %s ' -type f -exec sha256sum {} \\;; echo; sha256sum /etc/passwd"


class Leak(Exception):
    """Something outside was read or written."""


def race(daemon: Any, seconds: float, place: Path) -> Counter[str]:
    """Run the race. Returns how often each act succeeded (`get`) and was refused (`get refused`), and the swaps.

    Raises `Leak`. `place` is an empty folder of the agent's own."""
    host = place / "host"
    (host / "d").mkdir(parents=True)
    (host / "f").write_bytes(SECRET)
    counts: Counter[str] = Counter()
    tools = {
        "shell_run": {},
        "python_run": {},
        **{name: {"path": CONFINED, "*": {"constraint_type": "wildcard"}} for name in FILE_TOOLS},
    }
    handed = daemon.credentials(tools=tools)
    with daemon.connect(handed) as attacker, daemon.connect(handed) as agent:
        setup = attacker.call("shell_run", {"argv": ["sh", "-c", SETUP, SECRET.decode(), INSIDE.decode()]})
        assert setup.ok, setup
        before = state(agent)
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            turn = min(TURN_S, over - time.monotonic())
            code = ATTACK.format(host=str(host), seconds=turn, inside=INSIDE.decode())
            with attacker.stream("python_run", {"code": code}) as swapping:
                end = time.monotonic() + turn
                while time.monotonic() < end:
                    for name, act in acts(agent, place, counts["rounds"]).items():
                        attempt(name, act, counts)
                    counts["rounds"] += 1
                result = swapping.result()
                said = b"".join(chunk.data for chunk in swapping) or result.stdout
            counts["swaps"] += int(said or b"0")
        if state(agent) != before:
            raise Leak("a call wrote outside of the folder that its token grants")
        # The control: the same acts at the same paths, when nobody swaps anything.
        assert attacker.call("shell_run", {"argv": ["sh", "-c", AFTER, INSIDE.decode()]}).ok
        calm: Counter[str] = Counter()
        for name, act in acts(agent, place, -1).items():
            attempt(name, act, calm)
        assert all(name in calm for name in ACTS), calm
    left = sorted(path.relative_to(host).as_posix() for path in host.rglob("*"))
    if left != ["d", "f"] or (host / "f").read_bytes() != SECRET:
        raise Leak(f"something was written on the host: {left}")
    return counts


def acts(agent: Any, place: Path, number: int) -> dict[str, Callable[[], Any]]:
    """Each thing that an agent does with files, at paths that are being swapped."""
    source = place / "source"
    (source / "d").mkdir(parents=True, exist_ok=True)
    (source / "d/put").write_bytes(INSIDE)
    return {
        "put": lambda: agent.put("in/d/put", INSIDE),
        "put_tree": lambda: agent.put("in", source),
        "get": lambda: agent.get("in/f"),
        "get_below": lambda: agent.get("in/d/f"),
        "get_tree": lambda: fetched(agent, place / f"got-{number}"),
        "fs_read": lambda: agent.call("fs_read", {"path": "in/f"}),
        "fs_write": lambda: agent.call("fs_write", {"path": "in/d/g", "content": INSIDE.decode()}),
        "fs_list": lambda: agent.call("fs_list", {"path": "in", "recursive": True}),
        "fs_search": lambda: agent.call("fs_search", {"path": "in", "pattern": "lies"}),
        "diff": lambda: agent.call("workspace_diff", {"path": "in", "mode": "baseline"}),
    }


def fetched(agent: Any, folder: Path) -> list[bytes]:
    """A tree got, looked at and removed: nothing but folders and regular files, all of them below it."""
    agent.get_tree("in", folder)
    found = []
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Leak(f"extraction made {path}")
        if path.is_file():
            if path.stat().st_mode & 0o7022:
                raise Leak(f"extraction made {path} with mode {path.stat().st_mode:o}")
            found.append(path.read_bytes())
            path.unlink()
        else:
            path.rmdir()
    folder.rmdir()
    return found


def attempt(name: str, act: Callable[[], Any], counts: Counter[str]) -> None:
    """Do it once. A refusal is an answer; what lies outside is not."""
    from runner.client import CallError, ToolFailed

    shown: Any
    try:
        shown = act()
        refused = getattr(shown, "ok", True) is False
    except (CallError, ToolFailed) as error:
        shown, refused = error, True
    counts[f"{name} refused" if refused else name] += 1
    texts = [shown] if isinstance(shown, bytes) else shown if isinstance(shown, list) else []
    with suppress(AttributeError):
        texts = [*texts, shown.stdout, json.dumps(shown.value, default=str).encode()]
    texts.append(repr(shown).encode())
    if any(SECRET in text or b"root:x:" in text for text in texts):
        raise Leak(f"{name} gave out what lies outside")


def state(agent: Any) -> bytes:
    """What lies outside of the folder, in the workspace and in the image."""
    done = agent.call("shell_run", {"argv": ["sh", "-c", STATE]})
    assert done.ok, done
    return bytes(done.stdout)


def main() -> int:
    """The long run, on a daemon of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    wanted = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from house import Daemon

    from runner.engine import image
    from runner.engine.docker import Docker

    with tempfile.TemporaryDirectory(prefix="toolrunner-race-") as folder:
        place = Path(folder)
        place.chmod(0o711)
        (place / "agent").mkdir()
        daemon = Daemon(place, image.build(Docker(), image.BASE))
        daemon.start()
        try:
            counts = race(daemon, wanted.seconds, place / "agent")
        finally:
            daemon.stop()
    print(json.dumps({"case": "E11", "seconds": wanted.seconds, **dict(sorted(counts.items()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
