"""The one shape of a sandbox: profile, uid and image in, Docker's create body out. Pure.

Nothing here comes from an agent. What is asked for here is afterwards read back from the kernel (measure.py)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from runner.engine.docker import INSTANCE_LABEL, SANDBOX_LABEL
from runner.model import Ceilings, TaskProfile

WORKSPACE = "/workspace"
CONTROL_FOLDER = "/run/runner"
CONTROL_NAME = "control.sock"
HOSTNAME = "sandbox"

GUEST_MEMORY = 32 << 20  # supervisor, launchers and page tables, beside tools and tmpfs
TOOLS_SIZE = 8 << 20  # tool code, written by PID 1 alone
LEAST_FOR_TOOLS = 64 << 20  # below this a Python tool dies of memory before it does anything
OPEN_FILES = 4096  # PID 1 holds pipes of every running call; a call's own limit is far lower
CORE = 1  # byte: no dump, and unlike 0 also none to a handler that the host's core_pattern pipes dumps to (core(5))
DISK_OPTIONS = "nosuid,nodev,noatime,errors=remount-ro"  # noatime: looking changes nothing on the disk
OOM_SCORE = 500  # the host's processes outlive a sandbox; launchers raise theirs to 1000

# Docker's own list (20.10 and 28), and what else tells about the host or holds queues.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    # beyond Docker's
    "/dev/mqueue",  # message queues would outlive a call
    "/proc/buddyinfo",
    "/proc/cmdline",  # the host's boot line
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/key-users",  # every uid of the host that holds a key
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/locks",
    "/proc/mdstat",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/pressure",  # how busy the host is, in microseconds: a clock for other tasks' work
    "/proc/schedstat",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/swaps",
    "/proc/sysvipc",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/block",
    "/sys/devices/virtual/dmi",
    "/sys/kernel",
    "/sys/module",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Tmpfs(msgspec.Struct, frozen=True, kw_only=True):
    """A writable place: bytes, inodes, mode; `programs` says whether a file in it may be executed."""

    size: int
    inodes: int
    programs: bool
    mode: int = 0o700


def places(ceilings: Ceilings, *, disk: bool = False) -> dict[str, Tmpfs]:
    """Every writable place of a sandbox that lies in memory. There is no other but /workspace on a task's `disk`.

    Agents build programs in /workspace and run them there; /tmp and /dev/shm are scratch, where an executable is
    more likely an attack than work; /run/tools holds code that PID 1 checked against its digest."""
    found = {
        "/tmp": Tmpfs(size=ceilings.tmp, inodes=8192, programs=False),  # noqa: S108  # a path inside the container
        "/run/tools": Tmpfs(size=TOOLS_SIZE, inodes=4096, programs=True),
    }
    if not disk:
        found[WORKSPACE] = Tmpfs(size=ceilings.workspace, inodes=ceilings.workspace_inodes, programs=True)
    if ceilings.shm:
        found["/dev/shm"] = Tmpfs(size=ceilings.shm, inodes=1024, programs=False)  # noqa: S108  # same
    return found


def least_memory(ceilings: Ceilings, *, disk: bool = False) -> int:
    """The smallest memory limit under which a full workspace gives ENOSPC instead of an out-of-memory kill:
    tmpfs pages are charged to the limit. Cached pages of a disk are charged too, but the kernel can drop them."""
    return sum(place.size for place in places(ceilings, disk=disk).values()) + GUEST_MEMORY + LEAST_FOR_TOOLS


def create_body(
    profile: TaskProfile,
    *,
    image: str,
    seccomp: str,
    uid: int,
    folder: str,
    instance: str,
    sandbox: str,
    lacks: Collection[str] = (),
    disk: str = "",
) -> dict[str, Any]:
    """The whole create request. `image` is an id, `seccomp` the filter's text, `folder` the socket's on the host,
    `lacks` what this host cannot limit and the profile does without, `disk` the block device of a disk workspace."""
    return {
        "Image": image,
        "User": f"{uid}:{uid}",
        "Hostname": HOSTNAME,
        "Domainname": "",
        "WorkingDir": WORKSPACE,
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", f"HOME={WORKSPACE}"],
        "Labels": {INSTANCE_LABEL: instance, SANDBOX_LABEL: sandbox},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "NetworkDisabled": True,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "OpenStdin": False,
        "Tty": False,
        "HostConfig": _host_config(profile, seccomp=seccomp, uid=uid, folder=folder, lacks=lacks, disk=disk),
    }


def _host_config(
    profile: TaskProfile, *, seccomp: str, uid: int, folder: str, lacks: Collection[str], disk: str
) -> dict[str, Any]:
    ceilings = profile.ceilings
    config: dict[str, Any] = {
        "NetworkMode": "none",
        "IpcMode": "none",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "Privileged": False,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp}"],
        "MaskedPaths": list(MASKED),
        "ReadonlyPaths": list(READ_ONLY),
        "Memory": ceilings.memory,
        "MemorySwap": -1 if "swap" in lacks else ceilings.memory,
        "PidsLimit": ceilings.pids,
        "NanoCpus": 0 if "cpu" in lacks else ceilings.cpus_milli * 1_000_000,
        "OomKillDisable": False,
        "OomScoreAdj": OOM_SCORE,
        "Ulimits": [
            {"Name": name, "Soft": most, "Hard": most}
            for name, most in (("core", CORE), ("msgqueue", 0), ("memlock", 0), ("nofile", OPEN_FILES))
        ],
        "Tmpfs": {path: _tmpfs_options(place, uid) for path, place in places(ceilings, disk=bool(disk)).items()},
        "Mounts": [
            {
                "Type": "bind",
                "Source": folder,
                "Target": CONTROL_FOLDER,
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
            }
        ],
        "Devices": [],
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "PublishAllPorts": False,
    }
    if profile.runtime:
        config["Runtime"] = profile.runtime
    if disk:
        config["Mounts"].append(_volume(disk))
    return config


def _volume(device: str) -> dict[str, Any]:
    """An anonymous volume, mounted by dockerd itself wherever its mounts are, gone with its container. Nothing of the
    image is copied into it."""
    options = {"type": "ext4", "device": device, "o": DISK_OPTIONS}
    return {
        "Type": "volume",
        "Target": WORKSPACE,
        "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": options}},
    }


def _tmpfs_options(place: Tmpfs, uid: int) -> str:
    programs = "exec" if place.programs else "noexec"
    return (
        f"rw,nosuid,nodev,{programs},size={place.size},nr_inodes={place.inodes},"
        f"mode={place.mode:04o},uid={uid},gid={uid}"
    )
