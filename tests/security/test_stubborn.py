"""Calls that do not want to end, and trees that do not want to be read: each beside what is well behaved."""

from __future__ import annotations

from typing import Any

import pytest
from box import READONLY, Box, jail, strangers

from runner.wire import guest

pytestmark = pytest.mark.docker

ISOLATIONS = pytest.mark.parametrize("isolation", ["launcher", "call"])

STUBBORN = {
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "stops its group": "os.killpg(0, signal.SIGSTOP)",
    "stops all it can but its launcher": "for pid in others(): stop(pid)\ntime.sleep(1000)",
    "stops its child and waits": "child = os.fork() or time.sleep(1000)\nstop(child)\nos.waitpid(child, 0)",
    "is stopped by its child": "os.fork() or (stop(os.getppid()), time.sleep(1000))\ntime.sleep(1000)",
    "ignores what it can": "for number in range(1, 65):\n try: signal.signal(number, signal.SIG_IGN)\n"
    " except (OSError, ValueError): pass\ntime.sleep(1000)",
    "blocks what it can": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntime.sleep(1000)",
    "forks twice": "os.fork() and time.sleep(1000)\nos.setsid()\nos.fork() and os._exit(0)\ntime.sleep(1000)",
    "hangs in vfork": "ctypes.CDLL(None).syscall(56, 0x4100 | 17, 0, 0, 0, 0) or time.sleep(1000)",
    "forks and ends, for ever": "while True:\n if os.fork(): os._exit(0)",
    "opens what nobody serves": "os.mkfifo('/workspace/fifo')\nopen('/workspace/fifo')",
    "sleeps in a thread": "threading.Thread(target=time.sleep, args=[1000]).start()",
}
HEAD = """
import ctypes, os, signal, sys, threading, time
def stop(pid): os.kill(pid, signal.SIGSTOP)
def others():
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid(), os.getppid()):
            try: os.kill(int(name), 0)
            except OSError: continue
            yield int(name)
"""


@ISOLATIONS
@pytest.mark.parametrize("how", STUBBORN)
def test_what_does_not_want_to_end_ends_at_its_deadline(box: Box, how: str, isolation: str) -> None:
    neighbour = box.start("sh", "-c", "read line; echo alive", stdin=True)
    box.until(neighbour, guest.STARTED)
    done = box.run("python3", "-c", HEAD + STUBBORN[how], wall_ms=1500, isolation=isolation)
    assert (done.how.kind, done.how.reason) in {("timed_out", "wall time"), ("exited", "")}, done.stderr
    assert done.how.kind == "timed_out" or how == "forks and ends, for ever", done.stderr
    assert box.finish(neighbour, stdin=b"go\n").stdout == b"alive\n"
    assert strangers(box) == []
    assert box.run("rm", "-f", "/workspace/fifo", isolation=isolation).how.exit_code == 0


@ISOLATIONS
def test_a_python_tool_that_does_not_want_to_end_ends_too(box: Box, isolation: str) -> None:
    for how in ("stops itself", "ignores what it can", "forks twice", "hangs in vfork"):
        body = "\n".join(f"    {line}" for line in STUBBORN[how].split("\n"))
        number = box.python(f"{HEAD}\ndef run(call):\n{body}\n", wall_ms=1500, isolation=isolation)
        assert box.finish(number).how.kind == "timed_out", how
    assert box.finish(box.python("def run(call): return 1", isolation=isolation)).result == 1
    pids = box.run("python3", "-c", "import os; print(len([n for n in os.listdir('/proc') if n.isdigit()]))")
    assert int(pids.stdout) <= 2 + 2 * 8 + 2


