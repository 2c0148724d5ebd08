"""Measurement on texts of a real container: nothing differs, and each single change is found and named."""

from __future__ import annotations

import re

import msgspec
import pytest

from runner.engine.cgroup import CgroupLimits
from runner.engine.disk_found import DiskFound, DiskPromise
from runner.engine.measure import (
    MUST_DIFFER,
    Expected,
    Found,
    differences,
    measured,
    parse_interfaces,
    parse_mounts,
    parse_status,
)
from runner.engine.template import MASKED, READ_ONLY
from runner.model import Ceilings

UID = 210_001
STATUS = f"""Name:\tpython3
TracerPid:\t0
Uid:\t{UID}\t{UID}\t{UID}\t{UID}
Gid:\t{UID}\t{UID}\t{UID}\t{UID}
Groups:\t{UID}\x20
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
"""
_TMPFS = f"mode=700,uid={UID},gid={UID}"
MOUNTS = f"""74 50 0:39 / / ro,relatime master:2 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c
75 74 0:42 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
76 74 0:43 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
77 76 0:44 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
78 74 0:45 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
79 78 0:46 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
83 79 0:32 /docker/a /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,memory
89 76 0:41 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
90 74 0:47 / /workspace rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=262144k,nr_inodes=65536,{_TMPFS}
91 74 0:48 / /tmp rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=32768k,nr_inodes=8192,{_TMPFS}
92 74 254:0 /with\\040space /run/runner ro,relatime - ext4 /dev/vda rw
93 74 254:0 /x/hostname /etc/hostname ro,relatime - ext4 /dev/vda rw
94 74 0:49 / /run/tools rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=8192k,nr_inodes=4096,{_TMPFS}
""" + "".join(
    [f"51 75 0:42 / {path} ro,nosuid,nodev,noexec,relatime - proc proc rw\n" for path in READ_ONLY]
    + [f"57 78 0:50 / {path} ro,relatime - tmpfs tmpfs ro\n" for path in MASKED]
)
NETWORK = "Inter-|   Receive\n face |bytes\n    lo:  0 0 0\n"
EXPECTED = Expected(uid=UID, ceilings=Ceilings())
LIMITS = CgroupLimits(version=1, memory=512 << 20, swap=512 << 20, pids=128, cpu_milli=1000)


def found(
    status: str = STATUS,
    mounts: str = MOUNTS,
    network: str = NETWORK,
    limits: CgroupLimits = LIMITS,
    shared: str = "",
) -> Found:
    return Found(
        status=parse_status(status),
        namespaces={kind: kind != shared for kind in (*MUST_DIFFER, "user", "time")},
        interfaces=parse_interfaces(network),
        mounts=parse_mounts(mounts),
        cgroup=limits,
        membership={},
    )


def test_an_honest_container_has_no_differences():
    assert differences(found(), EXPECTED) == []
    result = measured(found(), pid=7, image="sha256:a", runtime="runc")
    assert (result.capabilities, result.read_only_root, result.interfaces) == ("none", True, ("lo",))


def test_mountinfo_is_unescaped():
    assert next(mount for mount in parse_mounts(MOUNTS) if mount.point == "/run/runner").root == "/with space"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (f"Uid:\t{UID}\t{UID}", f"Uid:\t{UID}\t0", "Uid"),
        (f"Gid:\t{UID}", "Gid:\t0", "Gid"),
        (f"Groups:\t{UID}", f"Groups:\t{UID} 27", "supplementary groups"),
        ("CapInh:\t0000000000000000", "CapInh:\t0000000000000001", "CapInh"),
        ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000002000", "CapPrm"),
        ("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff", "CapEff"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb", "CapBnd"),
        ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000001", "CapAmb"),
        ("CapAmb:\t0000000000000000\n", "", "CapAmb"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privs"),
        ("Seccomp:\t2", "Seccomp:\t0", "seccomp"),
        ("Seccomp_filters:\t1", "Seccomp_filters:\t0", "seccomp"),
        ("TracerPid:\t0", "TracerPid:\t12", "traced"),
    ],
)
def test_each_change_of_the_process_is_found(old, new, named):
    assert old in STATUS
    wrong = differences(found(status=STATUS.replace(old, new)), EXPECTED)
    assert len(wrong) == 1
    assert named in wrong[0]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (" / / ro,", " / / rw,", "/ is writable"),
        ("/run/runner ro", "/run/runner rw", "/run/runner is writable"),
        ("/etc/hostname ro", "/etc/hostname rw", "/etc/hostname is writable"),
        (" / /sys ro,", " / /sys rw,", "/sys lacks ro"),
        ("/sys/fs/cgroup/memory ro", "/sys/fs/cgroup/memory rw", "/sys/fs/cgroup/memory is writable"),
        ("/proc/sys ro", "/proc/sys rw", "/proc/sys is writable"),
        ("/sys/firmware ro", "/sys/firmware rw", "/sys/firmware is not masked"),
        ("/workspace rw,nosuid,nodev", "/workspace rw,nodev", "/workspace lacks nosuid"),
        ("/workspace rw,nosuid,nodev", "/workspace rw,nosuid", "/workspace lacks nodev"),
        ("/tmp rw,nosuid,nodev,noexec", "/tmp rw,nosuid,nodev", "/tmp lacks noexec"),
        ("size=262144k", "size=524288k", "/workspace holds 536870912"),
        ("nr_inodes=65536", "nr_inodes=65537", "/workspace has 65537 inodes"),
        (
            f"nr_inodes=65536,mode=700,uid={UID}",
            "nr_inodes=65536,mode=777,uid=0",
            "/workspace has owner 0 and mode 777",
        ),
        ("tmpfs tmpfs rw,size=262144k", "ext4 /dev/vda rw,size=262144k", "/workspace is ext4"),
        ("91 74 0:48 / /tmp ", "91 74 0:48 / /tmp2 ", "/tmp is not mounted"),
        ("93 74 254:0 /x/hostname /etc/hostname", "93 74 254:0 /x /data", "an unexpected mount at /data"),
    ],
)
def test_each_change_of_the_mounts_is_found(old, new, named):
    assert MOUNTS.count(old) == 1
    wrong = differences(found(mounts=MOUNTS.replace(old, new)), EXPECTED)
    assert any(named in item for item in wrong)


