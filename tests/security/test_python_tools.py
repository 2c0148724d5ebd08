"""A python tool's process is forked from its launcher: what it finds is what a new interpreter would have, and nothing
of any other call. Each refusal beside its allowed twin."""

from __future__ import annotations

import json
import runpy
import secrets
from pathlib import Path
from typing import Any

import pytest
from box import Box, Done, jail, strangers

from runner.wire import guest

pytestmark = pytest.mark.docker

ISOLATIONS = pytest.mark.parametrize("isolation", ["launcher", "call"])
HERE = Path(__file__).parent


def canary() -> str:
    return f"CANARY-{secrets.token_hex(16)}"


def run(box: Box, source: str, arguments: dict[str, Any] | None = None, **changes: Any) -> Done:
    return box.finish(box.python(source, arguments, **changes))


# --- nothing of another call -------------------------------------------------------------------------------------

# Searches the whole of its own memory for what looks like a canary; the pattern does not look like one.
SEARCH = r"""
import os, re, sys
def run(call):
    sys.stdin.read()
    print(call.arguments["canary"], os.environ.get("CANARY"))
    found = set()
    with open("/proc/self/maps") as maps:
        regions = [line.split() for line in maps]
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for region in regions:
        if region[1].startswith("r") and region[-1] not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
            start, end = (int(number, 16) for number in region[0].split("-"))
            for at in range(start, end, 1 << 20):
                found |= set(re.findall(rb"CANARY-[0-9a-f]{32}", os.pread(memory, min(1 << 20, end - at), at)))
    return sorted(name.decode() for name in found)
"""


@ISOLATIONS
def test_a_call_finds_its_own_secrets_in_its_memory_and_no_other_call_s(box: Box, isolation: str) -> None:
    environment = {"CANARY": canary(), "PATH": "/usr/bin"}
    assert box.run("sh", "-c", f"echo {canary()}; cat", environment=environment, isolation=isolation).how.exit_code == 0
    assert box.run("true", jail=jail(write=("/dev/null", f"/workspace/{canary()}"))).fault  # what another may write
    for _ in range(3):  # a new launcher, a kept one, one that was built ahead
        own = {"argument": canary(), "environment": canary(), "stdin": canary()}
        number = box.python(
            SEARCH,
            {"canary": own["argument"]},
            environment={"CANARY": own["environment"]},
            stdin=True,
            isolation=isolation,
        )
        done = box.finish(number, stdin=own["stdin"].encode())
        assert done.stdout.decode().split() == [own["argument"], own["environment"]], done.stderr
        assert done.result == sorted(own.values())


STATE = """
import json, os, random, resource, signal, sys, tempfile, threading, time
def state():
    return {
        "module": hasattr(json, "poison"),
        "builtin": hasattr(__builtins__, "poison") or "poison" in dir(__builtins__),
        "modules": "poison" in sys.modules,
        "path": sys.path,
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")),
        "folder": os.getcwd(),
        "umask": [os.umask(0o22), os.umask(0o22)],
        "signals": [str(signal.getsignal(number)) for number in range(1, 32)],
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "pending": len(signal.sigpending()),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "oom": open("/proc/self/oom_score_adj").read(),
        "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "argv": sys.argv,
        "recursion": sys.getrecursionlimit(),
        "hook": str(sys.excepthook),
    }
def poison():
    json.poison = 1
    print.__self__.poison = 1
    sys.modules["poison"] = json
    sys.path.append("/poison")
    os.environ["POISON"] = "1"
    os.chdir("/")
    os.umask(0)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGCHLD:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getppid(), signal.SIGRTMAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    signal.setitimer(signal.ITIMER_REAL, 1000)
    os.nice(3)
    sys.setrecursionlimit(50_000)
    sys.excepthook = print
    random.seed(1)
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
    globals()["kept"] = [open("/dev/null") for _ in range(8)]
def run(call):
    if call.arguments["poison"]:
        poison()
    return {"state": state(), "new": [os.getpid(), random.random(), tempfile.mktemp()]}
"""


