"""Profiles against hosts: what cannot be enforced is refused when the catalogue is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from runner.engine.docker import HostFacts, read_facts
from runner.engine.host import COSTS, check_engine, compile_profile
from runner.engine.template import create_body, least_memory, places
from runner.errors import RunnerError
from runner.model import Ceilings, Lack, TaskProfile

FILTER = (Path(__file__).parents[3] / "profiles/seccomp/default.json").read_bytes()
FACTS = HostFacts(
    docker="20.10.24",
    runc="1.1.5",
    api="1.41",
    kernel="6.1",
    cgroup_version=1,
    runtimes=("runc", "runsc"),
    default_runtime="runc",
    security=("name=seccomp,profile=default",),
    memory_limit=True,
    swap_limit=True,
    pids_limit=True,
    cpu_quota=True,
    landlock=7,
    freezer=True,
)
# What a host may lack -> how its facts say so, and what the refusal names.
LACKS = {
    "swap": ({"swap_limit": False}, "a swap limit"),
    "cpu": ({"cpu_quota": False}, "a CPU quota"),
    "freezer": ({"freezer": False}, "a freezer"),
    "truncate": ({"landlock": 2}, "truncation by Landlock"),
    "tcp": ({"landlock": 3}, "TCP by Landlock"),
    "scope": ({"landlock": 5}, "signals and abstract sockets by Landlock"),
}


def profile(*, ceilings: Ceilings | None = None, **change: Any) -> TaskProfile:
    given = {
        "name": "p",
        "description": "",
        "digest": "d",
        "image": "",
        "seccomp": "default",
        "tools": ("t",),
        **change,
    }
    return TaskProfile(ceilings=ceilings or Ceilings(), **given)


def compiled(task: TaskProfile, facts: HostFacts = FACTS) -> Any:
    return compile_profile(task, {"default": FILTER}, facts, "sha256:i")


def test_a_profile_that_this_host_can_keep_compiles():
    made = compiled(profile())
    assert (made.runtime, made.image) == ("runc", "sha256:i")
    assert json.loads(made.seccomp)["defaultAction"] == "SCMP_ACT_ERRNO"
    assert compiled(profile(runtime="runsc")).runtime == "runsc"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"memory_limit": False}, "memory"), ({"pids_limit": False}, "process"), ({"landlock": 0}, "Landlock")],
)
def test_what_nothing_stands_in_for_is_refused_whatever_is_accepted(change, named):
    for accept in ((), tuple(COSTS)):
        with pytest.raises(RunnerError, match=named) as refused:
            compiled(profile(accept=accept), msgspec.structs.replace(FACTS, **change))
        assert refused.value.refused.code == "host"


@pytest.mark.parametrize("word", LACKS)
def test_what_a_host_lacks_is_refused_by_name_unless_the_profile_accepts_it(word):
    change, named = LACKS[word]
    facts = msgspec.structs.replace(FACTS, **change)
    with pytest.raises(RunnerError, match=named) as refused:
        compiled(profile(), facts)
    assert refused.value.refused.code == "host"
    assert word in refused.value.refused.next_step
    assert COSTS[word][1] in refused.value.refused.next_step
    others = tuple(other for other in COSTS if other != word)
    with pytest.raises(RunnerError, match=named):
        compiled(profile(accept=others), facts)
    assert word in compiled(profile(accept=tuple(COSTS)), facts).lacks


def test_what_is_accepted_is_kept_where_the_host_can():
    made = compiled(profile(accept=tuple(COSTS)))
    assert made.lacks == ()
    whole, less = body(), body(lacks=("swap", "cpu"))
    assert less["HostConfig"].pop("MemorySwap") == -1
    assert less["HostConfig"].pop("NanoCpus") == 0
    assert whole["HostConfig"].pop("MemorySwap") == 512 << 20
    assert whole["HostConfig"].pop("NanoCpus") == 1_000_000_000
    assert whole == less


def test_every_word_of_the_vocabulary_is_explained_on_the_page():
    page = (Path(__file__).parents[3] / "profiles/README.md").read_text()
    assert set(COSTS) == set(LACKS) == set(get_args(Lack))
    assert [word for word in COSTS if f"| `{word}` |" not in page] == []


def test_an_unknown_runtime_and_an_unknown_filter_are_refused():
    with pytest.raises(RunnerError, match="no runtime 'kata'") as refused:
        compiled(profile(runtime="kata"))
    assert refused.value.refused.allowed == "runc, runsc"
    with pytest.raises(RunnerError, match="does not exist"):
        compiled(profile(seccomp="nosuch"))


def test_memory_must_cover_every_tmpfs():
    ceilings = Ceilings(workspace=100 << 20, tmp=10 << 20, shm=10 << 20)
    least = least_memory(ceilings)
    assert least > 120 << 20
    compiled(profile(ceilings=msgspec.structs.replace(ceilings, memory=least)))
    with pytest.raises(RunnerError, match="less than workspace"):
        compiled(profile(ceilings=msgspec.structs.replace(ceilings, memory=least - 1)))


def test_zero_is_not_a_ceiling():
    for name in ("pids", "workspace", "workspace_inodes", "tmp", "cpus_milli"):
        with pytest.raises(RunnerError, match="above zero"):
            compiled(profile(ceilings=Ceilings(**{name: 0})))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"api": "1.40"}, "too old"),
        ({"security": ()}, "seccomp"),
        ({"security": ("name=seccomp", "name=rootless")}, "rootless"),
        ({"security": ("name=seccomp", "name=userns")}, "remaps"),
    ],
)
def test_an_engine_that_cannot_make_the_walls_is_refused(change, named):
    check_engine(FACTS)
    with pytest.raises(RunnerError, match=named):
        check_engine(msgspec.structs.replace(FACTS, **change))


def test_abilities_that_are_not_mentioned_are_missing():
    facts = read_facts({}, {})
    assert {facts.memory_limit, facts.swap_limit, facts.pids_limit, facts.cpu_quota} == {False}
    with pytest.raises(RunnerError):
        check_engine(facts)


def body(uid: int = 7, ceilings: Ceilings | None = None, lacks: tuple[str, ...] = ()) -> dict[str, Any]:
    return create_body(
        profile(ceilings=ceilings),
        image="sha256:i",
        seccomp="{}",
        uid=uid,
        folder="/f",
        instance="i",
        sandbox="s",
        lacks=lacks,
    )


def test_the_create_body_asks_for_every_wall():
    made = body()
    host = made["HostConfig"]
    assert made["User"] == "7:7"
    assert made["Labels"] == {"org.toolrunner.instance": "i", "org.toolrunner.sandbox": "s"}
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] == host["MemorySwap"] == 512 << 20
    assert (host["NetworkMode"], host["IpcMode"], host["CgroupnsMode"]) == ("none", "none", "private")
    assert (host["ReadonlyRootfs"], host["Privileged"]) == (True, False)
    assert host["LogConfig"] == {"Type": "none"}
    assert {item["Name"]: item["Hard"] for item in host["Ulimits"]}["core"] == 1
    assert not {"Binds", "Devices", "CapAdd", "ExtraHosts", "PortBindings"} & {
        key for key, value in host.items() if value
    }


def test_shared_memory_exists_only_where_the_profile_gives_it_a_size():
    assert "/dev/shm" not in places(Ceilings())
    assert body(ceilings=Ceilings(shm=1 << 20))["HostConfig"]["Tmpfs"]["/dev/shm"].startswith(
        "rw,nosuid,nodev,noexec,size=1048576,"
    )
