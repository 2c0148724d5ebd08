"""What the guest promises, on a real container made by engine, spoken to as gate speaks to it: each refusal beside its
allowed twin."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from box import READ, READONLY, SYSTEM, TIMEOUT_S, Box, jail, strangers

from runner.wire import guest

pytestmark = pytest.mark.docker

# The readonly profile's deny list is engine's to compile; one instruction is enough here: allow everything.
ALLOW_ALL = base64.b64encode(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)).decode()


# --- how a call runs and ends -----------------------------------------------------------------------------


def test_output_exit_and_signal_are_reported(box: Box) -> None:
    assert box.ready.landlock >= 6
    assert box.ready.scoped
    done = box.run("/bin/echo", "x")
    assert (done.stdout, done.stderr, done.how.kind, done.how.exit_code) == (b"x\n", b"", "exited", 0)
    assert done.how.usage.wall_us > 0
    done = box.run("sh", "-c", "echo a; echo b >&2; exit 3")
    assert (done.stdout, done.stderr, done.how.exit_code) == (b"a\n", b"b\n", 3)
    done = box.run("sh", "-c", "kill -TERM $$")
    assert (done.how.kind, done.how.exit_code, done.how.signal) == ("exited", None, 15)


def test_frames_come_in_order_and_output_keeps_its_order(box: Box) -> None:
    done = box.run("sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done")
    assert done.kinds[0] == guest.STARTED
    assert done.kinds[-1] == guest.ENDED
    assert set(done.kinds[1:-1]) == {guest.STDOUT}
    assert done.stdout == b"".join(b"%d\n" % number for number in range(5000))


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_a_program_that_cannot_run_is_the_callers_fault(box: Box, isolation: str) -> None:
    for argv in (["no-such-program"], ["/workspace/none"], ["/etc/passwd"], [""], ["a\0b"]):
        done = box.run(*argv, isolation=isolation)
        assert done.fault is not None, argv
        assert (done.fault.code, done.kinds) == ("arguments", [guest.FAULT]), argv
    assert box.run("true", isolation=isolation).how.exit_code == 0


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_stdin_reaches_the_tool_under_credit(box: Box, isolation: str) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB, eight windows
    done = box.finish(box.start("cat", stdin=True, isolation=isolation), stdin=data)
    assert done.stdout == data
    assert box.run("cat").stdout == b""  # no stdin: /dev/null
    assert (
        box.finish(box.start("true", stdin=True), stdin=data).how.exit_code == 0
    )  # nobody reads: dropped, never stuck


def test_a_writer_stops_without_credit_and_ends_with_it(box: Box) -> None:
    number = box.start("sh", "-c", "head -c 10000000 /dev/zero; echo end >&2", credit=100_000)
    arrived = 0
    while arrived < 100_000:  # in as many pieces as the writer's pipe happens to hold
        arrived += len(box.until(number, guest.STDOUT))
    assert arrived == 100_000
    assert box.run("echo", "neighbour").stdout == b"neighbour\n"
    box.send(guest.PING, 0)
    box.until(0, guest.PONG)
    assert not [item for item in box._frames if item[1] == number]  # not a byte beyond the credit
    box.send(guest.CREDIT, number, (20_000_000).to_bytes(4, "big"))
    done = box.finish(number, credit=False)
    assert (len(done.stdout), done.stderr, done.how.exit_code) == (9_900_000, b"end\n", 0)


def test_a_silent_call_ends_without_any_credit(box: Box) -> None:
    assert box.run("true", credit=0).how.exit_code == 0


def test_cancelling_a_call_that_waits_for_credit_ends_it(box: Box) -> None:
    number = box.start("echo", "unwanted", credit=0)
    box.until(number, guest.STARTED)
    assert box.run("true").how.exit_code == 0
    box.connection.sendall(guest.pack_json(guest.CANCEL, number, guest.CancelCall(kind="output_capped")))
    done = box.finish(number)
    assert (done.how.kind, done.stdout) == ("output_capped", b"")


def test_a_deadline_ends_the_whole_tree(box: Box) -> None:
    done = box.run("sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000", wall_ms=300)
    assert (done.how.kind, done.how.reason) == ("timed_out", "wall time")
    assert done.how.signal == 9
    assert strangers(box) == []


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_cancel_ends_a_call_as_the_kind_it_names(box: Box, isolation: str) -> None:
    number = box.start("sleep", "1000", isolation=isolation)
    box.until(number, guest.STARTED)
    box.connection.sendall(guest.pack_json(guest.CANCEL, number, guest.CancelCall(kind="killed")))
    assert box.finish(number).how.kind == "killed"
    box.connection.sendall(guest.pack_json(guest.CANCEL, number, guest.CancelCall(kind="killed")))  # too late: ignored
    assert box.run("true").how.exit_code == 0


LEAVE = """
import os, sys, time
for number in range(5):
    if not os.fork():
        if sys.argv[1] == "daemon":
            os.setsid()
            if os.fork(): os._exit(0)
        time.sleep(1000)
