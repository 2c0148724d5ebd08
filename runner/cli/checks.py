"""The checks of `runner doctor`: facts in, findings out. What reads the host is beside what judges it, so that the
judgements are tested without a host that is broken in the right way."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from runner.config import Config
from runner.engine.archive import usage
from runner.engine.cgroup import CgroupTree
from runner.engine.disk import unsupported
from runner.engine.docker import INPUTS_LABEL, Docker, HostFacts, Image
from runner.engine.host import COSTS, SCOPE_ABI, check_engine, check_host, host_facts, lacking, landlock_abi
from runner.engine.image import Kind, tag
from runner.errors import RunnerError
from runner.ledger.tile import RESERVE
from runner.model import TaskProfile
from runner.stream.engines import VERSION, sound

_KERNEL_FLOOR = (6, 1)  # Landlock ABI 2; what the walls of a call are built from
_FIXED_RUNC = (1, 1, 12)
_FREE_FLOOR = 1 << 30
_SETUP = "run scripts/setup"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. `remedy` is empty when nothing needs doing."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def host_findings(config: Config) -> list[Finding]:
    """Kernel, architecture, Landlock, seccomp, cgroups, users and interpreter of this host."""
    named = config.users
    users = {name: _user(name) for name in (named.gate, named.recorder, named.egress, named.broker)}
    return [
        root(os.geteuid()),
        kernel(platform.release(), platform.machine()),
        landlock(landlock_abi()),
        seccomp(_read(Path("/proc/sys/kernel/seccomp/actions_avail"))),
        cgroups(CgroupTree()),
        *[user(name, found is not None) for name, found in users.items()],
        group(config.users.agents_group, _group_exists(config.users.agents_group)),
        *[interpreter(name, closed_to(found, Path(sys.executable))) for name, found in users.items() if found],
        filters(VERSION),
    ]


def filters(version: str) -> Finding:
    """What looks for patterns in output: the engine of this version of its library, or without it Python's own."""
    if version and sound(version):
        return Finding(name="filters", status="ok", found=f"hyperscan {version}: hundreds of MB/s")
    why = f"{version} of the engine's library loses matches" if version else "no engine"
    return Finding(
        name="filters",
        status="warn",
        found=f"{why}: Python's `re` takes its place, and filters 1 to 3 MB/s",
        remedy="pip install hyperscan==0.6.0, which is there for x86-64 with Python 3.11 and 3.12",
    )


def wall_findings(profiles: Iterable[TaskProfile] = ()) -> list[Finding]:
    """What of a profile's promises this host can enforce: Landlock, seccomp, cgroups, Docker's limits; and for each of
    `profiles` whether that is enough."""
    walls = [
        landlock(landlock_abi()),
        seccomp(_read(Path("/proc/sys/kernel/seccomp/actions_avail"))),
        cgroups(CgroupTree()),
    ]
    try:
        facts = host_facts(Docker(timeout_s=10))
        return [*walls, limits(facts), *[kept(profile, facts) for profile in profiles]]
    except RunnerError as error:
        return [*walls, Finding(name="docker", status="fail", found=error.refused.reason, remedy=_SETUP)]


def root(uid: int) -> Finding:
    """The daemon builds its walls as root."""
    if uid == 0:
        return Finding(name="root", status="ok", found="running as root")
    return Finding(name="root", status="warn", found=f"uid {uid}: some checks see less", remedy="run it with sudo")


def kernel(release: str, machine: str) -> Finding:
    """Version and architecture."""
    if machine != "x86_64":
        return Finding(
            name="kernel",
            status="fail",
            found=f"{release} on {machine}: the seccomp filters are written for x86_64",
            remedy="use an x86_64 host",
        )
    if version(release) < _KERNEL_FLOOR:
        return Finding(name="kernel", status="fail", found=release, remedy="use Linux 6.1 or newer")
    return Finding(name="kernel", status="ok", found=f"{release} on {machine}")


