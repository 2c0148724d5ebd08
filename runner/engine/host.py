"""What the Docker engine and its host must be able to do, and profiles compiled against that: a promise that cannot
be kept is refused when the catalogue is loaded, never at a call."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from runner.engine import seccomp
from runner.engine.docker import API_FLOOR, HostFacts
from runner.engine.template import least_memory
from runner.errors import refuse
from runner.model import TaskProfile


class CompiledProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A task profile with everything resolved: image id, runtime name, filter text."""

    profile: TaskProfile
    image: str
    runtime: str
    seccomp: str


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
    _check_ceilings(profile, facts, where)
    return CompiledProfile(profile=profile, image=image, runtime=runtime, seccomp=seccomp.compact(text))


def _check_ceilings(profile: TaskProfile, facts: HostFacts, where: str) -> None:
    enforced = {
        "a memory limit": facts.memory_limit,
        "a swap limit (boot with swapaccount=1 on cgroup v1)": facts.swap_limit,
        "a process limit": facts.pids_limit,
        "a CPU quota": facts.cpu_quota,
    }
    missing = [name for name, there in enforced.items() if not there]
    if missing:
        raise refuse("host", f"this host cannot enforce {', '.join(missing)}", field=where)
    ceilings = profile.ceilings
    if min(ceilings.pids, ceilings.workspace, ceilings.workspace_inodes, ceilings.tmp) <= 0 or ceilings.cpus_milli < 10:
        raise refuse("profile", "pids, workspace, workspace_inodes, tmp and cpus must be above zero", field=where)
    least = least_memory(ceilings)
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
