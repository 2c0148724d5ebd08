"""What the Docker engine and its host must be able to do, and profiles compiled against that: a promise that cannot
be kept is refused when the catalogue is loaded, never at a call."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Mapping

import msgspec

from runner.engine import disk, seccomp
from runner.engine.cgroup import CgroupTree
from runner.engine.docker import API_FLOOR, Docker, HostFacts
from runner.engine.template import least_memory
from runner.errors import refuse
from runner.model import Lack, TaskProfile

_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION_FLAG = 1
TRUNCATE_ABI, TCP_ABI, SCOPE_ABI = 3, 4, 6  # Linux 6.2, 6.7 and 6.12

# What a profile may do without (`accept`): what is missing where a host lacks it, and what that costs.
COSTS: dict[Lack, tuple[str, str]] = {
    "swap": (
        "a swap limit (boot with swapaccount=1 on cgroup v1)",
        "a task's memory may go on to the host's swap beyond its ceiling, and lie there after it",
    ),
    "cpu": ("a CPU quota", "a task may use every core of the host as long as its calls last"),
    "freezer": (
        "a freezer (the cgroup v1 controller of that name)",
        "a kill ends processes one after the other, without stopping all of them first",
    ),
    "truncate": (
        "truncation by Landlock (Linux 6.2)",
        "a tool that only reads the workspace can still cut its files short",
    ),
    "tcp": ("TCP by Landlock (Linux 6.7)", "a call that has sockets may use TCP on the sandbox's own loopback"),
    "scope": (
        "signals and abstract sockets by Landlock (Linux 6.12)",
        "a call may signal its own launcher, and a sandbox serves one call at a time",
    ),
}


class CompiledProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A task profile with everything resolved: image id, runtime name, filter text."""

    profile: TaskProfile
    image: str
    runtime: str
    seccomp: str
    lacks: tuple[Lack, ...] = ()  # what the profile accepts and this host does lack


def host_facts(docker: Docker) -> HostFacts:
    """What the engine says of itself, and the kernel that sandboxes share with us."""
    return msgspec.structs.replace(docker.facts(), landlock=landlock_abi(), freezer=CgroupTree().freezes())


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 when there is none or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_LANDLOCK_VERSION_FLAG))
    if abi < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EOPNOTSUPP):
        return 0
    return max(int(abi), 0)


def lacking(facts: HostFacts) -> tuple[Lack, ...]:
    """What of `COSTS` this host cannot do, in their order."""
    there: dict[Lack, bool] = {
        "swap": facts.swap_limit,
        "cpu": facts.cpu_quota,
        "freezer": facts.freezer,
        "truncate": facts.landlock >= TRUNCATE_ABI,
        "tcp": facts.landlock >= TCP_ABI,
        "scope": facts.landlock >= SCOPE_ABI,
    }
    return tuple(word for word in COSTS if not there[word])


def check_engine(facts: HostFacts) -> None:
    """Raise `RunnerError` (host) unless this engine can make the walls at all."""
    if _version(facts.api) < API_FLOOR:
        raise refuse(
            "host", f"Docker {facts.docker} (API {facts.api}) is too old", next_step="install Docker 20.10 or newer"
        )
    options = {option.split(",")[0].removeprefix("name=") for option in facts.security}
    if "seccomp" not in options:
        raise refuse(
            "host", "the Docker engine cannot load seccomp filters", next_step="use a kernel and engine with seccomp"
        )
    if "rootless" in options:
        raise refuse(
            "host", "a rootless Docker engine cannot give each sandbox its own uid", next_step="use a rootful engine"
        )
    if "userns" in options:
        raise refuse(
            "host",
            "the Docker engine remaps user ids, so a sandbox's uid on the host would not be the leased one",
            next_step="start dockerd without userns-remap, or give this daemon an engine of its own",
        )


def compile_profile(
    profile: TaskProfile, filters: Mapping[str, bytes], facts: HostFacts, image: str
) -> CompiledProfile:
    """The profile with `image` (an id) and its filter. Raises `RunnerError` (profile, host) naming what is missing."""
    where = f"profile {profile.name}"
    text = filters.get(profile.seccomp)
    if text is None:
        known = ", ".join(sorted(filters)) or "none"
        raise refuse("profile", f"seccomp filter {profile.seccomp!r} does not exist", field=where, allowed=known)
    seccomp.validate(text, f"seccomp/{profile.seccomp}.json")
    runtime = profile.runtime or facts.default_runtime
    if runtime not in facts.runtimes:
        raise refuse(
            "host",
            f"the Docker engine has no runtime {runtime!r}",
            field=where,
            allowed=", ".join(facts.runtimes),
            next_step="register it with dockerd, or leave `runtime` empty",
        )
    lacks = check_host(profile, facts)
    _check_ceilings(profile, where)
    return CompiledProfile(profile=profile, image=image, runtime=runtime, seccomp=seccomp.compact(text), lacks=lacks)


def check_host(profile: TaskProfile, facts: HostFacts) -> tuple[Lack, ...]:
    """What this host lacks and the profile accepts. Raises `RunnerError` (host) naming everything else it lacks."""
    where = f"profile {profile.name}"
    needed = {
        "a memory limit": facts.memory_limit,
        "a process limit": facts.pids_limit,
        "the walls of a call (Landlock)": facts.landlock > 0,
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:  # nothing stands in for these, so that no profile can accept it
        raise refuse("host", f"this host cannot enforce {', '.join(missing)}", field=where)
    lacks = lacking(facts)
    refused = [word for word in lacks if word not in profile.accept]
    if refused:
        words = ", ".join(f'"{word}"' for word in (*profile.accept, *refused))
        raise refuse(
            "host",
            f"this host cannot enforce {', '.join(COSTS[word][0] for word in refused)}",
            field=where,
            next_step=f"use a host that can, or write accept = [{words}] into the profile, which then promises less: "
            + "; ".join(COSTS[word][1] for word in refused),
        )
    return lacks


def _check_ceilings(profile: TaskProfile, where: str) -> None:
    ceilings = profile.ceilings
    if min(ceilings.pids, ceilings.workspace, ceilings.workspace_inodes, ceilings.tmp) <= 0 or ceilings.cpus_milli < 10:
        raise refuse("profile", "pids, workspace, workspace_inodes, tmp and cpus must be above zero", field=where)
    on_disk = profile.workspace_kind == "disk"
    if on_disk:
        disk.check(ceilings, where)
    least = least_memory(ceilings, disk=on_disk)
    if ceilings.memory < least:
        raise refuse(
            "profile",
            f"memory = {ceilings.memory >> 20}MiB is less than workspace, tmp, shm and tool code together with what "
            f"the guest and one tool need: a full workspace would kill instead of saying that it is full",
            field=where,
            allowed=f"at least {-(-least >> 20)}MiB",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
