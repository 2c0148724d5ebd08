"""What a container is, read from outside it: /proc of its PID 1 and the cgroup tree. Parsers are pure; `differences`
compares with what the profile promises, and any difference is fatal for the sandbox."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from runner.engine.cgroup import UNLIMITED, CgroupLimits, CgroupTree, parse_membership
from runner.engine.disk_found import DiskFound, DiskPromise, disk_differences, read_disk
from runner.engine.template import CONTROL_FOLDER, MASKED, READ_ONLY, WORKSPACE, Tmpfs, places
from runner.model import Ceilings, Measured

PROC = Path("/proc")
MUST_DIFFER = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# Mounts that the OCI runtime makes itself. Required options; every one of them belongs to the container's root
# user, which nobody in it can become.
_RUNTIME_MOUNTS: dict[str, frozenset[str]] = {
    "/proc": frozenset({"nosuid", "nodev", "noexec"}),
    "/dev": frozenset({"nosuid"}),
    "/dev/pts": frozenset({"nosuid", "noexec"}),
    "/dev/mqueue": frozenset({"nosuid", "nodev", "noexec"}),
    "/sys": frozenset({"ro", "nosuid", "nodev", "noexec"}),
    "/sys/fs/cgroup": frozenset({"nosuid", "nodev", "noexec"}),
}
# Files that Docker binds in, depending on its version.
_DOCKER_FILES = frozenset({"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One line of mountinfo: where, what is mounted there, its options and its filesystem's own."""

    point: str
    root: str
    kind: str
    options: frozenset[str]
    filesystem: dict[str, str]
    device: str = ""  # major:minor


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured of one PID 1."""

    status: dict[str, str]
    namespaces: dict[str, bool]  # kind -> differs from ours
    interfaces: tuple[str, ...]
    mounts: tuple[Mount, ...]
    cgroup: CgroupLimits
    membership: dict[str, str]  # cgroup controller -> path
    disk: DiskFound | None = None  # when /workspace is none in memory


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the profile promises of it."""

    uid: int
    ceilings: Ceilings
    lacks: tuple[str, ...] = ()  # limits that this host has not and the profile does without
    disk: DiskPromise | None = None  # None = /workspace is a tmpfs


