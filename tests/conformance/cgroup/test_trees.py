"""The cgroup readers on trees as they look under version 1, version 2 and hybrid hosts. The version 1 and hybrid trees
are copied from a real host; the version 2 tree follows the kernel's cgroup-v2 document (no such host was at hand)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.engine.cgroup import UNLIMITED, CgroupLimits, CgroupTree, parse_membership
from runner.errors import RunnerError
from runner.model import Spent

UNLIMITED_V1 = "9223372036854771712\n"
LIMITED = {
    "memory/docker/abc/memory.limit_in_bytes": "536870912\n",
    "memory/docker/abc/memory.memsw.limit_in_bytes": "536870912\n",
    "memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "pids/docker/abc/pids.max": "128\n",
    "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n",
    "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
}
OPEN = {
    "memory/memory.limit_in_bytes": UNLIMITED_V1,
    "memory/memory.memsw.limit_in_bytes": UNLIMITED_V1,
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    "pids/pids.max": "max\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
UNIFIED = {
    "cgroup.controllers": "cpuset cpu io memory pids\n",
    "system.slice/docker-abc.scope/memory.max": "536870912\n",
    "system.slice/docker-abc.scope/memory.swap.max": "0\n",
    "system.slice/docker-abc.scope/memory.events": "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
    "system.slice/docker-abc.scope/pids.max": "128\n",
    "system.slice/docker-abc.scope/cpu.max": "150000 100000\n",
    "open/memory.max": "max\n",
    "open/memory.swap.max": "max\n",
    "open/memory.events": "oom 0\noom_kill 0\n",
    "open/pids.max": "max\n",
    "open/cpu.max": "max 100000\n",
}
MEMBER_V1 = "4:memory:/docker/abc\n3:pids:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"
ROOT_V1 = "4:memory:/\n3:pids:/\n1:cpu,cpuacct:/\n0::/\n"


def tree(root: Path, files: dict[str, str]) -> CgroupTree:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CgroupTree(root)


def limits(version: int) -> CgroupLimits:
    return CgroupLimits(version=version, memory=512 << 20, swap=512 << 20, pids=128, cpu_milli=1500)


@pytest.mark.parametrize("hybrid", [False, True])
def test_version_1_limits(tmp_path, hybrid):
    extra = {"unified/cgroup.controllers": ""} if hybrid else {}
    found = tree(tmp_path, {**LIMITED, **OPEN, **extra})
    assert found.version == 1
    assert found.limits(parse_membership(MEMBER_V1)) == limits(1)
    assert found.oom_kills(parse_membership(MEMBER_V1)) == 2


def test_version_2_limits(tmp_path):
    found = tree(tmp_path, UNIFIED)
    member = parse_membership("0::/system.slice/docker-abc.scope\n")
    assert found.version == 2
    assert found.limits(member) == limits(2)
    assert found.oom_kills(member) == 2


@pytest.mark.parametrize(
    ("files", "member", "version"), [({**LIMITED, **OPEN}, ROOT_V1, 1), (UNIFIED, "0::/open\n", 2)]
)
def test_no_limit_is_not_a_number(tmp_path, files, member, version):
    found = tree(tmp_path, files)
    assert found.limits(parse_membership(member)) == CgroupLimits(
        version=version, memory=UNLIMITED, swap=UNLIMITED, pids=UNLIMITED, cpu_milli=UNLIMITED
    )
    assert found.oom_kills(parse_membership(member)) == 0


def test_swap_allowed_beside_memory_is_seen_in_version_2(tmp_path):
    files = {**UNIFIED, "system.slice/docker-abc.scope/memory.swap.max": "536870912\n"}
    found = tree(tmp_path, files).limits(parse_membership("0::/system.slice/docker-abc.scope\n"))
    assert found.swap == 1 << 30


@pytest.mark.parametrize(
    ("files", "member", "missing"),
    [
        (LIMITED, MEMBER_V1, "memory/docker/abc/memory.memsw.limit_in_bytes"),
        (LIMITED, MEMBER_V1, "cpu,cpuacct/docker/abc/cpu.cfs_quota_us"),
        (UNIFIED, "0::/system.slice/docker-abc.scope\n", "system.slice/docker-abc.scope/memory.swap.max"),
    ],
)
def test_a_file_that_is_missing_is_named_and_refused(tmp_path, files, member, missing):
    whole = tree(tmp_path / "whole", files)
    assert whole.limits(parse_membership(member)).memory == 512 << 20
    broken = tree(tmp_path / "broken", {name: text for name, text in files.items() if name != missing})
    with pytest.raises(RunnerError, match=missing.rsplit("/", 1)[1]):
        broken.limits(parse_membership(member))


@pytest.mark.parametrize(("files", "member"), [(LIMITED, MEMBER_V1), (UNIFIED, "0::/system.slice/docker-abc.scope\n")])
def test_a_limit_that_a_host_has_not_and_a_profile_does_without_is_none(tmp_path, files, member):
    gone = ("memsw.limit_in_bytes", "cfs_quota_us", "swap.max", "cpu.max")
    poor = tree(tmp_path, {name: text for name, text in files.items() if not name.endswith(gone)})
    found = poor.limits(parse_membership(member), ("swap", "cpu"))
    assert (found.memory, found.swap, found.pids, found.cpu_milli) == (512 << 20, UNLIMITED, 128, UNLIMITED)
    with pytest.raises(RunnerError):
        poor.limits(parse_membership(member), ("cpu",))


def test_version_2_always_freezes_and_version_1_where_the_controller_is_mounted(tmp_path):
    assert tree(tmp_path / "2", UNIFIED).freezes()
    assert not tree(tmp_path / "1", LIMITED).freezes()
    assert tree(tmp_path / "1f", {**LIMITED, "freezer/docker/abc/freezer.state": "THAWED\n"}).freezes()


def test_a_controller_that_is_not_mounted_is_refused(tmp_path):
    files = {name: text for name, text in LIMITED.items() if not name.startswith("pids")}
    with pytest.raises(RunnerError, match="no pids cgroup"):
        tree(tmp_path, files).limits(parse_membership(MEMBER_V1))


def test_what_a_group_used(tmp_path):
    used = {
        "cpu,cpuacct/docker/abc/cpuacct.usage": "2345678901\n",
        "memory/docker/abc/memory.max_usage_in_bytes": "73400320\n",
    }
    found = tree(tmp_path / "1", {**LIMITED, **used}).spent(parse_membership(MEMBER_V1))
    assert found == Spent(cpu_us=2_345_678, memory_peak=70 << 20, oom_kills=2)
    place, member = "system.slice/docker-abc.scope", parse_membership("0::/system.slice/docker-abc.scope\n")
    used = {f"{place}/cpu.stat": "usage_usec 2345678\nuser_usec 1\n", f"{place}/memory.peak": "73400320\n"}
    assert tree(tmp_path / "2", {**UNIFIED, **used}).spent(member) == found
    used.popitem()  # a kernel before 5.19
    older = tree(tmp_path / "old", {**UNIFIED, **used}).spent(member)
    assert older == Spent(cpu_us=2_345_678, memory_peak=-1, oom_kills=2)
    assert tree(tmp_path / "gone", UNIFIED).spent({"": "/gone"}) is None
    assert tree(tmp_path / "gone1", LIMITED).spent(parse_membership(ROOT_V1)) is None
    assert tree(tmp_path / "none", LIMITED).spent({}) is None


def test_a_group_that_is_gone_has_no_oom_kills(tmp_path):
    assert tree(tmp_path, UNIFIED).oom_kills({"": "/gone"}) == 0
