"""The effect of profiles/seccomp/default.json, tried from inside: the same acts in a sandbox, in a container without
a filter, and in one with capabilities and without a filter. A refusal counts only where the twin was not refused."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.docker

PROBE = (Path(__file__).parent / "probes/system_calls.py").read_text()
NEWUSER, SIGCHLD, CHAR, FIFO = 0x1000_0000, 17, 0o020_666, 0o010_600
ALL = -1

# name -> number, arguments. Harmless where they are allowed: null pointers, no descriptor, invalid flags.
WITHOUT_CAPABILITIES: dict[str, tuple[int, list[Any]]] = {
    "add_key": (248, [0, 0, 0, 0, 0]),
    "adjtimex": (159, [0]),
    "bpf": (321, [99, 0, 0]),
    "chroot": (161, [0]),
    "clock_settime": (227, [0, 0]),
    "clone into a user namespace": (56, [NEWUSER | SIGCHLD, 0, 0, 0, 0]),
    "clone beside its parent": (56, [0x8000 | SIGCHLD, 0, 0, 0, 0]),
    "io_setup": (206, [0, 0]),
    "io_uring_enter": (426, [-1, 0, 0, 0, 0, 0]),
    "io_uring_register": (427, [-1, 0, 0, 0]),
    "io_uring_setup": (425, [0, 0]),
    "ioctl TIOCSETD": (16, [-1, 0x5423, 0]),
    "ioctl TIOCSTI": (16, [-1, 0x5412, 0]),
    "kcmp": (312, ["self", "self", 0, 0, 0]),
    "keyctl": (250, [0, -3, 0]),
    "memfd_secret": (447, [0]),
    "migrate_pages": (256, [0, 0, 0, 0]),
    "mincore": (27, [0, 0, 0]),
    "mknod a whiteout": (133, ["/tmp/probe-whiteout", CHAR, 0]),
    "modify_ldt": (154, [0, "room", 0]),
    "mount": (165, [0, 0, 0, 0, 0]),
    "mount_setattr": (442, [-1, 0, ALL, 0, 0]),
    "move_pages": (279, [0, 0, 0, 0, 0, 0]),
    "mq_open": (240, [0, 0, 0, 0]),
    "msgget": (68, [0, 0]),
    "name_to_handle_at": (303, [-1, 0, 0, 0, 0]),
    "open_by_handle_at": (304, [-1, 0, 0]),
    "open_tree": (428, [-1, 0, 0]),
    "perf_event_open": (298, [0, 0, 0, 0, 0]),
    "personality without address randomisation": (135, [0x40000]),
    "pidfd_getfd": (438, [-1, 0, 0]),
    "prctl PR_GET_TSC": (157, [25, "room", 0, 0, 0]),
    "process_madvise": (440, [-1, 0, 0, 0, 0]),
    "process_vm_readv": (310, ["self", 0, 0, 0, 0, 0]),
    "process_vm_writev": (311, ["self", 0, 0, 0, 0, 0]),
    "ptrace": (101, [0, 0, 0, 0]),
    "quotactl": (179, [0, 0, 0, 0]),
    "quotactl_fd": (443, [-1, 0, 0, 0]),
    "request_key": (249, [0, 0, 0, 0]),
    "seccomp with a listener": (317, [1, 8, 0]),
    "semget": (64, [0, 1, 0o600]),
    "setns": (308, [-1, 0]),
    "setsockopt for AF_ALG": (54, [-1, 279, 1, 0, 0]),
    "shmget": (29, [0, 4096, 0o600]),
    "splice": (275, [-1, 0, -1, 0, 0, 0]),
    "swapon": (167, [0, ALL]),
    "sync": (162, []),
    "syncfs": (306, [-1]),
    "tee": (276, [-1, -1, 0, 0]),
    "umount2": (166, [0, 0]),
    "unshare a user namespace": (272, [NEWUSER]),
    "userfaultfd": (323, [ALL]),
    "vmsplice": (278, [-1, 0, 0, 0]),
}
# Those that fail for want of a capability before anything else is looked at: their twin has the capability.
WITH_CAPABILITIES: dict[str, tuple[int, list[Any]]] = {
    "acct": (163, ["text"]),
    "fanotify_init": (300, [ALL, ALL]),
    "fsmount": (432, [-1, ALL, 0]),
    "fsopen": (430, [0, 0]),
    "fspick": (433, [-1, 0, ALL]),
    "mknod /dev/null": (133, ["/tmp/probe-null", CHAR, 0x103]),
    "move_mount": (429, [-1, 0, -1, 0, 0]),
    "pivot_root": (155, [0, 0]),
    "reboot with wrong magic": (169, [0, 0, 0, 0]),
    "setdomainname": (171, [0, ALL]),
    "sethostname": (170, [0, ALL]),
    "settimeofday": (164, [0, 0]),
    "swapoff": (168, [0]),
    "syslog": (103, [10, 0, 0]),
    "vhangup": (153, []),
}
CAPABILITIES = ["SYS_ADMIN", "SYS_BOOT", "SYS_PACCT", "SYS_TTY_CONFIG", "MKNOD", "SYS_TIME", "SYSLOG"]
# What tools and the guest need: the answer is the kernel's own, in the sandbox as without a filter.
NEEDED: dict[str, tuple[int, list[Any]]] = {
    "clone": (56, [SIGCHLD, 0, 0, 0, 0]),
    "close_range": (436, [900, 900, 0]),
    "faccessat2": (439, [-1, 0, 0, 0]),
    "getpid": (39, []),
    "landlock_create_ruleset": (444, [0, 0, 1]),
    "mknod a fifo": (133, ["/tmp/probe-fifo", FIFO, 0]),
    "openat2": (437, [-1, 0, 0, 24]),
    "personality query": (135, [0xFFFFFFFF]),
    "pidfd_open": (434, ["self", 0]),
    "prctl PR_SET_CHILD_SUBREAPER": (157, [36, 1, 0, 0, 0]),
    "seccomp action query": (317, [2, 0, "room"]),
    "statx": (332, [-1, 0, 0, 0, 0]),
}
OTHER_ABIS: dict[str, tuple[str, int]] = {
    "i386 getpid": ("int80", 20),
    "i386 socketcall": ("int80", 102),
    "x32 getpid": ("native", 0x4000_0000 | 39),
}
SOCKETS = """
import json, socket
found = {}
for family in range(1, 46):
    for kind in (1, 2, 3, 4, 5, 6):
        for protocol in (0, 1, 6, 17, 132, 136, 262):
            try:
                socket.socket(family, kind, protocol).close()
                found[f"{family}/{kind}/{protocol}"] = "made"
            except OSError as error:
                found[f"{family}/{kind}/{protocol}"] = error.strerror