def read(pid: int, tree: CgroupTree, proc: Path = PROC, lacks: tuple[str, ...] = ()) -> Found:
    """Measure the process. The caller holds a pidfd, so that the number cannot mean another process meanwhile.

    Raises OSError when the process is gone."""
    place = proc / str(pid)
    membership = parse_membership((place / "cgroup").read_text())
    mounts = parse_mounts((place / "mountinfo").read_text())
    workspace = _at(mounts, WORKSPACE)
    on_disk = workspace is not None and workspace.kind != "tmpfs"
    return Found(
        status=parse_status((place / "status").read_text()),
        namespaces=_namespaces(place, proc / "self"),
        interfaces=parse_interfaces((place / "net/dev").read_text()),
        mounts=mounts,
        cgroup=tree.limits(membership, lacks),
        membership=membership,
        disk=read_disk(place, workspace.device) if workspace is not None and on_disk else None,
    )


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as name -> value."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def parse_interfaces(text: str) -> tuple[str, ...]:
    """Interface names of /proc/PID/net/dev, sorted."""
    return tuple(sorted(line.partition(":")[0].strip() for line in text.splitlines() if ":" in line))


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """/proc/PID/mountinfo, in order; a later mount on a point hides an earlier one."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind_fields = before.split(" "), after.split(" ")
        filesystem = dict(option.partition("=")[::2] for option in kind_fields[2].split(","))
        found.append(
            Mount(
                point=_unescape(fields[4]),
                root=_unescape(fields[3]),
                kind=kind_fields[0],
                options=frozenset(fields[5].split(",")),
                filesystem=filesystem,
                device=fields[2],
            )
        )
    return tuple(found)


def differences(found: Found, expected: Expected) -> list[str]:
    """Every way in which the container is not what was promised, in words; empty when it is."""
    return [
        *_process_differences(found, expected.uid),
        *_mount_differences(found, expected),
        *_limit_differences(found.cgroup, expected),
    ]


def measured(found: Found, *, pid: int, image: str, runtime: str, accepted: tuple[str, ...] = ()) -> Measured:
    """The measurement as it goes to gate and into the ledger."""
    status = found.status
    root, workspace = _at(found.mounts, "/"), _at(found.mounts, WORKSPACE)
    size, inodes = (found.disk.size, found.disk.inodes) if found.disk else _tmpfs_bounds(workspace)
    sets = {name: status.get(name, "?") for name in _CAPABILITY_SETS}
    empty = all(set(value) == {"0"} for value in sets.values())
    return Measured(
        image=image,
        runtime=runtime,
        pid=pid,
        uid=int(status["Uid"].split()[0]),
        seccomp=int(status.get("Seccomp", "0")),
        seccomp_filters=int(status.get("Seccomp_filters", "0")),
        no_new_privs=status.get("NoNewPrivs") == "1",
        capabilities="none" if empty else " ".join(f"{name}={value}" for name, value in sets.items()),
        namespaces=found.namespaces,
        interfaces=found.interfaces,
        read_only_root=root is not None and "ro" in root.options,
        memory_limit=found.cgroup.memory,
        swap_limit=found.cgroup.swap,
        pids_limit=found.cgroup.pids,
        cpu_quota_milli=found.cgroup.cpu_milli,
        cgroup_version=found.cgroup.version,
        accepted=accepted,
        workspace=workspace.kind if workspace is not None else "",
        workspace_size=size,
        workspace_inodes=inodes,
    )


def _process_differences(found: Found, uid: int) -> list[str]:
    status = found.status
    wrong = []
    for name in ("Uid", "Gid"):
        if set(status.get(name, "").split()) != {str(uid)}:
            wrong.append(f"{name} is {status.get(name, 'unknown')}, not {uid} four times")
    if not set(status.get("Groups", "?").split()) <= {str(uid)}:
        wrong.append(f"supplementary groups {status.get('Groups', 'unknown')}")
    for name in _CAPABILITY_SETS:
        if set(status.get(name, "?")) != {"0"}:
            wrong.append(f"{name} is {status.get(name, 'unknown')}, not empty")
    if status.get("Seccomp") != "2" or int(status.get("Seccomp_filters", "0")) < 1:
        wrong.append(f"no seccomp filter is loaded (Seccomp {status.get('Seccomp', 'unknown')})")
    if status.get("NoNewPrivs") != "1":
        wrong.append("no_new_privs is not set")
    if status.get("TracerPid") != "0":
        wrong.append(f"traced by process {status.get('TracerPid', 'unknown')}")
    wrong += [f"the {kind} namespace is the host's" for kind in MUST_DIFFER if not found.namespaces.get(kind)]
    if found.interfaces != ("lo",):
        wrong.append(f"network interfaces {', '.join(found.interfaces) or 'none'}, not lo alone")
    return wrong


def _mount_differences(found: Found, expected: Expected) -> list[str]:
    last = {mount.point: mount for mount in found.mounts}
    writable = places(expected.ceilings, disk=expected.disk is not None)
    wrong = [f"{path} is not mounted" for path in {"/", CONTROL_FOLDER, WORKSPACE, *writable} - last.keys()]
    # What exists on this host and is neither masked nor hidden by a mask above it was forgotten.
    wrong += [
        f"{path} is neither masked nor read-only"
        for path in (*MASKED, *READ_ONLY)
        if path not in last
        and Path(path).exists()
        and not path.startswith("/dev/")
        and Path(path) == Path(path).resolve()
    ]
    for point, mount in last.items():
        if point == WORKSPACE and expected.disk is not None:
            wrong += disk_differences(mount.kind, mount.root, mount.options, found.disk, expected.disk, expected.uid)
        else:
            wrong += _one_mount(point, mount, writable, expected.uid)
    return wrong


def _one_mount(point: str, mount: Mount, writable: dict[str, Tmpfs], uid: int) -> list[str]:
    if point in writable:
        return _tmpfs_differences(point, mount, writable[point], uid)
    if point == "/" or point == CONTROL_FOLDER or point in READ_ONLY or point in _DOCKER_FILES:
        return [] if "ro" in mount.options else [f"{point} is writable"]
    if point in MASKED:
        hidden = "ro" in mount.options or mount.root == "/null"  # an empty read-only folder, or /dev/null for a file
        return [] if hidden else [f"{point} is not masked"]
    if point.startswith("/sys/fs/cgroup/"):
        return [] if "ro" in mount.options else [f"{point} is writable"]
    if point in _RUNTIME_MOUNTS:
        missing = _RUNTIME_MOUNTS[point] - mount.options
        return [f"{point} lacks {', '.join(sorted(missing))}"] if missing else []
    return [f"an unexpected mount at {point} ({mount.kind})"]


def _tmpfs_differences(point: str, mount: Mount, place: Tmpfs, uid: int) -> list[str]:
    if mount.kind != "tmpfs":
        return [f"{point} is {mount.kind}, not tmpfs"]
    needed = {"rw", "nosuid", "nodev"} | (set() if place.programs else {"noexec"})
    wrong = [f"{point} lacks {option}" for option in sorted(needed - mount.options)]
    got = mount.filesystem
    size = _kibibytes(got.get("size", ""))
    if size != -(-place.size // _PAGE) * _PAGE:
        wrong.append(f"{point} holds {size} bytes, not {place.size}")
    if got.get("nr_inodes") != str(place.inodes):
        wrong.append(f"{point} has {got.get('nr_inodes', 'unlimited')} inodes, not {place.inodes}")
    if got.get("uid") != str(uid) or int(got.get("mode", "0"), 8) != place.mode:
        wrong.append(f"{point} has owner {got.get('uid', '0')} and mode {got.get('mode', 'default')}")
    return wrong


def _at(mounts: tuple[Mount, ...], point: str) -> Mount | None:
    """What is mounted there; of several the last, which hides the others."""
    return next((mount for mount in reversed(mounts) if mount.point == point), None)


def _tmpfs_bounds(mount: Mount | None) -> tuple[int, int]:
    got = mount.filesystem if mount is not None else {}
    return _kibibytes(got.get("size", "0")), int(got.get("nr_inodes", "0"))


def _limit_differences(found: CgroupLimits, expected: Expected) -> list[str]:
    ceilings, lacks = expected.ceilings, expected.lacks
    memory = ceilings.memory // _PAGE * _PAGE
    wanted = {
        "memory limit": (found.memory, memory),
        "memory and swap limit": (found.swap, UNLIMITED if "swap" in lacks else memory),
        "process limit": (found.pids, ceilings.pids),
        "CPU quota in thousandths": (found.cpu_milli, UNLIMITED if "cpu" in lacks else ceilings.cpus_milli),
    }
    return [f"{name} is {got}, not {want}" for name, (got, want) in wanted.items() if got != want]


def _namespaces(process: Path, ours: Path) -> dict[str, bool]:
    kinds = sorted(path.name for path in (process / "ns").iterdir() if not path.name.endswith("_for_children"))
    return {kind: (process / "ns" / kind).readlink() != (ours / "ns" / kind).readlink() for kind in kinds}


def _kibibytes(text: str) -> int:
    return int(text[:-1]) << 10 if text.endswith("k") else int(text or "-1")


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