def landlock(abi: int) -> Finding:
    """The walls of each call."""
    if abi <= 0:
        remedy = "use a kernel with Landlock; where it is compiled in, boot with lsm=landlock,…"
        return Finding(name="landlock", status="fail", found="not available", remedy=remedy)
    if abi < SCOPE_ABI:
        return Finding(
            name="landlock",
            status="warn",
            found=f"ABI {abi}, without signal scope: a sandbox serves one call at a time",
            remedy="use Linux 6.12 or newer for calls side by side",
        )
    return Finding(name="landlock", status="ok", found=f"ABI {abi}")


def seccomp(actions: str) -> Finding:
    """System call filters."""
    if "errno" in actions.split():
        return Finding(name="seccomp", status="ok", found="filters can be loaded")
    return Finding(name="seccomp", status="fail", found="no filters", remedy="use a kernel with CONFIG_SECCOMP_FILTER")


def cgroups(tree: CgroupTree) -> Finding:
    """Version and, for the process we are, whether limits can be read at all."""
    missing = [name for name in ("memory", "pids", "cpu") if not tree.has(name)]
    if missing:
        remedy = "mount the cgroup controllers, or boot without cgroup_disable"
        return Finding(name="cgroups", status="fail", found=f"no controller {', '.join(missing)}", remedy=remedy)
    tried = " (its readers were tested on fixture trees only)" if tree.version == 2 else ""
    return Finding(name="cgroups", status="ok", found=f"version {tree.version} with memory, pids and cpu{tried}")


def user(name: str, exists: bool) -> Finding:
    """A user that a process of the daemon drops to."""
    if exists:
        return Finding(name=f"user {name}", status="ok", found="exists")
    remedy = f"{_SETUP}, or: useradd -r -s /usr/sbin/nologin {name}"
    return Finding(name=f"user {name}", status="fail", found="does not exist", remedy=remedy)


def group(name: str, exists: bool) -> Finding:
    """The group that may open agent.sock."""
    if exists:
        return Finding(name=f"group {name}", status="ok", found="exists")
    remedy = f"{_SETUP}, or: groupadd -r {name}"
    return Finding(name=f"group {name}", status="fail", found="does not exist", remedy=remedy)


def interpreter(name: str, closed: str) -> Finding:
    """Whether a dropped process can still read its Python. `closed` is the path that is not readable to it."""
    if not closed:
        return Finding(name=f"interpreter for {name}", status="ok", found=sys.executable)
    remedy = f"{_SETUP}: the environment must not lie under a private folder"
    return Finding(name=f"interpreter for {name}", status="fail", found=f"{closed} is closed to it", remedy=remedy)


def engine_findings(
    facts: HostFacts, image: Image | None, wanted: str, inputs: str, profiles: Iterable[TaskProfile] = ()
) -> list[Finding]:
    """Docker, runc, what the host lets Docker limit, whether that is enough for each profile, and the tool image."""
    return [
        docker_version(facts),
        runc(facts.runc),
        limits(facts),
        *[kept(profile, facts) for profile in profiles],
        tool_image(image, wanted, inputs),
    ]


def docker_version(facts: HostFacts) -> Finding:
    """Whether the engine can make the walls at all."""
    try:
        check_engine(facts)
    except RunnerError as error:
        return Finding(name="docker", status="fail", found=error.refused.reason, remedy=error.refused.next_step)
    found = f"{facts.docker}, API {facts.api}, runtimes {', '.join(facts.runtimes)}"
    return Finding(name="docker", status="ok", found=found)


def runc(text: str) -> Finding:
    """CVE-2024-21626: a leaked descriptor let a chosen working directory or binary escape. Distributions backport the
    fix without the version, and the daemon takes no working directory, user or mount path from a call."""
    if not text:
        return Finding(name="runc", status="warn", found="version unknown", remedy="check it against CVE-2024-21626")
    if version(text) >= _FIXED_RUNC:
        return Finding(name="runc", status="ok", found=text)
    remedy = "make sure that your distribution's build has the fix, or install 1.1.12; calls here cannot reach it"
    return Finding(name="runc", status="warn", found=f"{text} predates the fix of CVE-2024-21626", remedy=remedy)