def test_a_queue_filesystem_that_is_not_masked_is_found():
    last = "57 78 0:50 / /dev/mqueue ro,relatime - tmpfs tmpfs ro\n"
    assert last in MOUNTS
    assert differences(found(mounts=MOUNTS.replace(last, "")), EXPECTED) == ["/dev/mqueue is not masked"]


@pytest.mark.parametrize("kind", MUST_DIFFER)
def test_each_shared_namespace_is_found(kind):
    assert differences(found(shared=kind), EXPECTED) == [f"the {kind} namespace is the host's"]


@pytest.mark.parametrize("network", [NETWORK + "  eth0: 1 2 3\n", "Inter-|\n face |\n"])
def test_any_other_network_is_found(network):
    assert any("network interfaces" in item for item in differences(found(network=network), EXPECTED))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [("memory", -1, "memory limit"), ("swap", 1 << 30, "swap"), ("pids", 129, "process"), ("cpu_milli", 2000, "CPU")],
)
def test_each_limit_that_differs_is_found(name, value, named):
    values = {"version": 1, "memory": 512 << 20, "swap": 512 << 20, "pids": 128, "cpu_milli": 1000, name: value}
    wrong = differences(found(limits=CgroupLimits(**values)), EXPECTED)
    assert len(wrong) == 1
    assert re.search(named, wrong[0])


# --- a workspace on disk -------------------------------------------------------------------------------------

MIB = 1 << 20
DISK = DiskFound(image="/s/image", autoclear=True, size=64 * MIB, usable=59 * MIB, inodes=1008, uid=UID, mode=0o700)
PROMISE = DiskPromise(image="/s/image", size=64 * MIB, inodes=1000)
ON_DISK = re.sub(r".* /workspace .*\n", "90 74 7:3 / /workspace rw,nosuid,nodev,noatime - ext4 /dev/loop3 rw\n", MOUNTS)


def on_disk(mounts: str = ON_DISK, disk: DiskFound | None = DISK, promise: DiskPromise | None = PROMISE) -> list[str]:
    return differences(
        msgspec.structs.replace(found(mounts=mounts), disk=disk), Expected(uid=UID, ceilings=Ceilings(), disk=promise)
    )


def test_an_honest_disk_has_no_differences_and_is_what_the_measurement_says():
    assert on_disk() == []
    result = measured(
        msgspec.structs.replace(found(mounts=ON_DISK), disk=DISK), pid=7, image="sha256:a", runtime="runc"
    )
    assert (result.workspace, result.workspace_size, result.workspace_inodes) == ("ext4", 64 * MIB, 1008)
    plain = measured(found(), pid=7, image="sha256:a", runtime="runc")
    assert (plain.workspace, plain.workspace_size, plain.workspace_inodes) == ("tmpfs", 256 * MIB, 65536)
    assert next(mount for mount in parse_mounts(ON_DISK) if mount.point == "/workspace").device == "7:3"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": "/s/another"}, "not on the task's disk"),
        ({"image": ""}, "no loop device"),
        ({"autoclear": False}, "outlive its mount"),
        ({"size": 65 * MIB}, "has 68157440 bytes"),
        ({"usable": 30 * MIB}, "holds 31457280 bytes"),
        ({"usable": 65 * MIB}, "holds 68157440 bytes"),
        ({"inodes": 999}, "999 inodes"),
        ({"inodes": 5000}, "5000 inodes"),
        ({"uid": 0}, "owner 0"),
        ({"mode": 0o777}, "mode 0777"),
    ],
)
def test_each_change_of_a_disk_is_found(change, named):
    (wrong,) = on_disk(disk=msgspec.structs.replace(DISK, **change))
    assert named in wrong


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rw,nosuid,nodev,noatime", "rw,nodev", "lacks nosuid"),
        ("rw,nosuid,nodev,noatime", "rw,nosuid", "lacks nodev"),
        ("rw,nosuid,nodev,noatime", "ro,nosuid,nodev", "lacks rw"),
        ("rw,nosuid,nodev,noatime", "rw,nosuid,nodev,noexec", "noexec"),
        ("7:3 / /workspace", "7:3 /folder /workspace", "not on the task's disk"),
        ("- ext4", "- xfs", "/workspace is xfs"),
    ],
)
def test_each_change_of_the_disks_mount_is_found(old, new, named):
    assert old in ON_DISK
    (wrong,) = on_disk(ON_DISK.replace(old, new))
    assert named in wrong


def test_memory_is_not_taken_for_a_disk_nor_a_disk_for_memory():
    assert on_disk(MOUNTS, None) == ["/workspace is tmpfs, not the task's disk"]
    assert on_disk(promise=None) == ["/workspace is ext4, not tmpfs"]
    unmounted = re.sub(r".* /workspace .*\n", "", MOUNTS)
    assert on_disk(unmounted, None) == ["/workspace is not mounted"]