def test_a_call_finds_no_state_of_the_one_before_it(box: Box) -> None:
    before = run(box, STATE, {"poison": False}).result
    poisoned = run(box, STATE, {"poison": True})
    after = run(box, STATE, {"poison": False}).result
    assert poisoned.how.usage.leftover >= 1, poisoned.stderr
    assert strangers(box) == []
    assert after["state"] == before["state"]
    changed = {name for name, value in poisoned.result["state"].items() if before["state"][name] != value}
    assert changed >= {
        "module", "modules", "path", "environment", "threads", "folder", "umask", "signals", "blocked", "timer",
        "limits", "descriptors", "priority", "recursion", "hook",
    }  # fmt: skip
    assert all(first != second for first, second in zip(before["new"], after["new"], strict=True))
    assert after["state"]["descriptors"] == ["0", "1", "2", "3", "4"]  # 3: the listing itself
    assert after["state"]["oom"] == "1000\n"
    assert after["state"]["leader"]


OTHERS = """
import json, os
def attempt(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
        return "opened"
    except OSError as error:
        return type(error).__name__
def run(call):
    own = str(os.getpid())
    found = {}
    for process in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        for name in "environ", "mem", "maps", "fd/0":
            found[f"{'own' if process == own else process}/{name}"] = attempt(f"/proc/{process}/{name}")
    return found
"""


@ISOLATIONS
def test_no_other_process_of_the_sandbox_can_be_looked_into(box: Box, isolation: str) -> None:
    waits = "import time\ndef run(call):\n    print('ready', flush=True)\n    time.sleep(1000)"
    secret = {"SECRET": "1", "PATH": "/usr/bin:/bin"}
    neighbours = [
        box.start("sleep", "1000", environment=secret),
        box.start("sleep", "1000", environment=secret, isolation="call"),
    ]
    for number in neighbours:
        box.until(number, guest.STARTED)
    for kind in ("launcher", "call"):
        neighbours.append(box.python(waits, environment=secret, isolation=kind))
        box.until(neighbours[-1], guest.STDOUT)
    found = run(box, OTHERS, isolation=isolation).result
    own = {name: answer for name, answer in found.items() if name.startswith("own/")}
    assert own == {f"own/{name}": "opened" for name in ("environ", "mem", "maps", "fd/0")}
    others = {name: answer for name, answer in found.items() if name not in own}
    assert len(others) >= 4 * 9  # PID 1, the seed, four launchers, their four calls
    assert set(others.values()) <= {"PermissionError", "FileNotFoundError"}, others
    for number in neighbours:
        box.connection.sendall(guest.pack_json(guest.CANCEL, number, guest.CancelCall(kind="cancelled")))
        assert box.finish(number).how.kind == "cancelled"


# --- imports -----------------------------------------------------------------------------------------------------

PRELOADED = """
import sys
def run(call):
    return ["colorsys" in sys.modules, "wave" in sys.modules, sys.modules["colorsys"].__file__]
def never(call):
    import colorsys
"""
POISON = "open('/workspace/poisoned', 'w').close()\n"


@ISOLATIONS
def test_only_the_image_s_own_modules_are_imported_ahead(box: Box, isolation: str) -> None:
    for name in ("colorsys", "json", "sitecustomize", "usercustomize", "runner", "os"):
        assert box.run("sh", "-c", f'printf %s "{POISON}" > {name}.py', isolation=isolation).how.exit_code == 0
    for _ in range(2):
        assert run(box, PRELOADED, isolation=isolation).result == [True, False, "/usr/lib/python3.11/colorsys.py"]
    assert box.run("ls", "poisoned").how.exit_code == 2
    imports = (
        "import sys\ndef run(call):\n    sys.path.insert(0, '/workspace')\n    import wave, colorsys, sitecustomize"
    )
    assert run(box, imports, isolation=isolation).how.exit_code == 0
    assert box.run("ls", "poisoned").how.exit_code == 0  # the poison works, where a tool asks for it


