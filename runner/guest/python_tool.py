"""The process of a python tool's call: reads its arguments, runs `run(call)` of the tool's main.py, writes the result.

Descriptors: 0, 1, 2 as of any program; 3 holds the call as gate sent it (START in `runner/wire/guest.py`), 4 takes
the result as JSON. Exit status 0 with a result, or 1 with `{"error": {"code", "message"}}` or a traceback on stderr.

A launcher forks it (`forked`), having imported what `compile_main` found; where it cannot, it starts this file. What
the tool sees is the same: a fork leaves it nothing of another call, for its launcher has never held any.
"""

from __future__ import annotations

import atexit
import gc
import json
import marshal
import os
import signal
import sys
import time
import traceback
from types import ModuleType

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(__file__.rsplit("/", 3)[0])

from runner.guest.beneath import Call, ToolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

TOOLS = "/run/tools"  # each tool's code by its digest, written by PID 1
REQUEST, RESULT = 3, 4
_TREE = 0x400  # compile() to a tree (ast.PyCF_ONLY_AST)


def compile_main(folder: str, kept: int) -> NoReturn:
    """Write to the descriptor `kept`: the modules that main.py names in imports, one a line, a NUL, its code. Nothing
    for a file that does not compile: its call will say why."""
    sys.stderr = None  # a warning is for the call's reader
    with open(f"{folder}/main.py", "rb") as file:
        source = file.read()
    names, todo = set[str](), [compile(source, "main.py", "exec", _TREE, dont_inherit=True)]
    while todo:
        node: Any = todo.pop()
        if hasattr(node, "level"):  # from module import names: each of them may be a module too
            names |= {f"{node.module}{end}" for end in ("", *(f".{part.name}" for part in node.names))}
        elif hasattr(node, "names"):
            names |= {getattr(part, "name", "") for part in node.names}
        for field in node._fields:
            value = getattr(node, field, None)
            todo += [item for item in (value if isinstance(value, list) else [value]) if hasattr(item, "_fields")]
    code = compile(source, f"{folder}/main.py", "exec", dont_inherit=True)
    os.write(kept, "\n".join(sorted(names)).encode() + b"\0" + marshal.dumps(code))
    os._exit(0)


def load(folder: str, code: bytes = b"") -> ModuleType:
    """The tool's main.py, as a module named `main`; its own folder can be imported from. `code` is what `compile_main`
    made of it."""
    sys.path.insert(0, folder)
    module = ModuleType("main")
    module.__file__ = f"{folder}/main.py"
    sys.modules["main"] = module
    if not code:
        with open(module.__file__, "rb") as file:
            source = file.read()
    ready = marshal.loads(code) if code else compile(source, module.__file__, "exec", dont_inherit=True)  # noqa: S302
    exec(ready, module.__dict__)  # noqa: S102 (this is the tool)
    return module


def put(value: Any, most: int) -> int:
    """Write the result; the exit status. A result that is no JSON, or too long, is an error."""
    status = 0
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        if len(data) > most:
            raise ValueError(f"the result is {len(data)} bytes; at most {most} are allowed")
    except (ValueError, TypeError, RecursionError) as error:
        data, status = json.dumps({"error": {"code": "result", "message": str(error)}}).encode(), 1
    with os.fdopen(RESULT, "wb") as file:
        file.write(data)
    return status


def take() -> dict[str, Any]:
    """The call, as gate sent it."""
    os.set_inheritable(RESULT, False)
    with os.fdopen(REQUEST, "rb") as file:
        request: dict[str, Any] = json.load(file)
    return request


def main(request: dict[str, Any], code: bytes = b"") -> int:
    """Run one call; the exit status. SystemExit of the tool passes through."""
    folder = f"{TOOLS}/{request['tool']}/{request['code_digest']}"
    call = Call(request["tool"], request.get("arguments", {}), request.get("roots", {}), folder)
    try:
        value = load(folder, code).run(call)
    except ToolError as error:
        put({"error": {"code": error.code, "message": str(error)}}, request["result"])
        return 1
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:  # our own frames say nothing about the tool
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace, limit=-12)
        return 1
    return 0 if value is None else put(value, request["result"])


def forked(code: bytes, known: set[str]) -> NoReturn:
    """`main` in a process that a launcher forked, with the beginning and the end of an interpreter around it. Modules
    beyond `known` are those that the tool asked for."""
    status, before = 1, dict(sys.modules)
    try:
        request = take()
        _begin(request.get("environment", {}))
        for entry in os.listdir(f"{TOOLS}/{request['tool']}/{request['code_digest']}"):
            if (own := entry.removesuffix(".py")) not in known:
                sys.modules.pop(own, None)  # the tool's own module of that name comes first
        status = main(request, code)
    except SystemExit as stop:
        status = _status(stop.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(status, before)


def _begin(environment: dict[str, str]) -> None:
    """What a new interpreter has: its own environment, arguments, main module and standard streams."""
    os.environ.clear()
    os.environ.update(environment)
    if "TZ" in environment:
        time.tzset()
    sys.argv[:] = [__file__]
    sys.modules["__main__"] = sys.modules[__name__]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        as_old = {"encoding": old.encoding, "errors": old.errors, "newline": "\n", "closefd": False}
        new = open(number, "w" if number else "r", 1 if number == 2 else -1, **as_old)  # noqa: SIM115 (never closed)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _status(code: object) -> int:
    """The exit status that sys.exit(code) stands for."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _end(status: int, before: dict[str, ModuleType]) -> NoReturn:
    """What an interpreter does at its end: wait for threads, call who asked for it, close what is open, flush."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        streams = {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}
        sys.modules.clear()  # of the call's own; files that only they hold are closed
        sys.modules.update(before)
        gc.collect()
        for stream in streams:
            if stream and not stream.closed:
                stream.flush()
    except BaseException:
        status = status or 120
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(take()))