print(json.dumps(found))
"""
SOCKETS_ALLOWED = {"1/1/0", "1/2/0"} | {
    f"{family}/{pair}" for family in (2, 10) for pair in ("1/0", "1/6", "2/0", "2/17")
}
ORDINARY = """
import asyncio, json, shutil, socket, subprocess, tempfile, threading
done = []
thread = threading.Thread(target=done.append, args=["thread"]); thread.start(); thread.join()
asyncio.run(asyncio.sleep(0)); done.append("asyncio")
done.append(subprocess.run(["sh", "-c", "printf a | tr a b | cat; exit 3"], capture_output=True).returncode)
with tempfile.TemporaryDirectory() as folder:
    open(folder + "/a", "w").write("x"); shutil.copytree(folder, folder + "-2"); shutil.rmtree(folder + "-2")
script = "mkdir -p /tmp/t && cp -a /etc/passwd /tmp/t && tar cf /tmp/t.tar -C /tmp t && find /tmp -name passwd"
subprocess.run(script, shell=True, check=True, capture_output=True)
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), 5).close()
print(json.dumps(done))
"""


class Twin:
    """A container without the filter, and where asked with capabilities. It runs one probe and is removed."""

    def __init__(self, api: Any, image: str) -> None:
        self.api, self.image = api, image

    def run(self, code: str, *arguments: str, capabilities: tuple[str, ...] = (), seccomp: str = "unconfined") -> Any:
        host = {
            "NetworkMode": "none",
            # Without it the runtime would load the filter before it has given up its own capabilities.
            "SecurityOpt": [f"seccomp={seccomp}", *(["no-new-privileges"] if seccomp != "unconfined" else [])],
            "CapDrop": ["ALL"],
            "CapAdd": list(capabilities),
            "Tmpfs": {"/tmp": "mode=1777"},
        }
        body = {
            "Image": self.image,
            "Entrypoint": ["python3", "-I", "-c", code, *arguments],
            "User": "0:0" if capabilities else "65534:65534",
            "HostConfig": host,
        }
        made = self.api.create_container_from_config(body)["Id"]
        try:
            self.api.start(made)
            self.api.wait(made)
            said = self.api.logs(made).decode()
        finally:
            self.api.remove_container(made, force=True)
        return json.loads(said)


def compare(
    benches: Any, folder: Path, code: str, *arguments: str, capabilities: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """What the probe found in a sandbox, and in its twin."""

    async def act() -> tuple[Any, Any]:
        async with benches.open(folder) as bench:
            _, control = await bench.create()
            inside = bench.python(code, *arguments)
            os.close(control)
            return inside, Twin(bench.api, benches.image).run(code, *arguments, capabilities=capabilities)

    return asyncio.run(act())


def acts(table: dict[str, tuple[int, list[Any]]]) -> str:
    return json.dumps([[name, "native", number, arguments] for name, (number, arguments) in table.items()])


def test_dangerous_calls_are_refused_and_only_by_the_filter(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, PROBE, acts(WITHOUT_CAPABILITIES))
    assert {name: answer for name, answer in inside.items() if answer != "EPERM"} == {}
    assert {name for name, answer in twin.items() if answer == "EPERM"} == set()
    assert len(twin) == len(WITHOUT_CAPABILITIES)


def test_privileged_calls_are_refused_even_beside_a_twin_that_may(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, PROBE, acts(WITH_CAPABILITIES), capabilities=tuple(CAPABILITIES))
    assert {name: answer for name, answer in inside.items() if answer != "EPERM"} == {}
    assert {name for name, answer in twin.items() if answer == "EPERM"} == set()
    assert len(twin) == len(WITH_CAPABILITIES)


def test_needed_calls_get_the_kernels_own_answer(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, PROBE, acts(NEEDED))
    assert inside == twin
    assert "EPERM" not in inside.values()
    assert "ok" in inside.values()


def test_clone3_is_absent_so_that_clone_is_used(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, PROBE, acts({"clone3": (435, [0, 0])}))
    assert (inside, twin) == ({"clone3": "ENOSYS"}, {"clone3": "EINVAL"})


def test_docker_takes_the_file_as_it_stands_with_its_groups_and_reasons(benches, tmp_path):
    """What an operator reads and what an engine loads are one file: its further keys are ignored, its rules are not."""

    async def act():
        async with benches.open(tmp_path) as bench:
            table = acts({"bpf": (321, [99, 0, 0]), "getpid": (39, [])})
            twin = Twin(bench.api, benches.image)
            raw = (Path(__file__).parents[2] / "profiles/seccomp/default.json").read_text()
            assert '"groups"' in raw
            assert twin.run(PROBE, table, seccomp=raw) == {"bpf": "EPERM", "getpid": "ok"}
            assert twin.run(PROBE, table) == {"bpf": "EINVAL", "getpid": "ok"}

    asyncio.run(act())


def test_the_32_bit_and_x32_tables_are_closed(benches, tmp_path):
    table = json.dumps([[name, way, number, []] for name, (way, number) in OTHER_ABIS.items()])
    inside, twin = compare(benches, tmp_path, PROBE, table)
    assert set(inside.values()) == {"SIGSYS"}
    assert twin["i386 getpid"] in ("ok", "SIGSEGV")  # a kernel without 32-bit emulation faults
    assert "SIGSYS" not in twin.values()


def test_only_plain_local_and_internet_sockets_exist(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, SOCKETS)
    assert {name for name, answer in inside.items() if answer == "made"} == SOCKETS_ALLOWED
    assert {answer for name, answer in inside.items() if name not in SOCKETS_ALLOWED} == {"Operation not permitted"}
    beyond = {name for name, answer in twin.items() if answer == "made"} - SOCKETS_ALLOWED
    assert {"16/2/0", "16/3/0", "1/5/0"} <= beyond  # netlink and AF_UNIX packets: there without the filter


def test_ordinary_programs_work_under_the_filter(benches, tmp_path):
    inside, twin = compare(benches, tmp_path, ORDINARY)
    assert inside == twin == ["thread", "asyncio", 3]