@ISOLATIONS
def test_a_tool_s_own_module_comes_before_the_one_that_was_imported_ahead(box: Box, isolation: str) -> None:
    files = {
        "main.py": b"import colorsys, fractions\ndef run(call): return [colorsys.__name__, hasattr(colorsys, 'own')]",
        "colorsys.py": b"own = 1",
    }
    digest = guest.code_digest(files)
    box.code("made", digest, files)
    for _ in range(2):
        done = box.finish(box.start(tool="made", kind="python", code_digest=digest, isolation=isolation))
        assert done.result == ["colorsys", True], done.stderr


@pytest.mark.parametrize("source", ["def run(call:\n", "import no_such_module\ndef run(call): pass", "\0", "run = 1"])
def test_code_that_cannot_run_says_so_in_its_own_call(box: Box, source: str) -> None:
    done = run(box, source)
    assert (done.how.kind, done.how.exit_code, done.result) == ("exited", 1, None)
    assert b"Error" in done.stderr
    assert run(box, "def run(call): return 1").result == 1


def test_new_code_is_run_by_launchers_of_its_own(box: Box) -> None:
    first, second = "def run(call): return 1", "def run(call): return 2"
    assert [run(box, source).result for source in (first, second, second, first)] == [1, 2, 2, 1]


# --- what an interpreter does ------------------------------------------------------------------------------------

IN_WORDS = """
# a status
import sys
def run(call): sys.exit(3)
# a status beyond a byte
import sys
def run(call): sys.exit(256 + 7)
# a negative status
import sys
def run(call): sys.exit(-1)
# no status
import sys
def run(call): sys.exit()
# words
import sys
def run(call): sys.exit("in words")
# at once
import os
def run(call):
    print("lost")
    os._exit(9)
# an exception
def run(call): return {}["missing"]
# an exception in a module
1 / 0
def run(call): pass
# not even an exception
def run(call): raise GeneratorExit
# an interrupt
import os, signal
def run(call): os.kill(os.getpid(), signal.SIGINT)
# a signal
import os, signal
def run(call): os.kill(os.getpid(), signal.SIGTERM)
# a fault
import ctypes
def run(call): ctypes.string_at(1)
# a broken pipe
import os
def run(call):
    reader, writer = os.pipe()
    os.close(reader)
    os.write(writer, b"x")
# a thread that goes on
import threading, time
def later():
    time.sleep(0.1)
    print("later")
def run(call):
    threading.Thread(target=later).start()
    return 1
# a thread that fails
import threading
def run(call):
    thread = threading.Thread(target=lambda: {}[0], name="t")
    thread.start()
    thread.join()
    return 1
# at the end
import atexit
def run(call):
    atexit.register(print, "the end")
    return 1
# an open file
def run(call):
    global kept
    kept = open("/workspace/kept", "w")
    kept.write("kept")
    return 1
# an open file in a cycle
def run(call):
    kept = [open("/workspace/kept", "w")]
    kept.append(kept)
    kept[0].write("kept")
    return 1
# an open file of a program
import sys
from types import ModuleType
def run(call):
    module = sys.modules["__main__"] = ModuleType("__main__")
    exec("kept = open('/workspace/kept', 'w')\\nkept.write('kept')", module.__dict__)
    return 1
# a module of two names
import sys
def run(call):
    sys.modules["another"] = sys.modules["__mp_main__"] = sys.modules[__name__]
    sys.modules["third"] = sys.modules["__main__"]
    print("said")
    return 1
# no standard output
import sys
def run(call):
    sys.stdout = None
    print("nobody")
    return 1
# a closed standard output
import sys
def run(call):
    sys.stdout.close()
    return 1
# a closed descriptor
import os
def run(call):
    os.close(1)
    return 1
# buffered
import sys
def run(call):
    print("a", end="")
    sys.stderr.write("b")
    sys.stdout.buffer.write(b"c")
# streams
import sys
def run(call):
    return [
        [s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno(), s.newlines, s.name, s.mode]
        for s in (sys.stdin, sys.stdout, sys.stderr)
    ]
# settings
import os, sys, time
def run(call):
    main = sys.modules["__main__"].__file__
    return [
        sys.argv, sys.path[1:], str(sys.flags), sys.executable, time.tzname, dict(os.environ), os.getcwd(),
        sys.getfilesystemencoding(), __name__, os.umask(0), main, os.nice(0), len(os.sched_getaffinity(0)),
    ]
# a program of its own
import subprocess, sys
PROGRAM = '''
import os, signal
print(dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, []), os.listdir("/proc/self/fd"))
print([str(signal.getsignal(number)) for number in range(1, 32)])
'''
def run(call): return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stdout
# processes
import multiprocessing
def run(call):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=lambda: writer.send(42))
    process.start()
    process.join()
    return [reader.recv(), process.exitcode]
# asyncio
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("echo", "x", stdout=-1)
    return (await process.communicate())[0].decode()
def run(call): return asyncio.run(main())
"""
ENDS = dict(part.split("\n", 1) for part in IN_WORDS.split("\n# ")[1:])


