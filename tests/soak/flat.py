"""What must stay flat while a daemon works: descriptors, memory, threads, files, containers, networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from house import Daemon

GROWS = ("ledger", "content")  # evidence is kept: these folders grow by what was done
MOST = {"descriptors": 0.5, "threads": 0.2, "MiB": 1.0, "files": 0.5, "containers": 0.05, "networks": 0.05}


def sample(daemon: Daemon) -> dict[str, float]:
    """Counts now, by what and by process."""
    found: dict[str, float] = {}
    parent = psutil.Process(daemon.pid)
    inside = [psutil.Process(pid) for pid in daemon.sandbox_pids()]
    for process in [parent, *parent.children(), *inside]:
        name = "parent" if process == parent else "guest" if process in inside else process.cmdline()[3].split(".")[-1]
        found[f"descriptors {name}"] = process.num_fds()
        found[f"threads {name}"] = process.num_threads()
        # Its own alone: what it shares is divided among whoever runs beside it, and those come and go.
        found[f"MiB {name}"] = process.memory_full_info().uss / (1 << 20)
    folders = [path for path in daemon.place.rglob("*") if not {*GROWS} & set(path.relative_to(daemon.place).parts)]
    found["files"] = len(folders)
    api: Any = daemon.docker()
    try:
        found["containers"] = len(daemon.containers())
        found["networks"] = len(api.networks())
    finally:
        api.close()
    return found


def slopes(samples: list[tuple[float, dict[str, float]]], per: float) -> dict[str, float]:
    """Growth per `per` units of the samples' first number, by least squares over the second half of them: caches and
    windows that are bounded have filled by then."""
    half = samples[len(samples) // 2 :] if len(samples) >= 6 else samples
    xs = [x for x, _ in half]
    mean = sum(xs) / len(xs)
    spread = sum((x - mean) ** 2 for x in xs) or 1.0
    names = set.intersection(*(set(values) for _, values in half))
    return {
        name: round(per * sum((x - mean) * values[name] for x, values in half) / spread, 3) for name in sorted(names)
    }


def grown(found: dict[str, float]) -> list[str]:
    """The slopes that are more than noise."""
    return [f"{name}: {slope:+g}" for name, slope in found.items() if slope > MOST[name.split()[0]]]


def memory(daemon: Daemon, name: str = "gate") -> int:
    """Resident bytes of one part."""
    return int(daemon.child(name).memory_info().rss)


def log_is_clean(daemon: Daemon) -> bool:
    """No traceback in any process's log."""
    return "Traceback" not in Path(daemon.log).read_text()
