"""Launchers that are kept or built ahead, and kernels where neither can be: what passes from one call to the next."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import psutil
import pytest
from box import READ, READONLY, SYSTEM, TIMEOUT_S, Box, jail, strangers

from runner.wire import guest

pytestmark = pytest.mark.docker


def parent(box: Box, **changes: object) -> bytes:
    """Which launcher served it."""
    return box.run("sh", "-c", "echo $PPID", **changes).stdout


def writes(box: Box, path: str, **changes: object) -> bool:
    """Whether a call may write there. Not by `touch`: walls do not keep a time from being set."""
    return box.run("sh", "-c", f"echo x > {path}", **changes).how.exit_code == 0


def within(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- built ahead -------------------------------------------------------------------------------------------------


def test_a_fresh_jail_is_built_ahead_and_used_once(box: Box) -> None:
    seen = []
    for _ in range(6):
        seen.append(parent(box, isolation="call"))
        assert strangers(box) == []  # what waits is the guest's own
    assert len(set(seen)) == 6
    number = box.start("cat", stdin=True, isolation="call")
    box.until(number, guest.STARTED)
    together = [parent(box, isolation="call") for _ in range(3)]
    assert len({*seen, *together}) == 9
    assert box.finish(number, stdin=b"still there").stdout == b"still there"


def test_a_launcher_that_gate_asked_for_serves_the_first_call_of_its_jail_and_no_other(box: Box) -> None:
    (seed,) = psutil.Process(box.pid).children()
    wide, narrow = jail(), jail(**READONLY)
    ahead = guest.Prepare(isolation="launcher", jail=wide, cpu_s=20)
    box.connection.sendall(guest.pack_json(guest.PREPARE, 0, ahead))
    within(lambda: len(seed.children()) == 1)
    made = {process.pid for process in seed.children()}
    assert not writes(box, "file", jail=narrow)
    assert len(seed.children()) == 2
    assert writes(box, "file", jail=wide.key)
    assert len(seed.children()) == 2
    assert made <= {process.pid for process in seed.children()}
    assert writes(box, "file", jail=wide.key, cpu_s=10)  # another ceiling is another launcher
    assert len(seed.children()) == 3


def test_what_was_built_ahead_serves_that_very_jail_and_no_other(box: Box) -> None:
    write = ("sh", "-c", "echo x > /workspace/file")
    assert box.run(*write, isolation="call").how.exit_code == 0
    for changes in (
        {"jail": jail(**READONLY)},
        {"jail": jail(write=("/dev/null", "/tmp"))},
        {"jail": jail(file_size=0)},
        {"jail": jail(execute=("/lib", "/lib64", "/usr/lib"))},
    ):
        narrow = box.run(*write, isolation="call", **changes)
        assert narrow.fault or narrow.how.exit_code != 0, changes
        assert box.run(*write, isolation="call").how.exit_code == 0
    assert "write_workspace" in box.run("true", isolation="call", jail=jail(**READONLY)).walls
    assert "write_workspace" not in box.run("true", isolation="call").walls
    spin = ("python3", "-c", "while True: pass")
    assert box.run("true", isolation="call", cpu_s=1).how.exit_code == 0
    assert box.run(*spin, isolation="call", cpu_s=1).how.reason == "cpu time: more than 1 s"
    assert box.run(*spin, isolation="call", cpu_s=20, wall_ms=2500).how.reason == "wall time"


def test_every_launcher_proves_its_own_walls(box: Box) -> None:
    for isolation in ("launcher", "call", "call", "launcher"):
        walls = box.run("true", isolation=isolation).walls
        assert {"signal_supervisor", "read_supervisor", "make_user_namespace", "connect_tcp"} <= set(walls)
        assert all(walls.values())


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_no_call_holds_what_walls_are_made_of(box: Box, isolation: str) -> None:
    """Whoever has a ruleset can widen what later launchers enter: a call has its three streams, and no more."""
    listed = "import os; print([os.readlink(f'/proc/self/fd/{held}').split(':')[0] for held in range(3)])"
    for _ in range(3):
        assert box.run("ls", "/proc/self/fd", isolation=isolation).stdout.split() == [b"0", b"1", b"2", b"3"]
        assert box.run("python3", "-c", listed, isolation=isolation).stdout == b"['/dev/null', 'pipe', 'pipe']\n"


def test_what_waits_is_bounded_and_gone_with_the_sandbox(box: Box) -> None:
    for size in range(20):
        for isolation in ("launcher", "call"):
            assert box.run("true", isolation=isolation, jail=jail(file_size=size + 1)).how.exit_code == 0
    counted = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
    # PID 1, the seed, eight that wait with a process each, one that serves and the one that counts; the rest is ending.
    within(lambda: int(box.run("python3", "-c", counted).stdout) <= 2 + 8 * 2 + 2)
    inside = psutil.Process(box.pid).children(recursive=True)
    box.connection.close()
    assert not psutil.wait_procs(inside, TIMEOUT_S)[1]


def test_a_prepared_process_that_was_killed_costs_no_call(box: Box) -> None:
    assert box.run("true", isolation="call").how.exit_code == 0
    source = "import os\ndef run(call):\n    os.kill(os.getppid(), 12)\n    return 1"  # its launcher's own signal
    for _ in range(3):
        done = box.finish(box.python(source))
        assert (done.how.kind, done.how.signal) == ("exited", 9) or done.result == 1
    assert box.finish(box.python("def run(call): return 2")).result == 2


# --- folders that tools make -------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_a_granted_folder_is_the_one_of_that_name_now(box: Box, isolation: str) -> None:
    def lists() -> list[str] | None:
        granted = jail(read=(*SYSTEM, "/dev/null", "/workspace/in"), write=("/dev/null",), execute=SYSTEM)
        done = box.run("ls", "/workspace/in", jail=granted, isolation=isolation)
        return None if done.fault else done.stdout.decode().split()

    def becomes(script: str) -> None:
        assert box.run("sh", "-ec", script).how.exit_code == 0

    becomes("mkdir in; touch in/first")
    assert lists() == lists() == ["first"]
    becomes("mv in other; mkdir in; touch in/second")
    assert lists() == lists() == ["second"]
    for target in ("other", "/workspace", "/", "/etc"):
        becomes(f"rm -rf in; ln -s {target} in")
        assert lists() is None, target  # no wall is built on a link
    becomes("rm in")
    assert lists() is None
    becomes("mv other in")
    assert lists() == ["first"]


def test_a_moved_folder_takes_no_rights_along(box: Box) -> None:
    granted = jail(read=(*READ, "/workspace/in"), write=("/dev/null", "/workspace/in"), execute=SYSTEM)
    assert box.run("mkdir", "in").how.exit_code == 0
    assert writes(box, "in/file", jail=granted)
    assert box.run("sh", "-c", "mv in other && mkdir in").how.exit_code == 0
    assert not writes(box, "other/file", jail=granted)
    assert writes(box, "in/file", jail=granted)


# --- a jail by its key -------------------------------------------------------------------------------------------


def test_a_jail_that_was_spelled_out_can_be_named(box: Box) -> None:
    wide, narrow = jail(), jail(**READONLY)
    for spec in (wide, narrow):
        assert box.run("true", jail=spec).how.exit_code == 0
    for isolation in ("launcher", "call"):
        assert writes(box, "file", jail=wide.key, isolation=isolation)
        assert not writes(box, "file", jail=narrow.key, isolation=isolation)
    assert parent(box, jail=wide.key) == parent(box, jail=wide)


@pytest.mark.parametrize("how", ["unknown", "another"])
def test_a_key_that_stands_for_nothing_or_for_two_ends_the_sandbox(box: Box, how: str) -> None:
    spec = jail()
    assert box.run("true", jail=spec).how.exit_code == 0
    if how == "unknown":
        box.start("true", jail="never spelled out")
    else:
        box.start("true", jail=guest.JailSpec(key=spec.key, read=("/",), write=("/",), execute=("/",), seccomp="",
                                              open_files=256, file_size=1))  # fmt: skip
    assert box.ends()


# --- kernels without a signal scope ------------------------------------------------------------------------------

LEAVE = "import os, time\nfor _ in range(5):\n if not os.fork():\n  os.setsid()\n  time.sleep(1000)"


@pytest.mark.parametrize("abi", [1, 3, 5])
def test_an_older_kernel_serves_one_call_at_a_time_and_clears_after_each(old_box: Box, abi: int) -> None:
    assert (old_box.ready.landlock, old_box.ready.scoped) == (abi, False)
    for isolation in ("launcher", "call"):
        done = old_box.run("sh", "-c", "echo $PPID; cat", isolation=isolation)
        assert done.how.exit_code == 0
        assert all(done.walls.values())
        assert ("signal_supervisor" in done.walls, "connect_tcp" in done.walls) == (False, abi >= 4)
        assert writes(old_box, "file", isolation=isolation)
        assert not writes(old_box, "file", isolation=isolation, jail=jail(**READONLY))
        left = old_box.run("python3", "-c", LEAVE, isolation=isolation)
        assert left.how.usage.leftover >= 5
        assert strangers(old_box) == []
        done = old_box.finish(old_box.python("def run(call): return [1, call.tool]", isolation=isolation))
        assert (done.result, done.how.exit_code) == ([1, "made"], 0)
        number = old_box.start("sleep", "1000", isolation=isolation)
        old_box.until(number, guest.STARTED)
        refused = old_box.run("true")
        assert refused.fault is not None
        assert refused.fault.code == "unavailable"
        old_box.connection.sendall(guest.pack_json(guest.CANCEL, number, guest.CancelCall(kind="killed")))
        assert old_box.finish(number).how.kind == "killed"
        assert old_box.run("true").how.exit_code == 0


def test_an_older_kernel_keeps_no_launcher(old_box: Box) -> None:
    assert parent(old_box) != parent(old_box)
    names = "import json, os; print(json.dumps([name for name in os.listdir('/proc') if name.isdigit()]))"
    assert len(json.loads(old_box.run("python3", "-c", names).stdout)) == 3  # PID 1, its launcher, itself