def limits(facts: HostFacts) -> Finding:
    """What profiles ask for and a host may not be able to do."""
    version = f"cgroup version {facts.cgroup_version}"
    never = {"memory": facts.memory_limit, "processes": facts.pids_limit}
    missing = [name for name, there in never.items() if not there]
    if missing:
        remedy = "boot with cgroup_enable=memory: without it no profile can be kept"
        return Finding(
            name="limits", status="fail", found=f"no limit on {', '.join(missing)} ({version})", remedy=remedy
        )
    lacks = lacking(facts)
    if lacks:
        found = f"not here ({version}): {', '.join(COSTS[word][0] for word in lacks)}"
        remedy = f"use a host that has them, or a profile that accepts less: {', '.join(lacks)}"
        return Finding(name="limits", status="warn", found=found, remedy=remedy)
    return Finding(name="limits", status="ok", found=f"memory, swap, processes, CPU, freezer ({version})")


def kept(profile: TaskProfile, facts: HostFacts) -> Finding:
    """Whether this host keeps what the task profile promises; and where the profile accepts less, what that costs."""
    name = f"profile {profile.name}"
    try:
        lacks = check_host(profile, facts)
    except RunnerError as error:
        remedy = error.refused.next_step or "use a host that can"
        return Finding(name=name, status="fail", found=error.refused.reason, remedy=remedy)
    if profile.runtime and profile.runtime not in facts.runtimes:
        found = f"the Docker engine has no runtime {profile.runtime!r}"
        return Finding(name=name, status="fail", found=found, remedy="register it with dockerd, or leave it empty")
    if lacks:
        costs = "; ".join(f"{word}: {COSTS[word][1]}" for word in lacks)
        remedy = f"use a host that has them, and take {', '.join(lacks)} out of `accept`"
        return Finding(name=name, status="warn", found=f"accepts less here: {costs}", remedy=remedy)
    return Finding(name=name, status="ok", found="this host keeps it whole")


def tool_image(image: Image | None, wanted: str, inputs: str) -> Finding:
    """Whether the image is there and was made from the guest that this package holds."""
    if image is None:
        return Finding(name="image", status="fail", found=f"{wanted} is not here", remedy="run `runner image build`")
    if image.labels.get(INPUTS_LABEL) != inputs:
        remedy = "build it anew on the same base, or accept that the guest in it is another one"
        return Finding(name="image", status="warn", found=f"{wanted} was made from other inputs", remedy=remedy)
    return Finding(name="image", status="ok", found=f"{wanted} {image.id[:19]}")


def web_image(image: Image | None, kind: Kind, profiles: Sequence[str]) -> Finding:
    """Whether the profiles of tools with a network can run: without their image they are refused, and no others."""
    named = ", ".join(profiles)
    if image is None:
        found = f"{tag(kind)} is not here: tasks of profile {named} are refused"
        return Finding(name="web image", status="warn", found=found, remedy=kind.remedy)
    return Finding(name="web image", status="ok", found=f"{tag(kind)} {image.id[:19]}, of profile {named}")


def place_findings(config: Config) -> list[Finding]:
    """State and run folders, sockets, disk."""
    run = Path(config.run)
    return [
        folder("state folder", Path(config.state), _mode(Path(config.state))),
        folder("run folder", run, _mode(run)),
        *[
            socket_file(name, _mode(run / name), most)
            for name, most in (("agent.sock", 0o660), ("admin.sock", 0o660 if config.users.operators_group else 0o600))
            if _mode(run / name)
        ],
        disk(config.state, _free(Path(config.state)), writable=_writable(Path(config.state))),
        *reserve(Path(config.state) / "content"),
        disk_workspaces(unsupported()),
        archives(*usage(Path(config.state) / "engine" / "images"), config),
    ]