@ISOLATIONS
def test_signals_sent_to_a_launcher_do_not_reach_its_next_call(box: Box, isolation: str) -> None:
    flood = (  # 32 and 33 are libc's own: nobody can block them, and a launcher that dies takes its sandbox along
        "import os, signal\nfor number in range(1, 65):\n if number not in (9, 19, 12, 32, 33):\n"
        "  for _ in range(50):\n   try: os.kill(os.getppid(), number)\n   except PermissionError: pass\nprint('sent')"
    )
    for _ in range(2):
        assert box.run("python3", "-c", flood, isolation=isolation).stdout == b"sent\n"
        done = box.run("sh", "-c", "sleep 0.1; echo whole", isolation=isolation)
        assert (done.stdout, done.how.exit_code) == (b"whole\n", 0)
    cancels = "import os, time\nos.kill(os.getppid(), 12)\ntime.sleep(1)\nprint('lives')"
    ended = box.run("python3", "-c", cancels, isolation=isolation)
    if isolation == "launcher":  # the signal that ends a call ends its sender's
        assert (ended.how.kind, ended.how.signal) == ("exited", 9)
    else:
        assert b"PermissionError" in ended.stderr
    assert box.run("sh", "-c", "sleep 0.1; echo whole", isolation=isolation).stdout == b"whole\n"


DESCRIPTORS = """
import os, socket
held = []
try:
    while True: held.append(os.dup(0))
except OSError as error:
    print(error.strerror, len(held))
for number in held: os.close(number)
sent = 0
try:
    a, b = socket.socketpair()
    a.setblocking(False)
    while sent < 100_000:  # descriptors in flight are counted too
        socket.send_fds(a, [b"x"], [0] * 250)
        sent += 250
except OSError as error:
    print(error.strerror, sent)
"""


@ISOLATIONS
def test_a_flood_of_descriptors_stops_at_the_ceiling_and_is_gone_with_its_call(box: Box, isolation: str) -> None:
    for files in (64, 200):
        done = box.run("python3", "-c", DESCRIPTORS, isolation=isolation, jail=jail(open_files=files))
        first, second = done.stdout.decode().splitlines()
        assert first == f"Too many open files {files - 3}", done.stderr
        assert second.rsplit(" ", 1)[0] in ("Too many references: cannot splice", "Resource temporarily unavailable")
    assert box.run("sh", "-c", "echo fine | cat").stdout == b"fine\n"


SIZE = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for path in "/workspace/large", None:
    file = os.open(path, os.O_CREAT | os.O_WRONLY) if path else os.memfd_create("large")
    written = 0
    try:
        while True: written += os.write(file, bytes(1 << 16))
    except OSError as error:
        print(error.strerror, written)
"""


@ISOLATIONS
def test_a_file_stops_at_its_size(box: Box, isolation: str) -> None:
    done = box.run("python3", "-c", SIZE, isolation=isolation, jail=jail(file_size=1 << 20))
    assert done.stdout.decode().splitlines() == [f"File too large {1 << 20}"] * 2
    write = "with open('/workspace/large', 'wb') as file: file.write(bytes(1 << 21))"
    assert box.run("python3", "-c", write, isolation=isolation, jail=jail(file_size=1 << 21)).how.exit_code == 0
    tool = f"import signal\ndef run(call):\n    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n    {write}"
    done = box.finish(box.python(tool, isolation=isolation, jail=jail(file_size=1 << 20)))
    assert b"File too large" in done.stderr


def test_cpu_time_of_a_python_tool_is_limited_and_counts_from_its_own_call(box: Box) -> None:
    busy = "import time\ndef run(call):\n    while time.process_time() < call.arguments['s']: pass\n    return 1"
    for _ in range(4):  # together more than the limit, on one launcher
        assert box.finish(box.python(busy, {"s": 0.6}, cpu_s=1)).result == 1
    done = box.finish(box.python(busy, {"s": 10}, cpu_s=1))
    assert (done.how.kind, done.how.reason) == ("timed_out", "cpu time: more than 1 s")


@pytest.mark.parametrize("ceilings", [{"pids": 40}])
def test_processes_are_counted_together_and_a_call_that_finds_no_room_says_so(box: Box, ceilings: Any) -> None:
    hold = "import os, sys, time\nmade = 0\ntry:\n while True:\n  if not os.fork(): time.sleep(1000)\n  made += 1\n"
    hold += "except OSError as error: print(error.strerror, made, flush=True)\nsys.stdin.read()"
    number = box.start("python3", "-c", hold, stdin=True)
    said, _, made = box.until(number, guest.STDOUT).decode().strip().rpartition(" ")
    assert said == "Resource temporarily unavailable"
    assert int(made) < ceilings["pids"]
    for changes in ({}, {"isolation": "call"}, {"jail": jail(open_files=100)}):
        refused = box.run("true", **changes)
        assert refused.fault is not None
        assert refused.fault.code == "unavailable"
        assert "unavailable" in refused.fault.reason
    refused = box.finish(box.python("def run(call): return 1"))
    assert refused.fault is not None
    assert refused.fault.code == "unavailable"
    box.send(guest.STDIN, number)
    assert box.finish(number).how.usage.leftover == int(made)
    assert box.run("true").how.exit_code == box.run("true", isolation="call").how.exit_code == 0
    assert box.finish(box.python("def run(call): return 1")).result == 1


# --- trees -------------------------------------------------------------------------------------------------------


def tool(box: Box, name: str, arguments: dict[str, Any]) -> Any:
    done = box.finish(box.tool(name, arguments, jail=jail(**READONLY)))
    assert done.how.kind == "exited", done.how
    assert done.result is not None, done.stderr
    return done.result


DEEP = """
import os
name = "d" * 60
for _ in range(10_000):
    os.mkdir(name)
    os.chdir(name)