print("left")
"""


@pytest.mark.parametrize("how", ["fork", "daemon"])
@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_what_a_call_leaves_behind_is_killed_and_counted(box: Box, how: str, isolation: str) -> None:
    done = box.run("python3", "-c", LEAVE, how, isolation=isolation)
    assert (done.stdout, done.how.exit_code) == (b"left\n", 0)
    assert done.how.usage.leftover >= 5
    assert strangers(box) == []


def test_a_fork_bomb_ends_with_its_call_and_a_neighbour_lives(box: Box) -> None:
    neighbour = box.start("sh", "-c", "sleep 2; echo alive")
    box.until(neighbour, guest.STARTED)
    done = box.run("python3", "-c", "import os\nwhile True:\n try: os.fork()\n except OSError: pass", wall_ms=1000)
    assert done.how.kind == "timed_out"
    assert box.finish(neighbour).stdout == b"alive\n"
    assert strangers(box) == []


def test_memory_beyond_the_ceiling_is_reported_as_oom(box: Box) -> None:
    done = box.run("python3", "-c", "data = bytearray(2 << 30)")
    assert done.how.kind == "oom"
    assert box.run("python3", "-c", "data = bytearray(32 << 20)").how.exit_code == 0


@pytest.mark.parametrize("source", ["while True: pass", "import signal; signal.signal(24, 1)\nwhile True: pass"])
def test_cpu_time_is_limited(box: Box, source: str) -> None:
    done = box.run("python3", "-c", source, cpu_s=1)
    assert done.how.kind == "timed_out"
    assert "cpu time" in done.how.reason
    assert box.run("python3", "-c", "sum(range(1000))", cpu_s=1).how.exit_code == 0


# --- walls --------------------------------------------------------------------------------------------------


def test_walls_are_measured_and_the_launcher_is_kept(box: Box) -> None:
    first, second = box.run("sh", "-c", "echo $PPID"), box.run("sh", "-c", "echo $PPID")
    assert first.stdout == second.stdout
    assert first.walls
    assert all(first.walls.values())
    assert {"signal_supervisor", "connect_tcp", "write_oom_score", "read_supervisor"} <= set(first.walls)
    assert box.run("sh", "-c", "echo $PPID", jail=jail(open_files=128)).stdout != first.stdout
    assert box.run("sh", "-c", "echo $PPID", isolation="call").stdout != first.stdout
    assert "write_workspace" in box.run("true", jail=jail(**READONLY)).walls


def test_walls_that_cannot_be_built_mean_no_process(box: Box) -> None:
    for broken in (
        {"read": (*READ, "/no/such/folder")},
        {"open_files": 8},
        {"seccomp": "AAAA"},
        {"write": ("/run/tools",)},
        {"write": ("/",)},
    ):
        done = box.run("true", jail=jail(**broken))
        assert done.fault is not None, broken
        assert (done.fault.code, done.kinds) == ("unavailable", [guest.FAULT]), broken
    assert box.run("true", jail=jail(seccomp=ALLOW_ALL)).how.exit_code == 0


def test_only_what_the_jail_lets_run_can_run(box: Box) -> None:
    assert box.run("cp", "/bin/true", "/workspace/program").how.exit_code == 0
    done = box.run("/workspace/program", jail=jail(execute=SYSTEM))
    assert done.fault is not None
    assert done.fault.code == "arguments"
    assert box.run("/workspace/program").how.exit_code == 0


ACTS = """
import ctypes, errno, json, os, resource, socket, sys
found = {}
def attempt(name, act):
    try:
        act()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    except ValueError:  # how the resource module says EPERM
        found[name] = "EPERM"
