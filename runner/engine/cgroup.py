"""Limits as the kernel holds them, read from the cgroup tree, version 1 or 2. The root is an argument, so that
fixture trees (tests/conformance/cgroup) stand in for hosts that are not at hand."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from runner.errors import RunnerError, refuse
from runner.model import Spent

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = -1
_V1_UNLIMITED = 1 << 62  # version 1 prints "no limit" as the largest multiple of a page below 2^63


class CgroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What holds now, in bytes, processes and thousandths of a core; -1 = no limit.

    `swap` is memory plus swap together, in both versions."""

    version: int
    memory: int
    swap: int
    pids: int
    cpu_milli: int


def parse_membership(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as controller -> path; the unified hierarchy's controller is ""."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    return found


class CgroupTree:
    """One mounted cgroup tree. A hybrid tree (v1 controllers beside an empty unified one) counts as version 1."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self.version = 2 if (root / "cgroup.controllers").exists() else 1
        self._folders = {} if self.version == 2 else _controller_folders(root)

    def has(self, controller: str) -> bool:
        """Whether the controller is mounted here (version 1) or listed (version 2)."""
        if self.version == 2:
            return controller in _read(self._root / "cgroup.controllers").split()
        return controller in self._folders

    def freezes(self) -> bool:
        """Whether a group's processes can be stopped all at once: a controller in version 1, always there in 2."""
        return self.version == 2 or self.has("freezer")

    def limits(self, membership: dict[str, str], lacks: Collection[str] = ()) -> CgroupLimits:
        """The limits of a process with this membership. Raises `RunnerError` (host) naming a file that is missing,
        unless `lacks` says that this host has no such limit ("swap", "cpu"): then there is none."""
        found = self._limits_v2 if self.version == 2 else self._limits_v1
        return found(membership, lacks)

    def oom_kills(self, membership: dict[str, str]) -> int:
        """How many processes of the group the kernel has killed for memory; 0 when the group is gone already."""
        try:
            path = self._place(membership, "memory") / ("memory.events" if self.version == 2 else "memory.oom_control")
            lines = path.read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def spent(self, membership: dict[str, str]) -> Spent | None:
        """What the group has used so far; None when it is gone already."""
        try:
            if self.version == 2:
                place = self._place(membership, "")
                fields = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
                cpu_us, peak = int(fields["usage_usec"]), place / "memory.peak"  # Linux 5.19
            else:
                cpu_us = int((self._place(membership, "cpuacct") / "cpuacct.usage").read_text()) // 1000
                peak = self._place(membership, "memory") / "memory.max_usage_in_bytes"
            memory = int(peak.read_text()) if peak.exists() else -1
        except (OSError, ValueError, KeyError, RunnerError):
            return None
        return Spent(cpu_us=cpu_us, memory_peak=memory, oom_kills=self.oom_kills(membership))

    def _place(self, membership: dict[str, str], controller: str) -> Path:
        key = "" if self.version == 2 else controller
        if key not in membership or (self.version == 1 and controller not in self._folders):
            raise refuse("host", f"the process is in no {controller} cgroup")
        base = self._root if self.version == 2 else self._folders[controller]
        return base / membership[key].lstrip("/")

    def _limits_v1(self, membership: dict[str, str], lacks: Collection[str]) -> CgroupLimits:
        memory, cpu = self._place(membership, "memory"), self._place(membership, "cpu")
        return CgroupLimits(
            version=1,
            memory=_number(memory / "memory.limit_in_bytes"),
            swap=UNLIMITED if "swap" in lacks else _number(memory / "memory.memsw.limit_in_bytes"),
            pids=_number(self._place(membership, "pids") / "pids.max"),
            cpu_milli=UNLIMITED
            if "cpu" in lacks
            else _milli(_read(cpu / "cpu.cfs_quota_us"), _read(cpu / "cpu.cfs_period_us")),
        )

    def _limits_v2(self, membership: dict[str, str], lacks: Collection[str]) -> CgroupLimits:
        place = self._place(membership, "")
        memory = _number(place / "memory.max")
        swap = UNLIMITED if "swap" in lacks else _number(place / "memory.swap.max")
        quota, period = ("max", "") if "cpu" in lacks else _read(place / "cpu.max").split()
        return CgroupLimits(
            version=2,
            memory=memory,
            swap=UNLIMITED if UNLIMITED in (memory, swap) else memory + swap,
            pids=_number(place / "pids.max"),
            cpu_milli=_milli(quota, period),
        )


def _controller_folders(root: Path) -> dict[str, Path]:
    """Version 1 folders by controller: `cpu,cpuacct` serves both names."""
    if not root.is_dir():
        return {}
    return {name: folder for folder in sorted(root.iterdir()) if folder.is_dir() for name in folder.name.split(",")}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise refuse(
            "host",
            f"the kernel does not account {path.name}: {error.strerror}",
            next_step="swap accounting may be off: boot with swapaccount=1" if "memsw" in path.name else "",
        ) from error


def _number(path: Path) -> int:
    text = _read(path)
    if text == "max":
        return UNLIMITED
    value = int(text)
    return UNLIMITED if value >= _V1_UNLIMITED or value < 0 else value


def _milli(quota: str, period: str) -> int:
    return UNLIMITED if quota in ("max", "-1") else int(quota) * 1000 // int(period)