open("at the bottom", "w").close()
"""


def test_a_tree_ten_thousand_deep_is_read_as_far_as_promised(box: Box) -> None:
    done = box.run("python3", "-c", DEEP, wall_ms=120_000)
    assert done.how.exit_code == 0, done.stderr
    listed = tool(box, "fs_list", {"recursive": True, "limit": 2000})
    assert len(listed["entries"]) == 64
    assert tool(box, "fs_search", {"pattern": "."}) == {"matches": [], "files": 0, "skipped": 0, "truncated": False}
    assert tool(box, "workspace_get", {"path": ".", "kind": "tree"})["folders"] == 64
    name = "d" * 60
    assert "error" in tool(box, "fs_read", {"path": "/".join([name] * 39)})  # a folder
    assert "error" in tool(box, "fs_list", {"path": "/".join([name] * 80)})  # longer than a path may be
    assert len(tool(box, "fs_list", {"path": "/".join([name] * 10)})["entries"]) == 1


NAMES = r"""
import os
for name in (b"new\nline", b"\xff\xfe", b"\x1b[2J", b"a" * 255, b" ", b"'", b'"', b"\\", "\u202etxt".encode()):
    open(os.path.join(b"/workspace", name), "w").write("needle")
"""


def test_names_of_every_kind_are_listed_and_searched(box: Box) -> None:
    assert box.run("python3", "-c", NAMES).how.exit_code == 0
    listed = tool(box, "fs_list", {})
    assert len(listed["entries"]) == 9
    assert "\\xff\\xfe" in {entry["path"] for entry in listed["entries"]}
    assert len(tool(box, "fs_search", {"pattern": "needle"})["matches"]) == 9
    got = tool(box, "workspace_get", {"path": ".", "kind": "tree"})
    assert (got["files"], [skipped["path"] for skipped in got["skipped"]]) == (8, ["\\xff\\xfe"])


ODD = """
import os, socket
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
os.symlink("fifo", "link")
open("file", "w").write("needle")
"""


def test_fifos_and_sockets_are_told_and_never_waited_for(box: Box) -> None:
    assert box.run("python3", "-c", ODD).how.exit_code == 0
    kinds = {entry["path"]: entry["kind"] for entry in tool(box, "fs_list", {})["entries"]}
    assert kinds == {"fifo": "fifo", "socket": "socket", "link": "link", "file": "file"}
    for path in ("fifo", "socket", "link"):
        for name, arguments in (
            ("fs_read", {}),
            ("fs_list", {}),
            ("fs_search", {"pattern": "."}),
            ("workspace_get", {"kind": "file"}),
            ("workspace_get", {"kind": "tree"}),
        ):
            assert "error" in tool(box, name, {"path": path, **arguments}), (path, name)
        done = box.finish(box.tool("fs_write", {"path": path, "content": "x"}))
        assert "error" in done.result, path
    found = tool(box, "fs_search", {"pattern": "needle"})
    assert ([match["path"] for match in found["matches"]], found["skipped"]) == (["file"], 3)
    got = tool(box, "workspace_get", {"path": ".", "kind": "tree"})
    assert (got["files"], got["skipped_count"]) == (1, 3)
    assert tool(box, "fs_read", {"path": "file"})["content"] == "needle"