new = os.O_WRONLY | os.O_CREAT
attempt("write_workspace", lambda: os.open("/workspace/file", new))
attempt("write_tools", lambda: os.open("/run/tools/file", new))
attempt("write_root", lambda: os.open("/file", new))
attempt("raise_oom_score", lambda: os.open("/proc/self/oom_score_adj", os.O_WRONLY))
attempt("signal_supervisor", lambda: os.kill(1, 9))
attempt("read_supervisor", lambda: os.open("/proc/1/environ", os.O_RDONLY))
attempt("list_supervisor", lambda: os.listdir("/proc/1/fd"))
attempt("read_launcher", lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY))
attempt("list_launcher", lambda: os.listdir(f"/proc/{os.getppid()}/fd"))
attempt("signal_other", lambda: os.kill(int(sys.argv[1]), 9))
attempt("read_other", lambda: os.open(f"/proc/{sys.argv[1]}/environ", os.O_RDONLY))
attempt("raise_files", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16)))
attempt("connect", lambda: socket.socket().connect(("127.0.0.1", 1)))
attempt("listen", lambda: socket.socket().bind(("127.0.0.1", 0)))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect("\\0runner-wall"))
attempt("signal_launcher", lambda: os.kill(os.getppid(), 0))
print(json.dumps(found))
"""


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_a_tool_reaches_neither_supervisor_nor_launcher_nor_another_call(box: Box, isolation: str) -> None:
    other = box.start("sh", "-c", "echo $$; sleep 1000")
    pid = box.until(other, guest.STDOUT).decode().strip()
    found = json.loads(box.run("python3", "-c", ACTS, pid, isolation=isolation).stdout)
    assert found.pop("write_workspace") == "done"  # the positive control
    assert (found.pop("signal_launcher") == "EPERM") == (isolation == "call")
    assert set(found.values()) <= {"EACCES", "EPERM", "EROFS"}, found
    box.connection.sendall(guest.pack_json(guest.CANCEL, other, guest.CancelCall(kind="cancelled")))
    assert box.finish(other).how.kind == "cancelled"  # it lived until now


def test_a_readonly_jail_cannot_write_anywhere(box: Box) -> None:
    code = ACTS.replace("int(sys.argv[1])", "1").replace("sys.argv[1]", "1")
    found = json.loads(box.run("python3", "-c", code, jail=jail(**READONLY)).stdout)
    assert found["write_workspace"] == "EACCES"
    assert json.loads(box.run("python3", "-c", code).stdout)["write_workspace"] == "done"


DESCRIPTORS = """
import os
held = []
for number in range(64):
    try: held.append((number, os.readlink(f"/proc/self/fd/{number}").split(":")[0]))
    except OSError: pass
print(held)
"""


@pytest.mark.parametrize("isolation", ["launcher", "call"])
def test_a_tool_inherits_three_descriptors_and_no_more(box: Box, isolation: str) -> None:
    other = box.start("sleep", "1000")
    box.until(other, guest.STARTED)
    expected = [(0, "/dev/null"), (1, "pipe"), (2, "pipe")]
    assert box.run("python3", "-c", DESCRIPTORS, isolation=isolation).stdout.decode().strip() == str(expected)
    source = f"def run(call):\n    exec({DESCRIPTORS!r})"
    done = box.finish(box.python(source, isolation=isolation))
    assert done.stdout.decode().strip() == str([*expected, (4, "/memfd")])


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_launcher_that_is_attacked_takes_the_sandbox_with_it(box: Box, how: str) -> None:
    signal = "KILL" if how == "kill" else "STOP"
    box.start("sh", "-c", f"kill -{signal} $PPID; sleep 1000", wall_ms=500)
    assert box.ends()


def test_ordinary_signals_to_everything_do_not_end_the_sandbox(box: Box) -> None:
    done = box.run("sh", "-c", "trap '' TERM INT HUP; kill -TERM -1; kill -INT -1; kill -HUP -1; echo still here")
    assert done.stdout == b"still here\n"
    assert box.run("true").how.exit_code == 0


@pytest.mark.parametrize("how", ["close", "garbage", "shutdown"])
def test_the_end_of_the_control_connection_ends_every_process(box: Box, how: str) -> None:
    number = box.start("sh", "-c", "sleep 1000 & sleep 1000")
    box.until(number, guest.STARTED)
    assert Path(f"/proc/{box.pid}/status").exists()
    if how == "garbage":
        box.connection.sendall(b"\xff" * 9)
    elif how == "shutdown":
        box.connection.shutdown(socket.SHUT_WR)
    else:
        box.connection.close()
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{box.pid}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not Path(f"/proc/{box.pid}/cmdline").exists()


def test_a_smuggled_descriptor_neither_delays_the_end_nor_adds_to_it(box: Box) -> None:
    keeper = """
import socket, os, time
server = socket.socket(socket.AF_UNIX); server.bind("/workspace/s"); server.listen()
print("ready", flush=True)
other, _ = server.accept()
_, held, _, _ = socket.recv_fds(other, 1, 1)
os.write(held[0], b"kept ")
other.send(b"k")
while True: os.write(held[0], b"forged")
"""
    giver = """
