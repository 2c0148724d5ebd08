"""The first call of new tasks, one task after the other, in turns with `docker run` of the same image."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Callable, Iterator

from common import ECHO, ROOT, Block, clock, end_tasks, in_turns, quiet, repeat
from house import Daemon
from load import Agent


class Tasks:
    """Begins tasks of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.connecting: list[float] = []
        self.second: list[float] = []

    def begin(self, count: int, before: Callable[[], object]) -> list[float]:
        """Milliseconds of the first call of `count` new tasks; connecting, and the second call, are kept beside it."""
        found = []
        for _ in range(count):
            handed = self._daemon.credentials()
            before()
            began = clock()
            agent = Agent(handed)
            try:
                self.connecting.append(clock() - began)
                call = agent.calls(argv=list(ECHO))
                found += call(1)
                self.second += call(1)
            finally:
                agent.close()
            end_tasks(self._daemon)
        return found

    def cold(self, count: int) -> list[float]:
        """With no pool."""
        return self.begin(count, lambda: quiet(self._daemon))

    def pooled(self, size: int, image: str) -> Block:
        """With a pool of `size` sandboxes of this image that is full again before each task."""

        def ready() -> int:
            return sum(each["ImageID"] == image and each["State"] == "running" for each in self._daemon.containers())

        def full() -> None:
            self._daemon.wait(lambda: ready() == size)
            quiet(self._daemon)

        return lambda count: self.begin(count, full)


@contextlib.contextmanager
def docker_runs(image: str) -> Iterator[dict[str, tuple[Block, int]]]:
    """`docker run` of the image: plain, and with the walls of the default profile that its options can say. Removing
    the containers is not part of it."""
    label = f"toolrunner.bench={secrets.token_hex(6)}"
    walls = (
        *("--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "65534:65534", "--ipc", "none"),
        *("--security-opt", "no-new-privileges"),
        *("--security-opt", f"seccomp={ROOT / 'profiles' / 'seccomp' / 'default.json'}"),
        *("--memory", "512m", "--memory-swap", "512m", "--cpus", "1", "--pids-limit", "128"),
        *("--tmpfs", "/workspace:size=256m,exec", "--tmpfs", "/tmp:size=32m"),
    )

    def run(*extra: str) -> Block:
        command = ["docker", "run", "--label", label, *extra, "--entrypoint", ECHO[0], image, *ECHO[1:]]
        return repeat(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

    try:
        yield {"docker_run": (run(), 1), "docker_run_walled": (run(*walls), 1)}
    finally:
        listed = subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"label={label}"], check=True, capture_output=True, text=True
        )
        if listed.stdout.split():
            subprocess.run(["docker", "rm", "-f", *listed.stdout.split()], check=True, stdout=subprocess.DEVNULL)


def against_docker(daemon: Daemon, image: str, first: Block, rounds: int) -> dict[str, list[float]]:
    """First calls and both forms of `docker run`, in turns."""
    with docker_runs(image) as runs:
        return in_turns({"first": (first, 1), **runs}, rounds)