def test_a_forked_tool_ends_as_one_in_a_new_interpreter_does(box: Box, old_box: Box) -> None:
    """Where the kernel has no signal scope each call starts an interpreter: what that does is what is promised."""

    def seen(place: Box, source: str) -> tuple[Any, ...]:
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "Asia/Kolkata"}
        done = run(place, source, environment=environment)
        assert done.fault is None
        kept = place.run("cat", "kept").stdout
        place.run("rm", "-f", "kept")
        return done.how.kind, done.how.exit_code, done.how.signal, done.stdout, done.stderr, done.result, kept

    forked = {name: seen(box, source) for name, source in ENDS.items()}
    started = {name: seen(old_box, source) for name, source in ENDS.items()}
    assert {name: (forked[name], started[name]) for name in ENDS if forked[name] != started[name]} == {}
    assert forked["an open file"][-1] == b"kept"
    assert forked["a thread that goes on"][3] == b"later\n"


# --- the walls, from a python tool -------------------------------------------------------------------------------

PROBE = (HERE / "probes/system_calls.py").read_text()
PROBING = f"""
import contextlib, io, json, sys
def run(call):
    sys.argv = ["", json.dumps(call.arguments["acts"])]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec({PROBE!r}, {{"__name__": "probe"}})
    return json.loads(said.getvalue())
"""


@ISOLATIONS
def test_dangerous_system_calls_are_refused_from_every_kind_of_call(box: Box, isolation: str) -> None:
    tables = runpy.run_path(str(HERE / "test_system_calls.py"))
    refused = {**tables["WITHOUT_CAPABILITIES"], **tables["WITH_CAPABILITIES"]}
    needed = {name: act for name, act in tables["NEEDED"].items() if "mknod" not in name}
    acts = [[name, "native", number, arguments] for name, (number, arguments) in {**refused, **needed}.items()]
    acts += [[name, way, number, []] for name, (way, number) in tables["OTHER_ABIS"].items()]
    argv = json.loads(box.run("python3", "-c", PROBE, json.dumps(acts), isolation=isolation).stdout)
    tool = run(box, PROBING, {"acts": acts}, isolation=isolation)
    for found in (argv, tool.result):
        assert found is not None, tool.stderr
        assert {name: found[name] for name in refused if found[name] != "EPERM"} == {}
        assert {found[name] for name in tables["OTHER_ABIS"]} == {"SIGSYS"}
        assert "EPERM" not in {found[name] for name in needed}
        assert found["getpid"] == "ok"


def test_a_python_tool_writes_only_where_its_jail_lets_it(box: Box) -> None:
    source = "def run(call):\n    open(call.arguments['path'], 'w').close()\n    return 'written'"
    for path in ("/workspace/a", "/tmp/a"):
        assert run(box, source, {"path": path}).result == "written"
        assert b"PermissionError" in run(box, source, {"path": path}, jail=jail(write=("/dev/null",))).stderr
    for path in ("/run/tools/a", "/proc/self/oom_score_adj", "/usr/lib/runner/guest/a", "/etc/a"):
        done = run(box, source, {"path": path})
        assert done.result is None, path
        assert b"PermissionError" in done.stderr or b"Read-only" in done.stderr, path