def archives(size: int, count: int, config: Config) -> Finding:
    """What the archives of images take of the disk."""
    found = f"{count} of {size >> 20} MiB, at most {config.sandboxes.archive_bytes >> 20} MiB"
    found += f", each with its packages (CycloneDX) beside it in {config.state}/engine/images" if count else ""
    found += "" if config.sandboxes.archive else "; none is made: archive = false"
    if size > 0.9 * config.sandboxes.archive_bytes:
        remedy = "`runner trace prune` removes those that no kept call names; or raise sandboxes.archive_bytes"
        return Finding(name="image archives", status="warn", found=found, remedy=remedy)
    return Finding(name="image archives", status="ok", found=found)


def disk_workspaces(missing: str) -> Finding:
    """What task profiles with `workspace_kind = "disk"` need; the others do without it."""
    if missing:
        remedy = 'needed by profiles with workspace_kind = "disk": take them out of the catalogue, or provide it'
        return Finding(name="disk workspaces", status="warn", found=f"no {missing}", remedy=remedy)
    return Finding(name="disk workspaces", status="ok", found="loop devices, ext4, mkfs.ext4")


def folder(name: str, path: Path, mode: tuple[int, int] | None) -> Finding:
    """A folder of the daemon: root's, and nobody else may write in it. `mode` is (mode, uid), None when absent."""
    if mode is None:
        return Finding(name=name, status="ok", found=f"{path} does not exist yet: `runner serve` makes it")
    bits, uid = mode
    if uid != 0 or bits & 0o022:
        remedy = f"chown root {path}; chmod go-w {path}"
        found = f"{path} has owner {uid} and mode {stat.S_IMODE(bits):04o}"
        return Finding(name=name, status="fail", found=found, remedy=remedy)
    return Finding(name=name, status="ok", found=f"{path}, mode {stat.S_IMODE(bits):04o}")


def socket_file(name: str, mode: tuple[int, int] | None, most: int) -> Finding:
    """A socket of a running daemon: no more open than it was made."""
    bits = mode[0] if mode else 0
    if not stat.S_ISSOCK(bits):
        return Finding(name=name, status="fail", found="is not a socket", remedy="stop the daemon and remove it")
    if stat.S_IMODE(bits) & ~most:
        found = f"mode {stat.S_IMODE(bits):04o}, more than {most:04o}"
        return Finding(name=name, status="fail", found=found, remedy="restart the daemon, which makes it anew")
    return Finding(name=name, status="ok", found=f"mode {stat.S_IMODE(bits):04o}")


def disk(path: str, free: int, *, writable: bool = True) -> Finding:
    """Room for the ledger and its content."""
    found = f"{free >> 20} MiB free for {path}"
    if not writable:
        remedy = "see the kernel's log for errors of the disk; repair and remount it, then start the daemon"
        return Finding(name="disk", status="fail", found=f"{path} is on a read-only file system", remedy=remedy)
    if free < _FREE_FLOOR:
        return Finding(name="disk", status="warn", found=found, remedy="make room: a full disk stops new calls")
    return Finding(name="disk", status="ok", found=found)


def reserve(content: Path) -> list[Finding]:
    """The room that the recorder holds back for a full disk, where a daemon has run."""
    if not content.exists():
        return []
    if (content / RESERVE).exists():
        return [Finding(name="disk reserve", status="ok", found="held back for revocations and the ends of calls")]
    remedy = (
        "make room: a daemon that runs takes calls again by itself, one that stopped makes the reserve at its start"
    )
    return [Finding(name="disk reserve", status="warn", found="given up: new calls are refused", remedy=remedy)]


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `1.1.5+ds1` is (1, 1, 5)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def closed_to(ids: tuple[int, int], start: Path) -> str:
    """The first path, from the interpreter up to the root, that these uid and gid cannot pass; "" when all are open."""
    uid, gid = ids
    for place in (start.resolve(), *start.resolve().parents, *start.absolute().parents):
        status = place.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not (status.st_mode >> shift) & 0o1:
            return str(place)
    return ""


def _user(name: str) -> tuple[int, int] | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _mode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mode, status.st_uid


def _free(path: Path) -> int:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def _writable(path: Path) -> bool:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return not os.statvfs(there).f_flag & os.ST_RDONLY


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