import socket
other = socket.socket(socket.AF_UNIX); other.connect("/workspace/s")
socket.send_fds(other, [b"x"], [1])
other.recv(1)
"""
    holding = box.start("python3", "-c", keeper)
    box.until(holding, guest.STDOUT)
    number = box.start("python3", "-c", giver, credit=1_000_000)
    done = box.finish(number, credit=False)
    assert (done.how.kind, done.stdout[:5]) == ("exited", b"kept ")


# --- python tools ---------------------------------------------------------------------------------------------


def test_a_python_tool_returns_a_result_beside_its_output(box: Box) -> None:
    source = "def run(call):\n    print('hello')\n    return {'sum': sum(call.arguments['numbers']), 'ü': None}"
    done = box.finish(box.python(source, {"numbers": [1, 2, 3]}))
    assert (done.result, done.stdout, done.how.exit_code) == ({"sum": 6, "ü": None}, b"hello\n", 0)
    assert done.kinds[-2:] == [guest.RESULT, guest.ENDED]
    done = box.finish(box.python("def run(call): pass"))
    assert (done.result, done.how.exit_code) == (None, 0)


def test_a_python_tools_failures_are_told_apart(box: Box) -> None:
    source = "from runner.guest.beneath import ToolError\ndef run(call): raise ToolError('no', 'why')"
    done = box.finish(box.python(source))
    assert (done.result, done.how.exit_code) == ({"error": {"code": "why", "message": "no"}}, 1)
    done = box.finish(box.python("def run(call): return 1 / 0"))
    assert (done.result, done.how.exit_code) == (None, 1)
    assert b"ZeroDivisionError" in done.stderr
    assert b"python_tool" not in done.stderr
    done = box.finish(box.python("def run(call): return 'x' * 1000", result=100))
    assert done.result["error"]["code"] == "result"
    done = box.finish(box.python("import os\ndef run(call): os.write(4, b'x' * 1000); os._exit(0)", result=100))
    assert (done.how.kind, done.result) == ("output_capped", None)


def test_code_is_run_only_with_its_digest(box: Box) -> None:
    done = box.run(tool="made", kind="python", arguments={}, code_digest="0" * 64)
    assert done.fault is not None
    assert done.fault.code == "unavailable"
    assert box.finish(box.python("def run(call): return 1")).result == 1
    assert box.finish(box.python("def run(call): return 2")).result == 2
    box.connection.sendall(guest.pack_json(guest.CODE, 0, guest.Code(tool="made", digest="0" * 64, files={})))
    assert box.ends()


def test_python_run_is_a_clean_interpreter(box: Box) -> None:
    code = "import sys\nprint(__name__, sys.argv[1:], sorted(globals()))\nprint(input())\nsys.exit(3)"
    number = box.tool("python_run", {"code": code, "args": ["a", "b"]}, stdin=True)
    done = box.finish(number, stdin=b"from stdin\n")
    assert done.stdout.decode().splitlines() == [
        "__main__ ['a', 'b'] ['__builtins__', '__doc__', '__loader__', '__name__', '__package__', '__spec__', 'sys']",
        "from stdin",
    ]
    assert done.how.exit_code == 3
    done = box.finish(box.tool("python_run", {"code": "def f():\n    raise ValueError('x')\nf()"}))
    assert done.how.exit_code == 1
    assert done.stderr.decode().splitlines()[1:3] == ['  File "<code>", line 3, in <module>', "    f()"]
    assert "main.py" not in done.stderr.decode()


# --- files ------------------------------------------------------------------------------------------------------


def file_tool(box: Box, name: str, arguments: dict[str, Any], **changes: Any) -> Any:
    """The result of a tool that reads or writes files."""
    profile = {} if name in ("fs_write", "workspace_put") else {"jail": jail(**READONLY)}
    done = box.finish(box.tool(name, arguments, **profile, **changes))
    assert done.result is not None, done.stderr
    return done.result


def test_files_are_written_read_listed_and_searched(box: Box) -> None:
    file_tool(box, "fs_write", {"path": "a/b.txt", "content": "one\ntwo ünï\n", "create_parents": True})
    file_tool(box, "fs_write", {"path": "/workspace/a/b.txt", "content": "three\n", "append": True})
    assert file_tool(box, "fs_read", {"path": "a/b.txt"}) == {
        "path": "a/b.txt", "content": "one\ntwo ünï\nthree\n", "offset": 0, "next": 20, "size": 20, "eof": True,
    }  # fmt: skip
    file_tool(box, "fs_write", {"path": "bin", "content": "AP8=", "base64": True})
    assert file_tool(box, "fs_read", {"path": "bin"})["base64"] == "AP8="
    listed = file_tool(box, "fs_list", {"recursive": True})
    assert [(entry["path"], entry["kind"]) for entry in listed["entries"]] == [
        ("a", "folder"), ("a/b.txt", "file"), ("bin", "file"),
    ]  # fmt: skip
    found = file_tool(box, "fs_search", {"pattern": "^t(wo|hree)", "glob": "*.txt"})
    assert [(match["path"], match["line"]) for match in found["matches"]] == [("a/b.txt", 2), ("a/b.txt", 3)]


LINKS = """
mkdir -p in/deep out; echo secret > out/secret; echo fine > in/fine
ln -s ../out/secret in/link; ln -s ../out in/folder; ln -s /etc/passwd in/host; mkfifo in/fifo
"""


@pytest.mark.parametrize("path", ["in/link", "in/folder/secret", "in/host", "in/deep/../../out/secret", "/etc/passwd"])
def test_a_path_never_leaves_the_granted_folder(box: Box, path: str) -> None:
    assert box.run("sh", "-c", LINKS).how.exit_code == 0
    roots = {"path": "/workspace/in"}
    assert "error" in file_tool(box, "fs_read", {"path": path}, roots=roots)
    assert "error" in file_tool(box, "workspace_get", {"path": path, "kind": "file"}, roots=roots)
    assert "error" in file_tool(box, "fs_write", {"path": path, "content": "x"}, roots=roots)
    assert file_tool(box, "fs_read", {"path": "in/fine"}, roots=roots)["content"] == "fine\n"
    assert box.run("cat", "out/secret").stdout == b"secret\n"


def test_a_fifo_is_refused_at_once(box: Box) -> None:
    assert box.run("sh", "-c", LINKS).how.exit_code == 0
    assert file_tool(box, "fs_read", {"path": "in/fifo"})["error"]["code"] == "not_a_file"
    assert "error" in file_tool(box, "fs_write", {"path": "in/fifo", "content": "x"})


def test_a_tree_goes_in_and_comes_out_without_what_is_not_a_file(box: Box) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in (("src/a.py", b"print(1)\n"), ("src/deep/b.bin", bytes(100_000))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    done = box.finish(box.tool("workspace_put", {"path": "in", "kind": "tree"}, stdin=True), stdin=stream.getvalue())
    assert done.result == {"path": "in", "files": 2, "folders": 0, "bytes": 100_009}
    assert box.run("sh", "-c", "ln -s /etc/passwd in/src/link; mkfifo in/src/fifo").how.exit_code == 0
    done = box.finish(box.tool("workspace_get", {"path": "in", "kind": "tree"}, jail=jail(**READONLY)))
    assert (done.result["files"], done.result["folders"]) == (2, 2)
    assert [(item["path"], item["why"]) for item in done.result["skipped"]] == [
        ("src/fifo", "fifo"),
        ("src/link", "link"),
    ]
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["src", "src/a.py", "src/deep", "src/deep/b.bin"]


def bad_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry)
    return stream.getvalue()


@pytest.mark.parametrize(
    "stream",
    [
        bad_entry("../escaped"),
        bad_entry("/workspace/escaped"),
        bad_entry("a/../../escaped"),
        bad_entry("escaped", tarfile.SYMTYPE, "/etc/passwd"),
        bad_entry("escaped", tarfile.LNKTYPE, "/workspace/out"),
        bad_entry("escaped", tarfile.FIFOTYPE),
        bad_entry("escaped", tarfile.CHRTYPE),
        bad_entry("folder/escaped"),
        b"not a tar at all" * 64,
    ],
    ids=["dots", "absolute", "inner dots", "symlink", "hard link", "fifo", "device", "through a link", "garbage"],
)
def test_a_hostile_tar_writes_nothing_outside(box: Box, stream: bytes) -> None:
    assert box.run("sh", "-c", "mkdir in out; ln -s ../out in/folder").how.exit_code == 0
    done = box.finish(box.tool("workspace_put", {"path": "in", "kind": "tree"}, stdin=True), stdin=stream)
    assert "error" in done.result
    assert box.run("find", "/workspace", "-name", "escaped").stdout == b""
    done = box.finish(box.tool("workspace_put", {"path": "in", "kind": "tree"}, stdin=True), stdin=bad_entry("allowed"))
    assert done.result["files"] == 1
