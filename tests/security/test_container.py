"""Each promise of a sandbox's container, on real ones, beside the allowed twin; profiles/README.md lists them."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.engine import containers
from runner.errors import RunnerError

pytestmark = pytest.mark.docker

FILTERS = {"default": (Path(__file__).parents[2] / "profiles/seccomp/default.json").read_bytes()}

EVERYWHERE = """
import json, os
found = []
for top, folders, _ in os.walk("/"):
    folders[:] = [name for name in folders if not (top == "/" and name == "proc")]
    try:
        os.close(os.open(os.path.join(top, ".probe"), os.O_CREAT | os.O_WRONLY))
        os.unlink(os.path.join(top, ".probe"))
        found.append(top)
    except OSError:
        pass
print(json.dumps(sorted(found)))
"""

FILL = """
import json, os, sys
def full(act):
    for number in range(100_000):
        try: act(number)
        except OSError as error: return [number, error.strerror]
    return [number, "no limit"]
block = b"x" * (1 << 20)
file = os.open(sys.argv[1] + "/big", os.O_CREAT | os.O_WRONLY)
def grow(number):
    at = 0
    while at < len(block): at += os.write(file, block[at:])
size = full(grow)
os.close(file); os.unlink(sys.argv[1] + "/big")
inodes = full(lambda number: os.close(os.open(f"{sys.argv[1]}/f{number}", os.O_CREAT | os.O_WRONLY)))
print(json.dumps({"size": size, "inodes": inodes}))
"""

FORKS = """
import json, os, time
children = []
reason = "none"
try:
    while len(children) < 500:
        child = os.fork()
        if not child:
            time.sleep(60); os._exit(0)
        children.append(child)
except OSError as error:
    reason = error.strerror
for child in children: os.kill(child, 9)
for child in children: os.waitpid(child, 0)
print(json.dumps([len(children), reason]))
"""

NETWORK = """
import json, os, socket
def lines(path):
    with open(path) as file: return file.read().splitlines()
server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen()
with socket.create_connection(server.getsockname(), 5): pass
# Where a packet could go is asked of the kernel's tables; no packet is sent anywhere to find out.
print(json.dumps({
    "interfaces": os.listdir("/sys/class/net"),
    "routes": lines("/proc/net/route")[1:],
    "routes6": sorted({line.split()[-1] for line in lines("/proc/net/ipv6_route")}),
    "loopback": "connected",
}))
"""

SEEN = """
import json, os
def readable(path):
    try: return len(open(path, "rb").read(64))
    except OSError as error: return error.strerror
print(json.dumps({
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "sockets": [path for path in ("/var/run/docker.sock", "/run/containerd") if os.path.exists(path)],
    "control": os.path.exists("/run/runner/control.sock"),
    "masked": {path: readable(path) for path in ("/proc/interrupts", "/proc/keys", "/proc/kallsyms", "/proc/modules")},
    "plain": readable("/proc/meminfo"),
    "hidden": {path: os.listdir(path) for path in ("/sys/kernel", "/sys/module", "/sys/block", "/dev/mqueue")},
    "shown": len(os.listdir("/sys/devices/system/cpu")),
    "hostname": os.uname().nodename,
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
}))
"""

PROGRAMS = """
import json, os, subprocess, sys
found = {}
for folder in sys.argv[1:]:
    path = folder + "/program"
    with open(path, "w") as file: file.write("#!/bin/sh\\necho ran")
    os.chmod(path, 0o4755)
    try: found[folder] = subprocess.run([path], capture_output=True, text=True).stdout.strip()
    except OSError as error: found[folder] = error.strerror
print(json.dumps(found))
"""


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_sandbox_is_measured_and_equal_to_its_profile(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, benches.profile(pids=77, cpus_milli=500, shm=16 << 20)) as bench:
            measured, control = await bench.create()
            os.close(control)
            assert measured.image == benches.image
            assert (measured.seccomp, measured.no_new_privs, measured.capabilities) == (2, True, "none")
            assert measured.seccomp_filters >= 1
            assert {kind for kind, differs in measured.namespaces.items() if differs} >= {
                "cgroup",
                "ipc",
                "mnt",
                "net",
                "pid",
                "uts",
            }
            assert measured.interfaces == ("lo",)
            assert measured.read_only_root
            assert measured.memory_limit == measured.swap_limit == 512 << 20
            assert (measured.pids_limit, measured.cpu_quota_milli) == (77, 500)

    asyncio.run(act())


def _without_privilege_walls(host: dict[str, Any]) -> None:
    host.update(CapDrop=[], SecurityOpt=["seccomp=unconfined"])  # the filter alone would stop the runtime itself


def _option(path: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(host: dict[str, Any]) -> None:
        assert old in host["Tmpfs"][path]
        host["Tmpfs"][path] = host["Tmpfs"][path].replace(old, new)

    return change


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda host: host.update(values)


# What the refusal must name -> how the container is made weaker than its profile.
WEAKER: dict[str, Callable[[dict[str, Any]], None]] = {
    "no seccomp filter": _set(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]),
    "no_new_privs": _without_privilege_walls,
    "CapBnd": _set(CapDrop=[], CapAdd=["NET_RAW"]),
    "/ is writable": _set(ReadonlyRootfs=False),
    "the cgroup namespace is the host's": _set(CgroupnsMode="host"),
    "the pid namespace is the host's": _set(PidMode="host"),
    "the ipc namespace is the host's": _set(IpcMode="host"),
    "an unexpected mount at /dev/shm": _set(IpcMode="private"),
    "an unexpected mount at /data": lambda host: host["Tmpfs"].update({"/data": "rw"}),
    "/run/runner is writable": lambda host: host["Mounts"][0].update(ReadOnly=False),
    "/workspace lacks nosuid": _option("/workspace", "nosuid", "suid"),
    "/tmp lacks noexec": _option("/tmp", "noexec", "exec"),
    "/workspace holds 536870912 bytes": _option("/workspace", "size=268435456", "size=536870912"),
    "/workspace has 9 inodes, not 65536": _option("/workspace", "nr_inodes=65536", "nr_inodes=9"),
    "/proc/interrupts is neither masked": lambda host: host["MaskedPaths"].remove("/proc/interrupts"),
    "/proc/sys is neither masked": lambda host: host["ReadonlyPaths"].remove("/proc/sys"),
    "memory limit is 1073741824, not 536870912": _set(Memory=1 << 30, MemorySwap=1 << 30),
    "memory and swap limit": _set(MemorySwap=1 << 30),
    "process limit is -1": _set(PidsLimit=0),
    "CPU quota in thousandths is -1": _set(NanoCpus=0),
    "supplementary groups": _set(GroupAdd=["0"]),
}


@pytest.mark.parametrize(("names", "change"), WEAKER.items(), ids=WEAKER)
def test_any_measured_difference_is_refused_and_nothing_is_left(benches, tmp_path, monkeypatch, names, change):
    honest = containers.create_body

    def weakened(*arguments: Any, **named: Any) -> dict[str, Any]:
        body = honest(*arguments, **named)
        change(body["HostConfig"])
        return body

    async def act():
        async with benches.open(tmp_path) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(containers, "create_body", weakened)
                with pytest.raises(RunnerError) as refused:
                    await bench.create()
            assert refused.value.refused.code == "host"
            assert names in refused.value.refused.reason
            assert bench.containers() == []
            assert list((tmp_path / "run/sandboxes").iterdir()) == []
            _, control = await bench.create()  # the same plan, unweakened, is made
            os.close(control)

    asyncio.run(act())


def test_a_network_is_found_and_refused(benches, tmp_path, monkeypatch, hosts_network):
    honest = containers.create_body

    def weakened(*arguments: Any, **named: Any) -> dict[str, Any]:
        body = honest(*arguments, **named)
        body["NetworkDisabled"] = False
        body["HostConfig"]["NetworkMode"] = "host"
        return body

    async def refused(reason):
        async with benches.open(tmp_path) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(containers, "create_body", weakened)
                with pytest.raises(RunnerError, match=reason):
                    await bench.create()
            measured, control = await bench.create()
            os.close(control)
            assert measured.interfaces == ("lo",)

    asyncio.run(refused("not lo alone"))  # tests have a network of their own: to this engine it is just another one
    with hosts_network():
        asyncio.run(refused("the net namespace is the host's"))


def test_only_the_promised_places_can_be_written(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, benches.profile(shm=4 << 20)) as bench:
            _, control = await bench.create()
            assert bench.python(EVERYWHERE) == ["/dev/shm", "/run/tools", "/tmp", "/workspace"]
            os.close(control)

    asyncio.run(act())


def test_a_full_workspace_says_so_and_the_host_disk_is_not_touched(benches, tmp_path):
    async def act():
        ceilings = benches.profile(workspace=4 << 20, workspace_inodes=300, tmp=2 << 20)
        async with benches.open(tmp_path, ceilings) as bench:
            _, control = await bench.create()
            found = bench.python(FILL, "/workspace")
            assert found["size"] == [4, "No space left on device"]
            assert 250 <= found["inodes"][0] <= 300
            assert found["inodes"][1] == "No space left on device"
            assert bench.python(FILL, "/tmp")["size"] == [2, "No space left on device"]
            assert (
                bench.execute("python3", "-c", "open('/workspace/f', 'w').write('x')")[0] != 0
            )  # still full of inodes
            assert bench.execute("sh", "-c", "rm /workspace/f*; echo fits > /workspace/small")[0] == 0
            os.close(control)

    asyncio.run(act())


def test_programs_run_where_agents_build_and_not_in_scratch(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            _, control = await bench.create()
            assert bench.python(PROGRAMS, "/workspace", "/tmp") == {"/workspace": "ran", "/tmp": "Permission denied"}
            os.close(control)

    asyncio.run(act())


def test_there_is_no_network_but_loopback(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            _, control = await bench.create()
            found = bench.python(NETWORK)
            assert found["interfaces"] == ["lo"]
            assert found["routes"] == []
            assert found["routes6"] in ([], ["lo"])
            assert found["loopback"] == "connected"
            os.close(control)

    asyncio.run(act())


def test_the_host_and_its_processes_cannot_be_seen(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            _, control = await bench.create()
            found = bench.python(SEEN)
            assert len(found["processes"]) == 3  # PID 1, the seed of its launchers and this probe
            assert found["processes"][0] == 1
            assert found["sockets"] == []
            assert found["control"] is False
            assert set(found["masked"].values()) <= {0, "Permission denied", "No such file or directory"}
            assert found["plain"] == 64
            assert set(map(len, found["hidden"].values())) == {0}
            assert found["shown"] > 0
            assert found["hostname"] == "sandbox"
            assert found["descriptors"] == [0, 1, 2]
            os.close(control)

    asyncio.run(act())


def test_a_fork_bomb_stops_at_the_ceiling(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path, benches.profile(pids=40)) as bench:
            _, control = await bench.create()
            children, reason = bench.python(FORKS)
            assert reason == "Resource temporarily unavailable"
            assert 20 <= children < 40
            os.close(control)

    asyncio.run(act())


def test_memory_above_the_ceiling_is_killed_and_below_it_is_not(benches, tmp_path):
    async def act():
        ceilings = benches.profile(memory=160 << 20, workspace=8 << 20, tmp=8 << 20)
        async with benches.open(tmp_path, ceilings) as bench:
            _, control = await bench.create()
            assert bench.execute("python3", "-c", "bytearray(80 << 20)")[0] == 0
            assert bench.execute("python3", "-c", "bytearray(400 << 20)")[0] == 137
            os.close(control)

    asyncio.run(act())


def test_an_oom_of_pid_one_ends_the_sandbox_with_that_reason(benches, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.engine.template.OOM_SCORE", 1000)

    async def act():
        ceilings = benches.profile(memory=160 << 20, workspace=8 << 20, tmp=8 << 20)
        async with benches.open(tmp_path, ceilings) as bench:
            _, control = await bench.create()
            container = bench.engine._live["s1"]
            assert container.oom_kills() == 0
            assert bench.execute("python3", "-c", "bytearray(400 << 20)")[0] == 137
            if bench.engine.sandboxes:  # the kernel chose the probe: the count tells, PID 1 lives
                assert container.oom_kills() == 1
                os.kill(bench.api.inspect_container(bench.name())["State"]["Pid"], 9)
            await until(lambda: bool(bench.ended))
            assert bench.ended == [("s1", "the kernel killed it for memory", True)]
            os.close(control)

    asyncio.run(act())


def test_the_end_of_the_control_connection_ends_the_sandbox(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            _, kept = await bench.create("s1")
            _, closed = await bench.create("s2")
            os.close(closed)
            await until(lambda: bool(bench.ended))
            assert [name for name, _, _ in bench.ended] == ["s2"]
            assert not bench.ended[0][2]
            assert len(bench.containers()) == bench.engine.sandboxes == 1
            assert bench.execute("true")[0] == 0  # the other one lives
            os.close(kept)

    asyncio.run(act())


def test_a_killed_pid_one_is_cleaned_up_and_reported(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            measured, control = await bench.create()
            os.kill(measured.pid, 9)
            await until(lambda: bool(bench.ended))
            assert bench.ended == [("s1", "PID 1 was killed", False)]
            assert bench.containers() == []
            assert list((tmp_path / "run/sandboxes").iterdir()) == []
            os.close(control)

    asyncio.run(act())


def test_destroy_leaves_no_process_and_no_container_and_may_be_repeated(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            measured, control = await bench.create()
            stubborn = bench.api.exec_create(bench.name(), ["sh", "-c", "trap '' TERM; sleep 600 & sleep 600 & wait"])
            bench.api.exec_start(stubborn["Id"], detach=True)
            await until(lambda: bench.api.exec_inspect(stubborn["Id"])["Pid"] > 0)
            pid = bench.api.exec_inspect(stubborn["Id"])["Pid"]
            await asyncio.gather(*(bench.engine.destroy("s1", "test") for _ in range(3)))
            await bench.engine.destroy("s1", "again")
            await bench.engine.destroy("never-was", "test")
            for number in (measured.pid, pid):
                with pytest.raises(ProcessLookupError):
                    os.kill(number, 0)
            assert bench.containers() == []
            assert bench.ended == []  # it did not end by itself
            os.close(control)

    asyncio.run(act())


def test_the_control_socket_is_gone_and_a_second_connection_is_refused(benches, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    honest = containers.ControlSocket.accept

    async def crowded(self: Any, pid: int, uid: int) -> int:
        path = self.folder / "control.sock"
        seen["mode"], seen["owner"] = path.stat().st_mode & 0o777, path.stat().st_uid == uid
        await until(lambda: bool(select.select([self._listener], [], [], 0)[0]))  # PID 1 is there
        seen["second"] = socket.socket(socket.AF_UNIX)
        seen["second"].connect(str(path))  # by root, behind PID 1, before the accept
        return await honest(self, pid, uid)

    async def act():
        async with benches.open(tmp_path) as bench:
            monkeypatch.setattr(containers.ControlSocket, "accept", crowded)
            _, control = await bench.create()
            assert (seen["mode"], seen["owner"]) == (0o600, True)
            assert list((tmp_path / "run/sandboxes/s1").iterdir()) == []
            with seen["second"] as second, pytest.raises(ConnectionResetError):
                second.recv(1)
            with socket.socket(fileno=control) as first:
                first.settimeout(20)
                assert first.recv(4096)  # PID 1's own connection works: its first frame

    asyncio.run(act())


def test_whoever_is_not_pid_one_is_refused(benches, tmp_path, monkeypatch):
    honest = containers.ControlSocket.accept

    async def overtaken(self: Any, pid: int, uid: int) -> int:
        return await honest(self, pid + 1, uid)

    async def act():
        async with benches.open(tmp_path) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(containers.ControlSocket, "accept", overtaken)
                with pytest.raises(RunnerError, match="not by PID 1 of the sandbox") as refused:
                    await bench.create()
            assert refused.value.refused.code == "host"
            assert bench.containers() == []

    asyncio.run(act())


def test_every_sandbox_has_a_uid_of_its_own_until_it_is_gone(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path / "a") as here, benches.open(tmp_path / "b") as there:
            made = await asyncio.gather(here.create("s1"), here.create("s2"), there.create("s1"), there.create("s2"))
            uids = {measured.uid for measured, _ in made}
            assert len(uids) == 4
            await here.engine.destroy("s1", "test")
            again, control = await there.create("s3")
            assert again.uid not in uids - {made[0][0].uid}
            for descriptor in (control, *(descriptor for _, descriptor in made)):
                os.close(descriptor)

    asyncio.run(act())


def test_a_plan_with_another_profile_digest_is_refused(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            with pytest.raises(RunnerError, match="its digest differs") as refused:
                await bench.create(digest="e" * 64)
            assert refused.value.refused.code == "unavailable"
            assert refused.value.refused.retryable
            assert bench.containers() == []
            _, control = await bench.create()
            os.close(control)

    asyncio.run(act())


@pytest.mark.parametrize("sandbox", ["", "A", "a b", "../x", "a/b", "-a", "a" * 65, "a\n", "ä"])
def test_a_hostile_sandbox_id_becomes_no_name(benches, tmp_path, sandbox):
    async def act():
        async with benches.open(tmp_path) as bench:
            with pytest.raises(RunnerError, match="small letters"):
                await bench.create(sandbox)
            _, control = await bench.create("an-honest-1")
            os.close(control)

    asyncio.run(act())


def test_orphans_of_this_instance_are_removed_and_others_stay(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path / "other") as other, benches.open(tmp_path / "dead") as dead:
            _, kept = await other.create()
            _, lost = await dead.create()
            # As after kill -9 of an engine: the container is there, nobody watches it, the next run starts.
            async with benches.open(tmp_path / "dead", instance=dead.instance) as next_run:
                assert next_run.containers() == []
                assert len(other.containers()) == 1
                assert other.execute("true")[0] == 0
                await until(lambda: bool(dead.ended))
            os.close(kept)
            os.close(lost)

    asyncio.run(act())


def test_an_image_whose_tag_moved_is_refused(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            repository = f"toolrunner/test-{bench.instance}"
            named = msgspec.structs.replace(benches.profile(), image=f"{repository}:1")
            source = bench.api.create_container(benches.image)["Id"]
            try:
                bench.api.tag(benches.image, repository, "1")
                changed = bench.api.commit(source, repository=repository, tag="2")["Id"]
                assert bench.engine.compile({"default": named}, FILTERS)["default"].image == benches.image
                bench.api.tag(changed, repository, "1", force=True)
                with pytest.raises(RunnerError, match="now names") as refused:
                    bench.engine.compile({"default": named}, FILTERS)
                assert "images.json" in refused.value.refused.next_step
            finally:
                bench.api.remove_container(source)
                for version in ("1", "2"):
                    bench.api.remove_image(f"{repository}:{version}")

    asyncio.run(act())


def test_an_image_without_the_guest_is_refused_at_once(benches, tmp_path, monkeypatch):
    honest = containers.create_body

    def without(*arguments: Any, **named: Any) -> dict[str, Any]:
        return {**honest(*arguments, **named), "Entrypoint": ["/bin/false"]}

    async def act():
        async with benches.open(tmp_path) as bench:
            with monkeypatch.context() as patch:
                patch.setattr(containers, "create_body", without)
                with pytest.raises(RunnerError, match="ended before it connected") as refused:
                    await bench.create()
            assert refused.value.refused.code == "unavailable"
            assert bench.containers() == []

    asyncio.run(act())


def test_a_host_that_lacks_a_limit_refuses_and_a_profile_that_accepts_it_says_so(benches, tmp_path):
    """The engine is told that its host limits neither swap nor CPU; the container is then made and measured so."""

    async def act():
        accepting = msgspec.structs.replace(benches.profile(), accept=("cpu", "swap"))
        async with benches.open(tmp_path, accepting) as bench:
            measured, control = await bench.create("whole")
            assert (measured.accepted, measured.swap_limit, measured.cpu_quota_milli) == ((), 512 << 20, 1000)
            os.close(control)
            bench.engine._facts = msgspec.structs.replace(bench.engine.facts, swap_limit=False, cpu_quota=False)
            with pytest.raises(RunnerError, match="cannot enforce a swap limit"):
                bench.engine.use({"default": benches.profile()}, FILTERS)
            bench.engine.use({"default": accepting}, FILTERS)
            measured, control = await bench.create("less")
            assert measured.accepted == ("swap", "cpu")
            assert (measured.swap_limit, measured.cpu_quota_milli, measured.memory_limit) == (-1, -1, 512 << 20)
            os.close(control)

    asyncio.run(act())


def test_another_runtime_of_this_engine_is_used_and_named(benches, tmp_path):
    async def act():
        async with benches.open(tmp_path) as bench:
            measured, control = await bench.create("s1")
            os.close(control)
            facts = bench.engine.facts
            assert measured.runtime == facts.default_runtime
            (other,) = {"io.containerd.runc.v2"} & set(facts.runtimes) - {facts.default_runtime}
            bench.engine.use({"default": msgspec.structs.replace(benches.profile(), runtime=other)}, FILTERS)
            measured, control = await bench.create("s2")
            assert measured.runtime == other
            assert bench.api.inspect_container(bench.name("s2"))["HostConfig"]["Runtime"] == other
            os.close(control)
            absent = msgspec.structs.replace(benches.profile(), runtime="runsc-that-is-not-here")
            with pytest.raises(RunnerError, match="no runtime") as refused:
                bench.engine.use({"default": absent}, FILTERS)
            assert other in refused.value.refused.allowed

    asyncio.run(act())
